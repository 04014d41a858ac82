"""A number of a config is an argument of programs: its value changes none of them."""

import copy
import dataclasses
import functools
import operator
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import build, numbers, ranges, tree
from gen_jax import experiment as experiments
from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.train import step as steps

ROOT = pathlib.Path(__file__).parents[1]
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")


@pytest.mark.parametrize("name", OPERATORS)
def test_arithmetic_is_that_of_python_and_each_result_has_its_own_name(name):
  function = getattr(operator, name)
  a, b = numbers.named(0.3, "a"), numbers.named(7, "b")
  pairs = [
    (function(a, 2), function(0.3, 2)),
    (function(2, a), function(2, 0.3)),
    (function(a, b), function(0.3, 7)),
    (function(b, a), function(7, 0.3)),
  ]
  assert len({found.name for found, _ in pairs}) == 4
  for found, wanted in pairs:
    assert found == wanted and type(numbers.plain(found)) is type(wanted)


def test_what_python_decides_on_a_number_stays_pythons():
  rate, num = numbers.named(0.0, "rate"), numbers.named(7, "num")
  assert not rate and rate == 0 and max(num - 9, 1) == 1 and range(num)[-1] == 6
  assert isinstance(rate, float) and isinstance(num, int)
  assert round(num / 2).name == "round((num / 2))" and round(num / 2) == 4
  assert f"{rate:.1f} {num}" == "0.0 7"
  for copied in (copy.deepcopy(num), pickle.loads(pickle.dumps(num))):
    assert (copied, copied.name) == (7, "num")


def test_numpy_takes_a_number_for_a_float_and_functions_of_one_keep_their_names():
  x = numbers.named(0.25, "x")
  assert np.cos(x).name == "cos(x)" and np.cos(x) == np.cos(0.25)
  assert not hasattr(np.float64(2) * x, "name")
  np.testing.assert_array_equal(np.linspace(x, 1.0, 4), [0.25, 0.5, 0.75, 1.0])


MEETINGS = {
  "operator": lambda x, n: n * x,
  "reflected": lambda x, n: x - n,
  "compared": lambda x, n: jnp.where(n > x, x, 0),
  "power": lambda x, n: n**x,
  "function": lambda x, n: jnp.minimum(n, x),
  "jitted": lambda x, n: jnp.where(x > 1, n, x),
  "array": lambda x, n: x * jnp.asarray(n, x.dtype),
  "full": lambda x, n: x + jnp.full_like(x, n),
  "scanned": lambda x, n: jax.lax.scan(lambda c, _: (c * n, None), x, length=2)[0],
  "gradient": lambda x, n: jax.grad(lambda y: (n * y**2).sum())(x),
}


@pytest.mark.parametrize("name", MEETINGS)
def test_a_number_that_meets_an_array_is_an_argument_and_keeps_the_dtype(name):
  fn, half = MEETINGS[name], numbers.named(0.5, "half")
  x = jnp.array([0.0, 1.0, 2.0], jnp.bfloat16)
  assert numbers.found(lambda x: fn(x, half), x) == {"half": 0.5}
  compiled = numbers.jit(lambda x: fn(x, half))
  found, wanted = compiled(x), fn(x, 0.5)
  assert found.dtype == wanted.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found, wanted)

  @jax.jit
  def program(x, arguments):
    with numbers.given(arguments):
      return fn(x, half)

  np.testing.assert_array_equal(program(x, {"half": 0.25}), fn(x, 0.25))
  np.testing.assert_array_equal(program(x, {}), fn(x, 0.5))  # a constant


def test_two_values_of_one_name_are_refused():
  one, other = numbers.named(1.0, "x"), numbers.named(2.0, "x")
  with pytest.raises(ValueError, match=r"x is 2\.0 and 1\.0"):
    numbers.found(lambda x: one * x + other * x, 1.0)


LM, DIGITS = "lm/pydoc.py:smoke", "diffusion/digits.py:smoke"
DIT = "diffusion/dit.py:smoke"
SMALL = {"task.network.multipliers": (1,), "task.network.width": 8}


def optimiser(name, rate, **keys):
  rate = {"name": rate, "peak": 0.01, "warmup_steps": 3, **keys}
  return {"optimizer": {"name": name, "clip_norm": 0.5, "learning_rate": rate}}


CASES = {
  "scanned": (LM, {"task.model.dropout": 0.2, "task.model.scan_layers": True}),
  "losses": (
    LM,
    {"task.model.dropout": 0.2, "task.z_loss": 0.1, "train.ema_decay": 0.5},
  ),
  "adamw": (LM, optimiser("adamw", "cosine", decay_steps=9)),
  "muon": (LM, optimiser("muon", "wsd", final_fraction=0.2)),
  "lion": (LM, optimiser("lion", "linear", final_fraction=0.2)),
  "sgd": (LM, optimiser("sgd", "constant")),
  "adafactor": (LM, optimiser("adafactor", "cosine")),
  "min_snr": (DIGITS, {"task.weighting": "min_snr", "task.network.dropout": 0.2}),
  "edm": (
    DIT,
    {
      "task.schedule": "karras",
      "task.target": "edm",
      "task.weighting": "edm",
      "task.time_sampler": "lognormal_sigma",
    },
  ),
  "vp_linear": (
    DIT,
    {
      "task.schedule": {"name": "shift", "factor": 2.0, "schedule": "vp_linear"},
      "task.weighting": {"name": "sigmoid", "bias": 0.5},
      "task.time_sampler": {"name": "logit_normal", "mean": 0.5},
      "task.codec": {"name": "affine", "shift": 0.1, "scale": 0.5},
    },
  ),
  "autoencoder": (
    "vae/emoji.py:smoke",
    {"task.autoencoder.multipliers": (1,), "task.discriminator": "discriminator"},
  ),
}


def resolved(spec, overrides):
  config = config_files.load(f"{ROOT}/configs/{spec}")
  overrides = {"train.num_steps": 40, **(SMALL if spec == DIGITS else {}), **overrides}
  return build.resolved(overriding.apply(config, overrides.items()))


def changed(config):
  """The config with every number that is an argument of its step at another value."""
  others = {
    key.path: 2 * key.value if isinstance(key.value, int) else 0.75 * key.value
    for key in build.keys(config)
    if key.path.split(".")[0] in ("task", "optimizer", "train")
    and key.value
    and ranges.is_argument(key.value, key.hint)
  }
  return build.resolved(overriding.apply(config, others.items()))


def program(config):
  """A step, its arguments, and its numbers."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    made = experiments.make(config, None)
  tx, _ = made.optimizer(made.train.num_steps)
  average = {"decay": made.train.ema_decay, "warmup": made.train.ema_warmup}
  step = steps.make_step(made.learner, tx, layout=made.layout, **average)
  held = made.abstract_state(tx), made.abstract_frozen(), made.batch()
  return step, held, steps.numbers(step, *held)


def drawn(x, generator):
  if jnp.issubdtype(x.dtype, jnp.floating):
    return generator.uniform(0.1, 1.0, x.shape).astype(x.dtype)
  return generator.integers(0, 2, x.shape).astype(x.dtype)


@pytest.mark.parametrize("name", CASES)
def test_a_step_has_one_program_for_all_values_of_its_numbers(name):
  config = resolved(*CASES[name])
  (step, held, one), (own, _, other) = program(config), program(changed(config))
  assert one.keys() == other.keys() and len(one) > 3
  assert not [key for key in one if one[key] == other[key]]
  text = jax.jit(step).lower(*held, one).as_text()
  assert text == jax.jit(own).lower(*held, other).as_text()


def test_a_program_with_the_numbers_of_another_run_trains_as_that_runs_own():
  config = resolved(LM, CASES["losses"][1] | CASES["adamw"][1])
  (step, held, _), (own, _, numbers) = program(config), program(changed(config))
  generator = np.random.default_rng(0)
  state, _, batch = tree.map_with_path(lambda _, x: drawn(x, generator), held)
  shared = alone = dataclasses.replace(state, step=np.int32(4))
  step, own = jax.jit(step), jax.jit(own)
  for _ in range(2):
    shared, losses = step(shared, {}, batch, numbers)
    alone, wanted = own(alone, {}, batch, {})  # constants
  np.testing.assert_allclose(losses["loss"].value, wanted["loss"].value, rtol=1e-5)
  shared = tree.flatten(shared)
  for path, leaf in tree.flatten(alone).items():
    np.testing.assert_allclose(shared[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


def mapped(arm):
  return functools.partial(jax.lax.map, arm)


@pytest.mark.parametrize("together, tolerance", [(mapped, 0.0), (jax.vmap, 1e-6)])
def test_arms_in_one_program_train_as_alone(together, tolerance):
  """Stacked numbers: `lax.map` to the bit, `vmap` to rounding."""
  config = resolved(*CASES["losses"])
  (step, held, one), (_, _, other) = program(config), program(changed(config))
  generator = np.random.default_rng(0)
  state, _, batch = tree.map_with_path(lambda _, x: drawn(x, generator), held)
  state = dataclasses.replace(state, step=np.int32(4))

  def stacked(*trees):
    return jax.tree.map(lambda *x: jnp.stack([*map(jnp.asarray, x)]), *trees)

  @jax.jit
  def run(states, batch, numbers):
    def arm(pair):
      return step(pair[0], {}, batch, pair[1])[0]

    return together(arm)((states, numbers))

  alone = jax.jit(step)
  group, arms = stacked(state, state), [(state, one), (state, other)]
  for _ in range(3):
    group = run(group, batch, stacked(one, other))
    arms = [(alone(s, {}, batch, n)[0], n) for s, n in arms]
  wanted = tree.flatten(stacked(*(s for s, _ in arms)))
  for path, leaf in tree.flatten(group).items():
    np.testing.assert_allclose(leaf, wanted[path], tolerance, tolerance, err_msg=path)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_derived_number_of_another_config_is_what_that_config_makes_of_it(name):
  function = getattr(operator, name)
  a, b = numbers.named(0.3, "a"), numbers.named(7, "b")
  values = {"a": 0.7, "b": 3}
  for number, wanted in (
    (function(a, 2), function(0.7, 2)),
    (function(2, a), function(2, 0.7)),
    (function(a, b), function(0.7, 3)),
    (1 - np.cos(round(abs(-a) * 1.23, 1)), 1 - float(np.cos(round(0.7 * 1.23, 1)))),
  ):
    found = numbers.under(number, values)
    assert found == wanted and type(found) is type(wanted)
    assert numbers.under(number, {"a": 0.3, "b": 7}) == number
  with pytest.raises(KeyError):
    numbers.under(a, {"b": 3})


def test_a_whole_number_given_for_a_float_stays_a_float():
  found = numbers.under(numbers.named(0.5, "a"), {"a": 2})
  assert (found, type(found)) == (2.0, float)


# What Python is told, and a value for which it would be something else.
DECISIONS = {
  "compared": (lambda x: x > 0, -2.0),
  "reflected": (lambda x: x < 0, -2.0),
  "equal": (lambda x: x == 0.0, 0.0),
  "true": (bool, 0.0),
  "largest": (lambda x: max(x, 0.1), 0.05),
  "whole": (int, 1.5),
  "floor": (lambda x: x.__floor__(), -0.5),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_what_python_is_told_of_a_number_is_a_decision_that_holds_for_some(name):
  decide, other = DECISIONS[name]
  x = numbers.named(0.5, "x")
  with numbers.deciding() as decisions:
    decide(1 * x)
  decide(x)  # nobody listens
  (decision,) = decisions
  assert decision.holds({"x": 0.5}) and decision.holds({"x": 0.25})
  assert not decision.holds({"x": other})


def test_arithmetic_and_programs_decide_nothing():
  x = numbers.named(0.5, "x")
  with numbers.deciding() as decisions:
    numbers.found(lambda y: (1 - 2 * x) * y + jnp.where(y > x, x, y), jnp.ones(2))
  assert not decisions


def test_a_program_is_shared_with_the_numbers_of_another_config():
  x, traces = numbers.named(0.5, "x"), []
  program = numbers.jit(lambda y: traces.append(1) or (1 - x) * y)
  assert program(2.0) == 1.0
  before = len(traces)
  assert program.under({"x": 0.25})(2.0) == 1.5 and program(2.0) == 1.0
  assert len(traces) == before
