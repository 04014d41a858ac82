"""Spaces are plain lists; arms are checked whole before any of them runs."""

import json

import numpy as np
import pytest

from gen_jax.build import config_files
from gen_jax.sweeps import chain, fixed, product, space, values, zip_
from gen_jax.system import files
from gen_jax.types import InputError

BASE = config_files.load("configs/lm/pydoc.py:smoke")
RATE = "optimizer.learning_rate.peak"


def arms(made):
  return space.arms(BASE, made)


def test_a_product_of_chains_is_every_combination():
  made = product(
    zip_({"task.model.width": (32, 64), "task.model.num_heads": (4, 8)}),
    chain(fixed(), fixed({"train.ema_decay": 0.9})),
    values("seed", range(3)),
  )
  found = arms(made)
  assert len(found) == 2 * 2 * 3
  assert len({arm.name for arm in found}) == len({arm.sha256 for arm in found}) == 12
  assert found[0].name == "width=32,num_heads=4,seed=0"
  assert found[-1].name == "width=64,num_heads=8,ema_decay=0.9,seed=2"
  assert found[-1].config["task"]["model"]["num_heads"] == 8


def test_more_arms_leave_the_others_what_they_were():
  few = arms(values(RATE, (1e-3, 2e-3)))
  many = arms(chain(values(RATE, (4e-3, 2e-3, 1e-3))))
  by_name = {arm.name: arm.sha256 for arm in many}
  assert all(by_name[arm.name] == arm.sha256 for arm in few)


def test_the_order_of_keys_is_not_part_of_an_arm():
  a = files.value_sha256({"a": 1, "b": {"c": 2, "d": 3}})
  assert a == files.value_sha256({"b": {"d": 3, "c": 2}, "a": 1})
  assert a != files.value_sha256({"a": 1, "b": {"c": 2, "d": 4}})


def test_names_are_folders():
  assert [arm.name for arm in arms(fixed())] == ["base"]
  long = space._names([{"k": "a/b c" * 60}, {"k": "x"}])
  assert "/" not in long[0] and len(long[0]) < 120
  assert space._names([{"k": "a/b"}, {"k": "a_b"}])[0] != "k=a_b"


@pytest.mark.parametrize(
  "made, says",
  [
    ([], "at least one"),
    (values("seed", (0, 0)), "have one config"),
    (values("optimizer.lerning_rate.peak", (1.0,)), "learning_rate"),
    (values(RATE, (1e-3, -1.0)), "arm peak=-1.0"),
    (fixed({"optimizer.learning_rate.name": "constant"}), "final_fraction"),
    (product(values("seed", (1, 2)), fixed({"train.save_every": 2})), "save_every"),
    (product(values("seed", (1, 2)), fixed({"train.keep": 2})), "keep=2 changes"),
    (chain(fixed(), fixed({"train.keep": 2})), "arms base and .* have one config"),
  ],
)
def test_bad_arms(made, says):
  with pytest.raises(InputError, match=says):
    arms(made)


def test_numbers_of_numpy_are_numbers():
  """As `np.logspace` and `np.arange` give them; a ledger holds Python's own."""
  rates = values(RATE, np.logspace(-3, -2, 2))
  found = arms(product(rates, values("seed", np.arange(2))))
  assert found == arms(product(values(RATE, (1e-3, 1e-2)), values("seed", range(2))))
  assert json.loads(json.dumps([arm.overrides for arm in found]))
  assert space.text((np.float32(0.5), [np.int64(1)])) == "(0.5, (1,))"


def test_bad_spaces():
  with pytest.raises(InputError, match="sets a twice"):
    product(values("a", (1,)), values("a", (2,)))
  with pytest.raises(InputError, match="a has 1, b has 2"):
    zip_({"a": (1,), "b": (1, 2)})


def test_a_value_of_the_base_counts_in_a_block_that_is_replaced():
  """The new schedule's own default is another: the base's value changes it."""
  steps = BASE["optimizer"]["learning_rate"]["warmup_steps"]
  warmup, rate = "optimizer.learning_rate.warmup_steps", "optimizer.learning_rate"
  (arm,) = arms([{rate: "linear", RATE: 2e-3, warmup: steps}])
  assert arm.config["optimizer"]["learning_rate"]["warmup_steps"] == steps
  (plain,) = arms([{rate: "linear", RATE: 2e-3}])
  assert plain.sha256 != arm.sha256
  with pytest.raises(InputError, match=f"{warmup}={steps} changes nothing"):
    arms([{RATE: 2e-3, warmup: steps}])


def test_an_arm_has_the_settings_of_its_evaluators():
  (plain,) = arms(fixed({"seed": 1}))
  assert plain.settings == [("", {})]
  blocks = config_files.load("configs/diffusion/digits.py:smoke")
  settings = tuple(
    (f"sampler=ddim,scale={s}", {"guidance_scale": s}) for s in (1.0, 2.5)
  )
  block = {"name": "sampling_sweep", "every": 0, "settings": settings, "of": ("a",)}
  blocks["evaluators"] |= {"none": None, "scales": block}
  (found,) = space.arms(blocks, values("seed", (1,)))
  assert found.settings == [
    ("sampler=ddim,scale=1.0/", {"sampler": "ddim", "scale": 1.0}),
    ("sampler=ddim,scale=2.5/", {"sampler": "ddim", "scale": 2.5}),
  ]
