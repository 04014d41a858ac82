"""What the page of a sweep shows: plots, a table and sentences, all from its ledger.

Plots are plotly's: hover shows values, a click on the legend hides a line, a drag
zooms.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gen_jax.sweeps import figure, ledger, search, space, statistics
from gen_jax.train import curves, evaluators

_COLOURS = (  # of plotly's own, for lines and, with their transparency, for bands
  *((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)),
  *((140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207)),
)
_MOST_NAMES = 10  # in a legend


class Plot(NamedTuple):
  """A title, a sentence that says how to read it, and plotly's figure."""

  title: str
  caption: str
  figure: Any


class Table(NamedTuple):
  """Columns by name, and lines of cells: (text, value to sort by)."""

  columns: list[str]
  lines: list[list[tuple[str, float | str]]]
  best: int  # line

  @property
  def are_numbers(self) -> list[bool]:
    """Of each column, whether it holds one: then all of it stands at the right."""
    columns = zip(*self.lines, strict=True)
    return [any(_is_number(value) for _, value in cells) for cells in columns]


def plots(found: Mapping[str, Any]) -> Iterator[Plot]:
  """Every plot that the ledger has something for."""
  lines = figure.lines(found)
  if any(len(line.x) > 1 for line in lines.values()):
    yield _curves(lines, found["metric"])
  keys = _apart([row.overrides for row in ledger.rows(found)])
  for pair in itertools.combinations(keys, 2):
    if plot := _heat_map(found, *pair):
      yield plot
  if len(keys) > 2:
    yield _parallel(found, keys)
  if "search" in found:
    arms = [arm for arm in found["search"]["arms"] if arm["results"]]
    for key in dict.fromkeys(key for arm in arms for key in arm["overrides"]):
      yield _searched(arms, key, found["metric"])


def _apart(overrides: Sequence[space.Overrides]) -> list[str]:
  """Keys that vary; of keys that vary together (`zip_`) the first.

  >>> _apart([{"a": i, "b": 2 * i, "c": j} for i in range(2) for j in range(2)])
  ['a', 'c']
  """
  kept: dict[tuple[int, ...], str] = {}
  for key in space.varied(overrides):
    texts = [space.text(one.get(key, "")) for one in overrides]
    kept.setdefault(tuple(map(texts.index, texts)), key)
  return list(kept.values())


def _curves(lines: Mapping[str, figure.Line], metric: str) -> Plot:
  """The metric over steps: means, intervals, and each seed on hover."""
  from plotly import graph_objects

  drawn = graph_objects.Figure()
  for i, (name, line) in enumerate(lines.items()):
    red, green, blue = _COLOURS[i % len(_COLOURS)]
    colour, band = (f"rgba({red},{green},{blue},{alpha})" for alpha in (1, 0.15))
    intervals = line.intervals
    edges = [x.low for x in intervals] + [x.high for x in reversed(intervals)]
    group = {"legendgroup": name, "name": name or "all"}
    around = {"fill": "toself", "fillcolor": band, "line": {"width": 0}}
    drawn.add_scatter(
      x=[*line.x, *reversed(line.x)],
      y=edges,
      **{**group, **around, "hoverinfo": "skip", "showlegend": False},
    )
    seeds = [", ".join(f"{value:.4g}" for value in values) for values in line.values]
    drawn.add_scatter(
      x=line.x,
      y=[x.mean for x in intervals],
      text=[f"{x} of {s}" for x, s in zip(intervals, seeds, strict=True)],
      hovertemplate="step %{x}: %{text}",
      mode="lines+markers",
      line={"color": colour},
      **group,
    )
  drawn.update_yaxes(range=figure.span(lines, 0.1))
  drawn.update_layout(showlegend=1 < len(lines) <= _MOST_NAMES)
  return Plot(
    f"{metric} over steps",
    "Means over seeds; bands are Student's t intervals (95 %); hover for the seeds.",
    curves.styled(drawn, "step", metric),
  )


def _heat_map(found: Mapping[str, Any], x_key: str, y_key: str) -> Plot | None:
  """The metric over two keys; of several rows at a place the best. None: gaps."""
  from plotly import graph_objects

  rows, cells = ledger.rows(found), {}
  for row in rows:
    if row.values and x_key in row.overrides and y_key in row.overrides:
      at = tuple(space.text(row.overrides[key]) for key in (x_key, y_key))
      cells.setdefault(at, []).append(row)
  x, y = (list(dict.fromkeys(at[i] for at in cells)) for i in (0, 1))
  if min(len(x), len(y)) < 2 or len(cells) < len(x) * len(y):
    return None
  top = {at: ledger.best(some, found["metric"]) for at, some in cells.items()}
  every = space.keys([row.overrides for row in rows])
  names = [space.short(key, every) for key in (x_key, y_key)]
  drawn = graph_objects.Figure()
  drawn.add_heatmap(
    x=x,
    y=y,
    z=[[top[a, b].mean for a in x] for b in y],
    text=[[_told(top[a, b]) for a in x] for b in y],
    texttemplate="%{z:.4g}",
    hovertemplate=f"{names[0]} %{{x}}, {names[1]} %{{y}}: %{{text}}<extra></extra>",
    **_scale(found["metric"]),
    colorbar={"title": found["metric"]},
  )
  drawn.update_xaxes(type="category")
  drawn.update_yaxes(type="category")
  return Plot(
    f"{found['metric']} by {names[0]} and {names[1]}",
    "Means over seeds, of the best of what else is swept; yellow is better.",
    curves.styled(drawn, *names),
  )


def _scale(metric: str) -> dict[str, Any]:
  """A scale on which yellow is better."""
  is_lower_better = evaluators.cost(metric, 1.0) > 0
  return {"colorscale": "Viridis", "reversescale": is_lower_better}


def _told(row: ledger.Row) -> str:
  return str(row.interval or f"{row.mean:.4g}")


def _parallel(found: Mapping[str, Any], keys: Sequence[str]) -> Plot:
  """An axis for each key and one for the metric; a line for each row."""
  from plotly import graph_objects

  rows = [row for row in ledger.rows(found) if row.values]
  every = space.keys([row.overrides for row in rows])
  axes = []
  for key in keys:
    texts = [space.text(row.overrides.get(key, "")) for row in rows]
    ticks = list(dict.fromkeys(texts))
    places = {"tickvals": list(range(len(ticks))), "ticktext": ticks}
    at = [ticks.index(text) for text in texts]
    axes.append({"label": space.short(key, every), "values": at, **places})
  means = [row.mean for row in rows]
  axes.append({"label": found["metric"], "values": means})
  drawn = graph_objects.Figure()
  colours = _scale(found["metric"])
  drawn.add_parcoords(dimensions=axes, line={"color": means, **colours})
  return Plot(
    "all that is swept",
    "A line for each config; drag along an axis to choose some.",
    curves.styled(drawn),
  )


def _searched(arms: Sequence[Mapping[str, Any]], key: str, metric: str) -> Plot:
  """The metric of each arm of a search by one key; those stopped early in grey."""
  from plotly import graph_objects

  ended = [arm for arm in arms if arm["results"][-1]["value"] is not None]
  places = [arm["overrides"].get(key) for arm in ended]
  if is_numbers := all(map(_is_number, places)):
    is_log = min(places, default=1) > 0 and max(places) > 10 * min(places)
  drawn = graph_objects.Figure()
  for name, colour in (("to the end", _COLOURS[0]), ("stopped early", _COLOURS[7])):
    some = [
      (x if is_numbers else space.text(x), arm["results"][-1], arm["name"])
      for x, arm in zip(places, ended, strict=True)
      if (arm["results"][-1]["steps"] is None) == (name == "to the end")
    ]
    drawn.add_scatter(
      x=[x for x, _, _ in some],
      y=[last["value"] for _, last, _ in some],
      text=[
        arm + (f", step {last['steps']}" if last["steps"] else "")
        for _, last, arm in some
      ],
      hovertemplate="%{y:.5g}: %{text}<extra></extra>",
      mode="markers",
      marker={"color": f"rgb{colour}"},
      name=name,
    )
  drawn.update_xaxes(type=None if not is_numbers else "log" if is_log else "linear")
  drawn.update_layout(showlegend=True)
  return Plot(
    f"the search along {key}",
    "A point for each arm at its last step; hover for the arm. Diverged ones are not"
    " shown.",
    curves.styled(drawn, key, metric),
  )


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def table(found: Mapping[str, Any]) -> Table:
  """A line for each config: what varies, seeds, mean, interval, p against the best."""
  rows, metric = ledger.rows(found), found["metric"]
  every = space.keys([row.overrides for row in rows])
  keys = space.varied([row.overrides for row in rows])
  top, pvalues = ledger.best(rows, metric), ledger.pvalues(rows, metric)
  columns = [*(space.short(k, every) for k in keys), "seeds", metric, "interval", "p"]
  lines = []
  for row in rows:
    interval, p = row.interval, pvalues.get(id(row))
    half = 0.5 * (interval.high - interval.low) if interval else math.inf
    lines.append(
      [
        *(_cell(row.overrides.get(key, "")) for key in keys),
        (f"{len(row.values)}", len(row.values)),
        (f"{row.mean:#.5g}", row.mean) if row.values else ("", math.inf),
        (f"± {half:.2g}" if interval else "", half),
        (f"{p:.2g}" if p is not None else "", 2.0 if p is None else p),
      ]
    )
  return Table(columns, lines, rows.index(top))


def _cell(value: Any) -> tuple[str, float | str]:
  return space.text(value), float(value) if _is_number(value) else space.text(value)


def sentences(found: Mapping[str, Any]) -> list[str]:
  """What the runs say together, in words."""
  rows, metric = ledger.rows(found), found["metric"]
  names = {id(row): name or "the config" for name, row in ledger.named(rows).items()}
  top = ledger.best(rows, metric)
  said = [f"Best: {names[id(top)]} with {_told(top)} over {len(top.values)} seed(s)."]
  others = [r for r in rows if r is not top and len(r.values) > 1]
  if len(top.values) > 1 and others:
    second = ledger.best(others, metric)
    difference = ledger.compare(top, second)
    words = statistics.in_words(difference, names[id(second)])
    said.append(f"Against the second, {names[id(second)]}: {words}.")
    tested = ledger.pvalues(rows, metric)
    apart = sum(p < 0.05 for p in tested.values())
    said.append(
      f"{apart} of {len(tested)} others differ from the best (p < 0.05, adjusted for"
      " their number)."
    )
  elif len(top.values) < 2:
    said.append("One seed each: no interval, no comparison.")
  if at := ledger.edges(rows, metric):
    said.append(ledger.AT_EDGE.format(", ".join(at)))
  if diverged := sum(row.num_diverged for row in rows):
    said.append(f"{diverged} run(s) diverged.")
  if "search" in found:
    said.append(search.remark(found["search"]))
  return said
