"""Small stores for tests, written by hand."""

import itertools

import numpy as np

from gen_jax.data import cache, tokenizers
from gen_jax.data.tokens import indexed, store
from gen_jax.system import files


def documents(sizes, first=0):
  """Documents of that many tokens, which count up from `first`."""
  bounds = itertools.pairwise(itertools.accumulate(sizes, initial=first))
  return [np.arange(*pair) for pair in bounds]


def chunk(found, dtype=np.uint16):
  """Documents as a chunk."""
  starts = np.cumsum([0, *map(len, found)])[:-1]
  ids = np.concatenate([np.zeros(0, int), *found]).astype(dtype)
  return cache.Tokens(ids, starts.astype(np.int64))


def shard(prefix, found, dtype=np.uint16):
  """Writes documents as a shard; returns its entry of a manifest."""
  written = indexed.write(prefix, [chunk(found, dtype)])
  return {"name": prefix.name, **written._asdict()}


def of_shards(home, shards, tokenizer=None, **changes):
  """A store; shards {split: [documents of each shard]}. Returns its path."""
  home.mkdir(exist_ok=True)
  tokenizer = tokenizer or tokenizers.plain_bytes()
  splits = {
    split: [
      shard(home / f"{split}-{i:05}-00000", found) for i, found in enumerate(parts)
    ]
    for split, parts in shards.items()
  }
  manifest = {
    "format": store.FORMAT,
    "dtype": "uint16",
    "tokenizer": tokenizer.fingerprint,
    "splits": splits,
  }
  tokenizer.save(home / store.TOKENIZER)
  files.write_json(home / store.MANIFEST, files.sealed({**manifest, **changes}))
  return home
