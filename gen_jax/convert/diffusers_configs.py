"""The UNet's, autoencoder's and text encoder's configs of a diffusers folder.

Read into blocks of an experiment's config and written from them. A key is read, or must
have the one value that the models here implement; else it is an error.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gen_jax import build
from gen_jax.convert import keys
from gen_jax.models import autoencoder, text_encoder, unet
from gen_jax.nn import attention, embed, mlp
from gen_jax.types import InputError, unsupported

Block = dict[str, Any]
_INEXACT = "attention other than softmax"
_EXPORTED = "configs/diffusion/ldm_emoji.py:diffusers trains a model that can be"


class Reader:
  """Takes keys from a config; unread keys must have their only known value."""

  def __init__(self, path: str, config: Any, known: str = "Stable Diffusion 1 and 2"):
    """Args: known: the models that are understood, for the message."""
    if not isinstance(config, dict):
      raise InputError(f"{path} must be a block, not {config!r:.60}")
    self.path, self.left, self.known = path, dict(config), known

  def take(self, key: str, hint: Any, *default: Any) -> Any:
    """The value of a key, which is then accounted for; `default` where it lacks."""
    if key not in self.left:
      if default:
        return default[0]
      raise InputError(f"{self.path} lacks {key}; fetch it again")
    return keys.typed(self.left.pop(key), hint, f"{self.path} {key}")

  def finish(self, fixed: Mapping[str, tuple]) -> None:
    """Raises InputError that lists unread keys with other values.

    Args:
      fixed: {key: allowed values, ... for any}; other keys may be None or False.
    """
    strange = {
      key: value
      for key, value in self.left.items()
      if not key.startswith("_")
      and value not in fixed.get(key, (None, False))
      and ... not in fixed.get(key, ())
    }
    if strange:
      listed = ", ".join(f"{key}={value!r:.60}" for key, value in strange.items())
      raise InputError(
        f"{self.path} has keys that are not understood and may change the model:"
        f" {listed}; {self.known} are understood"
      )


def _levels(path: str, channels: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
  width = channels[0]
  if any(c % width for c in channels):
    raise InputError(
      f"{path} block_out_channels={channels} must be multiples of {width}"
    )
  return width, tuple(c // width for c in channels)


# {key of unet/config.json: its allowed values}
_UNET = {
  "flip_sin_to_cos": (True,),
  "freq_shift": (0,),
  "mid_block_type": ("UNetMidBlock2DCrossAttn",),
  "downsample_padding": (1,),
  "mid_block_scale_factor": (1, 1.0),
  "act_fn": ("silu",),
  "transformer_layers_per_block": (1,),
  "resnet_time_scale_shift": ("default",),
  "resnet_out_scale_factor": (1, 1.0),
  "time_embedding_type": ("positional",),
  "conv_in_kernel": (3,),
  "conv_out_kernel": (3,),
  "attention_type": ("default",),
  "addition_embed_type_num_heads": (...,),
  "upcast_attention": (...,),
  "sample_size": (...,),
  "attention_head_dim": (...,),
}


def read_unet(config: Any) -> tuple[Block, bool]:
  """The unet block, and whether its transformers use linear projections."""
  read = Reader("unet/config.json", config)
  channels = read.take("block_out_channels", tuple[int, ...])
  width, multipliers = _levels(read.path, channels)
  kinds = ("CrossAttnDownBlock2D", "DownBlock2D")
  down = read.take("down_block_types", tuple[str, ...])
  up = read.take("up_block_types", tuple[str, ...])
  for name in down:
    if name not in kinds:
      raise unsupported("block (of unet/config.json)", name, kinds)
  levels = tuple(i for i, name in enumerate(down) if name == kinds[0])
  wanted = tuple(name.replace("Down", "Up") for name in reversed(down))
  if up != wanted or len(down) != len(channels):
    raise InputError(f"unet/config.json up_block_types={up} must mirror {down}")
  inputs, outputs = read.take("in_channels", int), read.take("out_channels", int)
  if inputs not in (outputs, 2 * outputs, 2 * outputs + 1):
    raise InputError(
      f"unet/config.json in_channels={inputs} must be {outputs}, {2 * outputs} for"
      f" instructions or {2 * outputs + 1} for inpainting"
    )
  heads = read.take("num_attention_heads", Any, None)
  heads = heads or read.take("attention_head_dim", Any, 8)  # misnamed: number of heads
  block = {
    "name": "unet",
    "image_channels": outputs,
    "extra_channels": inputs - outputs,
    "width": width,
    "multipliers": multipliers,
    "num_blocks": read.take("layers_per_block", int, 2),
    "attention_levels": levels,
    "attention": {
      "name": "transformer",
      "mlp": {"name": "gated_mlp", "activation": "gelu_exact"},
      "use_bias": False,
    },
    "num_groups": read.take("norm_num_groups", int, 32),
    "eps": read.take("norm_eps", float, 1e-5),
    "dropout": read.take("dropout", float, 0.0),
    "timestep_offset": -1.0,
    "dtype": "float32",
    **_heads(heads, channels),
  }
  is_linear = read.take("use_linear_projection", bool, False)
  read.take("cross_attention_dim", int)
  read.finish(_UNET)
  return block, is_linear


def _heads(heads: Any, channels: tuple[int, ...]) -> Block:
  if isinstance(heads, int):
    return {"num_heads": heads, "head_dim": None}
  sizes = {c // h for c, h in zip(channels, heads, strict=True)}
  if len(sizes) > 1:
    raise InputError(f"unet/config.json attention_head_dim={heads}: heads of one size")
  return {"num_heads": None, "head_dim": sizes.pop()}


def read_autoencoder(config: Any) -> tuple[Block, Block]:
  """The autoencoder block, and mean and std of each latent channel."""
  read = Reader("vae/config.json", config)
  channels = read.take("block_out_channels", tuple[int, ...])
  width, multipliers = _levels(read.path, channels)
  latent = read.take("latent_channels", int, 4)
  scale = read.take("scaling_factor", float, 0.18215)
  shift = read.take("shift_factor", float | None, None) or 0.0
  images, outputs = read.take("in_channels", int, 3), read.take("out_channels", int, 3)
  if images != outputs or scale <= 0:
    raise InputError(f"vae/config.json: {images} channels in, {outputs} out, x {scale}")
  block = {
    "name": "autoencoder",
    "image_channels": images,
    "latent_channels": latent,
    "width": width,
    "multipliers": multipliers,
    "num_blocks": read.take("layers_per_block", int, 1),
    "num_groups": read.take("norm_num_groups", int, 32),
    "middle_attention": read.take("mid_block_add_attention", bool, True),
    "dtype": "float32",
  }
  levels = len(channels)
  for key, kind in (
    ("down_block_types", "DownEncoder"),
    ("up_block_types", "UpDecoder"),
  ):
    if read.take(key, tuple[str, ...]) != (f"{kind}Block2D",) * levels:
      raise InputError(f"vae/config.json {key} must be {levels} times {kind}Block2D")
  read.finish(
    {
      "act_fn": ("silu",),
      "sample_size": (...,),
      "force_upcast": (...,),
      "use_quant_conv": (True,),
      "use_post_quant_conv": (True,),
    }
  )
  return block, {"mean": [shift] * latent, "std": [1.0 / scale] * latent}


def read_text_encoder(config: Any) -> Block:
  """The text_encoder block."""
  read = Reader("text_encoder/config.json", config)
  activation = read.take("hidden_act", str, "quick_gelu")
  known = {"quick_gelu": "quick_gelu", "gelu": "gelu_exact"}
  if activation not in known:
    raise unsupported("activation (of text_encoder/config.json)", activation, known)
  if read.take("layer_norm_eps", float, 1e-5) != 1e-5:
    raise InputError("text_encoder/config.json layer_norm_eps must be 1e-5")
  width, hidden = read.take("hidden_size", int), read.take("intermediate_size", int)
  return {
    "name": "text_encoder",
    "vocab_size": read.take("vocab_size", int),
    "max_length": read.take("max_position_embeddings", int),
    "num_layers": read.take("num_hidden_layers", int),
    "width": width,
    "num_heads": read.take("num_attention_heads", int),
    "mlp_width": hidden,
    "activation": known[activation],
    "is_causal": True,
    "dropout": 0.0,
    "dtype": "float32",
  }


def write_unet(cfg: unet.Config, context: int, is_linear: bool, side: int) -> Block:
  """unet/config.json; the inverse of `read_unet`.

  Raises:
    InputError: a UNet that the format cannot express.
  """
  channels = [cfg.width * m for m in cfg.multipliers]
  attend = cfg.attention(num_heads=1, num_groups=1)
  feed = getattr(attend, "mlp", None)
  wrong = [
    text
    for text, is_wrong in (
      ("attention other than transformer", feed is None),
      (
        "its feed-forward, attention.mlp=gated_mlp with gelu_exact is needed",
        feed and not _is_gated(feed),
      ),
      (_INEXACT, not cfg.has_exact_attention),
      ("attention.use_bias=True", getattr(attend, "use_bias", False)),
    )
    if is_wrong
  ]
  if wrong:
    raise InputError(f"the UNet cannot be exported: {'; '.join(wrong)}; {_EXPORTED}")
  down = [
    f"{'CrossAttn' * (i in cfg.attention_levels)}DownBlock2D"
    for i in range(len(channels))
  ]
  return {
    "_class_name": "UNet2DConditionModel",
    "sample_size": side,
    "in_channels": cfg.image_channels + cfg.extra_channels,
    "out_channels": cfg.image_channels,
    "block_out_channels": channels,
    "down_block_types": down,
    "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
    "layers_per_block": cfg.num_blocks,
    "attention_head_dim": cfg.num_heads or [c // cfg.head_dim for c in channels],
    "cross_attention_dim": context,
    "norm_num_groups": cfg.num_groups,
    "norm_eps": cfg.eps,
    "dropout": cfg.dropout,
    "use_linear_projection": is_linear,
  }


def _is_gated(make: Any) -> bool:
  module = make(hidden=1)
  exact = build.TABLES["activation"]["gelu_exact"].make()
  return isinstance(module, mlp.GatedMLP) and module.activation is exact


def write_autoencoder(
  cfg: autoencoder.Config, mean: Sequence[float], std: Sequence[float], side: int
) -> Block:
  """vae/config.json, which has one shift and one scale for all channels."""
  if not isinstance(cfg, autoencoder.Config):
    raise InputError("only latent diffusion with a KL autoencoder can be exported")
  if not attention.is_exact(cfg.attention_impl):
    raise InputError(f"the autoencoder cannot be exported: {_INEXACT}")
  if len(set(mean)) > 1 or len(set(std)) > 1:
    raise InputError(
      "the autoencoder cannot be exported: the format has one scale for all channels of"
      " the latents, these were measured per channel"
    )
  levels = len(cfg.multipliers)
  return {
    "_class_name": "AutoencoderKL",
    "sample_size": side,
    "in_channels": cfg.image_channels,
    "out_channels": cfg.image_channels,
    "latent_channels": cfg.latent_channels,
    "block_out_channels": [cfg.width * m for m in cfg.multipliers],
    "down_block_types": ["DownEncoderBlock2D"] * levels,
    "up_block_types": ["UpDecoderBlock2D"] * levels,
    "layers_per_block": cfg.num_blocks,
    "norm_num_groups": cfg.num_groups,
    "mid_block_add_attention": cfg.middle_attention,
    "scaling_factor": float(f"{1.0 / std[0]:.7g}"),  # std is kept in float32
    "shift_factor": mean[0] or None,
  }


def write_text_encoder(cfg: text_encoder.Config) -> Block:
  """text_encoder/config.json; the inverse of `read_text_encoder`.

  Raises:
    InputError: a text encoder that the format cannot express.
  """
  table = build.TABLES["activation"]
  known = {"quick_gelu": "quick_gelu", "gelu": "gelu_exact"}
  names = [k for k, v in known.items() if table[v].make() is cfg.activation]
  positions = embed.are_learned(cfg.position) and cfg.rotary is None
  if not (cfg.is_causal and names and positions):
    raise InputError(
      "the text encoder cannot be exported: it is not CLIP's, with is_causal=True,"
      f" learned positions and quick_gelu or gelu_exact; {_EXPORTED}"
    )
  return {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.width,
    "intermediate_size": cfg.mlp_width or 4 * cfg.width,
    "num_hidden_layers": cfg.num_layers,
    "num_attention_heads": cfg.num_heads,
    "max_position_embeddings": cfg.max_length,
    "hidden_act": names[0],
    "layer_norm_eps": 1e-5,
  }
