"""A profile of some training steps: a trace on disk, and where their time went.

`traced` wraps a step, so the loop does not know of it. The trace is JAX's own: open it
with TensorBoard's profile plugin, XProf or Perfetto.
"""

import collections
import contextlib
import functools
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from gen_jax.cost import chips, flops
from gen_jax.cost.hlo import cost as costs
from gen_jax.system import copies, files
from gen_jax.train import step as steps

_SHOWN = 12  # operations in the table
_NAME = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', re.MULTILINE)


class Event(NamedTuple):
  """An operation at work in one thread or stream, in nanoseconds."""

  name: str
  start: float
  end: float


def own_times(events: Iterable[Event]) -> list[tuple[str, float]]:
  """(name, nanoseconds) of each event of one thread without the events inside it.

  >>> own_times([Event("loop", 0, 10), Event("dot", 1, 4), Event("add", 5, 6)])
  [('loop', 6), ('dot', 3), ('add', 1)]
  """
  in_order = sorted(events, key=lambda e: (e.start, -e.end))
  own = [event.end - event.start for event in in_order]
  open_ones: list[int] = []
  for i, event in enumerate(in_order):
    while open_ones and in_order[open_ones[-1]].end <= event.start:
      open_ones.pop()
    if open_ones:
      own[open_ones[-1]] -= event.end - event.start
    open_ones.append(i)
  return [(event.name, secs) for event, secs in zip(in_order, own, strict=True)]


def covered(events: Iterable[Event]) -> float:
  """Nanoseconds in which at least one event is at work.

  >>> covered([Event("a", 0, 4), Event("b", 2, 6), Event("c", 8, 9)])
  7.0
  """
  total, until = 0.0, float("-inf")
  for _, start, end in sorted(events, key=lambda e: e.start):
    total += max(end - max(start, until), 0.0)
    until = max(until, end)
  return total


def read(path: pathlib.Path, module: str) -> list[list[Event]]:
  """The operations of one device in an .xplane.pb, by thread or stream.

  XLA's operations are the line "XLA Ops" of a TPU, else events that name the module
  they are of. A CPU's devices share its threads.
  """
  planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
  devices = [plane for plane in planes if plane.name.startswith("/device:")]
  for plane in devices:  # libtpu adds an empty one to traces of a CPU
    if threads := _threads(plane, module):
      return threads
  return [thread for plane in planes for thread in _threads(plane, module)]


def _threads(plane: Any, module: str) -> list[list[Event]]:
  lines = list(plane.lines)
  ours = [line for line in lines if line.name == "XLA Ops"]
  threads = [
    [
      Event(_instruction(event.name), event.start_ns, event.end_ns)
      for event in line.events
      if ours or ("hlo_module", module) in event.stats
    ]
    for line in ours or lines
  ]
  return [thread for thread in threads if thread]


def _instruction(name: str) -> str:
  """'fusion.3' of '%fusion.3 = f32[8] fusion(...)'."""
  return name.split(" = ")[0].lstrip("%")


def _origins(text: str) -> dict[str, str]:
  """{instruction: the operation of the model it comes from}, of optimised HLO."""
  return dict(_NAME.findall(text))


def lines(
  threads: list[list[Event]], text: str, device: jax.Device, num: int, secs: float
) -> list[str]:
  """The report: time against the roofline, and the operations that took longest.

  Args:
    threads: see `read`.
    text: the step's optimised HLO.
    num: profiled steps, which took `secs` seconds each.
  """
  took: dict[str, float] = collections.defaultdict(float)
  origins = _origins(text)
  for name, duration in (pair for events in threads for pair in own_times(events)):
    where = re.sub(r"^jit\(\w+\)/", "", origins.get(name, name))
    took[where] += duration
  all_together = sum(took.values()) or 1.0
  longest_first = sorted(took.items(), key=lambda pair: pair[1], reverse=True)
  busy = covered(event for events in threads for event in events) / num
  out = [f"{secs * 1e3:.4g} ms a step, operations at work in {busy / secs / 1e7:.0f} %"]
  found = costs.cost(text)
  peak, source = flops.peak(device)
  bounds = {f"compute ({source})": found.flops / peak}
  if chip := chips.of(device):
    bounds["memory traffic"] = found.hbm_bytes / chip.hbm_bandwidth
  for name, bound in bounds.items():
    out.append(f"  at best {bound * 1e3:.4g} ms ({bound / secs:.0%}): {name}")
  out.append("  share  ms a step  operation")
  for name, duration in longest_first[:_SHOWN]:
    share, per_step = duration / all_together, duration / num / 1e6
    out.append(f"  {share:>5.1%}  {per_step:>9.4g}  {name}")
  rest = len(took) - _SHOWN
  if rest > 0:
    share = 1.0 - sum(d for _, d in longest_first[:_SHOWN]) / all_together
    out.append(f"  {share:>5.1%}  in {rest} others")
  return out


def _newest(home: pathlib.Path, text: str, num: int, secs: float) -> list[str]:
  """`lines` of the newest trace in a folder."""
  path = max(home.glob("plugins/profile/*/*.xplane.pb"), key=str)
  named = re.match(r"HloModule ([\w.-]+)", text)
  assert named is not None, text[:80]
  threads = read(path, named[1])
  return lines(threads, text, jax.local_devices()[0], num, secs)


@contextlib.contextmanager
def traced(
  step: steps.Step,
  between: tuple[int, int],
  at: int,
  directory: pathlib.Path,
  say: Callable[[str], object],
) -> Iterator[steps.Step]:
  """Yields `step`, which profiles its calls for the steps in [first, last).

  Args:
    step: jitted.
    between: (first, last).
    at: the step of the first call.
    directory: where the trace is written, under plugins/profile.
    say: gets the report, a line each.
  """
  home = directory if files.is_local(directory) else copies.scratch("profile")
  last, first = between[1], max(between[0], at)  # a run may resume in between
  count, secs, text, is_done = at, 0.0, "", False  # text: while it is profiled

  @functools.wraps(step)
  def wrapped(*args: Any):
    nonlocal count, secs, text
    if count == first < last:
      assert isinstance(step, jax.stages.Wrapped)
      text = step.lower(*args).compile().as_text() or ""
      jax.profiler.start_trace(str(home))
    if not text:
      count += 1
      return step(*args)
    jax.block_until_ready(args)
    began = time.perf_counter()
    out = jax.block_until_ready(step(*args))
    secs += time.perf_counter() - began
    count += 1
    if count == last:
      report(last - first)
    return out

  def report(num: int):
    nonlocal text, is_done
    program, text, is_done = text, "", True
    jax.profiler.stop_trace()
    if home != directory:
      copies.copy(home, directory)
    title = f"profile of steps {first} to {first + num - 1}, in {directory}"
    for line in (title, *_newest(home, program, num, secs / num)):
      say(line)

  try:
    yield wrapped
  finally:
    if text:  # training ended before the last of them
      if count > first:
        report(count - first)
      else:
        jax.profiler.stop_trace()
    elif not is_done:
      said = f"no profile of steps {between[0]} to {last - 1}: this command has trained"
      say(f"{said} from step {at} to {count}")
