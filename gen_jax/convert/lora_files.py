"""LoRA files for Stable Diffusion, merged while its weights are read.

    W + scale * alpha / r * up down        down [r, in, ...], up [out, r, ...]

M is a module of the UNet or text encoder, by its name in a diffusers folder. Files
spell it, and alpha, in several ways:

    lora_unet_M.lora_down.weight, lora_te_M...   dots of M as _; the tensor M.alpha
    unet.M.lora_A.weight, text_encoder.M...      lora_alpha in the file's metadata
    unet.M.lora.down.weight                      the tensor unet.M.alpha
    unet.X.processor.to_q_lora.down.weight       diffusers until 2023: M is X.to_q
    text_encoder.X.to_q_lora.down.weight         M is X.q_proj
    base_model.model.M.lora_A.weight             PEFT; alpha in adapter_config.json

and without alpha it is r.

Source: Hu et al. 2021 (arXiv:2106.09685); files of kohya's scripts, diffusers, PEFT.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gen_jax import safetensors
from gen_jax.convert import foreign, matching
from gen_jax.convert import stable_diffusion as sd
from gen_jax.system import files
from gen_jax.types import InputError, Params

_NETWORKS = {
  "unet": ("lora_unet_", "unet."),
  "text_encoder": ("lora_te1_", "lora_te_", "text_encoder."),
}
_BARE = {  # starts of names without a network
  "unet": re.compile(r"(conv_in|down_blocks|mid_block|up_blocks|time_embedding)\."),
  "text_encoder": re.compile(r"text_model\."),
}
_PEFT = "base_model.model."
_HALF = r"(?:\.lora_{0}|\.lora_{1}|[._]lora\.{0}|\.lora_linear_layer\.{0})"
_ENDS = {
  "alpha": r"(?:[._]lora)?\.alpha",
  "down": _HALF.format("down", "A") + r"(?:\.default)?\.weight",
  "up": _HALF.format("up", "B") + r"(?:\.default)?\.weight",
}
# Old names of attention's parts (until 2023); for the text encoder of another library.
_OLD = {
  "unet": ((r"_processor_", "_"), (r"(_attn\d_to_out)$", r"\1_0")),
  "text_encoder": (
    (r"_self_attn_to_([qkv])$", r"_self_attn_\1_proj"),
    (r"_self_attn_to_out$", "_self_attn_out_proj"),
  ),
}
_METADATA = "lora_adapter_metadata"
# Allowed values of settings: the scale is alpha / r, and the base weights are the
# published ones.
_PLAIN = {
  "peft_type": ("LORA",),
  "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
  **dict.fromkeys(
    (
      "alpha_pattern",
      "use_rslora",
      "use_dora",
      "use_qalora",
      "use_bdlora",
      "lora_bias",
    ),
    (False, {}),
  ),
  **dict.fromkeys(("fan_in_fan_out", "layer_replication"), (False, [])),
}


@dataclasses.dataclass(frozen=True)
class AdaptedTensor:
  """A tensor of a file plus a low-rank change; see `safetensors.Tensor`."""

  base: "safetensors.Tensor | AdaptedTensor"
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
  """('unet', module with _ for dots, 'down') of a tensor's name; None: unknown."""
  own = name.removeprefix(_PEFT)
  given = [
    (network, prefix)
    for network, prefixes in _NETWORKS.items()
    for prefix in prefixes
    if own.startswith(prefix)
  ]
  given = given or [(network, "") for network in _BARE if _BARE[network].match(own)]
  if not given:
    return None
  network, prefix = given[0]
  own = own.removeprefix(prefix).removeprefix(_PEFT)
  for part, end in _ENDS.items():
    if found := re.fullmatch(f"(.+?){end}", own):
      module = found[1].replace(".", "_")
      for old, new in _OLD[network]:
        module = re.sub(old, new, module)
      return network, module, part
  return None


def _settings(file: pathlib.Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
  """Settings of each network, from the file's metadata or PEFT's adapter_config.json.

  Raises:
    InputError: missing, or with another scale than alpha / r.
  """
  where = f"{file}: {_METADATA}"
  found = files.parse_json(safetensors.read_metadata(file).get(_METADATA, "{}"), where)
  if not isinstance(found, dict):
    raise InputError(f"{where} does not hold an object as JSON")
  settings = {
    network: {
      key.removeprefix(f"{network}."): value
      for key, value in found.items()
      if key.startswith(f"{network}.")
    }
    for network in _NETWORKS
  }
  if not any(settings.values()) and any(_PEFT in name for name in names):
    where = file.with_name("adapter_config.json")
    settings = dict.fromkeys(_NETWORKS, files.read_json(where))
  for own in settings.values():
    for key, plain in _PLAIN.items():
      if own.get(key) is not None and own[key] not in plain:
        raise InputError(f"{where}: {key}={own[key]!r:.60} is not supported")
  return settings


def _scale(
  pair: Mapping[str, safetensors.Tensor], settings: Mapping[str, Any]
) -> float:
  """alpha / r of one module.

  Raises:
    InputError: alpha is not a number.
  """
  rank = pair["down"].shape[0]
  alpha = settings.get("lora_alpha")
  if "alpha" in pair:
    values = pair["alpha"].view()
    alpha = float(values.flat[0]) if values.size == 1 else values.tolist()
  alpha = rank if alpha is None else alpha
  if type(alpha) not in (int, float) or not abs(alpha) < 1e30:
    raise InputError(f"{pair['down'].file}: alpha={alpha!r:.60} must be one number")
  return alpha / rank


def merge(
  file: pathlib.Path,
  scale: float,
  places: Mapping[str, matching.Places],
  models: Mapping[str, sd.Model],
  abstract: Mapping[str, Params],
) -> dict[str, matching.Places]:
  """`places` with a file's changes added; nothing is read yet.

  Args:
    scale: of the changes; 0 leaves the weights unchanged.
    places: of each network, see `stable_diffusion.match`.
    models, abstract: the networks, and shapes of their parameters.

  Raises:
    InputError: lists tensors without a module or partner, or of other shapes.
  """
  pairs, wrong, tensors = {}, [], safetensors.read_header(file)
  settings = _settings(file, tensors)
  for name, tensor in tensors.items():
    network, module, part = _split(name) or (None, name, None)
    known = safetensors.NUMBERS if part == "alpha" else safetensors.DTYPES
    pair = pairs.setdefault((network, module), {}) if part else {}
    if part is None or tensor.dtype not in known:
      wrong.append(f"{name} ({tensor.dtype}) is not understood")
    elif part in pair:
      wrong.append(f"{name} is there twice, also under another name")
    pair[part] = tensor
  merged = {network: dict(own) for network, own in places.items()}
  for network in _NETWORKS:
    prefix = sd.PREFIXES[network][sd.FOLDER].replace(".", "_")
    for entry, _ in models[network].plan(abstract[network], sd.FOLDER).values():
      module = entry.foreign.removesuffix(".weight").replace(".", "_")
      pair = pairs.pop((network, module), None)
      pair = pair or pairs.pop((network, module.removeprefix(prefix)), None)
      if pair is None or not entry.foreign.endswith(".weight"):
        continue
      for path in entry.paths:
        own, base = merged[network][path]
        if not _fits(base.shape, pair):
          wrong.append(
            f"{entry.foreign} {list(base.shape)} is not what up down changes"
          )
          break
        size = scale * _scale(pair, settings[network])
        change = AdaptedTensor(base, pair["down"], pair["up"], size)
        merged[network][path] = own, change
  wrong += [f"{network} has no module {module}" for network, module in pairs]
  if wrong:
    other = foreign.lora_base(tensors)
    raise InputError(
      f"{file} does not fit this Stable Diffusion{other}, in {len(wrong)} places of"
      f" {len(tensors)} tensors: {'; '.join(wrong[:4])}"
    )
  return merged


def _fits(shape: tuple[int, ...], pair: Mapping[str, safetensors.Tensor]) -> bool:
  """Whether both parts exist and their product has the kernel's shape."""
  if not {"down", "up"} <= pair.keys():
    return False
  if not (pair["down"].shape and pair["up"].shape):
    return False
  (rank, *inputs), (outputs, *ranks) = pair["down"].shape, pair["up"].shape
  bare, wanted = ([n for n in sides if n != 1] for sides in (inputs, shape[1:]))
  is_product = bare == wanted and outputs == shape[0]
  return is_product and math.prod(ranks) == rank > 0
