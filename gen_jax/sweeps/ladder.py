"""A ladder: arms that spend budgets of FLOPs on models of several sizes.

    sizes = ladder.sizes(CONFIG, (32, 64, 128))
    arms = ladder.arms(CONFIG, sizes, (1e12, 4e12))     # what get_sweep returns
    points = ladder.points(ledger.read("results.json")) # for `scaling`

N, D and FLOPs of a run follow from its config; nothing is run to know them.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gen_jax import tree
from gen_jax.build import widths as config_widths
from gen_jax.runs import run as runs
from gen_jax.sweeps import ledger as ledgers
from gen_jax.sweeps import scaling, space
from gen_jax.types import InputError


def sizes(
  config: Any, widths: Iterable[int], depth: Callable[[int], int] | None = None
) -> space.Space:
  """Arms of the same model at several widths: heads, feed-forward and the like follow.

  Args:
    config: as --config takes it.
    depth: width -> num_layers; None: the config's.
  """
  base = runs.fresh(config, None).config
  key = config_widths.place(base)
  arms = []
  for width in widths:
    own = base["task"][key]
    block = config_widths.at(base, width, own[config_widths.KEY])["task"][key]
    arm = {f"task.{key}.{k}": v for k, v in block.items() if v != own.get(k)}
    if depth is not None:
      arm[f"task.{key}.num_layers"] = depth(width)
    arms.append(arm)
  return arms


def arms(
  config: Any, sizes: space.Space, budgets: Sequence[float], *, least_steps: int = 100
) -> space.Space:
  """Arms that spend each budget of FLOPs on every size: the size, and `num_steps`.

  Sizes for which a budget gives fewer than `least_steps` are left out of it.

  Raises:
    InputError: a budget that is enough for fewer than three sizes.
  """
  costs = [_experiment(config, arm).flops_per_step()["mfu"] for arm in sizes]
  found: space.Space = []
  for budget in budgets:
    num_steps = [round(budget / cost) for cost in costs]
    fitting = [n >= least_steps for n in num_steps]
    if sum(fitting) < 3:
      needed = sorted(costs)[min(2, len(costs) - 1)] * least_steps
      raise InputError(
        f"a budget of {budget:.3g} FLOPs is too small for the ladder: {sum(fitting)} of"
        f" {len(sizes)} sizes get {least_steps} steps, a valley needs 3; take at least"
        f" {needed:.3g}, or smaller sizes"
      )
    rungs = itertools.compress(zip(sizes, num_steps, strict=True), fitting)
    found += [{**arm, "train.num_steps": num} for arm, num in rungs]
  return found


def _experiment(config: Any, overrides: space.Overrides):
  return runs.fresh(config, None, overrides).experiment


def measure(config: Any, overrides: space.Overrides) -> tuple[float, float, float]:
  """N, D and FLOPs of a run that has not to be run."""
  made = _experiment(config, overrides)
  steps = made.train.num_steps
  flops = steps * made.flops_per_step()["mfu"]
  params = tree.size(made.abstract_params())
  return float(params), float(steps * made.data.items_per_step), float(flops)


def check_data(ledger: Mapping[str, Any], config: Mapping[str, Any]) -> None:
  """Raises InputError for a config whose losses are not those of the ledger's runs."""
  data = [runs.fresh(ledger["config"], None).config["data"], config["data"]]
  for key in {*data[0], *data[1]} - {"batch_size"}:
    if (was := data[0].get(key)) != (now := data[1].get(key)):
      raise InputError(
        f"data.{key} is {now!r:.60} here and {was!r:.60} in the recorded runs: losses"
        " on other data do not compare"
      )


def points(ledger: Mapping[str, Any]) -> list[scaling.Point]:
  """The points of a recorded sweep; rows without a finished run have none."""
  return [
    scaling.Point(*measure(ledger["config"], row.overrides), tuple(row.values.values()))
    for row in ledgers.rows(ledger)
    if row.values
  ]
