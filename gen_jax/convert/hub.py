"""Locates released weights: a folder, or a hub's repository at one commit."""

import dataclasses
import pathlib
import re

from gen_jax import errors, safetensors
from gen_jax.system import copies
from gen_jax.types import InputError, first_line

# One of these is needed for a tokenizer.
VOCABULARIES = (
  "tokenizer.json",
  "tokenizer.model",
  "encoder.json",
  "vocab.json",
  "characters.json",
)
TOKENIZER_FILES = (
  *VOCABULARIES,
  "ranks.json",
  "vocab.bpe",
  "merges.txt",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "generation_config.json",
  "chat_template.jinja",
)
# Pickles (*.bin, *.pth) are never fetched.
_FETCHED = (
  "config.json",
  "adapter_config.json",
  "*.safetensors",
  "model.safetensors.index.json",
  *TOKENIZER_FILES,
)
# Configs, tokenizer, and networks in one precision, of Stable Diffusion and DiT.
_DIFFUSERS = ("unet", "transformer", "vae")
_IMAGES = (
  "model_index.json",
  "*/config.json",
  "scheduler/scheduler_config.json",
  "tokenizer/*",
  *(f"{part}/diffusion_pytorch_model*.safetensors*" for part in _DIFFUSERS),
  "text_encoder/model*.safetensors*",
)
_OTHERS = ("*.fp16.*", "*non_ema*", "safety_checker/*", "feature_extractor/*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass(frozen=True)
class Source:
  """A model's files.

  Attributes:
    name: as requested.
    folder: on this machine.
    revision: full commit hash of a hub's model, or None.
  """

  name: str
  folder: pathlib.Path
  revision: str | None


def locate(name: str, revision: str | None = None) -> Source:
  """A folder, a file, or a hub's model at a commit (None: the newest).

  Raises:
    InputError: neither, or it cannot be downloaded.
  """
  folder = copies.here(name, "--from")
  if folder.is_dir():
    if revision is not None:
      raise InputError(
        f"--revision {revision} is for a model of the hub; {name} is a folder"
      )
    return Source(name, folder, None)
  if folder.is_file() and folder.suffix == ".safetensors":
    return Source(name, folder, None)
  if folder.is_file():
    what = safetensors.name_other(folder)
    what = what or "no .safetensors file" + safetensors.unopened(folder.parent)
    raise InputError(f"--from {name} is {what}")
  if folder.exists() or not _ID.fullmatch(name):
    raise InputError(f"--from {name} is neither a folder nor org/name of a hub's model")
  with errors.extra("hub"):
    import huggingface_hub
  try:
    info = huggingface_hub.HfApi().model_info(name, revision=revision)
    commit = info.sha
    is_image_model = any(f.rfilename == "model_index.json" for f in info.siblings or ())
    fetched = huggingface_hub.snapshot_download(
      name,
      revision=commit,
      allow_patterns=list(_IMAGES if is_image_model else _FETCHED),
      ignore_patterns=list(_OTHERS) if is_image_model else ["*/*"],
    )
  except Exception as error:  # no network, no such model, no permission: many types
    raise InputError(
      f"--from {name}: no such folder here, and the hub does not give it"
      f" ({first_line(error):.200}); fetch it elsewhere and name its folder"
    ) from None
  return Source(name, pathlib.Path(fetched), commit)


def expected_sha256(file: pathlib.Path) -> str | None:
  """The SHA-256 that a file should have; None if unknown.

  The hub's cache stores large files under their SHA-256 in `blobs`; a model's folder
  links to them.
  """
  blob = file.resolve()
  is_named = blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name)
  return blob.name if is_named else None
