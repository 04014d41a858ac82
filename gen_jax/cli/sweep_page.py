"""The page of a sweep, for `gen-jax report --sweep`."""

import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2

from gen_jax.sweeps import engine, ledger, page, space, sweep
from gen_jax.train import curves, writers
from gen_jax.types import InputError

_MOST_SHEETS = 24


def render(args, template: jinja2.Template) -> tuple[pathlib.Path, str]:
  """Where the page goes by default, and the page.

  Raises:
    InputError: no sweep there, or none of its runs has finished.
  """
  path, home, sheets = args.sweep, args.to, []
  if path.suffix == ".json":
    found, home = ledger.read(path), path.parent
  else:
    loaded, recorded = sweep.load(path), path / sweep.RESULTS
    home = home or pathlib.Path("runs") / loaded.folder.absolute().name
    found = loaded.ledger(home)
    if not _has_finished(found) and recorded.exists() and not args.to:
      found, home = ledger.read(recorded), path  # the runs are gone, or elsewhere
    sheets = list(itertools.islice(_sheets(loaded, home), _MOST_SHEETS))
  if not _has_finished(found):
    raise InputError(f"no run of {path} has finished: run gen-jax sweep {path} first")
  script = curves.script()  # says what is missing
  plots = [
    plot._replace(figure=curves.html(plot.figure, f"plot-{i}"))
    for i, plot in enumerate(page.plots(found))
  ]
  software = {k: found[k] for k in ("packages", "python", "cores") if k in found}
  text = template.render(
    title=args.title or found["question"],
    script=script,
    ledger=found,
    sentences=page.sentences(found),
    table=page.table(found),
    plots=plots,
    sheets=sheets,
    same=_shared(found),
    software=json.dumps(software, indent=2),
  )
  return home / "report.html", text


def _has_finished(found: Mapping[str, Any]) -> bool:
  return any(arm["status"] == "finished" for arm in found["arms"])


def _sheets(loaded: sweep.Sweep, home: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """(name, PNG) of the last images that each arm has drawn."""
  for arm in loaded.arms:
    workdir = engine.workdir(home, arm)
    drawn = [path for path, _ in writers.sheets(workdir)]
    grid = workdir / "samples/grid.png"
    for path in [grid] if grid.exists() else drawn[-1:]:
      yield arm.name, path.read_bytes()


def _shared(found: Mapping[str, Any]) -> str:
  """The overrides that all arms have alike."""
  overrides = [arm["overrides"] for arm in found["arms"]]
  varied = {*space.varied(overrides), "seed"}
  return "\n".join(
    f"{key} = {space.text(value)}"
    for key, value in overrides[0].items()
    if key not in varied
  )
