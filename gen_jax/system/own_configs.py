"""The configs that come with gen_jax: their folder and their names."""

import pathlib

import gen_jax

SHARED = "configs"  # the package's name in configs, and the folder's


def home() -> pathlib.Path:
  """The folder of the configs that come with gen_jax: in it; in a clone next to it."""
  package = pathlib.Path(gen_jax.__file__).parent
  inside = package / SHARED
  return inside if inside.is_dir() else package.parent / SHARED


def names() -> list[str]:
  """Names of the configs that come with gen_jax, in order: 'lm/pydoc', ..."""
  found = (p.relative_to(home()).with_suffix("") for p in home().glob("*/*.py"))
  return sorted(name.as_posix() for name in found if name.name != "__init__")
