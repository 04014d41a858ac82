"""Stable Diffusion's weights: equal to what diffusers computes, and unchanged."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as safetensors_numpy
from PIL import Image

import gen_jax
from gen_jax import build, safetensors, sharding, tree, types
from gen_jax.build import config_files
from gen_jax.cli import main
from gen_jax.convert import diffusers, diffusers_configs, matching, stable_diffusion
from gen_jax.data import pipeline, tokenizers
from gen_jax.diffusion import samplers
from gen_jax.models import text_encoder
from gen_jax.nn import embed, mlp
from gen_jax.runs import workdir
from gen_jax.tasks import conditioning
from gen_jax.tasks import diffusion as tasks
from gen_jax.train import items
from tests import tiny
from tests.runs import conftest as old

pytestmark = pytest.mark.usefixtures("one_device")
GOLDEN = pathlib.Path(__file__).parents[1] / "golden_pictures"
NAMES = ("v1", "v2_inpainting")
INPUTS = {  # to make parameters of the right shapes
  "unet": lambda cfg, d: (
    jnp.zeros((1, 8, 8, cfg.image_channels + cfg.extra_channels)),
    jnp.zeros(1),
    types.States(jnp.zeros((1, 4, d))),
  ),
  "autoencoder": lambda cfg, d: (jnp.zeros((1, 8, 8, 3)),),
  "text_encoder": lambda cfg, d: (jnp.zeros((1, 4), int), None),
}


def modules(task):
  blocks = {
    "unet": task["network"],
    "autoencoder": task["codec"]["autoencoder"],
    "text_encoder": task["conditioning"]["text_encoder"],
  }
  kinds = {"unet": "network"}
  return {n: build.build(kinds.get(n, n), block) for n, block in blocks.items()}


def abstract_params(opened):
  """Shapes of all three networks, on one device."""
  width = opened.task["conditioning"]["text_encoder"]["width"]
  at = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = {}
  for name, module in modules(opened.task).items():
    inputs = INPUTS[name](module.config, width)
    boxed = jax.eval_shape(
      lambda k, m=module, i=inputs: m.init(k, *i), jax.random.key(0)
    )
    abstract[name] = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
      sharding.unbox(boxed["params"]),
    )
  return abstract


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
  opened = diffusers.open_folder(GOLDEN / request.param)
  abstract = abstract_params(opened)
  params = {}
  for name, model in opened.models().items():
    places = stable_diffusion.match(
      model, opened.tensors[name], abstract[name], opened.column
    )
    params[name] = matching.load(places, abstract[name])
  with np.load(GOLDEN / request.param / "expected.npz") as file:
    return opened, modules(opened.task), params, dict(file)


def close(ours, theirs, atol):
  np.testing.assert_allclose(ours, theirs, atol=atol * np.abs(theirs).max())


def test_unet_its_blocks_and_its_gradients(golden):
  opened, nets, params, expected = golden
  t = (expected["timesteps"] + 1) / 1000.0
  apply = jax.jit(
    lambda p: nets["unet"].apply(
      {"params": p}, expected["x"], jnp.float32(t), types.States(expected["states"]),
      capture_intermediates=True,
    )
  )  # fmt: skip
  out, seen = apply(params["unet"])
  close(out, expected["out"], 1e-4)
  blocks = [key for key in expected if key.startswith("block/")]
  assert len(blocks) == 4
  for key in blocks:
    ours = seen["intermediates"][key.removeprefix("block/")]["__call__"][0]
    close(ours, expected[key], 1e-5)
  gradient = jax.jit(jax.grad(lambda p: jnp.mean(apply(p)[0] ** 2)))(params["unet"])
  plan = opened.models()["unet"].plan(gradient, stable_diffusion.FOLDER)
  plan = matching.foreign_tensors(plan, gradient)
  checked = [key for key in expected if key.startswith("gradient/")]
  assert len(checked) == 4
  for key in checked:
    close(plan[key.removeprefix("gradient/")].make(), expected[key], 1e-4)


def test_autoencoder(golden):
  _, nets, params, expected = golden
  variables = {"params": params["autoencoder"]}
  apply = jax.jit(nets["autoencoder"].apply, static_argnames="method")
  posterior = apply(variables, expected["picture"], method="encode")
  close(posterior.mean, expected["mean"], 1e-5)
  close(posterior.std, expected["std"], 1e-5)
  close(apply(variables, expected["z"], method="decode"), expected["decoded"], 1e-5)


def test_attention_in_chunks_is_the_same_model(golden):
  """No new parameters, and the goldens hold."""
  opened, _, params, expected = golden
  chunked = {"name": "chunked", "chunk": 7}
  attention = {**opened.task["network"]["attention"], "attention_impl": chunked}
  net = build.build("network", {**opened.task["network"], "attention": attention})
  t = jnp.float32((expected["timesteps"] + 1) / 1000.0)
  apply = jax.jit(lambda p: net.apply({"params": p}, expected["x"], t, states))
  states = types.States(expected["states"])
  close(apply(params["unet"]), expected["out"], 1e-4)
  block = {**opened.task["codec"]["autoencoder"], "attention_impl": chunked}
  net = build.build("autoencoder", block)
  apply = jax.jit(lambda p: net.apply({"params": p}, expected["z"], method="decode"))
  close(apply(params["autoencoder"]), expected["decoded"], 1e-5)


def test_text_encoder_reads_what_clip_reads(golden, request):
  _, nets, params, expected = golden
  name = request.node.callspec.params["golden"]
  tokenizer = tokenizers.load(GOLDEN / name / "tokenizer")
  rows = [pipeline.pad_caption(str(t), tokenizer, 16)[0] for t in expected["texts"]]
  np.testing.assert_array_equal(rows, expected["ids"])
  out = nets["text_encoder"].apply(
    {"params": params["text_encoder"]}, np.stack(rows[:2]), None
  )
  assert out.mask is None
  close(out.tokens, expected["states"], 1e-5)


MESH = ("--config.mesh.data=-1", "--config.mesh.fsdp=1")  # 12 does not divide by 8


def edit(part, **keys):
  def change(folder):
    path = folder / part
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))

  return change


def run(*words):
  return main.run([str(w) for w in words])


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  home = tmp_path_factory.mktemp("images")
  run("import", "--from", GOLDEN / "v1", "--workdir", home / "w", *MESH)
  return home


def same_tensors(one, other):
  """Bit for bit, by name."""
  assert one.keys() == other.keys()
  for name, tensor in one.items():
    assert tensor.dtype == other[name].dtype
    np.testing.assert_array_equal(tensor.view(), other[name].view())


def test_import_and_export_are_each_others_inverse(imported, tmp_path):
  first = diffusers.open_folder(GOLDEN / "v1")
  run("export", "--workdir", imported / "w", "--to", tmp_path / "out")
  opened = diffusers.open_folder(tmp_path / "out")
  for name, tensors in first.tensors.items():
    full = {stable_diffusion.modern(name, key): t for key, t in tensors.items()}
    same_tensors(full, dict(opened.tensors[name]))
  assert opened.task == first.task
  np.testing.assert_allclose(opened.latents["std"], first.latents["std"], rtol=1e-6)
  path = pathlib.Path(diffusers.SCHEDULER)
  assert (tmp_path / "out" / path).read_text() == (GOLDEN / "v1" / path).read_text()
  sampling = workdir.read_config(imported / "w")["sampling"]
  assert sampling["sampler"]["name"] == "ddim"
  assert sampling["grid"]["name"] == "to_first_node"  # set_alpha_to_one=False


def test_another_sampler_is_exported_as_its_own_scheduler(imported, tmp_path):
  how = ("--config.sampling.sampler=dpmpp_2m", "--config.sampling.grid=karras")
  run("export", "--workdir", imported / "w", "--to", tmp_path / "out", *how)
  index = json.loads((tmp_path / "out" / diffusers.INDEX).read_text())
  assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
  opened = diffusers.open_folder(tmp_path / "out")
  assert (opened.sampler, opened.grid) == ({"name": "dpmpp_2m"}, {"name": "karras"})
  how = ("--config.sampling.sampler=belm",)
  with pytest.raises(types.InputError, match="export with another"):
    run("export", "--workdir", imported / "w", "--to", tmp_path / "no", *how)
  assert not (tmp_path / "no").exists()


def test_a_single_file_comes_back(imported, tmp_path, monkeypatch):
  """Out by the original names, in again, and out as a folder: bit for bit the same.

  Of what a file is read as it says nothing, so that this model is refused until it is
  Stable Diffusion 1.
  """
  words = ("export", "--workdir", imported / "w", "--to", tmp_path / "a.safetensors")
  with pytest.raises(types.InputError, match=r"codec.autoencoder.multipliers"):
    run(*words)
  assert not list(tmp_path.iterdir())
  v1 = {name: json.loads((GOLDEN / "v1" / name).read_text()) for name in diffusers.V1}
  monkeypatch.setattr(diffusers, "V1", v1)
  run(*words)
  names = json.loads((GOLDEN / "single_file.json").read_text())
  file = safetensors.read_header(tmp_path / "a.safetensors")
  assert file.keys() == {original for part in names.values() for original in part}
  again = ("import", "--from", tmp_path / "a.safetensors", "--workdir", tmp_path / "w")
  run(*again, *MESH, "--config.data.image_size=16")
  run("export", "--workdir", tmp_path / "w", "--to", tmp_path / "out")
  opened, first = (diffusers.open_folder(p) for p in (tmp_path / "out", GOLDEN / "v1"))
  for name, tensors in first.tensors.items():
    full = {stable_diffusion.modern(name, key): t for key, t in tensors.items()}
    same_tensors(full, dict(opened.tensors[name]))


def test_single_file_has_the_names_of_the_original_code():
  """What diffusers' own converter makes of our names of the file."""
  names = json.loads((GOLDEN / "single_file.json").read_text())
  opened = diffusers.open_folder(GOLDEN / "v1")
  abstract = abstract_params(opened)
  for part, model in opened.models().items():
    pairs = {}
    for column in (stable_diffusion.FILE, stable_diffusion.FOLDER):
      for name, (row, _) in model.plan(abstract[part], column).items():
        pairs.setdefault(row.paths, []).append(name)
    assert dict(sorted(pairs.values())) == names[part]


@pytest.fixture(scope="module")
def draw(imported, tmp_path_factory):
  """Images [N, H, W, C] of two steps each."""

  def run_it(*more):
    out = tmp_path_factory.mktemp("drawn")
    words = ("--workdir", imported / "w", "--num_steps", 2, "--out", out)
    samples = run("sample", *words, "--prompt", "apple", *more)["samples"]
    return np.stack([np.asarray(Image.open(s["path"]), int) for s in samples])

  return run_it


@pytest.fixture(scope="module")
def drawn(draw):
  """Two of one prompt and two of another."""
  return draw("--prompt", "wow 42", "--num", 2)


def test_images_are_drawn(drawn):
  assert drawn.shape == (4, 16, 16, 3)
  first, other, *_ = drawn
  assert np.abs(first - other).max() > 1  # each has noise of its own


@pytest.fixture(scope="module")
def image(tmp_path_factory):
  """An image, and a mask whose right half is edited."""
  home = tmp_path_factory.mktemp("input")
  pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  Image.fromarray(pixels).save(home / "image.png")
  mask = np.repeat(np.arange(16)[None] >= 8, 16, 0)
  Image.fromarray(np.uint8(255 * mask)).save(home / "mask.png")
  Image.fromarray(np.uint8(255 * mask[:8])).save(home / "short.png")
  (home / "text.png").write_text("no image")
  return home


def edit_words(imported, image, *more):
  words = ("edit", "--workdir", imported / "w", "--image", image / "image.png")
  return (*words, "--num_steps", 2, "--prompt", "apple", *more)


@pytest.mark.long
def test_a_masked_edit_changes_nothing_outside_the_mask(imported, image, tmp_path):
  words = edit_words(imported, image, "--mask", image / "mask.png")
  result = run(*words, "--out", tmp_path / "out")
  before, after = (
    np.asarray(Image.open(p))
    for p in (image / "image.png", result["samples"][0]["path"])
  )
  np.testing.assert_array_equal(after[:, :8], before[:, :8])
  assert (after[:, 8:] != before[:, 8:]).any()
  record = json.loads((tmp_path / "out" / "prompts.json").read_text())
  assert record["strength"] == 1.0 and len(record["sha256"]) == 64


@pytest.mark.long
def test_an_edit_of_a_changed_file_is_drawn_again(imported, image, tmp_path):
  """The names of image and mask are the same, what is in them is not."""
  for name in ("image.png", "mask.png"):
    shutil.copyfile(image / name, tmp_path / name)
  words = edit_words(imported, tmp_path, "--mask", tmp_path / "mask.png")

  def drawn():
    path = run(*words, "--out", tmp_path / "out")["samples"][0]["path"]
    return np.asarray(Image.open(path)), np.asarray(Image.open(tmp_path / "image.png"))

  drawn()
  mask = Image.open(tmp_path / "mask.png").transpose(Image.Transpose.ROTATE_180)
  mask.save(tmp_path / "mask.png")
  after, before = drawn()
  np.testing.assert_array_equal(after[:, 8:], before[:, 8:])
  Image.fromarray(255 - before).save(tmp_path / "image.png")
  after, before = drawn()
  np.testing.assert_array_equal(after[:, 8:], before[:, 8:])


@pytest.mark.parametrize(
  "more, named",
  [
    (("--strength", "1.5"), "strength=1.5"),
    (("--mask", "short.png"), "16x8"),
    (("--mask", "text.png"), "not a readable image"),
    (("--image", "absent.png"), "cannot read .*No such file"),
    (("--outpaint", "1,2,3"), "four numbers"),
    (("--outpaint", "1,0,0,0"), "divisible"),
    (("--num_steps", "0"), "num_steps=0"),
    (("--invert", "pear", "--mask", "mask.png"), "leave out --mask"),
    (("--invert", "pear", "--sampler", "heun"), "leave out --sampler heun"),
    (("--invert", "pear", "--strength", "-1"), "strength=-1.0"),
    (("--invert", "pear", "--vary", "2"), "vary=2.0"),
    (("--invert", "pear", "--vary", "0.2", "--strength", "0.5"), "strength at 1"),
    (("--vary", "0.2"), "is for --invert"),
  ],
)
def test_an_edit_that_cannot_be_is_refused(imported, image, tmp_path, more, named):
  more = [image / word if word.endswith(".png") else word for word in more]
  with pytest.raises(types.InputError, match=named):
    run(*edit_words(imported, image, *more, "--out", tmp_path / "out"))
  assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_inversion_by_command(imported, image, tmp_path):
  """Without --prompt it is drawn for what it shows; the laws are in test_flow."""
  words = ("edit", "--workdir", imported / "w", "--image", image / "image.png")
  words = (*words, "--num_steps", 2, "--invert", "apple", "--vary", 0.5)
  result = run(*words, "--out", tmp_path)
  record = json.loads((tmp_path / "prompts.json").read_text())
  assert (record["invert"], record["vary"], record["strength"]) == ("apple", 0.5, 1.0)
  assert [sample["prompt"] for sample in result["samples"]] == ["apple"]


@pytest.mark.long
def test_interpolation_begins_and_ends_with_the_two_images(draw, drawn):
  path = draw("--prompt", "wow 42", "--interpolate", 3)
  assert len(path) == 3
  assert np.abs(path[[0, 2]] - drawn[[0, 3]]).max() <= 1
  for more in (["--interpolate", 3], ["--prompt", "a", "--interpolate", 1]):
    with pytest.raises(
      types.InputError, match=r"at least 2 and at most .*, with --prompt"
    ):
      draw(*more)


@pytest.fixture(scope="module")
def instructed(tmp_path_factory):
  """The tiny v1, widened for an image as in tools/make_image_golden.py."""
  home = tmp_path_factory.mktemp("instructed")
  shutil.copytree(GOLDEN / "v1", home / "from")
  edit("unet/config.json", in_channels=8)(home / "from")
  edit("model_index.json", _class_name=list(diffusers.PIPELINES)[2])(home / "from")
  path = home / "from" / "unet" / "diffusion_pytorch_model.safetensors"
  tensors = safetensors_numpy.load_file(path)
  kernel = tensors["conv_in.weight"]
  wide = np.concatenate([kernel, 0.5 * kernel[:, ::-1]], 1)
  safetensors_numpy.save_file({**tensors, "conv_in.weight": wide}, path)
  run("import", "--from", home / "from", "--workdir", home / "w", *MESH)
  return home


def test_instructions_are_followed_as_by_diffusers(instructed):
  """Two steps with both scales: the image's code is neither drawn nor scaled."""
  home = instructed / "w"
  words = tokenizers.load(home / "tokenizer")
  opened = gen_jax.open(home)
  weights = opened.weights("latest", "params")
  task, keys = opened.experiment.task, tiny.keys(0, 1)
  with np.load(GOLDEN / "v1" / "expected_edit.npz") as file:
    expected = dict(file)
  with np.load(GOLDEN / "v1" / "expected.npz") as file:
    text = str(file["texts"][0])
  caption = pipeline.pad_caption(text, words, 16)
  caption = conditioning.Caption(*(np.asarray(x)[None] for x in caption))
  sampling = tasks.Sampling(guidance_scale=7.5, image_guidance_scale=1.5)
  # Their chain ends on its first node, not at 0.
  times = np.append((expected["steps"] + 1) / 1000, 0.001).astype(np.float32)

  @jax.jit
  def draw(params, frozen):
    extra = task.extra(frozen, {"before": expected["picture"]}, keys)
    denoise = tasks.guided(task, sampling, params, frozen, caption, None, extra)
    ddim, noise = samplers.ddim(task.schedule), expected["noise"]
    return samplers.sample(denoise, ddim, times, noise, keys)[0]

  close(draw(weights.params, weights.frozen), expected["drawn"], 1e-4)


def test_a_model_of_instructions_comes_back(instructed, tmp_path):
  run("export", "--workdir", instructed / "w", "--to", tmp_path / "out")
  index, again = "model_index.json", diffusers.open_folder(tmp_path / "out")
  first = diffusers.open_folder(instructed / "from")
  assert again.task == first.task
  one, other = (
    json.loads((folder / index).read_text())["_class_name"]
    for folder in (tmp_path / "out", instructed / "from")
  )
  assert one == other
  same_tensors(dict(first.tensors["unet"]), dict(again.tensors["unet"]))


def damaged(tmp_path, change):
  folder = tmp_path / "model"
  shutil.copytree(GOLDEN / "v1", folder)
  change(folder)
  with pytest.raises(types.InputError) as error:
    run("import", "--from", folder, "--workdir", tmp_path / "w", *MESH)
  assert not (tmp_path / "w").exists() and "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(
  "change, named",
  [
    (edit("model_index.json", _class_name="StableDiffusionXLPipeline"), "pipeline"),
    (edit("unet/config.json", class_embed_type="timestep"), "class_embed_type"),
    (edit("unet/config.json", cross_attention_dim=13), "cross_attention_dim=13"),
    (edit("unet/config.json", layers_per_block=2), "is missing"),
    (edit("unet/config.json", in_channels=9), "conv_in.weight"),
    (edit("vae/config.json", use_quant_conv=False), "use_quant_conv"),
    (edit("text_encoder/config.json", hidden_act="relu"), "relu"),
    (edit("scheduler/scheduler_config.json", prediction_type="w"), "prediction_type"),
    (edit("scheduler/scheduler_config.json", clip_sample=True), "clip_sample=True"),
    (edit("scheduler/scheduler_config.json", steps_offset=0), "times that do not fall"),
    (lambda f: (f / "vae/config.json").unlink(), "vae/config.json"),
    (
      lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
      "diffusion_pytorch_model.safetensors",
    ),
  ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path, change, named):
  assert named in damaged(tmp_path, change)


@pytest.mark.parametrize(
  "changes",
  [
    {"is_causal": False},
    {"position": None},
    {"position": embed.SinusoidalPositions},
    {"rotary": embed.Rotary()},
    {"activation": jax.nn.relu},
  ],
)
def test_a_text_encoder_that_is_not_clips_is_not_written(changes):
  clip = text_encoder.Config(16, 4, 1, 8, 2, activation=mlp.quick_gelu, is_causal=True)
  assert diffusers_configs.write_text_encoder(clip)["hidden_size"] == 8
  with pytest.raises(types.InputError, match="not CLIP's"):
    diffusers_configs.write_text_encoder(dataclasses.replace(clip, **changes))


def test_an_autoencoder_that_was_changed_is_noticed(imported, tmp_path):
  """Where earlier versions kept it, and where it is: an item of the checkpoint."""
  home = shutil.copytree(imported / "w", tmp_path / "w")
  draw = lambda: gen_jax.open(home).weights("latest").provenance()  # noqa: E731
  before = draw()
  folder = old.autoencoder_in_a_workdir(home)
  assert draw() == before
  edit("latents.json", sha256="0" * 64)(folder)
  sample = ("sample", "--workdir", home, "--num_steps", 1)
  with pytest.raises(types.InputError, match="gen-jax encode"):
    run(*sample)
  shutil.rmtree(home)
  shutil.copytree(imported / "w", home)
  edit("about/metadata", sha256="0" * 64)(items.home(home) / workdir.AUTOENCODER)
  with pytest.raises(types.InputError, match=r"autoencoder cannot be read \(about"):
    run(*sample)


def test_the_config_is_what_a_single_file_is_read_as():
  """Of the autoencoder that was released; the others are counted in tests/configs."""
  task = config_files.load("configs/diffusion/stable_diffusion.py:v1")["task"]
  ours, theirs = modules(task), modules(diffusers.read_v1()[0])
  shapes = jax.eval_shape(
    ours["autoencoder"].init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
  )
  assert tree.size(sharding.unbox(shapes)) == 83_653_863
  for name, module in ours.items():
    # Constructors of parts are equal if what they make is.
    one, other = (dataclasses.asdict(m.config) for m in (module, theirs[name]))
    for config in (one, other):
      config.pop("attention", None)
      config["mlp_width"] = config.get("mlp_width") or 4 * config["width"]
    assert one == other
