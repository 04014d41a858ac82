"""Bounds on time, against arithmetic on a slice of round numbers."""

import dataclasses
import math

import pytest

from gen_jax.cost import chips, roofline
from gen_jax.cost.hlo import collective, cost
from gen_jax.types import InputError

CHIP = chips.Chip("round", 100.0, 1e3, 10.0, 4, 2.0, "none")


def slice_of(dims, per_chip=1):
  num = per_chip * dims[0] * dims[1]
  return chips.Topology("round:4x4", CHIP, dims, devices=[None] * num)


GATHER = collective.Collective("all-gather", 64, ((0, 1, 2, 3),))
WORK = cost.Cost(flops=300.0, hbm_bytes=40.0, collectives={GATHER: 2.0})


def test_each_bound_is_work_over_rate():
  """FLOPs 300 / 100; bytes 40 / 10; 2 gathers of 3/4 of 64 over 4 links of 2."""
  found = roofline.of(WORK, slice_of((4, 4)))
  assert found.bounds == {"compute": 3.0, "hbm": 4.0, "interconnect": 12.0}
  assert (found.step_secs, found.serial_secs) == (12.0, 19.0)
  assert found.bound_by == "interconnect"


def test_two_devices_share_a_chip():
  one, two = (roofline.of(WORK, slice_of((4, 4), n)) for n in (1, 2))
  assert two.bounds == {key: 2 * secs for key, secs in one.bounds.items()}


def test_kernels_compute_as_well():
  assert roofline.of(WORK, slice_of((4, 4)), 1700.0).bound_by == "compute"


@pytest.mark.parametrize(
  "dims, links", [((1, 1), 0), ((2, 2), 2), ((2, 4), 3), ((4, 4), 4), ((16, 16), 4)]
)
def test_a_chip_at_an_end_has_no_neighbour_there(dims, links):
  assert CHIP.links_in(dims) == links
  found = roofline.of(dataclasses.replace(WORK, collectives={}), slice_of(dims))
  assert found.interconnect_secs == 0.0


def test_utilisation_of_a_slice_that_does_nothing_else_is_one():
  assert roofline.utilisation(16 * 100.0 * 5.0, 5.0, slice_of((4, 4))) == 1.0


def test_money_is_chips_times_hours_times_price():
  found = roofline.expense(7200, 2.0, 16, 1.5)
  assert found == {"num_steps": 7200, "days": 1 / 6, "chip_hours": 64.0, "usd": 96.0}
  assert roofline.expense(1, 1.0, 1, None)["usd"] is None


def test_a_forecast_is_the_time_at_that_mfu():
  """And a published price: 150,000 hours of an A100 at 4 USD are 600,000 USD."""
  slice_ = slice_of((4, 4))
  secs = roofline.forecast(1e6, 0.4, slice_)
  assert secs == pytest.approx(1e6 / (0.4 * 16 * 100.0))
  assert roofline.utilisation(1e6, secs, slice_) == pytest.approx(0.4)
  cost = roofline.expense(1000, 150_000 * 3.6 / 256, 256, 4.0)
  assert cost["chip_hours"] == pytest.approx(150_000)
  assert cost["usd"] == pytest.approx(600_000)


@pytest.mark.parametrize("kind", ["v4", "v5e", "v5p", "v6e"])
def test_clouds_names_are_slices(kind):
  """All that are for sale, by chips or by TensorCores."""
  cores = {"v4": 2, "v5p": 2}.get(kind, 1)
  for dims in chips.SLICES[kind]:
    num = cores * math.prod(map(int, dims.split("x")))
    name = f"{kind.replace('v5e', 'v5litepod')}-{num}"
    assert chips.slice_of(name) == f"{kind}:{dims}"
  with pytest.raises(InputError, match="-3"):
    chips.slice_of(f"{kind.replace('v5e', 'v5litepod')}-3")
