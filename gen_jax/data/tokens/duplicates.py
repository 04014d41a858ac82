"""Which documents are copies: keys of a document, and who had a key first.

A document is a copy if it shares a key with an earlier one, kept or not. Exact copies
have one key, the hash of the normalised text. Near copies have one for each band of a
MinHash signature: at a Jaccard similarity s of their sets of five words, documents
share one of BANDS bands of ROWS minima with probability

    1 - (1 - s ** ROWS) ** BANDS        0.36 at s = 0.6, 0.89 at 0.75, 0.999 at 0.9

Keys lie on disk and are compared a part at a time, so memory is bounded. A key has 64
bits: of 10^9 different documents two are taken for copies with probability 0.03.

Source: Broder 1997; FineWeb (arXiv:2406.17557) for 5-grams in 14 bands of 8.
"""

import hashlib
import pathlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from gen_jax import errors

BANDS, ROWS, _WORDS = 14, 8, 5
_AT_ONCE = 2**24  # keys compared in memory
KEYS = ("exact", "near")


def normalised(text: str) -> str:
  """The text in NFC and lower case, with single spaces.

  >>> normalised(" A\\n  b ")
  'a b'
  """
  text = text if text.isascii() else unicodedata.normalize("NFC", text)
  return " ".join(text.casefold().split())


def exact(text: str) -> np.ndarray:
  """uint64 [1], the hash of the normalised text."""
  digest = hashlib.blake2b(normalised(text).encode(), digest_size=8).digest()
  return np.frombuffer(digest, "<u8")


def near(text: str) -> np.ndarray:
  """uint64 [BANDS], hashes of the bands of a MinHash signature.

  Raises:
    InputError: datasketch is not installed.
  """
  with errors.extra("corpora"):
    import datasketch
  words = re.findall(r"\w+", normalised(text))
  runs = range(max(len(words) - _WORDS + 1, 1))
  grams = {" ".join(words[i : i + _WORDS]).encode() for i in runs}
  minima = datasketch.MinHash(BANDS * ROWS, seed=1)
  minima.update_batch(sorted(grams))
  bands = minima.hashvalues.astype("<u8").reshape(BANDS, ROWS)
  digests = (
    hashlib.blake2b(bytes([i]) + band.tobytes(), digest_size=8).digest()
    for i, band in enumerate(bands)
  )
  return np.frombuffer(b"".join(digests), "<u8")


def mark(paths: Sequence[pathlib.Path], target: pathlib.Path) -> list[int]:
  """Writes a .npy of bool for all documents in order: whether it is a copy.

  Args:
    paths: .npy files of keys, uint64 [documents, keys], in order.

  Returns:
    The number of documents in each file.
  """
  found = [np.load(path, mmap_mode="r") for path in paths]
  sizes = [len(keys) for keys in found]
  total = sum(sizes)
  flags = np.lib.format.open_memmap(target, "w+", bool, (max(total, 1),))
  num_keys = sum(keys.size for keys in found)
  parts = -(-num_keys // _AT_ONCE) if num_keys else 0
  for part in range(parts):
    keys, owners, first = [], [], 0
    for array in found:
      rows, columns = np.nonzero(array % np.uint64(parts) == part)
      keys.append(array[rows, columns])
      owners.append(rows + first)
      first += len(array)
    keys, owners = np.concatenate(keys), np.concatenate(owners)
    _, at, group = np.unique(keys, return_index=True, return_inverse=True)
    is_later = owners != owners[at][group]  # a document may have a key twice
    flags[owners[is_later]] = True
  flags.flush()
  return sizes


def fraction(text: str) -> float:
  """In [0, 1), of the normalised text alone: whose is less than a share is held out."""
  salted = b"held out " + normalised(text).encode()
  digest = hashlib.blake2b(salted, digest_size=8).digest()
  return int.from_bytes(digest, "little") / 2**64
