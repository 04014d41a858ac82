"""`gen-jax report`: one self-contained HTML page about one or more workdirs."""

import base64
import html
import io
import json
import pathlib
from typing import Any

from gen_jax.cli import workdir
from gen_jax.train import writers
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
    "--workdir", action="append", required=True, help="may be repeated"
  )
  parser.add_argument("--out", help="default: report.html in the first workdir")
  parser.add_argument("--title", default="gen_jax")
  parser.add_argument(
    "--summary", help="a JSON file of numbers to put at the top of the page"
  )


def run(args) -> dict:
  """Writes the page and prints its path."""
  workdirs = [pathlib.Path(w) for w in args.workdir]
  parts = [f"<h1>{html.escape(args.title)}</h1>"]
  if args.summary:
    try:
      summary = json.loads(pathlib.Path(args.summary).read_text())
    except (OSError, json.JSONDecodeError) as error:
      raise InputError(f"cannot read --summary {args.summary}: {error}") from None
    parts.append(_table(_flat(summary)))
  parts += [_section(w, workdir.read_config(w)) for w in workdirs]
  page = (
    f'<!doctype html><html lang="en"><meta charset="utf-8"><title>'
    f"{html.escape(args.title)}</title><style>{_STYLE}</style>{''.join(parts)}</html>"
  )
  out = pathlib.Path(args.out) if args.out else workdirs[0] / "report.html"
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(page)
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


def curves(rows: list[dict[str, float]], names: list[str]) -> bytes:
  """PNG of metrics over steps, training and validation in one frame per metric."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  columns = min(len(names), 3)
  shape = (-(-len(names) // columns), columns)
  size = (4.2 * shape[1], 3.2 * shape[0])
  figure, axes = plt.subplots(*shape, figsize=size, squeeze=False)
  for axis in axes.flat[len(names) :]:
    axis.remove()
  for axis, name in zip(axes.flat, names, strict=False):
    for label, key in (("training", name), ("validation", f"validation/{name}")):
      points = [(r["step"], r[key]) for r in rows if key in r]
      if points:
        marker = "o" if "/" in key else None
        axis.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=4)
    axis.set_xlabel("step")
    axis.set_title(name)
    axis.grid(alpha=0.3)
    if "/" not in name:
      axis.legend()
  figure.tight_layout()
  png = io.BytesIO()
  figure.savefig(png, format="png", dpi=110)
  plt.close(figure)
  return png.getvalue()


def _section(directory: pathlib.Path, config: dict[str, Any]) -> str:
  rows = writers.read_metrics(directory)
  parts = [f"<h2>{html.escape(directory.name)}</h2>"]
  evaluation = directory / "evaluation.json"
  if evaluation.exists():
    numbers = json.loads(evaluation.read_text())
  else:  # what training measured last
    is_evaluation = lambda name: "/" in name or name.endswith("_accuracy")  # noqa: E731
    numbers = {k: v for row in rows for k, v in row.items() if is_evaluation(k)}
  if "protocol" not in numbers:
    numbers = {**numbers, "sampling": numbers.get("sampling", config["sampling"])}
  parts.append(_table(_flat(numbers)))
  hidden = ("learning_rate", "grad_norm")
  names = sorted({k for r in rows for k in r if "/" not in k} - {"step", *hidden})
  names = [n for n in names if not n.endswith(("_per_sec", "_accuracy"))]
  measured = [k for r in rows for k in r if "/" in k and "validation/" not in k]
  names += sorted(k for k in set(measured) if measured.count(k) > 1)
  if names:
    parts.append(_image(curves(rows, names), "training and validation over steps"))
  parts += [_samples(directory), _pictures(directory)]
  text = html.escape(json.dumps(config, indent=2))
  parts.append(f"<details><summary>config</summary><pre>{text}</pre></details>")
  return "".join(parts)


def _samples(directory: pathlib.Path) -> str:
  parts = []
  texts, grid = directory / "samples/text.jsonl", directory / "samples/grid.png"
  if texts.exists():
    parts.append("<h3>samples</h3>")
    for line in texts.read_text().splitlines():
      sample = json.loads(line)
      prompt, text = html.escape(sample["prompt"]), html.escape(sample["text"])
      parts.append(f'<pre><b class="prompt">{prompt}</b>{text}</pre>')
  if grid.exists():
    prompts = json.loads((directory / "samples/prompts.json").read_text())
    caption = "rows from top to bottom: " + " · ".join(prompts)
    parts += ["<h3>samples</h3>", _image(grid.read_bytes(), caption)]
  return "".join(parts)


def _pictures(directory: pathlib.Path) -> str:
  """What training, `gen-jax edit`, `evaluate` and `illustrate` have left."""
  parts = []
  sheets = writers.sheets(directory)
  if sheets:
    parts.append("<h3>over training</h3>")
    parts += [_image(path.read_bytes(), f"step {step:,}") for path, step in sheets]
  edited = directory / "edits/before_after.png"
  if edited.exists():
    how = json.loads((directory / "edits/prompts.json").read_text())
    caption = f"before, then edited for {' · '.join(how['prompts'])}"
    parts += ["<h3>edits</h3>", _image(edited.read_bytes(), caption)]
  for path in sorted((directory / "figures").glob("*.txt")):
    parts.append(f"<h3>{html.escape(path.stem.replace('_', ' '))}</h3>")
    png = path.with_suffix(".png").read_bytes()
    parts.append(_image(png, path.read_text().strip()))
  return "".join(parts)
