"""Families cover what configs may name, and take the flags that their blocks have."""

import dataclasses

import pytest

from gen_jax import build, families, types
from gen_jax.data import sources


def test_every_task_has_a_family_and_every_data_set_is_of_one():
  assert [family.name for family in families.ALL] == list(build.TABLES["task"])
  for name, entry in build.TABLES["dataset"].items():
    assert any(issubclass(entry.make, f.datasets) for f in families.ALL), name
  with pytest.raises(types.InputError, match=r"unknown task 'diffuse'.*'diffusion'"):
    families.of({"task": {"name": "diffuse"}})


@pytest.mark.parametrize("family", families.ALL, ids=lambda family: family.name)
def test_flags_of_the_sampling_block_are_keys_of_it(family):
  fields = {field.name for field in dataclasses.fields(family.sampling)}
  assert family.settings and family.settings.keys() <= fields
  assert not family.flags.keys() & fields
  others = [other for other in families.ALL if other.gives != family.gives]
  for other in others:
    assert not {*family.settings, *family.flags} & {*other.settings, *other.flags}


def test_all_that_sources_give_is_given_by_one_and_not_by_all():
  made = [entry.signature for entry in build.TABLES["source"].values()]
  found = [sources.gives(source) for source in made]
  assert all(found)
  for what in sources.GIVES:
    assert 0 < sum(what in given for given in found) < len(found), what
