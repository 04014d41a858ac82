"""What a checkpoint holds on disk, and those that earlier versions wrote."""

import dataclasses
import errno
import os
import pathlib
import shutil

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from gen_jax import sharding, tree
from gen_jax.system import files
from gen_jax.train import checkpoint, proof
from gen_jax.train import state as states
from gen_jax.types import InputError
from tests import tiny


@pytest.fixture
def made():
  """(state of counted numbers, its shapes and shardings), on 8 devices."""
  layout = sharding.make_layout(data=2, fsdp=4, rules="fsdp")
  task, batch = tiny.language_model(), layout.put(tiny.text_batch(), tiny.BATCH)
  abstract = states.abstract(task, optax.adam(0.1), batch, layout, with_ema=True)

  def count(x):
    return np.arange(x.size, dtype=x.dtype).reshape(x.shape)

  return jax.tree.map(
    lambda x: jax.device_put(count(x), x.sharding), abstract
  ), abstract


def test_arrays_are_written_as_they_are(tmp_path):
  """To compress them takes as much memory again as the state; zeros would shrink."""
  state = {"table": jax.numpy.zeros((256, 64))}
  with checkpoint.open_manager(tmp_path) as manager:
    checkpoint.save(manager, 3, state, checkpoint.Progress())
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert sum(path.stat().st_size for path in files) > tree.num_bytes(state)


def test_arrays_go_to_the_disk_at_once(made, tmp_path):
  """One by one, each has an index of its own and waits for the disk in turn."""
  state, _ = made
  with checkpoint.open_manager(tmp_path) as manager:
    checkpoint.save(manager, 3, state, checkpoint.Progress())
  written = [*tmp_path.rglob("ocdbt.process_*/d/*")]
  assert 1 <= len(written) <= 3 < len(jax.tree.leaves(state))
  assert not [*tmp_path.rglob("_sharding")]


def test_what_is_small_is_saved_without_compiling(tmp_path, caplog):
  """Each device would write a part of what all have, cut by a program of its own."""
  layout = sharding.make_layout()
  state = {"bias": jax.device_put(np.ones((8, 3)), layout.replicated)}
  with jax.log_compiles(), checkpoint.open_manager(tmp_path) as manager:
    checkpoint.save(manager, 3, state, checkpoint.Progress())
  assert "Compiling" not in caplog.text


@pytest.mark.parametrize("is_older", [False, True])
def test_all_or_the_weights_alone_come_back(is_older, made, tmp_path):
  """Also from compressed arrays, which earlier versions wrote."""
  state, abstract = made
  if is_older:
    handlers = {
      "state": ocp.StandardCheckpointHandler(),
      "progress": ocp.JsonCheckpointHandler(),
    }
    folder = tmp_path / "checkpoints"
    with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:
      progress = ocp.args.JsonSave(dataclasses.asdict(checkpoint.Progress()))
      args = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=progress)
      manager.save(3, args=args)
  else:
    with checkpoint.open_manager(tmp_path) as manager:
      checkpoint.save(manager, 3, state, checkpoint.Progress())
  with checkpoint.open_manager(tmp_path, read_only=True) as manager:
    told = []
    everything, progress = checkpoint.restore(manager, abstract, warn=told.append)
    assert [("not verified" in line) for line in told] == [True] * is_older
    average, step = checkpoint.restore_weights(manager, abstract.ema, part="ema")
  assert (step, progress) == (3, checkpoint.Progress())
  assert tree.sha256(jax.device_get(everything)) == tree.sha256(jax.device_get(state))
  assert tree.sha256(jax.device_get(average)) == tree.sha256(jax.device_get(state.ema))
  for got, want in ((everything, abstract), (average, abstract.ema)):
    same = jax.tree.map(lambda x, y: x.sharding == y.sharding, got, want)
    assert all(jax.tree.leaves(same))


STEPS = (3, 6)


def test_an_idle_text_encoder_of_earlier_versions_is_left_on_disk(tmp_path):
  """Of a model that has none; with one, and any other part, it is another model."""
  weights = {
    "unet": {"x": jax.numpy.arange(3.0)},
    "text_encoder": {"y": jax.numpy.ones(2)},
  }
  key = jax.random.key_data(jax.random.key(0))
  state = states.TrainState(jax.numpy.int32(3), weights, weights, {"mu": weights}, key)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  only = {"unet": abstract.params["unet"]}
  wanted = dataclasses.replace(abstract, params=only, ema=only, opt_state={"mu": only})
  with checkpoint.open_manager(tmp_path) as manager:
    checkpoint.save(manager, 3, state, checkpoint.Progress())
  with checkpoint.open_manager(tmp_path, read_only=True) as manager:
    found, _ = checkpoint.restore(manager, wanted)
    assert tree.flatten(found).keys() == tree.flatten(wanted).keys()
    np.testing.assert_array_equal(found.opt_state["mu"]["unet"]["x"], [0, 1, 2])
    alone, step = checkpoint.restore_weights(manager, only, part="ema")
    assert step == 3 and alone.keys() == {"unet"}
    text = {"text_encoder": abstract.params["text_encoder"]}
    with pytest.raises(InputError, match="belongs to another model: ema/unet/x"):
      checkpoint.restore_weights(manager, text, part="ema")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """Two steps of one small state, 6 the better one; (folder, abstract state)."""
  folder = tmp_path_factory.mktemp("steps")
  at = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def made(x):
    return states.of_weights({"w": x + np.arange(300, dtype=np.float32)})

  with checkpoint.open_manager(folder) as manager:
    for step in STEPS:
      state = jax.tree.map(lambda x: jax.device_put(x, at), made(step))
      checkpoint.save(manager, step, state, checkpoint.Progress(), 1.0 / step)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state
  )
  return folder, abstract


def _files(step: pathlib.Path) -> list[pathlib.Path]:
  return [step / name for name in (*files.names(step), files.HASHES)]


def _flip(path, draw):
  content = bytearray(path.read_bytes())
  content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
  path.write_bytes(content)


def _zero_tail(path, draw):
  content = path.read_bytes()
  kept = int(draw.integers(len(content)))
  tail = content[kept:]
  path.write_bytes(content[:kept] + bytes(len(tail) if any(tail) else len(tail) + 1))


def _truncate(path, draw):
  os.truncate(path, draw.integers(path.stat().st_size))


def _swap(path, draw):
  """With a file of the other step: of the same name, or else any other."""
  del draw
  other = next(p for p in path.parents if p.name == str(STEPS[1])).with_name(
    str(STEPS[0])
  )
  by_name = sorted(_files(other), key=lambda p: p.name == path.name, reverse=True)
  different = (p for p in by_name if p.read_bytes() != path.read_bytes())
  shutil.copyfile(next(different), path)


def _delete(path, draw):
  del draw
  path.unlink()


def _add(path, draw):
  del draw
  shutil.copyfile(path, path.with_name(f"{path.name}-more"))


@pytest.mark.parametrize("damage", [_flip, _zero_tail, _truncate, _swap, _delete, _add])
def test_no_damage_to_any_file_of_a_step_is_silent(damage, written, tmp_path, subtests):
  folder, abstract = written
  draw = np.random.default_rng(0)
  names = [
    p.relative_to(folder) for p in _files(folder / "checkpoints" / str(STEPS[1]))
  ]
  for number, name in enumerate(names):
    with subtests.test(name=str(name)):
      copy = shutil.copytree(folder, tmp_path / str(number))
      damage(copy / name, draw)
      told = []
      with checkpoint.open_manager(copy, read_only=True) as manager:
        prefer = checkpoint.find_step(manager, "best", told.append)
        restored, _ = checkpoint.restore(
          manager, abstract, prefer=prefer, warn=told.append
        )
        average, step = checkpoint.restore_weights(
          manager, abstract.params, prefer=prefer, warn=told.append
        )
      assert told
      assert float(restored.params["w"][0]) == float(average["w"][0]) == step
      if name.name != files.HASHES or damage is not _delete:
        assert step == STEPS[0]


def test_a_step_under_another_name_is_refused(written, tmp_path):
  folder, abstract = written
  copy = shutil.copytree(folder, tmp_path / "run") / "checkpoints"
  (copy / "6").rename(copy / "9")
  told = []
  with checkpoint.open_manager(tmp_path / "run", read_only=True) as manager:
    checkpoint.restore(manager, abstract, warn=told.append)
  assert told == ["step 9 cannot be read (it holds step 6); going back to step 3"]


NAMES = (
  "lr[1e-3]",
  "a*b?",
  "[!x]",
  "{a,b}",
  "a b",
  "50%25",
  "new\nline",
  "größe",
  "#1",
)


@pytest.mark.parametrize("name", [*NAMES, "gs:x", "~", "-x", "'\"", "x" * 200])
def test_a_workdir_may_have_any_name(name, written, tmp_path):
  _, abstract = written
  state = jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype)), abstract)
  with checkpoint.open_manager(tmp_path / name) as manager:
    checkpoint.save(manager, 1, state, checkpoint.Progress(), 1.0)
  with checkpoint.open_manager(tmp_path / name, read_only=True) as manager:
    restored, _ = checkpoint.restore(manager, abstract)
  assert restored.params["w"].all()


@pytest.mark.parametrize("name", ["a\\b", "\udcff"])
def test_but_not_one_that_the_arrays_would_not_be_found_under(name, tmp_path):
  with pytest.raises(InputError, match="use another name"):
    with checkpoint.open_manager(tmp_path / name):
      pass
  assert not list(tmp_path.iterdir())


def _lose_a_piece(folder):
  """As if one process's part had not been seen on a network file system."""
  shutil.rmtree(folder / "d")
  (folder / "manifest.ocdbt").unlink()


def _lose_the_note(folder):
  (folder / "hashes.process_0.json").unlink()


def _no_room(folder):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
  "fault, says",
  [
    (_lose_a_piece, "cannot be read back"),
    (_lose_the_note, "hashes.process_0.json"),
    (_no_room, "No space left.*make room"),
  ],
)
def test_a_step_counts_when_it_has_been_read_back(
  fault, says, written, tmp_path, monkeypatch
):
  """Until then it has no name, the one before it stays, and nobody lists it."""
  folder, abstract = written
  copy = shutil.copytree(folder, tmp_path / "run")
  write = proof._write

  def faulty(folder, step):
    fault(folder / "state")
    write(folder, step)

  monkeypatch.setattr(proof, "_write", faulty)
  state = jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype)), abstract)
  with pytest.raises(InputError, match=says):
    with checkpoint.open_manager(copy, keep=1) as manager:
      checkpoint.save(manager, 9, state, checkpoint.Progress(), 0.01)
      try:
        manager.wait_until_finished()
      finally:
        assert 9 not in manager.all_steps()
  with checkpoint.open_manager(copy, read_only=True) as manager:
    assert manager.all_steps() == list(STEPS)
    assert checkpoint.restore_weights(manager, abstract.params)[1] == STEPS[1]


def test_steps_may_be_deleted_under_a_run(written, tmp_path):
  folder, abstract = written
  copy = shutil.copytree(folder, tmp_path / "run")
  state = jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype)), abstract)
  with checkpoint.open_manager(copy, keep=1) as manager:
    shutil.rmtree(copy / "checkpoints" / "3")
    checkpoint.save(manager, 9, state, checkpoint.Progress(), 0.01)
    manager.wait_until_finished()
    shutil.rmtree(copy / "checkpoints")
    checkpoint.save(manager, 12, state, checkpoint.Progress(), 0.02)
  with checkpoint.open_manager(copy, read_only=True) as manager:
    assert manager.all_steps() == [12]
