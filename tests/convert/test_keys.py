"""What a key of a foreign config changes decides whether it passes."""

import json
import shutil

import pytest

from gen_jax import build
from gen_jax.convert import architectures, huggingface, keys
from gen_jax.types import InputError
from tests.convert import test_huggingface as golden

NOTHING = [  # keys as they are published, whose values change nothing
  ("gpt2", {"n_special": 0, "predict_special_tokens": True, "output_past": True}),
  ("gpt2", {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "num_labels": 2}),
  ("gpt2", {"afn": "gelu", "pruned_heads": {}, "use_bfloat16": False, "prefix": ""}),
  ("gpt2", {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}),
  ("gpt2", {"reorder_and_upcast_attn": True, "summary_type": "cls_index"}),
  ("gpt2", {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}),
  ("gpt2", {"add_cross_attention": False, "quantization_config": None}),
  ("llama", {"is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 4}),
  ("llama", {"unsloth_fixed": True, "unsloth_version": "2025.3.1"}),
  ("llama", {"sliding_window": None, "use_sliding_window": False}),
  ("llama", {"sliding_window": 4096}),  # longer than the context of 32
  ("llama", {"layer_types": ["full_attention"] * 2, "partial_rotary_factor": 1.0}),
  ("llama", {"_attn_implementation_autoset": True, "_name_or_path": "x/y"}),
  ("llama", {"rope_scaling": {"rope_type": "default"}, "dtype": "bfloat16"}),
  ("llama", {"auto_map": {"AutoTokenizer": ["x.Y", None]}}),
]
SOMETHING = [
  ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
  ("gpt2", {"scale_attn_weights": False}),
  ("gpt2", {"add_cross_attention": True}),
  ("gpt2", {"is_encoder_decoder": True}),
  ("gpt2", {"pruned_heads": {"0": [1]}}),
  ("gpt2", {"prefix": "Once upon a time"}),
  ("gpt2", {"hidden_size": 32}),
  ("gpt2", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
  ("llama", {"rope_interleaved": True}),
  ("llama", {"partial_rotary_factor": 0.5}),
  ("llama", {"sliding_window": 8}),
  ("llama", {"use_sliding_window": True}),
  ("llama", {"layer_types": ["full_attention", "sliding_attention"]}),
  ("llama", {"final_logit_softcapping": 30.0}),
  ("llama", {"logits_scaling": 8.0}),
  ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling_x.LlamaForCausalLM"}}),
  ("llama", {"a_key_of_next_year": 0}),
  ("llama", {"a_key_of_next_year": 1}),
  ("llama", {"a_key_of_next_year": True}),
  ("llama", {"a_key_of_next_year": "x"}),
]


def config(name, **changes):
  return {**json.loads((golden.GOLDEN / name / "config.json").read_text()), **changes}


@pytest.mark.parametrize("name, changes", NOTHING)
def test_a_value_that_changes_nothing_passes(name, changes):
  plain = config(name)
  assert architectures.read({**plain, **changes}) == architectures.read(plain)
  assert not architectures.unused_keys({**plain, **changes})


@pytest.mark.parametrize("name, changes", SOMETHING)
def test_a_value_that_changes_something_is_refused_by_its_key(name, changes):
  (key,) = changes
  with pytest.raises(InputError, match=key) as error:
    architectures.read(config(name, **changes))
  assert "\n" not in str(error.value) and "did you mean" not in str(error.value)


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_an_unknown_key_that_says_nothing_passes_and_is_named(value):
  found = architectures.unused_keys(config("llama", a_key_of_next_year=value))
  assert found == [f"a_key_of_next_year={value!r}"]


def test_how_to_sample_is_named_where_it_says_something():
  changes = {"temperature": 0.6, "top_p": 1.0, "do_sample": False, "max_length": 20}
  assert architectures.unused_keys(config("gpt2", **changes)) == ["temperature=0.6"]


@pytest.mark.parametrize("key", ["vocab_size", "n_layer", "n_embd", "n_positions"])
@pytest.mark.parametrize("size", [2**31, 10**20, 10**400, 0, -1])
def test_a_size_that_no_model_has_is_refused(key, size):
  with pytest.raises(InputError, match=rf"{key}=.*a size in"):
    architectures.read(config("gpt2", **{key: size}))


@pytest.mark.parametrize("key", ["n_layer", "n_embd", "n_positions", "n_inner"])
def test_a_size_is_held_against_the_tensors_before_a_model_is_built(key, tmp_path):
  folder = shutil.copytree(golden.GOLDEN / "gpt2", tmp_path / "model")
  size = 1000 if key == "n_layer" else 2**20 - 4  # within the ranges of ours
  (folder / "config.json").write_text(json.dumps(config("gpt2", **{key: size})))
  with pytest.raises(InputError, match=r"fit|wants"):
    architecture, block, tensors, biasless = huggingface.open_model(folder)
    model = build.build("model", block)
    huggingface.match(tensors, architecture, golden.abstract_params(model), biasless)


@pytest.mark.parametrize("name", ["Qwen2ForCausalLM", "GPT2LMHeadModels", 3, None])
def test_another_architecture_is_not_answered_with_a_name_to_take(name):
  changes = {"architectures": [name] if name else None, "model_type": "qwen2"}
  with pytest.raises(InputError, match="is not supported; supported: GPT2LMH") as error:
    architectures.read(config("gpt2", **changes))
  assert "did you mean" not in str(error.value)


def test_a_part_of_an_image_model_is_named():
  with pytest.raises(InputError, match="'UNet2DConditionModel', a part of an image"):
    architectures.read({"_class_name": "UNet2DConditionModel"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308, 10**400])
def test_numbers_are_finite(value):
  with pytest.raises(InputError, match="a finite number"):
    keys.typed(value, float, "config.json x")
