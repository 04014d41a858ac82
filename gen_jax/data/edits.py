"""Pictures before and after an edit, with the instruction that leads from one to other.

An edit source gives `edits(split)`, a random-access sequence of {'before', 'image':
uint8 [H, W, C] each, the latter after the edit, 'caption': the instruction} and more;
and `edit_judge(pairs)`, what it can tell of pictures drawn for such pairs.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from gen_jax import files
from gen_jax.data import sources
from gen_jax.types import InputError

Judge = Callable[[np.ndarray], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class EditFolder:
  """A folder of pictures and a JSONL table with one edit a line.

  Attributes:
    directory: where the table is, and where the names in it begin.
    table: {"before": file, "instruction": text, "after": file} on each line.
    before, instruction, after: names of the fields, where they are called otherwise.
  """

  directory: str
  table: str = "metadata.jsonl"
  before: str = "before"
  instruction: str = "instruction"
  after: str = "after"
  validation_fraction: float = 0.1

  def edits(self, split: str) -> Sequence[sources.Example]:
    root = pathlib.Path(os.path.expanduser(self.directory))
    fields = (self.before, self.instruction, self.after)
    rows = list(files.text_fields(root / self.table, *fields))
    names = [name for before, _, after in rows for name in (before, after)]
    missing = [name for name in names if not (root / name).is_file()]
    if missing or not rows:
      what = f"names {missing[0]}, which is not there" if missing else "holds no edits"
      raise InputError(f"{root / self.table} {what}; complete it")

    def fn(row):
      before, instruction, after = row
      pair = {
        "before": sources.open_image(root / before),
        "image": sources.open_image(root / after),
        "caption": instruction,
      }
      if pair["before"].shape != pair["image"].shape:
        raise InputError(f"{root}: {before} and {after} must be of one size")
      return pair

    chosen = sources.held_out(len(rows), split, self.validation_fraction)
    return sources.Mapped(rows, fn, chosen)

  def edit_judge(self, pairs: Sequence[sources.Example]) -> Judge:
    del pairs
    return lambda pictures: {}
