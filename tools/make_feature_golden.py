"""Writes tests/golden_features: what foreign networks see in two images.

Runs in an environment of its own with torch and the packages that hold the networks,
which the tests do not need:

    pip install --no-deps efficientnet-lite-pytorch torch-fidelity
    python tools/make_feature_golden.py tests/golden_features

Each file holds the shapes of a network's tensors (JSON), images uint8 [2, H, W, 3]
and its features [2, F]. The weights are not stored: `fill` makes them of their names,
here and in the tests, so that each term matters and none is zero.
"""

import json
import pathlib
import sys
import types
import zlib

import numpy as np
import torch


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Random weights of a tensor, the same wherever they are made."""
  generator = np.random.default_rng(zlib.crc32(name.encode()))
  if len(shape) == 4:
    return generator.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
  if name.endswith((".weight", ".running_var")):
    return generator.uniform(0.5, 1.5, shape)
  return generator.normal(0, 0.1, shape)


def pictures(side: int) -> np.ndarray:
  """Smooth on one half, noise on the other."""
  generator = np.random.default_rng(0)
  y, x = np.mgrid[:side, :side] / side
  smooth = np.stack([x, y, 1 - x * y], -1) * 255
  noise = generator.integers(0, 256, (side // 4, side // 4, 3))
  noise = noise.repeat(4, 0).repeat(4, 1)
  both = np.where(x[..., None] < 0.5, smooth, noise)
  return np.stack([both, 255 - both[::-1]]).astype(np.uint8)


def write(folder: pathlib.Path, name: str, network, rows, side: int) -> None:
  """Fills a network, runs it and writes what came out."""
  state = network.state_dict()
  shapes = {
    key: list(value.shape)
    for key, value in state.items()
    if value.is_floating_point() and not key.startswith(("fc", "_fc"))
  }
  filled = {k: torch.tensor(fill(k, s), dtype=torch.float32) for k, s in shapes.items()}
  torch.nn.Module.load_state_dict(network, filled, strict=False)
  images = pictures(side)
  with torch.no_grad():
    found = rows(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
  folder.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(
    folder / f"{name}.npz", shapes=json.dumps(shapes), images=images, rows=found
  )
  print(name, found.shape, float(np.abs(found).max()))


def main() -> None:
  """Both networks."""
  folder = pathlib.Path(sys.argv[1])
  import efficientnet_lite_pytorch

  network = efficientnet_lite_pytorch.EfficientNet.from_name(
    "efficientnet-lite0"
  ).eval()
  write(
    folder,
    "efficientnet_lite0",
    network,
    lambda x: network.extract_features((x.float() - 127) / 128).mean((2, 3)),
    224,  # no resizing: torch has none that is like ours to the last digit
  )
  # The package's own __init__ wants more packages than this one network.
  home = next(p for p in map(pathlib.Path, sys.path) if (p / "torch_fidelity").is_dir())
  package = types.ModuleType("torch_fidelity")
  package.__path__ = [str(home / "torch_fidelity")]
  sys.modules["torch_fidelity"] = package
  from torch_fidelity import feature_extractor_inceptionv3 as peer

  peer.load_state_dict_from_url = lambda *args, **kwargs: None
  peer.FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
  network = peer.FeatureExtractorInceptionV3("inception", ["2048"])
  write(folder, "inception", network, lambda x: network(x)[0], 64)


if __name__ == "__main__":
  main()
