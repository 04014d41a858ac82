"""Sweeps: many runs of one config, and what they say together.

An arm is a dict {dotted config key: value}, a space a list of arms. A sweep.py builds
its space from the first five functions here, a search its ranges from the last four.
"""

_OF_SPACE = ("chain", "fixed", "product", "values", "zip_")
_OF_SEARCH = ("uniform", "log_uniform", "integers", "choice")


def __getattr__(name):
  """What sweep.py uses, imported when it is asked for: see `system.lazy`."""
  if name not in (*_OF_SPACE, *_OF_SEARCH):
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from gen_jax.sweeps import search, space

  return getattr(space if name in _OF_SPACE else search, name)
