"""What a run has cost: hours of all starts, times chips, times the list price."""

import types

import pytest

from gen_jax.cost import chips
from gen_jax.runs import bill
from gen_jax.system import files
from gen_jax.types import InputError


def device(kind, number, coords=None):
  """What a bill asks of a device."""
  found = types.SimpleNamespace(device_kind=kind, id=number, slice_index=0)
  if coords is not None:
    found.coords = coords
  return found


def start(home, clock, began, until, kind="TPU v5 lite", num=16):
  """A start that writes metrics at some times, and then dies."""
  devices = [device(kind, i, (i, 0, 0)) for i in range(num)]
  clock(began)
  made = bill.Bill(home, began, devices)
  for at in until:
    clock(at)
    made.write(0, {})
  return made


@pytest.fixture
def clock(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(bill.time, "time", lambda: now[0])
  monkeypatch.setattr(bill.time, "monotonic", lambda: now[0])
  return lambda at: now.__setitem__(0, at)


def test_all_starts_count_with_their_own_chips(tmp_path, clock):
  """Two hours of 16 chips, then one and a half of 4 of another kind."""
  start(tmp_path, clock, 1000.0, [1000.0, 4600.0, 8200.0, 8229.0])  # the last is early
  start(tmp_path, clock, 9000.0, [12600.0], "TPU v5", 4)
  last = start(tmp_path, clock, 20000.0, [], "TPU v5", 4)
  clock(21800.0)
  last.close()
  found = bill.so_far(tmp_path)
  assert (found["starts"], found["chip_hours"]) == (3, 2 * 16 + 1.5 * 4)
  assert found["usd"] == pytest.approx(32 * 1.20 + 6 * 4.20)
  assert bill.line(tmp_path) == (
    f"so far: 38.00 chip-hours in 3 starts, 63.60 USD at list prices of"
    f" {chips.PRICES_OF}"
  )


def test_chips_without_a_price_have_hours_alone(tmp_path, clock):
  assert bill.so_far(tmp_path)["starts"] == 0 and bill.line(tmp_path) is None
  start(tmp_path, clock, 0.0, [3600.0], "cpu", 1)
  found = bill.so_far(tmp_path)
  assert found == {"starts": 1, "chip_hours": 1.0, "usd": None}
  assert bill.line(tmp_path) is None


def test_two_devices_may_be_one_chip():
  pairs = [device("TPU v3", i, (i // 2, 0, 0)) for i in range(8)]
  assert chips.count(pairs) == 4
  assert chips.count([device("cpu", i) for i in range(8)]) == 8


def test_a_damaged_bill_is_named(tmp_path):
  for content in (
    "{",
    "{}",
    '{"starts": [1]}',
    '{"starts": [{}]}',
    '{"starts": [{"began": "x"}]}',
  ):
    files.write(tmp_path / bill.NAME, content)
    with pytest.raises(InputError, match=bill.NAME):
      bill.so_far(tmp_path)
