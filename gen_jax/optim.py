"""Optimisers and learning-rate schedules: optax, with clipping and decay by path.

Every schedule has the signature (peak, num_steps, warmup_steps, ...) -> step -> rate;
every optimiser takes such a schedule and returns one optax transformation.
"""

import optax

from gen_jax import tree

DECAYED = r"(kernel|table)$"


def constant(peak: float, num_steps: int, warmup_steps: int = 0) -> optax.Schedule:
  """Linear warm-up, then `peak`.

  >>> rate = constant(1.0, 100, warmup_steps=10)
  >>> [round(float(rate(s)), 2) for s in (0, 5, 10, 99)]
  [0.0, 0.5, 1.0, 1.0]
  """
  del num_steps
  return optax.warmup_constant_schedule(
    0.0 if warmup_steps else peak, peak, warmup_steps
  )


def cosine(
  peak: float, num_steps: int, warmup_steps: int = 0, final_fraction: float = 0.1
) -> optax.Schedule:
  """Linear warm-up, then half a cosine down to final_fraction * peak.

  >>> rate = cosine(1.0, 110, warmup_steps=10)
  >>> [round(float(rate(s)), 2) for s in (0, 10, 60, 110)]
  [0.0, 1.0, 0.55, 0.1]
  """
  decay = optax.cosine_decay_schedule(
    peak, max(num_steps - warmup_steps, 1), alpha=final_fraction
  )
  return optax.join_schedules(
    [constant(peak, num_steps, warmup_steps), decay], [warmup_steps]
  )


def linear(
  peak: float, num_steps: int, warmup_steps: int = 0, final_fraction: float = 0.0
) -> optax.Schedule:
  """Linear warm-up, then linearly down to final_fraction * peak.

  >>> rate = linear(1.0, 110, warmup_steps=10)
  >>> [round(float(rate(s)), 2) for s in (0, 10, 60, 110)]
  [0.0, 1.0, 0.5, 0.0]
  """
  decay = optax.linear_schedule(
    peak, peak * final_fraction, max(num_steps - warmup_steps, 1)
  )
  return optax.join_schedules(
    [constant(peak, num_steps, warmup_steps), decay], [warmup_steps]
  )


def wsd(
  peak: float,
  num_steps: int,
  warmup_steps: int = 0,
  decay_fraction: float = 0.2,
  final_fraction: float = 0.0,
) -> optax.Schedule:
  """Warm-up, stable, then linear decay over the last `decay_fraction` of the steps.

  Source: Hu et al. 2024 (arXiv:2404.06395) section 4.

  >>> rate = wsd(1.0, 100, warmup_steps=10)
  >>> [round(float(rate(s)), 2) for s in (0, 10, 80, 90, 100)]
  [0.0, 1.0, 1.0, 0.5, 0.0]
  """
  decay_steps = max(round(decay_fraction * num_steps), 1)
  decay = optax.linear_schedule(peak, peak * final_fraction, decay_steps)
  stable = constant(peak, num_steps, warmup_steps)
  return optax.join_schedules([stable, decay], [num_steps - decay_steps])


def _clipped(
  clip_norm: float | None, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
  if clip_norm is None:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def _decayed(params):
  return tree.mask(DECAYED, params)


def adamw(
  learning_rate: optax.Schedule,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
  clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
  """AdamW; decay on kernels and tables alone. Loshchilov & Hutter 2019 (1711.05101)."""
  return _clipped(
    clip_norm,
    optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=_decayed),
  )


def lion(
  learning_rate: optax.Schedule,
  b1: float = 0.9,
  b2: float = 0.99,
  weight_decay: float = 0.1,
  clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
  """Lion. Chen et al. 2023 (arXiv:2302.06675)."""
  return _clipped(
    clip_norm,
    optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=_decayed),
  )


def adafactor(
  learning_rate: optax.Schedule, clip_norm: float | None = 1.0
) -> optax.GradientTransformation:
  """Adafactor without relative step sizes. Shazeer & Stern 2018 (arXiv:1804.04235)."""
  return _clipped(
    clip_norm, optax.adafactor(learning_rate, multiply_by_parameter_scale=False)
  )


def sgd(
  learning_rate: optax.Schedule, momentum: float = 0.9, clip_norm: float | None = None
) -> optax.GradientTransformation:
  """Stochastic gradient descent with momentum."""
  return _clipped(clip_norm, optax.sgd(learning_rate, momentum))
