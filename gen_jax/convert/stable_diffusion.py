"""Stable Diffusion's weights: maps of tensors to parameters, for both layouts.

    folder   model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/
    file     everything in one .safetensors, with the names of the original code

Each kind of module has one table of its parts, with their names in both layouts.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gen_jax import safetensors
from gen_jax.convert import matching, names
from gen_jax.models import autoencoder, text_encoder, unet
from gen_jax.types import InputError, Params

FOLDER, FILE = 0, 1  # columns of the tables
PREFIXES = {
  "unet": ("", "model.diffusion_model."),
  "autoencoder": ("", "first_stage_model."),
  "text_encoder": ("text_model.", "cond_stage_model.transformer.text_model."),
}


class _Kernel(names.TensorMap):
  """A convolution: [h, w, in, out] here, [out, in, h, w] there."""

  def shape(self, shapes):
    height, width, inputs, outputs = shapes[0]
    return (outputs, inputs, height, width)

  def part(self, tensor, path, shape):
    return tensor.transpose(2, 3, 1, 0)

  def whole(self, arrays):
    return arrays[0].transpose(3, 2, 0, 1)


class _Point(names.TensorMap):
  """A linear map here, a 1x1 convolution there."""

  def shape(self, shapes):
    return (*super().shape(shapes), 1, 1)

  def part(self, tensor, path, shape):
    return super().part(tensor[:, :, 0, 0], path, shape)

  def whole(self, arrays):
    return super().whole(arrays)[..., None, None]


# A part: our names, its kind, and its names (in the folder, in the file).
Part = tuple[tuple[str, ...], str, tuple[str, str]]


def same(name: str) -> tuple[str, str]:
  """A name that is the same in the folder and in the file."""
  return (name, name)


_TIMED = (
  (("norm_in",), "norm", ("norm1", "in_layers.0")),
  (("conv_in",), "conv", ("conv1", "in_layers.2")),
  (("time",), "dense", ("time_emb_proj", "emb_layers.1")),
  (("norm_out",), "norm", ("norm2", "out_layers.0")),
  (("conv_out",), "conv", ("conv2", "out_layers.3")),
  (("shortcut",), "conv", ("conv_shortcut", "skip_connection")),
)
_RESNET = (
  (("norm_in",), "norm", same("norm1")),
  (("conv_in",), "conv", same("conv1")),
  (("norm_out",), "norm", same("norm2")),
  (("conv_out",), "conv", same("conv2")),
  (("shortcut",), "conv", ("conv_shortcut", "nin_shortcut")),
)
_LAYER = "transformer_blocks.0"


def heads(ours: str, theirs: str) -> Iterator[Part]:
  """The four maps of an attention."""
  for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
    yield ((f"{ours}/{name}",), "dense", same(f"{theirs}.to_{short}"))
  yield ((f"{ours}/out",), "out", same(f"{theirs}.to_out.0"))


def _transformer(outer: str) -> tuple[Part, ...]:
  """Parts of a transformer; `outer` is its projections' kind, 'point' or 'dense'."""
  return (
    (("norm",), "norm", same("norm")),
    (("proj_in",), outer, same("proj_in")),
    (("self_norm",), "norm", same(f"{_LAYER}.norm1")),
    *heads("self_attention", f"{_LAYER}.attn1"),
    (("cross_norm",), "norm", same(f"{_LAYER}.norm2")),
    *heads("cross_attention", f"{_LAYER}.attn2"),
    (("mlp_norm",), "norm", same(f"{_LAYER}.norm3")),
    (("mlp/up", "mlp/gate"), "dense", same(f"{_LAYER}.ff.net.0.proj")),
    (("mlp/down",), "dense", same(f"{_LAYER}.ff.net.2")),
    (("proj_out",), outer, same("proj_out")),
  )


# The file has the linear maps of the autoencoder's attention as convolutions.
_ATTENTION = (
  (("norm",), "norm", ("group_norm", "norm")),
  (("attention/query",), "dense|point", ("to_q", "q")),
  (("attention/key",), "dense|point", ("to_k", "k")),
  (("attention/value",), "dense|point", ("to_v", "v")),
  (("attention/out",), "out|point_out", ("to_out.0", "proj_out")),
)
# Old names of these parts in folders written before 2023.
OLD_NAMES = {
  f"mid_block.attentions.0.{old}.": f"mid_block.attentions.0.{new}."
  for old, new in (
    ("query", "to_q"),
    ("key", "to_k"),
    ("value", "to_v"),
    ("proj_attn", "to_out.0"),
  )
}
_TEXT = (
  (("attention_norm",), "norm", same("layer_norm1")),
  *(
    ((f"attention/{ours}",), kind, same(f"self_attn.{theirs}_proj"))
    for ours, kind, theirs in (
      ("query", "dense", "q"),
      ("key", "dense", "k"),
      ("value", "dense", "v"),
      ("out", "out", "out"),
    )
  ),
  (("mlp_norm",), "norm", same("layer_norm2")),
  (("mlp/up",), "dense", same("mlp.fc1")),
  (("mlp/down",), "dense", same("mlp.fc2")),
)


def one(kind: str) -> tuple[Part, ...]:
  """The parts of a module that is a single part."""
  return (((), kind, ("", "")),)


# A module: our path, its parts, its names (in the folder, in the file).
Module = tuple[str, tuple[Part, ...], tuple[str, str]]


def unet_modules(cfg: unet.Config, outer: str) -> Iterator[Module]:
  """All modules of a UNet; see `_transformer` for `outer`."""
  levels, transformer, k = len(cfg.multipliers), _transformer(outer), 1
  yield "conv_in", one("conv"), ("conv_in", "input_blocks.0.0")
  for ours, i in (("time_in", 0), ("time_out", 2)):
    theirs = (f"time_embedding.linear_{1 + i // 2}", f"time_embed.{i}")
    yield ours, one("dense"), theirs
  for level in range(levels):
    for i in range(cfg.num_blocks):
      ours, home = f"down_{level}_{i}", f"down_blocks.{level}"
      yield ours, _TIMED, (f"{home}.resnets.{i}", f"input_blocks.{k}.0")
      theirs = (f"{home}.attentions.{i}", f"input_blocks.{k}.1")
      yield f"{ours}_transformer", transformer, theirs
      k += 1
    theirs = (f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{k}.0.op")
    yield f"down_{level}", one("conv"), theirs
    k += 1
  for i, name in ((0, "in"), (1, "out")):
    theirs = (f"mid_block.resnets.{i}", f"middle_block.{2 * i}")
    yield f"middle_{name}", _TIMED, theirs
  yield "middle_transformer", transformer, ("mid_block.attentions.0", "middle_block.1")
  k = 0
  for step, level in enumerate(reversed(range(levels))):
    home, attends = f"up_blocks.{step}", level in cfg.attention_levels
    for i in range(cfg.num_blocks + 1):
      ours = f"up_{level}_{i}"
      yield ours, _TIMED, (f"{home}.resnets.{i}", f"output_blocks.{k}.0")
      theirs = (f"{home}.attentions.{i}", f"output_blocks.{k}.1")
      yield f"{ours}_transformer", transformer, theirs
      k += 1
    theirs = (f"{home}.upsamplers.0.conv", f"output_blocks.{k - 1}.{1 + attends}.conv")
    yield f"up_{level}", one("conv"), theirs
  yield "norm_out", one("norm"), ("conv_norm_out", "out.0")
  yield "conv_out", one("conv"), ("conv_out", "out.2")


def autoencoder_modules(cfg: autoencoder.Config) -> Iterator[Module]:
  """All modules of an autoencoder."""
  levels = len(cfg.multipliers)
  yield "to_posterior", one("conv"), same("quant_conv")
  yield "from_latent", one("conv"), same("post_quant_conv")
  for half in ("encoder", "decoder"):
    yield f"{half}/conv_in", one("conv"), same(f"{half}.conv_in")
    for i, name in ((0, "in"), (1, "out")):
      theirs = (f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}")
      yield f"{half}/middle_{name}", _RESNET, theirs
    theirs = (f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1")
    yield f"{half}/middle_attention", _ATTENTION, theirs
    theirs = (f"{half}.conv_norm_out", f"{half}.norm_out")
    yield f"{half}/norm_out", one("norm"), theirs
    yield f"{half}/conv_out", one("conv"), same(f"{half}.conv_out")
  for level in range(levels):
    for i in range(cfg.num_blocks):
      theirs = (f"down_blocks.{level}.resnets.{i}", f"down.{level}.block.{i}")
      theirs = tuple(f"encoder.{name}" for name in theirs)
      yield f"encoder/down_{level}_{i}", _RESNET, theirs
    theirs = (f"down_blocks.{level}.downsamplers.0.conv", f"down.{level}.downsample")
    theirs = (f"encoder.{theirs[0]}", f"encoder.{theirs[1]}.conv")
    yield f"encoder/down_{level}", one("conv"), theirs
    home = f"decoder.up_blocks.{levels - 1 - level}"
    for i in range(cfg.num_blocks + 1):
      theirs = (f"{home}.resnets.{i}", f"decoder.up.{level}.block.{i}")
      yield f"decoder/up_{level}_{i}", _RESNET, theirs
    theirs = (f"{home}.upsamplers.0.conv", f"decoder.up.{level}.upsample.conv")
    yield f"decoder/up_{level}", one("conv"), theirs


def text_modules(cfg: text_encoder.Config) -> Iterator[Module]:
  """All modules of CLIP's text encoder."""
  for ours, theirs in (("embed", "token"), ("position", "position")):
    yield ours, one("table"), same(f"embeddings.{theirs}_embedding")
  for i in range(cfg.num_layers):
    yield f"block_{i}", _TEXT, same(f"encoder.layers.{i}")
  yield "final_norm", one("norm"), same("final_layer_norm")


def _leaves(
  kind: str,
) -> Iterator[tuple[str, str, type[names.TensorMap], dict[str, Any]]]:
  """(our leaf, their leaf, class of the map, its arguments) of a kind of part."""
  if kind == "norm":
    yield "scale", "weight", names.TensorMap, {}
  elif kind == "conv":
    yield "kernel", "weight", _Kernel, {}
  elif kind == "table":
    yield "table", "weight", names.TensorMap, {"inputs": 1}
  else:
    entry = _Point if "point" in kind else names.TensorMap
    inputs = 2 if "out" in kind else 1
    yield "kernel", "weight", entry, {"inputs": inputs, "transposed": True}
  yield "bias", "bias", names.TensorMap, {}


def entries(
  modules: Iterable[Module], column: int, prefix: str = ""
) -> Iterator[names.TensorMap]:
  """The maps of all tensors that modules may have.

  Args:
    column: FOLDER or FILE.
    prefix: of all foreign names.
  """
  for path, parts, theirs in modules:
    for ours, kinds, part in parts:
      homes = [f"{path}/{name}" for name in ours] or [path]
      foreign = ".".join(name for name in (theirs[column], part[column]) if name)
      kind = kinds.split("|")[min(column, kinds.count("|"))]
      for leaf, end, make, how in _leaves(kind):
        paths = tuple(f"{home}/{leaf}" for home in homes)
        yield make(f"{prefix}{foreign}.{end}", paths, **how)


@dataclasses.dataclass(frozen=True)
class Model:
  """One of the three networks.

  Attributes:
    name: 'unet', 'autoencoder' or 'text_encoder'.
    config: of the network.
    is_linear: whether a UNet's transformers use linear projections (v2).
  """

  name: str
  config: Any
  is_linear: bool = False

  def modules(self) -> Iterator[Module]:
    """All its modules."""
    if self.name == "unet":
      return unet_modules(self.config, "dense" if self.is_linear else "point")
    if self.name == "autoencoder":
      return autoencoder_modules(self.config)
    return text_modules(self.config)

  def plan(self, abstract: Params, column: int) -> matching.Plan:
    """The foreign tensors of one layout."""
    found = entries(self.modules(), column, PREFIXES[self.name][column])
    return matching.plan(found, matching.unrolled_shapes(abstract))


def match(
  model: Model, tensors: Mapping[str, safetensors.Tensor], abstract: Params, column: int
) -> matching.Places:
  """Where each parameter is, see `matching.match`."""
  rename = modern if column == FOLDER else lambda _, name: name
  found = {rename(model.name, name): tensor for name, tensor in tensors.items()}
  found = {n: t for n, t in found.items() if not n.endswith(".position_ids")}
  plan = model.plan(abstract, column)
  return matching.match(plan, found, f"the weights of the {model.name}")


def modern(network: str, name: str) -> str:
  """The current name of a tensor in a folder."""
  if network == "autoencoder":
    for old, new in OLD_NAMES.items():
      name = name.replace(old, new)
  prefix = PREFIXES[network][FOLDER]
  return name if name.startswith(prefix) else f"{prefix}{name}"


def open_weights(
  folder: pathlib.Path, stems: Sequence[str]
) -> dict[str, safetensors.Tensor]:
  """The tensors in one network's folder, for the first stem that its files have."""
  for stem in stems:
    if any(folder.glob(f"{stem}.safetensors*")):
      return safetensors.open_folder(folder, stem)
  raise InputError(
    f"{folder} has no {stems[0]}.safetensors{safetensors.unopened(folder)}"
  )
