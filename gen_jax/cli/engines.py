"""What it takes to run a command on many hosts, by engines that exist already.

Each engine is a frozen dataclass; `plan(words)` turns a gen-jax command into the
commands of ssh, gcloud, sbatch or sky that copy the code, start, follow and stop it.
Nothing runs here.
"""

import dataclasses
import json
import shlex
import tempfile
from collections.abc import Sequence
from typing import Protocol

from gen_jax.types import InputError

Command = tuple[str, ...]
_KEPT_OUT = (".git", ".venv", "runs", "__pycache__")
_PID = "launch.pid"  # of a worker, in its folder: what to tell to save and stop


@dataclasses.dataclass(frozen=True)
class Plan:
  """Commands, and when they run.

  Attributes:
    files: {path: text} that the commands need here.
    prepare: one after another, before the start; a failure ends it all.
    start: all at once, each until its part of the run ends; process 0 is in the first.
    follow: beside them, until they have ended.
    stop: each tells a part of the run to save and stop.
    restarts: whether the engine itself starts again what was preempted.
  """

  prepare: Sequence[Command]
  start: Sequence[Command]
  stop: Sequence[Command]
  restarts: bool = False
  follow: Command | None = None
  files: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def programs(self) -> set[str]:
    """What must be installed here."""
    return {command[0] for command in (*self.prepare, *self.start, *self.stop)}


class Engine(Protocol):
  """Knows how to run a command on many hosts."""

  def plan(self, words: Sequence[str]) -> Plan:
    """The commands that run `gen-jax WORDS`."""
    ...


@dataclasses.dataclass(frozen=True)
class Worker:
  """How the command runs on a host.

  Attributes:
    directory: of the code there; relative to the home directory.
    python: the interpreter, relative to `directory`.
    setup: shell command, run there before every start.
  """

  directory: str = "gen_jax_run"
  python: str = ".venv/bin/python"
  setup: str | None = None

  def run(self, words: Sequence[str], pid: str = _PID, **variables: str) -> str:
    """Shell text that becomes the program, its process id noted."""
    env = "".join(f"{name}={shlex.quote(v)} " for name, v in variables.items())
    place, program = shlex.quote(self.directory), self.program(words)
    return f"cd {place} && echo $$ > {pid} && exec env {env}{program}"

  def program(self, words: Sequence[str]) -> str:
    """The command itself, in `directory`."""
    return f"{self.python} -m gen_jax.cli.main {shlex.join(words)}"

  def stop(self, pid: str = _PID) -> str:
    """Shell text that tells it to save and stop, even one that is about to start."""
    path = f"{shlex.quote(self.directory)}/{pid}"
    wait = f"for i in 1 2 3 4 5; do [ -s {path} ] && break; sleep 1; done"
    return f"{wait}; kill -TERM $(cat {path})"

  def make_room(self, pid: str = _PID) -> str:
    """Shell text that makes the folder, and forgets the process before."""
    place = shlex.quote(self.directory)
    return f"mkdir -p {place} && rm -f {place}/{pid}"

  def prepare(self) -> str | None:
    """Shell text of the setup."""
    return self.setup and f"cd {shlex.quote(self.directory)} && {self.setup}"


def _copy(to: str) -> Command:
  """Copies the code; deletes nothing there."""
  excluded = (f"--exclude={name}" for name in _KEPT_OUT)
  return ("rsync", "--archive", "--compress", *excluded, "./", f"{to}/")


def _positive(**numbers: int) -> None:
  for name, value in numbers.items():
    if value < 1:
      raise InputError(f"--{name} {value} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Ssh:
  """Hosts that `ssh` reaches, one process each; the first is process 0.

  Attributes:
    hosts: as ssh knows them: name or user@name. They share the --workdir.
    port: of process 0, reachable from the others.
  """

  hosts: Sequence[str]
  worker: Worker
  port: int = 8476
  options: Sequence[str] = ()

  def __post_init__(self):
    if not self.hosts or not all(self.hosts):
      raise InputError("--on ssh needs --hosts: NAME,NAME,... the first is process 0")
    _positive(port=self.port)

  def plan(self, words: Sequence[str]) -> Plan:
    alive = ("ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=3")
    flags = [word for option in ("BatchMode=yes", *alive) for word in ("-o", option)]

    def on(host: str, text: str) -> Command:
      return ("ssh", *flags, *self.options, host, text)

    names = [host.rpartition("@")[2] for host in self.hosts]
    everywhere = {
      "JAX_COORDINATOR_ADDRESS": f"{names[0]}:{self.port}",
      "JAX_NUM_PROCESSES": str(len(names)),
      "GEN_JAX_HOSTS": ",".join(names),
    }
    prepare, start, stop = [], [], []
    for i, host in enumerate(self.hosts):
      pid = f"launch-{i}.pid"  # names of one host may stand for several processes
      prepare.append(on(host, self.worker.make_room(pid)))
      prepare.append(_copy(f"{host}:{self.worker.directory}"))
      if setup := self.worker.prepare():
        prepare.append(on(host, setup))
      variables = {**everywhere, "JAX_PROCESS_ID": str(i)}
      start.append(on(host, self.worker.run(words, pid, **variables)))
      stop.append(on(host, self.worker.stop(pid)))
    return Plan(prepare, start, stop)


@dataclasses.dataclass(frozen=True)
class TpuVm:
  """A Cloud TPU slice; JAX finds its place in the TPU's own metadata.

  Attributes:
    name, zone: of the TPU VM.
    options: flags of `gcloud compute tpus tpu-vm create`; with them a slice that is
      not there, or was preempted, is created.
  """

  name: str
  zone: str
  worker: Worker
  options: Sequence[str] = ()

  def __post_init__(self):
    if not (self.name and self.zone):
      raise InputError("--on tpu-vm needs --name and --zone of the TPU VM")

  def plan(self, words: Sequence[str]) -> Plan:
    def gcloud(verb: str, *rest: str) -> Command:
      return ("gcloud", "compute", "tpus", "tpu-vm", verb, *rest, f"--zone={self.zone}")

    def on_all(text: str) -> Command:
      return gcloud("ssh", self.name, "--worker=all", f"--command={text}")

    archive, directory = f"{self.name}.tar.gz", shlex.quote(self.worker.directory)
    here = f"{tempfile.gettempdir()}/{archive}"
    excluded = (f"--exclude={name}" for name in _KEPT_OUT)
    unpack = f"{self.worker.make_room()} && tar -xzf {archive} -C {directory}"
    create = []
    if self.options:
      state = shlex.join(gcloud("describe", self.name, "--format=value(state)"))
      delete = shlex.join(gcloud("delete", self.name, "--quiet"))
      make = shlex.join(gcloud("create", self.name, *self.options))
      ready = f'[ "$({state} 2>/dev/null)" = READY ]'
      create = [("sh", "-c", f"{ready} || {{ {delete} 2>/dev/null; {make}; }}")]
    prepare = [
      *create,
      ("tar", "-czf", here, *excluded, "."),
      gcloud("scp", here, f"{self.name}:{archive}", "--worker=all"),
      on_all(unpack),
    ]
    if setup := self.worker.prepare():
      prepare.append(on_all(setup))
    start, stop = on_all(self.worker.run(words)), on_all(self.worker.stop())
    return Plan(prepare, [start], [stop])


@dataclasses.dataclass(frozen=True)
class Slurm:
  """A batch job, which Slurm requeues when it is preempted.

  Attributes:
    name: of the job; also of its log.
    num_hosts: nodes; one process each, unless `options` ask for more tasks.
    options: flags of `sbatch`.
  """

  name: str
  num_hosts: int
  worker: Worker
  options: Sequence[str] = ()

  def __post_init__(self):
    _positive(num_hosts=self.num_hosts)

  def plan(self, words: Sequence[str]) -> Plan:
    place, log = self.worker.directory, f"{self.worker.directory}/{self.name}.log"
    names = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)'
    program = self.worker.program(words)
    setup = f"{self.worker.setup} && " if self.worker.setup else ""
    text = f"{setup}GEN_JAX_HOSTS={names} srun --kill-on-bad-exit=1 {program}"
    submit = (
      *("sbatch", "--wait", "--requeue", "--open-mode=append"),
      *(f"--job-name={self.name}", f"--nodes={self.num_hosts}", "--ntasks-per-node=1"),
      *(f"--chdir={place}", f"--output={log}", *self.options, f"--wrap={text}"),
    )
    return Plan(
      prepare=[("mkdir", "-p", place), _copy(place)],
      start=[submit],
      stop=[("scancel", "--signal=TERM", f"--name={self.name}")],
      restarts=True,
      follow=("tail", "-n", "0", "-F", log),
    )


@dataclasses.dataclass(frozen=True)
class Sky:
  """A managed job of SkyPilot, on spot machines, which it replaces when they go.

  Attributes:
    name: of the job.
    num_hosts: nodes.
    resources: of each node: accelerators, infra, ... as in SkyPilot's YAML.
    bucket: URL of the object store that is mounted as /bucket; the --workdir in it
      outlives the machines.
  """

  name: str
  num_hosts: int
  worker: Worker
  resources: dict[str, str]
  bucket: str | None = None
  port: int = 8476

  def __post_init__(self):
    _positive(num_hosts=self.num_hosts, port=self.port)

  def task(self, words: Sequence[str]) -> str:
    """The YAML, of which JSON is a part."""
    first = '$(echo "$SKYPILOT_NODE_IPS" | head -n1)'
    run = (
      f'JAX_COORDINATOR_ADDRESS="{first}:{self.port}"'
      ' JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"'
      ' GEN_JAX_HOSTS="$(echo "$SKYPILOT_NODE_IPS" | paste -sd, -)"'
      f" {self.worker.program(words)}"
    )
    task = {
      "name": self.name,
      "workdir": ".",
      "num_nodes": self.num_hosts,
      "resources": {"use_spot": True, **self.resources},
      **({"setup": self.worker.setup} if self.worker.setup else {}),
      "run": run,
    }
    if self.bucket:
      mount = {"source": self.bucket, "mode": "MOUNT_CACHED"}
      task["file_mounts"] = {"/bucket": mount}
    return json.dumps(task, indent=2) + "\n"

  def plan(self, words: Sequence[str]) -> Plan:
    path = f"{tempfile.gettempdir()}/{self.name}.yaml"
    return Plan(
      files={path: self.task(words)},
      prepare=[],
      start=[("sky", "jobs", "launch", "--yes", f"--name={self.name}", path)],
      stop=[("sky", "jobs", "cancel", "--yes", f"--name={self.name}")],
      restarts=True,
    )
