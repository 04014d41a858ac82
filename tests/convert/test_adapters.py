"""Adapters in and out, unmerged: as PEFT, diffusers and kohya have them."""

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

import gen_jax
from gen_jax import rng, safetensors, tree, types
from gen_jax.convert import adapters, lora_files, matching
from gen_jax.models import transformer
from gen_jax.tasks import lora
from tests.cli import conftest

pytestmark = pytest.mark.usefixtures("one_device")
ROOT = pathlib.Path(__file__).parents[1]
BASES, GOLDEN = ROOT / "golden", ROOT / "golden_adapters"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/adapter_config.json"))
SCANNED = ("llama_grouped", "llama_tied")
call, refuse = conftest.call, conftest.refuse


def logits(workdir, tokens):
  run = gen_jax.open(workdir)
  apply = jax.jit(run.experiment.task.model.apply)
  return apply({"params": run.weights().params}, tokens)[0]


def arrays(file):
  return {k: np.array(t.view()) for k, t in safetensors.read_header(file).items()}


@pytest.fixture(scope="module", params=NAMES)
def imported(request, tmp_path_factory):
  """The adapted workdir, and the golden's folder."""
  home, name = tmp_path_factory.mktemp(request.param), request.param
  scan = ("--scan_layers",) * (name in SCANNED)
  run = conftest.main.run
  base = ("import", "--from", BASES / name, "--workdir", home / "base", *scan)
  run([str(word) for word in base])
  words = ("import", "--from", GOLDEN / name, "--base", home / "base")
  run([str(word) for word in (*words, "--workdir", home / "adapted")])
  return home / "adapted", GOLDEN / name


def test_what_peft_computes(imported):
  workdir, golden = imported
  with np.load(golden / "expected.npz") as expected:
    ours = logits(workdir, expected["tokens"])
    plain = logits(workdir.parent / "base", expected["tokens"])
    span = np.ptp(expected["logits"])
    np.testing.assert_allclose(ours, expected["logits"], atol=1e-4 * span)
    assert np.abs(plain - expected["logits"]).max() > 0.05 * span


def changes(folder):
  """{module: change of its weight [out, in]}, by PEFT's rules, in NumPy alone."""
  config = json.loads((folder / "adapter_config.json").read_text())
  found = arrays(folder / "adapter_model.safetensors")

  def own(name, module, usual):
    for key, value in (config[name] or {}).items():
      if re.match(rf"(.*\.)?({key})$", module):
        return value
    return usual

  result = {}
  for name, down in found.items():
    module, half = name.removeprefix("base_model.model.").split(".lora_")
    if half == "B.weight":
      continue
    rank = own("rank_pattern", module, config["r"])
    alpha = own("alpha_pattern", module, config["lora_alpha"])
    assert len(down) == rank
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    result[module] = scale * found[name.replace("lora_A", "lora_B")] @ down
  targets = config["target_modules"]
  assert all(any(f".{m}".endswith(f".{t}") for t in targets) for m in result)
  return result


def test_export_inverts_import(imported, tmp_path):
  workdir, golden = imported
  words = ("export", "--adapter", "--workdir", workdir, "--to", tmp_path / "out")
  conftest.main.run([str(word) for word in words])
  before, after = changes(golden), changes(tmp_path / "out")
  known = workdir.parent.name.startswith("llama_tied")
  silent = {m for m, change in after.items() if not change.any()}
  assert silent == ({m.replace("1", "0") for m in before} if known else set())
  assert after.keys() - silent == before.keys()
  for module, change in before.items():
    np.testing.assert_allclose(after[module], change, rtol=1e-5, atol=1e-6)
  if golden.name == "llama":  # one rank and one alpha: nothing is rounded
    one, two = (
      arrays(f / "adapter_model.safetensors") for f in (golden, tmp_path / "out")
    )
    assert tree.sha256(one) == tree.sha256(two)


FILES = ROOT / "golden_pictures" / "v1"
MESH = ("--config.mesh.data=-1", "--config.mesh.fsdp=1")  # 12 does not divide by 8


def run(*words):
  return conftest.main.run([str(word) for word in words])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  """Stable Diffusion's tiny v1, with kohya's file merged, and around it."""
  home = tmp_path_factory.mktemp("drawn")
  file = FILES / "lora_kohya.safetensors"
  run("import", "--from", FILES, "--workdir", home / "base", *MESH)
  run("import", "--from", FILES, "--workdir", home / "merged", "--lora", file, *MESH)
  words = ("import", "--from", file, "--base", home / "base")
  run(*words, "--workdir", home / "adapted", *MESH)
  return home


def weights(workdir):
  return jax.tree.map(np.asarray, gen_jax.open(workdir).weights().params)


def close(one, two):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)


@pytest.mark.long
def test_an_adapter_of_images_is_what_merging_gives(drawn):
  close(weights(drawn / "adapted"), weights(drawn / "merged"))
  block = gen_jax.open(drawn / "adapted").config["adapter"]
  assert (block["rank"], block["alpha"]) == (2, 3.0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["lora.safetensors", "lora"])
def test_files_of_kohya_and_diffusers_are_read_back(drawn, tmp_path, name):
  words = ("export", "--adapter", "--workdir", drawn / "adapted", "--to")
  run(*words, tmp_path / name)
  file = tmp_path / name
  file = file if file.is_file() else file / "pytorch_lora_weights.safetensors"
  found = arrays(file)
  if name == "lora.safetensors":  # as it came: every name, shape and number
    before = arrays(FILES / "lora_kohya.safetensors")
    assert found.keys() == before.keys()
    for key, value in before.items():
      np.testing.assert_array_equal(found[key].reshape(value.shape), value)
  else:
    ends = {key.split(".lora_")[-1] for key in found}
    assert ends == {"A.weight", "B.weight"}
  again = ("import", "--from", tmp_path / name, "--base", drawn / "base")
  run(*again, "--workdir", tmp_path / "again", *MESH)
  close(weights(tmp_path / "again"), weights(drawn / "merged"))


def test_the_base_may_go(drawn, tmp_path):
  """The base and what it works in are in the workdir; the whole is exported."""
  copy = shutil.copytree(drawn / "adapted", tmp_path / "adapted")
  config = json.loads((copy / "config.json").read_text())
  assert config["init_from"]["workdir"] == str(drawn / "base")
  moved = drawn / "base"
  moved.rename(drawn / "gone")
  try:
    run("export", "--workdir", copy, "--to", tmp_path / "whole")
  finally:
    (drawn / "gone").rename(moved)
  run("import", "--from", tmp_path / "whole", "--workdir", tmp_path / "again", *MESH)
  close(weights(tmp_path / "again"), weights(drawn / "merged"))


PATTERNS = {
  "llama": r"attention/(query|out)/kernel$|mlp/gate/kernel$",
  "gpt2": r"attention/(query|value)/kernel$|block_1/mlp/up/kernel$",
}


@pytest.mark.parametrize("name", [*PATTERNS, "drawn"])
def test_modules_hold_what_is_merged(name, drawn, tmp_path):
  """In their own format: merged weights minus the base's are scale * up down."""
  if name != "drawn":
    words = ("import", "--from", BASES / name, "--workdir", tmp_path / name)
    run(*words, *(["--scan_layers"] if name == "llama" else []))
  opened = gen_jax.open(drawn / "base" if name == "drawn" else tmp_path / name)
  model, params = opened.experiment, opened.weights().params
  config = lora.LoRA(3, 6.0, PATTERNS.get(name, "(mlp/gate|query|proj_in|conv_in)/ker"))
  boxed = jax.eval_shape(model.task.init, jax.random.key(0), model.batch())
  made = lora.init(config, boxed, jax.random.key(1))
  made = jax.tree.map(lambda x: x.value, made, is_leaf=lambda x: hasattr(x, "value"))
  made = tree.map_with_path(  # b as well
    lambda path, x: jax.random.normal(rng.named(jax.random.key(2), path), x.shape), made
  )
  plans = opened.family.adapter_plans(model, opened.origin())
  written = adapters.write(made, plans, "it")
  merged = lora.merge(params, made, config.scale)
  changed = set()
  for network, plan in plans.items():
    home = adapters.home(network).removesuffix("/")
    sides = [p[home] if home else p for p in (params, merged)]
    before, after = (matching.foreign_tensors(plan, side) for side in sides)
    for key, (entry, shape) in plan.items():
      change = after[key].make() - before[key].make()
      module = written[network].get(key.removesuffix(".weight"))
      if module is None:
        assert not change.any(), key
        continue
      up, down = (half.reshape(len(half), -1) for half in (module.up, module.down))
      wanted = config.scale * (up @ down)
      change = (
        change.reshape(lora_files.out_first(entry, shape))
        if len(shape) == 4
        else (change if entry.transposed else change.T)
      )
      np.testing.assert_allclose(change.reshape(wanted.shape), wanted, atol=1e-4)
      changed.add(module.parts)
  assert changed == ({1, 2} if name == "gpt2" else {1})


def _tensors(change):
  def rewrite(folder):
    file = folder / "adapter_model.safetensors"
    found = arrays(file)
    change(found)
    plan = {k: safetensors.LazyTensor(a.shape, lambda a=a: a) for k, a in found.items()}
    safetensors.write_file(file, plan, plan, "F32")

  return rewrite


def _settings(**keys):
  def rewrite(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))

  return rewrite


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def _alone(found):
  del found[KEY]


def _narrow(found):
  found[KEY] = found[KEY][:, 1:]


def _rank(found):
  found[KEY] = found[KEY][1:]


def _deeper(found):
  found[KEY.replace("layers.0", "layers.7")] = found[KEY]


def _head(found):
  found["base_model.model.lm_head.weight"] = np.zeros((61, 16), np.float32)


def _nan(found):
  found[KEY][0, 0] = np.nan


def _other(folder):
  shutil.copytree(GOLDEN / "gpt2", folder, dirs_exist_ok=True)


def _pickle(folder):
  (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
  "damage, says",
  [
    (_other, ["does not fit", "no module transformer_h_0_attn_c_attn"]),
    (_tensors(_alone), ["layers.0.self_attn.q_proj.weight [16, 16] is not what"]),
    (_tensors(_narrow), ["layers.0.self_attn.q_proj.weight [16, 16] is not what"]),
    (_tensors(_rank), ["layers.0.self_attn.q_proj.weight [16, 16] is not what"]),
    (_tensors(_deeper), ["no module model_layers_7_self_attn_q_proj"]),
    (_tensors(_head), ["lm_head.weight (F32) is not understood"]),
    (_tensors(_nan), ["values that are not finite"]),
    (_tensors(dict.clear), ["holds no adapter"]),
    (_settings(use_dora=True), ["use_dora=True is not supported"]),
    (_settings(peft_type="IA3"), ["peft_type='IA3' is not supported"]),
    (_settings(lora_alpha="six"), ["alpha='six' must be one number"]),
    (_settings(alpha_pattern={"(a+)+": 1}), ["alpha_pattern", "names of modules"]),
    (_pickle, ["no adapter_model.safetensors", "never opened"]),
  ],
)
def test_bad_adapters(refuse, llama, tmp_path, damage, says):
  folder = shutil.copytree(GOLDEN / "llama", tmp_path / "adapter")
  damage(folder)
  words = ("import", "--from", folder, "--base", llama, "--workdir", tmp_path / "w")
  refuse(*words, says=says)
  assert not (tmp_path / "w").exists()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  """A base without an adapter."""
  home = tmp_path_factory.mktemp("llama") / "base"
  run("import", "--from", BASES / "llama", "--workdir", home)
  return home


def test_bad_words(refuse, llama, tmp_path):
  adapter, target = GOLDEN / "llama", tmp_path / "w"
  words = ("import", "--from", adapter, "--workdir", target)
  refuse(*words, says=["LoRA adapter of PEFT", "--base"])
  refuse(*words, "--base", tmp_path / "none", says=["none"])
  file = FILES / "lora_kohya.safetensors"
  words = ("import", "--from", file, "--workdir", target, "--base", llama)
  refuse(*words, says=["does not fit", "lora"])
  words = ("export", "--adapter", "--workdir", llama, "--to", target)
  refuse(*words, says=[f"{llama} has no adapter"])


def test_kernels_with_factors_of_mup_are_refused():
  model = transformer.Config(64, 8, 1, 32, 4, base_width=8)
  with pytest.raises(types.InputError, match="base_width=8"):
    lora_files.check_width(model)
  lora_files.check_width(dataclasses.replace(model, base_width=None))
