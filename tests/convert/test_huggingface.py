"""Released weights: equal to what transformers computes with them, and unchanged."""

import functools
import json
import pathlib

import jax
import numpy as np
import optax
import pytest

from gen_jax import build, safetensors, sharding, tree
from gen_jax.convert import architectures, huggingface, matching, names
from gen_jax.models import transformer
from gen_jax.tasks import losses
from gen_jax.train import state as states
from tests import tiny

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))


def abstract_params(model, **mesh):
  task = tiny.lm.LanguageModel(model, np.zeros(model.config.vocab_size, np.int32))
  layout = sharding.make_layout(**mesh)
  batch = {"inputs": jax.ShapeDtypeStruct((8, 4), np.int32)}
  abstract = states.abstract(task, optax.identity(), batch, layout, with_ema=False)
  return abstract.params


def load(name, scan_layers=False, **mesh):
  architecture, block, tensors, biasless = huggingface.open_model(GOLDEN / name)
  model = build.build("model", {**block, "scan_layers": scan_layers})
  abstract = abstract_params(model, **mesh)
  places = huggingface.match(tensors, architecture, abstract, biasless)
  return architecture, model, matching.load(places, abstract)


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
  with np.load(GOLDEN / request.param / "expected.npz") as file:
    return (*load(request.param), dict(file))


def test_logits_and_layers(golden):
  _, model, params, expected = golden
  apply = jax.jit(functools.partial(model.apply, capture_intermediates=True))
  (logits, _), seen = apply({"params": params}, expected["tokens"])
  span = np.ptp(expected["logits"])
  np.testing.assert_allclose(logits, expected["logits"], atol=1e-4 * span)
  seen = seen["intermediates"]
  layers = model.config.num_layers
  hidden = [seen[f"block_{i}"]["__call__"][0][0] for i in range(layers - 1)]
  hidden.append(seen["final_norm"]["__call__"][0])
  for ours, theirs in zip(hidden, expected["hidden"][1:], strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_gradients(golden):
  architecture, model, params, expected = golden
  tokens = expected["tokens"]

  def loss(params):
    logits = model.apply({"params": params}, tokens[:, :-1])[0]
    return losses.score(logits, tokens[:, 1:]).nats.mean()

  value, gradients = jax.jit(jax.value_and_grad(loss))(params)
  np.testing.assert_allclose(value, expected["loss"], rtol=1e-5)
  plan = huggingface.foreign_tensors(architecture, gradients)
  checked = [key for key in expected if key.startswith("gradient/")]
  assert len(checked) == 7
  for key in checked:
    ours, theirs = plan[key.removeprefix("gradient/")].make(), expected[key]
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_each_parameter_is_in_one_tensor(golden):
  architecture, model, params, _ = golden
  shapes = matching.unrolled_shapes(params)
  entries = names.unrolled(architecture.table, model.config.num_layers)
  plan = matching.plan(entries, shapes)
  held = [path for entry, _ in plan.values() for path in entry.paths]
  assert sorted(held) == sorted(shapes)


def test_there_and_back_is_the_identity(golden, tmp_path):
  architecture, model, params, _ = golden
  foreign = architecture.write(model.config)
  (tmp_path / "config.json").write_text(
    json.dumps({**foreign, "architectures": [architecture.name]})
  )
  plan = huggingface.foreign_tensors(architecture, params)
  safetensors.write_folder(tmp_path, plan, "F32")
  again, block, tensors, biasless = huggingface.open_model(tmp_path)
  assert again is architecture and build.build("model", block).config.use_bias == (
    model.config.use_bias
  )
  abstract = abstract_params(build.build("model", block))
  back = matching.load(
    huggingface.match(tensors, architecture, abstract, biasless), abstract
  )
  assert tree.sha256(back) == tree.sha256(params)
  assert architecture.write(build.build("model", block).config) == foreign


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_files_come_back_bit_for_bit(name, tmp_path):
  architecture, _, params = load(name)
  plan = huggingface.foreign_tensors(architecture, params)
  safetensors.write_folder(tmp_path, plan, "F32", max_bytes=3000)
  assert (tmp_path / "model.safetensors.index.json").exists()
  ours = safetensors.open_folder(tmp_path)
  theirs = safetensors.open_folder(GOLDEN / name)
  assert ours.keys() == theirs.keys()
  for key in ours:
    np.testing.assert_array_equal(ours[key].view(), theirs[key].view())


@pytest.mark.parametrize("name", ["gpt2", "llama_attention_bias"])
@pytest.mark.parametrize("mesh", [dict(fsdp=8, data=1), dict(data=4, fsdp=2)])
def test_scanned_and_sharded_are_the_same(name, mesh):
  _, _, params = load(name)
  _, model, stacked = load(name, scan_layers=True, **mesh)
  assert tree.sha256(transformer.stack(params)) == tree.sha256(stacked)
  abstract = abstract_params(model, **mesh)
  same = jax.tree.map(lambda x, y: x.sharding == y.sharding, stacked, abstract)
  assert all(jax.tree.leaves(same))


def test_parts_are_views():
  """Else every shard would read the whole tensor."""
  architecture, _, tensors, _ = huggingface.open_model(GOLDEN / "gpt2")
  abstract = abstract_params(
    build.build("model", huggingface.open_model(GOLDEN / "gpt2")[1])
  )
  for path, (row, tensor) in huggingface.match(tensors, architecture, abstract).items():
    view = tensor.view()
    shape = matching.unrolled_shapes(abstract)[path]
    assert np.shares_memory(row.part(view, path, shape), view), path


def test_what_no_format_expresses():
  config = transformer.Config(8, 8, 1, 8, 2, window=4)
  with pytest.raises(ValueError, match="window=4"):
    architectures.fitting(config)
