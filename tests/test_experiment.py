"""What an experiment says of its own cost, against closed forms."""

import functools
import pathlib

import pytest

from gen_jax import experiment as experiments
from gen_jax import types
from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.cost import flops
from gen_jax.train import step as steps

ROOT = pathlib.Path(__file__).parents[1]


def make(spec, *overrides):
  config = config_files.load(str(ROOT / "configs" / spec))
  config = overriding.apply(config, [o.split("=") for o in overrides])
  config["mesh"] = {"data": -1, "fsdp": 1, "tensor": 1, "rules": "fsdp"}
  return experiments.make(config, None)


@pytest.mark.parametrize("remat", ["None", "full"])
def test_model_flops_are_six_per_weight_and_token(remat):
  """6 (12 L D^2 + V D) a token, and 12 or 6 L T D for attention; remat adds none."""
  experiment = make("lm/gpt2.py:124m", f"task.model.remat={remat}")
  work = experiment.flops_per_step()
  tokens, matrices = 480 * 1024, 12 * 12 * 768**2 + 50257 * 768
  assert work["mfu"] == tokens * (6 * matrices + 12 * 12 * 1024 * 768)
  assert work["mfu_causal"] == tokens * (6 * matrices + 6 * 12 * 1024 * 768)


def test_a_language_model_that_knows_nothing_is_known():
  assert make("lm/gpt2.py:124m").expected_loss == pytest.approx(10.8249, abs=1e-4)
  assert make("diffusion/digits.py").expected_loss is None


LATENT = (
  "task.codec={'name': 'latent', 'workdir': None, 'autoencoder': {'name':"
  " 'autoencoder', 'image_channels': 1, 'latent_channels': 1, 'width': 8,"
  " 'multipliers': (1, 2), 'num_blocks': 1, 'num_groups': 4}}"
)


@pytest.mark.parametrize(
  "spec, overrides",
  [
    ("diffusion/stable_diffusion.py:v1,smoke", [LATENT]),  # a frozen encoder
    ("diffusion/ddpm_cifar10.py:smoke", []),  # nobody listens to its text encoder
    ("vae/emoji.py:smoke", []),  # two losses, each blind to half of the weights
  ],
)
def test_model_flops_of_images_are_those_of_the_step(spec, overrides):
  experiment = make(spec, *overrides)
  work = experiment.flops_per_step()
  optimizer, _ = experiment.optimizer(1)
  learner, layout = experiment.learner, experiment.layout
  step = steps.make_step(learner, optimizer, layout=layout, decay=0.9)
  state = experiment.abstract_state(optimizer)
  assert work == {
    "mfu": flops.count(step, state, experiment.frozen, experiment.batch(), {})
  }
  if "network" in experiment.config["task"]:
    assert make(spec, *overrides, "task.network.remat=full").flops_per_step() == work


@pytest.mark.parametrize("target, is_fine", [("eps", False), ("v", True)])
def test_a_grid_that_begins_with_noise_alone_needs_a_target_that_bears_it(
  target, is_fine
):
  schedule = "{'name': 'zero_terminal', 'schedule': 'scaled_linear'}"
  overrides = f"task.target={target}", f"task.schedule={schedule}"
  build = functools.partial(
    make, "diffusion/digits.py:smoke", *overrides, "sampling.grid=trailing"
  )
  if is_fine:
    build()
  else:
    with pytest.raises(types.InputError, match=r"t=1 with 0 of the image left.*eps"):
      build()


def test_a_base_width_multiplies_rates_and_only_where_it_is_narrower():
  plain = make("lm/pydoc.py:smoke", "task.model.base_width=32")
  assert plain.narrow is None and plain.rates() == {}
  wide = make("lm/pydoc.py:smoke", "task.model.base_width=8")
  assert wide.rates()["block_0/mlp/down/kernel"] == 0.25
  assert not {"embed/table", "final_norm/scale"} & wide.rates().keys()
  muon = "optimizer={'name': 'muon', 'learning_rate': {'name': 'constant', 'peak': 1}}"
  rates = make("lm/pydoc.py:smoke", "task.model.base_width=8", muon).rates()
  assert rates["block_0/mlp/down/kernel"] == 0.5
  sgd = make(
    "lm/pydoc.py:smoke", "task.model.base_width=8", muon.replace("muon", "sgd")
  )
  with pytest.raises(types.InputError, match=r"optimizer=sgd.*adamw"):
    sgd.optimizer(1)


def test_labels_fit_the_network_at_either_width():
  """The vector of a class is as wide as the time embedding, in the base as well."""
  labels = "{'name': 'labels', 'num_classes': 10}"
  changes = (f"task.conditioning={labels}", "data.tokenizer=None")
  made = make(
    *("diffusion/digits.py:smoke", *changes, "data.caption_length=None"),
    *("task.network.width=32", "task.network.base_width=16"),
  )
  assert made.rates()["unet/time_out/kernel"] == 0.5
  assert "labels/table" not in made.rates()
