"""`gen-jax edit`: image to image, inpainting and outpainting for a prompt.

A model that was trained on instructions (task.condition=instruction) needs no mask.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from gen_jax.cli import flags
from gen_jax.inference import drawing, settings, sheets
from gen_jax.runs import run as runs
from gen_jax.runs import weights as weighing
from gen_jax.system import files, folders

IMAGE = tuple(n for n in settings.IMAGE_SETTINGS if n != "size")  # that of the image


def add_arguments(parser) -> None:
  """See `gen-jax edit --help`."""
  add = parser.add_argument
  flags.add_model(parser)
  add("--image", action=flags.Path, required=True, metavar="FILE", help="what to edit")
  add("--prompt", help="what to draw; default: the prompt of --invert")
  add(
    "--invert",
    metavar="PROMPT",
    help="what the image shows: finds the noise from which this prompt draws it, and"
    " starts there; the same prompt gives the image back",
  )
  add(
    "--vary",
    type=float,
    default=0.0,
    help="with --invert: 0 keeps the noise found, 1 takes new noise, by --seed",
  )
  add("--negative", default="", help="negative prompt")
  add(
    "--strength",
    type=float,
    help="0 keeps the image, 1 ignores it; default 0.6, or 1 with a mask, with"
    " --invert or for an instruction model",
  )
  add(
    "--mask",
    action=flags.Path,
    metavar="FILE",
    help="white areas or transparent holes change, black stays",
  )
  add("--outpaint", metavar="L,T,R,B", help="pixels to add and draw on each side")
  add(
    "--resize",
    type=int,
    metavar="PIXELS",
    help="crop image and mask to the centre, scale to this side, as training does",
  )
  add("--num", type=int, default=1, help="number of edits, each with its own seed")
  add("--seed", type=int, default=0)
  add("--out", action=flags.Path, help="folder to write to; default WORKDIR/edits")
  add(
    "--autoencoder",
    action=flags.Path,
    metavar="DIR",
    help="another autoencoder for the same latents",
  )
  parser.epilog = "Pixels outside the mask stay as they are, bit for bit."
  _add_sampling(parser)


def _add_sampling(parser) -> None:
  group = parser.add_argument_group(
    "how to draw (default: the config's sampling block)"
  )
  for name in IMAGE:
    group.add_argument(f"--{name}", help="as in `gen-jax sample`")
  group.add_argument(
    "--image_guidance_scale", help="guidance towards the image; 1 is none"
  )


def run(args) -> dict:
  """Checks everything, draws, and only then writes."""
  drawing.check(args.num, args.seed)
  opened = runs.open_run(args.workdir, args.overrides)
  given = flags.given(args, (*IMAGE, "image_guidance_scale"))
  names = (field.name for field in dataclasses.fields(drawing.Edit))
  edit = drawing.Edit(**{name: getattr(args, name) for name in names})
  opened.check_edit(edit, given)
  opened = opened.configured({f"sampling.{k}": v for k, v in given.items()})
  opened = dataclasses.replace(opened, autoencoder=args.autoencoder)
  pixels = edit.pixels(opened.config["data"]["channels"])
  opened.require_tokenizer()
  opened.check_idle(name for name, value in vars(args).items() if value)
  edit.check_task(opened.experiment.task, given)
  weights = opened.weights(args.checkpoint, args.weights)
  plan = edit.plan(opened.generator, weights, pixels, args.num, args.seed)
  how = _how(args, opened, weights, edit.strength_for(opened.experiment.task))
  with folders.out(args.out, args.workdir / "edits") as folder:
    result = plan.write(folder, args.seed, args.num, how)
  _compare(folder, pixels[0], result)
  about = {"strength": how["strength"], "step": weights.step, "weights": weights.name}
  return {**result, **about}


def _how(args, opened: runs.Run, weights: weighing.Weights, strength: float) -> dict:
  """All that the images depend on, with the hashes of the files that are read."""
  return {
    **opened.config["sampling"],
    "image": str(args.image),
    "image_sha256": files.sha256(args.image),
    "mask": args.mask and str(args.mask),
    "mask_sha256": args.mask and files.sha256(args.mask),
    "outpaint": args.outpaint,
    "resize": args.resize,
    "strength": strength,
    "invert": args.invert,
    "vary": args.vary,
    "negative": args.negative,
    **weights.provenance(),
  }


def _compare(folder: pathlib.Path, image: np.ndarray, result: dict) -> None:
  """Writes the image and its edits side by side; says how many pixels are as before."""
  paths = [files.path(one["path"], "path") for one in result["samples"]]
  shown, path = np.stack([image, *map(sheets.open_own, paths)]), "before_after.png"
  sheets.save_sheet(folder / path, shown[None])
  kept, total = int((shown[1:] == image).all((0, -1)).sum()), image[..., 0].size
  print(f"before and after: {folder / path}; {kept} of {total} pixels as before")
