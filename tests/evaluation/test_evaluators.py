"""Loss by position: parts of one whole, each of its own targets alone."""

import jax
import numpy as np
import pytest

from gen_jax import build, sharding
from gen_jax import experiment as experiments
from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.tasks import base
from gen_jax.train import evaluators
from gen_jax.types import InputError, Mean
from tests import tiny


def experiment(tmp_path, config="configs/lm/repeats.py:smoke", **changes):
  blocks = overriding.apply(config_files.load(config), list(changes.items()))
  return experiments.make(blocks, tmp_path, jax.local_devices()[:1])


def measured(made, num):
  block = {"name": "by_position", "every": 0, "num": num}
  evaluator = build.build("evaluator", block, "evaluators.x", experiment=made)
  params = tiny.weights(made.task.init, _batch(made))
  return dict(evaluator(params, {})), params


def _batch(made):
  return made.pipeline("validation").batch(0)


def test_parts_add_up_and_each_is_of_its_targets(tmp_path):
  made = experiment(tmp_path)
  length = made.data.length
  halves, params = measured(made, 2)
  each, _ = measured(made, length)
  parts = ("", "1-8/", "9-16/")
  assert set(halves) == {f"by_position/{part}loss" for part in parts}
  alone = [each[f"by_position/{i}-{i}/loss"] for i in range(1, length + 1)]
  first, second = np.mean(alone[: length // 2]), np.mean(alone[length // 2 :])
  assert halves["by_position/1-8/loss"] == pytest.approx(first, rel=1e-5)
  assert halves["by_position/9-16/loss"] == pytest.approx(second, rel=1e-5)
  assert halves["by_position/loss"] == pytest.approx(np.mean(alone), rel=1e-5)
  nats, count = np.zeros(length), 0.0
  apply = jax.jit(made.task.model.apply)
  for batch in made.pipeline("validation").once():
    logits, _ = apply({"params": params}, batch["inputs"])
    logs = jax.nn.log_softmax(logits)
    own = np.take_along_axis(logs, batch["targets"][..., None], -1)[..., 0]
    nats -= (own * batch["weights"]).sum(0)
    count += batch["weights"].sum(0)
  np.testing.assert_allclose(alone, nats / count, rtol=1e-5)


def test_parts_that_do_not_divide_a_row_and_images_are_refused(tmp_path):
  with pytest.raises(InputError, match=r"num=3 must divide .* 16"):
    measured(experiment(tmp_path), 3)
  images = experiment(tmp_path / "images", "configs/diffusion/digits.py:smoke")
  block = {"name": "by_position", "every": 0}
  with pytest.raises(InputError, match="which are 0"):
    build.build("evaluator", block, "evaluators.x", experiment=images)


SWEEP = {
  "name": "sampling_sweep",
  "every": 0,
  "settings": (
    ("guidance_scale=0", {"guidance_scale": 0.0}),
    ("steps=3", {"num_steps": 3, "sampler": {"name": "ddpm"}}),
  ),
  "of": ("fidelity",),
}
FIDELITY = {"name": "fidelity", "every": 0, "features": {"name": "pixels"}, "num": 4}


def digits(tmp_path, evaluators, **changes):
  blocks = config_files.load("configs/diffusion/digits.py:smoke")
  blocks["evaluators"] = evaluators
  blocks = overriding.apply(blocks, list(changes.items()))
  return experiments.make(blocks, tmp_path, jax.local_devices()[:1])


@pytest.mark.long
def test_a_sampling_sweep_is_evaluations_of_other_configs(tmp_path):
  made = digits(tmp_path, {"fidelity": FIDELITY, "sweep": SWEEP})
  # Not those of an untrained network, which draws alike with any scale.
  params = sharding.unbox(made.task.init(jax.random.key(0), _batch(made)))
  params = jax.tree.map(
    lambda x: x + 0.1 * np.sin(np.arange(x.size)).reshape(x.shape), params
  )
  found = dict(made.evaluator("sweep")(params, {}))
  assert {name.split("/")[0] for name in found} == {"guidance_scale=0", "steps=3"}
  for label, changes in (
    ("guidance_scale=0", {"sampling.guidance_scale": 0.0}),
    ("steps=3", {"sampling.num_steps": 3, "sampling.sampler": "ddpm"}),
  ):
    alone = digits(tmp_path, {"fidelity": FIDELITY}, **changes)
    for name, value in alone.evaluator("fidelity")(params, {}):
      assert found[f"{label}/{name}"] == pytest.approx(value, rel=1e-5)
  assert found["guidance_scale=0/pixels_16/frechet"] != pytest.approx(
    found["steps=3/pixels_16/frechet"], rel=1e-2
  )


@pytest.mark.parametrize(
  "changes, says",
  [
    ({"of": ("fidelty",)}, "did you mean 'fidelity'"),
    ({"of": ("sweep",)}, "is another"),
    ({"settings": ("guidance_scale=2",)}, "must be a pair"),
    ({"settings": (("two", {"guidance_scale": 2.0}),)}, "must be a pair"),
    ({"settings": (("scale=2", {"guidance_scal": 2.0}),)}, "guidance_scale"),
    ({"settings": (("steps=0", {"num_steps": 0}),)}, "num_steps=0 must be"),
  ],
)
def test_sampling_sweeps_that_cannot_be(changes, says, tmp_path):
  made = digits(tmp_path, {"fidelity": FIDELITY, "sweep": {**SWEEP, **changes}})
  with pytest.raises(InputError, match=says):
    made.evaluator("sweep")


def test_the_loss_of_each_example_is_its_part_of_the_sum():
  """Weights of tokens, an example without any, and a loss of two terms."""
  generator = np.random.default_rng(0)
  values, extra = generator.normal(size=(2, 6, 3)).astype(np.float32)
  weights = np.array([[1, 0, 2], [0, 1, 1], [1, 1, 1], [0, 0, 0], [3, 0, 0], [1, 1, 0]])
  batches = [
    {"x": x, "y": y, "weights": w.astype(np.float32)}
    for x, y, w in zip(*(np.split(a, 2) for a in (values, extra, weights)), strict=True)
  ]

  def loss(params, frozen, batch, keys):
    del frozen, keys
    one = Mean.of(params * batch["x"], batch["weights"])
    two = Mean.of(batch["y"] ** 2, batch["weights"])
    return base.LossOut(Mean(one.total + 0.5 * two.total, one.count), {})

  evaluator = evaluators.LossEvaluator(0, "validation", lambda: iter(batches), loss)
  sums, counts = evaluator.of_examples(2.0, {})
  there = weights.sum(1) > 0
  want = (weights * (2.0 * values + 0.5 * extra**2)).sum(1)[there]
  np.testing.assert_allclose(sums, want, rtol=1e-5)
  np.testing.assert_array_equal(counts, weights.sum(1)[there])
  ((_, mean),) = evaluator(2.0, {})
  assert mean == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)
