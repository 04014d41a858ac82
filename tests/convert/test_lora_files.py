"""LoRA files: merged as diffusers merges them, all of their tensors or none."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import safetensors, tree, types
from gen_jax.cli import main
from gen_jax.convert import diffusers, lora_files, matching, stable_diffusion
from tests.convert import test_stable_diffusion as tiny

V1 = tiny.GOLDEN / "v1"
FILES = ("lora_diffusers", "lora_kohya")


@pytest.fixture(scope="module")
def base():
  """The tiny v1: its networks, places of its weights, shapes, and expected outputs."""
  opened = diffusers.open_folder(V1)
  abstract, models = tiny.abstract_params(opened), opened.models()
  places = {
    name: stable_diffusion.match(
      model, opened.tensors[name], abstract[name], opened.column
    )
    for name, model in models.items()
  }
  with np.load(V1 / "expected.npz") as one, np.load(V1 / "expected_lora.npz") as two:
    expected = {**one, **two}
  return tiny.modules(opened.task), places, models, abstract, expected


def plans_of(models, abstract):
  """The tensors that LoRA files may change."""
  column = stable_diffusion.FOLDER
  return {n: models[n].plan(abstract[n], column) for n in lora_files.NETWORKS}


def load(base, file, scale):
  """Weights with a file merged."""
  _, places, models, abstract, _ = base
  merged = lora_files.merge(file, scale, places, plans_of(models, abstract))
  return {name: matching.load(merged[name], abstract[name]) for name in abstract}


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_both_spellings_do_what_diffusers_does(base, name):
  nets, *_, expected = base
  params = load(base, V1 / f"{name}.safetensors", float(expected["scale"]))
  ids = expected["ids"][:2]
  states = nets["text_encoder"].apply({"params": params["text_encoder"]}, ids, None)
  tiny.close(states.tokens, expected[f"{name}/states"], 1e-5)
  t = jnp.float32((expected["timesteps"] + 1) / 1000.0)
  out = nets["unet"].apply({"params": params["unet"]}, expected["x"], t, states)
  tiny.close(out, expected[f"{name}/out"], 1e-4)


def test_scale_0_is_the_base_and_files_add_up(base):
  _, places, models, abstract, _ = base
  plain = matching.load(places["unet"], abstract["unet"])
  none = load(base, V1 / "lora_kohya.safetensors", 0.0)["unet"]

  def kernel(p):
    return np.asarray(p["down_0_0"]["conv_in"]["kernel"])

  np.testing.assert_array_equal(kernel(none), kernel(plain))
  twice = places
  for scale in (0.3, 0.4):
    file = V1 / "lora_kohya.safetensors"
    twice = lora_files.merge(file, scale, twice, plans_of(models, abstract))
  twice = matching.load(twice["unet"], abstract["unet"])
  once = load(base, V1 / "lora_kohya.safetensors", 0.7)["unet"]
  assert np.abs(kernel(once) - kernel(plain)).max() > 0.01
  np.testing.assert_allclose(kernel(twice), kernel(once), atol=1e-6)


def rewritten(target, change, name="lora_kohya"):
  arrays = {
    key: np.array(t.view())
    for key, t in safetensors.read_header(V1 / f"{name}.safetensors").items()
  }
  change(arrays)
  plan = {k: safetensors.LazyTensor(a.shape, lambda a=a: a) for k, a in arrays.items()}
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
    (_elsewhere, "has no module mid_block_resnets_7_conv1"),
    (_alone, "mid_block.resnets.0.conv1.weight"),
    (_narrow, "mid_block.resnets.0.conv1.weight"),
  ],
)
def test_what_does_not_fit_is_named_and_refused(base, tmp_path, change, named):
  file = rewritten(tmp_path / "lora.safetensors", change)
  with pytest.raises(types.InputError, match=named):
    load(base, file, 1.0)


def write(file, tensors, metadata=()):
  """A safetensors file, whatever its dtypes and metadata."""
  head, at = ({"__metadata__": metadata} if metadata != () else {}), 0
  for name, x in tensors.items():
    dtype = next(k for k, v in safetensors.NUMBERS.items() if v == x.dtype)
    span = [at, at + x.nbytes]
    head[name] = {"dtype": dtype, "shape": x.shape, "data_offsets": span}
    at += x.nbytes
  content = b"".join(x.tobytes() for x in tensors.values())
  head = json.dumps(head).encode()
  file.write_bytes(len(head).to_bytes(8, "little") + head + content)
  return file


def arrays_of(name):
  tensors = safetensors.read_header(V1 / f"{name}.safetensors")
  return {key: np.array(t.view()) for key, t in tensors.items()}


def same_weights(a, b):
  return all(tree.sha256(a[network]) == tree.sha256(b[network]) for network in a)


@pytest.mark.parametrize("dtype", safetensors.NUMBERS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_alpha_may_be_a_number_of_any_dtype_and_shape(base, tmp_path, dtype, shape):
  arrays = arrays_of("lora_kohya")

  def alpha(dtype):
    return {
      k: np.full(shape, 3, dtype) if k.endswith(".alpha") else v
      for k, v in arrays.items()
    }

  dtype = safetensors.NUMBERS[dtype]
  one = write(tmp_path / "one.safetensors", alpha(np.float32))
  two = write(tmp_path / "two.safetensors", alpha(dtype))
  assert same_weights(load(base, one, 1.0), load(base, two, 1.0))


@pytest.mark.parametrize("alpha", [np.zeros((0,)), np.ones(2), np.float64("nan")])
def test_an_alpha_that_is_no_number_is_refused(base, tmp_path, alpha):
  arrays = {**arrays_of("lora_kohya"), f"{KEY}.alpha": np.asarray(alpha)}
  with pytest.raises(types.InputError, match="must be one number"):
    load(base, write(tmp_path / "lora.safetensors", arrays), 1.0)


def _processors(prefix):
  """Names of diffusers until 2023; of attention alone, which is all there was then."""

  def rename(name):
    half = {"lora_A": "down", "lora_B": "up"}[name.split(".")[-2]]
    network, _, module = name.rpartition(".lora_")[0].partition(".")
    module, _, part = module.removesuffix(".0").rpartition(".")
    prefixed = f"{network}." if prefix or network != "unet" else ""
    if network == "unet":
      return f"{prefixed}{module}.processor.{part}_lora.{half}.weight"
    part = f"to_{part.removesuffix('_proj')}_lora"
    return f"{prefixed}text_model.{module}.{part}.{half}.weight"

  return rename


def _linear_layers(name):
  name = name.replace("lora_A", "lora_linear_layer.down")
  return name.replace("lora_B", "lora_linear_layer.up")


SPELLINGS = {
  "lora.down": lambda name: name.replace("_A", ".down").replace("_B", ".up"),
  "lora_linear_layer": _linear_layers,
  "processors": _processors(True),
  "bare processors": _processors(False),
  "default": lambda name: name.replace(".weight", ".default.weight"),
  "peft": lambda name: name.replace("unet.", "unet.base_model.model."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_all_spellings_are_the_same_change(base, tmp_path, spelling):
  arrays = {
    name: x
    for name, x in arrays_of("lora_diffusers").items()
    if ".attn" in name or ".self_attn" in name
  }
  renamed = {SPELLINGS[spelling](name): x for name, x in arrays.items()}
  assert len(renamed) == len(arrays) and renamed.keys() != arrays.keys()
  (tmp_path / "adapter_config.json").write_text("{}")
  one = write(tmp_path / "one.safetensors", arrays)
  two = write(tmp_path / "two.safetensors", renamed)
  assert same_weights(load(base, one, 1.0), load(base, two, 1.0))


def test_peft_keeps_alpha_in_a_file_of_its_own(base, tmp_path):
  arrays = {
    name: x for name, x in arrays_of("lora_diffusers").items() if "unet" in name
  }
  renamed = {f"base_model.model.{n.removeprefix('unet.')}": arrays[n] for n in arrays}
  two = write(tmp_path / "two.safetensors", renamed)
  with pytest.raises(types.InputError, match=r"adapter_config\.json"):
    load(base, two, 1.0)
  settings = tmp_path / "adapter_config.json"
  settings.write_text('{"peft_type": "LORA", "lora_alpha": 5, "use_rslora": false}')
  metadata = {"lora_adapter_metadata": '{"unet.lora_alpha": 5}'}
  one = write(tmp_path / "one.safetensors", arrays, metadata)
  assert same_weights(load(base, one, 1.0), load(base, two, 1.0))
  assert not same_weights(load(base, one, 1.0), load(base, one, 0.0))
  settings.write_text('{"lora_alpha": 5, "use_dora": true}')
  with pytest.raises(types.InputError, match="use_dora=True"):
    load(base, two, 1.0)


def test_rank_stabilised_scales_and_patterns(base, tmp_path):
  """alpha / sqrt(r); an alpha of their own for some modules."""
  arrays = {k: v for k, v in arrays_of("lora_diffusers").items() if "attn1.to_q" in k}

  def written(name, **settings):
    about = json.dumps({f"unet.{key}": value for key, value in settings.items()})
    file = tmp_path / f"{name}.safetensors"
    return write(file, arrays, {"lora_adapter_metadata": about})

  plain = load(base, written("one", lora_alpha=6), 2**-0.5)  # r is 2
  stable = load(base, written("two", lora_alpha=3, use_rslora=True), 1.0)
  for name in ("to_q", "o_q", "^to_q"):
    named = load(base, written("three", lora_alpha=1, alpha_pattern={name: 6}), 2**-0.5)
    same = tree.flatten(jax.tree.map(np.array_equal, named, plain))
    assert all(same.values()) == (name == "to_q")
  patterns = {"attn1.to_q": 6, "to_q": 9}  # the first that fits decides
  named = load(base, written("four", lora_alpha=1, alpha_pattern=patterns), 2**-0.5)
  for a, b in ((named, plain), (stable, plain)):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


@pytest.mark.parametrize(
  "metadata, says",
  [
    ({"lora_adapter_metadata": '{"unet.use_rslora": "yes"}'}, "use_rslora"),
    ({"lora_adapter_metadata": '{"unet.alpha_pattern": {"(a*)*": 1}}'}, "alpha_patt"),
    ({"lora_adapter_metadata": '{"unet.alpha_pattern": {"to_q": "a"}}'}, "alpha='a'"),
    ({"lora_adapter_metadata": '{"unet.alpha_pattern": [1]}'}, "alpha_pattern"),
    ({"lora_adapter_metadata": '{"unet.init_lora_weights": "pissa"}'}, "pissa"),
    ({"lora_adapter_metadata": '{"unet.lora_alpha": "many"}'}, "alpha='many'"),
    ({"lora_adapter_metadata": '{"unet.lora_alpha": true}'}, "alpha=True"),
    ({"lora_adapter_metadata": '{"unet.lora_alpha": 1e999}'}, "alpha=inf"),
    ({"lora_adapter_metadata": "[1]"}, "does not hold an object"),
    ({"lora_adapter_metadata": "{"}, "is not JSON"),
    ({"lora_adapter_metadata": "[" * 100_000}, "is nested too deeply"),
    ({"lora_adapter_metadata": 3}, "__metadata__ must hold texts"),
    ([1], "__metadata__ must hold texts"),
    ("text", "__metadata__ must hold texts"),
    (None, "__metadata__ must hold texts"),
  ],
)
def test_odd_metadata_is_one_line(base, tmp_path, metadata, says):
  file = write(
    tmp_path / "lora.safetensors", arrays_of("lora_diffusers"), metadata=metadata
  )
  with pytest.raises(types.InputError, match=says):
    load(base, file, 1.0)


def test_import_merges_and_says_what(tmp_path):
  def run(*words):
    return main.run([str(w) for w in words])

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
