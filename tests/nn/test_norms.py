"""Normalisation against float64 numpy written from the definitions."""

import jax
import numpy as np
import pytest

from gen_jax import sharding
from gen_jax.nn import norms

X = np.random.default_rng(0).normal(3.0, 2.0, (2, 4, 6, 8)).astype(np.float32)
SCALE, BIAS = np.linspace(0.5, 2, 8), np.linspace(-1, 1, 8)


def standardise(x, axes, eps):
  x = x.astype(np.float64)
  mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
  return (x - mean) / np.sqrt(var + eps)


def layer(x, eps=1e-5):
  return standardise(x, -1, eps) * SCALE + BIAS


def rms(x, eps=1e-6):
  x = x.astype(np.float64)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * SCALE


def group(x, eps=1e-5):
  groups = x.reshape(2, 4, 6, 4, 2)
  return standardise(groups, (1, 2, 4), eps).reshape(x.shape) * SCALE + BIAS


@pytest.mark.parametrize(
  "module, reference",
  [(norms.LayerNorm(), layer), (norms.RMSNorm(), rms), (norms.GroupNorm(4), group)],
)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_matches_the_definition(module, reference, offset):
  x = (X + offset).astype(np.float32)
  params = sharding.unbox(module.init(jax.random.key(0), x))["params"]
  params = {k: {"scale": SCALE, "bias": BIAS}[k].astype(np.float32) for k in params}
  got = module.apply({"params": params}, x)
  np.testing.assert_allclose(got, reference(x), atol=1e-5 if offset == 0 else 2e-3)
