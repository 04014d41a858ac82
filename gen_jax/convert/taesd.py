"""TAESD's weights: two files, with layers named by their index in a sequence."""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gen_jax import build, safetensors
from gen_jax.convert import matching
from gen_jax.convert import stable_diffusion as sd
from gen_jax.models import tiny_autoencoder
from gen_jax.types import InputError, Params

HALVES = ("encoder", "decoder")
FILES = {half: f"taesd_{half}.safetensors" for half in HALVES}
# Other models of the family, which decode other latents.
OTHERS = {
  "taesdxl": "TAESDXL, for Stable Diffusion XL,",
  "taesd3": "TAESD3, for Stable Diffusion 3,",
  "taef1": "TAEF1, for FLUX.1,",
  "taef2": "TAEF2, for FLUX.2,",
  "taesana": "TAESANA, for SANA,",
}
_NAME = re.compile(r"(tae\w*)_(encoder|decoder)\.safetensors")
_BLOCK = tuple(
  ((ours,), "conv", sd.same(f"conv.{i}"))
  for ours, i in (("conv_in", 0), ("conv", 2), ("conv_out", 4))
)


def is_here(folder: pathlib.Path) -> bool:
  """Whether a folder holds at least one of TAESD's files."""
  return folder.is_dir() and any(_NAME.fullmatch(f.name) for f in folder.iterdir())


def open_folder(folder: pathlib.Path) -> dict[str, safetensors.Tensor]:
  """The tensors of both files, as encoder.0.weight and the like.

  Raises:
    InputError: one is missing or damaged, or they are for another model's latents.
  """
  stems = {found[1] for f in folder.iterdir() if (found := _NAME.fullmatch(f.name))}
  if "taesd" not in stems:
    what = OTHERS.get(min(stems), f"the tiny autoencoder {min(stems)!r}")
    raise InputError(
      f"{folder} holds {what} which is not supported; supported: TAESD, for Stable"
      " Diffusion 1 and 2"
    )
  if missing := [name for name in FILES.values() if not (folder / name).is_file()]:
    raise InputError(f"{folder} lacks {missing[0]}; fetch it")
  return {
    f"{half}.{name}": tensor
    for half, file in FILES.items()
    for name, tensor in safetensors.read_header(folder / file).items()
  }


def block(tensors: Mapping[str, safetensors.Tensor]) -> dict[str, Any]:
  """The autoencoder block; its sizes are those of the decoder's first layer."""
  first = tensors.get("decoder.1.weight")
  if first is None or len(first.shape) != 4:
    raise InputError("not TAESD: it lacks decoder.1.weight [width, latents, 3, 3]")
  return {"name": "tiny", "width": first.shape[0], "latent_channels": first.shape[1]}


def _modules(cfg: tiny_autoencoder.Config) -> Iterator[sd.Module]:
  """All modules by their index among the layers; None is a layer without weights."""
  conv = sd.one("conv")

  def blocks(stem, level):
    num = cfg.num_blocks if level else 1
    return [(f"{stem}_{level}_{i}", _BLOCK) for i in range(num)]

  down, up = [("conv_in", conv)], [None, ("conv_in", conv), None]
  for level in range(cfg.num_levels):
    down += [(f"down_{level}", conv)] * bool(level) + blocks("down", level)
  for level in reversed(range(cfg.num_levels)):
    up += blocks("up", level) + [None, (f"up_{level}", conv)] * bool(level)
  for half, layers in (("encoder", down), ("decoder", up)):
    for i, layer in enumerate([*layers, ("conv_out", conv)]):
      if layer is not None:
        yield f"{half}/{layer[0]}", layer[1], sd.same(f"{half}.{i}")


def match(
  tensors: Mapping[str, safetensors.Tensor], abstract: Params
) -> matching.Places:
  """Where each parameter is, see `matching.match`."""
  modules = _modules(build.build("autoencoder", block(tensors)).config)
  shapes = matching.unrolled_shapes(abstract)
  plan = matching.plan(sd.entries(modules, sd.FILE), shapes)
  return matching.match(plan, tensors, "TAESD")
