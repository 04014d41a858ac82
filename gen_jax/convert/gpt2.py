"""GPT-2's files: Radford et al. 2019, as transformers has them."""

from gen_jax.convert import keys, language, names
from gen_jax.models import transformer
from gen_jax.nn import embed, mlp, norms

_H, _B = "transformer.h.{i}", "block_{i}"
# GPT-2 stores [in, out], and the three projections of attention in one tensor.
_TABLE = (
  names.TensorMap("transformer.wte.weight", ("embed/table",), 1),
  names.TensorMap("transformer.wpe.weight", ("position/table",), 1),
  *names.norm(f"{_H}.ln_1", f"{_B}/attention_norm"),
  *names.linear(
    f"{_H}.attn.c_attn", *(f"{_B}/attention/{n}" for n in ("query", "key", "value"))
  ),
  *names.linear(f"{_H}.attn.c_proj", f"{_B}/attention/out", inputs=2),
  *names.norm(f"{_H}.ln_2", f"{_B}/mlp_norm"),
  *names.linear(f"{_H}.mlp.c_fc", f"{_B}/mlp/up"),
  *names.linear(f"{_H}.mlp.c_proj", f"{_B}/mlp/down"),
  *names.norm("transformer.ln_f", "final_norm"),
  names.TensorMap("lm_head.weight", ("head/kernel",), 1, True),
)


def _read(read: keys.Reader) -> language.Foreign:
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
    "mlp": {"name": "mlp", "activation": language.activation(activation)},
    "position": {"name": "learned"},
    "rotary": None,
    "use_bias": True,
    "tied_head": read.take("tie_word_embeddings", bool, True),
  }


def _write(cfg: transformer.Config) -> language.Foreign:
  return {
    "vocab_size": cfg.vocab_size,
    "n_positions": cfg.max_length,
    "n_embd": cfg.width,
    "n_layer": cfg.num_layers,
    "n_head": cfg.num_heads,
    "n_inner": cfg.mlp_width,
    "activation_function": language.foreign_activation(cfg.mlp(hidden=1).activation),
    "layer_norm_epsilon": cfg.norm().eps,
    "tie_word_embeddings": cfg.tied_head,
    **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), cfg.dropout),
  }


def _misfits(cfg: transformer.Config) -> list[str]:
  heads = cfg.num_kv_heads or cfg.num_heads
  return language.misfits(
    cfg,
    ("a norm other than layer_norm", not isinstance(cfg.norm(), norms.LayerNorm)),
    ("an mlp other than mlp", type(cfg.mlp(hidden=1)) is not mlp.MLP),
    ("positions other than learned", not embed.are_learned(cfg.position)),
    ("rotary", cfg.rotary is not None),
    ("num_kv_heads", heads != cfg.num_heads),
    ("head_dim", cfg.dim_per_head * cfg.num_heads != cfg.width),
  )


ARCHITECTURE = language.Architecture(
  title="GPT-2",
  name="GPT2LMHeadModel",
  model_type="gpt2",
  table=_TABLE,
  prefix="transformer.",
  buffers=(".attn.bias", ".attn.masked_bias"),
  read=_read,
  write=_write,
  misfits=_misfits,
  has_biases=True,
)
