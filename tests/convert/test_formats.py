"""Dtypes and spellings of releases, held against other readers and writers."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax

from gen_jax import build, tree
from gen_jax import safetensors as ours
from gen_jax.convert import architectures, huggingface, matching
from gen_jax.types import InputError
from tests.convert import test_huggingface as golden

CASTS = {
  "F16": lambda i: jnp.float16,
  "BF16": lambda i: jnp.bfloat16,
  "mixed": lambda i: (jnp.float16, jnp.bfloat16, jnp.float32)[i % 3],
}


def read(folder, **changes):
  """(model, parameters) of a folder."""
  architecture, block, tensors, biasless = huggingface.open_model(folder)
  model = build.build("model", {**block, **changes})
  abstract = golden.abstract_params(model)
  places = huggingface.match(tensors, architecture, abstract, biasless)
  return model, matching.load(places, abstract)


def change(folder, **keys):
  path = folder / "config.json"
  config = {**json.loads(path.read_text()), **keys}
  kept = {key: value for key, value in config.items() if value is not ...}
  path.write_text(json.dumps(kept))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
@pytest.mark.parametrize("dtype", CASTS)
def test_half_precision_weights_come_in_as_they_are(dtype, name, scan, tmp_path):
  """Files by the format's own library; the same numbers in float32 are the same."""
  folders = [shutil.copytree(golden.GOLDEN / name, tmp_path / n) for n in ("a", "b")]
  arrays = safetensors.flax.load_file(folders[0] / "model.safetensors")
  half = {n: x.astype(CASTS[dtype](i)) for i, (n, x) in enumerate(arrays.items())}
  safetensors.flax.save_file(half, folders[0] / "model.safetensors")
  full = {n: x.astype(jnp.float32) for n, x in half.items()}
  safetensors.flax.save_file(full, folders[1] / "model.safetensors")
  (_, a), (_, b) = (read(folder, scan_layers=scan) for folder in folders)
  assert {x.dtype for x in jax.tree.leaves(a)} == {np.dtype(np.float32)}
  assert tree.sha256(a) == tree.sha256(b)
  assert any(np.any(full[n] != arrays[n]) for n in arrays)


@pytest.mark.parametrize("name", ["gpt2_untied", "llama_tied"])
@pytest.mark.parametrize(
  "dtype, want", [("F16", jnp.float16), ("BF16", jnp.bfloat16), ("F32", jnp.float32)]
)
def test_half_precision_goes_out_rounded_to_the_nearest(dtype, want, name, tmp_path):
  architecture, _, params = golden.load(name)
  plan = huggingface.foreign_tensors(architecture, params)
  ours.write_folder(tmp_path, plan, dtype)
  theirs = safetensors.flax.load_file(tmp_path / "model.safetensors")
  arrays = safetensors.flax.load_file(golden.GOLDEN / name / "model.safetensors")
  assert theirs.keys() == arrays.keys()
  for key, array in arrays.items():
    assert theirs[key].dtype == want
    np.testing.assert_array_equal(theirs[key], array.astype(want))


def test_a_value_that_a_dtype_cannot_hold_is_refused(tmp_path):
  """float16 ends at 65504; to write infinity would ruin the model."""
  values = np.array([1.0, -7e4], np.float32)
  plan = {"some.weight": ours.LazyTensor((2,), lambda: values)}
  with pytest.raises(InputError, match=r"some\.weight has -70000.*float32 or bfloat16"):
    ours.write_folder(tmp_path, plan, "F16")
  ours.write_folder(tmp_path, plan, "BF16")


@pytest.mark.parametrize(
  "name, block",
  [
    ("llama_linear", {"type": "linear", "factor": 2.0}),
    ("llama_linear", {"type": "linear", "rope_type": "linear", "factor": 2.0}),
    (
      "llama3",
      {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
      },
    ),
    ("llama", None),
  ],
)
def test_the_old_spelling_of_rope_scaling(name, block, tmp_path):
  """rope_theta and rope_scaling where newer files have rope_parameters."""
  folder = shutil.copytree(golden.GOLDEN / name, tmp_path / "model")
  new = json.loads((folder / "config.json").read_text())["rope_parameters"]
  theta = new["rope_theta"]
  change(folder, rope_parameters=..., rope_theta=theta, rope_scaling=block)
  assert (
    huggingface.open_model(folder)[1]
    == (huggingface.open_model(golden.GOLDEN / name)[1])
  )


@pytest.mark.parametrize(
  "keys, says",
  [
    ({"type": "linear", "rope_type": "llama3"}, "'linear'.*'llama3'"),
    ({"type": "yarn", "factor": 2.0}, "'yarn'"),
    ({"type": "linear"}, "lacks factor"),
    ({"type": "linear", "factor": 2.0, "ramp": 3}, "ramp=3"),
    ("linear", "must be a block"),
  ],
)
def test_a_rope_that_is_not_understood(keys, says, tmp_path):
  folder = shutil.copytree(golden.GOLDEN / "llama", tmp_path / "model")
  change(folder, rope_parameters=..., rope_scaling=keys)
  with pytest.raises(InputError, match=says):
    huggingface.open_model(folder)


@pytest.mark.parametrize("scan", [False, True])
def test_a_gpt2_without_biases_has_zeros_in_the_file(scan, tmp_path):
  """The family has a bias everywhere; at zero it computes the same."""
  block = huggingface.open_model(golden.GOLDEN / "gpt2")[1]
  norm = {**block["norm"], "use_bias": False}
  bare = {**block, "use_bias": False, "norm": norm, "scan_layers": scan}
  model = build.build("model", bare)
  tokens = np.arange(12)[None]
  draw = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: draw.normal(0, 0.3, x.shape).astype(np.float32),
    golden.abstract_params(model),
  )
  assert not any(path.endswith("bias") for path in tree.flatten(params))
  architecture = architectures.fitting(model.config)
  assert architecture.name == "GPT2LMHeadModel"
  ours.write_folder(tmp_path, huggingface.foreign_tensors(architecture, params), "F32")
  arrays = safetensors.flax.load_file(tmp_path / "model.safetensors")
  shapes = safetensors.flax.load_file(golden.GOLDEN / "gpt2" / "model.safetensors")
  assert {n: x.shape for n, x in arrays.items()} == {
    n: x.shape for n, x in shapes.items()
  }
  assert all(x.any() != name.endswith("bias") for name, x in arrays.items())
  (tmp_path / "config.json").write_text(
    json.dumps(
      {**architecture.write(model.config), "architectures": [architecture.name]}
    )
  )
  again, loaded = read(tmp_path)
  np.testing.assert_allclose(
    again.apply({"params": loaded}, tokens)[0],
    model.apply({"params": params}, tokens)[0],
    atol=1e-5,
  )
