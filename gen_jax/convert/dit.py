"""DiT as diffusers' DiTPipeline has it: a folder of three parts.

    model_index.json (names of the classes), transformer/, vae/, scheduler/

Each block of the format holds a copy of the time and class embedders; the released code
trained one. Copies that differ are refused, and equal ones are written.

diffusers spaces the frequencies of the time as 10000^(-i / 127), the code that DiT was
trained with as 10000^(-i / 128). What is read here computes what diffusers computes.

Source: Peebles & Xie 2022 (arXiv:2212.09748), the released code and diffusers' classes.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gen_jax import build, safetensors
from gen_jax.convert import diffusers, matching
from gen_jax.convert import diffusers_configs as configs
from gen_jax.convert import diffusers_schedulers as schedulers
from gen_jax.convert import stable_diffusion as sd
from gen_jax.models import autoencoder, dit, labels
from gen_jax.system import files
from gen_jax.tasks import diffusion
from gen_jax.types import InputError, Params

Block = dict[str, Any]
MAX_PERIOD = 10000.0 ** (128 / 127)
PIPELINE = "DiTPipeline"
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
  read = configs.Reader(_PATH, config, known="DiTs")
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


def is_here(folder: pathlib.Path) -> bool:
  """Whether a folder is a DiTPipeline."""
  path = folder / diffusers.INDEX
  return path.is_file() and files.read_json(path).get("_class_name") == PIPELINE


@dataclasses.dataclass(frozen=True)
class Opened:
  """What a folder holds.

  Attributes:
    task: the task block, its codec's autoencoder included.
    latents: mean and std of each latent channel.
    tensors: of 'transformer' and 'vae'.
    side: of the images.
    class_names: of each label; several for one are separated by commas.
    scheduler: what it means here.
    scheduler_text: scheduler_config.json.
  """

  task: Block
  latents: Block
  tensors: Mapping[str, Mapping[str, safetensors.Tensor]]
  side: int
  class_names: tuple[str, ...]
  scheduler: schedulers.Scheduler
  scheduler_text: str

  def model(self) -> "Model":
    """The DiT and the embedding of its labels."""
    config = build.build("network", self.task["network"]).config
    num_classes = self.task["conditioning"]["num_classes"]
    return Model(config, labels.Config(num_classes, config.vector_width))

  def autoencoder(self) -> sd.Model:
    """The autoencoder."""
    block = self.task["codec"]["autoencoder"]
    return sd.Model("autoencoder", build.build("autoencoder", block).config)


def open_folder(folder: pathlib.Path) -> Opened:
  """Reads the configs and the headers of the weights of a folder.

  Raises:
    InputError: anything that is not understood, missing or damaged.
  """
  index = files.read_json(folder / diffusers.INDEX)
  network, conditioning = read_config(files.read_json(folder / _PATH))
  vae, latents = configs.read_autoencoder(files.read_json(folder / diffusers.VAE))
  text = files.read(folder / diffusers.SCHEDULER)
  scheduler = schedulers.read(files.parse_json(text, str(folder / schedulers.PATH)))
  tensors = {
    part: sd.open_weights(folder / part, diffusers.STEMS["unet"])
    for part in ("transformer", "vae")
  }
  depth = network["num_layers"]
  matching.check_depth(depth, tensors["transformer"], "the transformer's layers")
  depth = len(vae["multipliers"]) * vae["num_blocks"]
  matching.check_depth(depth, tensors["vae"], "blocks of the autoencoder")
  task = {
    "name": "diffusion",
    "network": network,
    "conditioning": conditioning,
    "schedule": scheduler.schedule,
    "target": scheduler.target,
    "weighting": {"name": "unit"},
    "time_sampler": {"name": "uniform", "t_min": 0.001, "t_max": 1.0},
    "codec": {"name": "latent", "autoencoder": vae, "workdir": None},
    "drop_prob": 0.1,
  }
  names = _class_names(index.get("id2label"), conditioning["num_classes"])
  side = network["image_size"] * 2 ** (len(vae["multipliers"]) - 1)
  return Opened(task, latents, tensors, side, names, scheduler, text)


def _class_names(named: Any, num: int) -> tuple[str, ...]:
  """The names in model_index.json; numbers where there are none."""
  if named is None:
    return tuple(map(str, range(num)))
  numbers = [str(i) for i in range(num)]
  is_whole = isinstance(named, dict) and named.keys() == {*numbers}
  if not is_whole or not all(isinstance(name, str) for name in named.values()):
    raise InputError(
      f"{diffusers.INDEX} id2label must have a name for each of {num} classes, '0' to"
      f" '{num - 1}'"
    )
  return tuple(named[number] for number in numbers)


def describe(
  task: diffusion.Diffusion,
  vae: autoencoder.Config,
  latents: Block,
  class_names: Sequence[str],
  scheduler: schedulers.Written,
) -> dict[str, Block | str]:
  """All configs of a folder, by their paths in it; the inverse of `open_folder`.

  Raises:
    InputError: a model that the format cannot express.
  """
  network = task.network.config
  side = network.image_size * vae.factor
  return {
    _PATH: write_config(network, task.conditioning.num_classes),
    diffusers.VAE: configs.write_autoencoder(vae, **latents, side=side),
    diffusers.SCHEDULER: scheduler.text,
    diffusers.INDEX: {
      "_class_name": PIPELINE,
      "transformer": ["diffusers", "DiTTransformer2DModel"],
      "vae": ["diffusers", "AutoencoderKL"],
      "scheduler": ["diffusers", scheduler.name],
      "id2label": {str(i): name for i, name in enumerate(class_names)},
    },
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

  def _own(self) -> Iterator[sd.Module]:
    """Modules of the DiT, by their paths in it, but for the embedders."""
    yield "patch_in", sd.one("conv"), sd.same("pos_embed.proj")
    for i in range(self.network.num_layers):
      yield f"block_{i}", _PARTS, sd.same(f"transformer_blocks.{i}")
    yield "modulation", sd.one("dense"), sd.same("proj_out_1")
    yield "patch_out", sd.one("dense"), sd.same("proj_out_2")

  def modules(self) -> Iterator[sd.Module]:
    """All modules; the embedders once for each block."""
    for path, parts, theirs in self._own():
      yield f"dit/{path}", parts, theirs
    for i in range(self.network.num_layers):
      home = f"transformer_blocks.{i}.{_EMBEDDERS}"
      for ours, name in (("time_in", "linear_1"), ("time_out", "linear_2")):
        theirs = sd.same(f"{home}timestep_embedder.{name}")
        yield f"dit/{ours}", sd.one("dense"), theirs
      table = sd.same(f"{home}class_embedder.embedding_table")
      yield "labels", sd.one("table"), table

  def plan(self, abstract: Params) -> matching.Plan:
    """The foreign tensors; the embedders are in one of each block."""
    entries = sd.entries(self.modules(), sd.FOLDER)
    return matching.plan(entries, matching.unrolled_shapes(abstract))

  def adapter_plan(self, abstract: Params) -> matching.Plan:
    """What LoRA files may change: all but the embedders, which stand in each block."""
    shapes = matching.unrolled_shapes(abstract["dit"])
    own = {path: s for path, s in shapes.items() if not path.startswith("time_")}
    return matching.plan(sd.entries(self._own(), sd.FOLDER), own)


def match(
  model: Model, tensors: Mapping[str, safetensors.Tensor], abstract: Params
) -> matching.Places:
  """Where each parameter is, see `matching.match`.

  Raises:
    InputError: what does not fit; or the blocks' copies of the embedders differ.
  """
  plan = model.plan(abstract)
  places = matching.match(plan, tensors, "the weights of the transformer")
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
