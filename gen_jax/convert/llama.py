"""LLaMA's files, 1 to 3.2 and their kin, as transformers has them."""

import dataclasses
from typing import Any

from gen_jax.convert import keys, language, names
from gen_jax.models import transformer
from gen_jax.nn import embed, mlp, norms
from gen_jax.types import InputError, unsupported

_L, _B = "model.layers.{i}", "block_{i}"
_TABLE = (
  names.TensorMap("model.embed_tokens.weight", ("embed/table",), 1),
  *names.norm(f"{_L}.input_layernorm", f"{_B}/attention_norm"),
  *names.linear(f"{_L}.self_attn.q_proj", f"{_B}/attention/query", transposed=True),
  *names.linear(f"{_L}.self_attn.k_proj", f"{_B}/attention/key", transposed=True),
  *names.linear(f"{_L}.self_attn.v_proj", f"{_B}/attention/value", transposed=True),
  *names.linear(
    f"{_L}.self_attn.o_proj", f"{_B}/attention/out", inputs=2, transposed=True
  ),
  *names.norm(f"{_L}.post_attention_layernorm", f"{_B}/mlp_norm"),
  *names.linear(f"{_L}.mlp.gate_proj", f"{_B}/mlp/gate", transposed=True),
  *names.linear(f"{_L}.mlp.up_proj", f"{_B}/mlp/up", transposed=True),
  *names.linear(f"{_L}.mlp.down_proj", f"{_B}/mlp/down", transposed=True),
  *names.norm("model.norm", "final_norm"),
  names.TensorMap("lm_head.weight", ("head/kernel",), 1, True),
)


def _read_rope(read: keys.Reader) -> language.Foreign:
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
  rope = keys.Reader({**old, **new}, read.known)
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


def _read(read: keys.Reader) -> language.Foreign:
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
    "mlp": {"name": "gated_mlp", "activation": language.activation(activation)},
    "position": None,
    "rotary": _read_rope(read),
    "use_bias": any(biases),
    "tied_head": read.take("tie_word_embeddings", bool, False),
  }


def _write(cfg: transformer.Config) -> language.Foreign:
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
    "hidden_act": language.foreign_activation(cfg.mlp(hidden=1).activation),
    "rms_norm_eps": cfg.norm().eps,
    "rope_theta": cfg.rotary.base,
    "rope_scaling": rope,
    "attention_bias": cfg.use_bias,
    "mlp_bias": cfg.use_bias,
    "tie_word_embeddings": cfg.tied_head,
    "attention_dropout": 0.0,
  }


def _misfits(cfg: transformer.Config) -> list[str]:
  return language.misfits(
    cfg,
    ("a norm other than rms_norm", not isinstance(cfg.norm(), norms.RMSNorm)),
    ("an mlp other than gated_mlp", not isinstance(cfg.mlp(hidden=1), mlp.GatedMLP)),
    ("additive positions", cfg.position is not None),
    ("no rotary", not isinstance(cfg.rotary, embed.Rotary)),
  )


def _biasless(config: language.Foreign) -> tuple[str, ...]:
  """Attention and feed-forward may have biases each by itself."""
  parts = (("self_attn", "attention_bias"), ("mlp", "mlp_bias"))
  return tuple(part for part, key in parts if not config.get(key))


ARCHITECTURE = language.Architecture(
  title="LLaMA",
  name="LlamaForCausalLM",
  model_type="llama",
  table=_TABLE,
  prefix="model.",
  buffers=(".rotary_emb.inv_freq",),
  read=_read,
  write=_write,
  misfits=_misfits,
  biasless=_biasless,
)
