"""Training an autoencoder: reconstruction, a prior on the code, and a discriminator.

    loss = |x - y| + kl_weight KL(q(z|x) | N(0, I))
           + feature_weight |phi(x) - phi(y)| - adversarial_weight D(y)
           + max(0, 1 - D(x)) + max(0, 1 + D(y))

with y the decoded z. phi are the features of the discriminator D, a perceptual loss
that needs no other network (Larsen et al. 2016, arXiv:1512.09300). The second line has
no gradient to D and the third only to D, so one backward pass trains both.

Source: Esser et al. 2021 (arXiv:2012.09841) section 3.1; Rombach et al. 2022
(2112.10752) appendix G.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import ranges, rng
from gen_jax.diffusion import codec as codecs
from gen_jax.tasks import base
from gen_jax.types import Array, Batch, InputError, Mean, Params, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencode:
  """Reconstruction of images from a Gaussian code.

  Attributes:
    autoencoder: with the methods encode and decode; `is_stochastic` if the code is
      sampled and has a KL divergence.
    kl_weight: weight of the KL divergence, a mean over the elements of the code.
    discriminator: x -> (scores [B, h, w], features), or None.
    feature_weight, adversarial_weight: see the module's docstring.
  """

  autoencoder: nn.Module
  kl_weight: ranges.NotNegative = 1e-3
  discriminator: nn.Module | None = None
  feature_weight: ranges.NotNegative = 0.1
  adversarial_weight: ranges.NotNegative = 0.01

  reads = ()

  def __post_init__(self):
    ranges.check(self)
    if self.kl_weight and not self.autoencoder.is_stochastic:
      raise InputError(
        f"task.kl_weight={self.kl_weight} must be 0: this autoencoder's code has no"
        " spread, and so no KL divergence"
      )

  def init(self, key: Array, batch: Batch) -> Params:
    """See `base.Task`."""
    x = jnp.zeros_like(batch["image"])
    modules = {"autoencoder": self.autoencoder, "discriminator": self.discriminator}
    return {
      name: module.init(rng.named(key, name), x)["params"]
      for name, module in modules.items()
      if module is not None
    }

  def loss(
    self, params: Params, frozen: PyTree, batch: Batch, keys: Array, *, train: bool
  ) -> base.LossOut:
    """See `base.Task`.

    batch has image float32 [B, H, W, C] in [-1, 1] and weights [B]. In evaluation the
    code is the posterior's mean and the loss has no term of the discriminator. The PSNR
    is 10 log10(4 / mse) dB.
    """
    del frozen
    x = batch["image"]
    apply = functools.partial(base.apply, self.autoencoder, params["autoencoder"])
    mean, std = apply(x, method="encode")
    z = mean + std * rng.normal(keys, mean.shape[1:]) if train else mean
    y = apply(z, method="decode")
    loss = _mean(jnp.abs(x - y))
    found = {"l1": loss, "mse": _mean((x - y) ** 2)}
    if self.autoencoder.is_stochastic:
      found["kl"] = _mean(0.5 * (mean**2 + std**2 - 1.0) - jnp.log(std))
      loss = loss + self.kl_weight * found["kl"]
    if self.discriminator is not None and train:
      scorer = functools.partial(base.apply, self.discriminator)
      adversarial, more = self._critic(scorer, params["discriminator"], x, y)
      loss, found = loss + adversarial, {**found, **more}
    weights = batch["weights"]
    return base.LossOut(
      Mean.of(loss, weights), {k: Mean.of(v, weights) for k, v in found.items()}
    )

  def _critic(self, scorer: Callable[..., Any], params: Params, x: Array, y: Array):
    """The discriminator's terms of the loss, [B], and metrics."""
    fixed = jax.lax.stop_gradient(params)
    features = scorer(fixed, x)[1]
    scores, seen = scorer(fixed, y)
    pairs = zip(features, seen, strict=True)
    feature_loss = sum(_mean(jnp.abs(a - b)) for a, b in pairs) / len(features)
    real, fake = scorer(params, x)[0], scorer(params, jax.lax.stop_gradient(y))[0]
    hinge = _mean(jax.nn.relu(1.0 - real)) + _mean(jax.nn.relu(1.0 + fake))
    generator_loss = (
      self.feature_weight * feature_loss - self.adversarial_weight * _mean(scores)
    )
    return generator_loss + hinge, {"features": feature_loss, "hinge": hinge}


def codec(autoencoder: nn.Module, workdir: str | None = None) -> codecs.Codec:
  """The codec of an autoencoder's latents, for latent diffusion.

  Args:
    workdir: where its weights come from; the caller loads them into `frozen`.
  """
  del workdir
  cfg = autoencoder.config

  def init(key):
    x = jnp.zeros((1, cfg.factor, cfg.factor, cfg.image_channels))
    return autoencoder.init(key, x)["params"]

  def shape(x):
    return (x[0] // cfg.factor, x[1] // cfg.factor, cfg.latent_channels)

  def apply(method):
    return lambda weights, x: autoencoder.apply({"params": weights}, x, method=method)

  return codecs.latent(apply("encode"), apply("decode"), shape, init)


def _mean(x: Array) -> Array:
  """Mean over all axes but the batch, float32 [B]."""
  return jnp.mean(x.astype(jnp.float32), tuple(range(1, x.ndim)))
