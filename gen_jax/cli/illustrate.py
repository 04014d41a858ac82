"""`gen-jax illustrate`: figures about an image model, for its report."""

from __future__ import annotations

from gen_jax import build
from gen_jax.cli import flags
from gen_jax.errors import InputError
from gen_jax.inference import figures, sheets
from gen_jax.runs import run as runs

_COMPARED = (
  ("scales", float, (1.0, 2.0, 4.0, 8.0)),
  ("steps", int, (5, 10, 20, 50)),
  ("samplers", str, ("ddim", "heun", "dpmpp_2m", "unipc")),
)


def add_arguments(parser) -> None:
  """See `gen-jax illustrate --help`."""
  flags.add_model(parser)
  parser.add_argument(
    "--prompt", action="append", help="may be repeated; default: captions of the data"
  )
  parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
  for name, kind, values in _COMPARED:
    how = {"nargs": "+", "type": kind, "default": values}
    parser.add_argument(f"--{name}", help=f"{name} to compare", **how)
  parser.epilog = (
    "Writes WORKDIR/figures, as PNG and PDF, which `gen-jax report` shows: images by\n"
    "guidance and steps, by sampler, the paths from noise to an image and back, the\n"
    "words that pixels attend to, and an autoencoder's latents.\n"
    "An imported model has no data: --config.data.source.directory=DIR gives it some."
  )


def run(args) -> dict:
  """Draws everything that the model has."""
  directory = args.workdir
  data = [o for o in args.overrides if o[0].startswith("data.")]  # what it is shown
  own = [o for o in args.overrides if o not in data]
  opened = runs.open_run(directory, own).configured(data)
  samplers = {n: build.build("sampler", n, "--samplers") for n in args.samplers}
  if min(args.steps) < 1:
    raise InputError(f"--steps {min(args.steps)} must be at least 1")
  weights = opened.image_weights(args.checkpoint, args.weights)
  given = (weights.params, weights.frozen)
  family = opened.family
  codec, draws = family.codec(opened.experiment.task, *given), family.draws
  # What is missing is known before anything is drawn.
  if opened.is_imported:
    if not (draws and args.prompt):
      what = "captions: give --prompt" if draws else "images to encode"
      raise InputError(f"{directory} is an imported model, which has no {what}")
    prompts, images = args.prompt, None
  else:
    reference = opened.experiment.reference_images("train")
    reads = draws and opened.experiment.task.reads
    prompts = args.prompt or (reference.captions(3) if reads else [""] * 3)
    images = reference.images(range(4))
  drawn = {}
  if draws:
    made = opened.experiment
    about = (prompts, args.seed, made.data, made.tokenizer)
    canvas = figures.Canvas(opened.generator, *given, *about)
    has_words = canvas.has_words()
    drawn["guidance_steps"] = canvas.by_guidance_and_steps(args.scales, args.steps)
    drawn["samplers"] = canvas.by_sampler(samplers)
    drawn["walk"] = canvas.walk()
    if has_words:
      drawn["attention"] = canvas.attention()
  images = canvas.images() if images is None else images
  if draws:
    drawn["noising"] = canvas.noising(images[:3])
  if codec:
    drawn["latents"] = figures.latents(*codec, images)
  written = {
    name: str(sheets.save_figure(directory, name, *figure))
    for name, figure in drawn.items()
  }
  print("\n".join(written.values()))
  return {"step": weights.step, "weights": weights.name, "figures": written}
