"""Any change of a release's header, index or configs is refused, or changes nothing.

Values of tensors are another matter: only a hash of the file could tell.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import tempfile
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gen_jax import safetensors, tree
from gen_jax.convert import diffusers, foreign, hub
from gen_jax.types import InputError
from tests.convert import test_formats
from tests.convert import test_huggingface as golden
from tests.convert import test_stable_diffusion as images

ODD = st.sampled_from(
  [
    *(None, True, False, 0, -1, 1, 3, 7, 2**31, 2**63, 10**20, 10**400, 1e20, 1e308),
    *(float("inf"), float("nan"), -0.5, "", "x", "I64", "a" * 1000, [], [1], [None]),
    *({}, [[]] * 3, [2**31] * 4, [2**62, 0], [4] * 10_000, {"a": 1}),
  ]
)
quick = hypothesis.settings(
  max_examples=20,
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


def places(value, path=()):
  """The path of every value inside a JSON value."""
  items = value.items() if isinstance(value, dict) else enumerate(value)
  for key, item in items:
    yield (*path, key)
    if isinstance(item, dict | list):
      yield from places(item, (*path, key))


def change(data, value):
  """A JSON value with one place changed or taken out, or with one key more."""
  *path, last = data.draw(st.sampled_from(list(places(value))))
  inner = value
  for key in path:
    inner = inner[key]
  how = data.draw(st.sampled_from(("set", "set", "set", "remove", "add")))
  if how == "add" and isinstance(inner, dict):
    last = data.draw(st.sampled_from(("x", "__metadata__", "rope_scaling", "head_dim")))
  if how == "remove":
    del inner[last]
  else:
    inner[last] = data.draw(ODD)
  return value


@functools.cache
def wanted(name):
  return tree.sha256(test_formats.read(golden.GOLDEN / name)[1])


def holds(name, damage):
  """InputError of one line within a second or two, or the same weights."""
  with tempfile.TemporaryDirectory() as home:
    folder = shutil.copytree(golden.GOLDEN / name, pathlib.Path(home) / "model")
    damage(folder)
    begin = time.process_time()
    try:
      found = tree.sha256(test_formats.read(folder)[1])
    except InputError as error:
      assert "\n" not in str(error) and len(str(error)) < 1000
    else:
      assert found == wanted(name)
    assert time.process_time() - begin < 5.0


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "llama3"])
@quick
@hypothesis.given(data=st.data())
def test_configs(name, data):
  def damage(folder):
    file = folder / "config.json"
    file.write_text(json.dumps(change(data, json.loads(file.read_text()))))

  holds(name, damage)


IMAGE_CONFIGS = (diffusers.INDEX, diffusers.UNET, diffusers.VAE, diffusers.TEXT)


@quick
@hypothesis.given(data=st.data(), name=st.sampled_from(IMAGE_CONFIGS))
def test_configs_of_images(data, name):
  """Up to where a model is built: its shapes are held against the tensors' there."""
  config = json.loads((images.GOLDEN / "v1" / name).read_text())
  with tempfile.TemporaryDirectory() as home:
    folder = shutil.copytree(images.GOLDEN / "v1", pathlib.Path(home) / "model")
    (folder / name).write_text(json.dumps(change(data, config)))
    begin = time.process_time()
    try:
      opened = diffusers.open_folder(folder)
      opened.models()
    except InputError as error:
      assert "\n" not in str(error) and len(str(error)) < 1000
    else:
      assert 0 < opened.side <= 8192
    assert time.process_time() - begin < 5.0


@pytest.mark.parametrize(
  "name, key, value, says",
  [
    (
      diffusers.INDEX,
      "_class_name",
      "StableDiffusionXLPipeline",
      "is not supported; s",
    ),
    (diffusers.INDEX, "_class_name", ["x"], "is not supported; supported: Stable"),
    (diffusers.UNET, "layers_per_block", 2**31 - 1, "there are only 208 tensors"),
    (diffusers.VAE, "layers_per_block", 2**31 - 1, "do not fit the weights"),
    (diffusers.TEXT, "num_hidden_layers", 2**31 - 1, "do not fit the weights"),
    (diffusers.UNET, "sample_size", 2**30, "sample_size=1073741824 must be a square"),
    (diffusers.UNET, "sample_size", [64, 32], "must be a square"),
    (diffusers.UNET, "sample_size", -5, "must be a size"),
    (diffusers.UNET, "norm_eps", float("nan"), "must be a finite number"),
    (diffusers.UNET, "norm_num_groups", 0, "must be a size"),
  ],
)
def test_an_image_model_that_cannot_be(name, key, value, says, tmp_path):
  folder = shutil.copytree(images.GOLDEN / "v1", tmp_path / "model")
  config = json.loads((folder / name).read_text())
  (folder / name).write_text(json.dumps({**config, key: value}))
  with pytest.raises(InputError, match=says) as error:
    diffusers.open_folder(folder)
  assert "did you mean" not in str(error.value)


def split(content):
  size = 8 + int.from_bytes(content[:8], "little")
  return content[8:size], content[size:]


@quick
@hypothesis.given(data=st.data())
def test_headers(data):
  def damage(folder):
    file = folder / "model.safetensors"
    head, rest = split(file.read_bytes())
    head = json.dumps(change(data, json.loads(head))).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + rest)

  holds("gpt2", damage)


@quick
@hypothesis.given(data=st.data())
def test_bytes_of_the_header(data):
  def damage(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    end = len(content) - len(split(content)[1])
    for _ in range(data.draw(st.integers(1, 3))):
      content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)

  holds("gpt2", damage)


@quick
@hypothesis.given(data=st.data())
def test_lengths(data):
  def damage(folder):
    file = folder / "model.safetensors"
    size = file.stat().st_size
    cut = data.draw(st.integers(0, size + 99))
    os.truncate(file, cut)
    hypothesis.assume(cut != size)

  holds("gpt2", damage)


def one(**entry):
  return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}


HEADERS = {
  "a name twice": ('{"a": %s, "a": %s}' % ((json.dumps(one()),) * 2), 4),
  "overlap": ({"a": one(), "b": one()}, 4),
  "a gap": ({"a": one(), "b": one(data_offsets=[8, 12])}, 12),
  "beyond the end": ({"a": one(data_offsets=[0, 8], shape=[2])}, 4),
  "backwards": ({"a": one(data_offsets=[4, 0])}, 4),
  "negative": ({"a": one(shape=[-1])}, 4),
  "fractions": ({"a": one(shape=[1.0])}, 4),
  "truth": ({"a": one(shape=[True])}, 4),
  "too few bytes": ({"a": one(shape=[2])}, 4),
  "integers too": ({"a": one(dtype="I64")}, 4),
  "2^63": ({"a": one(shape=[2**63, 0], data_offsets=[0, 0])}, 0),
  "many axes": ({"a": one(shape=[1] * 10_000)}, 4),
  "huge axes": ({"a": one(shape=[2**62] * 16)}, 4),
  "one key more": ({"a": one(more=1)}, 4),
  "no object": ([], 0),
  "metadata of numbers": ({"__metadata__": {"a": 1}}, 0),
  "metadata of none": ({"__metadata__": None}, 0),
  "deep": ("[" * 1_000_000, 0),
  "not UTF-8": (b'{"\xff": 1}', 0),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_contradicts_itself(kind, tmp_path):
  head, size = HEADERS[kind]
  head = head if isinstance(head, str | bytes) else json.dumps(head)
  head = head.encode() if isinstance(head, str) else head
  file = tmp_path / "x.safetensors"
  file.write_bytes(len(head).to_bytes(8, "little") + head + bytes(size))
  with pytest.raises(InputError, match="truncated or corrupted"):
    safetensors.read_header(file)


def test_a_length_is_not_allocated_before_it_is_believed(tmp_path):
  file = tmp_path / "x.safetensors"
  for size in (2**40, 2**63, 2**64 - 1):
    file.write_bytes(size.to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="cannot hold its header"):
      safetensors.read_header(file)


OTHERS = {
  b"version https://git-lfs.github.com/spec/v1\n": "a pointer of Git LFS",
  b"GGUF\x03\0\0\0": "GGUF, quantised for llama.cpp",
  b"PK\x03\x04": "a pickle of PyTorch, which is never opened",
  b"\x80\x02}q\0.": "a pickle, which is never opened",
  b"<!DOCTYPE html><html>": "a web page",
}


@pytest.mark.parametrize("content", OTHERS)
@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.gguf"])
def test_another_format_is_named(content, name, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=OTHERS[content]):
    safetensors.read_header(hub.locate(str(tmp_path / name)).folder)


@pytest.mark.parametrize("size", [60, 640])
def test_a_header_whose_length_reads_like_another_format(size, tmp_path):
  """60 is <, as a web page begins; 640 is 80 02, as a pickle does."""
  head = json.dumps({"a": one()}, separators=(",", ":")).encode()
  assert len(head) <= 60
  file = tmp_path / "x.safetensors"
  file.write_bytes(size.to_bytes(8, "little") + head.ljust(size) + bytes(4))
  assert safetensors.read_header(file)["a"].view() == np.zeros(1)


def rewrite(folder, names, metadata):
  """The same tensors under other names, each written once."""
  tensors = safetensors.open_folder(folder)
  arrays = {names.get(n, n): np.array(t.view()) for n, t in tensors.items()}
  head, at = {"__metadata__": metadata}, 0
  for name, x in arrays.items():
    span = [at, at + x.nbytes]
    head[name] = {"dtype": "F32", "shape": x.shape, "data_offsets": span}
    at += x.nbytes
  head = json.dumps(head).encode()
  content = b"".join(x.tobytes() for x in arrays.values())
  file = folder / "model.safetensors"
  file.write_bytes(len(head).to_bytes(8, "little") + head + content)


@pytest.mark.parametrize("tied", [True, False, None])
@pytest.mark.parametrize("says", [True, False])
def test_a_shared_head_under_its_other_name(says, tied, tmp_path):
  """What PyTorch's `save_model` writes: the metadata says what was left out."""
  folder = shutil.copytree(golden.GOLDEN / "llama_tied", tmp_path / "model")
  table, head = "model.embed_tokens.weight", "lm_head.weight"
  rewrite(folder, {table: head}, {table: head} if says else {"format": "pt"})
  test_formats.change(folder, tie_word_embeddings=... if tied is None else tied)
  wrong = pytest.raises(InputError, match=f"{table} is missing")
  with contextlib.nullcontext() if says else wrong:
    found = tree.flatten(test_formats.read(folder)[1])
    whole = tree.flatten(test_formats.read(golden.GOLDEN / "llama_tied")[1])
    np.testing.assert_array_equal(found["embed/table"], whole["embed/table"])
    assert ("head/kernel" in found) is (tied is not True)  # LLaMA's default is untied
    if "head/kernel" in found:
      np.testing.assert_array_equal(found["head/kernel"], whole["embed/table"].T)


KINDS = {
  "Stable Diffusion XL": ["conditioner.embedders.0.transformer.text_model.x.weight"],
  "the refiner of Stable Diffusion XL": ["conditioner.embedders.0.model.ln_final.bias"],
  "Stable Video Diffusion": ["model.diffusion_model.input_blocks.1.0.time_stack.x"],
  "Stable Diffusion 3": ["model.diffusion_model.joint_blocks.0.context_block.x"],
  "FLUX": ["double_blocks.0.img_attn.norm.key_norm.scale"],
  "Stable Diffusion 2 in a single file": ["cond_stage_model.model.ln_final.bias"],
  "a ControlNet": ["control_model.input_blocks.0.0.weight"],
  "a LoRA file": ["lora_unet_mid_block_resnets_0_conv1.alpha"],
  "an autoencoder alone": ["encoder.conv_in.weight", "decoder.conv_in.weight"],
  "a UNet alone": ["down_blocks.0.attentions.0.norm.weight"],
  "a text encoder alone": ["text_model.embeddings.position_embedding.weight"],
  "a textual inversion": ["emb_params"],
  "one half of TAESD": ["0.weight", "1.conv.0.weight"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_is_named_for_what_it_is(kind, tmp_path):
  head = {n: one(shape=[0], data_offsets=[0, 0]) for n in KINDS[kind]}
  # What SDXL shares with Stable Diffusion 1 does not hide what it is.
  shared = ["first_stage_model.quant_conv.bias", "model.diffusion_model.out.0.bias"]
  if "Stable" in kind:
    head |= {n: one(shape=[0], data_offsets=[0, 0]) for n in shared}
  head = json.dumps(head).encode()
  file = tmp_path / "x.safetensors"
  file.write_bytes(len(head).to_bytes(8, "little") + head)
  assert foreign.kind(safetensors.read_header(file)).startswith(kind)
  with pytest.raises(InputError, match=f"x.safetensors is {kind}.*supported: Stable"):
    diffusers.open_file(file)


def test_the_hubs_cache_says_what_a_file_must_be(tmp_path):
  blobs = tmp_path / "blobs"
  blobs.mkdir()
  (blobs / ("0" * 64)).write_bytes(b"x")
  link = tmp_path / "model.safetensors"
  link.symlink_to(blobs / ("0" * 64))
  assert hub.expected_sha256(link) == "0" * 64
  assert hub.expected_sha256(blobs) is None
