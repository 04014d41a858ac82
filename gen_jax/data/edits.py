"""Images before and after an edit, with its instruction.

An edit source gives `edits(split)`, a random-access sequence of {'before', 'image':
uint8 [H, W, C] each, the latter after the edit, 'caption': the instruction} and more;
and `edit_scorer(pairs)`, which scores images drawn for such pairs.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from gen_jax import ranges
from gen_jax.data import image_files, sources
from gen_jax.errors import InputError
from gen_jax.system import copies, files

Scorer = Callable[[np.ndarray], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class EditFolder:
  """A folder of images and a JSONL table with one edit a line.

  Attributes:
    directory: folder of the table; file names are relative to it.
    table: {"before": file, "instruction": text, "after": file} on each line.
    before, instruction, after: names of these fields.
  """

  directory: str
  table: str = "metadata.jsonl"
  before: str = "before"
  instruction: str = "instruction"
  after: str = "after"
  validation_fraction: ranges.ProperFraction = 0.1

  def __post_init__(self) -> None:
    ranges.check(self)

  def _rows(self) -> tuple[pathlib.Path, list[list[str]]]:
    """The folder, and (before, instruction, after) of each edit."""
    root = copies.here(self.directory, "data.source.directory")
    fields = (self.before, self.instruction, self.after)
    rows = list(files.text_fields(root / self.table, *fields))
    names = [name for before, _, after in rows for name in (before, after)]
    missing = [name for name in names if not (root / name).is_file()]
    if missing or not rows:
      what = f"names {missing[0]}, which does not exist" if missing else "has no edits"
      raise InputError(f"{root / self.table} {what}; complete it")
    return root, rows

  def paths(self, split: str) -> list[pathlib.Path]:
    """The image files of a split, before their edits."""
    root, rows = self._rows()
    chosen = sources.held_out(len(rows), split, self.validation_fraction)
    return [root / rows[i][0] for i in chosen]

  def edits(self, split: str) -> Sequence[sources.Example]:
    root, rows = self._rows()

    def fn(row):
      before, instruction, after = row
      pair = {
        "before": image_files.open_image(root / before),
        "image": image_files.open_image(root / after),
        "caption": instruction,
      }
      if pair["before"].shape != pair["image"].shape:
        raise InputError(f"{root}: {before} and {after} must be of one size")
      return pair

    chosen = sources.held_out(len(rows), split, self.validation_fraction)
    return sources.Mapped(rows, fn, chosen)

  def edit_scorer(self, pairs: Sequence[sources.Example]) -> Scorer:
    del pairs
    return lambda images: {}
