"""`gen-jax plan`: the real program for the real chips, compiled without them."""

from __future__ import annotations

import itertools
import math
import pathlib
from typing import Any

from gen_jax import errors, tree
from gen_jax import experiment as experiments
from gen_jax.cli import flags
from gen_jax.cost import chips, plan
from gen_jax.errors import InputError
from gen_jax.runs import run as runs
from gen_jax.sweeps import ladder, ledger, scaling

ASSUMED = (
  "bounds, not forecasts: peaks as their makers print them, everything overlapped,"
  " all links of a chip busy at once"
)
_MOST = 1e30  # of what flags count


def add_arguments(parser) -> None:
  """See `gen-jax plan --help`."""
  flags.add_config(parser)
  add = parser.add_argument
  add(
    "--topology",
    required=True,
    help="chips to compile for: v5e:2x4, v5p:4x4x4 or Cloud's v5litepod-8; with --mfu"
    " also a100:256 or h100:8, by formula",
  )
  add("--sample", action="store_true", help="the sampling loop, not the training step")
  add(
    "--quick", action="store_true", help="compile faster, for slightly slower programs"
  )
  add("--search", action="store_true", help="try meshes, microbatches and remat")
  add("--limit", type=int, default=12, help="programs that --search compiles (12)")
  add(
    "--figure",
    action=flags.LocalPath,
    metavar="PNG",
    help="file for a figure of the plans of --search",
  )
  add("--compare", metavar="CONFIG[:ARG]", help="a second config to compare with")
  add(
    "--price",
    type=float,
    help=f"USD for a chip-hour (TPUs: list prices of {chips.PRICES_OF})",
  )
  add(
    "--mfu", type=float, help="expected share of the peak, in (0, 1]: adds a forecast"
  )
  budget = parser.add_mutually_exclusive_group()
  budget.add_argument("--tokens", type=float, help="train on this many, not num_steps")
  budget.add_argument("--images", type=float, help="the same for images")
  add(
    "--scaling",
    action=flags.LocalPath,
    metavar="RESULTS",
    help="results.json of a ladder of sizes: adds the expected loss",
  )
  parser.epilog = (
    "The compiler is libtpu's; it runs on any machine. Values of the config can\n"
    "be set as for train: --config.mesh.fsdp=64 --config.train.num_microbatches=4"
  )


def run(args) -> dict:
  """Compiles and prints; see `--help`."""
  if args.mfu is not None and not 0 < args.mfu <= 1:
    raise InputError(f"--mfu={args.mfu} must be in (0, 1]: 0.4 for 40 %")
  for name in ("limit", "price", "tokens", "images"):
    if (value := getattr(args, name)) is not None and not 0 < value < _MOST:
      raise InputError(f"--{name}={value} must be above 0 and below {_MOST:.0e}")
  if not args.search and args.figure:
    raise InputError("--figure is of what --search finds; give both")
  if args.scaling and args.compare:
    raise InputError("--scaling is of one config; give it without --compare")
  import jax  # here: see `lazy`

  # Everything here runs on the host: nothing may wait for, or take, an accelerator.
  jax.config.update("jax_platforms", "cpu")
  topology = chips.topology(args.topology)
  if args.price is None:
    args.price = topology.chip.usd_per_hour
  specs = [args.config] + ([args.compare] if args.compare else [])
  configs = [runs.fresh(spec, None, args.overrides).config for spec in specs]
  expected = _expected(configs[0], args) if args.scaling else {}
  if not topology.devices:
    return {**_by_formula(configs[0], topology, args), **expected}
  if args.search:
    return {**_search(configs[0], topology, args), **expected}
  results = [_plan(config, topology, args) for config in configs]
  if args.compare:
    for line in _beside(specs, results):
      print(line)
    return {"plans": dict(zip(specs, results, strict=True))}
  for line in (*plan.lines(results[0]), *_chip_lines(results[0])):
    print(line)
  return {**results[0], **expected}


def _plan(config: dict, topology: chips.Topology, args) -> dict[str, Any]:
  """One plan as plain data.

  Raises:
    InputError: also where the compiler runs out of the chip's memory.
  """
  import jax

  experiment = experiments.make(config, None, devices=topology.devices)
  steps = _num_steps(experiment, args)
  try:
    draft = (plan.sampling if args.sample else plan.training)(experiment)
    program = plan.compile(draft, plan.QUICK if args.quick else None)
  except jax.errors.JaxRuntimeError as error:
    found = plan.out_of_memory(str(error))
    if found is None:
      raise
    raise plan.too_large(experiment, *found) from None
  whole = (topology, 1 if args.sample else steps, args.price)
  return {
    "unit": experiment.data.unit,
    **plan.describe(experiment, program),
    **plan.price(program, *whole),
    **({"forecast": plan.forecast(program, *whole, args.mfu)} if args.mfu else {}),
  }


def _num_steps(experiment, args) -> int:
  """Steps of the budget: the config's, or as many as --tokens or --images take."""
  data = experiment.data
  budget, unit = args.tokens or args.images, "tokens" if args.tokens else "images"
  if not budget:
    return experiment.train.num_steps
  if unit != data.unit:
    raise InputError(f"this config counts {data.unit}: use --{data.unit}")
  return math.ceil(budget / data.items_per_step)


def _by_formula(config: dict, topology: chips.Topology, args) -> dict[str, Any]:
  """A forecast for chips without a compiler here, from the model's FLOPs alone."""
  if not args.mfu or args.sample or args.search or args.compare or args.figure:
    raise InputError(
      f"--topology {topology.name} is computed by formula, from the FLOPs of a training"
      " step: give --mfu, and neither --sample, --search nor --compare"
    )
  experiment = experiments.make({**config, "mesh": {}}, None)  # FLOPs know no mesh
  draft, steps = plan.training(experiment), _num_steps(experiment, args)
  result = {
    "unit": experiment.data.unit,
    "params": tree.size(draft.held["parameters"]),
    "model_flops": draft.model_flops["mfu"],
    "topology": topology.name,
    "num_chips": topology.num_chips,
    "forecast": plan.forecast(draft, topology, steps, args.price, args.mfu),
  }
  print(f"{result['params']:,} parameters, {result['model_flops']:.4g} FLOPs a step")
  print(_forecast_line(result))
  return result


def _expected(config: dict, args) -> dict[str, Any]:
  """What a ladder of smaller runs says of this config's budget; prints it."""
  recorded = ledger.read(args.scaling)
  ladder.check_data(recorded, config)
  made = experiments.make({**config, "mesh": {}}, None)
  fitted = scaling.surface(ladder.points(recorded))
  steps, unit = _num_steps(made, args), made.data.unit
  params, items = tree.size(made.abstract_params()), steps * made.data.items_per_step
  forecast = fitted.forecast(params, items)
  best = fitted.surface.best(params * items)
  found = {
    "metric": recorded["metric"],
    "params": params,
    "items": items,
    "interval": forecast.loss._asdict(),
    "times_largest_run": forecast.times,
    "best": {"params": best[0], "items": best[1], "loss": fitted.surface(*best)},
    "surface": fitted.surface._asdict(),
  }
  low, high = forecast.loss.low, forecast.loss.high
  print(
    f"expected {found['metric']}: {forecast.loss.mean:.3f}, 95 % interval {low:.3f} to"
    f" {high:.3f}, for {params:.3g} parameters after {items:.3g} {unit},"
    f" {forecast.times:.3g} times the compute of the largest run of {args.scaling}"
  )
  print(
    f"the same compute is best spent on {best[0]:.3g} parameters and {best[1]:.3g}"
    f" {unit}: {found['best']['loss']:.3f}"
  )
  return {"expected": found}


def _forecast_line(result: dict[str, Any]) -> str:
  found, unit = result["forecast"], result["unit"]
  return (
    f"at MFU {found['mfu']:.1%}: {found['step_secs'] * 1e3:.4g} ms a step,"
    f" {found['items_per_sec']:,.0f} {unit}/s; {_expense(found['cost'])}"
  )


def _expense(cost: dict[str, Any]) -> str:
  usd = "" if cost["usd"] is None else f", {cost['usd']:,.0f} USD"
  return (
    f"{cost['num_steps']:,} steps: {cost['days']:,.2f} days,"
    f" {cost['chip_hours']:,.0f} chip-hours{usd}"
  )


def _chip_lines(result: dict[str, Any]) -> list[str]:
  """What the program means on the chips."""
  capacity, peak = result["hbm_capacity_bytes"], result["peak_hbm_bytes"]
  spare = (capacity - peak) / chips.GIB
  fits = f"fits, {spare:.2f} GiB to spare" if result["fits"] else "does NOT fit"
  bounds = ", ".join(f"{k} {v * 1e3:.4g} ms" for k, v in result["bounds_secs"].items())
  causal = result.get("mfu_causal_bound")
  unit, rate = result["unit"], result["items_per_sec_bound"]
  return [
    "",
    f"{result['num_chips']} chips of {result['topology']}:"
    f" {peak / chips.GIB:.2f} of {capacity / chips.GIB:.2f} GiB a device, {fits}",
    f"at least: {bounds}",
    f"step: {result['step_secs_bound'] * 1e3:.4g} ms at best, bound by"
    f" {result['bound_by']}; {result['step_secs_serial'] * 1e3:.4g} ms if nothing"
    " overlapped",
    f"at best: {rate:,.0f} {unit}/s, MFU {result['mfu_bound']:.1%}"
    + (f" ({causal:.1%} with causal attention halved)" if causal else ""),
    f"at best: {_expense(result['cost'])}",
    f"({ASSUMED})",
    *([_forecast_line(result)] if "forecast" in result else []),
  ]


def _beside(names: list[str], results: list[dict[str, Any]]) -> list[str]:
  """Plans as columns, or as rows where there are more than two."""
  titles = (
    "parameters, peak GiB, model FLOPs, hardware FLOPs, traffic GiB, ms at best,"
    " ms serial, MFU at best, bound by"
  ).split(", ")
  kinds = sorted({c["kind"] for r in results for c in r["collectives"]})
  cells = [["", *titles, *(f"{kind} GiB" for kind in kinds)]]
  for name, r in zip(names, results, strict=True):
    exchanged = dict.fromkeys(kinds, 0.0)
    for c in r["collectives"]:
      exchanged[c["kind"]] += c["bytes"]
    cells.append(
      [
        name,
        f"{r['params']:,}",
        f"{r['peak_hbm_bytes'] / chips.GIB:.2f}",
        f"{r['model_flops']:.4g}",
        f"{r['hardware_flops']:.4g}",
        f"{r['hbm_bytes'] / chips.GIB:.1f}",
        f"{r['step_secs_bound'] * 1e3:.4g}",
        f"{r['step_secs_serial'] * 1e3:.4g}",
        f"{r['mfu_bound']:.1%}",
        r["bound_by"],
        *(f"{size / chips.GIB:.2f}" for size in exchanged.values()),
      ]
    )
  if len(results) <= 2:
    cells = list(zip(*cells, strict=True))
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return [
    "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
    for row in cells
  ]


def _arms(config: dict, num_devices: int) -> list[dict[str, Any]]:
  """Overrides to try: meshes x microbatches x remat, simple things first."""
  where = next((key for key in ("model", "network") if key in config["task"]), None)
  if where is None:
    raise InputError("--search is for language models and diffusion")
  remats = dict.fromkeys((config["task"][where].get("remat"), "dots", "full"))
  arms = [
    {
      "mesh.data": data,
      "mesh.fsdp": num_devices // (tensor * data),
      "mesh.tensor": tensor,
      "mesh.rules": "fsdp_tensor" if tensor > 1 else "fsdp",
      "train.num_microbatches": micro,
      f"task.{where}.remat": remat,
    }
    for tensor, data, micro, remat in itertools.product(
      (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8, 16), remats
    )
    if num_devices % (tensor * data) == 0
  ]
  return sorted(
    arms,
    key=lambda arm: (
      sum(arm[f"mesh.{axis}"] > 1 for axis in ("data", "fsdp", "tensor"))
      + math.log2(arm["train.num_microbatches"])
    ),
  )


def _search(config: dict, topology: chips.Topology, args) -> dict:
  """Compiles up to --limit arms; prints those that fit, best first, and draws them."""
  from gen_jax.build import overrides as overriding  # see `lazy`

  arms, rows, refused = _arms(config, len(topology.devices)), [], {}
  for arm in arms:
    tried = len(rows) + len(refused)
    if tried == args.limit:
      break
    name = ", ".join(f"{k.split('.')[-1]}={v}" for k, v in arm.items())
    changed = overriding.apply(config, [(k, str(v)) for k, v in arm.items()])
    try:
      experiments.make(changed, None, devices=topology.devices)
    except InputError:
      continue  # it cannot be built: no plan is lost
    try:
      rows.append({"arm": arm, "name": name, **_plan(changed, topology, args)})
      print(f"  {tried + 1}/{args.limit} {name}", flush=True)
    except InputError as error:
      refused[name] = str(error)
      print(f"  {tried + 1}/{args.limit} {name}: {error}", flush=True)
  rows.sort(key=lambda row: (row["step_secs_bound"], row["step_secs_serial"]))
  tried = len(rows) + len(refused)
  print(f"\n{tried} of {len(arms)} compiled, {len(rows)} fit; best first")
  for line in _beside([str(i + 1) for i in range(len(rows))], rows):
    print(line)
  for i, row in enumerate(rows, 1):
    print(f"{i:>4} {row['name']}")
  if args.figure and rows:
    _draw(rows, args.figure, topology)
  return {"tried": tried, "of": len(arms), "plans": rows, "refused": refused}


def _draw(rows: list[dict], path: pathlib.Path, topology: chips.Topology) -> None:
  """Memory against time of every plan that fits, by what binds it."""
  with errors.extra("report"):
    import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
  for i, row in enumerate(rows, 1):
    at = (row["step_secs_bound"] * 1e3, row["peak_hbm_bytes"] / chips.GIB)
    color = f"C{sorted(row['bounds_secs']).index(row['bound_by'])}"
    axes.scatter(*at, color=color, label=f"bound by {row['bound_by']}")
    axes.annotate(str(i), at, xytext=(4, 4), textcoords="offset points")
  axes.axhline(rows[0]["hbm_capacity_bytes"] / chips.GIB, color="0.5", linestyle="--")
  axes.set(xlabel="step at best, ms", ylabel="peak memory, GiB", ylim=(0, None))
  axes.set_title(f"Plans that fit {topology.name}; numbers are places in the table")
  handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
  axes.legend(handles.values(), handles.keys())
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
  print(f"image: {path}")
