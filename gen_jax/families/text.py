"""Text: decoder-only transformers, trained on tokens."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from gen_jax import rng, sharding
from gen_jax.cost import flops
from gen_jax.data import datasets
from gen_jax.decoding import generate
from gen_jax.evaluation import scoring
from gen_jax.families import base
from gen_jax.inference import (
  batches,
  drawing,
  settings,
  slots,
  talk,
  text_generator,
  texts,
)
from gen_jax.models import transformer
from gen_jax.system import folders, progress
from gen_jax.tasks import lm
from gen_jax.train import init_from
from gen_jax.types import InputError


def _check(task: lm.LanguageModel, data: datasets.TextData, sampling) -> None:
  del sampling
  base.check_length("data.length", data.length, "task.model", task.model)


def _layouts(experiment: base.Experiment) -> list[init_from.CheckpointLayout]:
  """The layers may be scanned otherwise."""
  task, config = experiment.task, experiment.task.model.config
  other = dataclasses.replace(config, scan_layers=not config.scan_layers)
  task = dataclasses.replace(task, model=transformer.Transformer(other))
  convert = transformer.stack if config.scan_layers else transformer.unstack
  abstract = experiment.around(task).abstract_params()
  return [init_from.CheckpointLayout(abstract, convert)]


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


def _check_flags(args) -> None:
  """Raises InputError for a flag that another one switches off."""
  idle: dict[str, str] = {}
  if args.interactive:
    alone = ("prompt", "prompts", "out", "chat", "infill", "logprobs")
    idle |= dict.fromkeys(alone, "--interactive asks for lines and prints answers")
  if args.chat:
    idle |= {"infill": "--chat puts the template around the prompt"}
  elif not args.interactive:
    idle |= {"system": "it is for --chat and --interactive"}
  drawing.check_idle([name for name in idle if getattr(args, name)], idle)


def _reader(args, experiment: base.Experiment):
  """How a --prompt becomes what the model continues."""
  tokenizer = experiment.tokenizer
  if args.chat:
    system = [{"role": "system", "content": args.system}] if args.system else []
    user = {"role": "user"}
    return lambda text: tokenizer.encode_chat([*system, {**user, "content": text}])
  if args.infill:
    if not isinstance(experiment.data, datasets.Infill):
      raise InputError("--infill needs a model trained with data.name=infill")
    return lambda text: experiment.data.how.around(text, tokenizer)
  return lambda text: text


def _sample(args, run: base.Run, weights: base.Weights):
  """Continues every prompt, or talks."""
  if args.interactive:
    if jax.process_count() > 1:
      raise InputError("--interactive is for a run of one process")
    given = (weights.params, args.seed, args.system)
    return talk.talk(_generator(run.experiment, 2), *given)
  writer = run.generator
  _check_num(args.num, writer.sampling)
  how = {
    "seed": args.seed,
    "sampling": dataclasses.asdict(writer.sampling),
    "flags": [name for name in settings.TEXT_FLAGS if getattr(args, name)],
    "model": weights.provenance(),
  }
  how |= {"system": args.system} if args.system else {}
  given = (args.prompt or [""], args.num, how)
  with folders.out(args.out, args.workdir / "samples") as folder:
    more = {"read": _reader(args, run.experiment), "logprobs": args.logprobs}
    if args.prompts:
      batch = slots.Slots(writer, weights.params, piece=writer.piece)
      result = batches.write(folder, batch, *given, **more)
    else:
      result = texts.write(folder, writer, weights.params, *given, **more)
  return base.made_by(weights, result)


def _check_num(num: int, sampling: generate.Sampling) -> None:
  if num > 1 and not sampling.temperature:
    raise InputError(
      f"--num {num}: temperature=0 takes the likeliest, so that all would be the same;"
      " leave one of them out"
    )


def _generate(
  writer, weights, prompts, num: int, seed: int, negative: str
) -> list[str]:
  """Continuations, prompt by prompt."""
  if negative:
    raise InputError(f"negative={negative!r} is for images; leave it out")
  _check_num(num, writer.sampling)
  groups = texts.groups(prompts, num)
  return [
    text
    for prompt, some in progress.track(groups, len(groups), "groups of samples")
    for text in writer.texts(
      weights.params, [prompt] * len(some), rng.sample_keys(seed, len(some), some.start)
    )
  ]


def _program(experiment: base.Experiment) -> base.Program:
  """max_tokens tokens after a prompt that fills the rest of the context."""
  layout, how = experiment.layout, experiment.sampling
  model = transformer.unscanned(experiment.task.model)
  task = dataclasses.replace(experiment.task, model=model)
  params = experiment.around(task).abstract_params()
  num, length = layout.num_batch_shards, model.config.max_length

  def decoder(params):
    return lambda tokens, cache, at: model.apply(
      {"params": params}, tokens, cache, at=at
    )

  def start(params, keys):
    cache = transformer.init_cache(model.config, num, length)
    prompts = jnp.zeros((num, length - how.max_tokens), jnp.int32)
    lengths = jnp.full(num, prompts.shape[1], jnp.int32)
    return generate.prefill(decoder(params), cache, prompts, lengths, keys)

  def draw(params, state):
    with sharding.use(layout):
      return generate.extend(decoder(params), state, how.max_tokens, how.draw, ())

  state = base.placed(layout, jax.eval_shape(start, params, base.keys(layout)))
  return base.Program(
    jax.jit(draw, donate_argnums=1),
    (params, state),
    held={"parameters": params, "cache": state},
    items=num * how.max_tokens,
  )


FAMILY = base.Family(
  name="language_model",
  kind="a text model",
  gives="text",
  settings=settings.TEXT_SETTINGS,
  flags=settings.TEXT_FLAGS,
  datasets=(datasets.TextData,),
  sampling=generate.Sampling,
  check=_check,
  layouts=_layouts,
  model_flops=_model_flops,
  baseline_loss=lambda task: math.log(task.model.config.vocab_size),  # ln V
  generator=_generator,
  generate=_generate,
  program=_program,
  sample=_sample,
  slots=slots.Slots,
  check_flags=_check_flags,
  export=base.late("to_transformers", "export"),
  adapter_plans=base.late("to_transformers", "adapter_plans"),
  reference_images=base.refuse("this is a text model: it has no images"),
  scorer=lambda experiment: scoring.Scorer(experiment.task.model),
  idle=lambda task, sampling: sampling.idle(),
)
