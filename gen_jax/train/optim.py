"""Optimisers and learning-rate schedules: optax, with clipping and decay by path.

Every schedule has the signature (peak, num_steps, warmup_steps, ...) -> step -> rate;
every optimiser takes such a schedule and returns an optax transformation.
"""

import re

import jax
import optax

from gen_jax import ranges, tree

DECAYED = r"(kernel|table)$"


@ranges.checked
def constant(
  peak: ranges.NotNegative, num_steps: int, warmup_steps: ranges.Steps = 0
) -> optax.Schedule:
  """Linear warm-up, then `peak`.

  >>> rate = constant(1.0, 100, warmup_steps=10)
  >>> [round(float(rate(s)), 2) for s in (0, 5, 10, 99)]
  [0.0, 0.5, 1.0, 1.0]
  """
  del num_steps
  return optax.warmup_constant_schedule(
    0.0 if warmup_steps else peak, peak, warmup_steps
  )


def _warmed_up(decay: optax.Schedule, peak: float, warmup_steps: int) -> optax.Schedule:
  """Linear warm-up to `peak`, then `decay` from its own step 0 on."""
  return optax.join_schedules([constant(peak, 0, warmup_steps), decay], [warmup_steps])


@ranges.checked
def cosine(
  peak: ranges.NotNegative,
  num_steps: int,
  warmup_steps: ranges.Steps = 0,
  final_fraction: ranges.Fraction = 0.1,
  decay_steps: ranges.PositiveSteps | None = None,
) -> optax.Schedule:
  """Linear warm-up, half a cosine down to final_fraction * peak, then constant.

  The decay ends at step decay_steps; None is num_steps.

  >>> rate = cosine(1.0, 110, warmup_steps=10)
  >>> [round(float(rate(s)), 2) for s in (0, 10, 60, 110)]
  [0.0, 1.0, 0.55, 0.1]
  """
  length = max((decay_steps or num_steps) - warmup_steps, 1) * 1.0  # see `numbers`

  def decay(step):  # a new one each time: optax's keeps what `length` was in a trace
    return optax.cosine_decay_schedule(peak, length, alpha=final_fraction)(step)

  return _warmed_up(decay, peak, warmup_steps)


@ranges.checked
def linear(
  peak: ranges.NotNegative,
  num_steps: int,
  warmup_steps: ranges.Steps = 0,
  final_fraction: ranges.Fraction = 0.0,
) -> optax.Schedule:
  """Linear warm-up, then linearly down to final_fraction * peak.

  >>> rate = linear(1.0, 110, warmup_steps=10)
  >>> [round(float(rate(s)), 2) for s in (0, 10, 60, 110)]
  [0.0, 1.0, 0.5, 0.0]
  """
  decay = optax.linear_schedule(
    peak, peak * final_fraction, max(num_steps - warmup_steps, 1)
  )
  return _warmed_up(decay, peak, warmup_steps)


@ranges.checked
def wsd(
  peak: ranges.NotNegative,
  num_steps: int,
  warmup_steps: ranges.Steps = 0,
  decay_fraction: ranges.PositiveFraction = 0.2,
  final_fraction: ranges.Fraction = 0.0,
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


@ranges.checked
def adamw(
  learning_rate: optax.Schedule,
  b1: ranges.ProperFraction = 0.9,
  b2: ranges.ProperFraction = 0.95,
  eps: ranges.Positive = 1e-8,
  weight_decay: ranges.NotNegative = 0.1,
  clip_norm: ranges.Positive | None = 1.0,
) -> optax.GradientTransformation:
  """AdamW; decay on kernels and tables only. Loshchilov & Hutter 2019 (1711.05101)."""
  return _clipped(
    clip_norm,
    optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=_decayed),
  )


def _muon_axes(
  path: str, leaf: jax.Array | None
) -> optax.contrib.MuonDimensionNumbers | None:
  """Input and output axes of a kernel; None: it is left to AdamW.

  Axes count from the end, so that stacked layers [L, ...] are L matrices.
  """
  del leaf
  for pattern, axes in (
    (r"(query|key|value)/kernel$", (-3, (-2, -1))),  # [D, N, Dh]
    (r"attention/out/kernel$", ((-3, -2), -1)),  # [N, Dh, D]
    (r"mlp/(up|gate|down)/kernel$", (-2, -1)),  # [D, F], [F, D]
  ):
    if re.search(pattern, path):
      return optax.contrib.MuonDimensionNumbers(*axes)
  return None


def is_muon(path: str) -> bool:
  """Whether `muon` takes a parameter as a matrix; the rest it leaves to AdamW."""
  return _muon_axes(path, None) is not None


@ranges.checked
def muon(
  learning_rate: optax.Schedule,
  momentum: ranges.ProperFraction = 0.95,
  b1: ranges.ProperFraction = 0.9,
  b2: ranges.ProperFraction = 0.95,
  eps: ranges.Positive = 1e-8,
  weight_decay: ranges.NotNegative = 0.1,
  clip_norm: ranges.Positive | None = 1.0,
) -> optax.GradientTransformation:
  """Muon on the matrices of attention and feed-forward, AdamW on the rest.

  Updates are scaled to the RMS of AdamW's (0.2 sqrt(max(inputs, outputs))): both
  share one learning rate and weight decay. Jordan et al. 2024; Liu et al. 2025
  (arXiv:2502.16982) eq. 4.
  """

  def labels(params):
    return tree.map_with_path(
      lambda path, x: "adamw" if _muon_axes(path, x) is None else "muon", params
    )

  matrices = optax.contrib.muon(
    learning_rate,
    beta=momentum,
    weight_decay=weight_decay,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=lambda params: tree.map_with_path(_muon_axes, params),
  )
  rest = adamw(learning_rate, b1, b2, eps, weight_decay, clip_norm=None)
  return _clipped(clip_norm, optax.partition({"muon": matrices, "adamw": rest}, labels))


@ranges.checked
def lion(
  learning_rate: optax.Schedule,
  b1: ranges.ProperFraction = 0.9,
  b2: ranges.ProperFraction = 0.99,
  weight_decay: ranges.NotNegative = 0.1,
  clip_norm: ranges.Positive | None = 1.0,
) -> optax.GradientTransformation:
  """Lion. Chen et al. 2023 (arXiv:2302.06675)."""
  return _clipped(
    clip_norm,
    optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=_decayed),
  )


@ranges.checked
def adafactor(
  learning_rate: optax.Schedule, clip_norm: ranges.Positive | None = 1.0
) -> optax.GradientTransformation:
  """Adafactor without relative step sizes. Shazeer & Stern 2018 (arXiv:1804.04235)."""
  return _clipped(
    clip_norm, optax.adafactor(learning_rate, multiply_by_parameter_scale=False)
  )


@ranges.checked
def sgd(
  learning_rate: optax.Schedule,
  momentum: ranges.ProperFraction = 0.9,
  clip_norm: ranges.Positive | None = None,
) -> optax.GradientTransformation:
  """Stochastic gradient descent with momentum."""
  return _clipped(clip_norm, optax.sgd(learning_rate, momentum))
