"""`gen-jax tokenize`: a corpus of any size as a token store to train from."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable

from gen_jax import ranges
from gen_jax.cli import flags
from gen_jax.data import tokenizers
from gen_jax.data.tokens import documents, duplicates, making, tokenising
from gen_jax.system import files


def add_arguments(parser) -> None:
  """See `gen-jax tokenize --help`."""
  parser.add_argument(
    "--source",
    action="append",
    required=True,
    help="file, glob in quotes or folder (.jsonl, .txt, each also .gz or .zst;"
    " .parquet, .tar), hf:NAME or tfds:NAME; may be repeated",
  )
  parser.add_argument(
    "--tokenizer",
    required=True,
    help="folder or file of a tokenizer (WORKDIR/tokenizer is one), or bytes",
  )
  parser.add_argument(
    "--field", default="text", help="of JSON, Parquet and data sets (default text)"
  )
  parser.add_argument(
    "--held_out",
    type=float,
    default=0.005,
    help="share of documents for validation, by their hash (default 0.005)",
  )
  parser.add_argument(
    "--drop",
    choices=duplicates.KEYS,
    help="drop copies: exact (but for case and spaces), or near as well (MinHash)",
  )
  add_store(parser, "text")
  parser.epilog = (
    "Killed at any moment, the same command goes on and gives the same bytes.\n"
    "To train on it: --config.data.source=tokens --config.data.source.path=DIR\n"
    "--config.data.tokenizer=file --config.data.tokenizer.path=DIR/tokenizer"
  )


def add_store(parser, what: str) -> None:
  """Flags of every command that makes a store."""
  parser.add_argument(
    "--to",
    action=flags.Path,
    required=True,
    metavar="DIR",
    help="folder of the store, or an address in a bucket",
  )
  parser.add_argument(
    "--split", default="train", help="of hf: and tfds: data sets (default train)"
  )
  parser.add_argument("--subset", help="configuration of hf: and tfds: data sets")
  parser.add_argument(
    "--workers", type=int, help="processes (default: one a core); changes no byte"
  )
  parser.add_argument(
    "--shard_mib", type=int, default=64, help=f"MiB of {what} in a shard (default 64)"
  )


def work(args) -> tuple[int, int]:
  """The number of workers, and bytes in a shard."""
  size = ranges.typed(args.shard_mib, ranges.Size, "--shard_mib") * 2**20
  workers = len(os.sched_getaffinity(0)) if args.workers is None else args.workers
  flags.check_processes(workers, "--workers")
  return workers, size


def paths(args, listed: Callable[..., Iterable[str]]) -> tuple[str, ...]:
  """All that the sources hold, each once; `listed` says it of one source."""
  found = (listed(source, args.subset, args.split) for source in args.source)
  return tuple(dict.fromkeys(itertools.chain.from_iterable(found)))


def result(args, made, *names: str) -> dict:
  """The command's result: where the store is, and these values of its manifest."""
  return {"to": str(args.to), **{name: made[name] for name in names}}


def run(args) -> dict:
  """Makes the store, or goes on with it."""
  held_out = ranges.typed(args.held_out, ranges.ProperFraction, "--held_out")
  workers, shard_bytes = work(args)
  found = paths(args, documents.listed)
  if args.tokenizer == "bytes":
    tokenizer = tokenizers.plain_bytes()
  else:
    tokenizer = tokenizers.load(files.path(args.tokenizer, "--tokenizer"))
  job = tokenising.Job(found, tokenizer, args.field, held_out, args.drop, shard_bytes)
  made = making.make(args.to, job, workers)
  for split in made["splits"]:
    tokens, texts = made["num_tokens"][split], made["num_documents"][split]
    print(f"{args.to}, {split}: {tokens:,} tokens of {texts:,} documents")
  return result(args, made, "num_tokens", "num_documents", "source_sha256")
