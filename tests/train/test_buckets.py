"""Checkpoints in a bucket: complete or not there, hashed, and found again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.system import copies, files
from gen_jax.train import checkpoint, items, proof
from gen_jax.train import state as states
from gen_jax.types import InputError

PARAMS = {"a": jnp.arange(600.0).reshape(20, 30), "b": {"c": jnp.ones(3)}}


@pytest.fixture(params=["bucket", "gs_bucket"])
def workdir(request):
  return files.path(request.getfixturevalue(request.param), "x") / "run"


def save(workdir, steps):
  with checkpoint.open_manager(workdir) as manager:
    for step in steps:
      value = 1.0 if step == 1 else 5.0
      state = states.of_weights(jax.tree.map(lambda x, s=step: x + s, PARAMS))
      checkpoint.save(manager, step, state, checkpoint.Progress(), value)


def read(workdir, told=None):
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), PARAMS
  )
  with checkpoint.open_manager(workdir, read_only=True) as manager:
    warn = print if told is None else told.append
    found, step = checkpoint.restore_weights(manager, abstract, warn=warn)
    np.testing.assert_array_equal(found["a"], PARAMS["a"] + step)
    return sorted(manager.all_steps()), step


def test_steps_are_kept_read_and_damage_is_passed_over(workdir):
  save(workdir, range(5))
  assert read(workdir) == ([1, 3, 4], 4)  # the best, and the last two
  home = items.home(workdir)
  name = next(n for n in files.names(home / "4") if "/d/" in n)
  content = bytearray((home / "4" / name).read_bytes())
  content[-1] ^= 1
  files.write_bytes(home / "4" / name, bytes(content))
  told = []
  assert read(workdir, told) == ([1, 3, 4], 3)
  assert f"{name} is not as it was written" in " ".join(told)


def test_a_step_without_its_hashes_is_not_there_and_goes(workdir):
  """As a run leaves it that was killed while it saved."""
  save(workdir, range(3))
  home = items.home(workdir)
  (home / "2" / files.HASHES).unlink()
  assert not proof.is_complete(home / "2") and proof.is_complete(home / "1")
  assert read(workdir) == ([1], 1)
  save(workdir, [2])
  assert read(workdir) == ([1, 2], 2)


def test_an_item_is_written_once_with_its_hash(workdir):
  about = {"from": "elsewhere"}
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), PARAMS
  )
  assert not items.exists(workdir, "base")
  assert items.restore(workdir, "base", abstract) is None
  items.save(workdir, "base", PARAMS, about)
  found, read_about = items.restore(workdir, "base", abstract)
  assert items.exists(workdir, "base") and read_about == about
  np.testing.assert_array_equal(found["a"], PARAMS["a"])
  copies.remove(items.home(workdir) / "base" / "about" / "metadata")
  with pytest.raises(InputError, match="cannot be read"):
    items.restore(workdir, "base", abstract)


def test_a_name_that_orbax_would_read_as_a_pattern_is_refused(bucket):
  with pytest.raises(InputError, match="brackets or stars"):
    items.home(files.path(f"{bucket}/a[b]", "x"))
