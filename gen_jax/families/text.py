"""Text: decoder-only transformers, trained on tokens."""

import dataclasses
import math

from gen_jax.cost import flops
from gen_jax.data import datasets
from gen_jax.decoding import generate
from gen_jax.families import base
from gen_jax.inference import text_generator
from gen_jax.models import transformer
from gen_jax.tasks import lm
from gen_jax.train import init_from
from gen_jax.types import InputError


def _check(task: lm.LanguageModel, data: datasets.TextData, sampling) -> None:
  del sampling
  base.check_length("data.length", data.length, "task.model", task.model)


def _layouts(task: lm.LanguageModel, abstract: base.AbstractParams):
  """The layers may be scanned otherwise."""
  config = task.model.config
  other = dataclasses.replace(config, scan_layers=not config.scan_layers)
  task = dataclasses.replace(task, model=transformer.Transformer(other))
  convert = transformer.stack if config.scan_layers else transformer.unstack
  return [init_from.CheckpointLayout(abstract(task), convert)]


def _model_flops(task: lm.LanguageModel, data: datasets.TextData, count):
  """Attention is by formula, halved in the second: publications use either.

  mfu         matrices + 12 L T N Dh a token
  mfu_causal  matrices +  6 L T N Dh a token
  """
  matrices = count(unless=lambda e: flops.is_batched(e) or flops.is_kernel(e))
  cfg = task.model.config
  per_token = 12.0 * cfg.num_layers * cfg.num_heads * cfg.dim_per_head
  attention = per_token * min(data.length, cfg.window or data.length)
  attention *= data.items_per_step
  return {"mfu": matrices + attention, "mfu_causal": matrices + attention / 2.0}


def _generator(experiment: base.Experiment, piece: int = 4):
  """Continues prompts, `piece` tokens at a time."""
  model, tokenizer = experiment.task.model, experiment.tokenizer
  return text_generator.TextGenerator(model, tokenizer, experiment.sampling, piece)


def _reference_images(experiment: base.Experiment, split: str):
  del experiment, split
  raise InputError("this is a text model: it has no images")


FAMILY = base.Family(
  name="language_model",
  datasets=(datasets.TextData,),
  sampling=generate.Sampling,
  check=_check,
  layouts=_layouts,
  model_flops=_model_flops,
  baseline_loss=lambda task: math.log(task.model.config.vocab_size),  # ln V
  generator=_generator,
  reference_images=_reference_images,
  idle=lambda task, sampling: sampling.idle(),
)
