"""From configs to objects: the only place where names are looked up.

A block of a config is {'name': ..., keyword arguments of what the name stands for}.
Keys that are kinds themselves ('model', 'schedule', 'norm', ...) are built first, to
any depth; a bare string is short for {'name': string}. Unknown names and keys raise
`InputError` with the nearest right ones, values are held against the annotations of
what they are passed to. ConfigDict stops here.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gen_jax import evaluation, features, optim, sharding
from gen_jax.data import (
  chat,
  conversations,
  datasets,
  dreambooth,
  edits,
  embedded,
  latents,
  pipeline,
  sources,
  tokenizers,
)
from gen_jax.data.digits import source as digits
from gen_jax.data.emoji import source as emoji
from gen_jax.data.shapes import source as shapes
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
from gen_jax.models import (
  autoencoder,
  discriminator,
  text_encoder,
  tiny_autoencoder,
  transformer,
  unet,
)
from gen_jax.nn import attention, embed, kernels, mlp, norms, spatial
from gen_jax.tasks import autoencoder as autoencoding
from gen_jax.tasks import diffusion, lm, lora
from gen_jax.train import init_from, loop
from gen_jax.types import InputError, unknown

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
  """What a name stands for.

  Attributes:
    make: called with the block's keys, and with those of `injected` that are at hand.
    signature: the callable whose parameters are the block's keys ...
    injected: ... except these, which do not come from the config.
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
  """A constructor or function with the block's keys bound, called elsewhere."""
  return Entry(lambda **keys: functools.partial(fn, **keys), fn, injected)


def _model(module, config):
  none_at_all = {f.name for f in dataclasses.fields(config) if f.default == 0}

  def make(**keys):
    for key, value in keys.items():
      if type(value) is int and value < 1 and key not in none_at_all:
        raise InputError(f"{module.__name__} {key}={value} must be at least 1")
    return module(config(**keys))

  return Entry(make, config)


def _value(value):
  return Entry(lambda: value, lambda: value)


def _language_model(model, tokenizer, z_loss: float = 0.0):
  size = model.config.vocab_size
  if z_loss < 0:
    raise InputError(f"task.z_loss={z_loss} must be at least 0; 1e-4 is usual")
  if tokenizer is None:
    return lm.LanguageModel(model, np.zeros(size, np.int32), z_loss)
  if tokenizer.vocab_size > size:
    raise InputError(
      f"task.model.vocab_size={size} is smaller than the tokenizer's vocabulary of"
      f" {tokenizer.vocab_size}; raise it to at least that"
    )
  return lm.LanguageModel(model, tokenizer.token_bytes(size), z_loss)


def _diffusion(tokenizer, caption_length, **keys):
  tokens = np.zeros((1, caption_length), np.int32)
  mask = np.ones((1, caption_length), np.bool_)
  if tokenizer is not None:
    if tokenizer.vocab_size > keys["text_encoder"].config.vocab_size:
      raise InputError(
        "task.text_encoder.vocab_size="
        f"{keys['text_encoder'].config.vocab_size} is smaller than the tokenizer's"
        f" vocabulary of {tokenizer.vocab_size}; raise it to at least that"
      )
    pair = pipeline.pad_caption("", tokenizer, caption_length)
    tokens, mask = (x[None] for x in pair)
  return diffusion.Diffusion(null_caption=diffusion.Caption(tokens, mask), **keys)


TABLES: Mapping[str, Mapping[str, Entry]] = {
  "task": {
    "language_model": _plain(_language_model, "tokenizer"),
    "diffusion": Entry(
      _diffusion, diffusion.Diffusion, ("tokenizer", "caption_length", "null_caption")
    ),
    "autoencoder": _plain(autoencoding.Autoencode),
  },
  "model": {"transformer": _model(transformer.Transformer, transformer.Config)},
  "unet": {"unet": _model(unet.UNet, unet.Config)},
  "attention": {
    "transformer": _later(spatial.Transformer, "num_heads", "num_groups", "dtype"),
    "self_attention": _later(spatial.SelfAttention, "num_heads", "num_groups", "dtype"),
  },
  "attend": {
    "xla": _value(attention.attend),
    **{fn.__name__: _later(fn, *kernels.GIVEN) for fn in kernels.ALL},
  },
  "text_encoder": {
    "text_encoder": _model(text_encoder.TextEncoder, text_encoder.Config)
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
    make.__name__: _plain(make)
    for make in (optim.adamw, optim.muon, optim.lion, optim.adafactor, optim.sgd)
  },
  "dataset": {
    "text": _plain(datasets.TextData),
    "packed_text": _plain(datasets.PackedText),
    "infill": _plain(datasets.Infill),
    "instructions": _plain(datasets.Instructions),
    "images": _plain(datasets.ImageData),
    "edits": _plain(datasets.EditData),
    "latents": _plain(datasets.LatentData),
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
  "evaluator": {make.__name__: _plain(make, "experiment") for make in evaluation.ALL},
  "features": {make.__name__: _plain(make) for make in features.ALL},
  "train": {"train": _plain(loop.Config)},
  "init_from": {"init_from": _plain(init_from.InitFrom)},
  "adapter": {"lora": _plain(lora.LoRA)},
  "mesh": {"mesh": _plain(sharding.make_layout, "devices")},
}


_PLAIN = {
  int: "a whole number",
  float: "a number",
  bool: "true or false",
  str: "text",
  type(None): "None",
}


def options(hint: Any) -> tuple[Any, ...]:
  """int | None -> (int, NoneType); int -> (int,)."""
  is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
  return typing.get_args(hint) if is_union else (hint,)


def is_block(key: str, hint: Any) -> bool:
  """Whether a key stands for a block of its own (Heun's `scale`, not a codec's)."""
  plain = _PLAIN.keys() - {type(None)}
  return key in TABLES and not any(option in plain for option in options(hint))


def typed(value: Any, hint: Any, path: str) -> Any:
  """Returns `value` as its annotation wants it, a number where a float is meant.

  Annotations other than numbers, bools, text, None and tuples of them say nothing.

  Raises:
    InputError: a value of another type.
  """
  expected = []
  for option in options(hint):
    if typing.get_origin(option) is tuple:
      inner, *rest = typing.get_args(option)
      length = None if ... in rest else 1 + len(rest)
      size = "" if length is None else f" of {length}"
      expected.append(f"a tuple{size}, each {_PLAIN[inner]}")
      if isinstance(value, list | tuple) and length in (None, len(value)):
        return tuple(typed(v, inner, f"{path}[{i}]") for i, v in enumerate(value))
    elif option in _PLAIN:
      expected.append(_PLAIN[option])
      if option is float and type(value) in (int, float):
        return float(value)
      if type(value) is option:
        return value
  if not expected:
    return value
  raise InputError(f"{path}={value!r:.80} must be {' or '.join(expected)}")


def _entry(kind: str, block: Any, path: str) -> tuple[Entry, dict[str, Any]]:
  """What a block names, and its keys, checked one level deep."""
  if isinstance(block, str):
    block = {"name": block}
  if not isinstance(block, Mapping):
    raise InputError(f"{path}={block!r:.80} must be a block with a name, or a name")
  table = TABLES[kind]
  name = block.get("name", kind if len(table) == 1 else None)
  if not isinstance(name, str) or name not in table:
    where = "" if kind == path else f" ({path})"
    raise unknown(f"{kind}{where}", name, table)
  keys = table[name].keys()
  values = {}
  for key, value in block.items():
    if key == "name":
      continue
    if key not in keys:
      raise unknown_key(path, block, key)
    value, hint = _tuples(value), keys[key].annotation
    if key == "dtype" and value not in DTYPES:
      raise unknown(f"dtype (of {path})", value, DTYPES)
    if not is_block(key, hint):
      value = typed(value, hint, f"{path}.{key}")
    elif value is None and type(None) not in options(hint):
      raise InputError(f"{path}.{key}=None must be a name or a block")
    values[key] = value
  empty = inspect.Parameter.empty
  missing = [k for k, p in keys.items() if p.default is empty and k not in values]
  if missing:
    raise InputError(f"{path} {name!r} needs {', '.join(missing)}")
  return table[name], values


def check(kind: str, block: Any, path: str) -> None:
  """Checks names, keys and types of a block, to any depth, and builds nothing.

  Raises:
    InputError: see `build`.
  """
  if block is not None:
    entry, values = _entry(kind, block, path)
    for key, value in values.items():
      if is_block(key, entry.keys()[key].annotation):
        check(key, value, f"{path}.{key}")


def build(kind: str, block: Any, path: str | None = None, **injected: Any) -> Any:
  """Builds what a block stands for.

  Args:
    kind: a key of TABLES.
    block: {'name': ..., keys}, a bare name, or None (which stays None).
    path: of the block in the config, for messages.
    injected: arguments that do not come from the config, for this block and below.

  Raises:
    InputError: unknown name or key, missing key, a value of the wrong type, or one
      that its owner refuses.
  """
  path = path or kind
  if block is None:
    return None
  entry, values = _entry(kind, block, path)
  for key, value in values.items():
    if is_block(key, entry.keys()[key].annotation):
      values[key] = build(key, value, f"{path}.{key}", **injected)
  given = {key: injected[key] for key in entry.injected if key in injected}
  return entry.make(**values, **given)


def _table(path: str, block: Config) -> tuple[Mapping[str, Entry], str | None]:
  """The names that the block at a dotted path of the config may have, and its own."""
  head, _, last = path.rpartition(".")
  kind = "evaluator" if head == "evaluators" else {"data": "dataset"}.get(path, last)
  table = TABLES.get(kind, {})
  name = block.get("name", kind if len(table) == 1 else None)
  return table, name if isinstance(name, str) else None


def hints(path: str, block: Config) -> dict[str, Any]:
  """{key: annotation} of the keys that the block at a dotted path may have."""
  if not path:
    return {**dict.fromkeys((*BLOCKS, *OPTIONAL, "evaluators"), Any), "seed": int}
  table, name = _table(path, block)
  if not table:
    return dict.fromkeys(block, Any)
  keys = table[name].keys() if name in table else {}
  return {"name": str, **{key: p.annotation for key, p in keys.items()}}


def unknown_key(path: str, block: Config, key: str) -> InputError:
  """The error for a key that the block at a dotted path does not have."""
  table, name = _table(path, block)
  owner = f"{path} {name!r}" if name in table else path or "the config"
  error = unknown(f"key (of {owner})", key, hints(path, block))
  others = [repr(other) for other, entry in table.items() if key in entry.keys()]
  verb = "has" if len(others) == 1 else "have"
  return InputError(f"{error}; {' and '.join(others)} {verb} it") if others else error


def _tuples(value: Any) -> Any:
  """JSON has only lists; configs want tuples."""
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


BLOCKS = ("task", "data", "optimizer", "train", "mesh", "sampling")
OPTIONAL = ("init_from", "adapter")
DTYPES = ("bfloat16", "float16", "float32")
