"""TAESD: equal to what its own network computes, and of use to diffusion on latents."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import gen_jax
from gen_jax import build, experiment, sharding, types
from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.cli import main
from gen_jax.convert import taesd
from gen_jax.runs import weights as weighing
from gen_jax.runs import workdir

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden_pictures"
MESH = ("--config.mesh.data=-1", "--config.mesh.fsdp=1")


def run(*words):
  return main.run([str(w) for w in words])


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  home = tmp_path_factory.mktemp("taesd") / "w"
  run("import", "--from", GOLDEN / "taesd", "--workdir", home, *MESH)
  return home


def test_it_computes_what_its_own_network_does(imported):
  run = gen_jax.open(imported)
  weights, net = run.weights().params["autoencoder"], run.experiment.task.autoencoder

  def apply(method, x):
    return net.apply({"params": weights}, x, method=method)

  with np.load(GOLDEN / "taesd" / "expected.npz") as file:
    expected = dict(file)
  posterior = apply("encode", expected["picture"])
  np.testing.assert_allclose(posterior.mean, expected["code"], atol=1e-5)
  assert not posterior.std.any()
  ours, theirs = apply("decode", expected["z"]), expected["decoded"]
  np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
  assert np.abs(expected["z"]).max() > 6  # the bound on latents is felt


def test_it_is_the_release_to_the_parameter():
  net = build.build("autoencoder", "tiny")
  shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 8, 8, 3)))
  sizes = {
    half: sum(x.size for x in jax.tree.leaves(sharding.unbox(shapes["params"][half])))
    for half in ("encoder", "decoder")
  }
  assert sizes == {"encoder": 1_222_532, "decoder": 1_222_531}


def test_diffusion_works_in_its_latents(imported, tmp_path):
  """By name in a new run; in place of another autoencoder, or refused there."""
  changes = {
    "task.codec": "latent",
    "task.codec.autoencoder": "tiny",
    "task.codec.autoencoder.width": "8",
    "task.codec.workdir": str(imported),
    "task.network.image_channels": "4",
    "data.channels": "3",
    "data.image_size": "16",
  }
  config = config_files.load(f"{ROOT}/configs/diffusion/digits.py:smoke")
  config = overriding.apply(config, list(changes.items()))
  with workdir.claim(tmp_path / "w", config):
    made = experiment.make(config, None)
    frozen = weighing.load_frozen(made, tmp_path / "w")
  with np.load(GOLDEN / "taesd" / "expected.npz") as file:
    image, code, z, decoded = (file[k] for k in ("picture", "code", "z", "decoded"))
  found = made.task.codec.encode(frozen, image, jax.random.split(jax.random.key(0)))
  np.testing.assert_allclose(found, code, atol=1e-5)  # nothing is drawn or rescaled
  other = weighing.with_autoencoder(made, imported)
  frozen = weighing.load_frozen(other, tmp_path / "w", imported)
  ours = other.task.codec.decode(frozen, z)
  np.testing.assert_allclose(ours, decoded, atol=1e-5 * np.abs(decoded).max())
  with pytest.raises(types.InputError, match="--autoencoder"):
    weighing.with_autoencoder(made, tmp_path / "w")
  config = overriding.apply(config, [("task.codec.autoencoder.num_levels", "3")])
  with pytest.raises(types.InputError, match="makes latents"):
    weighing.with_autoencoder(experiment.make(config, None), imported)


def test_its_code_has_no_divergence_to_weigh():
  block = {"name": "autoencoder", "autoencoder": {"name": "tiny", "width": 8}}
  with pytest.raises(types.InputError, match="kl_weight"):
    build.build("task", block)
  build.build("task", {**block, "kl_weight": 0.0})


def _lose(folder):
  (folder / "taesd_encoder.safetensors").unlink()


def _swap(folder):
  one, two = (folder / f"taesd_{half}.safetensors" for half in taesd.HALVES)
  shutil.copyfile(two, one)


@pytest.mark.parametrize(
  "change, named", [(_lose, "taesd_encoder"), (_swap, "encoder.0.weight is missing")]
)
def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path, change, named):
  folder = shutil.copytree(GOLDEN / "taesd", tmp_path / "model")
  change(folder)
  with pytest.raises(types.InputError, match=named):
    run("import", "--from", folder, "--workdir", tmp_path / "w", *MESH)
  assert not (tmp_path / "w").exists()


def test_latents_are_used_as_they_are(imported):
  found = json.loads((imported / "latents.json").read_text())
  assert (found["mean"], found["std"]) == ([0.0] * 4, [1.0] * 4)


@pytest.mark.parametrize("stem", [*taesd.OTHERS, "taehv"])
def test_what_decodes_the_latents_of_other_models_is_named(tmp_path, stem):
  """TAESDXL has the very same shapes: it would decode Stable Diffusion 1 wrongly."""
  folder = shutil.copytree(GOLDEN / "taesd", tmp_path / "model")
  for half, name in taesd.FILES.items():
    (folder / name).rename(folder / f"{stem}_{half}.safetensors")
  assert taesd.is_here(folder)
  what = taesd.OTHERS.get(stem, f"'{stem}'")
  with pytest.raises(
    types.InputError, match=f"{what}.*not supported; supported: TAESD"
  ):
    taesd.open_folder(folder)
