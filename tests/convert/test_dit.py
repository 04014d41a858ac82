"""DiT: equal to what diffusers computes, and its weights unchanged in and out."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as safetensors_numpy

import gen_jax
from gen_jax import safetensors, sharding, types
from gen_jax.cli import main
from gen_jax.convert import dit as convert
from gen_jax.convert import matching
from gen_jax.models import dit, labels

pytestmark = pytest.mark.usefixtures("one_device")
GOLDEN = pathlib.Path(__file__).parents[1] / "golden_dit"
STEM = "diffusion_pytorch_model"


def read(folder=GOLDEN / "transformer"):
  config = json.loads((folder / "config.json").read_text())
  network, conditioning = convert.read_config(config)
  network = {k: v for k, v in network.items() if k != "name"}
  num_classes = conditioning["num_classes"]
  return convert.Model(
    dit.Config(**network), labels.Config(num_classes, network["width"])
  )


def abstract(model):
  at = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  side, channels = model.network.image_size, model.network.image_channels
  x = jnp.zeros((1, side, side, channels))
  key = jax.random.key(0)
  net = jax.eval_shape(dit.DiT(model.network).init, key, x, jnp.zeros(1))
  table = jax.eval_shape(labels.LabelEncoder(model.labels).init, key, jnp.zeros(1, int))
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
    sharding.unbox({"dit": net["params"], "labels": table["params"]}),
  )


def load(folder=GOLDEN / "transformer"):
  model = read(folder)
  tensors = safetensors.open_folder(folder, STEM)
  places = convert.match(model, tensors, abstract(model))
  return model, matching.load(places, abstract(model))


def close(ours, theirs, atol):
  np.testing.assert_allclose(ours, theirs, atol=atol * np.abs(theirs).max())


def test_network_blocks_positions_and_gradients():
  model, params = load()
  with np.load(GOLDEN / "expected.npz") as file:
    expected = dict(file)
  t = jnp.float32((expected["timesteps"] + 1) / 1000.0)

  @jax.jit
  def apply(params):
    states = labels.LabelEncoder(model.labels).apply(
      {"params": params["labels"]}, expected["labels"]
    )
    return dit.DiT(model.network).apply(
      {"params": params["dit"]}, expected["x"], t, states, capture_intermediates=True
    )

  out, seen = apply(params)
  close(out, expected["out"][..., :4], 1e-4)
  for i in range(2):
    ours = seen["intermediates"][f"block_{i}"]["__call__"][0]
    close(ours, expected[f"block/{i}"], 1e-4)
  close(dit.positions(4, 4, 4, 16), expected["positions"], 1e-6)
  gradient = jax.jit(jax.grad(lambda p: jnp.mean(apply(p)[0] ** 2)))(params)
  plan = matching.foreign_tensors(model.plan(gradient), gradient)
  checked = [key for key in expected if key.startswith("gradient/")]
  assert len(checked) == 5
  for key in checked:
    close(plan[key.removeprefix("gradient/")].make(), expected[key], 1e-4)


def test_there_and_back_changes_no_bit(tmp_path):
  model, params = load()
  safetensors.write_folder(
    tmp_path, matching.foreign_tensors(model.plan(params), params), "F32", stem=STEM
  )
  was = safetensors_numpy.load_file(GOLDEN / "transformer" / f"{STEM}.safetensors")
  now = safetensors_numpy.load_file(tmp_path / f"{STEM}.safetensors")
  assert was.keys() == now.keys()
  for name, tensor in was.items():
    np.testing.assert_array_equal(tensor, now[name])
  config = json.loads((GOLDEN / "transformer" / "config.json").read_text())
  written = convert.write_config(model.network, model.labels.num_classes)
  assert convert.read_config(written) == convert.read_config(config)


def test_embedders_that_differ_between_blocks_are_refused(tmp_path):
  folder = shutil.copytree(GOLDEN / "transformer", tmp_path / "transformer")
  file = folder / f"{STEM}.safetensors"
  tensors = safetensors_numpy.load_file(file)
  name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
  tensors[name][3] += 1e-6
  safetensors_numpy.save_file(tensors, file)
  with pytest.raises(types.InputError, match=f"{name} is not equal"):
    load(folder)


@pytest.mark.parametrize(
  "change, named",
  [
    ({"norm_type": "ada_norm_single"}, "norm_type='ada_norm_single'"),
    ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True"),
    ({"activation_fn": "geglu"}, "activation_fn='geglu'"),
    ({"attention_bias": False}, "attention_bias=False"),
    ({"dropout": 0.1}, "dropout=0.1"),
    ({"norm_eps": 1e-3}, "norm_eps=0.001"),
    ({"out_channels": 5}, "out_channels=5 must be in_channels=4, or twice"),
    ({"caption_channels": 4096}, "caption_channels=4096; DiTs are understood"),
  ],
)
def test_keys_that_may_change_the_model_are_refused(change, named):
  config = json.loads((GOLDEN / "transformer" / "config.json").read_text())
  with pytest.raises(types.InputError, match=named):
    convert.read_config({**config, **change})


IMAGES = GOLDEN.parent / "golden_pictures" / "v1"
NAMES = ("tench, Tinca tinca", "goldfish", "great white shark", "hen", "crane")
MESH = ("--config.mesh.data=-1", "--config.mesh.fsdp=1")


def whole_pipeline(home):
  """A whole DiTPipeline: the tiny transformer, with another model's autoencoder."""
  shutil.copytree(GOLDEN / "transformer", home / "transformer")
  for part in ("vae", "scheduler"):
    shutil.copytree(IMAGES / part, home / part)
  index = {"_class_name": "DiTPipeline", "id2label": dict(enumerate(NAMES))}
  (home / "model_index.json").write_text(json.dumps(index))
  return home


@pytest.fixture
def pipeline(tmp_path):
  return whole_pipeline(tmp_path / "pipeline")


def run(*words):
  return main.run([str(word) for word in words])


def test_a_pipeline_comes_in_draws_and_goes_out_again(pipeline, tmp_path):
  home, out = tmp_path / "run", tmp_path / "out"
  run("import", "--from", pipeline, "--workdir", home, *MESH)
  opened = gen_jax.open(home)
  assert opened.weights().params.keys() == {"dit", "labels"}
  how = dict(num=1, seed=1, num_steps=2)
  drawn = [opened.generate(p, **how) for p in ("Tinca tinca", "0", "a tench", "hen")]
  assert drawn[0].shape == (1, 16, 16, 3)
  np.testing.assert_array_equal(drawn[0], drawn[1])
  np.testing.assert_array_equal(drawn[0], drawn[2])
  assert (drawn[0] != drawn[3]).any()
  run("export", "--workdir", home, "--to", out)
  for part in ("transformer", "vae"):
    was, now = (
      safetensors_numpy.load_file(folder / part / f"{STEM}.safetensors")
      for folder in (pipeline, out)
    )
    assert was.keys() == now.keys()
    for name, tensor in was.items():
      np.testing.assert_array_equal(tensor, now[name])
  first, again = convert.open_folder(pipeline), convert.open_folder(out)
  for name in ("task", "latents", "side", "class_names", "scheduler"):
    assert getattr(first, name) == getattr(again, name)


@pytest.mark.parametrize(
  "named, says",
  [({"0": "tench"}, "each of 5"), ([*NAMES], "each of 5"), (7, "each of")],
)
def test_classes_without_names_are_refused(pipeline, tmp_path, named, says):
  index = {"_class_name": "DiTPipeline", "id2label": named}
  (pipeline / "model_index.json").write_text(json.dumps(index))
  with pytest.raises(types.InputError, match=says):
    run("import", "--from", pipeline, "--workdir", tmp_path / "w", *MESH)
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  "change, named",
  [
    ({"mlp_width": 24}, "mlp_width=24"),
    ({"max_period": 1e4}, "max_period=10000"),
    ({"timestep_offset": 0.0}, "timestep_offset=0"),
    ({"extra_channels": 1}, "extra_channels=1"),
  ],
)
def test_what_the_format_cannot_say_is_not_written(change, named):
  config = read().network
  convert.write_config(config, 5)
  values = {**config.__dict__, **change}
  with pytest.raises(types.InputError, match=named):
    convert.write_config(dit.Config(**values), 5)
