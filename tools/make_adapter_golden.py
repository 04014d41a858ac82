"""Writes tests/golden_adapters: LoRA adapters of PEFT, and what they compute.

Runs in an environment of its own with torch, transformers and peft, which the tests do
not need:

    python tools/make_adapter_golden.py tests/golden tests/golden_adapters

Each folder is named after its base in tests/golden and holds what PEFT saves and
expected.npz: tokens [2, T] and logits [2, T, V]. Both matrices of every module are
random, so that each term matters.
"""

import json
import pathlib
import sys

import numpy as np
import peft
import torch
import transformers

SEED = 7
LENGTH = 12
ADAPTERS = {
  # One tensor for queries, keys and values; ranks and scales that differ.
  "gpt2": dict(
    r=4,
    lora_alpha=6,
    target_modules=["c_attn", "mlp.c_proj"],
    rank_pattern={"mlp.c_proj": 2},
    alpha_pattern={"mlp.c_proj": 5},
    fan_in_fan_out=True,
  ),
  "llama": dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]),
  # Every linear map; fewer heads for keys and values, scaled by 1 / sqrt(r).
  "llama_grouped": dict(
    r=2, lora_alpha=3, target_modules="all-linear", use_rslora=True
  ),
  # Some layers alone.
  "llama_tied": dict(
    r=2, lora_alpha=2, target_modules=["o_proj", "up_proj"], layers_to_transform=[1]
  ),
}


def write(base: pathlib.Path, folder: pathlib.Path, settings: dict) -> None:
  """One adapter."""
  torch.manual_seed(SEED)
  model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
  config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
  model = peft.get_peft_model(model, config).eval()
  for name, parameter in model.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(parameter, std=0.2)
  tokens = torch.randint(0, model.config.vocab_size, (2, LENGTH))
  with torch.no_grad():
    logits = model(tokens).logits
  model.save_pretrained(folder)
  (folder / "README.md").unlink()
  path = folder / "adapter_config.json"
  saved = json.loads(path.read_text())
  saved["base_model_name_or_path"] = base.name
  path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
  np.savez_compressed(
    folder / "expected.npz", tokens=tokens.numpy(), logits=logits.numpy()
  )


def main() -> None:
  """Writes all adapters and where they come from."""
  bases, target = map(pathlib.Path, sys.argv[1:])
  for name, settings in ADAPTERS.items():
    write(bases / name, target / name, settings)
  provenance = {
    "made_by": "tools/make_adapter_golden.py",
    "seed": SEED,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "peft": peft.__version__,
  }
  (target / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
  main()
