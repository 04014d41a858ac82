"""Sweeps: many runs of one config, and what they say together.

An arm is a dict {dotted config key: value}, a space a list of arms. A sweep.py builds
its space from the five functions here.
"""

_OF_SPACE = ("chain", "fixed", "product", "values", "zip_")


def __getattr__(name):
  """The functions of `space`, imported when they are asked for: see `system.lazy`."""
  if name not in _OF_SPACE:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from gen_jax.sweeps import space

  return getattr(space, name)
