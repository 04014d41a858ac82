"""`gen-jax launch --on ENGINE ... -- train ...`: a run on many hosts, from here."""

import contextlib
import dataclasses
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence

from gen_jax.cli import engines
from gen_jax.errors import InputError, unknown
from gen_jax.system import files

COMMANDS = ("train", "evaluate", "sample")  # those that run as several processes
ENGINES = {
  "ssh": engines.ssh,
  "tpu-vm": engines.tpu_vm,
  "slurm": engines.slurm,
  "sky": engines.sky,
}
_TRIED = ("ssh",)  # with real processes, on one machine
_BAD_INPUT = 2  # the exit code of what starting again does not mend
_MAX_RETRIES = 1000
_GRACE_SECS = 120.0  # to save and stop, before the connections are cut


def add_arguments(parser) -> None:
  """See `gen-jax launch --help`."""
  parser.usage = (
    "gen-jax launch --on ENGINE [flags] -- train --config ... --workdir ..."
  )
  add, job = parser.add_argument, engines.Job
  untried = ", ".join(name for name in ENGINES if name not in _TRIED)
  add(
    "--on",
    required=True,
    metavar="ENGINE",
    help=f"{', '.join(_TRIED)}; {untried} were written from their documentation and"
    " never run",
  )
  add("--hosts", metavar="A,B,...", help="ssh: the hosts; the first is process 0")
  add("--name", default=job.name, help="name of the TPU VM or the job")
  add("--zone", help="tpu-vm: its zone")
  add("--num_hosts", type=int, default=1, help="slurm, sky: number of nodes")
  add("--bucket", help="sky: URL of the object store to mount as /bucket")
  add("--directory", default=job.directory, help="code folder in the hosts' home")
  add("--python", default=job.python, help="interpreter, relative to --directory")
  add("--setup", help="shell command to run there before every start")
  add("--port", type=int, default=job.port, help="ssh, sky: port of process 0")
  add("--retries", type=int, default=10, help="ssh, tpu-vm: restarts after a failure")
  add("--dry_run", action="store_true", help="only print what would run")
  what = "a flag of ssh, of tpu-vm create or of sbatch; sky: KEY=VALUE of resources"
  add("--option", action="append", default=[], help=f"may be repeated: {what}")


def run(args) -> dict:
  """Copies, starts, follows; starts again what was preempted."""
  if not args.words or args.words[0] not in COMMANDS:
    raise InputError(
      f"after -- comes the command, one of {', '.join(COMMANDS)}:"
      " gen-jax launch --on ssh --hosts a,b -- train --config ..."
    )
  if args.on not in ENGINES:
    raise unknown("engine (--on)", args.on, ENGINES)
  if not 0 <= args.retries <= _MAX_RETRIES:
    raise InputError(f"--retries {args.retries} must be in [0, {_MAX_RETRIES}]")
  fields = [field.name for field in dataclasses.fields(engines.Job)]
  given = {name: getattr(args, name) for name in fields if name != "scratch"}
  if args.dry_run:
    return show(ENGINES[args.on](engines.Job(**given)))
  with tempfile.TemporaryDirectory(prefix="gen-jax-") as scratch:  # for this user alone
    return _run(args, ENGINES[args.on](engines.Job(**given, scratch=scratch)))


def _run(args, plan: engines.Plan) -> dict:
  """Starts, and again what failed, until it has ended or the user stops it."""
  programs = {command[0] for command in (*plan.prepare, *plan.start)}
  missing = sorted(name for name in programs if shutil.which(name) is None)
  if missing:
    raise InputError(
      f"--on {args.on} needs {', '.join(missing)} on this machine; install it first"
    )
  for path, text in plan.files.items():
    files.write(pathlib.Path(path), text)
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


def show(plan: engines.Plan) -> dict:
  """Prints the commands of a plan and its files; returns them."""
  shown = dataclasses.asdict(plan)
  for path, text in plan.files.items():
    print(f"# {path}\n{text}")
  for name in ("prepare", "start", "follow", "stop"):
    print(f"# {name}{', all at once' if name == 'start' else ''}")
    print("".join(f"{shlex.join(command)}\n" for command in shown[name]), end="")
  return shown


def _attempt(plan: engines.Plan) -> tuple[int, bool]:
  """Exit code of the part that failed first, and whether the user told all to stop.

  Either stops the others.
  """
  for command in plan.prepare:
    if code := subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
      print(f"launch: exit code {code} of {shlex.join(command)}", flush=True)
      return code, False
  code, told = 0, []

  def handle(number, frame):
    del frame
    told.append(number)
    signal.signal(number, signal.SIG_DFL)
    print("\nlaunch: saving and stopping (again: at once)", flush=True)

  with contextlib.ExitStack() as stack:
    for number in (signal.SIGINT, signal.SIGTERM):
      stack.callback(signal.signal, number, signal.signal(number, handle))
    for follower in map(_start, plan.follow):
      stack.callback(follower.kill)
    parts = [_start(command) for command in plan.start]
    while not (told or code) and any(part.poll() is None for part in parts):
      time.sleep(0.2)
      code = next((part.returncode for part in parts if part.poll()), 0)
    if any(part.poll() is None for part in parts):
      _end([*parts, *map(_start, plan.stop)])
  return code, bool(told)


def _start(command: engines.Command) -> subprocess.Popen:
  """In a session of its own: Ctrl-C is for this program, which passes it on."""
  return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def _end(processes: Sequence[subprocess.Popen]) -> None:
  """Waits for them, then no longer."""
  deadline = time.monotonic() + _GRACE_SECS
  while any(process.poll() is None for process in processes):
    if time.monotonic() > deadline:
      for process in processes:
        with contextlib.suppress(ProcessLookupError):
          os.killpg(process.pid, signal.SIGKILL)
    time.sleep(0.2)
