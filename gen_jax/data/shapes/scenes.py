"""Scenes of coloured shapes, as captions and as images.

A scene holds at most one thing in each of five places. Lengths are in units of the
image's side, x to the right and y down, so a scene can be drawn at any size. Things do
not overlap: each can be changed without changing another's pixels.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

PAPER = 255
COLOURS = {
  "red": (220, 40, 40),
  "green": (40, 160, 60),
  "blue": (40, 80, 220),
  "yellow": (240, 200, 40),
  "purple": (140, 60, 180),
  "black": (40, 40, 40),
}
SIZES = {"small": 0.09, "large": 0.135}  # half the side of a thing's bounding box
PLACES = {
  "left": (0.16, 0.5),
  "right": (0.84, 0.5),
  "top": (0.5, 0.16),
  "bottom": (0.5, 0.84),
  "centre": (0.5, 0.5),
}
# Signed distance from the outline, in a box from -1 to 1.
SHAPES = {
  "circle": lambda x, y: np.hypot(x, y) - 1.0,
  "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 1.0,
  "triangle": lambda x, y: np.maximum(
    y - 1.0, (2.0 * np.abs(x) - y - 1.0) / math.sqrt(5.0)
  ),
}
PHRASES = {
  "left": ("on the left", "at the left"),
  "right": ("on the right", "at the right"),
  "top": ("at the top", "on top"),
  "bottom": ("at the bottom", "below"),
  "centre": ("in the centre", "in the middle"),
}
OPENINGS = ("", "a picture of ", "here is ")
JOINTS = (", ", " and ")
JITTER = 0.015


class Thing(NamedTuple):
  """A size, a colour, a shape, and an offset (x, y) from the centre of its place."""

  size: str
  colour: str
  shape: str
  shift: tuple[float, float] = (0.0, 0.0)

  @property
  def words(self) -> tuple[str, str, str]:
    """Size, colour and shape."""
    return self[:3]


Scene = Mapping[str, Thing]  # by place


def words(scene: Scene) -> dict[str, tuple[str, str, str]]:
  """Size, colour and shape by place."""
  return {place: thing.words for place, thing in scene.items()}


def choice(generator: np.random.Generator, options):
  """A random option."""
  options = list(options)
  return options[generator.integers(len(options))]


def thing(generator: np.random.Generator) -> Thing:
  """A random thing."""
  words = (choice(generator, table) for table in (SIZES, COLOURS, SHAPES))
  return Thing(*words, tuple(generator.uniform(-JITTER, JITTER, 2)))


def scene(generator: np.random.Generator) -> Scene:
  """One to three random things in different places."""
  places = generator.permutation(list(PLACES))[: generator.integers(1, 4)]
  return {str(place): thing(generator) for place in places}


def caption(scene: Scene, generator: np.random.Generator) -> str:
  """A caption of the whole scene, in one of many wordings.

  >>> generator = np.random.default_rng(1)
  >>> caption({'left': Thing('small', 'red', 'circle')}, generator)
  'a picture of a small red circle on the left'
  """
  phrases = [
    f"a {' '.join(scene[place].words)} {choice(generator, PHRASES[place])}"
    for place in generator.permutation(list(scene))
  ]
  return choice(generator, OPENINGS) + choice(generator, JOINTS).join(phrases)


def coverage(
  shape: str, size: str, centre: tuple[float, float], side: int
) -> np.ndarray:
  """Share of each pixel that a shape covers, float [side, side] in [0, 1].

  Edges are taken as straight within a pixel.
  """
  half, middles = SIZES[size], (np.arange(side) + 0.5) / side
  x, y = ((middles - at) / half for at in centre)
  distance = SHAPES[shape](x[None, :], y[:, None])
  return np.clip(0.5 - distance * half * side, 0.0, 1.0)


def draw(scene: Scene, side: int) -> np.ndarray:
  """The image, uint8 [side, side, 3]."""
  image = np.full((side, side, 3), PAPER, np.float64)
  for place, at in PLACES.items():
    if place in scene:
      size, colour, shape, shift = scene[place]
      centre = (at[0] + shift[0], at[1] + shift[1])
      covered = coverage(shape, size, centre, side)[..., None]
      image += covered * (np.array(COLOURS[colour]) - image)
  return np.round(image).astype(np.uint8)
