"""Writes tests/golden: tiny random models of transformers, and what they compute.

Runs in an environment of its own with torch and transformers, which the tests do not
need:

    python tools/make_golden.py tests/golden

Each folder holds config.json, model.safetensors and expected.npz: tokens [2, T],
logits [2, T, V], hidden states [L + 1, 2, T, D] (the embedding and each layer but the
last, then the final norm), the mean cross-entropy of every next token, and its
gradients by parameter. Every parameter is random, norms and biases too, so that each
term matters.
"""

import json
import pathlib
import sys

import numpy as np
import safetensors.torch
import torch
import transformers

SEED = 7
LENGTH = 12
GRADIENTS = {
  "gpt2": (
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "transformer.h.0.ln_1.weight",
    "transformer.h.0.attn.c_attn.weight",
    "transformer.h.0.attn.c_proj.bias",
    "transformer.h.1.mlp.c_fc.weight",
    "transformer.ln_f.bias",
  ),
  "llama": (
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.1.self_attn.o_proj.weight",
    "model.layers.1.mlp.gate_proj.weight",
    "model.norm.weight",
  ),
}


def _gpt2(**changes):
  config = transformers.GPT2Config(
    vocab_size=61, n_positions=24, n_embd=16, n_layer=2, n_head=4, **changes
  )
  return transformers.GPT2LMHeadModel(config)


def _llama(**changes):
  config = dict(
    vocab_size=61,
    max_position_embeddings=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
  )
  return transformers.LlamaForCausalLM(
    transformers.LlamaConfig(**{**config, **changes})
  )


LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
MODELS = {
  "gpt2": lambda: _gpt2(),
  "gpt2_untied": lambda: _gpt2(
    tie_word_embeddings=False, activation_function="gelu", n_inner=24
  ),
  "llama": lambda: _llama(),
  "llama_tied": lambda: _llama(tie_word_embeddings=True, rms_norm_eps=1e-3),
  "llama_grouped": lambda: _llama(num_key_value_heads=2, head_dim=6),
  "llama3": lambda: _llama(num_key_value_heads=1, rope_parameters=LLAMA3),
  "llama_linear": lambda: _llama(
    rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
  ),
  "llama_biases": lambda: _llama(attention_bias=True, mlp_bias=True),
  "llama_attention_bias": lambda: _llama(attention_bias=True),
}


def write(folder: pathlib.Path, make) -> None:
  """One model."""
  torch.manual_seed(SEED)
  model = make().eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn_like(parameter) * 0.2
      parameter.copy_(noise + (1.0 if "norm.weight" in name or "ln_" in name else 0.0))
  tokens = torch.randint(0, model.config.vocab_size, (2, LENGTH))
  out = model(tokens, output_hidden_states=True)
  loss = torch.nn.functional.cross_entropy(
    out.logits[:, :-1].reshape(-1, model.config.vocab_size), tokens[:, 1:].reshape(-1)
  )
  loss.backward()
  parameters = dict(model.named_parameters())
  folder.mkdir(parents=True, exist_ok=True)
  model.config.architectures = [type(model).__name__]
  (folder / "config.json").write_text(model.config.to_json_string())
  safetensors.torch.save_file(
    {name: p.detach().contiguous() for name, p in parameters.items()},
    folder / "model.safetensors",
    metadata={"format": "pt"},
  )
  arrays = {
    "tokens": tokens,
    "logits": out.logits,
    "hidden": torch.stack(out.hidden_states),
    "loss": loss,
    **{
      f"gradient/{name}": parameters[name].grad
      for name in GRADIENTS[model.config.model_type]
    },
  }
  np.savez_compressed(
    folder / "expected.npz", **{k: v.detach().numpy() for k, v in arrays.items()}
  )


def main() -> None:
  """Writes all models and where they come from."""
  target = pathlib.Path(sys.argv[1])
  for name, make in MODELS.items():
    write(target / name, make)
  provenance = {
    "made_by": "tools/make_golden.py",
    "seed": SEED,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
  }
  (target / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
  main()
