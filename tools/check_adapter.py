"""Loads an exported adapter with PEFT and compares logits with those of gen_jax.

In two environments, as torch is no part of this one:

    gen-jax export --workdir BASE --to BASE_FOLDER               (here)
    gen-jax export --workdir ADAPTED --to FOLDER --adapter       (here)
    python tools/check_export.py ours ADAPTED logits.npz         (here)
    python tools/check_adapter.py BASE_FOLDER FOLDER logits.npz  (torch, peft)

Prints the largest difference as a share of the logits' range, with the adapter and
without; fails above 1e-4 with it.
"""

import sys

import numpy as np
import peft
import torch
import transformers


def main(base: str, folder: str, path: str) -> None:
  """See the module's docstring."""
  model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
  with np.load(path) as file:
    tokens, expected = torch.from_numpy(file["tokens"]), file["logits"]
  shares = []
  for own in (model, lambda: peft.PeftModel.from_pretrained(model, folder)):
    own = own if own is model else own()
    with torch.no_grad():
      logits = own.eval()(tokens).logits.numpy()
    shares.append(np.abs(logits - expected).max() / np.ptp(expected))
  print(f"|difference| / range of logits: {shares[1]:.3g}; without it {shares[0]:.3g}")
  sys.exit(int(shares[1] > 1e-4))


if __name__ == "__main__":
  main(*sys.argv[1:])
