"""Round trip of photographs through TAESD: here, and through diffusers' own network.

Runs where both this project and diffusers are installed:

    python tools/check_taesd.py FOLDER_OF_TAESD photograph.png ...

Prints the PSNR in dB of each image (its centre, 512x512 or what fits into multiples
of 8), decoded to 8 bits by either, and how far apart codes and images are.
"""

import pathlib
import sys

import jax
import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from gen_jax import build, safetensors, sharding
from gen_jax.convert import matching, taesd


def peer(tensors: dict[str, safetensors.Tensor]) -> AutoencoderTiny:
  """diffusers' network; its decoder counts from the layer after the bound."""
  state = {}
  for name, tensor in tensors.items():
    half, number, rest = name.split(".", 2)
    number = int(number) - (half == "decoder")
    values = torch.from_numpy(np.array(tensor.view(), np.float32))
    state[f"{half}.layers.{number}.{rest}"] = values
  model = AutoencoderTiny()
  model.load_state_dict(state)
  return model.eval()


def load(tensors: dict[str, safetensors.Tensor]):
  """This project's network and its weights."""
  module = build.build("autoencoder", taesd.block(tensors))
  at = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  boxed = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 8, 8, 3)))
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
    sharding.unbox(boxed["params"]),
  )
  return module, {"params": matching.load(taesd.match(tensors, abstract), abstract)}


def psnr(x: np.ndarray, y: np.ndarray) -> float:
  """Of uint8 and float images in [-1, 1], the latter rounded to 8 bits."""
  y = np.clip(np.round(y * 127.5 + 127.5), 0, 255)
  return 10 * np.log10(255.0**2 / np.mean((x - y) ** 2))


def main() -> None:
  """One line an image, and the largest difference."""
  tensors = taesd.open_folder(pathlib.Path(sys.argv[1]))
  theirs, (module, weights) = peer(tensors), load(tensors)

  def apply(method):
    return jax.jit(lambda x: module.apply(weights, x, method=method))

  encode, decode = apply("encode"), apply("decode")
  worst = 0.0
  for path in sys.argv[2:]:
    image = Image.open(path).convert("RGB")
    width, height = (min(side, 512) // 8 * 8 for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), float)
    x = np.float32(pixels / 127.5 - 1.0)[None]
    with torch.no_grad():
      code = theirs.encode(torch.from_numpy(x).movedim(-1, 1)).latents
      other = theirs.decode(code).sample.movedim(1, -1).numpy()[0]
    mean = encode(x).mean
    ours = np.asarray(decode(mean))[0]
    apart = float(np.abs(mean - code.movedim(1, -1).numpy()).max())
    pair = psnr(pixels, ours), psnr(pixels, other)
    worst = max(worst, abs(pair[0] - pair[1]))
    print(
      f"{pathlib.Path(path).stem:16} {width}x{height} {pair[0]:7.3f} dB here"
      f" {pair[1]:7.3f} dB there; codes within {apart:.1e}, images within"
      f" {np.abs(ours - other).max():.1e}"
    )
  print(f"at most {worst:.5f} dB apart")


if __name__ == "__main__":
  main()
