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
import images
import jax
import measure
import text
import torch
import transformers

THREADS = len(os.sched_getaffinity(0))


def _less(rounds: int) -> int:
  return max(rounds // 2, 3)


# (rounds, dtype, wrap: torch.compile or nothing) -> times and the work that was done.
BENCHMARKS = {
  "train_small": lambda rounds, **how: text.train(text.SMALL, 8, 256, rounds, **how),
  "train_gpt2": lambda rounds, **how: text.train(
    text.GPT2, 4, 256, _less(rounds), **how
  ),
  "train_gpt2_long": lambda rounds, **how: text.train(
    text.GPT2, 16, 1024, rounds, **how
  ),
  "generate_1": lambda rounds, dtype, wrap: text.generation(
    1, _less(rounds), dtype=dtype
  ),
  "generate_8": lambda rounds, dtype, wrap: text.generation(
    8, _less(rounds), dtype=dtype
  ),
  "train_ddpm": lambda rounds, **how: images.train(
    images.ddpm, 32, 16, _less(rounds), **how
  ),
  "train_ddpm_128": lambda rounds, **how: images.train(
    images.ddpm, 32, 128, rounds, **how
  ),
  "sample_ddpm": lambda rounds, **how: images.sample(
    images.ddpm, 32, 16, None, 3, **how
  ),
  "sample_digits": lambda rounds, **how: images.sample(
    images.small, 8, 16, images.normal(32, 12, 64), rounds, **how
  ),
  "sample_digits_1": lambda rounds, **how: images.sample(
    images.small, 8, 1, images.normal(2, 12, 64), rounds, **how
  ),
  "unet_sd1": lambda rounds, **how: images.stable_diffusion(_less(rounds), **how),
  "decode_512": lambda rounds, **how: images.decode(_less(rounds), **how),
}
ON_GPUS_ALONE = ("train_gpt2_long", "train_ddpm_128")


def main() -> None:
  """Prints a table, or with --json one object."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  on_cpu = measure.DEVICE.type == "cpu"
  usual = [n for n in BENCHMARKS if not (on_cpu and n in ON_GPUS_ALONE)]
  parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=usual)
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument(
    "--compile",
    action="store_true",
    help="the peer by torch.compile, but not its generate()",
  )
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  torch.set_num_threads(THREADS)
  peaks = measure.gemm_peak(args.dtype)
  wrap = torch.compile if args.compile else lambda module: module
  packages = (jax, torch, transformers, diffusers)
  result = {
    "versions": {m.__name__: m.__version__ for m in packages},
    "device": jax.devices()[0].device_kind,
    "threads": THREADS,
    "dtype": args.dtype,
    "peer_is_compiled": args.compile,
    "gemm_peak": peaks,
  }
  for name in args.only:
    row = BENCHMARKS[name](args.rounds, dtype=args.dtype, wrap=wrap)
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
