"""What a workdir keeps of its data: the tokenizer, and the names of the classes."""

import itertools
import pathlib
from collections.abc import Sequence

from gen_jax import ranges
from gen_jax.data import datasets, tokenizers
from gen_jax.errors import InputError
from gen_jax.system import copies, files

CLASS_NAMES = "classes.json"


def class_names_for(data: datasets.Data, workdir: pathlib.Path) -> tuple[str, ...]:
  """Names of the classes of a workdir, noted there when it is first opened."""
  path = workdir / CLASS_NAMES
  if not path.exists():
    write_class_names(workdir, data.source.class_names())
  return ranges.typed(files.read_sealed(path).get("names"), tuple[str, ...], str(path))


def write_class_names(workdir: pathlib.Path, names: Sequence[str]) -> None:
  """Notes the classes of a workdir."""
  files.write_json(workdir / CLASS_NAMES, files.sealed({"names": list(names)}))


def check_class_names(data: datasets.Data, names: tuple[str, ...]) -> None:
  """Raises InputError unless the data has these classes, in this order."""
  found = data.source.class_names()
  if found != names:
    one, other = next(
      pair for pair in itertools.zip_longest(names, found) if pair[0] != pair[1]
    )
    raise InputError(
      f"the classes of the data have changed: {other!r} is where {one!r} was when the"
      " run began; put them back, or take another --workdir"
    )


def tokenizer_for(
  data: datasets.Data, workdir: pathlib.Path, source: pathlib.Path | None = None
) -> tokenizers.Tokenizer | None:
  """The workdir's tokenizer: read from its folder, or made and written there.

  Args:
    source: a workdir whose tokenizer is taken over: weights mean nothing under another.

  Returns:
    None where the data has no text.
  """
  folder = tokenizer_folder(data, workdir, source)
  return folder and tokenizers.load(folder)


def tokenizer_folder(
  data: datasets.Data, workdir: pathlib.Path, source: pathlib.Path | None = None
) -> pathlib.Path | None:
  """Where `tokenizer_for` reads; made as it says."""
  if data.tokenizer is None:
    return None
  folder, partial = workdir / "tokenizer", workdir / "tokenizer.partial"
  if not copies.is_whole(folder):
    if source and (source / "tokenizer").is_dir():
      files.check_hashes(source / "tokenizer")
      copies.copy(source / "tokenizer", partial)
    else:
      data.tokenizer(data.texts()).save(partial)
    if data.template is not None:
      files.write(partial / "chat_template.jinja", data.template)
    files.write_hashes(partial)
    copies.rename(partial, folder)
  return folder
