"""Metrics over steps, as plots: hover shows values, a drag zooms."""

from typing import Any

from gen_jax import errors


def figure(rows: list[dict[str, float]], frames: dict[str, dict[str, str]]) -> Any:
  """A plotly figure of metrics over steps.

  Args:
    rows: of metrics.jsonl.
    frames: {title: {label: key of a row}}; one plot each.
  """
  with errors.extra("report"):
    from plotly import subplots

  columns = min(len(frames), 2)
  lines = -(-len(frames) // columns)
  how = {"vertical_spacing": 0.3 / lines, "horizontal_spacing": 0.1}
  drawn = subplots.make_subplots(lines, columns, subplot_titles=list(frames), **how)
  colours = {"training": "#1f77b4", "validation": "#ff7f0e"}
  named: set[str] = set()
  for i, (title, shown) in enumerate(frames.items()):
    place = {"row": i // columns + 1, "col": i % columns + 1}
    for label, key in shown.items():
      points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
      mode = "lines+markers" if "/" in key or len(points) == 1 else "lines"
      x, y = zip(*points, strict=True)
      colour = {"color": colours.get(label, "#2ca02c")}
      look: dict[str, Any] = {"mode": mode, "line": colour}
      look |= {"name": label if label in colours else title, "legendgroup": label}
      look["showlegend"] = label in colours and label not in named
      named.add(label)
      drawn.add_scatter(x=x, y=y, **look, **place)
  return styled(drawn, "step", height=320 * lines)


def styled(
  drawn: Any, x: str | None = None, y: str | None = None, height: int = 420
) -> Any:
  """A plotly figure in the style of our pages; buttons make all y logarithmic.

  Args:
    x, y: titles of the axes.
    height: in pixels.
  """
  drawn.update_xaxes(title=x)
  drawn.update_yaxes(title=y)
  drawn.update_layout(
    template="plotly_white",
    height=height,
    margin={"l": 60, "r": 20, "t": 60, "b": 50},
    legend={"orientation": "h", "y": -90 / height},
  )
  if drawn.data and drawn.data[0].type == "scatter":
    axes = [name for name in drawn.layout if name.startswith("yaxis")]
    scales = [
      {
        "label": kind,
        "method": "relayout",
        "args": [{f"{axis}.type": kind for axis in axes}],
      }
      for kind in ("linear", "log")
    ]
    place = {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left"}
    top = {"y": 1, "yanchor": "bottom", "pad": {"b": 24}}
    drawn.update_layout(updatemenus=[{**place, **top, "buttons": scales}])
  return drawn


def html(drawn: Any, name: str) -> str:
  """A plotly figure as an element of a page that holds plotly's script.

  Args:
    name: of the element.
  """
  return drawn.to_html(
    full_html=False, include_plotlyjs=False, div_id=name, config={"responsive": True}
  )


def script() -> str:
  """Plotly's script, for a page that stands alone (5 MB)."""
  with errors.extra("report"):
    from plotly import offline

  return offline.get_plotlyjs()


def frames(
  rows: list[dict[str, float]], config: dict[str, Any]
) -> dict[str, dict[str, str]]:
  """The plots of `figure`: training and validation together if they are comparable.

  With a discriminator the training loss has a term that validation leaves out; the two
  then have plots of their own.
  """
  keys = {key for row in rows for key, value in row.items() if value is not None}
  hidden = {"step", "learning_rate", "grad_norm", "data_wait"}
  plain = {k for k in keys - hidden if "/" not in k and not k.endswith("_per_sec")}
  plain = {k for k in plain if not k.endswith("_accuracy")}
  differ = {"loss"} if config["task"].get("discriminator") else set()
  frames = {}
  for name in sorted(plain):
    other = f"validation/{name}"
    if name in differ:
      frames[f"{name} (training, with the discriminator)"] = {"training": name}
      frames |= {f"{name} (validation)": {"validation": other}} if other in keys else {}
    else:
      both = {"training": name, "validation": other}
      frames[name] = {label: key for label, key in both.items() if key in keys}
  measured = [k for row in rows for k in row if "/" in k and "validation/" not in k]
  often = sorted(k for k in keys & set(measured) if measured.count(k) > 1)
  return frames | {key: {key: key} for key in often}
