"""cuDNN's attention in bfloat16 against float32's, on a GPU: value and gradients.

python experiments/benchmarks/attention.py

Errors are norms of differences over norms; `xla` in bfloat16 says what rounding alone
makes of them.
"""

import jax
import jax.numpy as jnp

from gen_jax import sharding
from gen_jax.nn import attention, kernels

BATCH, LENGTH, HEADS, DIM = 2, 256, 4, 64
DOCUMENTS = jnp.repeat(jnp.arange(4), LENGTH // 4)[None].repeat(BATCH, 0)
PRESENT = jnp.arange(LENGTH) < jnp.array([200, LENGTH])[:, None]
CASES = {  # keys' heads, what may be seen
  "everything": (HEADS, attention.EVERYTHING),
  "causal": (HEADS, attention.Mask(is_causal=True)),
  "grouped": (HEADS // 2, attention.Mask(is_causal=True)),
  "window": (HEADS, attention.Mask(is_causal=True, window=48)),
  "segments": (HEADS, attention.Mask(segments=DOCUMENTS, is_causal=True)),
  "padding": (HEADS, attention.Mask(PRESENT[:, None, None, :])),
}


def run(attend, dtype, arrays, weights, mask):
  """The value of attention, and the gradients of its weighted sum by q, k and v."""

  def total(query, key, value):
    keyvalue = attention.KV(key.astype(dtype), value.astype(dtype))
    out = attend(query.astype(dtype), keyvalue, mask)
    return jnp.sum(out.astype(jnp.float32) * weights), out

  with sharding.use(sharding.make_layout(1, 1, 1, devices=jax.devices()[:1])):
    fn = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))
    (_, out), gradients = fn(*arrays)
  return [x.astype(jnp.float32) for x in (out, *gradients)]


def main() -> None:
  """Prints a line for each case."""
  for name, (num_kv_heads, mask) in CASES.items():
    rows, slots = (BATCH, LENGTH, HEADS, DIM), (BATCH, num_kv_heads, LENGTH, DIM)
    *arrays, weights = (
      jax.random.normal(jax.random.key(i), shape)
      for i, shape in enumerate((rows, slots, slots, rows))
    )
    with jax.default_matmul_precision("highest"):
      want = run(attention.attend, jnp.float32, arrays, weights, mask)
    line = f"{name:10}"
    for label, attend in (("cudnn", kernels.cudnn), ("xla", attention.attend)):
      got = run(attend, jnp.bfloat16, arrays, weights, mask)
      pairs = zip(got, want, strict=True)
      errors = [jnp.linalg.norm(g - w) / jnp.linalg.norm(w) for g, w in pairs]
      line += f"  {label} " + " ".join(f"{error:.1e}" for error in errors)
    print(line, flush=True)


if __name__ == "__main__":
  main()
