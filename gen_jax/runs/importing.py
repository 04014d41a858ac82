"""Writes a workdir of imported weights, whole or not at all."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from gen_jax import tree
from gen_jax.runs import lease, workdir
from gen_jax.runs import weights as weighing
from gen_jax.system import copies, files
from gen_jax.train import checkpoint, items
from gen_jax.train import state as states
from gen_jax.types import InputError, Params


def write(
  directory: pathlib.Path,
  config: dict[str, Any],
  params: Params,
  folder: pathlib.Path | None,
  tokenizer: list[str],
  origin: dict[str, Any],
  write_more: Callable[[], None] = lambda: None,
) -> None:
  """Writes a workdir; `write_more` writes what belongs to it, before the checkpoint."""
  with lease.hold(directory):
    if (directory / "config.json").exists():
      raise InputError(f"--workdir {directory} is not empty; take another one")
    _write_held(directory, config, params, folder, tokenizer, origin, write_more)


def _write_held(
  directory, config, params, folder, tokenizer, origin, write_more
) -> None:
  digest, abstract = tree.sha256(params), _abstract(params)
  try:
    with workdir.claim(directory, config):
      # First of all: without it, a workdir whose writing broke off could be weighing.
      workdir.write_sealed(directory / "import.json", origin)
      if tokenizer:
        (directory / "tokenizer").mkdir()
        for name in tokenizer:
          copies.copy(folder / name, directory / "tokenizer" / name)
        files.write_hashes(directory / "tokenizer")
      write_more()
      with checkpoint.open_manager(directory) as manager:
        state = states.of_weights(params)
        checkpoint.save(manager, 0, state, checkpoint.Progress())
      jax.tree.map(lambda leaf: leaf.delete(), params)  # there is room for one copy
      with checkpoint.open_manager(directory, read_only=True) as manager:
        found = checkpoint.restore_weights(manager, abstract)
      _check(directory, found, digest)
  except BaseException:
    for path in directory.glob("*"):
      with contextlib.suppress(OSError):
        copies.remove(path)
    raise


def _abstract(params: Params) -> Params:
  """Shapes and shardings of arrays."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
  )


def _check(directory: pathlib.Path, found: Any, digest: str) -> None:
  """Raises InputError unless weights read back as what was saved."""
  if found is None or tree.sha256(found[0]) != digest:
    raise InputError(
      f"the weights in {directory} do not read back as they were written; check the"
      " disk, or take another --workdir"
    )


def save_autoencoder(
  directory: pathlib.Path, config: dict[str, Any], vae: Params, latents: dict[str, Any]
) -> None:
  """Writes the autoencoder that imported latent diffusion works in, and reads it back.

  Args:
    config: of the diffusion.
    latents: mean and std of each latent channel.
  """
  digest = tree.sha256(vae)
  statistics = {**latents, "sha256": digest, "step": 0, "weights": "raw"}
  weighing.keep_autoencoder(directory, config, vae, statistics)
  found = items.restore(directory, weighing.AUTOENCODER, _abstract(vae))
  _check(directory, found, digest)
