"""A closed-form scorer of scenes: colours by least squares, shapes by overlap."""

from collections.abc import Mapping, Sequence

import numpy as np

from gen_jax.data.shapes import scenes

FAINT = 0.15  # lower coverage counts as none
MIN_OVERLAP = 0.6  # intersection over union of a blot with the thing it is read as
# Each shape's centre of mass below the centre of its box, in half sides.
DROP = {"circle": 0.0, "square": 0.0, "triangle": 1.0 / 3.0}

Reading = Mapping[str, tuple[str, str, str]]  # place: size, colour, shape


def read(image: np.ndarray) -> Reading:
  """{place: (size, colour, shape)} of the things in an image uint8 [side, side, 3].

  Pixels belong to the nearest place. A place's colour is the one whose blends with the
  background fit its pixels best; size and shape maximise the overlap with the covered
  pixels at the same centre of mass. A blot like no shape is ('', colour, '').
  """
  side = image.shape[0]
  middles = (np.arange(side) + 0.5) / side
  at = np.stack(np.meshgrid(middles, middles), -1)  # [side, side, 2]
  away = at[:, :, None] - np.array(list(scenes.PLACES.values()))
  nearest = np.square(away).sum(-1).argmin(-1)
  ink = scenes.PAPER - image.astype(np.float64)
  found = {}
  for number, place in enumerate(scenes.PLACES):
    colour, covered = _colour(np.where((nearest == number)[..., None], ink, 0.0))
    # Half the pixels of the smallest thing, a small triangle.
    if (covered > 0.5).sum() >= (scenes.SIZES["small"] * side) ** 2:
      size, shape = _outline(covered, at)
      found[place] = (size, colour, shape)
  return found


def _colour(ink: np.ndarray) -> tuple[str, np.ndarray]:
  """The colour of ink [side, side, 3], and its share of each pixel."""
  best = (np.inf,)
  for name, colour in scenes.COLOURS.items():
    full = scenes.PAPER - np.array(colour, np.float64)
    share = np.clip(ink @ full / (full @ full), 0.0, 1.0)
    error = np.square(ink - share[..., None] * full).sum()
    if error < best[0]:
      best = (error, name, np.where(share > FAINT, share, 0.0))
  return best[1:]


def _outline(covered: np.ndarray, at: np.ndarray) -> tuple[str, str]:
  """Size and shape of coverage [side, side], with pixel positions [side, side, 2]."""
  x, y = (covered[..., None] * at).sum((0, 1)) / covered.sum()
  best = (MIN_OVERLAP, "", "")
  for size, half in scenes.SIZES.items():
    for shape, drop in DROP.items():
      pattern = scenes.coverage(shape, size, (x, y - drop * half), len(covered))
      overlap = np.minimum(pattern, covered).sum() / np.maximum(pattern, covered).sum()
      best = max(best, (overlap, size, shape))
  return best[1:]


def accuracy(images: np.ndarray, wanted: Sequence[scenes.Scene]) -> dict[str, float]:
  """How well images uint8 [N, side, side, 3] show the wanted scenes.

  Returns:
    prompt_accuracy: share of images that show exactly the wanted scene;
    prompt/place: share of wanted things with anything in their place;
    prompt/size, prompt/colour, prompt/shape: share of wanted things with that right.
  """
  pairs = [
    (read(image), scenes.words(scene))
    for image, scene in zip(images, wanted, strict=True)
  ]
  hits = [
    (place in reading, *map(str.__eq__, reading.get(place, ("",) * 3), words))
    for reading, scene in pairs
    for place, words in scene.items()
  ]
  names = ("prompt/place", "prompt/size", "prompt/colour", "prompt/shape")
  shares = dict(zip(names, np.mean(hits, 0).tolist(), strict=True))
  exact = float(np.mean([reading == scene for reading, scene in pairs]))
  return {"prompt_accuracy": exact, **shares}


def edit_accuracy(
  images: np.ndarray, edits: Sequence[tuple[scenes.Scene, scenes.Scene]]
) -> dict[str, float]:
  """How well images uint8 [N, side, side, 3] show edits (scene before, scene after).

  Returns:
    edits/accuracy: share of images that show exactly the scene after;
    edits/changed: share in which all changed places are right;
    edits/kept: share in which all other places are unchanged.
  """
  rows = []
  for image, (before, after) in zip(images, edits, strict=True):
    reading, before, after = read(image), scenes.words(before), scenes.words(after)
    right = {at: reading.get(at) == after.get(at) for at in scenes.PLACES}
    new = {at for at in scenes.PLACES if before.get(at) != after.get(at)}
    changed, kept = (
      all(right[at] for at in new),
      all(right[at] for at in right.keys() - new),
    )
    rows.append((changed and kept, changed, kept))
  names = ("edits/accuracy", "edits/changed", "edits/kept")
  return dict(zip(names, np.mean(rows, 0).tolist(), strict=True))
