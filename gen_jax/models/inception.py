"""Features of Inception v3 as in the Fréchet inception distance.

The TensorFlow graph of 2015 behind every published FID: bilinear resizing without
half-pixel centres, average pools that exclude padding, and a max pool in the last
block.

Sources: Szegedy et al. 2015 (arXiv:1512.00567); Heusel et al. 2017 (1706.08500).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nn import torch_layers
from gen_jax.types import Array

SIDE = 299
# Branches of a block, whose outputs are concatenated. A branch is a sequence of 3x3
# pools and names of convolutions (/2: stride 2 without padding; a|b: both applied to
# the same input, concatenated).
_A = (
  "branch1x1",
  "branch5x5_1 branch5x5_2",
  "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
  "mean branch_pool",
)
_B = ("branch3x3/2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3/2", "max/2")
_C = (
  "branch1x1",
  "branch7x7_1 branch7x7_2 branch7x7_3",
  "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
  "mean branch_pool",
)
_D = (
  "branch3x3_1 branch3x3_2/2",
  "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4/2",
  "max/2",
)
_E = (
  "branch1x1",
  "branch3x3_1 branch3x3_2a|branch3x3_2b",
  "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a|branch3x3dbl_3b",
)
BLOCKS = {
  **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _A),
  "Mixed_6a": _B,
  **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _C),
  "Mixed_7a": _D,
  "Mixed_7b": (*_E, "mean branch_pool"),
  "Mixed_7c": (*_E, "max branch_pool"),
}


def features(weights: torch_layers.Weights, images: Array) -> Array:
  """Images [B, H, W, 3] in 0 .. 255 -> float32 [B, 2048], its classifier's input."""
  x = (_resize(images.astype(jnp.float32)) - 128.0) / 128.0

  def conv(x, name, stride=1, padding="SAME"):
    x = torch_layers.conv(weights, f"{name}.conv", x, stride, padding)
    return jax.nn.relu(torch_layers.batch_norm(weights, f"{name}.bn", x))

  def step(x, word, block):
    if "|" in word:
      return jnp.concatenate([step(x, w, block) for w in word.split("|")], -1)
    name, _, stride = word.partition("/")
    how = (2, "VALID") if stride else (1, "SAME")
    if name == "max":
      return nn.max_pool(x, (3, 3), how[:1] * 2, how[1])
    if name == "mean":
      return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
    return conv(x, f"{block}.{name}", *how)

  x = conv(x, "Conv2d_1a_3x3", 2, "VALID")
  x = conv(x, "Conv2d_2a_3x3", padding="VALID")
  x = nn.max_pool(conv(x, "Conv2d_2b_3x3"), (3, 3), (2, 2))
  x = conv(x, "Conv2d_3b_1x1")
  x = nn.max_pool(conv(x, "Conv2d_4a_3x3", padding="VALID"), (3, 3), (2, 2))
  for block, branches in BLOCKS.items():
    outputs = []
    for branch in branches:
      h = x
      for word in branch.split():
        h = step(h, word, block)
      outputs.append(h)
    x = jnp.concatenate(outputs, -1)
  return x.mean((1, 2))


def _resize(x: Array) -> Array:
  """[B, H, W, C] -> [B, 299, 299, C] as in TensorFlow 1: pixel 0 stays at 0."""
  for axis in (1, 2):
    length = x.shape[axis]
    place = jnp.arange(SIDE, dtype=jnp.float32) * (length / SIDE)
    low = jnp.floor(place).astype(jnp.int32)
    high = jnp.minimum(low + 1, length - 1)
    shape = [1] * 4
    shape[axis] = SIDE
    share = jnp.broadcast_to((place - low).reshape(shape), jnp.take(x, low, axis).shape)
    here, there = jnp.take(x, low, axis), jnp.take(x, high, axis)
    x = here + (there - here) * share
  return x
