"""What a format lacks is folded into weights: the same images leave and come back."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import gen_jax
from gen_jax import rng, types
from gen_jax.convert import to_diffusers
from gen_jax.data import pipeline
from gen_jax.data import tokenizers as own_tokenizers
from tests.cli import conftest
from tests.convert import test_stable_diffusion as tiny

pytestmark = pytest.mark.usefixtures("one_device")
V1 = tiny.GOLDEN / "v1"
MEAN, STD = [0.3, -1.0, 0.0, 2.0], [0.5, 2.0, 1.0, 3.0]


@pytest.fixture(scope="module", params=[0.0, 2.5])
def pair(request, tmp_path_factory):
  """A run with statistics of each channel and its own count of time; its export, read.

  Each as (run, weights).
  """
  home = tmp_path_factory.mktemp("own")

  def read(folder, name):
    words = ("import", "--from", folder, "--workdir", home / name, *tiny.MESH)
    conftest.main.run([str(word) for word in words])
    return gen_jax.open(home / name)

  base = read(V1, "base")
  own = base.configured({"task.network.timestep_offset": request.param})
  weights = own.weights()
  moments = {"mean": np.float32(MEAN), "std": np.float32(STD)}
  weights = weights._replace(frozen={**weights.frozen, **moments})
  opened = SimpleNamespace(
    experiment=own.experiment,
    weights=lambda *which: weights,
    base_origin=own.base_origin,
    tokenizer_folder=own.tokenizer_folder,
  )
  args = SimpleNamespace(
    adapter=False,
    to=home / "exported",
    checkpoint="best",
    weights=None,
    dtype="float32",
    workdir=home / "base",
  )
  to_diffusers.export(args, opened)
  back = read(home / "exported", "back")
  return (own, weights), (back, back.weights())


def test_latents_are_scaled_and_images_are_the_same(pair):
  images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1)
  z = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
  seen, keys = [], rng.per_example(jax.random.key(4), 2)
  for run, weights in pair:
    codec, frozen = run.experiment.task.codec, weights.frozen
    seen.append(
      (jax.jit(codec.encode)(frozen, images, keys), jax.jit(codec.decode)(frozen, z))
    )
  for ours, theirs in zip(*seen, strict=True):
    span = float(jnp.ptp(ours))
    np.testing.assert_allclose(theirs, ours, atol=1e-5 * span)
  moments = [np.asarray(pair[1][1].frozen[name]) for name in ("mean", "std")]
  np.testing.assert_array_equal(moments, [[0.0] * 4, [1.0] * 4])


def test_time_is_counted_on(pair):
  """Far into the chain, too, where a wrong angle is large."""
  x = jax.random.normal(jax.random.key(2), (3, 8, 8, 4))
  tokens = jax.random.normal(jax.random.key(3), (3, 5, 12))
  t = jnp.float32([0.001, 0.5, 1.0])
  seen = []
  for run, weights in pair:
    net, states = run.experiment.task.network, types.States(tokens)
    seen.append(jax.jit(net.apply)({"params": weights.params["unet"]}, x, t, states))
  np.testing.assert_allclose(seen[1], seen[0], atol=2e-4 * float(jnp.ptp(seen[0])))


@pytest.mark.parametrize("caption", ["a red apple", "", "red " * 30])
def test_an_own_tokenizer_marks_captions_as_in_training(tmp_path, caption):
  made = own_tokenizers.train_bpe(["a red apple and a pear"] * 9, 280)
  made.save(tmp_path)
  length = 12
  experiment = SimpleNamespace(
    tokenizer=own_tokenizers.load(tmp_path), data=SimpleNamespace(caption_length=length)
  )
  described = {"model_index.json": {}}
  to_diffusers._name_tokenizer(tmp_path, experiment, described)
  assert described["model_index.json"]["tokenizer"][1] == "PreTrainedTokenizerFast"
  foreign = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  ids, _ = pipeline.pad_caption(caption, experiment.tokenizer, length)
  foreign.enable_truncation(length)
  foreign.enable_padding(length=length, pad_id=made.eos)
  assert foreign.encode(caption).ids == ids.tolist()
