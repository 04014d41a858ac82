"""Multi-process start-up: rank discovery, a barrier that names missing ranks, failures.

`jax.distributed` waits in silence and then aborts. So before it starts, process 0
gathers all processes at the address that its coordinator will have; see `rendezvous`
for the messages and who is trusted.

Connections stay open as long as the run lasts. One that breaks is a process that died,
one that carries `ended` a process that failed or finished: the others know within a
second which, and do not hang in a collective that never ends. Process 0 knows a process
that is alive but stalled by the heartbeats of all.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import math
import os
import pathlib
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags

from gen_jax.cli import rendezvous
from gen_jax.errors import InputError, Unavailable
from gen_jax.runs import workdir
from gen_jax.system import files, signals

_BAD_INPUT = 2
_PATIENCE = 6.0  # times --host_timeout, until a stalled process is named
_GRACE_SECS = 5.0  # another process failed: may be of what this one is about to say
_SHARED_SECS = 10.0  # network file systems show a file late
_SHARED = "put it on a file system that all hosts share"
_ALONE = "--num_processes=1 is for a run of its own"
_NUMBERS = {  # Open MPI 5 no longer sets what JAX looks for
  "num_processes": ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE"),
  "process_id": ("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK"),
}
_WHOLE = re.compile(r"-?[0-9]{1,9}")
_MAX_PROCESSES, _MAX_SECS = 2**16, 86_400.0


def add_arguments(parser) -> None:
  """Flags of every command that runs as several processes."""
  add = parser.add_argument_group(
    "several processes (automatic on TPU pods, Slurm, Open MPI, Kubernetes)"
  ).add_argument
  wait = "seconds to wait for all at the start, and six times that later; default 50"
  add("--coordinator", metavar="HOST:PORT", help="or JAX_COORDINATOR_ADDRESS")
  add("--num_processes", type=int, help="or JAX_NUM_PROCESSES")
  add("--process_id", type=int, help="or JAX_PROCESS_ID")
  add("--host_timeout", type=float, default=50.0, metavar="SECS", help=wait)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a process stands in a run.

  Attributes:
    coordinator: host and port of process 0.
    num_processes: of the run, at least 2.
    process_id: in [0, num_processes).
    devices: ids of the local devices that are its own; None is all.
  """

  coordinator: tuple[str, int]
  num_processes: int
  process_id: int
  devices: Sequence[int] | None = None


def find_place(args, environ: Mapping[str, str] = os.environ) -> Place | None:
  """Where flags, environment or cluster put this process; None for a run of its own.

  Raises:
    InputError: a place that cannot be, or half of one.
  """
  if not 0 < args.host_timeout <= _MAX_SECS:  # NaN as well
    raise InputError(
      f"--host_timeout {args.host_timeout} must be more than 0, and at most a day"
    )
  address = args.coordinator or environ.get("JAX_COORDINATOR_ADDRESS")
  number, index = (_number(args, name, environ) for name in _NUMBERS)
  devices = None
  if number == 1:
    return None
  if None in (address, number, index):
    from jax._src import clusters  # the detection behind jax.distributed.initialize

    try:
      detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
      secs = math.ceil(args.host_timeout)
      address, number, index, devices = detect(address, number, index, None, None, secs)
    except Exception as error:  # whatever a cluster's interface raises
      raise InputError(
        f"this cluster does not say where this process stands ({error}); give"
        f" --coordinator, --num_processes and --process_id; {_ALONE}"
      ) from None
  found = {"--coordinator": address, "--num_processes": number, "--process_id": index}
  missing = [flag for flag, value in found.items() if value is None]
  if len(missing) == len(found) or number == 1:
    return None
  if missing:
    raise InputError(
      f"{', '.join(found)} belong together; {' and '.join(missing)} not given; {_ALONE}"
    )
  if number > _MAX_PROCESSES:
    raise InputError(f"--num_processes {number} must be at most {_MAX_PROCESSES}")
  if not 0 <= index < number:
    raise InputError(f"--process_id {index} must be in [0, --num_processes {number})")
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise InputError(f"--coordinator {address!r} must be HOST:PORT, as in node1:8476")
  devices = None if "JAX_LOCAL_DEVICE_IDS" in environ else devices
  return Place((host.strip("[]"), int(port)), number, index, devices)


def _number(args, name: str, environ: Mapping[str, str]) -> int | None:
  given = [getattr(args, name), *(environ.get(v) for v in _NUMBERS[name])]
  text = next((value for value in given if value is not None), None)
  if text is not None and not _WHOLE.fullmatch(str(text)):
    raise InputError(f"{_NUMBERS[name][0]}={text!r:.60} must be a whole number")
  return None if text is None else int(text)


def _facts(place: Place, config: dict[str, Any]) -> dict[str, str]:
  """What must be the same in all processes."""
  code = hashlib.sha256()
  for path in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
    code.update(path.read_bytes())
  return {
    "--num_processes": str(place.num_processes),
    "code (SHA-256)": code.hexdigest()[:12],
    **{f"{name} version": importlib.metadata.version(name) for name in ("jax", "flax")},
    **{f"config {key}": repr(value) for key, value in workdir.flat(config).items()},
  }


class ProcessGroup:
  """The processes of a run, each connected with process 0, and watched.

  Attributes:
    process_id: of this one.
    hosts: names, by process.
  """

  def __init__(
    self,
    process_id: int,
    hosts: Sequence[str],
    links: dict[int, rendezvous.Link],
    secs: float,
  ):
    self.process_id, self.hosts, self._links = process_id, hosts, links
    self._heartbeats, self._moved = [0] * len(hosts), time.monotonic()
    self._prepared, self._over = threading.Semaphore(0), threading.Event()
    watch = functools.partial(threading.Thread, target=self._watch, daemon=True)
    self._watchers = [watch(args=item) for item in links.items()]
    if process_id == 0 and links:
      threading.Thread(target=self._compare, args=(secs,), daemon=True).start()
    for watcher in self._watchers:
      watcher.start()

  def _watch(self, other: int, link: rendezvous.Link) -> None:
    link.socket.settimeout(None)
    code, reason = os.EX_TEMPFAIL, "is gone"
    while (message := link.read()) is not None:
      if message.get("stopped"):
        reason = "was told to stop"
        break
      if message.get("ended"):
        code, reason = _BAD_INPUT, f"failed: {message['ended']}"
        self._over.wait(_GRACE_SECS)
        break
      if "ended" in message:
        return
      if "heartbeats" in message:
        self._heartbeats[other], self._moved = message["heartbeats"], time.monotonic()
      else:
        self._prepared.release()
    self.leave([other], code, reason)

  def _compare(self, secs: float) -> None:
    """Ends the run where some have come further than the rest, and nobody moves."""
    while not self._over.wait(secs / 10):
      most = max(self._heartbeats)
      behind = [i for i, at in enumerate(self._heartbeats) if at < most]
      if behind and time.monotonic() - self._moved > secs:
        self.leave(behind, os.EX_TEMPFAIL, f"kept the others waiting for {secs:g} s")

  def leave(self, others: Sequence[int], code: int, reason: str) -> None:
    """Ends this process, unless it is done, because of others."""
    if self._over.is_set():
      return
    names = ", ".join(f"process {i} ({self.hosts[i]})" for i in others)
    again = "; start all again: the run goes on" if code == os.EX_TEMPFAIL else ""
    print(f"gen-jax: error: {names} {reason}{again}", file=sys.stderr, flush=True)
    os._exit(code)  # the main thread may wait for a process that is no more

  def heartbeat(self) -> None:
    """Says that this process has come on; all say so equally often."""
    self._heartbeats[self.process_id] += 1
    self._moved = time.monotonic()
    if self.process_id:
      self._tell({"heartbeats": self._heartbeats[self.process_id]})

  @contextlib.contextmanager
  def main_process_first(self) -> Iterator[None]:
    """Process 0 runs the body before the others do: what it writes, they find."""
    while self.process_id and not self._prepared.acquire(timeout=60.0):
      waiting = f"gen-jax: waiting for process 0 ({self.hosts[0]})"
      print(waiting, file=sys.stderr, flush=True)
    yield
    if self.process_id == 0:
      self._tell({"prepared": True})

  def end(self, error: str = "") -> None:
    """Says that this process is done, or why it cannot go on."""
    self._over.set()
    self._tell({"ended": error})
    for watcher in self._watchers if error and self.process_id == 0 else ():
      watcher.join(2 * _GRACE_SECS)  # the coordinator, which lives here, goes last

  def stop(self) -> None:
    """Says that this process was told to stop: all do, and the same command goes on."""
    self._over.set()
    self._tell({"stopped": True})

  def _tell(self, message: dict[str, Any]) -> None:
    for link in self._links.values():
      link.send(message)


def assemble(
  place: Place, facts: dict[str, str], secs: float, workdir: pathlib.Path
) -> ProcessGroup:
  """Waits until all processes are there, and agree.

  Args:
    workdir: that the processes share; see `rendezvous.new_token`.

  Raises:
    InputError: names those that are missing after `secs`, or what differs.
  """
  here = {"process": place.process_id, "host": socket.gethostname(), "facts": facts}
  links, answer = (_report if place.process_id else _gather)(place, here, secs, workdir)
  if answer["wrong"]:
    raise InputError(answer["wrong"])
  return ProcessGroup(place.process_id, answer["hosts"], links, _PATIENCE * secs)


def _gather(place: Place, here: dict[str, Any], secs: float, workdir: pathlib.Path):
  """In process 0: the connections by process, and what all are told."""
  present, links, wrong = {0: here}, [], None
  deadline = time.monotonic() + secs
  with contextlib.ExitStack() as stack:
    token = stack.enter_context(rendezvous.new_token(workdir))
    coming = rendezvous.arrivals(rendezvous.listen(*place.coordinator), token, deadline)
    stack.enter_context(contextlib.closing(coming))
    while len(present) < place.num_processes and wrong is None:
      report, connection = next(coming, (None, None))
      if report is None:
        missing = sorted(set(range(place.num_processes)) - present.keys())
        wrong = _missing(missing, place, secs)
      elif report.keys() == here.keys():
        other = report["process"]
        wrong = _disagreement(report, here, present.get(other))
        links.append((other, rendezvous.Link(connection, 5.0, token, is_first=True)))
        present[other] = report
  answer = {"hosts": [present[i]["host"] for i in sorted(present)], "wrong": wrong}
  for _, link in links:
    link.send(answer)
  return dict(links), answer


def _disagreement(report, here, namesake) -> str | None:
  other = f"process {report['process']} ({report['host']})"
  for key in sorted(here["facts"].keys() | report["facts"].keys()):
    own, its = (facts.get(key, "absent") for facts in (here["facts"], report["facts"]))
    if own != its:
      return (
        f"{other} has another {key}: {its}, process 0 ({here['host']}) {own}; start all"
        " with the same command, code and packages"
      )
  if namesake is None:
    return None
  return (
    f"{other} is there twice, on {namesake['host']} as well; give each process its own"
    " --process_id"
  )


def _missing(processes: Sequence[int], place: Place, secs: float) -> str:
  known = os.environ.get("GEN_JAX_HOSTS") or os.environ.get("TPU_WORKER_HOSTNAMES", "")
  hosts = [f" ({host})" for host in known.split(",")]
  hosts = hosts if len(hosts) == place.num_processes else [""] * place.num_processes
  names = [f"{i}{hosts[i]}" for i in processes[:8]]
  more = f" and {len(processes) - 8} more" if len(processes) > 8 else ""
  host, port = place.coordinator
  return (
    f"process {', '.join(names)}{more} of {place.num_processes} did not come to"
    f" {host}:{port} within {secs:g} s; start the command on every host, and if it runs"
    f" there with the same --workdir, {_SHARED}; {_ALONE}"
  )


def _report(place: Place, here: dict[str, Any], secs: float, workdir: pathlib.Path):
  """In the others: the connection to process 0, and its answer."""
  host, port = place.coordinator
  deadline, shared_by = time.monotonic() + secs, math.inf
  while (left := deadline - time.monotonic()) > 0:
    token = rendezvous.find_token(workdir)  # a new one, should process 0 start again
    with contextlib.suppress(OSError):
      connection = socket.create_connection((host, port), timeout=left)
      if token is None:  # process 0 listens, so its token must appear
        shared_by = min(shared_by, time.monotonic() + _SHARED_SECS)
      else:
        link = rendezvous.Link(connection, secs + 5.0, token, is_first=False)
        link.send(here)
        if (answer := link.read()) is not None:
          return {0: link}, answer
      connection.close()
    if token is None and time.monotonic() > shared_by:
      raise InputError(f"--workdir {workdir} is not that of process 0: {_SHARED}")
    time.sleep(0.2)
  raise InputError(
    f"process 0 of {place.num_processes} did not answer at {host}:{port} within"
    f" {secs:g} s; start the command there too; {_ALONE}"
  )


@contextlib.contextmanager
def join(args, config: dict[str, Any]) -> Iterator[ProcessGroup]:
  """Makes this process part of its run, before anything is computed.

  Processes other than 0 lose their stdout. Whatever ends the body in one process ends
  all of them.

  Args:
    args: see `add_arguments`.
    config: the same in all processes, or they are refused.

  Raises:
    InputError: see `find_place` and `assemble`.
  """
  place = find_place(args)
  if place is None:
    yield ProcessGroup(0, (socket.gethostname(),), {}, math.inf)
    return
  directory = files.path(args.workdir, "--workdir")
  group = assemble(place, _facts(place, config), args.host_timeout, directory)
  if place.process_id:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  flags.FLAGS.mark_as_parsed()  # barriers that end, and say who is missing:
  flags.FLAGS.experimental_orbax_use_distributed_barrier = True
  # It would take SIGTERM away from the phases that have no step to agree on.
  jax.config.update("jax_enable_preemption_service", False)
  at = place.coordinator
  jax.distributed.initialize(
    coordinator_address=rendezvous.address(*at),
    coordinator_bind_address=None if place.process_id else rendezvous.own_address(*at),
    num_processes=place.num_processes,
    process_id=place.process_id,
    local_device_ids=place.devices,
    cluster_detection_method="deactivate",  # done
    initialization_timeout=60,
    shutdown_timeout_seconds=60,
  )
  try:
    yield group
  except BaseException as error:
    if isinstance(error, signals.Interrupted | Unavailable) or signals.was_raised():
      group.stop()
      raise
    if late := _late(str(error)):
      group.leave(late, os.EX_TEMPFAIL, "did not come where the others wait")
    if not isinstance(error, InputError):
      time.sleep(2.0)  # it may follow from the end of another process: see `_watch`
    group.end(str(error) or type(error).__name__)
    raise
  group.end()


def _late(error: str) -> list[int]:
  """The processes that an error of JAX's barriers names.

  >>> _late("Barrier timed out. Some timed out task names:\\n1\\n3\\n\\nRPC: x")
  [1, 3]
  """
  words = error.partition("timed out task names:")[2].split()
  names = (word.rpartition(":")[2] for word in words)
  return [int(name) for name in names if name.isdecimal()]
