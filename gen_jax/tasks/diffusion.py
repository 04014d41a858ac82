"""Diffusion: a network learns to denoise, with or without a prompt.

One `denoiser` serves the loss and every sampler, so that training and sampling cannot
drift apart. The unconditional model of classifier-free guidance is the same network
under the null prompt (the empty caption, the null class), which replaces the prompt in
training with probability `drop_prob` (Ho & Salimans 2022, arXiv:2207.12598).
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import ranges, rng
from gen_jax.diffusion import codec as codecs
from gen_jax.diffusion import condition as conditions
from gen_jax.diffusion import corrupt, editing, grids, guidance, samplers
from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules
from gen_jax.tasks import base
from gen_jax.tasks import conditioning as conditionings
from gen_jax.types import Array, Batch, InputError, Mean, Params, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Diffusion:
  """Denoising, conditioned on a prompt.

  Attributes:
    network: (x [B, H, W, C + extra], t [B], `types.States`) -> out [B, H, W, C]. Its
      config has params_name, stem, image_channels, extra_channels, vector_width and
      check_side.
    conditioning: the kind of prompt, see `tasks.conditioning`.
    schedule, target, weighting, time_sampler, codec: see `gen_jax.diffusion`.
    drop_prob: probability of training an example under the null prompt.
    condition: what the network's extra channels hold.
    condition_drop_prob: probability of training with zeros there. One random number
      decides on both, and half of the dropped prompts lose their condition too: 0.1 and
      0.1 are 5 % without prompt, 5 % without condition and 5 % without either (Brooks
      et al. 2023, arXiv:2211.09800, section 3.2.1).
  """

  network: nn.Module
  conditioning: conditionings.Conditioning
  schedule: schedules.Schedule
  target: param.Target
  weighting: Callable[[schedules.Schedule, param.Target, Array], Array]
  time_sampler: corrupt.TimeSampler
  codec: codecs.Codec
  drop_prob: ranges.Fraction = 0.1
  condition: conditions.Condition | None = None
  condition_drop_prob: Annotated[float, ranges.Range(0.0, 0.5)] = 0.0

  def __post_init__(self):
    ranges.check(self)
    prob = self.condition_drop_prob
    if prob and self.condition is None:
      raise InputError(f"condition_drop_prob={prob} must be 0 without a condition")

  @property
  def reads(self) -> tuple[str, ...]:
    """See `base.Task`."""
    return self.conditioning.reads

  @property
  def t_first(self) -> float:
    """The smallest time (the least noise) that training draws."""
    return max(self.schedule.t_first, getattr(self.time_sampler, "t_min", 0.0))

  def init(self, key: Array, batch: Batch) -> Params:
    """See `base.Task`."""
    if "latent" in batch:  # moments: twice the channels
      size, *sides, moments = batch["latent"].shape
      shape = (*sides, moments // 2)
    else:
      size, *image = batch["image"].shape
      shape = self.codec.shape(tuple(image))
    config = self.network.config
    z = jnp.zeros((size, *shape[:-1], shape[-1] + config.extra_channels))
    encoder = self.conditioning.init(key, batch)
    prompt = self.conditioning.of(batch)
    states = jax.eval_shape(
      lambda e: self.conditioning.encode(
        nn.meta.unbox(e), prompt, train=False, key=None
      ),
      encoder,
    )
    states = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), states)
    key = rng.named(key, config.params_name)
    network = self.network.init(key, z, jnp.zeros(z.shape[:1]), states)
    return {**encoder, config.params_name: network["params"]}

  def extra(self, frozen: PyTree, batch: Batch, keys: Array) -> Array | None:
    """Extra channels next to x_t, [B, h, w, E]; None without a condition."""
    if self.condition is None:
      return None
    return self.condition.extra(self.codec, frozen, batch, keys)

  def denoiser(
    self,
    params: Params,
    frozen: PyTree,
    prompt: PyTree,
    *,
    extra: Array | None = None,
    train_key=None,
  ) -> guidance.Denoise:
    """Binds parameters and prompt: (x_t [B, ...], t [B]) -> Prediction.

    The prompt is encoded once, here. `extra` [B, h, w, E] is concatenated to x_t for
    the network. `train_key` turns dropout on.
    """
    del frozen
    train = train_key is not None
    states = self.conditioning.encode(params, prompt, train=train, key=train_key)
    name = self.network.config.params_name
    rngs = {"dropout": rng.named(train_key, name)} if train else None

    def denoise(x: Array, t: Array) -> param.Prediction:
      scale = schedules.expand(self.target.input_scale(self.schedule, t), x)
      inputs = scale * x
      if extra is not None:
        inputs = jnp.concatenate([inputs, extra], -1)
      out = base.apply(
        self.network, params[name], inputs, t, states, train=train, rngs=rngs
      )
      return param.solve(self.target, self.schedule, t, x, out)

    return denoise

  def loss(
    self, params: Params, frozen: PyTree, batch: Batch, keys: Array, *, train: bool
  ) -> base.LossOut:
    """See `base.Task`.

    batch has image float32 [B, H, W, C] in [-1, 1], or latent float32 [B, h, w, 2 Z]
    (the moments of its code); what the conditioning reads; weights [B]. The loss is
    w(t) |out - target|^2, averaged over pixels; 'mse_eps' is the unweighted error in
    eps, comparable across targets.
    """
    time_keys, noise_keys, drop_keys, codec_keys = rng.split(keys, 4)
    if "latent" in batch:
      assert self.codec.stored is not None  # families: only such data fit
      x0 = self.codec.stored(frozen, batch["latent"], codec_keys)
    else:
      x0 = self.codec.encode(frozen, batch["image"], codec_keys)
    draw = self.time_sampler if train else corrupt.by_example(self.time_sampler)
    t = draw(self.schedule, time_keys)
    eps = rng.normal(noise_keys, x0.shape[1:])
    x_t = corrupt.corrupt(self.schedule, t, x0, eps)

    prompt = self.conditioning.of(batch)
    extra = self.extra(frozen, batch, rng.fold_in(codec_keys, 1))
    if train:
      prompt, extra = self._dropped(prompt, extra, rng.uniform(drop_keys))
    train_key = rng.named(keys[0], "dropout") if train else None
    denoise = self.denoiser(params, frozen, prompt, extra=extra, train_key=train_key)
    prediction = denoise(x_t, t)

    def error(a, b):  # mean square over all but the batch, [B]
      return jnp.mean(jnp.square(a - b), tuple(range(1, a.ndim)))

    def out(x0, eps):
      return param.combine(self.target, self.schedule, t, x0, eps)

    weight = self.weighting(self.schedule, self.target, t)
    loss = weight * error(out(*prediction), out(x0, eps))
    return base.LossOut(
      Mean.of(loss, batch["weights"]),
      {"mse_eps": Mean.of(error(prediction.eps, eps), batch["weights"])},
    )

  def _dropped(self, prompt: PyTree, extra: Array | None, u: Array):
    """Prompt and extra, each dropped where the uniform u [B] is small enough."""
    is_dropped = u < self.drop_prob
    prompt = jax.tree.map(
      lambda null, given: jnp.where(schedules.expand(is_dropped, given), null, given),
      self.conditioning.null(u.shape[0]),
      prompt,
    )
    if extra is not None and self.condition_drop_prob:
      first = 0.5 * self.drop_prob
      nothing = (first <= u) & (u < first + self.condition_drop_prob)
      extra = jnp.where(schedules.expand(nothing, extra), 0.0, extra)
    return prompt, extra


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to draw images.

  Attributes:
    sampler: schedule -> Sampler.
    grid: (schedule, num_steps) -> times.
    num_steps: steps from noise to image.
    guidance_scale: 1 is no guidance.
    image_guidance_scale: the same for the image that an instruction edits; only of
      models that were trained with `condition_drop_prob`.
    guidance_interval: guide only while t is in it.
    guidance_rescale: share in [0, 1] of rescaling the guided prediction.
    size: height and width of images; None: those of training.
    tile: side, in latents, of the tiles in which images are decoded; None: no tiles.
  """

  sampler: Callable[[schedules.Schedule], samplers.Sampler] = samplers.ddim
  grid: Callable[[schedules.Schedule, int], Array] = grids.uniform
  num_steps: ranges.Size = 50
  guidance_scale: ranges.Finite = 1.0
  guidance_interval: tuple[ranges.Fraction, ranges.Fraction] = (0.0, 1.0)
  guidance_rescale: ranges.Fraction = 0.0
  size: tuple[ranges.Size, ranges.Size] | None = None
  tile: Annotated[int, ranges.Range(4, 2**20)] | None = None
  image_guidance_scale: ranges.Finite = 1.5

  def __post_init__(self):
    ranges.check(self)
    low, high = self.guidance_interval
    if low >= high:
      raise InputError(
        f"guidance_interval={low},{high} must be two rising times in [0, 1]"
      )


def idle(task: Diffusion, sampling: Sampling) -> dict[str, str]:
  """{field: why it has no effect}, of fields that another one switches off."""
  scales = [sampling.guidance_scale]
  scales += [sampling.image_guidance_scale] if task.condition_drop_prob else []
  names: tuple[str, ...] = ("negative", "guidance_interval", "guidance_rescale")
  if not task.reads and not task.condition_drop_prob:
    names = ("prompt", "guidance_scale", *names)
    return dict.fromkeys(names, "the model is unconditional")
  if set(scales) != {1}:
    return {}
  return dict.fromkeys(names, "guidance_scale=1 is no guidance")


def times(task: Diffusion, sampling: Sampling) -> Array:
  """The sampler's times, float32 [num_steps + 1]; only the last is below t_first."""
  return sampling.grid(schedules.known(task.schedule, task.t_first), sampling.num_steps)


def check_times(task: Diffusion, sampling: Sampling) -> None:
  """Raises InputError unless times fall and the first prediction determines x0."""

  @jax.jit  # one program, not one of each operation
  def begin():
    found = times(task, sampling)
    first = found[:1]
    determinant = param.determinant(task.target, task.schedule, first)
    return found, determinant, task.schedule.alpha(first)

  found, determinant, alpha = map(np.asarray, begin())
  if not (np.all(found[:-1] > found[1:]) and found[0] <= 1 and found[-1] >= 0):
    listed = ", ".join(f"{t:.4g}" for t in (*found[:3].tolist(), *found[-3:].tolist()))
    raise InputError(
      f"sampling.grid with num_steps={sampling.num_steps} gives times that do not fall"
      f" from 1 to 0 ({listed}); take fewer steps, or another grid"
    )
  if abs(determinant.item()) < 1e-3:
    raise InputError(
      f"sampling.grid begins at t={found[0]:g} with {alpha.item():g} of the image left,"
      f" and target"
      f" {type(task.target).__name__.lower()} says nothing about it; take grid=uniform,"
      " or target=v"
    )


def guided(
  task: Diffusion,
  sampling: Sampling,
  params: Params,
  frozen: PyTree,
  prompt: PyTree,
  negative: PyTree | None,
  extra: Array | None = None,
) -> guidance.Denoise:
  """The denoiser that `sampling` asks for."""
  reference = negative
  if negative is None:
    null = task.conditioning.null(1)
    reference = jax.tree.map(lambda n, x: jnp.broadcast_to(n, x.shape), null, prompt)
  prompts = [reference, prompt]
  scales = [sampling.guidance_scale if task.reads else 1]
  if task.condition_drop_prob:
    prompts.insert(0, reference)
    scales.insert(0, sampling.image_guidance_scale)
  while scales and isinstance(scales[0], float | int) and scales[0] == 1:
    del prompts[0], scales[0]  # a scale of 1 cancels the prediction below
  if extra is not None:  # the first of three predictions is without it
    with_image = [jnp.zeros_like(extra), extra, extra][-len(prompts) :]
    extra = guidance.interleave(*with_image)
  among = jax.tree.map(guidance.interleave, *prompts)
  network = task.denoiser(params, frozen, among, extra=extra)
  predictions = guidance.batched(network, len(prompts))
  low, high = sampling.guidance_interval
  within = [guidance.within(scale, low, high) for scale in scales]
  denoise = guidance.multi_guidance(predictions, within)
  if sampling.guidance_rescale and scales:

    def main(x, t):
      return predictions(x, t)[-1]

    denoise = guidance.rescale(task.schedule, denoise, main, sampling.guidance_rescale)
  return denoise


def decode(task: Diffusion, sampling: Sampling, frozen: PyTree, z: Array) -> Array:
  """Decodes latents into images, in tiles if `sampling` asks for them."""
  codec = codecs.tiled(task.codec, sampling.tile) if sampling.tile else task.codec
  return codec.decode(frozen, z)


def draw(
  task: Diffusion,
  sampling: Sampling,
  params: Params,
  frozen: PyTree,
  prompt: PyTree,
  keys: Array,
  shape: tuple[int, ...],
  negative: PyTree | None = None,
) -> Array:
  """Draws one image per prompt; image i depends on prompt i and keys[i] alone.

  Args:
    prompt: arrays [B, ...], see `tasks.conditioning`.
    keys: [B].
    shape: of one latent, [H, W, C].
    negative: the negative prompt, as `prompt`; None: the null prompt.

  Returns:
    Images float32 [B, ...] from the codec's decoder, about [-1, 1].
  """
  *_, z = trajectory(task, sampling, params, frozen, prompt, keys, shape, negative)
  return decode(task, sampling, frozen, z)


def trajectory(
  task, sampling, params, frozen, prompt, keys, shape, negative=None, trace=None
) -> tuple[Array, PyTree, Array]:
  """(the noise, `trace` of the latents after each step, the last latents) of `draw`."""
  denoise = guided(task, sampling, params, frozen, prompt, negative)
  at = times(task, sampling)
  noise_keys, step_keys = rng.split(keys, 2)
  noise = samplers.noise(task.schedule, at[0], noise_keys, shape)
  given = (denoise, sampling.sampler(task.schedule), at, noise, step_keys)
  z, traced = samplers.sample(*given, trace=trace)
  return noise, traced, z


def edit(
  task: Diffusion,
  sampling: Sampling,
  params: Params,
  frozen: PyTree,
  prompt: PyTree,
  keys: Array,
  image: Array,
  change: Array,
  strength: Array,
  negative: PyTree | None = None,
) -> Array:
  """Edits images; see `diffusion.editing`.

  Args:
    image: float32 [B, H, W, C] in [-1, 1].
    change: bool [B, H, W], where it may change.
    strength: float32 [] in [0, 1]; traced.

  Returns:
    Images as from `draw`. The mask is enforced in latent space only; the caller pastes
    the original pixels back.
  """
  z = task.codec.encode(frozen, image, rng.fold_in(keys, 1))
  factor = image.shape[1] // z.shape[1]
  keep = editing.keep_latents(change, factor)
  given = {"image": image, "before": image, "change": change}
  extra = task.extra(frozen, given, rng.fold_in(keys, 2))
  denoise = guided(task, sampling, params, frozen, prompt, negative, extra)
  at = editing.shortened(times(task, sampling), strength, task.t_first)
  noise_keys, step_keys = rng.split(keys, 2)
  eps = rng.normal(noise_keys, z.shape[1:])
  sampler = sampling.sampler(task.schedule)
  sampler = editing.inpainting(sampler, task.schedule, z, eps, keep)
  x = editing.start(task.schedule, at[0], z, eps, strength)
  x, _ = samplers.sample(denoise, sampler, at, x, step_keys)
  return decode(task, sampling, frozen, jnp.where(strength > 0, x, z))
