"""config.json to a config's model block and back, for GPT-2 and LLaMA.

A key is judged by what its value would change: it is honoured, or changes nothing
whatever it says, or may only say what the model here does anyway. Of keys that nobody
here knows, those that say nothing (null, false, empty) pass, and are named; others are
refused by their names: a model that computes something else is worse than none.

Source: the configs of transformers 2 to 5; of published models and of their trainers.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gen_jax import build
from gen_jax.convert import names, values
from gen_jax.models import transformer
from gen_jax.nn import embed, mlp, norms
from gen_jax.types import InputError, unsupported

Foreign = dict[str, Any]
# Foreign name: ours. Of several for one of ours, the first is written.
_ACTIVATIONS = {
  "gelu_new": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "gelu": "gelu_exact",
  "silu": "silu",
  "swish": "silu",
  "relu": "relu",
}
# Whatever these say changes no logit: names and versions, control tokens (which the
# tokenizer's files decide), labels, training, and how the library computes the same.
# Keys that begin with _ are the library's own notes.
_HARMLESS = frozenset(
  """architectures model_type transformers_version torch_dtype dtype model_name
  unsloth_version unsloth_fixed is_llama_config tokenizer_class n_ctx afn
  bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id
  decoder_start_token_id max_sequence_length model_max_length
  summary_activation summary_first_dropout summary_proj_to_labels summary_type
  summary_use_proj id2label label2id num_labels problem_type finetuning_task n_special
  predict_special_tokens task_specific_params is_decoder
  initializer_range attention_dropout attn_pdrop embd_pdrop resid_pdrop mlp_dropout
  hidden_dropout classifier_dropout gradient_checkpointing neftune_noise_alpha
  use_cache output_past output_attentions output_hidden_states return_dict torchscript
  use_bfloat16 tf_legacy_loss attn_implementation pretraining_tp output_scores
  reorder_and_upcast_attn chunk_size_feed_forward remove_invalid_values
  use_flash_attention use_flash_attn use_flashattn return_dict_in_generate""".split()
)
# How to sample, and what the library does without: other values are named, since
# sampling is a choice of the run and not of the weights.
_SAMPLING = {
  "max_length": 20,
  "min_length": 0,
  "do_sample": False,
  "early_stopping": False,
  "num_beams": 1,
  "num_beam_groups": 1,
  "diversity_penalty": 0,
  "temperature": 1,
  "top_k": 50,
  "top_p": 1,
  "typical_p": 1,
  "repetition_penalty": 1,
  "length_penalty": 1,
  "no_repeat_ngram_size": 0,
  "encoder_no_repeat_ngram_size": 0,
  "num_return_sequences": 1,
}
# What these may say, apart from null: what the model here does.
_FIXED = {
  "scale_attn_weights": (True,),
  "scale_attn_by_inverse_layer_idx": (False,),
  "add_cross_attention": (False,),
  "is_encoder_decoder": (False,),
  "tie_encoder_decoder": (False,),
  "rope_interleaved": (False,),
  "use_sliding_window": (False,),
  "pruned_heads": ({},),
  "prefix": ("",),
  "partial_rotary_factor": (1,),
  **dict.fromkeys(
    ("embedding_multiplier", "residual_multiplier", "logits_scaling"), (1,)
  ),
  **dict.fromkeys(("sliding_window", "layer_types", "quantization_config"), ()),
  **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), ()),
}


class _Reader:
  """Takes keys out of a config.json, checks types, and knows what is left."""

  def __init__(self, config: Mapping[str, Any]):
    self.left = dict(config)

  def take(self, key: str, hint: Any, *default: Any) -> Any:
    if self.left.get(key) is None and default:
      self.left.pop(key, None)
      return default[0]
    if key not in self.left:
      raise InputError(f"config.json lacks {key}; fetch the file again")
    return values.typed(self.left.pop(key), hint, f"config.json {key}")

  def same(self, key: str, value: Any) -> None:
    """Another spelling of what was read."""
    if (found := self.left.pop(key, None)) not in (None, value):
      raise InputError(f"config.json {key}={found!r:.60} contradicts {value}")

  def may_be(self, key: str, is_plain: Callable[[Any], bool]) -> None:
    """A key that passes if its value changes nothing."""
    if key in self.left and is_plain(self.left[key]):
      del self.left[key]

  def finish(self) -> list[str]:
    """The keys that are not used: empty ones that nobody knows, and how to sample.

    Raises:
      InputError: a key that may change the model.
    """
    strange, unused = [], []
    for key, value in self.left.items():
      shown = f"{key}={value!r:.60}"
      if key in _HARMLESS or key.startswith("_"):
        continue
      if key in _FIXED:
        strange += [shown] * (value is not None and value not in _FIXED[key])
      elif key in _SAMPLING:
        unused += [shown] * (value is not None and value != _SAMPLING[key])
      elif value is None or value is False or value in ("", [], {}):
        unused.append(shown)
      else:
        strange.append(shown)
    if strange:
      raise InputError(
        "config.json has keys that are not understood and may change the model:"
        f" {', '.join(strange):.400}; plain GPT-2 and LLaMA are supported"
      )
    return unused


def _activation(name: str) -> str:
  if name not in _ACTIVATIONS:
    raise unsupported("activation (of config.json)", name, _ACTIVATIONS)
  return _ACTIVATIONS[name]


def _read_gpt2(read: _Reader) -> Foreign:
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


def _read_rope(read: _Reader) -> Foreign:
  """Old spelling: rope_theta and rope_scaling; newer: rope_parameters."""
  blocks = [read.take(k, Any, {}) for k in ("rope_scaling", "rope_parameters")]
  if not all(isinstance(block, dict) for block in blocks):
    raise InputError(f"config.json rope_scaling={blocks[0]!r} must be a block")
  old, new = blocks
  both = [k for k in old.keys() & new.keys() if old[k] != new[k]]
  if both:
    raise InputError(
      f"config.json rope_scaling and rope_parameters contradict each other: {both}"
    )
  rope = _Reader({**old, **new})
  theta = read.take("rope_theta", float, None)
  base = rope.take("rope_theta", float, 1e4 if theta is None else theta)
  if theta not in (None, base):
    raise InputError(f"config.json rope_theta is {theta} and {base}; which one?")
  old_kind = rope.take("type", str, None)
  kind = rope.take("rope_type", str, old_kind or "default")
  if old_kind not in (None, kind):
    raise InputError(
      f"config.json rope_scaling is of type {old_kind!r} and {kind!r}; which one?"
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


def _read_llama(read: _Reader) -> Foreign:
  biases = [read.take(f"{name}_bias", bool, False) for name in ("attention", "mlp")]
  activation = read.take("hidden_act", str, "silu")
  eps = read.take("rms_norm_eps", float, 1e-6)
  length, layers = (
    read.take(key, int) for key in ("max_position_embeddings", "num_hidden_layers")
  )
  # A window as long as the context hides nothing.
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
    table: of names.
    prefix: that files of the model without its head leave out.
    buffers: ends of tensor names that hold nothing learned.
    read: config.json to a model block.
    write: the inverse, from what the block builds.
    misfits: what of a Config the family cannot express.
  """

  name: str
  model_type: str
  table: Sequence[names.Row]
  prefix: str
  buffers: tuple[str, ...]
  read: Callable[[_Reader], Foreign]
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
      f"config.json auto_map={own!r:.120}: the model brings code of its own, which is"
      " never run; plain GPT-2 and LLaMA are supported"
    )
  return found[0]


def read(config: Any) -> tuple[Architecture, Foreign]:
  """The family and the model block that a config.json stands for.

  Raises:
    InputError: another family, or a key that is missing, wrong or not understood.
  """
  architecture, reader = _family(config), _Reader(config)
  block = architecture.read(reader)
  reader.finish()
  block = {"name": "transformer", **block, "dropout": 0.0, "dtype": "float32"}
  build.build("model", block, "config.json")  # refuses sizes that do not fit
  return architecture, block


def passed_over(config: Any) -> list[str]:
  """What `read` passes over in a config.json: empty keys unknown here, sampling."""
  reader = _Reader(config)
  _family(config).read(reader)
  return reader.finish()


def fitting(config: transformer.Config) -> Architecture:
  """The family that can express a model.

  Raises:
    InputError: says for each family what it cannot.
  """
  misfits = {a.name: (a, a.misfits(config)) for a in ALL}
  for architecture, wrong in misfits.values():
    if not wrong:
      return architecture
  reasons = "; ".join(f"{name}: {', '.join(w)}" for name, (_, w) in misfits.items())
  raise InputError(
    f"the model cannot be exported, no foreign format expresses it ({reasons})"
  )
