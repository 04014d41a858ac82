"""TAESD: equal to what its own network computes, and of use to diffusion on latents."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from gen_jax import build, experiment, sharding, types
from gen_jax.cli import config_args, main, trained, workdir
from gen_jax.convert import taesd

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
  made = experiment.make(workdir.read_config(imported), None)
  weights = trained.open_weights(made, imported).weights["autoencoder"]
  net = made.task.autoencoder
  apply = lambda method, x: net.apply({"params": weights}, x, method=method)  # noqa: E731
  with np.load(GOLDEN / "taesd" / "expected.npz") as file:
    expected = dict(file)
  posterior = apply("encode", expected["image"])
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
  config = config_args.load(f"{ROOT}/configs/diffusion/digits.py:smoke")
  config = config_args.apply(config, list(changes.items()))
  with workdir.claim(tmp_path / "w", config):
    made = trained.with_frozen(experiment.make(config, None), tmp_path / "w")
  with np.load(GOLDEN / "taesd" / "expected.npz") as file:
    image, code, z, decoded = (file[k] for k in ("image", "code", "z", "decoded"))
  found = made.task.codec.encode(
    made.frozen, image, jax.random.split(jax.random.key(0))
  )
  np.testing.assert_allclose(found, code, atol=1e-5)  # nothing is drawn or rescaled
  opened = trained.Opened(made, {}, 0, "raw")
  other = trained.with_autoencoder(opened, imported).experiment
  ours = other.task.codec.decode(other.frozen, z)
  np.testing.assert_allclose(ours, decoded, atol=1e-5 * np.abs(decoded).max())
  with pytest.raises(types.InputError, match="--autoencoder"):
    trained.with_autoencoder(opened, tmp_path / "w")
  config = config_args.apply(config, [("task.codec.autoencoder.num_levels", "3")])
  opened = trained.Opened(
    dataclasses.replace(experiment.make(config, None), frozen=made.frozen), {}, 0, "raw"
  )
  with pytest.raises(types.InputError, match="makes latents"):
    trained.with_autoencoder(opened, imported)


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
