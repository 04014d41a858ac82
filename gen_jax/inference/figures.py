"""Figures of an image model: guidance and steps, samplers, attention, latents."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import errors, rng
from gen_jax.data import datasets, pipeline, tokenizers
from gen_jax.inference import image_generator
from gen_jax.tasks import attribution, diffusion, states
from gen_jax.types import Params, PyTree

_TIMES = (0.3, 0.5, 0.7)  # at which attention is recorded
_COLUMNS = 8  # of a walk


class Figure(NamedTuple):
  """Images in rows and columns.

  Attributes:
    images: uint8 [rows, columns, H, W, C].
    caption: a sentence.
    rows: a label for each; (): none.
    titles: of each row's images, from the left; rows may be missing.
  """

  images: np.ndarray
  caption: str
  rows: Sequence[str] = ()
  titles: Sequence[Sequence[str]] = ()


class Canvas:
  """A model, its prompts, and the noise that all figures share."""

  def __init__(
    self,
    generator: image_generator.ImageGenerator,
    params: Params,
    frozen: PyTree,
    prompts: Sequence[str],
    seed: int,
    data: datasets.ImageData | datasets.LatentData,
    tokenizer: tokenizers.Tokenizer | None,
  ):
    self.generator, self.task, self.tokenizer = generator, generator.task, tokenizer
    self.params, self.frozen = params, frozen
    self.prompts, self.caption = prompts, self.generator.read(prompts)
    self.keys = rng.sample_keys(seed, len(prompts))
    side = generator.sampling.size or (data.image_size, data.image_size)
    self.pixels = (*side, data.channels)

  def draw(self, **changes):
    """A function: scale -> uint8 [N, H, W, C], an image per prompt."""

    @jax.jit
    def run(scale, params, frozen, caption, keys):
      how = {"guidance_scale": scale, **changes}
      sampling = dataclasses.replace(self.generator.sampling, **how)
      args, shape = (params, frozen, caption, keys), self.generator.shape
      return diffusion.draw(self.task, sampling, *args, shape)

    args = (self.params, self.frozen, self.caption, self.keys)
    return lambda scale: image_generator.to_uint8(run(jnp.float32(scale), *args))

  def by_guidance_and_steps(self, scales, steps):
    """A row per guidance scale, a column per number of steps, for the first prompt."""
    draws = [self.draw(num_steps=num) for num in steps]
    cells = np.array([[draw(scale)[0] for draw in draws] for scale in scales])
    rows, columns = _listed(scales), _listed(steps)
    caption = f"{self.prompts[0]}: rows guidance {rows}, columns {columns} steps"
    labels = [f"guidance {scale:g}" for scale in scales]
    return Figure(cells, caption, labels, [[f"{num} steps" for num in steps]])

  def by_sampler(self, samplers):
    """A row per sampler, a column per prompt."""
    scale, num = (
      self.generator.sampling.guidance_scale,
      self.generator.sampling.num_steps,
    )
    rows = np.stack([self.draw(sampler=s)(scale) for s in samplers.values()])
    caption = f"rows {_listed(samplers)}, {num} steps each; {_listed(self.prompts)}"
    return Figure(rows, caption, [*samplers], [self.prompts])

  def walk(self):
    """A row per prompt, from noise to the image by the run's own sampling."""
    sampling = self.generator.sampling
    spread = np.linspace(0, sampling.num_steps, _COLUMNS).round()
    steps = sorted({int(step) for step in spread})
    times = np.asarray(diffusion.times(self.task, sampling))[steps]

    @jax.jit
    def run(params, frozen, caption, keys):
      given = (self.task, sampling, params, frozen, caption, keys)
      return states.walk(*given, self.generator.shape, steps)

    passed = run(self.params, self.frozen, self.caption, self.keys)
    caption = f"from noise to an image in {sampling.num_steps} steps"
    return self._over_time(passed, times, caption, self.prompts)

  def noising(self, images: np.ndarray):
    """A row per image uint8 [N, H, W, C], from it to noise by the forward process."""
    times = np.linspace(0.0, 1.0, _COLUMNS)

    @jax.jit
    def run(frozen, images):
      keys = rng.sample_keys(0, len(images))
      given = (frozen, images, keys, jnp.asarray(times, jnp.float32))
      return states.noised(self.task, self.generator.sampling, *given)

    passed = run(self.frozen, _pixels(images))
    return self._over_time(passed, times, "images on their way to noise", ())

  def _over_time(self, passed, times, caption, rows):
    cells = image_generator.to_uint8(passed).swapaxes(0, 1)
    shown = f"{caption}, t = {', '.join(f'{t:.2g}' for t in times)}"
    return Figure(cells, shown, rows, [[f"t = {t:.2g}" for t in times]])

  def images(self):
    """uint8 [N, H, W, C], an image per prompt, by the run's own sampling."""
    return self.draw()(self.generator.sampling.guidance_scale)

  def _maps(self, params, frozen, x):
    """float32 [N, H, W, S]: how much pixels of images in [-1, 1] attend to tokens."""
    z = self.task.codec.encode(frozen, x, self.keys)
    eps = rng.normal(self.keys, z.shape[1:])
    times = (jnp.full(len(x), t) for t in _TIMES)
    given = (self.task, params, self.caption, z, eps)
    first, *rest = (attribution.attention_maps(*given, t) for t in times)
    found = sum(rest, start=first)
    return jax.image.resize(found, (*x.shape[:3], found.shape[-1]), "linear")

  def has_words(self) -> bool:
    """Whether pixels of this model attend to words; computes nothing."""
    shape = (len(self.prompts), *self.pixels)
    try:
      jax.eval_shape(self._maps, self.params, self.frozen, jnp.zeros(shape))
    except LookupError:
      return False
    return True

  def attention(self):
    """A row per prompt: the image, then its attention map for each word."""
    images = self.images()
    found = np.asarray(jax.jit(self._maps)(self.params, self.frozen, _pixels(images)))
    rows, titles = [], []
    for image, heat, prompt in zip(images, found, self.prompts, strict=True):
      titles.append(["", *prompt.split()])
      words = _by_word(heat, prompt, self.tokenizer)
      rows.append([_colour(image), *(_glow(image, word) for word in words)])
    columns, blank = max(map(len, rows)), np.full_like(rows[0][0], 255)
    cells = np.array([row + [blank] * (columns - len(row)) for row in rows])
    caption = f"where each word is looked at: {_listed(self.prompts)}"
    return Figure(cells, caption, (), titles)


def _by_word(heat: np.ndarray, prompt: str, tokenizer) -> list[np.ndarray]:
  """[H, W] in [0, 1] for each word, the sum over its tokens of [H, W, S]."""
  words = prompt.split()
  begins = [" ".join(words[:n]) for n in range(len(words) + 1)]
  ends = [len(pipeline.caption_ids(text, tokenizer)) - 1 for text in begins]
  found = [heat[..., a:b].sum(-1) for a, b in itertools.pairwise(ends)]
  return [(w - w.min()) / max(np.ptp(w), 1e-9) for w in found]


def latents(codec, frozen, images: np.ndarray):
  """A row per image: itself, its reconstruction, its latent channels, and in colour."""

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
  caption = (
    f"images, the same decoded from their latents, the {z.shape[-1]} channels of"
    " these, and their three principal components as red, green and blue"
  )
  titles = ["image", "decoded", *(f"channel {i + 1}" for i in range(z.shape[-1]))]
  titles += ["components"] * (len(columns) - len(titles))
  cells = np.stack([_colour(x) for x in columns], 1)
  return Figure(cells, caption, (), [titles])


def _pixels(images: np.ndarray) -> np.ndarray:
  return images.astype(np.float32) / 127.5 - 1.0


def _colour(image: np.ndarray) -> np.ndarray:
  return np.broadcast_to(image, (*image.shape[:-1], 3))


def _glow(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """A map [H, W] in [0, 1] over the image in grey."""
  with errors.extra("report"):
    import matplotlib
  colours = 255.0 * matplotlib.colormaps["inferno"](heat)[..., :3]
  return np.round(0.3 * image.mean(-1, keepdims=True) + 0.7 * colours).astype(np.uint8)


def _listed(values) -> str:
  return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
