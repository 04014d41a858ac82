"""LoRA of a DiT: equal to what PEFT computes, in and out, trained and drawn with."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as safetensors_numpy

import gen_jax
from gen_jax import types
from gen_jax.models import dit, labels
from tests.convert import test_dit as tiny

pytestmark = pytest.mark.usefixtures("one_device")
ADAPTER = tiny.GOLDEN / "adapter"
run = tiny.run
FAST = tuple(
  f"--config.optimizer.learning_rate.{key}" for key in ("peak=0.05", "warmup_steps=0")
)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
  """Workdirs of the base, and of PEFT's adapter around it."""
  base, home = (tmp_path_factory.mktemp("dit") / name for name in ("base", "adapted"))
  pipeline = tiny.whole_pipeline(base.parent / "pipeline")
  run("import", "--from", pipeline, "--workdir", base, *tiny.MESH)
  words = ("import", "--from", ADAPTER, "--base", base)
  run(*words, "--workdir", home, *tiny.MESH)
  return base, home


def arrays(folder, stem="adapter_model"):
  return safetensors_numpy.load_file(folder / f"{stem}.safetensors")


def output(params):
  model = tiny.read()
  with np.load(tiny.GOLDEN / "expected.npz") as file:
    expected = dict(file)
  t = jnp.float32((expected["timesteps"] + 1) / 1000.0)
  encoder = labels.LabelEncoder(model.labels)
  states = encoder.apply({"params": params["labels"]}, expected["labels"])
  apply = jax.jit(dit.DiT(model.network).apply)
  return apply({"params": params["dit"]}, expected["x"], t, states)


def test_what_peft_computes_comes_in_and_goes_out(adapted, tmp_path):
  base, home = adapted
  with np.load(tiny.GOLDEN / "expected.npz") as file:
    expected = file["adapted"][..., :4]
  tiny.close(output(gen_jax.open(home).weights().params), expected, 1e-4)
  plain = output(gen_jax.open(base).weights().params)
  assert np.abs(plain - expected).max() > 0.05 * np.abs(expected).max()
  run("export", "--adapter", "--workdir", home, "--to", tmp_path / "out")
  before, after = changes(ADAPTER), changes(tmp_path / "out")
  assert before.keys() == after.keys() and len(before) == 2 * 5 + 2
  for name, change in before.items():
    np.testing.assert_allclose(after[name], change, rtol=1e-5, atol=1e-6)
  config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
  assert config["task_type"] is None and config["peft_type"] == "LORA"
  every = arrays(tiny.GOLDEN / "transformer", tiny.STEM)
  modules = {name.removesuffix(".weight") for name in every}
  ends = tuple(f".{end}" for end in config["target_modules"])
  modules |= {m[:at] for m in modules for at in range(len(m)) if m[at] == "."}
  assert {m for m in modules if f".{m}".endswith(ends)} == set(after)


def changes(folder):
  """{module: change of its weight}, by PEFT's rules, in NumPy alone."""
  config = json.loads((folder / "adapter_config.json").read_text())
  found, start = arrays(folder), "base_model.model."

  def own(patterns, module, usual):
    ends = (v for key, v in patterns.items() if f".{module}".endswith(f".{key}"))
    return next(ends, usual)

  result = {}
  for name in (name for name in found if ".lora_A." in name):
    module = name.removeprefix(start).removesuffix(".lora_A.weight")
    down, up = found[name], found[name.replace("lora_A", "lora_B")]
    rank = own(config["rank_pattern"], module, config["r"])
    assert len(down) == rank
    scale = own(config["alpha_pattern"], module, config["lora_alpha"]) / rank
    result[module] = scale * up.reshape(len(up), -1) @ down.reshape(rank, -1)
  return result


def test_diffusers_names_and_merged_weights(adapted, tmp_path):
  """`transformer.M.lora_A.weight`; the whole model exported is the base and changes."""
  base, _ = adapted
  (folder := tmp_path / "named").mkdir()
  found = {
    name.replace("base_model.model.", "transformer."): value
    for name, value in arrays(ADAPTER).items()
  }
  ones = {
    name: np.array(len(v), np.float32)
    for name, v in found.items()
    if ".lora_A." in name
  }
  found |= {name.replace("lora_A.weight", "alpha"): v for name, v in ones.items()}
  file = folder / "pytorch_lora_weights.safetensors"
  safetensors_numpy.save_file(found, file)
  again = tmp_path / "again"
  run("import", "--from", folder, "--base", base, "--workdir", again, *tiny.MESH)
  run("export", "--workdir", again, "--to", tmp_path / "whole")
  was = arrays(tiny.GOLDEN / "transformer", tiny.STEM)
  now = arrays(tmp_path / "whole" / "transformer", tiny.STEM)
  wanted = {  # without scales: alpha is the rank
    name.removesuffix(".lora_A.weight").removeprefix("transformer."): (
      lambda up, down: up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    )(found[name.replace("lora_A", "lora_B")], found[name])
    for name in ones
  }
  for name, tensor in now.items():
    change = wanted.get(name.removesuffix(".weight"), np.zeros(()))
    if change.ndim:
      change = change.reshape(tensor.shape)
    np.testing.assert_allclose(tensor - was[name], change, atol=1e-5)


def test_an_adapter_is_trained_and_drawn_with(tmp_path):
  """Of pixels, from a run of ours; imported around its base it is the same model."""
  base, home, again = (tmp_path / name for name in ("base", "home", "again"))
  short = ("--config.train.num_steps=4", "--config.evaluators={}")
  how = (*short, *FAST, *tiny.MESH)  # the base is zero before its first steps
  config = ("train", "--config", "configs/diffusion/dit.py:smoke")
  run(*config, "--workdir", base, *how)
  start = f"--config.init_from.workdir={base}"
  own = ("--config.adapter.name=lora", "--config.train.ema_decay=None")
  run(*config, "--workdir", home, *how, start, *own)
  opened, plain = gen_jax.open(home), gen_jax.open(base)
  learned = opened.adapter_weights("latest", None).params
  assert all(np.asarray(x).any() for x in jax.tree.leaves(learned))
  drawn = opened.generate("seven", num=2, num_steps=2)
  assert (drawn != plain.generate("seven", num=2, num_steps=2)).any()
  run("export", "--adapter", "--workdir", home, "--to", tmp_path / "out")
  words = ("import", "--from", tmp_path / "out", "--base", base, "--workdir", again)
  run(*words, *tiny.MESH)
  np.testing.assert_array_equal(
    gen_jax.open(again).generate("seven", num=2, num_steps=2), drawn
  )


def test_what_has_no_place_is_refused(adapted, tmp_path):
  base, home = adapted
  words = ("export", "--adapter", "--workdir", home, "--to")
  with pytest.raises(types.InputError, match="a DiT's adapter is a folder of PEFT"):
    run(*words, tmp_path / "one.safetensors")
  folder = shutil.copytree(ADAPTER, tmp_path / "folder")
  found = arrays(folder)
  name = next(name for name in found if "block" in name and "to_q.lora_A" in name)
  embedder = name.replace("attn1.to_q", "norm1.emb.timestep_embedder.linear_1")
  found[embedder] = found[name]
  safetensors_numpy.save_file(found, folder / "adapter_model.safetensors")
  with pytest.raises(types.InputError, match="timestep_embedder_linear_1"):
    run("import", "--from", folder, "--base", base, "--workdir", tmp_path / "w")
  assert not (tmp_path / "w").exists()
