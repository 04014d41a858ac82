"""Reads configs of the previous release: old names of keys become new ones.

Workdirs keep the config they were made with; files and command lines may use old names
for one more release.
"""

from collections.abc import Iterator, Mapping
from typing import Any

KEYS = {"attend": "attention_impl", "clock_offset": "timestep_offset"}  # below `task`
MOVED = {
  "task.unet": "task.network",
  "task.text_encoder": "task.conditioning.text_encoder",
  "task.caption_drop_prob": "task.drop_prob",
}
OF_CAPTIONS = ("tokenizer", "caption_length")  # every image model once had them


def key(path: str) -> str:
  """A dotted config key by its new name.

  >>> key("task.model.attend"), key("task.unet.width")
  ('task.model.attention_impl', 'task.network.width')
  """
  for old, new in MOVED.items():
    if f"{path}.".startswith(f"{old}."):
      path = f"{new}{path.removeprefix(old)}"
  head, *rest = path.split(".")
  return ".".join([head, *(KEYS.get(part, part) for part in rest)])


def config(old: Mapping[str, Any]) -> Mapping[str, Any]:
  """A config with new names; anything else is returned unchanged."""
  if not isinstance(old, dict) or not isinstance(old.get("task"), dict):
    return old
  new = {**old, "task": _task(_block(old["task"]))}
  data = old.get("data")
  if isinstance(data, dict) and _reads_no_captions(new["task"], old["task"]):
    lost = {k for k in OF_CAPTIONS if data.get(k) is not None}
    new["data"] = {k: v for k, v in data.items() if k not in lost}
  return new


def _block(value: Any) -> Any:
  if not isinstance(value, dict):
    return value
  return {KEYS.get(name, name): _block(inner) for name, inner in value.items()}


def _task(task: dict[str, Any]) -> dict[str, Any]:
  """An old diffusion task of UNet and text encoder, in today's form."""
  if "unet" not in task:
    return task
  task = dict(task)
  network, encoder = task.pop("unet"), task.pop("text_encoder", None)
  if isinstance(network, dict):
    network = {"name": "unet", **network}
  task["network"] = network
  task["conditioning"] = {"name": "text", "text_encoder": encoder}
  if _is_without_text(network):
    task["conditioning"] = {"name": "none"}
  if "caption_drop_prob" in task:
    task["drop_prob"] = task.pop("caption_drop_prob")
  return task


def _is_without_text(network: Any) -> bool:
  """Whether a UNet has no cross-attention to text: its text encoder was idle."""
  attention = network.get("attention") if isinstance(network, dict) else None
  name = attention.get("name") if isinstance(attention, dict) else attention
  return name == "self_attention"


def _reads_no_captions(new: dict[str, Any], old: dict[str, Any]) -> bool:
  was_idle = "unet" in old and new["conditioning"] == {"name": "none"}
  return was_idle or new.get("name") == "autoencoder"


def renamed(old: Mapping[str, Any]) -> list[str]:
  """The changes that `config` makes: 'OLD is now NEW', or 'OLD is not read'."""
  found = dict.fromkeys(
    f"{part} is now {key(part)}"
    for path in _paths(old)
    for part in (next((m for m in MOVED if f"{path}.".startswith(f"{m}.")), path), path)
    if part in MOVED or (part.startswith("task.") and part.split(".")[-1] in KEYS)
  )
  had = old.get("data")
  lost = had.keys() - config(old)["data"].keys() if isinstance(had, dict) else ()
  return [*found, *(f"data.{name} is not read" for name in sorted(lost))]


def _paths(block: Any, path: str = "") -> Iterator[str]:
  """Dotted keys, also of blocks."""
  for name, value in block.items() if isinstance(block, dict) else ():
    yield (below := f"{path}{name}")
    yield from _paths(value, f"{below}.")
