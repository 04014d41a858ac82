"""DiT's weights and config.json as diffusers' DiTTransformer2DModel has them.

    transformer/config.json, transformer/diffusion_pytorch_model.safetensors

The format keeps one copy of the time and class embedders in each block, of which the
released code trained one: copies that differ are refused, and equal ones are written.

diffusers spaces the frequencies of the time as 10000^(-i / 127), the code that DiT was
trained with as 10000^(-i / 128). What is read here computes what diffusers computes.

Source: Peebles & Xie 2022 (arXiv:2212.09748), the released code and diffusers' classes.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gen_jax import safetensors, tree
from gen_jax.convert import diffusers_configs, names
from gen_jax.convert import stable_diffusion as sd
from gen_jax.models import dit, labels
from gen_jax.types import InputError, Params

Block = dict[str, Any]
MAX_PERIOD = 10000.0 ** (128 / 127)
_PATH = "transformer/config.json"
_EMBEDDERS = "norm1.emb."
_PARTS: tuple[sd.Part, ...] = (
  (("modulation",), "dense", sd.same("norm1.linear")),
  *sd.heads("attention", "attn1"),
  (("mlp/up",), "dense", sd.same("ff.net.0.proj")),
  (("mlp/down",), "dense", sd.same("ff.net.2")),
)


def read_config(config: Any) -> tuple[Block, Block]:
  """The network block and the conditioning block of a transformer/config.json.

  Raises:
    InputError: a key that is missing, of another type, or that may change the model.
  """
  read = diffusers_configs.Reader(_PATH, config, known="DiTs")
  heads = read.take("num_attention_heads", int, 16)
  width = heads * read.take("attention_head_dim", int, 72)
  channels = read.take("in_channels", int, 4)
  outputs = read.take("out_channels", int | None, None) or channels
  if outputs not in (channels, 2 * channels):
    raise InputError(
      f"{_PATH} out_channels={outputs} must be in_channels={channels}, or twice that"
    )
  network = {
    "name": "dit",
    "image_channels": channels,
    "image_size": read.take("sample_size", int, 32),
    "patch_size": read.take("patch_size", int, 2),
    "width": width,
    "num_layers": read.take("num_layers", int, 28),
    "num_heads": heads,
    "learn_sigma": outputs > channels,
    "max_period": MAX_PERIOD,
    "timestep_offset": -1.0,
    "dtype": "float32",
  }
  num_classes = read.take("num_embeds_ada_norm", int, 1000)
  read.finish(
    {
      "activation_fn": ("gelu-approximate",),
      "attention_bias": (True,),
      "dropout": (0, 0.0),
      "norm_type": ("ada_norm_zero",),
      "norm_elementwise_affine": (False,),
      # Of the second norm alone; the first has 1e-6 always, and so had DiT's own code.
      "norm_eps": (1e-5, 1e-6),
      "norm_num_groups": (...,),
      "upcast_attention": (...,),
    }
  )
  return network, {"name": "labels", "num_classes": num_classes}


def write_config(network: dit.Config, num_classes: int) -> Block:
  """transformer/config.json; the inverse of `read_config`.

  Raises:
    InputError: a DiT that the format cannot express.
  """
  wrong = [
    text
    for text, is_wrong in (
      ("attention other than softmax", not network.has_exact_attention),
      (f"extra_channels={network.extra_channels}", network.extra_channels),
      (
        f"mlp_width={network.mlp_width}, 4 times the width is needed",
        network.mlp_width not in (None, 4 * network.width),
      ),
      (
        f"max_period={network.max_period:g}, {MAX_PERIOD:.10g} is needed",
        not math.isclose(network.max_period, MAX_PERIOD, rel_tol=1e-6),
      ),
      (
        f"timestep_offset={network.timestep_offset:g}, -1 is needed",
        network.timestep_offset != -1.0,
      ),
    )
    if is_wrong
  ]
  if wrong:
    raise InputError(f"the DiT cannot be exported: {'; '.join(wrong)}")
  return {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": network.num_heads,
    "attention_head_dim": network.width // network.num_heads,
    "in_channels": network.image_channels,
    "out_channels": network.image_channels * (1 + network.learn_sigma),
    "num_layers": network.num_layers,
    "dropout": 0.0,
    "attention_bias": True,
    "sample_size": network.image_size,
    "patch_size": network.patch_size,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": num_classes,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
  }


@dataclasses.dataclass(frozen=True)
class Model:
  """A DiT and the embedding of its labels: {"dit": ..., "labels": ...}.

  Attributes:
    network: the DiT's hyper-parameters.
    labels: the label encoder's.
  """

  network: dit.Config
  labels: labels.Config

  def modules(self) -> Iterator[sd.Module]:
    """All modules; the embedders once for each block."""
    yield "dit/patch_in", sd.one("conv"), sd.same("pos_embed.proj")
    for i in range(self.network.num_layers):
      home = f"transformer_blocks.{i}"
      yield f"dit/block_{i}", _PARTS, sd.same(home)
      for ours, theirs in (
        ("dit/time_in", "timestep_embedder.linear_1"),
        ("dit/time_out", "timestep_embedder.linear_2"),
      ):
        yield ours, sd.one("dense"), sd.same(f"{home}.{_EMBEDDERS}{theirs}")
      table = f"{home}.{_EMBEDDERS}class_embedder.embedding_table"
      yield "labels/embed", sd.one("table"), sd.same(table)
    yield "dit/modulation", sd.one("dense"), sd.same("proj_out_1")
    yield "dit/patch_out", sd.one("dense"), sd.same("proj_out_2")

  def rows(self, abstract: Params) -> dict[str, tuple[names.Row, names.Shape]]:
    """{foreign name: row and shape}; every parameter is in one or more of them."""
    shapes = {p: tuple(x.shape) for p, x in tree.flatten(abstract).items()}
    found = sd.rows(self.modules(), shapes, sd.FOLDER, "")
    held = {path for row, _ in found.values() for path in row.paths}
    if left := sorted(shapes.keys() - held):
      raise ValueError(f"no foreign tensor holds {left}")
    return found


def match(
  model: Model, tensors: Mapping[str, safetensors.Tensor], abstract: Params
) -> dict[str, tuple[names.Row, safetensors.Tensor]]:
  """Where each parameter is; see `huggingface.match`.

  Raises:
    InputError: lists what is missing, extra, mis-shaped or of an unknown dtype; or the
      blocks' copies of the embedders differ.
  """
  places = sd.places(model.rows(abstract), tensors, "the weights of the transformer")
  for name, tensor in tensors.items():
    _, mark, own = name.partition(_EMBEDDERS)
    first = f"transformer_blocks.0.{_EMBEDDERS}{own}"
    if mark and not _is_equal(tensor, tensors[first]):
      raise InputError(
        f"{name} is not equal to {first}: a DiT has one embedding of times and classes"
        " for all blocks; these weights are of another model"
      )
  return places


def _is_equal(one: safetensors.Tensor, other: safetensors.Tensor) -> bool:
  return one.dtype == other.dtype and np.array_equal(one.view(), other.view())


def plan(model: Model, params: Params) -> dict[str, safetensors.Planned]:
  """The foreign tensors of a model."""
  return sd.planned(model.rows(params), params)
