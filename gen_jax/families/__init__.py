"""What only text, images or autoencoders know, a file for each; nobody else asks."""

from gen_jax import build
from gen_jax.families import autoencoder, base, images, own, text
from gen_jax.types import unknown

Family = base.Family
Generator = base.Generator
ALL = (text.FAMILY, images.FAMILY, autoencoder.FAMILY)


def of(config: build.Config) -> Family:
  """The family of a config's task.

  Raises:
    InputError: no such task.
  """
  name = config["task"]["name"]
  for family in ALL:
    if family.name == name:
      return family
  if name in build.TABLES["task"]:
    return own.family(name)
  raise unknown("task", name, build.TABLES["task"])
