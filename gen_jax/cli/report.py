"""`gen-jax report`: one self-contained HTML page about workdirs, or about a sweep."""

from __future__ import annotations

import base64
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jinja2

from gen_jax import ranges
from gen_jax.cli import flags
from gen_jax.cost import chips
from gen_jax.errors import InputError
from gen_jax.inference import drawing, tint
from gen_jax.runs import run as runs
from gen_jax.system import files
from gen_jax.train import curves, writers


class Figure(NamedTuple):
  """An image of the page: a title that may be empty, PNG, caption, a table or None."""

  title: str
  png: bytes
  caption: str
  about: dict[str, Any] | None = None


def add_arguments(parser) -> None:
  """See `gen-jax report --help`."""
  add = parser.add_argument
  add("--workdir", action=flags.Paths, help="may be repeated")
  add(
    "--sweep",
    action=flags.LocalPath,
    metavar="EXPERIMENT",
    help="instead of workdirs: a folder with a sweep.py, or its results.json",
  )
  add("--to", action=flags.Path, help="workdirs of --sweep; runs/NAME by default")
  add(
    "--out",
    action=flags.Path,
    help="default: report.html in the first workdir, or in the sweep's",
  )
  add("--title", help="default: gen_jax, or the sweep's question")
  add(
    "--summary", action=flags.Path, help="JSON file of numbers for the top of the page"
  )


def run(args) -> dict:
  """Writes the page and prints its path."""
  if bool(args.workdir) == bool(args.sweep):
    raise InputError("give --workdir of runs, or --sweep EXPERIMENT; not both")
  drawing.check_idle([n for n in ("to", "summary") if getattr(args, n)], _idle(args))
  if args.sweep:
    from gen_jax.cli import sweep_page  # a second import loads what was put off

    out, page = sweep_page.render(args, _template("sweep.html.j2"))
  else:
    out, page = args.workdir[0] / "report.html", _of_runs(args)
  out = args.out or out
  out.parent.mkdir(parents=True, exist_ok=True)
  files.write(out, page)
  print(out)
  return {"report": str(out)}


def _idle(args) -> dict[str, str]:
  """Flags without effect, and why; see `drawing.check_idle`."""
  if not args.sweep:
    return {"to": "it names the workdirs of --sweep"}
  is_ledger = args.sweep.suffix == ".json"
  to = {"to": f"{args.sweep.name} alone is read"} if is_ledger else {}
  return {"summary": "it is for the page of --workdir", **to}


def _of_runs(args) -> str:
  summary = _flat(files.read_json(args.summary)) if args.summary else {}
  opened = map(runs.open_run, args.workdir)
  sections = [_section(run, f"plot-{i}") for i, run in enumerate(opened)]
  return _template("report.html.j2").render(
    title=args.title or "gen_jax",
    script=curves.script() if any(section["plots"] for section in sections) else None,
    summary=summary,
    runs=sections,
  )


def _template(name: str) -> jinja2.Template:
  """A page, in which every text is escaped but for scripts and plots of ours."""
  env = jinja2.Environment(
    loader=jinja2.PackageLoader("gen_jax", "cli"), autoescape=True
  )
  env.filters |= {"base64": lambda png: base64.b64encode(png).decode(), "shown": _shown}
  return env.get_template(name)


def _shown(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:,.4g}"
  is_count = isinstance(value, int) and not isinstance(value, bool)
  return f"{value:,}" if is_count else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in values.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{name} · ")
    else:
      flat[f"{prefix}{name}"] = value
  return flat


def _section(run: runs.Run, plot_id: str) -> dict[str, Any]:
  """What the template shows of a run."""
  rows, directory, tables = run.metrics(), run.workdir, []
  # What training measured last: evaluations, which have a slash in their names.
  measured = [item for row in rows for item in row.items()]
  if last := {k: v for k, v in measured if "/" in k or k.endswith("_accuracy")}:
    tables.append(("at the end of training", last))
  if (cost := run.cost())["starts"]:
    tables.append((f"cost so far (list prices of {chips.PRICES_OF})", _cost(cost)))
  if (found := run.evaluation()) is not None:
    tables.append(("gen-jax evaluate", _flat(found)))
  frames, (texts, sampling) = curves.frames(rows, run.config), _texts(directory)
  drawn = [curves.figure(rows, frames)] if frames else []
  return {
    "name": directory.name,
    "tables": tables,
    "plots": [curves.html(plot, plot_id) for plot in drawn],
    "texts": texts,
    "sampling": sampling,
    "notes": list(_notes(directory)),
    "figures": list(_figures(directory)),
    "config": json.dumps(run.config, indent=2),
  }


def _cost(found: dict[str, Any]) -> dict[str, Any]:
  usd = "these chips have no list price" if found["usd"] is None else found["usd"]
  return {"starts": found["starts"], "chip-hours": found["chip_hours"], "USD": usd}


def _prompts(path: pathlib.Path) -> tuple[dict[str, Any], str]:
  """How the images of a sheet were made, and for which prompts, by its prompts.json."""
  how = files.read_json(path)
  prompts = how.pop("prompts", None)
  if not isinstance(prompts, list):
    raise InputError(f"{path}: prompts must be a list of texts; sample again")
  return how, " · ".join(files.text(prompt, str(path)) for prompt in prompts)


def _texts(directory: pathlib.Path) -> tuple[list[list[Any]], dict[str, Any]]:
  """[prompt, `_parts`] of every sample that is kept, and how the last one was drawn."""
  path, shown, how = directory / "samples/text.jsonl", [], None
  for where, sample in files.records(path) if path.exists() else ():
    prompt = files.text(files.field(sample, "prompt", where), where)
    shown.append([prompt, _parts(sample, where)])
    how = sample.get("sampling")
  return shown, _flat(how) if isinstance(how, dict) else {}


def _notes(directory: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Title and text: the first rows, and the last text of each evaluator."""
  first = directory / "samples/first_rows.txt"
  if first.exists():
    yield "first rows of training", files.read(first)
  last = {path.name[:-13]: (path, n) for path, n in writers.sheets(directory, "txt")}
  for name, (path, step) in last.items():
    yield f"{name}, step {step:,}", files.read(path)


def _parts(sample: dict[str, Any], where: str) -> list[tuple[str, float, str]]:
  """(text, strength of its tint, its probability) of a sample's tokens, or its text."""
  text = files.text(files.field(sample, "text", where), where)
  if "pieces" not in sample:
    return [(text, 0.0, "")]
  pieces = ranges.typed(sample["pieces"], tuple[str, ...], where)
  logprobs = ranges.typed(sample.get("logprobs"), tuple[float, ...], where)
  return [
    (files.text(piece, where), tint.shade(logprob), f"{math.exp(min(logprob, 0)):.2%}")
    for piece, logprob in zip(pieces, logprobs, strict=False)
  ]


def _figures(directory: pathlib.Path) -> Iterator[Figure]:
  """What training, `gen-jax sample`, `edit` and `illustrate` have left."""
  grid, edited = directory / "samples/grid.png", directory / "edits/before_after.png"
  if grid.exists():
    how, prompts = _prompts(directory / "samples/prompts.json")
    caption = f"rows from top to bottom: {prompts}"
    yield Figure("samples", grid.read_bytes(), caption, _flat(how))
  first = directory / "samples/first_rows.png"
  if first.exists():
    yield Figure("first rows of training", first.read_bytes(), "as the model sees them")
  for i, (path, step) in enumerate(writers.sheets(directory)):
    title = "" if i else "over training"
    yield Figure(title, path.read_bytes(), f"step {step:,}")
  if edited.exists():
    _, prompts = _prompts(directory / "edits/prompts.json")
    caption = f"before, then edited for {prompts}"
    yield Figure("edits", edited.read_bytes(), caption)
  for path in sorted((directory / "figures").glob("*.txt")):
    png = path.with_suffix(".png").read_bytes()
    yield Figure(path.stem.replace("_", " "), png, files.read(path).strip())
