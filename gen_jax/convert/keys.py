"""Checks the keys of a config.json by the effect of their values.

A key is read, or has no effect, or may only have the value that the models here
implement. An unknown key passes, and is reported, if it is null, false or empty; with
another value it is an error, since it may change the model.

Source: the configs of transformers 2 to 5, of published models and of their trainers.
"""

from collections.abc import Callable, Mapping
from typing import Any

from gen_jax import ranges
from gen_jax.types import InputError

_MAX_LENGTH = 256  # of a list or a name
_MAX_SIZE = 2**31  # far above any published number of layers, width or length
# Keys that change no logit: names and versions, control tokens (set by the tokenizer's
# files), labels, training, and how the library computes. Keys that begin with _ are
# the library's notes.
_HARMLESS = frozenset(
  """architectures auto_map model_type transformers_version torch_dtype dtype model_name
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
# Sampling, with the library's defaults: other values are reported, since sampling is
# set by the run's config.
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
# Keys and their only allowed values besides null: what the models here implement.
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


def typed(value: Any, hint: Any, where: str) -> Any:
  """`ranges.typed`, with whole numbers in [1, 2^31) and finite floats.

  All whole numbers of a foreign config are sizes or counts; nothing is allocated before
  the tensors' shapes agree with them.

  Raises:
    InputError: another type, or a number out of range.
  """
  if isinstance(value, list | tuple | str) and len(value) > _MAX_LENGTH:
    raise InputError(f"{where}={value!r:.60}... is too long")
  numbers = value if isinstance(value, list | tuple) else [value]
  for number in numbers:
    is_size = type(number) is int and float not in ranges.options(hint)
    if is_size and not 1 <= number < _MAX_SIZE:
      raise InputError(f"{where}={number!r:.60} must be a size in [1, 2^31)")
    if isinstance(number, int | float) and not abs(number) < 1e30:  # NaN as well
      raise InputError(f"{where}={number!r:.60} must be a finite number")
  return ranges.typed(value, hint, where)


class Reader:
  """Takes keys from a config.json, checks their types, and tracks unread keys."""

  def __init__(self, config: Mapping[str, Any], known: str):
    """Args: known: the models that are understood, for the message."""
    self.left, self.known = dict(config), known

  def take(self, key: str, hint: Any, *default: Any) -> Any:
    if self.left.get(key) is None and default:
      self.left.pop(key, None)
      return default[0]
    if key not in self.left:
      raise InputError(f"config.json lacks {key}; fetch it again")
    return typed(self.left.pop(key), hint, f"config.json {key}")

  def same(self, key: str, value: Any) -> None:
    """Checks another spelling of a value that was read."""
    if (found := self.left.pop(key, None)) not in (None, value):
      raise InputError(f"config.json {key}={found!r:.60} contradicts {value}")

  def may_be(self, key: str, is_plain: Callable[[Any], bool]) -> None:
    """Drops a key whose value has no effect."""
    if key in self.left and is_plain(self.left[key]):
      del self.left[key]

  def finish(self) -> list[str]:
    """The unused keys: unknown empty ones, and sampling.

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
        f" {', '.join(strange):.400}; plain {self.known} are supported"
      )
    return unused
