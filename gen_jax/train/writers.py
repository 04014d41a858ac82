"""Metric writers: terminal, metrics.jsonl, TensorBoard (without TensorFlow), files."""

import contextlib
import json
import math
import pathlib
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import rich.progress

from gen_jax.system import copies, files, progress
from gen_jax.types import InputError

_CRC = "crc32"  # of the rest of a row of metrics.jsonl
_TIME = "time"  # when it was written: seconds since 1970


# A number, images uint8 [rows, columns, H, W, C], or text.
Value = float | np.ndarray | str


class Writer(Protocol):
  """Writes the metrics of a step."""

  def write(self, step: int, values: Mapping[str, Value]) -> None:
    """Writes {name: value}."""

  def close(self) -> None:
    """Flushes and closes."""


def _line(row: Mapping[str, float | None]) -> str:
  """A row as JSON, NaN as null, with its CRC-32 as the last value."""
  row = files.finite(row)
  crc = zlib.crc32(json.dumps(row).encode())
  return json.dumps({**row, _CRC: crc}) + "\n"


def _row(line: bytes, where: str, has_crc: bool) -> dict[str, float | None]:
  """Parses {"step": whole number, name: number, or null if not finite, ...}."""
  row = files.finite(files.parse_json(line, where))
  if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
    raise InputError(f"{where} has no step")
  if not all(v is None or type(v) in (int, float) for v in row.values()):
    raise InputError(f"{where} has values that are not numbers")
  crc = row.pop(_CRC, None)
  if has_crc and crc != zlib.crc32(json.dumps(row).encode()):
    raise InputError(f"{where} does not have its CRC-32")
  return row


def _rows(path: pathlib.Path, *, whole: bool = False) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl; damaged lines are skipped, with a message, or refused.

  Of several rows with the same step and names the last one counts. Files of older
  versions have no `crc32` and are not checked.
  """
  rows: dict[tuple[Any, ...], dict[str, Any]] = {}
  damaged = []
  content = files.read_bytes(path) if path.exists() else b""
  has_crc = f'"{_CRC}"'.encode() in content
  for number, line in enumerate(content.split(b"\n"), 1):
    if not line.strip():
      continue
    try:
      row = _row(line, f"{path}:{number}", has_crc)
    except InputError as error:
      damaged.append(str(error))
      continue
    key = (row["step"], *sorted(row))
    rows.pop(key, None)
    rows[key] = row
  if damaged and whole:
    raise InputError(f"{damaged[0]}: restore the file from a copy, or train again")
  if damaged:
    said = f"left out {len(damaged)} damaged lines of metrics; the first: {damaged[0]}"
    print(said, file=sys.stderr)
  return list(rows.values())


def read_metrics(
  workdir: str | pathlib.Path, *, whole: bool = False
) -> list[dict[str, float]]:
  """All rows of a workdir's metrics.jsonl, in order; each has its step.

  Values that were not finite are NaN, `time` is left out. Damaged lines are skipped;
  with `whole` they are an InputError.
  """
  rows = _rows(files.path(workdir, "workdir") / "metrics.jsonl", whole=whole)
  return [
    {k: math.nan if v is None else v for k, v in row.items() if k != _TIME}
    for row in rows
  ]


def numbers(values: Mapping[str, Value]) -> dict[str, float]:
  """The scalar entries."""
  return {k: v for k, v in values.items() if not isinstance(v, np.ndarray | str)}


def as_code(text: str) -> str:
  """Text as a block of code in Markdown, whatever it holds.

  >>> as_code("a")
  '````\\na\\n````'
  """
  longest = max(map(len, re.findall("`+", text)), default=0)
  fence = "`" * max(4, longest + 1)
  return f"{fence}\n{text}\n{fence}"


class SampleFiles:
  """samples/NAME_STEP.png and .txt: a sheet of images, or text, per evaluation.

  On resuming after step i it deletes later files, which the run makes again.

  Attributes:
    save: (path, uint8 [rows, columns, H, W, C]).
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    last_step: int,
    save: Callable[[pathlib.Path, np.ndarray], None],
  ):
    self._folder, self._save = workdir / "samples", save
    for path, step in [*sheets(workdir), *sheets(workdir, "txt")]:
      if step > last_step:
        path.unlink()

  def write(self, step: int, values: Mapping[str, Value]) -> None:
    for name, value in values.items():
      if isinstance(value, str):
        save_text(self._folder.parent, name, step, value)
      elif isinstance(value, np.ndarray):
        self._folder.mkdir(exist_ok=True)
        self._save(self._folder / f"{name}_{step:08}.png", value)

  def close(self) -> None:
    """Does nothing."""


def save_text(workdir: pathlib.Path, name: str, step: int, text: str) -> pathlib.Path:
  """Writes a text of `SampleFiles`."""
  path = workdir / "samples" / f"{name}_{step:08}.txt"
  path.parent.mkdir(exist_ok=True)
  files.write(path, text)
  return path


def sheets(
  workdir: pathlib.Path, suffix: str = "png"
) -> list[tuple[pathlib.Path, int]]:
  """The files of `SampleFiles` and their steps, in order."""
  paths = sorted((workdir / "samples").glob(f"*_????????.{suffix}"))
  steps = [path.stem[-8:] for path in paths]
  return [(p, int(s)) for p, s in zip(paths, steps, strict=True) if s.isdecimal()]


class JsonLines:
  """metrics.jsonl: one object per line, {"step": i, name: value, ..., "crc32": n}.

  "time" is when the row was written, in seconds since 1970.

  On resuming after step i it deletes later rows, which the run writes again. Values
  that are not finite are null.

  Args:
    last_step: of the rows to keep; -1 keeps none.
  """

  def __init__(self, workdir: pathlib.Path, last_step: int):
    path = workdir / "metrics.jsonl"
    rows = [row for row in _rows(path) if row["step"] <= last_step]
    files.write(path, "".join(map(_line, rows)))
    self._path = path

  def write(self, step: int, values: Mapping[str, Value]) -> None:
    with self._path.open("a", encoding="utf-8") as file:  # recreated if deleted
      row = {"step": step, **numbers(values), _TIME: round(time.time(), 3)}
      file.write(_line(row))

  def close(self) -> None:
    """Does nothing."""


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
  """Within this context these modules cannot be imported, unless they are already."""
  absent = [name for name in names if name not in sys.modules]
  sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: refused
  try:
    yield
  finally:
    for name in absent:
      sys.modules.pop(name, None)


class TensorBoard:
  """Event files under workdir/tensorboard; `last_step` as in `JsonLines`.

  Attributes:
    draw: uint8 [rows, columns, H, W, C] -> one image, uint8 [height, width, 3].
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    last_step: int,
    draw: Callable[[np.ndarray], np.ndarray],
  ):
    with _without("boto3", "google.cloud.storage"):  # 0.3 s, for buckets
      import tensorboardX  # imported here: it imports torch if installed

    self._draw = draw
    self._writer = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=last_step + 1
    )

  def write(self, step: int, values: Mapping[str, Value]) -> None:
    for name, value in values.items():
      if isinstance(value, str):
        self._writer.add_text(name, as_code(value), step)
      elif isinstance(value, np.ndarray):
        self._writer.add_image(name, self._draw(value), step, dataformats="HWC")
      else:
        self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    with contextlib.suppress(OSError):  # its thread may have ended on a full disk
      self._writer.close()


class Upload:
  """Copies the files of a folder into a bucket as they change, in a thread.

  Nothing can be appended there: each time a file goes as a whole, and the last state of
  several. A process that is killed loses what was written since.
  """

  def __init__(self, here: pathlib.Path, there: pathlib.Path):
    self._here, self._there = here, there
    self._sent: dict[str, str] = {}
    self._due, self._over = threading.Event(), False
    self._error: Exception | None = None
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def _run(self) -> None:
    while not self._over:
      self._due.wait()
      self._due.clear()
      try:
        self._send()
      except Exception as error:  # raised by `close`
        self._error = error
        return

  def _send(self) -> None:
    for name in files.names(self._here):
      stamp = files.stamps([self._here / name])
      if self._sent.get(name) != stamp:
        copies.copy(self._here / name, self._there / name)
        self._sent[name] = stamp

  def write(self, step: int, values: Mapping[str, Value]) -> None:
    self._due.set()

  def close(self) -> None:
    """Waits until all is there."""
    self._over = True
    self._due.set()
    self._thread.join()
    if self._error:
      raise self._error
    self._send()


class Terminal:
  """A progress bar on a terminal, plain lines otherwise.

  The bar shows loss and throughput; evaluations are printed above it.
  """

  def __init__(self, start_step: int, num_steps: int, title: str):
    self._start, self._num_steps = start_step, num_steps
    self._began = time.monotonic()
    self._bar, self._shown = None, contextlib.ExitStack()
    if sys.stderr.isatty():
      columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[numbers]}"),
        rich.progress.TextColumn("ETA"),
        rich.progress.TimeRemainingColumn(),
      )
      self._bar = self._shown.enter_context(progress.bar(*columns))
      self._task = self._bar.add_task(
        title, total=num_steps, completed=start_step, numbers=""
      )

  def write(self, step: int, values: Mapping[str, Value]) -> None:
    values = numbers(values)
    shown = "  ".join(f"{name} {_show(value)}" for name, value in values.items())
    if self._bar is not None:
      if any("/" in name for name in values):
        self._bar.console.print(f"step {step}  {shown}", highlight=False)
        self._bar.update(self._task, completed=step)
      else:
        rates = (n for n in values if n.endswith("_per_sec"))
        units = (f"{_show(values[n])} {n.removesuffix('_per_sec')}/s" for n in rates)
        brief = f"loss {values['loss']:.4f}  {'  '.join(units)}"
        self._bar.update(self._task, completed=step, numbers=brief)
      return
    done = step - self._start
    left = (time.monotonic() - self._began) / max(done, 1) * (self._num_steps - step)
    eta = f"  ETA {int(left) // 60}:{int(left) % 60:02d}" if done else ""
    print(f"step {step}/{self._num_steps}  {shown}{eta}", flush=True)

  def close(self) -> None:
    self._shown.close()


def _show(value: float) -> str:
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
