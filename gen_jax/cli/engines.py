"""What it takes to run a command on many hosts, by engines that exist already.

Each engine is a function from a `Job` to a `Plan`: the commands of ssh, gcloud, sbatch
or sky that copy the code, start, follow and stop it. Nothing runs here.
"""

import dataclasses
import json
import pathlib
import re
import shlex
from collections.abc import Sequence

from gen_jax.errors import InputError

Command = tuple[str, ...]
# Words that commands and shells take for nothing but names.
_HOST = re.compile(r"([A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_PLACE = re.compile(r"[\w./~][\w./~+@ -]*", re.ASCII)
_PROGRAM = re.compile(r"[\w./~][\w./~+-]*", re.ASCII)
_BUCKET = re.compile(r"[a-z0-9]+://[\w./-]+", re.ASCII)
_EXCLUDED = tuple(f"--exclude={n}" for n in (".git", ".venv", "runs", "__pycache__"))


@dataclasses.dataclass(frozen=True)
class Job:
  """What runs where; engines read what concerns them.

  Attributes:
    words: the gen-jax command.
    hosts: for ssh, separated by commas; the first is process 0.
    name: of the TPU VM or the job.
    zone: of the TPU VM.
    num_hosts: nodes of Slurm or SkyPilot.
    bucket: URL of the object store that SkyPilot mounts as /bucket.
    directory: of the code, in the hosts' home directory.
    python: the interpreter there, relative to `directory`.
    setup: shell command, run in `directory` before every start.
    port: of process 0, reachable from the others.
    option: words for the engine itself.
    scratch: private folder of this machine for what the commands need.

  Raises:
    InputError: a name, host or place that a command could take for a flag or a shell
      for more than a word; a number out of its range.
  """

  words: Sequence[str]
  hosts: str | None = None
  name: str = "gen-jax"
  zone: str | None = None
  num_hosts: int = 1
  bucket: str | None = None
  directory: str = "gen_jax_run"
  python: str = ".venv/bin/python"
  setup: str | None = None
  port: int = 8476
  option: Sequence[str] = ()
  scratch: str = "PRIVATE"

  def __post_init__(self):
    for flag, pattern, value in (
      ("--name", _NAME, self.name),
      ("--zone", _NAME, self.zone),
      ("--bucket", _BUCKET, self.bucket),
      ("--directory", _PLACE, self.directory),
      ("--python", _PROGRAM, self.python),
    ):
      if value is not None and not pattern.fullmatch(value):
        raise InputError(
          f"{flag} {value!r:.80} must be a plain name: it may not begin with - or hold"
          " what a shell reads as more than a word"
        )
    for flag, low, high, value in (
      ("--num_hosts", 1, 2**16, self.num_hosts),
      ("--port", 1, 2**16 - 1, self.port),
    ):
      if not low <= value <= high:
        raise InputError(f"{flag} {value} must be in [{low}, {high}]")

  @property
  def program(self) -> str:
    """Shell text of the command, in `directory`."""
    return f"{self.python} -m gen_jax.cli.main {shlex.join(self.words)}"

  def inside(self, text: str) -> str:
    """Shell text in `directory`."""
    return f"cd {shlex.quote(self.directory)} && {text}"

  def start(self, pid: str, **variables: str) -> str:
    """Shell text that becomes the program; its process id goes into the file `pid`."""
    env = "".join(f"{name}={shlex.quote(v)} " for name, v in variables.items())
    return self.inside(f"echo $$ > {pid} && exec env {env}{self.program}")

  def stop(self, pid: str) -> str:
    """Shell text that tells it to save and stop, even one that is about to start."""
    wait = f"for i in 1 2 3 4 5; do [ -s {pid} ] && break; sleep 1; done"
    return self.inside(f"{{ {wait}; kill -TERM $(cat {pid}); }}")

  def make_room(self, pid: str) -> str:
    """Shell text that makes the folder, and forgets the process before."""
    return f"mkdir -p {shlex.quote(self.directory)} && {self.inside(f'rm -f {pid}')}"


@dataclasses.dataclass(frozen=True)
class Plan:
  """Commands, and when they run.

  Attributes:
    prepare: one after another, before every start.
    start: all at once, each until its part of the run ends; process 0 is in the first.
    stop: each tells a part of the run to save and stop.
    follow: run next to them until they end.
    restarts: whether the engine itself starts again what was preempted.
    files: {path: text} that the commands need here.
  """

  prepare: Sequence[Command]
  start: Sequence[Command]
  stop: Sequence[Command]
  follow: Sequence[Command] = ()
  restarts: bool = False
  files: dict[str, str] = dataclasses.field(default_factory=dict)


def _copy(to: str) -> Command:
  """Copies the code; deletes nothing there."""
  return ("rsync", "--archive", "--compress", *_EXCLUDED, "--", "./", f"{to}/")


def ssh(job: Job) -> Plan:
  """One process on each of `job.hosts`, which share the --workdir."""
  hosts = (job.hosts or "").split(",")
  if not all(hosts):
    raise InputError("--on ssh needs --hosts: NAME,NAME,... the first is process 0")
  for host in hosts:
    if not _HOST.fullmatch(host):
      raise InputError(f"--hosts: {host!r:.80} must be NAME or USER@NAME")
  alive = ("ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=3")
  flags = [word for option in ("BatchMode=yes", *alive) for word in ("-o", option)]
  names = [host.rpartition("@")[2] for host in hosts]
  everywhere = {
    "JAX_COORDINATOR_ADDRESS": f"{names[0]}:{job.port}",
    "JAX_NUM_PROCESSES": str(len(names)),
    "GEN_JAX_HOSTS": ",".join(names),
  }
  prepare, start, stop = [], [], []
  for i, host in enumerate(hosts):
    to, pid = ("ssh", *flags, *job.option, "--", host), f"launch-{i}.pid"
    prepare += [(*to, job.make_room(pid)), _copy(f"{host}:{job.directory}")]
    prepare += [(*to, job.inside(job.setup))] if job.setup else []
    start.append((*to, job.start(pid, **everywhere, JAX_PROCESS_ID=str(i))))
    stop.append((*to, job.stop(pid)))
  return Plan(prepare, start, stop)


def tpu_vm(job: Job) -> Plan:
  """A Cloud TPU slice; JAX finds its place in the TPU's own metadata.

  With options, the flags of `gcloud compute tpus tpu-vm create`, a slice that is not
  there or was preempted is created.
  """
  if job.name == Job.name or not job.zone:
    raise InputError("--on tpu-vm needs --name and --zone of the TPU VM")

  def gcloud(verb: str, *rest: str) -> Command:
    return ("gcloud", "compute", "tpus", "tpu-vm", verb, *rest, f"--zone={job.zone}")

  def on_all(text: str) -> Command:
    return gcloud("ssh", job.name, "--worker=all", f"--command={text}")

  pid, archive = "launch.pid", f"{job.name}.tar.gz"
  here = f"{job.scratch}/{archive}"
  prepare = [
    ("tar", "-czf", here, *_EXCLUDED, "."),
    gcloud("scp", here, f"{job.name}:{archive}", "--worker=all"),
    on_all(f"{job.make_room(pid)} && tar -xzf ~/{archive}"),
  ]
  prepare += [on_all(job.inside(job.setup))] if job.setup else []
  if job.option:
    state = shlex.join(gcloud("describe", job.name, "--format=value(state)"))
    delete = shlex.join(gcloud("delete", job.name, "--quiet"))
    make = shlex.join(gcloud("create", job.name, *job.option))
    text = f'[ "$({state} 2>&-)" = READY ] || {{ {delete} 2>&-; {make}; }}'
    prepare = [("sh", "-c", text), *prepare]
  return Plan(prepare, [on_all(job.start(pid))], [on_all(job.stop(pid))])


def slurm(job: Job) -> Plan:
  """A batch job, one process a node unless the options of sbatch ask for more tasks.

  Slurm requeues it when it is preempted. The nodes share the home directory.
  """
  place = pathlib.Path.home() / job.directory
  log = f"{place}/{job.name}.log"
  names = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)'
  program = f"GEN_JAX_HOSTS={names} srun --kill-on-bad-exit=1 {job.program}"
  submit = (
    *("sbatch", "--wait", "--requeue", "--open-mode=append", f"--job-name={job.name}"),
    *(f"--nodes={job.num_hosts}", "--ntasks-per-node=1", f"--chdir={place}"),
    *(f"--output={log}", *job.option),
    f"--wrap={f'{job.setup} && ' if job.setup else ''}{program}",
  )
  return Plan(
    prepare=[("mkdir", "-p", "--", f"{place}"), _copy(f"{place}")],
    start=[submit],
    stop=[  # a signal reaches what runs, and nothing else what waits
      ("scancel", "--state=PENDING", f"--name={job.name}"),
      ("scancel", "--signal=TERM", f"--name={job.name}"),
    ],
    follow=[("tail", "-n", "0", "-F", log)],
    restarts=True,
  )


def sky(job: Job) -> Plan:
  """A managed job of SkyPilot on spot machines, which it replaces when they go.

  Options are KEY=VALUE of `resources` in its YAML; JSON is YAML.
  """
  pairs = [option.partition("=") for option in job.option]
  if not all(equals for _, equals, _ in pairs):
    raise InputError(f"--option {job.option} must be KEY=VALUE of sky's resources")
  first = '$(echo "$SKYPILOT_NODE_IPS" | head -n1)'
  mount = {"source": job.bucket, "mode": "MOUNT_CACHED"}
  task = {
    "name": job.name,
    "workdir": ".",
    "num_nodes": job.num_hosts,
    "resources": {"use_spot": True, **{key: value for key, _, value in pairs}},
    "file_mounts": {"/bucket": mount} if job.bucket else {},
    "setup": job.setup or "",
    "run": f'JAX_COORDINATOR_ADDRESS="{first}:{job.port}"'
    ' JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"'
    ' GEN_JAX_HOSTS="$(echo "$SKYPILOT_NODE_IPS" | paste -sd, -)"'
    f" {job.program}",
  }
  path = f"{job.scratch}/{job.name}.yaml"
  return Plan(
    prepare=[],
    start=[("sky", "jobs", "launch", "--yes", f"--name={job.name}", path)],
    stop=[("sky", "jobs", "cancel", "--yes", f"--name={job.name}")],
    restarts=True,
    files={path: json.dumps(task, indent=2) + "\n"},
  )
