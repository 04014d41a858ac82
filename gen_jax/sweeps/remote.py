"""Arms as tasks of Ray, or as jobs of Slurm: schedulers that exist already.

The machines of both see the same files at the same paths as this one: the code, the
Python, the runs. What a command came to lies in `ended/` of the sweep's folder, written
by the machine that ran it (`attempt`): a driver that is killed and started again reads
it there, and no arm ends twice.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gen_jax import errors
from gen_jax.build import overrides
from gen_jax.sweeps import attempt
from gen_jax.system import files
from gen_jax.types import InputError, one_line

ENDED = "ended"
_PROBE_SECS = 3.0
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # an HTTP/2 frame of this kind, empty
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS  # RFC 9113, section 3.4
_LOST = 1  # the exit code of a command that left none: tried again


def options(words: Sequence[str]) -> dict[str, Any]:
  """{key: value} of words KEY=VALUE; values as in overrides.

  >>> options(["num_gpus=1", "partition=a100"])
  {'num_gpus': 1, 'partition': 'a100'}

  Raises:
    InputError: a word without =.
  """
  pairs = [word.partition("=") for word in words]
  for word, (key, equals, _) in zip(words, pairs, strict=True):
    if not (key and equals):
      raise InputError(f"--option {word!r:.80} must be KEY=VALUE")
  return {key: overrides.literal(value, key) for key, _, value in pairs}


def _ended(log: pathlib.Path, words: Sequence[str]) -> pathlib.Path:
  """Where what a command comes to is written; another command, another file."""
  folder = log.parents[1] / ENDED
  folder.mkdir(exist_ok=True)
  tag = files.value_sha256(list(words))[:8]
  return (folder / f"{log.stem}-{tag}.json").absolute()


class Ray:
  """Tasks of Ray Core: started again by Ray until they end, wherever a worker dies."""

  def __init__(self, address: str, given: Mapping[str, Any]):
    """Connects.

    Args:
      address: HOST:PORT of the head node.
      given: options of Ray's tasks; one CPU by default.

    Raises:
      InputError: ray is not installed, nothing answers at the address, no Ray of this
        version does, or Ray refuses an option.
    """
    with errors.extra("ray"):
      import ray
    probe(address)
    self._ray = ray
    try:
      given = {"num_cpus": 1, **given, "max_retries": -1}
      self._cores = max(int(given["num_cpus"]), 1)
      self._task = ray.remote(attempt.task).options(**given)
      before = signal.getsignal(signal.SIGTERM)
      ray.init(address, log_to_driver=False, logging_level="ERROR")
      signal.signal(signal.SIGTERM, before)  # ours also stops the arms
    except (ValueError, TypeError, RuntimeError, ConnectionError) as error:
      raise InputError(f"Ray at {address}: {one_line(error)}") from None
    needs = {"CPU": given["num_cpus"], "GPU": given.get("num_gpus", 0)}
    needs |= given.get("resources") or {}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(n.get(k, 0) >= v for k, v in needs.items()) for n in nodes):
      asked = ", ".join(f"{value} {key}" for key, value in needs.items() if value)
      print(f"no node of Ray has {asked} now: the tasks wait for one", file=sys.stderr)

  def room(self) -> int:
    """Tasks that its nodes have CPUs for at once; at least 1."""
    return max(int(self._ray.cluster_resources().get("CPU", 0)) // self._cores, 1)

  def slots(self, jobs: int) -> list[None]:
    """Of the `jobs` tasks that Ray has at a time, it runs as many as fit its nodes."""
    return [None] * jobs

  def start(self, slot, words: Sequence[str], log: pathlib.Path) -> "_Task":
    """See `engine.Place`."""
    del slot
    ended, environment = _ended(log, words), attempt.passed(os.environ)
    what = (list(words), str(ended), str(log.absolute()))
    reference = self._task.remote(*what, self._cores, environment, os.getcwd())
    return _Task(self._ray, reference, ended)


@dataclasses.dataclass
class _Task:
  """A task of Ray as a process."""

  ray: Any
  reference: Any
  ended: pathlib.Path
  code: int | None = None

  def poll(self) -> int | None:
    if self.code is None and self.ray.wait([self.reference], timeout=0)[0]:
      self.wait()
    return self.code

  def wait(self) -> int:
    if self.code is None:
      code = None
      with contextlib.suppress(self.ray.exceptions.RayError):
        code = self.ray.get(self.reference)
      written = _taken(self.ended)
      self.code = written if code is None else code
    return self.code

  def terminate(self) -> None:
    self.ray.cancel(self.reference)


class Slurm:
  """Jobs of Slurm through submitit, one for each arm."""

  def __init__(
    self, home: pathlib.Path, given: Mapping[str, Any], cluster: str = "slurm"
  ):
    """Prepares.

    Args:
      home: the sweep's folder; submitit's files go into `submitit/` there.
      given: parameters of submitit's AutoExecutor, or of sbatch; by default one core
        for at most a day.
      cluster: "slurm"; "local" runs jobs as processes here.

    Raises:
      InputError: submitit is not installed, no Slurm here, an unknown option.
    """
    with errors.extra("slurm"):
      import submitit
    if cluster == "slurm" and not shutil.which("sbatch"):
      raise InputError("--on slurm needs sbatch on this machine; log in where it is")
    self._submitit = submitit
    given = {"cpus_per_task": 1, "timeout_min": 24 * 60, **given}
    common = submitit.AutoExecutor._typed_parameters()
    named = {k if k in common else f"slurm_{k}": v for k, v in given.items()}
    try:
      self._cores = int(given["cpus_per_task"])
      self._executor = submitit.AutoExecutor(home / "submitit", cluster=cluster)
      self._executor.update_parameters(**named)
    except (NameError, ValueError, TypeError, AssertionError, RuntimeError) as error:
      raise InputError(f"--on slurm: {one_line(error):.300}") from None

  def slots(self, jobs: int) -> list[None]:
    """Slurm has `jobs` jobs at a time, and decides when they run."""
    return [None] * jobs

  def start(self, slot, words: Sequence[str], log: pathlib.Path) -> "_Job":
    """See `engine.Place`."""
    del slot
    ended = _ended(log, words)
    own = [sys.executable, "-m", attempt.__name__, str(ended), str(log.absolute())]
    command = [*own, str(self._cores), *words]
    function = self._submitit.helpers.CommandFunction(command, cwd=os.getcwd())
    return _Job(self._executor.submit(function), ended)


@dataclasses.dataclass
class _Job:
  """A job of submitit as a process."""

  job: Any
  ended: pathlib.Path
  code: int | None = None

  def poll(self) -> int | None:
    if self.code is None and (self.ended.exists() or self.job.done()):
      self.code = _taken(self.ended)
    return self.code

  def wait(self) -> int:
    while self.poll() is None:
      time.sleep(1.0)
    return self.code

  def terminate(self) -> None:
    self.job.cancel(check=False)


def _taken(ended: pathlib.Path) -> int:
  """The exit code there, which then is the driver's to keep."""
  code = attempt.code(ended)
  ended.unlink(missing_ok=True)
  return _LOST if code is None else code


def probe(address: str) -> None:
  """Raises InputError unless gRPC answers there: Ray itself would wait for long."""
  host, colon, port = address.rpartition(":")
  if not (host and colon and port.isdecimal()):
    raise InputError(f"--address {address!r:.80} must be HOST:PORT of Ray's head node")
  try:
    place = (host.strip("[]"), int(port))
    with socket.create_connection(place, _PROBE_SECS / 2) as connection:
      connection.settimeout(_PROBE_SECS / 2)
      connection.sendall(_HELLO)
      if connection.recv(9)[3:4] != _SETTINGS[3:4]:
        raise OSError("no gRPC")
  except (OSError, OverflowError) as error:
    raise InputError(
      f"no Ray answers at --address {address} ({one_line(error)}): start the head node"
      f" there with `ray start --head --port={port}`"
    ) from None
