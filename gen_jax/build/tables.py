"""The names in a config and what they stand for, by kind."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from gen_jax import ranges, sharding
from gen_jax.data import (
  chat,
  conversations,
  datasets,
  dreambooth,
  edits,
  embedded,
  latents,
  pipeline,
  repeats,
  sources,
  tokenizers,
)
from gen_jax.data.digits import source as digits
from gen_jax.data.emoji import source as emoji
from gen_jax.data.shapes import source as shapes
from gen_jax.data.tokens import source as tokens
from gen_jax.decoding import generate
from gen_jax.diffusion import (
  codec,
  condition,
  corrupt,
  grids,
  multistep,
  parameterisation,
  samplers,
  schedule,
  weighting,
)
from gen_jax.evaluation import evaluators, features, requested
from gen_jax.models import (
  autoencoder,
  discriminator,
  dit,
  labels,
  tiny_autoencoder,
  transformer,
  unet,
)
from gen_jax.models import text_encoder as text_encoders
from gen_jax.nn import attention, embed, kernels, mlp, norms, spatial
from gen_jax.tasks import autoencoder as autoencoding
from gen_jax.tasks import conditioning, diffusion, lm, lora
from gen_jax.train import init_from, loop, optim
from gen_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Entry:
  """What a name stands for.

  Attributes:
    make: called with the block's keys, and with those of `injected` that are given.
    signature: the callable whose parameters are the block's keys ...
    injected: ... except these, which are not in the config.
  """

  make: Callable[..., Any]
  signature: Callable[..., Any]
  injected: tuple[str, ...] = ()

  def keys(self) -> dict[str, inspect.Parameter]:
    """{key: its default and annotation}."""
    hidden = {*self.injected, "parent", "name"}  # linen adds the last two
    parameters = inspect.signature(self.signature).parameters
    return {name: p for name, p in parameters.items() if name not in hidden}


def _plain(fn, *injected):
  return Entry(fn, fn, injected)


def _later(fn, *injected):
  """A constructor or function with the block's keys bound, to be called later."""
  return Entry(lambda **keys: functools.partial(fn, **keys), fn, injected)


def _model(module, config):
  return Entry(lambda **keys: module(config(**keys)), config)


def _scheduled(make):
  """An optimiser, built together with its learning rate."""
  return Entry(
    lambda learning_rate, **keys: (make(learning_rate, **keys), learning_rate), make
  )


def _value(value):
  return Entry(lambda: value, lambda: value)


def _language_model(model, tokenizer, z_loss: ranges.NotNegative = 0.0):
  size = model.config.vocab_size
  if tokenizer is None:
    return lm.LanguageModel(model, np.zeros(size, np.int32), z_loss)
  if tokenizer.vocab_size > size:
    raise InputError(
      f"task.model.vocab_size={size} is smaller than the tokenizer's vocabulary of"
      f" {tokenizer.vocab_size}; raise it to at least that"
    )
  return lm.LanguageModel(model, tokenizer.token_bytes(size), z_loss)


def _text(
  text_encoder: nn.Module,
  *,
  tokenizer=None,
  caption_length: int | None = None,
  vector_width: int = 0,
):
  """Args:
  text_encoder: encodes the captions.
  """
  del vector_width
  length = caption_length or 1
  pair = np.zeros(length, np.int32), np.ones(length, np.bool_)
  if tokenizer is not None:
    if tokenizer.vocab_size > text_encoder.config.vocab_size:
      raise InputError(
        "task.conditioning.text_encoder.vocab_size="
        f"{text_encoder.config.vocab_size} is smaller than the tokenizer's vocabulary"
        f" of {tokenizer.vocab_size}; raise it to at least that"
      )
    pair = pipeline.pad_caption("", tokenizer, length)
  null_caption = conditioning.Caption(*(x[None] for x in pair))
  return conditioning.Text(text_encoder, null_caption)


def _labels(
  num_classes: ranges.Vocabulary, dtype: str = "float32", *, vector_width: int
):
  """Args:
  num_classes: of the data; the table has one more row, for no class.
  dtype: of the vectors; parameters are float32.
  """
  config = labels.Config(num_classes, vector_width, dtype)
  return conditioning.ClassLabels(labels.LabelEncoder(config), num_classes)


def _unconditional(*, vector_width: int = 0):
  del vector_width
  return conditioning.Unconditional()


def _diffusion(conditioning, **keys):
  width = keys["network"].config.vector_width
  return diffusion.Diffusion(conditioning=conditioning(vector_width=width), **keys)


TABLES: Mapping[str, Mapping[str, Entry]] = {
  "task": {
    "language_model": _plain(_language_model, "tokenizer"),
    "diffusion": Entry(_diffusion, diffusion.Diffusion),
    "autoencoder": _plain(autoencoding.Autoencode),
  },
  "model": {"transformer": _model(transformer.Transformer, transformer.Config)},
  "network": {
    "unet": _model(unet.UNet, unet.Config),
    "dit": _model(dit.DiT, dit.Config),
  },
  "conditioning": {  # called with the network's vector width
    "none": _later(_unconditional, "vector_width"),
    "labels": _later(_labels, "vector_width"),
    "text": _later(_text, "tokenizer", "caption_length", "vector_width"),
  },
  "attention": {
    "transformer": _later(
      spatial.SpatialTransformer, "num_heads", "num_groups", "dtype"
    ),
    "self_attention": _later(spatial.SelfAttention, "num_heads", "num_groups", "dtype"),
  },
  "attention_impl": {
    "xla": _value(attention.attend),
    **{fn.__name__: _later(fn, *kernels.GIVEN) for fn in kernels.ALL},
  },
  "text_encoder": {
    "text_encoder": _model(text_encoders.TextEncoder, text_encoders.Config)
  },
  "norm": {"layer_norm": _later(norms.LayerNorm), "rms_norm": _later(norms.RMSNorm)},
  "mlp": {
    name: _later(module, "hidden", "use_bias", "init", "out_init", "dtype")
    for name, module in (("mlp", mlp.MLP), ("gated_mlp", mlp.GatedMLP))
  },
  "activation": {
    "gelu": _value(mlp.gelu),
    "gelu_exact": _value(functools.partial(jax.nn.gelu, approximate=False)),
    "quick_gelu": _value(mlp.quick_gelu),
    "relu": _value(jax.nn.relu),
    "relu_squared": _value(mlp.relu_squared),
    "silu": _value(jax.nn.silu),
  },
  "position": {
    "learned": _later(embed.LearnedPositions, "max_length", "width"),
    "sinusoidal": _later(embed.SinusoidalPositions, "max_length", "width"),
  },
  "rotary": {"rotary": _plain(embed.Rotary)},
  "scaling": {
    "llama3": _plain(embed.Llama3Scaling),
    "linear": _plain(embed.LinearScaling),
  },
  "remat": {
    "full": _value(jax.checkpoint_policies.nothing_saveable),
    "dots": _value(jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
  },
  "schedule": {
    "vp_linear": _plain(schedule.VPLinear),
    "linear": _plain(schedule.Linear),
    "scaled_linear": _plain(schedule.ScaledLinear),
    "zero_terminal": _plain(schedule.ZeroTerminal),
    "cosine": _plain(schedule.Cosine),
    "karras": _plain(schedule.Karras),
    "rectified_flow": _plain(schedule.RectifiedFlow),
    "shift": _plain(schedule.Shift),
  },
  "target": {
    "x0": _plain(parameterisation.X0),
    "eps": _plain(parameterisation.Eps),
    "v": _plain(parameterisation.V),
    "velocity": _plain(parameterisation.Velocity),
    "score": _plain(parameterisation.Score),
    "edm": _plain(parameterisation.EDM),
  },
  "weighting": {
    "unit": _plain(weighting.Unit),
    "min_snr": _plain(weighting.MinSNR),
    "edm": _plain(weighting.EDMWeight),
    "sigmoid": _plain(weighting.Sigmoid),
  },
  "time_sampler": {
    "uniform": _plain(corrupt.UniformTime),
    "stratified": _plain(corrupt.StratifiedTime),
    "logit_normal": _plain(corrupt.LogitNormalTime),
    "lognormal_sigma": _plain(corrupt.LogNormalSigma),
  },
  "codec": {
    "identity": _plain(codec.identity),
    "affine": _plain(codec.affine),
    "patches": _plain(codec.patches),
    "latent": _plain(autoencoding.codec),
  },
  "condition": {make.__name__: _plain(make) for make in condition.ALL},
  "autoencoder": {
    "autoencoder": _model(autoencoder.Autoencoder, autoencoder.Config),
    "tiny": _model(tiny_autoencoder.TinyAutoencoder, tiny_autoencoder.Config),
  },
  "discriminator": {
    "discriminator": _model(discriminator.Discriminator, discriminator.Config)
  },
  "sampler": {make.__name__: _later(make, "schedule") for make in multistep.ALL},
  "scale": {"by_alpha": _value(samplers.by_alpha), "by_sum": _value(samplers.by_sum)},
  "grid": {grid.__name__: _later(grid, "schedule", "num_steps") for grid in grids.ALL}
  | {"exponential": _later(grids.uniform_logsnr, "schedule", "num_steps")},
  "sampling": {"text": _plain(generate.Sampling), "image": _plain(diffusion.Sampling)},
  "learning_rate": {
    make.__name__: _plain(make, "num_steps")
    for make in (optim.constant, optim.cosine, optim.linear, optim.wsd)
  },
  "optimizer": {
    make.__name__: _scheduled(make)
    for make in (optim.adamw, optim.muon, optim.lion, optim.adafactor, optim.sgd)
  },
  "dataset": {
    "text": _plain(datasets.TextData),
    "packed_text": _plain(datasets.PackedText),
    "infill": _plain(datasets.Infill),
    "instructions": _plain(datasets.Instructions),
    "images": _plain(datasets.ImageData, "prompts"),
    "edits": _plain(datasets.EditData, "prompts"),
    "latents": _plain(datasets.LatentData, "prompts"),
  },
  "source": {
    "pydoc": _plain(embedded.Pydoc),
    "stdlib": _plain(embedded.Stdlib),
    "docstrings": _plain(embedded.Docstrings),
    "files": _plain(sources.TextFiles),
    "jsonl": _plain(sources.JsonLines),
    "alpaca": _plain(conversations.Alpaca),
    "chats": _plain(conversations.Chats),
    "parallel": _plain(conversations.Parallel),
    "tfds_text": _plain(sources.TfdsText),
    "tokens": _plain(tokens.Tokens),
    "mixture": _plain(tokens.Mixture),
    "repeats": _plain(repeats.Repeats),
    "tfds_images": _plain(sources.TfdsImages),
    "digits": _plain(digits.Digits),
    "emoji": _plain(emoji.Emoji),
    "dreambooth": _plain(dreambooth.DreamBooth),
    "shapes": _plain(shapes.Shapes),
    "image_folder": _plain(sources.ImageFolder),
    "npz": _plain(sources.Npz),
    "latents": _plain(latents.Latents),
    "edits": _plain(edits.EditFolder),
  },
  "template": {"alpaca": _value(chat.ALPACA), "plain": _value(chat.PLAIN)},
  "tokenizer": {
    "bytes": _later(tokenizers.plain_bytes, "texts"),
    "characters": _later(tokenizers.characters, "texts"),
    "bpe": _later(tokenizers.train_bpe, "texts"),
    "file": _later(tokenizers.from_file, "texts"),
  },
  "evaluator": {
    make.__name__: _plain(make, "experiment")
    for make in (*evaluators.ALL, *requested.ALL)
  },
  "features": {make.__name__: _plain(make) for make in features.ALL},
  "train": {"train": _plain(loop.Config)},
  "init_from": {"init_from": _plain(init_from.InitFrom)},
  "adapter": {"lora": _plain(lora.LoRA)},
  "mesh": {"mesh": _plain(sharding.make_layout, "devices")},
}
