"""How speed is measured: both sides in turns, medians, beside the machine's peak."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from gen_jax import sharding
from gen_jax.cost import flops
from gen_jax.train import optim
from gen_jax.train import state as states
from gen_jax.train import step as steps

# What jax chose, for both sides.
DEVICE = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")


def secs(fn) -> float:
  """Wall time of one call, all that it has started on a GPU included."""
  began = time.perf_counter()
  fn()
  if DEVICE.type == "cuda":
    torch.cuda.synchronize()
  return time.perf_counter() - began


def in_turns(ours, peer, rounds: int) -> tuple[list[float], list[float]]:
  """Times of both, called alternately, after one warm-up each."""
  secs(ours), secs(peer)
  pairs = [(secs(ours), secs(peer)) for _ in range(rounds)]
  return [a for a, _ in pairs], [b for _, b in pairs]


def gemm_peak(dtype: str, rounds: int = 8) -> dict[str, float]:
  """FLOP/s of a product of square matrices, best of `rounds`."""
  size = 2048 if DEVICE.type == "cpu" else 8192
  x = np.random.default_rng(0).standard_normal((size, size), np.float32)
  a = jnp.asarray(x, dtype)
  b = torch.from_numpy(x).to(DEVICE, getattr(torch, dtype))
  product = jax.jit(jnp.matmul)
  ours, peer = in_turns(
    lambda: product(a, a).block_until_ready(), lambda: torch.mm(b, b), rounds
  )
  work = 2.0 * size**3
  return {"ours": work / min(ours), "peer": work / min(peer)}


def trainer(task, batch, batch_size: int):
  """() -> loss of one step of ours: forward, backward, clipping, AdamW; its FLOPs."""
  layout = sharding.make_layout(1, 1, 1, devices=jax.devices()[:1])
  optimizer = optim.adamw(optim.constant(1e-4, 1000))
  state = states.create(task, optimizer, batch, layout, 0, with_ema=False)
  step = steps.make_step(task, optimizer, layout=layout)
  work = flops.count(step, state, {}, batch, {})
  step = steps.compile_step(step, state, layout)
  batch = layout.put(batch, batch_size)

  def train() -> float:
    nonlocal state
    state, metrics = step(state, {}, batch, {})
    return float(metrics["loss"].value)

  return train, work


def peer_trainer(model: torch.nn.Module, loss, dtype: str):
  """The same of a torch module, for a function () -> its loss."""
  optimizer = torch.optim.AdamW(
    model.parameters(), 1e-4, (0.9, 0.95), 1e-8, 0.1, fused=True
  )

  def train() -> None:
    with autocast(dtype):
      value = loss()
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return train


def autocast(dtype: str):
  """Products of the peer in that dtype, over weights of float32."""
  is_narrow = dtype != "float32"
  return torch.autocast(DEVICE.type, getattr(torch, dtype), enabled=is_narrow)
