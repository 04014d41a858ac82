"""`gen-jax launch --on ENGINE ... -- train ...`: a run on many hosts, from here."""

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence

from gen_jax.cli import engines
from gen_jax.types import InputError, unknown

COMMANDS = ("train", "evaluate", "sample")  # those that run as several processes
_BAD_INPUT = 2  # the exit code of what starting again does not mend
_GRACE_SECS = 120.0  # to save and stop, before the connections are cut
ENGINES = ("ssh", "tpu-vm", "slurm", "sky")


def add_arguments(parser) -> None:
  """See `gen-jax launch --help`."""
  parser.usage = (
    "gen-jax launch --on ENGINE [flags] -- train --config ... --workdir ..."
  )
  add = parser.add_argument
  add("--on", required=True, metavar="ENGINE", help=", ".join(ENGINES))
  add("--hosts", metavar="A,B,...", help="ssh: the hosts; the first is process 0")
  add("--name", default="gen-jax", help="of the TPU VM or the job")
  add("--zone", help="tpu-vm: where it is")
  add("--num_hosts", type=int, default=1, help="slurm, sky: number of nodes")
  add("--bucket", help="sky: URL of the object store to mount as /bucket")
  add("--directory", default="gen_jax_run", help="for the code, in the hosts' home")
  add("--python", default=".venv/bin/python", help="on the hosts, in --directory")
  add("--setup", help="shell command, run there after copying, as in --setup 'make'")
  add("--port", type=int, default=8476, help="ssh, sky: of process 0")
  add(
    "--option",
    action="append",
    default=[],
    metavar="X",
    help="for the engine, may be repeated: a flag of ssh, tpu-vm create or sbatch; sky:"
    " KEY=VALUE of resources",
  )
  add("--retries", type=int, default=10, help="ssh, tpu-vm: starts after a failure")
  add("--dry_run", action="store_true", help="print what would run")


def run(args) -> dict:
  """Copies, starts, follows; starts again what was preempted."""
  if not args.words or args.words[0] not in COMMANDS:
    raise InputError(
      f"after -- comes the command, one of {', '.join(COMMANDS)}:"
      " gen-jax launch --on ssh --hosts a,b -- train --config ..."
    )
  plan = _engine(args).plan(args.words)
  if args.dry_run:
    return _show(plan)
  missing = sorted(name for name in plan.programs if shutil.which(name) is None)
  if missing:
    raise InputError(
      f"--on {args.on} needs {', '.join(missing)} on this machine; install it first"
    )
  for path, text in plan.files.items():
    pathlib.Path(path).write_text(text)
  retries = 0 if plan.restarts else args.retries
  for attempt in range(retries + 1):
    code, told = _attempt(plan)
    if told or code in (0, _BAD_INPUT) or attempt == retries:
      break
    secs = min(2**attempt, 300)
    print(f"launch: exit code {code}; starting again in {secs} s", flush=True)
    time.sleep(secs)
  if code and not told:
    raise InputError(f"the run failed (exit code {code}); the same command goes on")
  return {"reason": "interrupted" if told else "finished", "starts": attempt + 1}


def _engine(args) -> engines.Engine:
  worker = engines.Worker(args.directory, args.python, args.setup)
  if args.on == "ssh":
    hosts = (args.hosts or "").split(",")
    return engines.Ssh(hosts, worker, args.port, args.option)
  if args.on == "tpu-vm":
    return engines.TpuVm(args.name, args.zone, worker, args.option)
  if args.on == "slurm":
    place = str(pathlib.Path.home() / args.directory)  # which the nodes share
    worker = engines.Worker(place, args.python, args.setup)
    return engines.Slurm(args.name, args.num_hosts, worker, args.option)
  if args.on == "sky":
    pairs = [option.partition("=") for option in args.option]
    if not all(equals for _, equals, _ in pairs):
      raise InputError(f"--option {args.option} must be KEY=VALUE of sky's resources")
    resources = {key: value for key, _, value in pairs}
    return engines.Sky(
      args.name, args.num_hosts, worker, resources, args.bucket, args.port
    )
  raise unknown("engine (--on)", args.on, ENGINES)


def _show(plan: engines.Plan) -> dict:
  for path, text in plan.files.items():
    print(f"# {path}\n{text}")
  shown = {name: getattr(plan, name) for name in ("prepare", "start", "stop")}
  if plan.follow:
    shown["follow"] = [plan.follow]
  for name, commands in shown.items():
    print(f"# {name}{', all at once' if name == 'start' else ''}")
    for command in commands:
      print(shlex.join(command))
  return {**shown, "files": plan.files}


def _attempt(plan: engines.Plan) -> tuple[int, bool]:
  """Exit code of the part that failed first, and whether the user told all to stop.

  Either stops the others.
  """
  for command in plan.prepare:
    if code := subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
      print(f"launch: exit code {code} of {shlex.join(command)}", flush=True)
      return code, False
  told = []

  def handle(number, frame):
    del frame
    told.append(number)
    signal.signal(number, signal.SIG_DFL)
    print("\nlaunch: saving and stopping (again: at once)", flush=True)

  with contextlib.ExitStack() as stack:
    for number in (signal.SIGINT, signal.SIGTERM):
      stack.callback(signal.signal, number, signal.signal(number, handle))
    if plan.follow:
      stack.callback(_start(plan.follow).kill)
    parts = [_start(command) for command in plan.start]
    code = 0
    while not (told or code) and any(part.poll() is None for part in parts):
      time.sleep(0.2)
      code = next((part.returncode for part in parts if part.poll()), 0)
    if any(part.poll() is None for part in parts):
      _stop(plan, parts)
  return code, bool(told)


def _start(command: engines.Command) -> subprocess.Popen:
  """In a session of its own: Ctrl-C is for this program, which passes it on."""
  return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def _stop(plan: engines.Plan, parts: Sequence[subprocess.Popen]) -> None:
  telling = [_start(command) for command in plan.stop]
  deadline = time.monotonic() + _GRACE_SECS
  while any(p.poll() is None for p in (*parts, *telling)):
    if time.monotonic() > deadline:
      for process in (*parts, *telling):
        with contextlib.suppress(ProcessLookupError):
          os.killpg(process.pid, signal.SIGKILL)
    time.sleep(0.2)
