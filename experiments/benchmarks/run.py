"""Speed beside PyTorch: the same model, batch, length, dtype and threads, in turns.

    make bench                      # everything, about 20 minutes on two cores
    python run.py --only train_small generate_1 --json

Ours and the peer (`transformers` and `diffusers` on torch) run one after the other,
round after round, in one process; what is compared are medians, as a ratio. The share
of the machine's own matrix-multiplication peak, measured in the same process, says what
is left.
"""

import argparse
import json
import os
import statistics

import diffusers
import jax
import measure
import pictures
import text
import torch
import transformers

THREADS = len(os.sched_getaffinity(0))


def _less(rounds: int) -> int:
  return max(rounds // 2, 3)


BENCHMARKS = {
  "train_small": lambda rounds: text.train(text.SMALL, 8, 256, rounds),
  "train_gpt2": lambda rounds: text.train(text.GPT2, 4, 256, _less(rounds)),
  "generate_1": lambda rounds: text.generation(1, _less(rounds)),
  "generate_8": lambda rounds: text.generation(8, _less(rounds)),
  "train_ddpm": lambda rounds: pictures.train(pictures.ddpm, 32, _less(rounds)),
  "sample_ddpm": lambda rounds: pictures.sample(pictures.ddpm, 32, None, 3),
  "sample_digits": lambda rounds: pictures.sample(
    pictures.small, 8, pictures.normal(32, 12, 64), rounds
  ),
  "unet_sd1": lambda rounds: pictures.stable_diffusion(_less(rounds)),
  "decode_512": lambda rounds: pictures.decode(_less(rounds)),
}


def main() -> None:
  """Prints a table, or with --json one object."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  torch.set_num_threads(THREADS)
  peaks = measure.gemm_peak()
  packages = (jax, torch, transformers, diffusers)
  result = {
    "versions": {m.__name__: m.__version__ for m in packages},
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
    f"{name:13} ours {row['ours_secs']:.3f} s, peer {row['peer_secs']:.3f} s:"
    f" {row['speedup']:.2f}x  ({limit})"
  )


if __name__ == "__main__":
  main()
