"""Loads an exported folder with transformers and compares logits with those of gen_jax.

In two environments, as torch is no part of this one:

    python tools/check_export.py ours WORKDIR logits.npz       (here)
    python tools/check_export.py theirs EXPORTED logits.npz    (torch, transformers)
"""

import sys

import numpy as np


def ours(workdir: str, path: str) -> None:
  """Writes random tokens and their logits."""
  import gen_jax

  run = gen_jax.open(workdir)
  model = run.experiment.task.model
  shape = (2, min(64, model.config.max_length))
  tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, shape)
  logits, _ = model.apply({"params": run.weights().params}, tokens)
  np.savez(path, tokens=tokens, logits=logits)


def theirs(folder: str, path: str) -> None:
  """Prints the largest difference as a share of the logits' range; fails above 1e-4."""
  import torch
  import transformers

  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    folder, output_loading_info=True, dtype=torch.float32
  )
  print(type(model).__name__, {key: len(value) for key, value in report.items()})
  with np.load(path) as file:
    tokens, expected = file["tokens"], file["logits"]
  with torch.no_grad():
    logits = model.eval()(torch.from_numpy(tokens)).logits.numpy()
  share = np.abs(logits - expected).max() / np.ptp(expected)
  print(f"max |difference| / range of logits = {share:.3g}")
  sys.exit(int(share > 1e-4))


if __name__ == "__main__":
  {"ours": ours, "theirs": theirs}[sys.argv[1]](*sys.argv[2:])
