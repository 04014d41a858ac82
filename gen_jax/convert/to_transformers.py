"""A run's language model as a folder that transformers loads."""

import json
import pathlib
import re
from typing import Any

from gen_jax import safetensors, tree
from gen_jax.convert import architectures, huggingface, target
from gen_jax.data import tokenizers
from gen_jax.models import transformer
from gen_jax.nn import widths
from gen_jax.system import copies, files
from gen_jax.types import Params


def export(args, opened) -> dict[str, Any]:
  """Writes the folder `args.to`, as `gen-jax export` says; returns what it says.

  Args:
    opened: the run.
  """
  experiment = opened.experiment
  model = experiment.task.model.config
  architecture = architectures.fitting(model)
  weights = opened.weights(args.checkpoint, args.weights)
  params = _standard(model, weights.params)
  plan = huggingface.foreign_tensors(architecture, params)
  home, tokenizer = opened.tokenizer_folder, experiment.tokenizer
  with target.whole(args.to) as partial:
    if tokenizer is None:
      partial.mkdir()
    else:
      copies.copy(home, partial, target.NOT_FOREIGN)
      _name_tokenizer(partial)
    safetensors.write_folder(partial, plan, target.DTYPES[args.dtype])
    ids = _ids(tokenizer)
    foreign = {
      "architectures": [architecture.name],
      "model_type": architecture.model_type,
      "torch_dtype": args.dtype,
      **{name: ids[name] for name in ("bos_token_id", "eos_token_id")},
      **architecture.write(model),
    }
    _write_json(partial / "config.json", foreign)
    _write_json(
      partial / "generation_config.json", {**ids, **_drawing(experiment.sampling)}
    )
  return target.told(args, weights, architecture.name, tree.size(weights.params))


def _standard(config: transformer.Config, params: Params) -> Params:
  """Weights of the same function without the factors of muP: see `nn.widths`."""

  def one(path, x):
    if re.search(r"query/(kernel|bias)$", path):
      return widths.times(x, config.query_scale)
    is_last = config.tied_head and path.startswith("final_norm/")
    return widths.times(x, 1.0 / config.width_ratio) if is_last else x

  return tree.map_with_path(one, params)


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  files.write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _ids(tokenizer: tokenizers.Tokenizer | None) -> dict[str, Any]:
  """Ids that open and end texts; null, too, must be said: families have defaults."""
  if tokenizer is None:
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
  stops = list(tokenizer.stops)
  return {
    "bos_token_id": tokenizer.bos,
    "eos_token_id": stops if len(stops) > 1 else tokenizer.eos,
    "pad_token_id": tokenizer.eos,
  }


def _drawing(sampling) -> dict[str, Any]:
  """The config's sampling in the words of generation_config.json."""
  common = {"max_new_tokens": sampling.max_tokens}
  if sampling.temperature == 0:
    return {**common, "do_sample": False}
  return {
    **common,
    "do_sample": True,
    "temperature": sampling.temperature,
    "top_k": sampling.top_k or 0,
    "top_p": sampling.top_p,
    **({"min_p": sampling.min_p} if sampling.min_p else {}),
  }


def _name_tokenizer(folder: pathlib.Path) -> None:
  """Names the class of a tokenizer that was made here, or it would be guessed."""
  path = folder / "tokenizer_config.json"
  if not (folder / "tokenizer.json").exists():
    return
  config = files.read_json(path) if path.exists() else {}
  if "tokenizer_class" not in config:
    _write_json(path, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
