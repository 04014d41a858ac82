"""`gen-jax tokenize`: a corpus of any size as a token store to train from."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable

from gen_jax import ranges
from gen_jax.cli import flags
from gen_jax.data import tokenizers
from gen_jax.data.tokens import documents, duplicates, making, tokenising
from gen_jax.errors import InputError
from gen_jax.system import files

_ON = "local, or ray: tasks on machines that see these files at the same paths"
_OPTION = "of Ray's tasks, as num_cpus=2; may be repeated"


def add_arguments(parser) -> None:
  """See `gen-jax tokenize --help`."""
  add = parser.add_argument
  add(
    "--source",
    action="append",
    required=True,
    help="file, glob in quotes or folder (.jsonl, .txt, each also .gz or .zst;"
    " .parquet, .tar), hf:NAME or tfds:NAME; may be repeated",
  )
  add(
    "--tokenizer",
    required=True,
    help="folder or file of a tokenizer (WORKDIR/tokenizer is one), or bytes",
  )
  add("--field", default="text", help="in JSON, Parquet and data sets (default text)")
  add(
    "--held_out",
    type=float,
    default=0.005,
    help="share of documents for validation, by their hash (default 0.005)",
  )
  add(
    "--drop",
    choices=duplicates.KEYS,
    help="drop copies: exact (up to case and spaces), or also near ones (MinHash)",
  )
  add_store(parser, "text")
  parser.epilog = (
    "If killed at any moment, the same command continues and gives the same bytes.\n"
    "To train on it: --config.data.source=tokens --config.data.source.path=DIR\n"
    "--config.data.tokenizer=file --config.data.tokenizer.path=DIR/tokenizer"
  )


def add_store(parser, what: str) -> None:
  """Flags of every command that makes a store."""
  add, where = parser.add_argument, "folder of the store, or an address in a bucket"
  add("--to", action=flags.Path, required=True, metavar="DIR", help=where)
  add("--split", default="train", help="of hf: and tfds: data sets (default train)")
  add("--subset", help="configuration of hf: and tfds: data sets")
  add("--workers", type=int, help="processes (default: one per core); changes no byte")
  flags.add(
    parser,
    {
      "on": {"choices": ("local", "ray"), "default": "local", "help": _ON},
      "address": {"metavar": "HOST:PORT", "help": "ray: its head node"},
      "option": {"action": "append", "metavar": "KEY=VALUE", "help": _OPTION},
    },
  )
  add("--shard_mib", type=int, default=64, help=f"MiB of {what} per shard (default 64)")


def work(args) -> tuple[Callable[..., dict], int]:
  """What makes a job's store, as `making.make`, and bytes in a shard."""
  size = ranges.typed(args.shard_mib, ranges.Size, "--shard_mib") * 2**20
  flags.check_engine(args, {"address": ("ray",), "option": ("ray",)})
  workers, start = args.workers, None
  if args.on == "ray":
    from gen_jax.sweeps import remote  # here: it imports much

    place = remote.Ray(args.address, remote.options(args.option or ()))
    workers = place.room() if workers is None else workers
    ranges.typed(workers, ranges.Size, "--workers")
    start = functools.partial(place.start, None)
  else:
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    flags.check_processes(workers, "--workers")
  return functools.partial(making.make, num_workers=workers, start=start), size


def paths(args, listed: Callable[..., Iterable[str]]) -> tuple[str, ...]:
  """All that the sources hold, each once; `listed` says it of one source.

  A file that is reached by two paths is one; what lies in --to is no source.
  """
  to, found = args.to.resolve(), {}
  for source in args.source:
    for path in listed(source, args.subset, args.split):
      if to not in ((real := documents.real(path)), *getattr(real, "parents", ())):
        found.setdefault(real, path)
  if not found:
    raise InputError(f"--to {args.to} holds all of --source; take another folder")
  return tuple(found.values())


def result(args, made, *names: str) -> dict:
  """The command's result: where the store is, and these values of its manifest."""
  return {"to": str(args.to), **{name: made[name] for name in names}}


def run(args) -> dict:
  """Makes the store, or goes on with it."""
  held_out = ranges.typed(args.held_out, ranges.ProperFraction, "--held_out")
  make, shard_bytes = work(args)
  found = paths(args, documents.listed)
  if args.tokenizer == "bytes":
    tokenizer = tokenizers.plain_bytes()
  else:
    tokenizer = tokenizers.load(files.path(args.tokenizer, "--tokenizer"))
  job = tokenising.Job(found, tokenizer, args.field, held_out, args.drop, shard_bytes)
  made = make(args.to, job)
  for split in made["splits"]:
    tokens, texts = made["num_tokens"][split], made["num_documents"][split]
    print(f"{args.to}, {split}: {tokens:,} tokens of {texts:,} documents")
  return result(args, made, "num_tokens", "num_documents", "source_sha256")
