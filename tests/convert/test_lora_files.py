"""LoRA files: merged as diffusers merges them, all of their tensors or none."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import types
from gen_jax.cli import main
from gen_jax.convert import (
  diffusers,
  huggingface,
  lora_files,
  safetensors,
  stable_diffusion,
)
from tests.convert import test_stable_diffusion as tiny

V1 = tiny.GOLDEN / "v1"
FILES = ("lora_diffusers", "lora_kohya")


@pytest.fixture(scope="module")
def base():
  """The tiny v1: its networks, places of its weights, shapes, and expected outputs."""
  opened = diffusers.open_folder(V1)
  goal, models = tiny.abstract(opened), opened.models()
  places = {
    name: stable_diffusion.match(model, opened.tensors[name], goal[name], opened.column)
    for name, model in models.items()
  }
  with np.load(V1 / "expected.npz") as one, np.load(V1 / "expected_lora.npz") as two:
    expected = {**one, **two}
  return tiny.modules(opened.task), places, models, goal, expected


def load(base, file, scale):
  """Weights with a file merged."""
  _, places, models, goal, _ = base
  merged = lora_files.merge(file, scale, places, models, goal)
  return {name: huggingface.load(merged[name], goal[name]) for name in goal}


@pytest.mark.parametrize("name", FILES)
def test_both_spellings_do_what_diffusers_does(base, name):
  nets, *_, expected = base
  params = load(base, V1 / f"{name}.safetensors", float(expected["scale"]))
  ids = expected["ids"][:2]
  states = nets["text_encoder"].apply({"params": params["text_encoder"]}, ids, None)
  states = states.values
  tiny.close(states, expected[f"{name}/states"], 1e-5)
  t = jnp.float32((expected["timesteps"] + 1) / 1000.0)
  out = nets["unet"].apply({"params": params["unet"]}, expected["x"], t, states)
  tiny.close(out, expected[f"{name}/out"], 1e-4)


def test_scale_0_is_the_base_and_files_add_up(base):
  _, places, models, goal, _ = base
  plain = huggingface.load(places["unet"], goal["unet"])
  none = load(base, V1 / "lora_kohya.safetensors", 0.0)["unet"]
  kernel = lambda p: np.asarray(p["down_0_0"]["conv_in"]["kernel"])  # noqa: E731
  np.testing.assert_array_equal(kernel(none), kernel(plain))
  twice = places
  for scale in (0.3, 0.4):
    file = V1 / "lora_kohya.safetensors"
    twice = lora_files.merge(file, scale, twice, models, goal)
  twice = huggingface.load(twice["unet"], goal["unet"])
  once = load(base, V1 / "lora_kohya.safetensors", 0.7)["unet"]
  assert np.abs(kernel(once) - kernel(plain)).max() > 0.01
  np.testing.assert_allclose(kernel(twice), kernel(once), atol=1e-6)


def rewritten(target, change, name="lora_kohya"):
  arrays = {
    key: np.array(t.view())
    for key, t in safetensors.read_header(V1 / f"{name}.safetensors").items()
  }
  change(arrays)
  plan = {k: safetensors.Planned(a.shape, lambda a=a: a) for k, a in arrays.items()}
  safetensors.write_file(target, plan, plan, "F32")
  return target


KEY = "lora_unet_mid_block_resnets_0_conv1"


def _strange(arrays):
  arrays[f"{KEY}.hada_w1_a"] = np.zeros((2, 2))


def _elsewhere(arrays):
  arrays["lora_unet_mid_block_resnets_7_conv1.alpha"] = arrays.pop(f"{KEY}.alpha")


def _alone(arrays):
  del arrays[f"{KEY}.lora_up.weight"]


def _narrow(arrays):
  arrays[f"{KEY}.lora_up.weight"] = arrays[f"{KEY}.lora_up.weight"][:-1]


@pytest.mark.parametrize(
  "change, named",
  [
    (_strange, "hada_w1_a"),
    (_elsewhere, "mid_block_resnets_7_conv1 is no module"),
    (_alone, "mid_block.resnets.0.conv1.weight"),
    (_narrow, "mid_block.resnets.0.conv1.weight"),
  ],
)
def test_what_does_not_fit_is_named_and_refused(base, tmp_path, change, named):
  file = rewritten(tmp_path / "lora.safetensors", change)
  with pytest.raises(types.InputError, match=named):
    load(base, file, 1.0)


def test_metadata_that_asks_for_other_scales_is_refused(base, tmp_path):
  content = (V1 / "lora_diffusers.safetensors").read_bytes()
  size = int.from_bytes(content[:8], "little")
  head = json.loads(content[8 : 8 + size])
  key = "lora_adapter_metadata"
  found = json.loads(head["__metadata__"][key])
  head["__metadata__"][key] = json.dumps({**found, "unet.use_rslora": True})
  head = json.dumps(head).encode()
  file = tmp_path / "lora.safetensors"
  file.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + size :])
  with pytest.raises(types.InputError, match="use_rslora"):
    load(base, file, 1.0)


def test_import_merges_and_says_what(tmp_path):
  run = lambda *words: main.run([str(w) for w in words])  # noqa: E731
  words = ("import", "--from", V1, "--workdir", tmp_path / "w", *tiny.MESH)
  file = V1 / "lora_kohya.safetensors"
  with pytest.raises(types.InputError, match="--lora_scale"):
    run(*words, "--lora", file, "--lora_scale", 1, "--lora_scale", 2)
  with pytest.raises(types.InputError, match="absent"):
    run(*words, "--lora", tmp_path / "absent.safetensors")
  assert not (tmp_path / "w").exists()
  made = run(*words, "--lora", file, "--lora_scale", 0.7)
  assert [scale for _, scale, _ in made["lora"]] == [0.7]
  run("export", "--workdir", tmp_path / "w", "--to", tmp_path / "out")
  name = "mid_block.resnets.0.conv1.weight"
  before, after = (
    diffusers.open_folder(folder).tensors["unet"][name].view()
    for folder in (V1, tmp_path / "out")
  )
  parts = safetensors.read_header(file)
  up, down = (parts[f"{KEY}.lora_{p}.weight"].view() for p in ("up", "down"))
  change = 0.7 * 1.5 * np.einsum("oruv,rihw->oihw", up, down)
  np.testing.assert_allclose(after, before + change, atol=1e-6)


def test_a_language_model_takes_none(tmp_path):
  folder = shutil.copytree(
    pathlib.Path(__file__).parents[1] / "golden" / "gpt2", tmp_path / "gpt2"
  )
  words = ("import", "--from", folder, "--workdir", tmp_path / "w", "--lora", "x")
  with pytest.raises(types.InputError, match="--lora is for"):
    main.run([str(w) for w in words])
