"""LoRA files: low-rank changes to Stable Diffusion's weights, added as those are read.

    W + scale * alpha / r * up down        down [r, in, ...], up [out, r, ...]

M is a module of the UNet or of the text encoder, by its name in a folder of diffusers;
files spell it in one of two ways, and alpha in one of three:

    lora_unet_M.lora_down.weight, lora_te_M...   dots of M as _; the tensor M.alpha
    unet.M.lora_A.weight, text_encoder.M...      lora_alpha in the file's metadata
                                                 else alpha = r

Source: Hu et al. 2021 (arXiv:2106.09685); files of kohya's scripts and of diffusers.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from gen_jax.convert import names, safetensors
from gen_jax.convert import stable_diffusion as sd
from gen_jax.types import InputError, Params

_NETWORKS = {
  "unet": ("lora_unet_", "unet."),
  "text_encoder": ("lora_te1_", "lora_te_", "text_encoder."),
}
_ENDS = {
  "alpha": r"\.alpha",
  "down": r"\.(lora_down|lora_A|lora\.down|lora_linear_layer\.down)\.weight",
  "up": r"\.(lora_up|lora_B|lora\.up|lora_linear_layer\.up)\.weight",
}
_METADATA = "lora_adapter_metadata"

Places = dict[str, tuple[names.Row, safetensors.Tensor]]


@dataclasses.dataclass(frozen=True)
class Adapted:
  """A tensor of a file, with a change to it; see `safetensors.Tensor`."""

  base: "safetensors.Tensor | Adapted"
  down: safetensors.Tensor
  up: safetensors.Tensor
  scale: float

  @property
  def file(self) -> pathlib.Path:
    return self.base.file

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def view(self) -> np.ndarray:
    """The changed tensor, float32."""
    up, down = (
      np.asarray(part.view(), np.float32).reshape(part.shape[0], -1)
      for part in (self.up, self.down)
    )
    change = self.scale * (up @ down)
    if not np.isfinite(change).all():
      raise InputError(f"{self.up.file} is corrupted: values that are not finite")
    return np.asarray(self.base.view(), np.float32) + change.reshape(self.shape)


def _split(name: str) -> tuple[str, str, str] | None:
  """('unet', module with _ for dots, 'down') of a tensor's name; None: not known."""
  for network, prefixes in _NETWORKS.items():
    for prefix in prefixes:
      for part, end in _ENDS.items():
        if found := re.fullmatch(f"{re.escape(prefix)}(.+){end}", name):
          return network, found[1].replace(".", "_"), part
  return None


def _alphas(file: pathlib.Path) -> dict[str, float]:
  """The alpha that the file's metadata has for each network.

  Raises:
    InputError: metadata that asks for other scales.
  """
  found = json.loads(safetensors.read_metadata(file).get(_METADATA, "{}"))
  for key, value in found.items():
    if value and key.endswith((".alpha_pattern", ".use_rslora", ".use_dora")):
      raise InputError(f"{file}: {key}={value!r:.60} is not understood")
  return {
    network: float(found[f"{network}.lora_alpha"])
    for network in _NETWORKS
    if f"{network}.lora_alpha" in found
  }


def merge(
  file: pathlib.Path,
  scale: float,
  places: Mapping[str, Places],
  models: Mapping[str, sd.Model],
  abstract: Mapping[str, Params],
) -> dict[str, Places]:
  """The places of the weights with a file's changes added; nothing is read yet.

  Args:
    scale: 0 is the weights as they are.
    places: of each network, see `stable_diffusion.match`.
    models, abstract: the networks, and shapes of their parameters.

  Raises:
    InputError: lists tensors that belong to no module here, lack a partner or do not
      fit.
  """
  pairs, wrong, alphas = {}, [], _alphas(file)
  for name, tensor in safetensors.read_header(file).items():
    if (parts := _split(name)) and tensor.dtype in safetensors.DTYPES:
      network, module, part = parts
      pairs.setdefault((network, module), {})[part] = tensor
    else:
      wrong.append(f"{name} ({tensor.dtype}) is not understood")
  merged = {network: dict(own) for network, own in places.items()}
  for network in _NETWORKS:
    prefix = sd.PREFIXES[network][sd.FOLDER].replace(".", "_")
    for row, _ in models[network].rows(abstract[network], sd.FOLDER).values():
      module = row.foreign.removesuffix(".weight").replace(".", "_")
      pair = pairs.pop((network, module), None)
      pair = pair or pairs.pop((network, module.removeprefix(prefix)), None)
      if pair is None or not row.foreign.endswith(".weight"):
        continue
      for path in row.paths:
        own, base = merged[network][path]
        if not _fits(base.shape, pair):
          wrong.append(f"{row.foreign} {list(base.shape)} is not what up down changes")
          break
        rank = pair["down"].shape[0]
        alpha = alphas.get(network, rank)
        alpha = float(pair["alpha"].view().flat[0]) if "alpha" in pair else alpha
        change = Adapted(base, pair["down"], pair["up"], scale * alpha / rank)
        merged[network][path] = own, change
  wrong += [f"{network} {module} is no module" for network, module in pairs]
  if wrong:
    raise InputError(
      f"{file} does not fit this Stable Diffusion, in {len(wrong)} places:"
      f" {'; '.join(wrong[:4])}"
    )
  return merged


def _fits(shape: tuple[int, ...], pair: Mapping[str, safetensors.Tensor]) -> bool:
  """Whether both parts are there and their product has the shape of the kernel."""
  if not {"down", "up"} <= pair.keys():
    return False
  (rank, *inputs), (outputs, *ranks) = pair["down"].shape, pair["up"].shape
  bare = lambda sides: [n for n in sides if n != 1]  # noqa: E731
  is_product = bare(inputs) == bare(shape[1:]) and outputs == shape[0]
  return is_product and math.prod(ranks) == rank > 0
