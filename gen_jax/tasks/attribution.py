"""Cross-attention maps of a UNet: how much each pixel attends to each word."""

import jax
import jax.numpy as jnp

from gen_jax.diffusion import corrupt, schedule
from gen_jax.tasks import conditioning, diffusion
from gen_jax.types import Array, InputError, Params


def attention_maps(
  task: diffusion.Diffusion,
  params: Params,
  caption: conditioning.Caption,
  z: Array,
  eps: Array,
  t: Array,
) -> Array:
  """How much each pixel of z attends to each token while noisy z is denoised.

  The mean over all heads and all cross-attentions, at every resolution, at time t. It
  is computed from the queries and keys that the modules record; the network is
  unchanged.

  Args:
    caption: tokens and mask [B, S].
    z, eps: float32 [B, H, W, C], clean latents (or pixels) and the noise added.
    t: float32 [B].

  Returns:
    float32 [B, H, W, S], sums to 1 over the tokens; 0 at padding that is masked.

  Raises:
    LookupError: the network has no cross-attention to a text.
    InputError: its attention is not softmax(q k^T) of queries and keys.

  Source: Tang et al. 2022 (arXiv:2210.04885) section 2.2. They sum; we average.
  """
  config = task.network.config
  if "caption" not in task.reads:
    raise LookupError("the model reads no text")
  if not config.has_exact_attention:
    raise InputError("maps of attention are of softmax's: this network has another one")
  states = task.conditioning.encode(params, caption, train=False, key=None)
  scale = schedule.expand(task.target.input_scale(task.schedule, t), z)
  x = scale * corrupt.corrupt(task.schedule, t, z, eps)

  def is_wanted(module, method):
    del method
    return module.name in ("query", "key") and "cross_attention" in module.path

  _, found = task.network.apply(
    {"params": params[config.params_name]},
    x,
    t,
    states,
    capture_intermediates=is_wanted,
    mutable=["intermediates"],
  )
  maps = [
    _probabilities(layer, states.mask, z.shape)
    for layer in _cross_attentions(found.get("intermediates", {}))
  ]
  if not maps:
    raise LookupError("the network has no cross-attention to a text")
  return sum(maps[1:], start=maps[0]) / len(maps)


def _cross_attentions(tree):
  """(query [B, T, N, Dh], key [B, S, N, Dh]) of each cross-attention."""
  for name, child in tree.items():
    if name == "cross_attention":
      yield tuple(child[k]["__call__"][0] for k in ("query", "key"))
    elif isinstance(child, dict):
      yield from _cross_attentions(child)


def _probabilities(layer, mask: Array | None, shape: tuple[int, ...]) -> Array:
  """Mean over heads of softmax(q k^T / sqrt(Dh)), spread to [B, H, W, S]."""
  query, key = (x.astype(jnp.float32) for x in layer)
  scores = jnp.einsum("btnd,bsnd->bnts", query, key) * query.shape[-1] ** -0.5
  if mask is not None:  # Stable Diffusion's UNet attends to padding too
    scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
  probs = jax.nn.softmax(scores, -1).mean(1)  # [B, T, S]
  batch, height, width, _ = shape
  factor = round((height * width / probs.shape[1]) ** 0.5)
  probs = probs.reshape(batch, height // factor, width // factor, -1)
  return jax.image.resize(probs, (batch, height, width, probs.shape[-1]), "linear")
