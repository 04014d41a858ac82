"""Chips are dealt out by the environment of arms, which real processes show."""

import sys

import pytest

from gen_jax.sweeps import chips, engine
from gen_jax.types import InputError

FOUR = chips.Chips("gpu", ("0", "1", "2", "3"))


def test_every_gpu_has_one_owner_and_none_is_idle():
  for jobs in (2, 3, 4):
    found = [
      e["CUDA_VISIBLE_DEVICES"].split(",") for e in chips.environments(FOUR, jobs)
    ]
    assert sorted(name for names in found for name in names) == list(FOUR.names)
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_one_job_and_no_chips_change_nothing():
  assert chips.environments(FOUR, 1) == [{}]
  assert chips.environments(chips.Chips("gpu", ()), 3) == [{}, {}, {}]


def test_more_jobs_than_gpus_share_their_memory(monkeypatch):
  found = chips.environments(chips.Chips("gpu", ("a", "b")), 5)
  assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["a", "b", "a", "b", "a"]
  shares = [float(e["XLA_CLIENT_MEM_FRACTION"]) for e in found]
  assert max(shares) * 3 <= 0.75 and min(shares) * 3 > 0.74
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1")  # the user's own
  assert all(len(e) == 1 for e in chips.environments(chips.Chips("gpu", ("a",)), 2))


def test_tpu_chips_have_ports_of_their_own_and_are_not_shared():
  tpu = chips.Chips("tpu", ("0", "1", "2", "3"))
  found = chips.environments(tpu, 4)
  assert [e["TPU_VISIBLE_CHIPS"] for e in found] == list(tpu.names)
  assert len({e["TPU_PROCESS_PORT"] for e in found}) == 4
  assert {e["TPU_CHIPS_PER_PROCESS_BOUNDS"] for e in found} == {"1,1,1"}
  for one in found:
    assert one["TPU_PROCESS_ADDRESSES"].endswith(f":{one['TPU_PROCESS_PORT']}")
  with pytest.raises(InputError, match="--jobs 5 must be at most 4"):
    chips.environments(tpu, 5)


@pytest.mark.parametrize(
  "environment, names",
  [
    ({"CUDA_VISIBLE_DEVICES": "2,GPU-ab"}, ("2", "GPU-ab")),
    ({"CUDA_VISIBLE_DEVICES": ""}, ()),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, ()),
    ({"CUDA_VISIBLE_DEVICES": "2,3", "JAX_PLATFORMS": "cpu"}, ()),
  ],
)
def test_what_the_user_hides_is_not_dealt_out(environment, names):
  assert chips.here(environment).names == names


def test_an_arm_gets_its_chip(tmp_path, monkeypatch):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
  place, logs = engine.Local(), [tmp_path / "a.txt", tmp_path / "b.txt"]
  words = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
  slots = place.slots(2)
  for slot, log in zip(slots, logs, strict=True):
    assert place.start(slot, words, log).wait() == 0
  assert [log.read_text() for log in logs] == ["5\n", "7\n"]
