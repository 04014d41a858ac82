"""Edits of scenes: an instruction and the edited scene.

Each edit changes only what its instruction names; all other pixels stay equal.
"""

import functools
from collections.abc import Iterable

import numpy as np

from gen_jax.data.shapes import scenes

Edit = tuple[str, scenes.Scene]


def named(scene: scenes.Scene, place: str) -> str:
  """The shortest phrase that identifies the thing in a place.

  >>> red, blue = (scenes.Thing('small', c, 'circle') for c in ('red', 'blue'))
  >>> named({'left': red, 'top': blue}, 'left'), named({'left': red}, 'left')
  ('the red circle', 'the circle')
  """
  words = scene[place].words
  others = [set(thing.words) for at, thing in scene.items() if at != place]
  for said in (words[2:], words[1:], words):
    if not any(set(said) <= other for other in others):
      return f"the {' '.join(said)}"
  return f"the {' '.join(words)} {scenes.PHRASES[place][0]}"


def _another(generator: np.random.Generator, options: Iterable[str], *but: str) -> str:
  return scenes.choice(generator, [option for option in options if option not in but])


def alter(
  scene: scenes.Scene, generator: np.random.Generator, *, part: str, to, wording: str
) -> Edit:
  """Gives one thing another size, colour or shape from `to`."""
  place = scenes.choice(generator, scene)
  word = _another(generator, to, *scene[place].words)
  changed = {**scene, place: scene[place]._replace(**{part: word})}
  return wording.format(named(scene, place), word), changed


def move(scene: scenes.Scene, generator: np.random.Generator) -> Edit:
  """ "move the circle to the left"."""
  place = scenes.choice(generator, scene)
  target = _another(generator, scenes.PLACES, *scene)
  changed = {at: thing for at, thing in scene.items() if at != place}
  return (
    f"move {named(scene, place)} to the {target}",
    {**changed, target: scene[place]},
  )


def remove(scene: scenes.Scene, generator: np.random.Generator) -> Edit:
  """ "remove the circle"."""
  place = scenes.choice(generator, scene)
  changed = {at: thing for at, thing in scene.items() if at != place}
  return f"remove {named(scene, place)}", changed


def add(scene: scenes.Scene, generator: np.random.Generator) -> Edit:
  """ "add a small blue circle at the top"."""
  place, thing = _another(generator, scenes.PLACES, *scene), scenes.thing(generator)
  phrase = scenes.choice(generator, scenes.PHRASES[place])
  return f"add a {' '.join(thing.words)} {phrase}", {**scene, place: thing}


EDITS = (
  functools.partial(alter, part="colour", to=scenes.COLOURS, wording="make {} {}"),
  functools.partial(alter, part="size", to=scenes.SIZES, wording="make {} {}"),
  functools.partial(alter, part="shape", to=scenes.SHAPES, wording="turn {} into a {}"),
  move,
  remove,
  add,
)
