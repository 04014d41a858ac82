"""Speed beside PyTorch: the same model, batch, length, dtype and threads, in turns.

    make bench                      # everything, about 10 minutes on two cores
    python run.py --only train_small generate_1 --json

Ours and the peer (`transformers` on torch) run one after the other, round after round,
in one process; what is compared are medians, as a ratio. The share of the machine's own
matrix-multiplication peak, measured in the same process, says what is left.
"""

import argparse
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from gen_jax import flops, optim, prompting, sharding, tree
from gen_jax.decoding import generate
from gen_jax.models import transformer
from gen_jax.tasks import lm
from gen_jax.train import state as states
from gen_jax.train import step as steps

SMALL = dict(vocab_size=65, max_length=256, num_layers=6, width=384, num_heads=6)
GPT2 = dict(vocab_size=50257, max_length=1024, num_layers=12, width=768, num_heads=12)
THREADS = len(os.sched_getaffinity(0))


def secs(fn) -> float:
  """Wall time of one call."""
  began = time.perf_counter()
  fn()
  return time.perf_counter() - began


def in_turns(ours, peer, rounds: int) -> tuple[list[float], list[float]]:
  """Times of both, called alternately, after one warm-up each."""
  ours(), peer()
  pairs = [(secs(ours), secs(peer)) for _ in range(rounds)]
  return [a for a, _ in pairs], [b for _, b in pairs]


def gemm_peak(size: int = 2048, rounds: int = 8) -> dict[str, float]:
  """FLOP/s of a float32 matrix product [size, size], best of `rounds`."""
  x = np.ones((size, size), np.float32)
  a, b = jnp.asarray(x), torch.from_numpy(x)
  product = jax.jit(jnp.matmul)
  ours, peer = in_turns(
    lambda: product(a, a).block_until_ready(), lambda: torch.mm(b, b), rounds
  )
  work = 2.0 * size**3
  return {"ours": work / min(ours), "peer": work / min(peer)}


def torch_model(config: dict):
  """The peer's GPT-2 of the same size, without dropout."""
  return transformers.GPT2LMHeadModel(
    transformers.GPT2Config(
      vocab_size=config["vocab_size"],
      n_positions=config["max_length"],
      n_embd=config["width"],
      n_layer=config["num_layers"],
      n_head=config["num_heads"],
      resid_pdrop=0.0,
      embd_pdrop=0.0,
      attn_pdrop=0.0,
      bos_token_id=None,
      eos_token_id=None,
      pad_token_id=0,
    )
  )


def train(config: dict, batch_size: int, length: int, rounds: int) -> dict:
  """One step: forward, backward, clipping, AdamW."""
  tokens = np.random.default_rng(0).integers(
    0, config["vocab_size"], (batch_size, length + 1)
  )
  batch = {
    "inputs": tokens[:, :-1].astype(np.int32),
    "targets": tokens[:, 1:].astype(np.int32),
    "weights": np.ones((batch_size, length), np.float32),
  }
  model = transformer.Transformer(transformer.Config(**config))
  task = lm.LanguageModel(model, np.ones(config["vocab_size"], np.int32))
  layout = sharding.make_layout(1, 1, 1, devices=jax.devices()[:1])
  optimizer = optim.adamw(optim.constant(1e-4, 1000))
  state = states.create(task, optimizer, batch, layout, 0, with_ema=False)
  step = steps.make_step(task, optimizer, layout=layout)
  work = flops.count(step, state, {}, batch)
  step = steps.compile_step(step, state, layout)
  batch = layout.put(batch, batch_size)
  losses = []

  def ours():
    nonlocal state
    state, metrics = step(state, {}, batch)
    losses.append(float(metrics["loss"].value))

  peer_model = torch_model(config)
  peer_optimizer = torch.optim.AdamW(
    peer_model.parameters(), 1e-4, (0.9, 0.95), 1e-8, 0.1, fused=True
  )
  inputs = torch.from_numpy(tokens[:, :-1])
  targets = torch.from_numpy(tokens[:, 1:]).reshape(-1)

  def peer():
    logits = peer_model(inputs, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(peer_model.parameters(), 1.0)
    peer_optimizer.step()
    peer_optimizer.zero_grad(set_to_none=True)

  times = in_turns(ours, peer, rounds)
  assert losses[-1] < losses[0]  # it trains
  return {"times": times, "flops": work, "unit": "s a step"}


def generation(batch_size: int, rounds: int) -> dict:
  """Greedy continuation of 64 tokens by 128, float32, every row to the end."""
  prompt_length, num_tokens = 64, 128
  config = transformer.Config(**GPT2)
  model = transformer.Transformer(config)
  tokens = np.random.default_rng(0).integers(0, 50257, (batch_size, prompt_length))
  init = jax.jit(lambda key: sharding.unbox(model.init(key, tokens))["params"])
  params = init(jax.random.key(0))
  sampling = generate.Sampling(max_tokens=num_tokens, temperature=0.0)
  writer = prompting.Writer(model, _Numbers(), sampling, piece=16)
  prompts = tokens.tolist()
  keys = prompting.keys(0, batch_size)

  def ours():
    drawn = writer.samples(params, prompts, keys)
    assert all(len(sample.tokens) == num_tokens for sample in drawn)

  peer_model = torch_model(GPT2).eval()
  inputs = torch.from_numpy(tokens)

  def peer():
    with torch.inference_mode():
      out = peer_model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        do_sample=False,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
      )
    assert out.shape[1] == prompt_length + num_tokens

  times = in_turns(ours, peer, rounds)
  bytes_read = tree.num_bytes(params) * num_tokens
  return {"times": times, "bytes": bytes_read, "tokens": batch_size * num_tokens}


class _Numbers:
  """A tokenizer of numbers: what is compared is the model, not the text."""

  stops = ()

  def stream(self, ids: list[int]) -> list[str]:
    return [f"{i} " for i in ids]


BENCHMARKS = {
  "train_small": lambda rounds: train(SMALL, 8, 256, rounds),
  "train_gpt2": lambda rounds: train(GPT2, 4, 256, max(rounds // 2, 3)),
  "generate_1": lambda rounds: generation(1, max(rounds // 2, 3)),
  "generate_8": lambda rounds: generation(8, max(rounds // 2, 3)),
}


def main() -> None:
  """Prints a table, or with --json one object."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  torch.set_num_threads(THREADS)
  peaks = gemm_peak()
  result = {
    "versions": {m.__name__: m.__version__ for m in (jax, torch, transformers)},
    "threads": THREADS,
    "gemm_peak": peaks,
  }
  for name in args.only:
    row = BENCHMARKS[name](args.rounds)
    ours, peer = row.pop("times")
    row |= {
      "ours_secs": statistics.median(ours),
      "ours_range": [min(ours), max(ours)],
      "peer_secs": statistics.median(peer),
      "peer_range": [min(peer), max(peer)],
      "speedup": statistics.median(peer) / statistics.median(ours),
      "rounds": len(ours),
    }
    if "flops" in row:
      row["share_of_gemm_peak"] = row["flops"] / row["ours_secs"] / peaks["ours"]
    result[name] = row
    if not args.json:
      print(_line(name, row), flush=True)
  if args.json:
    print(json.dumps(result))


def _line(name: str, row: dict) -> str:
  if "flops" in row:
    limit = f"{row['share_of_gemm_peak']:.0%} of the GEMM peak"
  else:
    read = row["bytes"] / row["ours_secs"]
    speed = row["tokens"] / row["ours_secs"]
    limit = f"{speed:.0f} tokens/s, weights read at {read / 1e9:.0f} GB/s"
  return (
    f"{name:12} ours {row['ours_secs']:.3f} s, peer {row['peer_secs']:.3f} s:"
    f" {row['speedup']:.2f}x  ({limit})"
  )


if __name__ == "__main__":
  main()
