"""Weights that are written once, next to the steps."""

import collections
import shutil

import jax
import numpy as np
import pytest

from gen_jax import tree
from gen_jax.system import files
from gen_jax.train import checkpoint, items
from gen_jax.train import state as states
from gen_jax.types import InputError
from tests.train import test_checkpoint as steps

ABOUT = {"sha256": "f0", "mean": [0.25, -1.5]}


def _swap(path, draw):
  """With the file of that name of the other item, or else any of its files."""
  del draw
  home = next(p for p in path.parents if p.name == "base").with_name("other")
  own = home / path.relative_to(home.with_name("base"))
  own = own if own.exists() else home / files.HASHES
  if own.read_bytes() == path.read_bytes():  # of the shapes, which are the same
    own = home / files.HASHES
  shutil.copyfile(own, path)


_DAMAGES = (steps._flip, steps._zero_tail, steps._truncate, _swap, steps._delete)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A workdir with two items; (folder, weights, their shapes and shardings)."""
  folder = tmp_path_factory.mktemp("items")
  at = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  weights = {"net": {"w": np.arange(300, dtype=np.float32)}, "b": np.ones((2, 3), "f4")}
  weights = jax.device_put(weights, at)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), weights
  )
  items.save(folder, "base", weights, ABOUT)
  items.save(folder, "other", jax.tree.map(jax.numpy.negative, weights), {"sha256": 1})
  return folder, weights, abstract


def test_what_was_saved_comes_back(written, tmp_path):
  folder, weights, abstract = written
  found, about = items.restore(folder, "base", abstract)
  assert tree.sha256(found) == tree.sha256(weights) and about == ABOUT
  assert items.exists(folder, "base") and not items.exists(folder, "none")
  assert items.restore(folder, "none", abstract) is None
  assert items.restore(tmp_path, "base", abstract) is None
  assert not list(tmp_path.iterdir())  # to look leaves nothing


def test_steps_come_and_go_and_the_item_stays(written, tmp_path):
  """No manager takes it for a step; it is not written again."""
  folder, weights, abstract = written
  copy = shutil.copytree(folder, tmp_path / "run")
  home = items.home(copy) / "base"
  before = files.stamps([home / name for name in files.names(home)])
  for step in (1, 2, 3):
    with checkpoint.open_manager(copy, keep=1) as manager:
      found = checkpoint.restore_weights(manager, {"w": abstract["b"]})
      assert (found is None) == (step == 1)
      state = states.of_weights({"w": weights["b"]})
      checkpoint.save(manager, step, state, checkpoint.Progress(), 1.0 / step)
  with checkpoint.open_manager(copy, read_only=True) as manager:
    assert manager.all_steps() == [3]
  assert files.stamps([home / name for name in files.names(home)]) == before


@pytest.mark.parametrize("damage", [*_DAMAGES, steps._add])
def test_no_damage_to_any_of_its_files_is_silent(damage, written, tmp_path, subtests):
  folder, _, abstract = written
  draw = np.random.default_rng(0)
  for number, path in enumerate(steps._files(items.home(folder) / "base")):
    name = path.relative_to(folder)
    with subtests.test(name=str(name)):
      copy = shutil.copytree(folder, tmp_path / str(number))
      damage(copy / name, draw)
      with pytest.raises(InputError, match="base cannot be read"):
        items.restore(copy, "base", abstract)


def test_an_item_under_another_name_is_refused(written, tmp_path):
  folder, _, abstract = written
  home = items.home(shutil.copytree(folder, tmp_path / "run"))
  (home / "base").rename(home / "autoencoder")
  with pytest.raises(InputError, match="it holds item base"):
    items.restore(tmp_path / "run", "autoencoder", abstract)


def test_of_another_model(written):
  folder, _, abstract = written
  wrong = {**abstract, "b": abstract["net"]["w"]}
  with pytest.raises(InputError, match="base belongs to another model: b "):
    items.restore(folder, "base", wrong)


def test_a_disk_that_is_full_leaves_none(written, tmp_path, monkeypatch):
  _, weights, _ = written
  usage = collections.namedtuple("usage", "total used free")
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 99))
  with pytest.raises(InputError, match=r"cannot save base to .*0\.00 MiB free"):
    items.save(tmp_path, "base", weights, ABOUT)
  assert not items.exists(tmp_path, "base")


def test_what_a_kill_left_is_written_over(written, tmp_path):
  _, weights, abstract = written
  left = items.home(tmp_path) / "base.orbax-checkpoint-tmp"
  left.mkdir(parents=True)
  (left / "half").write_bytes(b"x")
  assert items.restore(tmp_path, "base", abstract) is None
  items.save(tmp_path, "base", weights, ABOUT)
  assert items.restore(tmp_path, "base", abstract)[1] == ABOUT
  assert [path.name for path in items.home(tmp_path).iterdir()] == ["base"]
