"""`gen-jax plan`: the real program for the real chips, compiled without them."""

import itertools
import math
import pathlib
from typing import Any

import jax

from gen_jax import chips, plan
from gen_jax import experiment as experiments
from gen_jax.chips import GIB
from gen_jax.cli import config_args
from gen_jax.types import InputError

ASSUMED = (
  "bounds, not forecasts: peaks as their makers print them, everything overlapped,"
  " all links of a chip busy at once"
)


def add_arguments(parser) -> None:
  """See `gen-jax plan --help`."""
  parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
  parser.add_argument(
    "--topology", required=True, help="chips to compile for, as v5e:2x4 or v5p:4x4x4"
  )
  parser.add_argument(
    "--sample", action="store_true", help="the loop that draws, not the training step"
  )
  parser.add_argument(
    "--search", action="store_true", help="try meshes, microbatches and remat"
  )
  parser.add_argument(
    "--limit", type=int, default=12, help="programs that --search compiles (12)"
  )
  parser.add_argument("--picture", metavar="PNG", help="where --search draws its plans")
  parser.add_argument("--compare", metavar="FILE[:ARG]", help="a second config beside")
  parser.add_argument("--price", type=float, help="USD for a chip-hour")
  budget = parser.add_mutually_exclusive_group()
  budget.add_argument("--tokens", type=float, help="train on so many, not num_steps")
  budget.add_argument("--images", type=float, help="the same for pictures")
  parser.epilog = (
    "The compiler is that of libtpu; it runs on any machine. Values of the config can\n"
    "be set as for train: --config.mesh.fsdp=64 --config.train.num_microbatches=4"
  )


def run(args) -> dict:
  """Compiles and prints; see `--help`."""
  if args.limit < 1:
    raise InputError(f"--limit={args.limit} must be at least 1")
  # Everything here runs on the host: nothing may wait for, or take, an accelerator.
  jax.config.update("jax_platforms", "cpu")
  topology = chips.topology(args.topology)
  specs = [args.config] + ([args.compare] if args.compare else [])
  configs = [
    config_args.apply(config_args.load(spec), args.overrides) for spec in specs
  ]
  if args.search:
    return _search(configs[0], topology, args)
  results = [_plan(config, topology, args) for config in configs]
  if args.compare:
    for line in _beside(specs, results):
      print(line)
    return {"plans": dict(zip(specs, results, strict=True))}
  for line in (*plan.lines(results[0]), *_chip_lines(results[0])):
    print(line)
  return results[0]


def _plan(config: dict, topology: chips.Topology, args) -> dict[str, Any]:
  """One plan as plain data.

  Raises:
    InputError: also where the compiler runs out of the chip's memory.
  """
  experiment = experiments.make(config, None, devices=topology.devices)
  data = experiment.data
  budget = args.tokens or args.images
  if budget and (data.unit == "tokens") != bool(args.tokens):
    raise InputError(f"this config counts {data.unit}: use --{data.unit}")
  steps = experiment.train.num_steps
  if budget:
    steps = math.ceil(budget / data.items_per_step)
  try:
    make = plan.sampling if args.sample else plan.training
    program = make(experiment)
  except jax.errors.JaxRuntimeError as error:
    found = plan.out_of_memory(str(error))
    if found is None:
      raise
    raise plan.too_large(experiment, *found) from None
  return {
    "unit": data.unit,
    **plan.describe(experiment, program),
    **plan.price(program, topology, 1 if args.sample else steps, args.price),
  }


def _chip_lines(result: dict[str, Any]) -> list[str]:
  """What the program means on the chips."""
  capacity, peak = result["hbm_capacity_bytes"], result["peak_hbm_bytes"]
  spare = (capacity - peak) / GIB
  fits = f"fits, {spare:.2f} GiB to spare" if result["fits"] else "does NOT fit"
  bounds = ", ".join(f"{k} {v * 1e3:.4g} ms" for k, v in result["bounds_secs"].items())
  causal = result.get("mfu_causal_bound")
  cost = result["cost"]
  usd = "" if cost["usd"] is None else f", {cost['usd']:,.0f} USD"
  unit, rate = result["unit"], result["items_per_sec_bound"]
  return [
    "",
    f"{result['num_chips']} chips of {result['topology']}:"
    f" {peak / GIB:.2f} of {capacity / GIB:.2f} GiB a device, {fits}",
    f"at least: {bounds}",
    f"step: {result['step_secs_bound'] * 1e3:.4g} ms at best, bound by"
    f" {result['bound_by']}; {result['step_secs_serial'] * 1e3:.4g} ms if nothing"
    " overlapped",
    f"at best: {rate:,.0f} {unit}/s, MFU {result['mfu_bound']:.1%}"
    + (f" ({causal:.1%} with causal attention halved)" if causal else ""),
    f"{cost['num_steps']:,} steps at best: {cost['days']:,.2f} days,"
    f" {cost['chip_hours']:,.0f} chip-hours{usd}",
    f"({ASSUMED})",
  ]


_ROWS = {
  "parameters": ("params", "{:,.0f}", 1),
  "peak GiB a device": ("peak_hbm_bytes", "{:.2f}", GIB),
  "model FLOPs": ("model_flops", "{:.4g}", 1),
  "hardware FLOPs": ("hardware_flops", "{:.4g}", 1),
  "memory traffic GiB": ("hbm_bytes", "{:.2f}", GIB),
  "step ms, at best": ("step_secs_bound", "{:.4g}", 1e-3),
  "bound by": ("bound_by", "{}", None),
  "MFU at best": ("mfu_bound", "{:.3f}", 1),
}


def _beside(names: list[str], results: list[dict[str, Any]]) -> list[str]:
  """Plans as columns."""
  cells = [["", *names]]
  for title, (key, form, unit) in _ROWS.items():
    values = [r[key] if unit is None else r[key] / unit for r in results]
    cells.append([title, *(form.format(v) for v in values)])
  kinds = sorted({c["kind"] for r in results for c in r["collectives"]})
  for kind in kinds:
    sizes = [
      sum(c["bytes"] for c in r["collectives"] if c["kind"] == kind) for r in results
    ]
    cells.append([f"{kind} GiB", *(f"{size / GIB:.2f}" for size in sizes)])
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return [
    "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
    for row in cells
  ]


def _arms(config: dict, num_devices: int) -> list[dict[str, Any]]:
  """Overrides to try, the likeliest first: FSDP over all, then less of it."""
  block = config["task"].get("model") or config["task"].get("unet") or {}
  remats = (block.get("remat"), "dots", "full") if "remat" in block else (None,)
  where = "model" if "model" in config["task"] else "unet"
  tensors = [n for n in (1, 2, 4, 8) if num_devices % n == 0]
  arms = []
  for tensor, data, micro, remat in itertools.product(
    tensors, (1, 2, 4, 8, num_devices), (1, 2, 4, 8), dict.fromkeys(remats)
  ):
    if num_devices % (tensor * data):
      continue
    mesh = {"data": data, "fsdp": num_devices // (tensor * data), "tensor": tensor}
    arm = {f"mesh.{axis}": size for axis, size in mesh.items()}
    arm["mesh.rules"] = "fsdp_tensor" if tensor > 1 else "fsdp"
    arm["train.num_microbatches"] = micro
    if "remat" in block:
      arm[f"task.{where}.remat"] = remat
    if arm not in arms:
      arms.append(arm)
  # Simple things first: few axes in use, few microbatches.
  axes = ("mesh.data", "mesh.fsdp", "mesh.tensor")
  return sorted(
    arms,
    key=lambda arm: (
      sum(arm[axis] > 1 for axis in axes) + math.log2(arm["train.num_microbatches"])
    ),
  )


def _search(config: dict, topology: chips.Topology, args) -> dict:
  """Compiles up to --limit arms; prints those that fit, best first, and draws them."""
  arms = _arms(config, len(topology.devices))
  rows, refused = [], {}
  tried = 0
  for arm in arms:
    if tried == args.limit:
      break
    name = ", ".join(f"{k.split('.')[-1]}={v}" for k, v in arm.items())
    changed = config_args.apply(config, [(k, str(v)) for k, v in arm.items()])
    try:
      experiments.make(changed, None, devices=topology.devices)
    except InputError:
      continue  # it cannot be built: no plan is lost
    tried += 1
    try:
      rows.append({"arm": arm, "name": name, **_plan(changed, topology, args)})
      print(f"  {tried}/{args.limit} {name}: {rows[-1]['step_secs_bound']:.4g} s")
    except InputError as error:
      refused[name] = str(error)
      print(f"  {tried}/{args.limit} {name}: {error}")
  rows.sort(key=lambda row: (row["step_secs_bound"], row["step_secs_serial"]))
  print(f"\n{tried} of {len(arms)} compiled, {len(rows)} fit; best first")
  print(f"  {'ms at best':>12} {'serial':>10} {'GiB':>7} {'MFU':>6}  bound by")
  for row in rows:
    print(
      f"  {row['step_secs_bound'] * 1e3:>12.4g} {row['step_secs_serial'] * 1e3:>10.4g}"
      f" {row['peak_hbm_bytes'] / GIB:>7.2f} {row['mfu_bound']:>6.1%}"
      f"  {row['bound_by']:12} {row['name']}"
    )
  if args.picture and rows:
    _draw(rows, pathlib.Path(args.picture), topology)
  return {"tried": tried, "of": len(arms), "plans": rows, "refused": refused}


def _draw(rows: list[dict], path: pathlib.Path, topology: chips.Topology) -> None:
  """Memory against time of every plan that fits, by what binds it."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
  for bound in sorted({row["bound_by"] for row in rows}):
    own = [(i, row) for i, row in enumerate(rows, 1) if row["bound_by"] == bound]
    x = [row["step_secs_bound"] * 1e3 for _, row in own]
    y = [row["peak_hbm_bytes"] / GIB for _, row in own]
    axes.scatter(x, y, label=f"bound by {bound}")
    for i, row in own:
      at = (row["step_secs_bound"] * 1e3, row["peak_hbm_bytes"] / GIB)
      axes.annotate(str(i), at, xytext=(4, 4), textcoords="offset points")
  axes.axhline(rows[0]["hbm_capacity_bytes"] / GIB, color="0.5", linestyle="--")
  axes.set(
    xlabel="step at best, ms",
    ylabel="peak memory of a device, GiB",
    title=f"Plans that fit {topology.name}; numbers are places in the table",
    ylim=(0, None),
  )
  axes.legend()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
  print(f"picture: {path}")
