"""LoRA files: read for a model's modules, and merged while its weights are read.

    W + scale * alpha / r * up down        down [r, in, ...], up [out, r, ...]

M is a module by its name in the model's own format: of the UNet, text encoder or DiT in
a diffusers folder, of a language model in transformers. Files spell it, and alpha, in
several ways:

    lora_unet_M.lora_down.weight, lora_te_M...   dots of M as _; the tensor M.alpha
    unet.M.lora_A.weight, text_encoder.M...      lora_alpha in the file's metadata
    transformer.M.lora_A.weight                  DiT, the same
    unet.M.lora.down.weight                      the tensor unet.M.alpha
    unet.X.processor.to_q_lora.down.weight       diffusers until 2023: M is X.to_q
    text_encoder.X.to_q_lora.down.weight         M is X.q_proj
    base_model.model.M.lora_A.weight             PEFT; alpha in adapter_config.json

and without alpha it is r. PEFT's use_rslora makes the scale alpha / sqrt(r).

Source: Hu et al. 2021 (arXiv:2106.09685); files of kohya's scripts, diffusers, PEFT.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from gen_jax import safetensors
from gen_jax.convert import foreign, matching, names
from gen_jax.convert import stable_diffusion as sd
from gen_jax.system import files
from gen_jax.types import InputError

NETWORKS = {
  "unet": ("lora_unet_", "unet."),
  "text_encoder": ("lora_te1_", "lora_te_", "text_encoder."),
}
_BARE = {  # starts of names without a network
  "unet": re.compile(r"(conv_in|down_blocks|mid_block|up_blocks|time_embedding)\."),
  "text_encoder": re.compile(r"text_model\."),
  "transformer": re.compile(r"(pos_embed|transformer_blocks|proj_out_\d)\."),
}
_PEFT = "base_model.model."
LANGUAGE = "language_model"  # a network of its own, whose files name no other
TRANSFORMER = "transformer"  # DiT's, by the name of its folder
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
CONFIG = "adapter_config.json"
# Keys of alpha_pattern are regular expressions, but hardly ever more than names.
_NAME = re.compile(r"\^?[\w.]+")
# Allowed values of settings: the change is a low-rank product alone, and the base
# weights are the published ones.
_PLAIN = {
  "peft_type": ("LORA",),
  "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
  **dict.fromkeys(
    (
      *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication"),
      *("arrow_config", "alora_invocation_tokens"),
      *("kasa_config", "monteclora_config", "velora_config"),
    ),
    (False, {}, []),
  ),
  # Only says how the base's kernels lie; down and up lie as ever.
  "fan_in_fan_out": (False, True),
}


class Pair(NamedTuple):
  """The change of one module: scale * up down.

  Attributes:
    down, up: tensors of a file, [r, in, ...] and [out, r, ...].
    scale: alpha / r, or as the settings say.
  """

  down: safetensors.Tensor
  up: safetensors.Tensor
  scale: float


# {network: {name of a module's kernel in its format: its change}}
Pairs = Mapping[str, Mapping[str, Pair]]


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


def _split(name: str, networks: Collection[str]) -> tuple[str, str, str] | None:
  """('unet', module with _ for dots, 'down') of a tensor's name; None: unknown."""
  own = name.removeprefix(_PEFT)
  given = [
    (network, prefix)
    for network, prefixes in {**NETWORKS, TRANSFORMER: ("transformer.",)}.items()
    for prefix in prefixes
    if own.startswith(prefix)
  ]
  given = given or [(network, "") for network in _BARE if _BARE[network].match(own)]
  given = [(LANGUAGE, "")] if LANGUAGE in networks else given
  if not given:
    return None
  network, prefix = given[0]
  own = own.removeprefix(prefix).removeprefix(_PEFT)
  for part, end in _ENDS.items():
    if found := re.fullmatch(f"(.+?){end}", own):
      module = found[1].replace(".", "_")
      for old, new in _OLD.get(network, ()):
        module = re.sub(old, new, module)
      return network, module, part
  return None


def _settings(
  file: pathlib.Path, names: Collection[str], networks: Collection[str]
) -> dict[str, dict[str, Any]]:
  """Settings of each network, from the file's metadata or PEFT's adapter_config.json.

  Raises:
    InputError: missing, or of more than a low-rank product.
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
    for network in networks
  }
  config = file.with_name(CONFIG)
  is_peft = any(_PEFT in name for name in names) or config.is_file()
  if not any(settings.values()) and is_peft:
    where = config
    settings = dict.fromkeys(networks, files.read_json(where))
  for own in settings.values():
    if not isinstance(own, dict):
      raise InputError(f"{where} must be a block, not {own!r:.60}")
    for key, plain in _PLAIN.items():
      if own.get(key) is not None and own[key] not in plain:
        raise InputError(f"{where}: {key}={own[key]!r:.60} is not supported")
    if not isinstance(own.get("use_rslora") or False, bool):
      raise InputError(
        f"{where}: use_rslora={own['use_rslora']!r:.60} is no true/false"
      )
  return settings


def _scale(
  module: str, pair: Mapping[str, safetensors.Tensor], settings: Mapping[str, Any]
) -> float:
  """alpha / r of one module, or alpha / sqrt(r).

  Raises:
    InputError: alpha is not a number.
  """
  rank, file = pair["down"].shape[0], pair["down"].file
  alpha = settings.get("lora_alpha")
  patterns = settings.get("alpha_pattern") or {}
  if not isinstance(patterns, dict) or not all(map(_NAME.fullmatch, patterns)):
    raise InputError(
      f"{file}: alpha_pattern={patterns!r:.60} must hold names of modules"
    )
  for pattern, own in patterns.items():
    is_whole, name = pattern.startswith("^"), pattern.removeprefix("^")
    if module == name or (not is_whole and module.endswith(f".{name}")):
      alpha = own
      break
  if "alpha" in pair:
    values = pair["alpha"].view()
    alpha = float(values.flat[0]) if values.size == 1 else values.tolist()
  alpha = rank if alpha is None else alpha
  if type(alpha) not in (int, float) or not abs(alpha) < 1e30:
    raise InputError(f"{file}: alpha={alpha!r:.60} must be one number")
  return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def read(file: pathlib.Path, plans: Mapping[str, matching.Plan], what: str) -> Pairs:
  """The changes that a file holds; their values are not read yet.

  Args:
    plans: of each network, in its folder's format; that of a language model is named
      LANGUAGE.
    what: model they are, for messages.

  Raises:
    InputError: lists tensors without a module or partner, or of other shapes.
  """
  halves, wrong, tensors = {}, [], safetensors.read_header(file)
  settings = _settings(file, tensors, plans)
  for name, tensor in tensors.items():
    network, module, part = _split(name, plans) or (None, name, None)
    known = safetensors.NUMBERS if part == "alpha" else safetensors.DTYPES
    pair = halves.setdefault((network, module), {}) if part else {}
    if part is None or tensor.dtype not in known:
      wrong.append(f"{name} ({tensor.dtype}) is not understood")
    elif part in pair:
      wrong.append(f"{name} is there twice, also under another name")
    pair[part] = tensor
  found = {network: {} for network in plans}
  for network, plan in plans.items():
    prefix = sd.PREFIXES.get(network, ("",))[sd.FOLDER].replace(".", "_")
    for name, (entry, shape) in plan.items():
      module = name.removesuffix(".weight")
      own = module.replace(".", "_")
      pair = halves.pop((network, own), None)
      pair = pair or halves.pop((network, own.removeprefix(prefix)), None)
      if pair is None or not entry.paths[0].endswith("/kernel"):
        wrong += [f"{name} is no kernel"] * (pair is not None)
      elif not _fits(out_first(entry, shape), pair):
        wrong.append(f"{name} {list(shape)} is not what up down changes")
      else:
        size = _scale(module, pair, settings[network])
        found[network][name] = Pair(pair["down"], pair["up"], size)
  wrong += [f"{network} has no module {module}" for network, module in halves]
  if wrong:
    other = foreign.lora_base(tensors)
    raise InputError(
      f"{file} does not fit {what}{other}, in {len(wrong)} places of"
      f" {len(tensors)} tensors: {'; '.join(wrong[:4])}"
    )
  return found


def check_width(config: Any) -> None:
  """Raises InputError for a model with muP's factors, which its kernels lack."""
  if config.width_ratio != 1.0:
    raise InputError(
      f"LoRA files are not for a model with base_width={config.base_width}: its kernels"
      " lack the factors of muP; export all its weights, and import them"
    )


def out_first(entry: names.TensorMap, shape: names.Shape) -> names.Shape:
  """A kernel's foreign shape with its outputs first, as those of up and down are."""
  return shape[::-1] if len(shape) == 2 and not entry.transposed else shape


def merge(
  file: pathlib.Path,
  scale: float,
  places: Mapping[str, matching.Places],
  plans: Mapping[str, matching.Plan],
) -> dict[str, matching.Places]:
  """`places` with a file's changes added; nothing is read yet.

  Args:
    scale: of the changes; 0 leaves the weights unchanged.
    places: of each network, see `stable_diffusion.match`.
    plans: see `read`.

  Raises:
    InputError: see `read`.
  """
  merged = {network: dict(own) for network, own in places.items()}
  for network, own in read(file, plans, "this Stable Diffusion").items():
    for name, pair in own.items():
      for path in plans[network][name][0].paths:
        entry, base = merged[network][path]
        change = AdaptedTensor(base, pair.down, pair.up, scale * pair.scale)
        merged[network][path] = entry, change
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
