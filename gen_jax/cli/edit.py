"""`gen-jax edit`: image to image, inpainting and outpainting for a prompt.

A model that was trained on instructions (task.condition=instruction) needs no mask.
"""

import pathlib

import numpy as np

from gen_jax import rng
from gen_jax.cli import config_args, flags, sample, trained, workdir
from gen_jax.data import image_files
from gen_jax.inference import inversion, sheets
from gen_jax.system import files
from gen_jax.types import InputError

IMAGE = tuple(name for name in sample.IMAGE if name != "size")  # that of the image


def add_arguments(parser) -> None:
  """See `gen-jax edit --help`."""
  trained.add_arguments(parser)
  parser.add_argument(
    "--image", action=flags.Path, required=True, metavar="FILE", help="what to edit"
  )
  parser.add_argument("--prompt", help="what to draw; default what --invert says")
  parser.add_argument(
    "--invert",
    metavar="PROMPT",
    help="what the image shows: finds the noise that this prompt draws it from, and"
    " draws from there; the same prompt gives the image back",
  )
  parser.add_argument(
    "--vary",
    type=float,
    default=0.0,
    help="with --invert: 0 keeps the noise found, 1 takes fresh noise, per --seed",
  )
  parser.add_argument("--negative", default="", help="what to lead away from")
  parser.add_argument(
    "--strength",
    type=float,
    help="0 is the image itself, 1 forgets it; default 0.6, 1 with a mask, with"
    " --invert or for a model of instructions",
  )
  parser.add_argument(
    "--mask",
    action=flags.Path,
    metavar="FILE",
    help="white, or a transparent hole, changes; black stays",
  )
  parser.add_argument(
    "--outpaint", metavar="L,T,R,B", help="pixels to add on each side, and to draw"
  )
  parser.add_argument("--num", type=int, default=1, help="how many, each by its seed")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--out", action=flags.Path, help="folder to write to; default WORKDIR/edits"
  )
  parser.add_argument(
    "--autoencoder",
    action=flags.Path,
    metavar="DIR",
    help="another one for the same latents",
  )
  group = parser.add_argument_group(
    "how to draw (default: the config's sampling block)"
  )
  for name in IMAGE:
    group.add_argument(f"--{name}", help="as in `gen-jax sample`")
  group.add_argument(
    "--image_guidance_scale", help="to hold on to the image; 1 is none"
  )
  parser.epilog = "Every pixel outside the mask comes back as it was, bit for bit."


def run(args) -> dict:
  """Checks everything, draws, and only then writes."""
  trained.check_draws(args)
  directory = args.workdir
  config = workdir.read_config(directory, args.overrides)
  given = {f"sampling.{n}": getattr(args, n) for n in (*IMAGE, "image_guidance_scale")}
  if config["task"]["name"] != "diffusion":
    raise InputError(f"{directory} holds no model that draws images")
  config = config_args.apply(
    config, [(k, v) for k, v in given.items() if v is not None]
  )
  image, change = _image(args, config["data"]["channels"])
  is_partial = bool(args.mask or args.outpaint)
  _check_inversion(args, is_partial)
  prompt = (args.invert or "") if args.prompt is None else args.prompt
  opened = trained.open_trained(directory, config, args.checkpoint, args.weights)
  if args.autoencoder:
    opened = trained.with_autoencoder(opened, args.autoencoder)
  sample.check_idle(args, opened.experiment)
  task = opened.experiment.task
  if task.condition and task.condition.reads == "image" and not is_partial:
    raise InputError("this model fills parts of an image: give --mask or --outpaint")
  if args.image_guidance_scale and not task.condition_drop_prob:
    raise InputError(
      f"--image_guidance_scale {args.image_guidance_scale} is for models of"
      " instructions (task.condition_drop_prob above 0); leave it out"
    )
  strength = args.strength
  if strength is None:
    is_redrawn = is_partial or args.invert is not None or task.condition
    strength = 1.0 if is_redrawn else 0.6
  generator, captions = opened.experiment.image_generator(), [prompt] * args.num
  keys = rng.sample_keys(args.seed, args.num)
  given = (opened.weights, opened.experiment.frozen)

  def draw(start):
    del start
    if args.invert is None:
      change_here = (image, change, strength, args.negative)
      yield generator.edits(*given, captions, keys, *change_here)
    else:
      how = (strength, args.vary, args.negative)
      how = (args.invert, captions, keys, image, *how)
      yield inversion.edit_by_inversion(generator, *given, *how)

  how = _how(args, opened, strength)
  index = list(range(args.num))
  with workdir.out_folder(args.out, directory / "edits") as folder:
    result = sheets.write_images(
      folder, draw, args.num, captions, args.seed, index, args.num, how
    )
  _compare(folder, image, result)
  return {**result, "strength": strength, "step": opened.step, "weights": opened.kind}


def _how(args, opened: trained.Opened, strength: float) -> dict:
  """All that the images depend on, with the hashes of the files that are read."""
  return {
    **opened.experiment.config["sampling"],
    "image": str(args.image),
    "image_sha256": files.sha256(args.image),
    "mask": args.mask and str(args.mask),
    "mask_sha256": args.mask and files.sha256(args.mask),
    "outpaint": args.outpaint,
    "strength": strength,
    "invert": args.invert,
    "vary": args.vary,
    "negative": args.negative,
    **opened.provenance(),
  }


def _compare(folder: pathlib.Path, image: np.ndarray, result: dict) -> None:
  """Writes the image and its edits side by side; says how many pixels are as before."""
  paths = [pathlib.Path(one["path"]) for one in result["samples"]]
  shown, path = np.stack([image, *map(sheets.open_own, paths)]), "before_after.png"
  sheets.save_sheet(folder / path, shown[None])
  kept, total = int((shown[1:] == image).all((0, -1)).sum()), image[..., 0].size
  print(f"before and after: {folder / path}; {kept} of {total} pixels as before")


def _check_inversion(args, is_partial: bool) -> None:
  if args.invert is None and args.vary:
    raise InputError(f"--vary {args.vary} is for --invert: say what the image shows")
  if args.invert is not None and is_partial:
    raise InputError("--invert is for the whole image: leave out --mask, --outpaint")
  if args.invert is not None and args.sampler:
    raise InputError(
      f"--invert walks up and down by belm: leave out --sampler {args.sampler}"
    )


def _image(args, channels: int) -> tuple[np.ndarray, np.ndarray]:
  """uint8 [H, W, C], and bool [H, W], where it is drawn again.

  Raises:
    InputError: files that cannot be read, of two sizes, or there is nothing to draw.
  """
  image = image_files.open_image(args.image)
  image = image_files.in_channels(image, channels)
  change = np.ones(image.shape[:2], np.bool_)
  if args.mask:
    change = image_files.open_mask(args.mask)
    (height, width), (rows, columns) = image.shape[:2], change.shape
    if (height, width) != (rows, columns):
      raise InputError(
        f"--mask {args.mask} is {columns}x{rows} pixels, the image {width}x{height}:"
        " give a mask of the same size"
      )
  if args.outpaint:
    try:
      left, top, right, bottom = (int(word) for word in args.outpaint.split(","))
      if min(left, top, right, bottom) < 0:
        raise ValueError
    except ValueError:
      raise InputError(
        f"--outpaint {args.outpaint!r} must be four numbers of pixels: left, top, right"
        " and bottom, as in 0,0,32,0"
      ) from None
    around = ((top, bottom), (left, right))
    change = change if args.mask else np.zeros(image.shape[:2], np.bool_)
    change = np.pad(change, around, constant_values=True)
    image = np.pad(image, (*around, (0, 0)), mode="edge")
  if not change.any():
    given = " and ".join(f"--{n}" for n in ("mask", "outpaint") if getattr(args, n))
    raise InputError(
      f"{given} keep all of the image, so that there is nothing to draw: white changes,"
      " black stays"
    )
  return image, change
