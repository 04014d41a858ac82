"""config.json to a config's model block and back, for GPT-2 and LLaMA; see `keys`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from gen_jax import build
from gen_jax.convert import keys, names
from gen_jax.models import transformer
from gen_jax.nn import attention, embed, mlp, norms
from gen_jax.types import InputError, unsupported

Foreign = dict[str, Any]
# {foreign name: ours}; export writes the first of several.
_ACTIVATIONS = {
  "gelu_new": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "gelu": "gelu_exact",
  "silu": "silu",
  "swish": "silu",
  "relu": "relu",
}


def _activation(name: str) -> str:
  if name not in _ACTIVATIONS:
    raise unsupported("activation (of config.json)", name, _ACTIVATIONS)
  return _ACTIVATIONS[name]


def _read_gpt2(read: keys.Reader) -> Foreign:
  width = read.take("n_embd", int)
  heads = read.take("n_head", int)
  eps = read.take("layer_norm_epsilon", float, 1e-5)
  activation = read.take("activation_function", str, "gelu_new")
  length, layers = read.take("n_positions", int), read.take("n_layer", int)
  read.same("hidden_size", width)
  read.same("num_attention_heads", heads)
  read.same("num_hidden_layers", layers)
  read.same("max_position_embeddings", length)
  return {
    "vocab_size": read.take("vocab_size", int),
    "max_length": length,
    "num_layers": layers,
    "width": width,
    "num_heads": heads,
    "num_kv_heads": None,
    "head_dim": None,
    "mlp_width": read.take("n_inner", int | None, None),
    "norm": {"name": "layer_norm", "eps": eps, "use_bias": True},
    "mlp": {"name": "mlp", "activation": _activation(activation)},
    "position": {"name": "learned"},
    "rotary": None,
    "use_bias": True,
    "tied_head": read.take("tie_word_embeddings", bool, True),
  }


def _read_rope(read: keys.Reader) -> Foreign:
  """Old spelling: rope_theta and rope_scaling; newer: rope_parameters."""
  blocks = [read.take(k, Any, {}) for k in ("rope_scaling", "rope_parameters")]
  if not all(isinstance(block, dict) for block in blocks):
    raise InputError(f"config.json rope_scaling={blocks[0]!r:.60} must be a block")
  old, new = blocks
  both = [k for k in old.keys() & new.keys() if old[k] != new[k]]
  if both:
    raise InputError(
      f"config.json rope_scaling and rope_parameters contradict each other: {both}"
    )
  rope = keys.Reader({**old, **new})
  theta = read.take("rope_theta", float, None)
  base = rope.take("rope_theta", float, 1e4 if theta is None else theta)
  if theta not in (None, base):
    raise InputError(f"config.json rope_theta is both {theta} and {base}; keep one")
  old_kind = rope.take("type", str, None)
  kind = rope.take("rope_type", str, old_kind or "default")
  if old_kind not in (None, kind):
    raise InputError(
      f"config.json rope_scaling is of types {old_kind!r} and {kind!r}; keep one"
    )
  scaling = None
  if kind == "llama3":
    original = rope.take("original_max_position_embeddings", int)
    scaling = {"name": "llama3", "original_length": original}
    for key in ("factor", "low_freq_factor", "high_freq_factor"):
      scaling[key] = rope.take(key, float)
  elif kind == "linear":
    scaling = {"name": "linear", "factor": rope.take("factor", float)}
  elif kind != "default":
    kinds = ("default", "llama3", "linear")
    raise unsupported("rope_type (of config.json)", kind, kinds)
  rope.finish()
  return {"name": "rotary", "base": base, "scaling": scaling}


def _read_llama(read: keys.Reader) -> Foreign:
  biases = [read.take(f"{name}_bias", bool, False) for name in ("attention", "mlp")]
  activation = read.take("hidden_act", str, "silu")
  eps = read.take("rms_norm_eps", float, 1e-6)
  length, layers = (
    read.take(key, int) for key in ("max_position_embeddings", "num_hidden_layers")
  )
  # A window as long as the context masks nothing.
  read.may_be("sliding_window", lambda n: type(n) is int and n >= length)
  read.may_be("layer_types", lambda kinds: kinds == ["full_attention"] * layers)
  return {
    "vocab_size": read.take("vocab_size", int),
    "max_length": length,
    "num_layers": layers,
    "width": read.take("hidden_size", int),
    "num_heads": read.take("num_attention_heads", int),
    "num_kv_heads": read.take("num_key_value_heads", int | None, None),
    "head_dim": read.take("head_dim", int | None, None),
    "mlp_width": read.take("intermediate_size", int),
    "norm": {"name": "rms_norm", "eps": eps},
    "mlp": {"name": "gated_mlp", "activation": _activation(activation)},
    "position": None,
    "rotary": _read_rope(read),
    "use_bias": any(biases),
    "tied_head": read.take("tie_word_embeddings", bool, False),
  }


def _foreign_activation(function: Callable) -> str | None:
  table = build.TABLES["activation"]
  for foreign, own in _ACTIVATIONS.items():
    if table[own].make() is function:
      return foreign
  return None


def _common_misfits(cfg: transformer.Config) -> list[str]:
  activation = cfg.mlp(hidden=1).activation
  return [
    text
    for text, wrong in (
      (f"window={cfg.window}", cfg.window is not None),
      ("attention other than softmax", not attention.is_exact(cfg.attention_impl)),
      ("its activation", _foreign_activation(activation) is None),
    )
    if wrong
  ]


def _gpt2_misfits(cfg: transformer.Config) -> list[str]:
  heads = cfg.num_kv_heads or cfg.num_heads
  return _common_misfits(cfg) + [
    text
    for text, wrong in (
      ("a norm other than layer_norm", not isinstance(cfg.norm(), norms.LayerNorm)),
      ("an mlp other than mlp", type(cfg.mlp(hidden=1)) is not mlp.MLP),
      ("positions other than learned", not embed.are_learned(cfg.position)),
      ("rotary", cfg.rotary is not None),
      ("num_kv_heads", heads != cfg.num_heads),
      ("head_dim", cfg.dim_per_head * cfg.num_heads != cfg.width),
    )
    if wrong
  ]


def _llama_misfits(cfg: transformer.Config) -> list[str]:
  return _common_misfits(cfg) + [
    text
    for text, wrong in (
      ("a norm other than rms_norm", not isinstance(cfg.norm(), norms.RMSNorm)),
      ("an mlp other than gated_mlp", not isinstance(cfg.mlp(hidden=1), mlp.GatedMLP)),
      ("additive positions", cfg.position is not None),
      ("no rotary", not isinstance(cfg.rotary, embed.Rotary)),
    )
    if wrong
  ]


def _write_gpt2(cfg: transformer.Config) -> Foreign:
  return {
    "vocab_size": cfg.vocab_size,
    "n_positions": cfg.max_length,
    "n_embd": cfg.width,
    "n_layer": cfg.num_layers,
    "n_head": cfg.num_heads,
    "n_inner": cfg.mlp_width,
    "activation_function": _foreign_activation(cfg.mlp(hidden=1).activation),
    "layer_norm_epsilon": cfg.norm().eps,
    "tie_word_embeddings": cfg.tied_head,
    **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), cfg.dropout),
  }


def _write_llama(cfg: transformer.Config) -> Foreign:
  scaling = cfg.rotary.scaling
  if isinstance(scaling, embed.Llama3Scaling):
    rope = {**dataclasses.asdict(scaling), "rope_type": "llama3"}
    rope["original_max_position_embeddings"] = rope.pop("original_length")
  elif isinstance(scaling, embed.LinearScaling):
    rope = {"rope_type": "linear", "factor": scaling.factor}
  else:
    rope = None
  return {
    "vocab_size": cfg.vocab_size,
    "max_position_embeddings": cfg.max_length,
    "hidden_size": cfg.width,
    "intermediate_size": cfg.mlp_width or 4 * cfg.width,
    "num_hidden_layers": cfg.num_layers,
    "num_attention_heads": cfg.num_heads,
    "num_key_value_heads": cfg.num_kv_heads or cfg.num_heads,
    "head_dim": cfg.dim_per_head,
    "hidden_act": _foreign_activation(cfg.mlp(hidden=1).activation),
    "rms_norm_eps": cfg.norm().eps,
    "rope_theta": cfg.rotary.base,
    "rope_scaling": rope,
    "attention_bias": cfg.use_bias,
    "mlp_bias": cfg.use_bias,
    "tie_word_embeddings": cfg.tied_head,
    "attention_dropout": 0.0,
  }


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One foreign family.

  Attributes:
    name: of its class.
    model_type: of its configs.
    table: of its tensors.
    prefix: omitted in files of the model without its head.
    buffers: suffixes of tensors that are not parameters.
    read: config.json to a model block.
    write: the inverse, from a Config.
    misfits: parts of a Config that the family cannot express.
  """

  name: str
  model_type: str
  table: Sequence[names.TensorMap]
  prefix: str
  buffers: tuple[str, ...]
  read: Callable[[keys.Reader], Foreign]
  write: Callable[[transformer.Config], Foreign]
  misfits: Callable[[transformer.Config], list[str]]


ALL = (
  Architecture(
    "GPT2LMHeadModel",
    "gpt2",
    names.GPT2,
    "transformer.",
    (".attn.bias", ".attn.masked_bias"),
    _read_gpt2,
    _write_gpt2,
    _gpt2_misfits,
  ),
  Architecture(
    "LlamaForCausalLM",
    "llama",
    names.LLAMA,
    "model.",
    (".rotary_emb.inv_freq",),
    _read_llama,
    _write_llama,
    _llama_misfits,
  ),
)


def _family(config: Any) -> Architecture:
  if not isinstance(config, dict):
    raise InputError(f"config.json must be a block, not {config!r:.60}")
  named = config.get("architectures")
  name = named[0] if isinstance(named, list) and named else None
  found = [a for a in ALL if name == a.name]
  if name is None:
    found = [a for a in ALL if config.get("model_type") == a.model_type]
  if not found:
    part = config.get("_class_name")
    if name is None and part is not None:
      raise InputError(
        f"config.json is of {part!r:.60}, a part of an image model; give the folder"
        " with model_index.json, which holds all its parts"
      )
    shown = name if name is not None else config.get("model_type")
    raise unsupported("architecture (of config.json)", shown, (a.name for a in ALL))
  own = config.get("auto_map") or {}
  if any(str(key).startswith("AutoModel") for key in own):
    raise InputError(
      f"config.json auto_map={own!r:.120}: the model has code of its own, which is"
      " never run; plain GPT-2 and LLaMA are supported"
    )
  return found[0]


def read(config: Any) -> tuple[Architecture, Foreign]:
  """The family and the model block of a config.json.

  Raises:
    InputError: another family, or a missing, wrong or unknown key.
  """
  architecture, reader = _family(config), keys.Reader(config)
  block = architecture.read(reader)
  reader.finish()
  block = {"name": "transformer", **block, "dropout": 0.0, "dtype": "float32"}
  build.build("model", block, "config.json")  # refuses sizes that do not fit
  return architecture, block


def unused_keys(config: Any) -> list[str]:
  """The keys of a config.json that `read` ignores: unknown empty ones, and sampling."""
  reader = keys.Reader(config)
  _family(config).read(reader)
  return reader.finish()


def fitting(config: transformer.Config) -> Architecture:
  """The family that can express a model.

  Raises:
    InputError: says for each family what it cannot express.
  """
  misfits = {a.name: (a, a.misfits(config)) for a in ALL}
  for architecture, wrong in misfits.values():
    if not wrong:
      return architecture
  reasons = "; ".join(f"{name}: {', '.join(w)}" for name, (_, w) in misfits.items())
  raise InputError(
    f"the model cannot be exported, no foreign format expresses it ({reasons})"
  )
