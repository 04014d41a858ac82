"""The names in a config and what they stand for, by kind."""

import dataclasses
import functools
import inspect
import typing
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
  modular,
  pipeline,
  repeats,
  sources,
  tokenizers,
)
from gen_jax.data.digits import source as digits
from gen_jax.data.emoji import source as emoji
from gen_jax.data.shapes import source as shapes
from gen_jax.data.stored import source as stored
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
from gen_jax.train import init_from, loop, optim, trackers
from gen_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Entry:
  """What a name stands for.

  Attributes:
    make: called with the block's keys, and with those of `injected` that are given.
    signature: the callable whose parameters are the block's keys ...
    injected: ... except these, which are not in the config.
    value: what is made, if it is always the same; None else.
  """

  make: Callable[..., Any]
  signature: Callable[..., Any]
  injected: tuple[str, ...] = ()
  value: Any = None

  def keys(self) -> dict[str, inspect.Parameter]:
    """{key: its default and annotation}."""
    return self._keys

  @functools.cached_property  # every arm of a sweep asks
  def _keys(self) -> dict[str, inspect.Parameter]:
    hidden = {*self.injected, "parent", "name"}  # linen adds the last two
    parameters = inspect.signature(self.signature).parameters
    return {name: p for name, p in parameters.items() if name not in hidden}


def _plain(fn, *injected):
  return Entry(fn, fn, injected)


def _later(fn, *injected):
  """A constructor or function with the block's keys bound, to be called later."""
  return Entry(lambda **keys: functools.partial(fn, **keys), fn, injected)


def _model(module):
  """A linen module with one field, `config`, whose keys are the block's."""
  config = typing.get_type_hints(module)["config"]
  return Entry(lambda **keys: module(config(**keys)), config)


def _scheduled(make):
  """An optimiser, built together with its learning rate."""
  return Entry(
    lambda learning_rate, **keys: (make(learning_rate, **keys), learning_rate), make
  )


def _value(value):
  return Entry(lambda: value, lambda: value, value=value)


def _given(how, *injected):
  """`how` for what takes arguments that no config sets."""
  return lambda made: how(made, *injected)


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
  tokens, mask = np.zeros(length, np.int32), np.ones(length, np.bool_)
  if tokenizer is not None:
    if tokenizer.vocab_size > text_encoder.config.vocab_size:
      raise InputError(
        "task.conditioning.text_encoder.vocab_size="
        f"{text_encoder.config.vocab_size} is smaller than the tokenizer's vocabulary"
        f" of {tokenizer.vocab_size}; raise it to at least that"
      )
    tokens, mask = pipeline.pad_caption("", tokenizer, length)
  null_caption = conditioning.Caption(tokens[None], mask[None])
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


def _task(made):
  given = inspect.signature(made).parameters.keys() & {"tokenizer", "caption_length"}
  return _plain(made, *given)


# Of what is not named after its kind: the place in a config.
KINDS = {"data": "dataset", "train.writers": "writer"}

# How what a kind's name stands for becomes an entry, for what users register as well.
HOW: Mapping[str, Callable[[Any], Entry]] = {
  **dict.fromkeys(("model", "network", "text_encoder"), _model),
  **dict.fromkeys(("autoencoder", "discriminator"), _model),
  **dict.fromkeys(("activation", "remat", "scale", "template"), _value),
  **dict.fromkeys(("rotary", "scaling", "schedule", "target", "weighting"), _plain),
  **dict.fromkeys(("time_sampler", "codec", "condition", "source", "features"), _plain),
  "attention": _given(_later, "num_heads", "num_groups", "dtype", "query_scale"),
  "attention_impl": _given(_later, *kernels.GIVEN),
  "norm": _later,
  "mlp": _given(_later, "hidden", "use_bias", "init", "out_init", "dtype"),
  "position": _given(_later, "max_length", "width"),
  "sampler": _given(_later, "schedule"),
  "grid": _given(_later, "schedule", "num_steps"),
  "learning_rate": _given(_plain, "num_steps"),
  "optimizer": _scheduled,
  "tokenizer": _given(_later, "texts"),
  "evaluator": _given(_plain, "experiment"),
  "writer": _given(_later, "run"),
  "task": _task,
}


def _all(kind, *made, **named):
  """Entries of a kind, by the names of what they stand for, or by other names."""
  named = {one.__name__: one for one in made} | named
  return {name: HOW[kind](one) for name, one in named.items()}


TABLES: Mapping[str, dict[str, Entry]] = {
  "task": {
    "language_model": _plain(_language_model, "tokenizer"),
    "diffusion": Entry(_diffusion, diffusion.Diffusion),
    "autoencoder": _plain(autoencoding.Autoencode),
  },
  "model": _all("model", transformer=transformer.Transformer),
  "network": _all("network", unet=unet.UNet, dit=dit.DiT),
  "conditioning": {  # called with the network's vector width
    "none": _later(_unconditional, "vector_width"),
    "labels": _later(_labels, "vector_width"),
    "text": _later(_text, "tokenizer", "caption_length", "vector_width"),
  },
  "attention": _all(
    "attention",
    transformer=spatial.SpatialTransformer,
    self_attention=spatial.SelfAttention,
  ),
  "attention_impl": {
    "xla": _value(attention.attend),
    **_all("attention_impl", *kernels.ALL),
  },
  "text_encoder": _all("text_encoder", text_encoder=text_encoders.TextEncoder),
  "norm": _all("norm", layer_norm=norms.LayerNorm, rms_norm=norms.RMSNorm),
  "mlp": _all("mlp", mlp=mlp.MLP, gated_mlp=mlp.GatedMLP),
  "activation": _all(
    "activation",
    gelu=mlp.gelu,
    gelu_exact=functools.partial(jax.nn.gelu, approximate=False),
    quick_gelu=mlp.quick_gelu,
    relu=jax.nn.relu,
    relu_squared=mlp.relu_squared,
    silu=jax.nn.silu,
  ),
  "position": _all(
    "position", learned=embed.LearnedPositions, sinusoidal=embed.SinusoidalPositions
  ),
  "rotary": _all("rotary", rotary=embed.Rotary),
  "scaling": _all("scaling", llama3=embed.Llama3Scaling, linear=embed.LinearScaling),
  "remat": _all(
    "remat",
    full=jax.checkpoint_policies.nothing_saveable,
    dots=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  ),
  "schedule": _all(
    "schedule",
    vp_linear=schedule.VPLinear,
    linear=schedule.Linear,
    scaled_linear=schedule.ScaledLinear,
    zero_terminal=schedule.ZeroTerminal,
    cosine=schedule.Cosine,
    karras=schedule.Karras,
    rectified_flow=schedule.RectifiedFlow,
    shift=schedule.Shift,
  ),
  "target": _all(
    "target",
    x0=parameterisation.X0,
    eps=parameterisation.Eps,
    v=parameterisation.V,
    velocity=parameterisation.Velocity,
    score=parameterisation.Score,
    edm=parameterisation.EDM,
  ),
  "weighting": _all(
    "weighting",
    unit=weighting.Unit,
    min_snr=weighting.MinSNR,
    edm=weighting.EDMWeight,
    sigmoid=weighting.Sigmoid,
  ),
  "time_sampler": _all(
    "time_sampler",
    uniform=corrupt.UniformTime,
    stratified=corrupt.StratifiedTime,
    logit_normal=corrupt.LogitNormalTime,
    lognormal_sigma=corrupt.LogNormalSigma,
  ),
  "codec": _all(
    "codec",
    identity=codec.identity,
    affine=codec.affine,
    patches=codec.patches,
    latent=autoencoding.codec,
  ),
  "condition": _all("condition", *condition.ALL),
  "autoencoder": _all(
    "autoencoder",
    autoencoder=autoencoder.Autoencoder,
    tiny=tiny_autoencoder.TinyAutoencoder,
  ),
  "discriminator": _all("discriminator", discriminator=discriminator.Discriminator),
  "sampler": _all("sampler", *multistep.ALL),
  "scale": _all("scale", samplers.by_alpha, samplers.by_sum),
  "grid": _all("grid", *grids.ALL, exponential=grids.uniform_logsnr),
  "sampling": {"text": _plain(generate.Sampling), "image": _plain(diffusion.Sampling)},
  "learning_rate": _all(
    "learning_rate", optim.constant, optim.cosine, optim.linear, optim.wsd
  ),
  "optimizer": _all(
    "optimizer", optim.adamw, optim.muon, optim.lion, optim.adafactor, optim.sgd
  ),
  "dataset": {
    "text": _plain(datasets.TextData),
    "packed_text": _plain(datasets.PackedText),
    "infill": _plain(datasets.Infill),
    "instructions": _plain(datasets.Instructions),
    "images": _plain(datasets.ImageData, "prompts"),
    "edits": _plain(datasets.EditData, "prompts"),
    "latents": _plain(datasets.LatentData, "prompts"),
  },
  "source": _all(
    "source",
    pydoc=embedded.Pydoc,
    stdlib=embedded.Stdlib,
    docstrings=embedded.Docstrings,
    files=sources.TextFiles,
    jsonl=sources.JsonLines,
    alpaca=conversations.Alpaca,
    chats=conversations.Chats,
    parallel=conversations.Parallel,
    tfds_text=sources.TfdsText,
    tokens=tokens.Tokens,
    mixture=tokens.Mixture,
    repeats=repeats.Repeats,
    modular=modular.Modular,
    tfds_images=sources.TfdsImages,
    digits=digits.Digits,
    emoji=emoji.Emoji,
    dreambooth=dreambooth.DreamBooth,
    shapes=shapes.Shapes,
    image_folder=sources.ImageFolder,
    npz=sources.Npz,
    latents=latents.Latents,
    image_store=stored.ImageStore,
    edits=edits.EditFolder,
  ),
  "template": _all("template", alpaca=chat.ALPACA, plain=chat.PLAIN),
  "tokenizer": _all(
    "tokenizer",
    tokenizers.characters,
    bytes=tokenizers.plain_bytes,
    bpe=tokenizers.train_bpe,
    file=tokenizers.from_file,
  ),
  "evaluator": _all("evaluator", *evaluators.ALL, *requested.ALL),
  "features": _all("features", *features.ALL),
  "writer": {  # called, it imports its package
    "wandb": _plain(trackers.wandb),
    "trackio": _plain(trackers.trackio),
    "mlflow": _plain(trackers.mlflow),
  },
  "train": {"train": _plain(loop.Config)},
  "init_from": {"init_from": _plain(init_from.InitFrom)},
  "adapter": {"lora": _plain(lora.LoRA)},
  "mesh": {"mesh": _plain(sharding.make_layout, "devices")},
}
