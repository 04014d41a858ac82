"""The cost of a compiled program: memory, FLOPs, collectives, time, money.

The program is the one that would run, from the same compiler: `training` is the step of
`train.step`, `sampling` the sampling loop. For a `chips.Topology` no chip is needed.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from gen_jax import tree
from gen_jax.cost import flops, roofline
from gen_jax.cost.chips import GIB, Topology
from gen_jax.cost.hlo import cost as costs
from gen_jax.system import memory
from gen_jax.train import step as steps
from gen_jax.types import InputError, PyTree

Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Draft:
  """A program to compile.

  Attributes:
    run: the jitted function.
    args: its arguments, abstract, with shardings.
    held: the arguments by name; 'parameters' are the weights.
    items: units of data that one run consumes or produces.
    model_flops: of the model, over all devices, by convention; None: the traced FLOPs.
  """

  run: Any
  args: tuple
  held: Mapping[str, PyTree]
  items: int
  model_flops: Mapping[str, float] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Program(Draft):
  """A compiled program.

  Attributes:
    cost: of one device.
    peak_hbm_bytes: of one device.
    matrix_flops: of the traced program over all devices, recomputation included.
    kernel_flops: the part of them in Pallas kernels, which XLA does not count.
  """

  cost: costs.Cost
  peak_hbm_bytes: int
  matrix_flops: float
  kernel_flops: float


# A shorter search for fast kernels: compiles five times as fast. FLOPs and collectives
# are the same, except that float32 weights are sent as float32, not bfloat16; memory
# traffic is higher (GPT-2: by a sixth).
QUICK: Options = {"exec_time_optimization_effort": -1.0}


def compile(draft: Draft, options: Options | None = None) -> Program:
  """Compiles a draft.

  Args:
    options: of the compiler, e.g. `QUICK`.
  """
  matrix, kernel = (f(draft.run, *draft.args) for f in (flops.count, flops.kernels))
  compiled = draft.run.lower(*draft.args).compile(options)
  return Program(
    **{**vars(draft), "model_flops": draft.model_flops or {"mfu": matrix}},
    cost=costs.cost(compiled.as_text()),
    peak_hbm_bytes=memory.peak(compiled),
    matrix_flops=matrix,
    kernel_flops=kernel,
  )


def training(experiment: Any) -> Draft:
  """The training step of an experiment, in its layout."""
  optimizer, _ = experiment.optimizer(experiment.train.num_steps)
  state, batch = experiment.abstract_state(optimizer), experiment.batch()
  step = experiment.step(optimizer)
  frozen = experiment.abstract_frozen()
  numbers = steps.numbers(step, state, frozen, batch)
  return Draft(
    steps.compile_step(step, state, experiment.layout),
    (state, frozen, batch, numbers),
    held={
      "parameters": state.params,
      "optimizer": state.opt_state,
      "average": state.ema,
      "frozen": frozen,
      "batch": batch,
    },
    items=experiment.data.items_per_step,
    model_flops=experiment.flops_per_step(),
  )


def sampling(experiment: Any) -> Draft:
  """The loop that draws one image, or continues one text, per batch shard.

  Raises:
    InputError: the experiment's task generates nothing.
  """
  return Draft(*experiment.family.program(experiment), model_flops=None)


def parameter_table(params: PyTree) -> dict[str, int]:
  """Number of elements by module, two levels deep."""
  table: dict[str, int] = {}
  for path, leaf in tree.flatten(params).items():
    name = "/".join(path.split("/")[:-1][:2]) or path
    table[name] = table.get(name, 0) + tree.size(leaf)
  return table


def describe(experiment: Any, program: Program) -> dict[str, Any]:
  """The costs of a compiled program on any device, as plain data."""
  found, peak = program.cost, program.peak_hbm_bytes
  params = program.held["parameters"]
  mesh = dict(experiment.layout.mesh.shape)
  num = experiment.layout.mesh.size
  exchanges: dict[tuple, list[float]] = {}
  for c, times in found.collectives.items():
    key = (c.kind, "+".join(c.axes(mesh)), c.group_size)
    entry = exchanges.setdefault(key, [0.0, 0.0, 0.0])
    for i, value in enumerate((times, c.bytes * times, c.wire_bytes * times)):
      entry[i] += value
  bytes_held = {k: memory.bytes_per_device(v) for k, v in program.held.items()}
  return {
    "params": tree.size(params),
    "params_by_module": parameter_table(params),
    "mesh": mesh,
    "num_devices": num,
    "sharding": {p: str(x.sharding.spec) for p, x in tree.flatten(params).items()},
    "bytes_per_device": {
      **{k: v for k, v in bytes_held.items() if v},
      "activations and temporary": max(peak - sum(bytes_held.values()), 0),
    },
    "peak_hbm_bytes": peak,
    "held_bytes": tree.num_bytes(dict(program.held)),
    "items": program.items,
    "model_flops": program.model_flops["mfu"],
    "model_flops_causal": program.model_flops.get("mfu_causal"),
    "matrix_flops": program.matrix_flops,
    "hardware_flops": found.flops * num + program.kernel_flops,
    "kernel_flops": program.kernel_flops,
    "hbm_bytes": found.hbm_bytes,
    "collectives": [
      {
        **dict(zip(("kind", "axes", "group_size"), key, strict=True)),
        **dict(zip(("times", "bytes", "wire_bytes"), entry, strict=True)),
      }
      for key, entry in sorted(exchanges.items(), key=lambda e: -e[1][1])
    ],
    "open_loops": list(found.open_loops),
  }


def lines(result: dict[str, Any]) -> list[str]:
  """`describe` as lines of text."""
  out = ["parameters by module"]
  table = {**result["params_by_module"], "all": result["params"]}
  out += [f"  {name:40} {size:>18,}" for name, size in table.items()]
  out += ["", "sharding of parameters"]
  out += [f"  {path:56} {spec}" for path, spec in result["sharding"].items()]
  mesh = " x ".join(f"{axis}={size}" for axis, size in result["mesh"].items())
  out += ["", f"mesh {mesh}", "", "bytes on each device"]
  held = {**result["bytes_per_device"], "peak": result["peak_hbm_bytes"]}
  out += [f"  {name:40} {size / GIB:>14.3f} GiB" for name, size in held.items()]
  out += ["", "FLOPs of one run, all devices together"]
  for key, meaning in (
    ("model_flops", "of the model"),
    ("model_flops_causal", "the same, causal attention halved"),
    ("matrix_flops", "traced, recomputation included"),
    ("hardware_flops", "in the compiled program, loops times their length"),
    ("kernel_flops", "of these in Pallas kernels, by their grids"),
  ):
    if result[key]:
      out.append(f"  {result[key]:>12.4g}  {meaning}")
  out += ["", f"memory traffic of a device: {result['hbm_bytes'] / GIB:.2f} GiB"]
  out += ["collectives of a device: whole arrays, bytes sent, executions"]
  for c in result["collectives"]:
    out.append(
      f"  {c['kind']:20} {c['axes']:14} {c['group_size']:>4} devices"
      f" {c['bytes'] / GIB:>10.3f} GiB {c['wire_bytes'] / GIB:>10.3f} GiB"
      f" {c['times']:>8.0f}"
    )
  if result["open_loops"]:
    out.append(
      f"{len(result['open_loops'])} loop(s) depend on data and are counted once:"
      f" {', '.join(result['open_loops'])}"
    )
  return out


def forecast(
  draft: Draft,
  topology: Topology,
  num_steps: int,
  usd_per_chip_hour: float | None,
  mfu: float,
) -> dict[str, Any]:
  """What a run takes at an expected MFU, from the model's FLOPs; nothing is compiled.

  Args:
    num_steps: of the whole run.
    mfu: share of the chips' peak that the model's FLOPs reach, in (0, 1].
  """
  secs = roofline.forecast(draft.model_flops["mfu"], mfu, topology)
  return {
    "mfu": mfu,
    "step_secs": secs,
    "items_per_sec": draft.items / secs,
    "cost": roofline.expense(num_steps, secs, topology.num_chips, usd_per_chip_hour),
  }


def price(
  program: Program, topology: Topology, num_steps: int, usd_per_chip_hour: float | None
) -> dict[str, Any]:
  """The time and money of a program on a slice, as plain data.

  Args:
    num_steps: of the whole run.
  """
  devices = len(topology.devices)
  bounds = roofline.of(program.cost, topology, program.kernel_flops / devices)
  capacity = topology.chip.hbm_bytes / topology.devices_per_chip
  secs = bounds.step_secs
  mfu = {
    f"{name}_bound": roofline.utilisation(work, secs, topology)
    for name, work in program.model_flops.items()
  }
  return {
    "topology": topology.name,
    "num_chips": topology.num_chips,
    "hbm_capacity_bytes": capacity,
    "fits": program.peak_hbm_bytes <= capacity,
    "bounds_secs": bounds.bounds,
    "step_secs_bound": secs,
    "step_secs_serial": bounds.serial_secs,
    "bound_by": bounds.bound_by,
    **mfu,
    "items_per_sec_bound": program.items / secs,
    "cost": roofline.expense(num_steps, secs, topology.num_chips, usd_per_chip_hour),
  }


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_USED = re.compile(
  r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"
  r"|\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"
)


def out_of_memory(text: str) -> tuple[float, float] | None:
  """(bytes needed, bytes available) from the compiler's message; None if not in it."""
  found = _USED.search(text)
  if found is None:
    return None
  needed, unit, there, unit_there = (x for x in found.groups() if x)
  return float(needed) * _UNITS[unit], float(there) * _UNITS[unit_there]


def check_fits(experiment: Any, state: PyTree, compiled: Any = None) -> None:
  """Refuses a run that does not fit this machine, before anything is allocated.

  Args:
    state: of training, abstract.
    compiled: the training step; None: checks only the state.

  Raises:
    InputError: see `too_large`.
  """
  held = (state, experiment.abstract_frozen(), experiment.batch())
  there = memory.available(experiment.layout.replicated)
  needed = memory.bytes_per_device(held) if compiled is None else memory.peak(compiled)
  if needed > there:
    raise too_large(experiment, needed, there)


def too_large(experiment: Any, needed: float, there: float) -> InputError:
  """The error for a training step that does not fit, with settings that would.

  State shrinks with more devices; activations also with more microbatches.
  """
  optimizer, _ = experiment.optimizer(experiment.train.num_steps)
  state = memory.bytes_per_device(experiment.abstract_state(optimizer))
  shards = experiment.layout.mesh.size
  fixes = []
  if state < 0.9 * there:
    micro = experiment.train.num_microbatches
    own = experiment.data.batch_size // experiment.layout.num_batch_shards
    times = -(-(needed - state) // (there - state)) * micro
    fitting = [n for n in range(1, own + 1) if own % n == 0 and n >= times]
    if fitting:
      fixes.append(f"train.num_microbatches={fitting[0]} should do")
    blocks = [x for x in experiment.config["task"].values() if isinstance(x, Mapping)]
    if all(block.get("remat") != "full" for block in blocks):
      fixes.append("remat=full keeps less")
  more = int(-(-shards * needed // there))
  fixes.append(f"about {more} such devices instead of {shards} would hold it")
  needs, more, has, held = (
    f"{x / GIB:.2f} GiB" for x in (needed, needed - there, there, state)
  )
  return InputError(
    f"out of memory: a device needs {needs}, {more} more than its {has} (the state"
    f" takes {held} of it): {'; '.join(fixes)}"
  )
