"""Settings of a tokenizer, from the files next to its vocabulary.

tokenizer_config.json and special_tokens_map.json name the control tokens and those
added around texts, added_tokens.json adds tokens, generation_config.json has the stop
tokens, chat_template.jinja (or tokenizer_config.json) the chat template.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gen_jax.errors import InputError
from gen_jax.system import files

FILES = (
  "special_tokens_map.json",
  "tokenizer_config.json",
  "generation_config.json",
  "added_tokens.json",
  "chat_template.jinja",
)
_KINDS = ("bos", "eos", "unk", "cls", "sep", "mask", "pad")
_FLAGS = ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy")
_ATTRIBUTES = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a tokenizer; empty by default.

  Attributes:
    names: {kind: name of the token, or None} of the given kinds (bos, eos, ...).
    more: names of further control tokens.
    added: {id: keywords of `tokenizers.AddedToken`}.
    flags: those given of add_bos_token, add_eos_token, add_prefix_space and legacy.
    kind: the tokenizer's class, without Fast.
    template: the chat template.
    stops: ids that end generation.
  """

  names: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
  more: tuple[str, ...] = ()
  added: Mapping[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  flags: Mapping[str, bool] = dataclasses.field(default_factory=dict)
  kind: str | None = None
  template: str | None = None
  stops: tuple[int, ...] = ()

  @property
  def control(self) -> list[str]:
    """Names of the control tokens, without padding, which may be an ordinary token."""
    named = (name for kind, name in self.names.items() if name and kind != "pad")
    return list(dict.fromkeys((*named, *self.more)))


def _wrong(where: str, value: Any, wanted: str) -> InputError:
  return InputError(f"{where} is {value!r:.60}; {wanted} is needed")


def _object(value: Any, where: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise _wrong(where, value, "an object")
  return value


def _name(token: Any, where: str) -> str:
  name = token.get("content") if isinstance(token, dict) else token
  if not isinstance(name, str) or not name:
    raise _wrong(where, token, "the text of a token, or an object with its content")
  return name


def _id(value: Any, where: str) -> int:
  if type(value) is not int or not 0 <= value < 2**31:
    raise _wrong(where, value, "an id (a whole number from 0)")
  return value


def _decoder(found: dict[str, Any]) -> dict[int, dict[str, Any]]:
  """{id: token} of `added_tokens_decoder`."""
  tokens = {}
  for number, token in found.items():
    where = f"added_tokens_decoder[{number!r:.20}]"
    is_id = number.isascii() and number.isdigit() and len(number) <= 10
    token = _object(token, where)
    given = {key: token[key] for key in _ATTRIBUTES if key in token}
    for key, value in given.items():
      if not isinstance(value, bool):
        raise _wrong(f"{where}: {key}", value, "true or false")
    id_ = _id(int(number) if is_id else number, where)
    tokens[id_] = {"content": _name(token, where), **given}
  return tokens


def _list(config: dict[str, Any], key: str) -> list[Any]:
  """A list in a config, or the values of an object."""
  value = config.get(key) or []
  value = list(value.values()) if isinstance(value, dict) else value
  if not isinstance(value, list):
    raise _wrong(key, value, "a list")
  return value


def _template(value: Any) -> str | None:
  """The chat template; the default one of several."""
  if isinstance(value, list):
    pairs = [_object(entry, "an entry of chat_template") for entry in value]
    value = {entry.get("name"): entry.get("template") for entry in pairs}
  if isinstance(value, dict):
    value = value.get("default")
  if value is not None and not isinstance(value, str):
    raise _wrong("chat_template", value, "text in the Jinja language")
  return value


def read(contents: Mapping[str, bytes]) -> Settings:
  """The settings in the files of a folder.

  Args:
    contents: {name: content} of those FILES that exist.

  Raises:
    InputError: names the wrong entry.
  """
  special, config, generation, added = (
    _object(files.parse_json(contents.get(name, b"{}"), name), name)
    for name in FILES[:4]
  )
  config = {**special, **config}
  given = {
    kind: config[f"{kind}_token"] for kind in _KINDS if f"{kind}_token" in config
  }
  names = {
    kind: None if token is None else _name(token, f"{kind}_token")
    for kind, token in given.items()
  }
  keys = "additional_special_tokens", "extra_special_tokens"
  more = tuple(_name(token, key) for key in keys for token in _list(config, key))
  flags = {key: config[key] for key in _FLAGS if config.get(key) is not None}
  for key, value in flags.items():
    if not isinstance(value, bool):
      raise _wrong(key, value, "true or false")
  tokens = _decoder(_object(config.get("added_tokens_decoder") or {}, "added_tokens"))
  for name, i in added.items():  # older files; special if named as a control token
    is_control = name in names.values() or name in more
    token = {"content": name, "special": is_control, "normalized": not is_control}
    tokens.setdefault(_id(i, f"added_tokens.json: {name!r:.40}"), token)
  template = _template(config.get("chat_template"))
  if "chat_template.jinja" in contents:
    template = files.decode(contents["chat_template.jinja"], "chat_template.jinja")
  stops = generation.get("eos_token_id")
  stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
  stops = tuple(_id(stop, "generation_config.json: eos_token_id") for stop in stops)
  kind = config.get("tokenizer_class")
  if kind is not None and not isinstance(kind, str):
    raise _wrong("tokenizer_class", kind, "a name")
  kind = kind and kind.removesuffix("Fast")
  return Settings(names, more, tokens, flags, kind, template, stops)
