"""`gen-jax report`: one self-contained HTML page about one or more workdirs."""

import base64
import html
import json
import pathlib
from typing import Any

from gen_jax.cli import flags
from gen_jax.runs import run as runs
from gen_jax.system import files
from gen_jax.train import curves, writers
from gen_jax.types import InputError

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; background: #fff; }
h1, h2, h3 { line-height: 1.2; }
h2 { border-top: 1px solid #ddd; padding-top: 1.5rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #eee; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; image-rendering: pixelated; }
pre { white-space: pre-wrap; background: #f6f6f6;
  padding: .75rem 1rem; border-radius: 6px; font-size: 14px; }
.prompt { color: #06c; } figure { margin: 1rem 0; } figcaption { color: #666; }
"""


def add_arguments(parser) -> None:
  """See `gen-jax report --help`."""
  parser.add_argument(
    "--workdir", action=flags.Paths, required=True, help="may be repeated"
  )
  parser.add_argument(
    "--out", action=flags.Path, help="default: report.html in the first workdir"
  )
  parser.add_argument("--title", default="gen_jax")
  parser.add_argument(
    "--summary",
    action=flags.Path,
    help="a JSON file of numbers to put at the top of the page",
  )


def run(args) -> dict:
  """Writes the page and prints its path."""
  parts = [f"<h1>{html.escape(args.title)}</h1>"]
  if args.summary:
    summary = files.read_json(args.summary)
    parts.append(_table(_flat(summary)))
  parts += [_section(runs.open_run(w)) for w in args.workdir]
  page = (
    f'<!doctype html><html lang="en"><meta charset="utf-8"><title>'
    f"{html.escape(args.title)}</title><style>{_STYLE}</style>{''.join(parts)}</html>"
  )
  out = args.out or args.workdir[0] / "report.html"
  out.parent.mkdir(parents=True, exist_ok=True)
  files.write(out, page)
  print(out)
  return {"report": str(out)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in values.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{name} · ")
    else:
      flat[f"{prefix}{name}"] = value
  return flat


def _table(values: dict[str, Any]) -> str:
  rows = []
  for name, value in values.items():
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = (
      f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if number else value
    )
    rows.append(
      f"<tr><td>{html.escape(str(name))}</td>"
      f'<td class="{"number" if number else ""}">{html.escape(str(text))}</td></tr>'
    )
  return f"<table>{''.join(rows)}</table>"


def _image(png: bytes, caption: str) -> str:
  data = base64.b64encode(png).decode()
  caption = html.escape(caption)
  return (
    f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
    f"<figcaption>{caption}</figcaption></figure>"
  )


def _section(run: runs.Run) -> str:
  rows, directory = run.metrics(), run.workdir
  parts = [f"<h2>{html.escape(directory.name)}</h2>"]
  # What training measured last: evaluations, which have a slash in their names.
  is_evaluation = lambda name: "/" in name or name.endswith("_accuracy")  # noqa: E731
  last = {k: v for row in rows for k, v in row.items() if is_evaluation(k)}
  if last:
    parts += ["<h3>at the end of training</h3>", _table(last)]
  if (found := run.evaluation()) is not None:
    parts += ["<h3>gen-jax evaluate</h3>", _table(_flat(found))]
  if frames := curves.frames(rows, run.config):
    parts.append(_image(curves.png(rows, frames), "training and validation over steps"))
  parts += [_samples(directory), _images(directory)]
  text = html.escape(json.dumps(run.config, indent=2))
  parts.append(f"<details><summary>config</summary><pre>{text}</pre></details>")
  return "".join(parts)


def _prompts(path: pathlib.Path) -> tuple[dict[str, Any], str]:
  """How the images of a sheet were made, and for which prompts, by its prompts.json."""
  how = files.read_json(path)
  prompts = how.pop("prompts", None)
  if not isinstance(prompts, list):
    raise InputError(f"{path}: prompts must be a list of texts; sample again")
  return how, " · ".join(files.text(prompt, str(path)) for prompt in prompts)


def _samples(directory: pathlib.Path) -> str:
  """What `gen-jax sample` has left, and how it was drawn."""
  parts = []
  texts, grid = directory / "samples/text.jsonl", directory / "samples/grid.png"
  if texts.exists():
    shown, how = [], {}
    for where, sample in files.records(texts):
      prompt, text = (
        html.escape(files.text(files.field(sample, name, where), where))
        for name in ("prompt", "text")
      )
      shown.append(f'<pre><b class="prompt">{prompt}</b>{text}</pre>')
      how = sample.get("sampling")
    how = _table(_flat(how)) if isinstance(how, dict) else ""
    parts += ["<h3>samples</h3>", *shown, how]
  if grid.exists():
    how, prompts = _prompts(directory / "samples/prompts.json")
    caption = f"rows from top to bottom: {prompts}"
    parts += ["<h3>samples</h3>", _image(grid.read_bytes(), caption)]
    parts.append(_table(_flat(how)))
  return "".join(parts)


def _images(directory: pathlib.Path) -> str:
  """What training, `gen-jax edit`, `evaluate` and `illustrate` have left."""
  parts = []
  sheets = writers.sheets(directory)
  if sheets:
    parts.append("<h3>over training</h3>")
    parts += [_image(path.read_bytes(), f"step {step:,}") for path, step in sheets]
  edited = directory / "edits/before_after.png"
  if edited.exists():
    _, prompts = _prompts(directory / "edits/prompts.json")
    caption = f"before, then edited for {prompts}"
    parts += ["<h3>edits</h3>", _image(edited.read_bytes(), caption)]
  for path in sorted((directory / "figures").glob("*.txt")):
    parts.append(f"<h3>{html.escape(path.stem.replace('_', ' '))}</h3>")
    png = path.with_suffix(".png").read_bytes()
    parts.append(_image(png, files.read(path).strip()))
  return "".join(parts)
