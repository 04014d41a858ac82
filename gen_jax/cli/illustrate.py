"""`gen-jax illustrate`: figures about an image model, for its report."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from gen_jax import build, rng
from gen_jax.cli import flags
from gen_jax.data import pipeline
from gen_jax.inference import image_generator, sheets
from gen_jax.runs import run as runs
from gen_jax.runs import weights as weighing
from gen_jax.tasks import attribution, autoencoder, diffusion
from gen_jax.types import InputError

_COMPARED = (
  ("scales", float, (1.0, 2.0, 4.0, 8.0)),
  ("steps", int, (5, 10, 20, 50)),
  ("samplers", str, ("ddim", "heun", "dpmpp_2m", "unipc")),
)
_TIMES = (0.3, 0.5, 0.7)  # of noise at which attention is watched


def add_arguments(parser) -> None:
  """See `gen-jax illustrate --help`."""
  flags.add_model(parser)
  parser.add_argument(
    "--prompt", action="append", help="may be repeated; default: captions of the data"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the noise")
  for name, kind, values in _COMPARED:
    how = {"nargs": "+", "type": kind, "default": values}
    parser.add_argument(f"--{name}", help="to compare", **how)
  parser.epilog = (
    "Writes WORKDIR/figures, which `gen-jax report` shows: images by guidance and\n"
    "steps, by sampler, which words pixels look at, and an autoencoder's latents.\n"
    "An imported model has no data: --config.data.source.directory=DIR shows it some."
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
  codec = _codec(opened, weights)
  draws = isinstance(opened.experiment.task, diffusion.Diffusion)
  # What is missing is known before anything is drawn.
  if opened.is_imported:
    if not (draws and args.prompt):
      what = "captions: give --prompt" if draws else "images to encode"
      raise InputError(f"{directory} is an imported model, which has no {what}")
    prompts, images = args.prompt, None
  else:
    gallery = opened.experiment.reference_images("train")
    prompts = args.prompt or (gallery.captions(3) if draws else [])
    images = gallery.images(range(4)) if codec else None
  figures = {}
  if draws:
    canvas = _Canvas(opened, weights, prompts, args.seed)
    has_words = canvas.has_words()
    figures["guidance_steps"] = canvas.by_guidance_and_steps(args.scales, args.steps)
    figures["samplers"] = canvas.by_sampler(samplers)
    if has_words:
      figures["attention"] = canvas.attention()
  if codec:
    images = canvas.images() if images is None else images
    figures["latents"] = _latents(*codec, images)
  written = {
    name: str(sheets.save_figure(directory, name, *figure))
    for name, figure in figures.items()
  }
  print("\n".join(written.values()))
  return {"step": weights.step, "weights": weights.name, "figures": written}


class _Canvas:
  """A model that draws, prompts, and the noise that every figure shares."""

  def __init__(
    self, opened: runs.Run, weights: weighing.Weights, prompts: list[str], seed: int
  ):
    self.task = opened.experiment.task
    self.generator = opened.generator
    self.params, self.frozen = weights.params, weights.frozen
    self.prompts, self.caption = prompts, self.generator.caption(prompts)
    self.keys = rng.sample_keys(seed, len(prompts))
    data, sampling = opened.experiment.data, opened.experiment.sampling
    side = sampling.size or (data.image_size, data.image_size)
    self.pixels = (*side, data.channels)

  def draw(self, **changes):
    """scale -> uint8 [N, H, W, C], one for each prompt; `changes` of how to draw."""

    @jax.jit
    def run(scale, *args):
      how = {"guidance_scale": scale, **changes}
      sampling = dataclasses.replace(self.generator.sampling, **how)
      return diffusion.draw(self.task, sampling, *args, self.generator.shape)

    args = (self.params, self.frozen, self.caption, self.keys)
    return lambda scale: image_generator.to_uint8(run(jnp.float32(scale), *args))

  def by_guidance_and_steps(self, scales, steps):
    """Rows of guidance, columns of steps, for the first prompt."""
    draws = [self.draw(num_steps=num) for num in steps]
    cells = np.array([[draw(scale)[0] for draw in draws] for scale in scales])
    rows, columns = _listed(scales), _listed(steps)
    return cells, f"{self.prompts[0]}: rows guidance {rows}, columns {columns} steps"

  def by_sampler(self, samplers):
    """Rows of samplers, columns of prompts."""
    scale, num = (
      self.generator.sampling.guidance_scale,
      self.generator.sampling.num_steps,
    )
    rows = np.stack([self.draw(sampler=s)(scale) for s in samplers.values()])
    return rows, f"rows {_listed(samplers)}, {num} steps each; {_listed(self.prompts)}"

  def images(self):
    """uint8 [N, H, W, C], one for each prompt, as the model draws by itself."""
    return self.draw()(self.generator.sampling.guidance_scale)

  def _maps(self, params, frozen, x):
    """float32 [N, H, W, S]: how much pixels of images in [-1, 1] look at each token."""
    z = self.task.codec.encode(frozen, x, self.keys)
    eps = rng.normal(self.keys, z.shape[1:])
    times = (jnp.full(len(x), t) for t in _TIMES)
    given = (self.task, params, self.caption, z, eps)
    found = sum(attribution.attention_maps(*given, t) for t in times)
    return jax.image.resize(found, (*x.shape[:3], found.shape[-1]), "linear")

  def has_words(self) -> bool:
    """Whether pixels of this model look at words; nothing is computed."""
    shape = (len(self.prompts), *self.pixels)
    try:
      jax.eval_shape(self._maps, self.params, self.frozen, jnp.zeros(shape))
    except LookupError:
      return False
    return True

  def attention(self):
    """A row for each prompt: the image, then what of it looks at each word."""
    images = self.images()
    found = np.asarray(jax.jit(self._maps)(self.params, self.frozen, _pixels(images)))
    rows = []
    for image, heat, prompt in zip(images, found, self.prompts, strict=True):
      words = _by_word(heat, prompt, self.generator.tokenizer)
      rows.append([_colour(image), *(_glow(image, word) for word in words)])
    columns, blank = max(map(len, rows)), np.full_like(rows[0][0], 255)
    cells = np.array([row + [blank] * (columns - len(row)) for row in rows])
    return cells, f"where each word is looked at: {_listed(self.prompts)}"


def _by_word(heat: np.ndarray, prompt: str, tokenizer) -> list[np.ndarray]:
  """[H, W] in [0, 1] for each word, the sum over its tokens of [H, W, S]."""
  words = prompt.split()
  begins = [" ".join(words[:n]) for n in range(len(words) + 1)]
  ends = [len(pipeline.caption_ids(text, tokenizer)) - 1 for text in begins]
  found = [heat[..., a:b].sum(-1) for a, b in itertools.pairwise(ends)]
  return [(w - w.min()) / max(np.ptp(w), 1e-9) for w in found]


def _codec(opened: runs.Run, weights: weighing.Weights):
  """The autoencoder that a model is, or works in, with its weights; None without."""
  task, frozen = opened.experiment.task, weights.frozen
  if isinstance(task, autoencoder.Autoencode):
    codec = autoencoder.codec(task.autoencoder)
    own = {"autoencoder": weights.params["autoencoder"]}
    return codec, {**codec.init(jax.random.key(0)), **own}
  return (task.codec, frozen) if "autoencoder" in frozen else None


def _latents(codec, frozen, images: np.ndarray):
  """Rows of images: each itself, decoded again, its channels, these in colour."""

  @jax.jit
  def there_and_back(frozen, x):
    z = codec.encode(frozen, x, rng.sample_keys(0, len(x)))
    return z, codec.decode(frozen, z)

  z, again = map(np.asarray, there_and_back(frozen, _pixels(images)))
  z = (z - z.mean((0, 1, 2))) / z.std((0, 1, 2))
  factor = images.shape[1] // z.shape[1]
  _, _, axes = np.linalg.svd(z.reshape(-1, z.shape[-1]), full_matrices=False)
  shown = [*np.split(z, z.shape[-1], -1), z @ axes[:3].T][
    : z.shape[-1] + len(axes) // 3
  ]
  shown = [
    image_generator.to_uint8(v / 3).repeat(factor, 1).repeat(factor, 2) for v in shown
  ]
  columns = [images, image_generator.to_uint8(again), *shown]
  return np.stack([_colour(x) for x in columns], 1), (
    f"images, the same decoded from their latents, the {z.shape[-1]} channels of"
    " these, and their three principal components as red, green and blue"
  )


def _pixels(images: np.ndarray) -> np.ndarray:
  return images.astype(np.float32) / 127.5 - 1.0


def _colour(image: np.ndarray) -> np.ndarray:
  return np.broadcast_to(image, (*image.shape[:-1], 3))


def _glow(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """The image in grey under a map [H, W] in [0, 1]."""
  colours = 255.0 * matplotlib.colormaps["inferno"](heat)[..., :3]
  return np.round(0.3 * image.mean(-1, keepdims=True) + 0.7 * colours).astype(np.uint8)


def _listed(values) -> str:
  return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
