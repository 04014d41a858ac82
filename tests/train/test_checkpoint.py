"""What a checkpoint holds on disk, and those that earlier versions wrote."""

import dataclasses

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from gen_jax import sharding, tree
from gen_jax.train import checkpoint
from gen_jax.train import state as states
from tests import tiny


@pytest.fixture
def made():
  """(state of counted numbers, its shapes and shardings), on 8 devices."""
  layout = sharding.make_layout(data=2, fsdp=4, rules="fsdp")
  task, batch = tiny.language_model(), layout.put(tiny.text_batch(), tiny.BATCH)
  goal = states.abstract(task, optax.adam(0.1), batch, layout, with_ema=True)
  count = lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape)  # noqa: E731
  return jax.tree.map(lambda x: jax.device_put(count(x), x.sharding), goal), goal


def test_arrays_are_written_as_they_are(tmp_path):
  """To compress them takes as much memory again as the state; zeros would shrink."""
  state = {"table": jax.numpy.zeros((256, 64))}
  with checkpoint.open_manager(tmp_path) as manager:
    checkpoint.save(manager, 3, state, checkpoint.Progress())
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert sum(path.stat().st_size for path in files) > tree.num_bytes(state)


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
  state, goal = made
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
    everything, progress = checkpoint.restore(manager, goal)
    average, step = checkpoint.restore_weights(manager, goal.ema, part="ema")
  assert (step, progress) == (3, checkpoint.Progress())
  assert tree.sha256(jax.device_get(everything)) == tree.sha256(jax.device_get(state))
  assert tree.sha256(jax.device_get(average)) == tree.sha256(jax.device_get(state.ema))
  for got, want in ((everything, goal), (average, goal.ema)):
    same = jax.tree.map(lambda x, y: x.sharding == y.sharding, got, want)
    assert all(jax.tree.leaves(same))
