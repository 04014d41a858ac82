"""What a task of users' own gives is checked before anything is read or trained."""

import types

import jax
import jax.numpy as jnp
import pytest

from gen_jax.families import own
from gen_jax.tasks.base import LossOut
from gen_jax.types import InputError, Mean

SHAPES = {"image": (4, 8, 8, 1), "weights": (4,)}
DATA = types.SimpleNamespace(
  giving=lambda reads: DATA,
  abstract_batch=lambda: {
    name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()
  },
)


class Good:
  reads = ()

  def init(self, key, batch):
    return {"w": jax.random.normal(key, (64, 1)), "b": [jnp.zeros(())]}

  def loss(self, params, frozen, batch, keys, *, train):
    x = batch["image"].reshape(4, 64) @ params["w"] + params["b"][0]
    return self.out(Mean.of(x[:, 0] ** 2, batch["weights"]), {})

  def out(self, loss, metrics):
    return LossOut(loss, metrics)


def test_a_good_task():
  own._check(Good(), DATA, None)


def _out(fn):
  return {"out": lambda self, loss, metrics: fn(loss)}


def _init(fn):
  return {"init": lambda self, key, batch: fn()}


def _metric(value, name="m"):
  return _out(lambda loss: LossOut(loss, {name: value}))


MEAN = Mean(jnp.ones(()), jnp.ones(()))


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (_out(lambda loss: None), r"Odd.loss must give a LossOut"),
    (_out(lambda loss: loss.value), r"Odd.loss must give a LossOut"),
    (_out(lambda loss: (loss, {})), r"Odd.loss must give a LossOut"),
    (_out(lambda loss: LossOut(loss, None)), r"Odd.loss must give a LossOut"),
    (_out(lambda loss: LossOut(Mean(jnp.ones(3), 1.0), {})), r"'loss' must be a Mean"),
    (_out(lambda loss: LossOut(Mean(jnp.int32(3), 1), {})), r"'loss' must be a Mean"),
    (_metric(1.0), r"'m' must be a Mean of two"),
    (_metric(Mean(jnp.ones(4), jnp.ones(4))), r"'m' must be a Mean of two"),
    (_metric(MEAN, "loss"), r"a metric cannot be named 'loss'"),
    (_metric(MEAN, "step"), r"a metric cannot be named 'step'"),
    (_metric(MEAN, "a\nb"), r"a metric cannot be named 'a\\nb'"),
    (_metric(MEAN, 3), r"a metric cannot be named 3"),
    (_init(lambda: None), r"Odd.init must give parameters"),
    (_init(lambda: {}), r"Odd.init must give parameters"),
    (_init(lambda: {"w": "x"}), r"Odd.init fails"),
    (_init(lambda: {"w": jnp.zeros(3, jnp.int32)}), r"\['w'\] is int32 \[3\]"),
    (_init(lambda: {"w": jnp.zeros((0, 3))}), r"\['w'\] is float32 \[0, 3\]"),
    (
      _init(lambda: {"a/b": jnp.zeros(3)}),
      r"\['a/b'\] must have names of text without",
    ),
    (_init(lambda: {1: jnp.zeros(3)}), r"\[1\] must have names of text"),
    (_init(lambda: {}["none"]), r"Odd.init fails at .*test_own.py:\d+: KeyError"),
    ({"init": lambda self, key: {}}, r"Odd.init fails: TypeError"),
    ({"loss": 5}, r"Odd.loss fails"),
    ({"out": lambda self, *_: exit(3)}, r"Odd.loss fails at .*: SystemExit: 3"),
    ({"reads": "label"}, r"Odd.reads='label' must be a tuple"),
    ({"reads": ("depth",)}, r"Odd.reads=\('depth',\) must be a tuple"),
    ({"reads": None}, r"Odd.reads=None must be a tuple"),
    ({"reads": lambda self: ()}, r"Odd.reads=.* must be a tuple"),
  ],
)
def test_a_task_that_is_none(changes, says):
  with pytest.raises(InputError, match=says) as error:
    own._check(type("Odd", (Good,), changes)(), DATA, None)
  assert "\n" not in str(error.value)
