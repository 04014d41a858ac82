"""`gen-jax list`: the configs that come with gen_jax, and what each one needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from gen_jax import build, tree
from gen_jax.errors import unknown
from gen_jax.runs import run as runs
from gen_jax.runs import workdir
from gen_jax.system import own_configs


def add_arguments(parser) -> None:
  """See `gen-jax list --help`."""
  parser.add_argument(
    "names",
    nargs="*",
    metavar="NAME",
    help="only these: lm/gpt2, or lm for the whole folder",
  )
  parser.epilog = (
    "The first variant is the default: --config lm/llama is --config lm/llama:7b.\n"
    "A version that runs in seconds: --config lm/llama:smoke. Parameters are counted."
  )


def run(args) -> dict:
  """Prints the configs; returns {name: its card, and its variants}."""
  names = own_configs.names()
  for wanted in args.names:
    if not any(_is_below(name, wanted) for name in names):
      raise unknown("config", wanted, names)
  wanted = args.names or names
  chosen = [name for name in names if any(_is_below(name, one) for one in wanted)]
  return {"configs": {name: _show(name) for name in chosen}}


def _is_below(name: str, folder: str) -> bool:
  return f"{name}/".startswith(f"{folder}/")


def _show(name: str) -> dict[str, Any]:
  from gen_jax.build import config_files

  module, found = config_files.module(name), {}
  card = (module.__doc__ or "").strip().partition("\n")[0]
  print(f"{name}: {card}", flush=True)
  for variant in getattr(module, "VARIANTS", ("",)):
    config = config_files.load(f"{name}:{variant}")
    size, needs = _size(config), [*_needs(config)]
    found[variant] = {"parameters": size, "needs": needs}
    shown = "parameters of its start" if size is None else f"{size:,} parameters"
    print(
      f"  {variant and f':{variant}':14} {shown:>26}  {', '.join(needs)}", flush=True
    )
  return {"card": card, "variants": found}


def _size(config: dict[str, Any]) -> int | None:
  """Trained parameters; None: those of the model that the config starts from."""
  if config["task"] is None:
    return None
  rows = jax.device_count() * config["train"].get("num_microbatches", 1)
  data = {**config["data"], "batch_size": rows}  # whatever devices are here
  made = runs.Run(None, build.resolved({**config, "data": data, "mesh": "mesh"}))
  return tree.size(made.experiment.abstract_params())


def _needs(config: dict[str, Any]) -> Iterator[str]:
  """What a run reads: its data as the config names them, and other runs."""
  source = dict(config["data"]["source"])
  name = source.pop("name")
  yield " ".join([f"data: {name}", *(f"{k}={v!r}" for k, v in source.items())])
  for key, value in workdir.flat(build.resolved(config)).items():
    if key.endswith(".workdir"):
      yield f"{key}={value}"
