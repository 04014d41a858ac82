"""Foreign networks that see, against torch's own (tools/make_feature_golden.py)."""

import json
import pathlib
import zlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from gen_jax.evaluation import features
from gen_jax.models import efficientnet, inception
from gen_jax.types import InputError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden_features"
NETWORKS = {
  "efficientnet_lite0": efficientnet.features,
  "inception": inception.features,
}


def fill(name, shape):
  generator = np.random.default_rng(zlib.crc32(name.encode()))
  if len(shape) == 4:
    return generator.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
  if name.endswith((".weight", ".running_var")):
    return generator.uniform(0.5, 1.5, shape)
  return generator.normal(0, 0.1, shape)


def weights(name):
  with np.load(GOLDEN / f"{name}.npz") as file:
    shapes = json.loads(str(file["shapes"]))
    golden = file["images"], file["rows"]
  return {k: fill(k, s).astype(np.float32) for k, s in shapes.items()}, *golden


@pytest.mark.parametrize("name", NETWORKS)
def test_as_torch_has_it(name):
  tensors, images, want = weights(name)
  found = np.asarray(jax.jit(NETWORKS[name])(tensors, images))
  np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


def test_from_a_file(tmp_path, monkeypatch):
  """Grey is a colour, a batch does not show, and figures go by the features' names."""
  monkeypatch.setattr(features, "_BATCH", 2)
  tensors, images, want = weights("efficientnet_lite0")
  file = tmp_path / "lite0.safetensors"
  safetensors.numpy.save_file(tensors, file)
  seen = features.efficientnet_lite0(str(file))
  assert seen.name == "efficientnet_lite0" and len(seen.sha256) == 64
  grey = images[:1, ..., :1]
  rows = seen.of([np.concatenate([images, np.repeat(grey, 3, -1)]), images[:1]])
  np.testing.assert_allclose(rows[:2], want, atol=1e-5 * np.abs(want).max())
  np.testing.assert_array_equal(rows[3], rows[0])
  np.testing.assert_allclose(seen.of([grey])[0], rows[2], rtol=1e-6)


@pytest.mark.parametrize("damage", ["missing", "shape", "file"])
def test_weights_of_another_network(tmp_path, damage):
  tensors, *_ = weights("efficientnet_lite0")
  file = tmp_path / "lite0.safetensors"
  if damage == "missing":
    del tensors["_blocks.3._bn1.bias"]
  elif damage == "shape":
    tensors["_conv_head.weight"] = tensors["_conv_head.weight"][:, :-1]
  if damage != "file":
    safetensors.numpy.save_file(
      {k: np.ascontiguousarray(v) for k, v in tensors.items()}, file
    )
  says = {"missing": "_blocks.3._bn1.bias", "shape": "another", "file": "no file"}
  with pytest.raises(InputError, match=says[damage]):
    features.efficientnet_lite0(str(file))
