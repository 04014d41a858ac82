"""Arms on Ray and Slurm: each ends once, whatever is killed."""

import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from gen_jax.sweeps import attempt, engine, ledger, remote, space
from gen_jax.system import files
from gen_jax.types import InputError
from tests.sweeps import test_engine

ROOT = pathlib.Path(__file__).parents[2]
ARMS = [
  space.Arm(f"k={i}", {"k": i, "seed": i % 2}, {"k": i}, files.value_sha256({"k": i}))
  for i in range(24)
]
# What a run is to its sweep: it goes on after its last row, one process at a time.
TRAIN = """
import json, pathlib, sys, time
sys.path.insert(0, {root!r})
from gen_jax.runs import lease
home, k = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with lease.hold(home):
  path = home / "metrics.jsonl"
  lines = path.read_text().split("\\n") if path.exists() else []
  first = sum(map(bool, lines)) + 1
  for step in range(first, 9):
    with path.open("a") as file:
      print(json.dumps({{"step": step, "validation/loss": k + 1 / step}}), file=file)
    time.sleep(0.05)
  if k == 5: sys.exit(65)
"""


def command(arm, workdir):
  code = TRAIN.format(root=str(ROOT))
  return [sys.executable, "-c", code, str(workdir), str(arm.overrides["k"])]


def results(home):
  """The ledger of what has ended, but for times."""
  about = {"question": "?", "config": "C", "metric": "validation/loss"}
  workdirs = {arm.sha256: engine.workdir(home, arm) for arm in ARMS}
  found = ledger.collect(about, ARMS, engine.states(home), workdirs)
  for arm in found["arms"]:
    del arm["secs"], arm["starts"]
  return found


def drive(home, place, jobs=24, arms=ARMS):
  return [
    (arm.name, state["status"])
    for arm, state in engine.run(arms, home, command, jobs, ledger.DONE, place)
  ]


def words(tmp_path, code):
  """Words that run a program as an attempt."""
  own = [tmp_path / "ended.json", tmp_path / "log.txt", 1]
  return [sys.executable, "-m", attempt.__name__, *map(str, own), sys.executable, code]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
  path = tmp_path_factory.mktemp("program") / "program.py"
  path.write_text(
    "import os, pathlib, sys, time\n"
    "home = pathlib.Path(__file__).parent\n"
    "with open(home / 'starts', 'a') as file: file.write('x')\n"
    "print(sorted(os.sched_getaffinity(0)), flush=True)\n"
    "time.sleep(1); sys.exit(7)\n"
  )
  return path


def test_of_two_attempts_one_runs_and_both_know(tmp_path, program):
  (program.parent / "starts").unlink(missing_ok=True)
  own = {**os.environ, "TMPDIR": str(tmp_path)}  # no other test takes its cores
  both = [
    subprocess.Popen(words(tmp_path, str(program)), cwd=ROOT, env=own) for _ in "ab"
  ]
  assert [one.wait(timeout=60) for one in both] == [0, 0]
  assert (program.parent / "starts").read_text() == "x"
  assert attempt.code(tmp_path / "ended.json") == 7
  lines = sorted((tmp_path / "log.txt").read_text().splitlines())
  assert len(json.loads(lines[0])) == 1  # of the cores that were free
  (waited,) = lines[1:]
  assert waited.startswith("waiting: another run")


def test_after_a_killed_attempt_another_one_runs(tmp_path, program):
  (program.parent / "starts").unlink(missing_ok=True)
  first = subprocess.Popen(words(tmp_path, str(program)), cwd=ROOT)
  while not (program.parent / "starts").exists():
    time.sleep(0.02)
  first.kill()
  first.wait()
  assert attempt.code(tmp_path / "ended.json") is None
  subprocess.run(words(tmp_path, str(program)), cwd=ROOT, check=True)
  assert (program.parent / "starts").read_text() == "xx"
  assert attempt.code(tmp_path / "ended.json") == 7


def test_an_attempt_that_is_told_to_stop_has_not_ended(tmp_path):
  path = tmp_path / "program.py"
  path.write_text(
    "import pathlib, signal, sys, time\n"
    "def stop(number, frame): print('saved', flush=True); sys.exit(75)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "print('started', flush=True); time.sleep(60)\n"
  )
  one = subprocess.Popen(words(tmp_path, str(path)), cwd=ROOT)
  log = tmp_path / "log.txt"
  while not log.exists() or "started" not in log.read_text():
    time.sleep(0.02)
  one.send_signal(signal.SIGUSR2)  # as Slurm before its limit
  assert one.wait(timeout=30) == 128 + signal.SIGUSR2
  assert log.read_text() == "started\nsaved\n"
  assert attempt.code(tmp_path / "ended.json") is None


def test_what_computes_is_passed_on_and_what_places_is_not():
  given = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "HOME": "/", "JAX_PROCESS_ID": "1"}
  assert attempt.passed({**given, "CUDA_VISIBLE_DEVICES": "1"}) == {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
  }


def test_options():
  assert remote.options(["a=1", "b=x=y", "c=0.5"]) == {"a": 1, "b": "x=y", "c": 0.5}
  for word in ("a", "=1", ""):
    with pytest.raises(InputError, match="must be KEY=VALUE"):
      remote.options([word])


@pytest.mark.parametrize(
  "address, says",
  [
    ("localhost", "must be HOST:PORT"),
    ("localhost:x", "must be HOST:PORT"),
    (":6379", "must be HOST:PORT"),
    ("127.0.0.1:1", "no Ray answers at --address 127.0.0.1:1"),
    ("127.0.0.1:99999", "no Ray answers"),
    ("no-such-host.invalid:6379", "no Ray answers"),
  ],
)
def test_a_dead_address_is_known_within_five_seconds(address, says):
  pytest.importorskip("ray")
  began = time.monotonic()
  with pytest.raises(InputError, match=says):
    remote.Ray(address, {})
  assert time.monotonic() - began < 5


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_answers_and_is_no_ray_is_known_as_fast(reply):
  """A port that takes connections and is silent, and that of a web server."""
  pytest.importorskip("ray")
  with socket.create_server(("127.0.0.1", 0)) as server:

    def answer():
      connection, _ = server.accept()
      connection.sendall(reply)
      time.sleep(4 if not reply else 0.5)
      connection.close()

    threading.Thread(target=answer, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(InputError, match="no Ray answers"):
      remote.Ray(f"127.0.0.1:{server.getsockname()[1]}", {})
    assert time.monotonic() - began < 5


def test_slurm_needs_slurm_and_known_options(tmp_path):
  pytest.importorskip("submitit")
  with pytest.raises(InputError, match="needs sbatch"):
    remote.Slurm(tmp_path, {})
  with pytest.raises(InputError, match="invalid literal for int"):
    remote.Slurm(tmp_path, {"cpus_per_task": "many"}, "local")
  with pytest.raises(InputError, match="Unknown argument 'partitoin'"):
    remote.Slurm(tmp_path, {"partitoin": "a"}, "local")


@pytest.mark.long
def test_jobs_of_submitit_end_once(tmp_path):
  pytest.importorskip("submitit")
  place = remote.Slurm(tmp_path, {"timeout_min": 5, "partition": "p"}, "local")
  body = test_engine.COUNT + "sys.exit({0: 0, 1: 65, 2: 2, 3: 75}[k])"
  ran = engine.run(
    test_engine.ARMS, tmp_path, test_engine.command(body), 4, ledger.DONE, place
  )
  assert {arm.name: state["status"] for arm, state in ran} == {
    "k=0": "finished",
    "k=1": "diverged",
    "k=2": "failed",
    "k=3": "interrupted",
  }
  assert test_engine.starts(tmp_path) == [1, 1, 3, 1]


DRIVER = """
import pathlib, sys; sys.path.insert(0, {root!r})
from gen_jax.sweeps import remote
from tests.sweeps import test_remote as t
place = remote.Ray({address!r}, {{"num_cpus": 1}}) if {address!r} else None
print("connected", flush=True)
for pair in t.drive(pathlib.Path({home!r}), place, {jobs}): print(*pair, flush=True)
"""


class Driver:
  """A process that runs all arms; on a Ray, or with an empty address here."""

  def __init__(self, home, address, jobs):
    self.home = home
    code = DRIVER.format(root=str(ROOT), address=address, home=str(home), jobs=jobs)
    self.words = [sys.executable, "-c", code]

  def __enter__(self):
    self.start()
    return self

  def start(self):
    out = subprocess.PIPE
    self.process = subprocess.Popen(self.words, stdout=out, text=True, cwd=ROOT)
    assert self.process.stdout.readline() == "connected\n"

  def until(self, num, secs):
    """Waits until so many arms have begun, and then for some seconds."""
    deadline = time.monotonic() + 120
    while len(list(self.home.glob("*/metrics.jsonl"))) < num:
      assert self.process.poll() is None and time.monotonic() < deadline
      time.sleep(0.02)
    time.sleep(secs)

  def kill(self):
    self.process.kill()
    self.process.wait()

  def __exit__(self, *error):
    if self.process.poll() is None:
      self.kill()


def check(home, alone):
  """Every arm has ended once, as if nothing had been killed."""
  assert results(home) == results(alone)
  assert len(results(home)["arms"]) == 24
  for arm in ARMS:
    path = engine.workdir(home, arm) / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in path.read_text().split("\n") if line]
    assert steps == list(range(1, 9)), arm.name


@pytest.mark.long
def test_here_whatever_is_killed_every_arm_ends_once(tmp_path):
  alone, home = tmp_path / "alone", tmp_path / "killed"
  assert len(drive(alone, None, jobs=4)) == 24
  with Driver(home, "", 3) as driver:
    for num in (5, 12):
      driver.until(num - 3, random.random())
      victim = random.choice(wait(lambda: _children(driver.process.pid)))
      with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(victim, signal.SIGKILL)
      driver.until(num, random.random())
      driver.kill()
      driver.start()
    assert driver.process.wait(timeout=300) == 0
  check(home, alone)


def _children(pid):
  """Processes that a process has started."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
        found.append(int(path.parent.name))
    except (OSError, IndexError):
      pass
  return found


def busy(node):
  """Workers of a node that run a command."""
  ((raylet,),) = [
    found for kind, found in node.all_processes.items() if kind == "raylet"
  ]
  return [pid for pid in _children(raylet.process.pid) if _children(pid)]


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_whatever_is_killed_every_arm_ends_once(tmp_path, seed, monkeypatch):
  """A worker, a node and the driver, at random moments; as on this machine alone."""
  pytest.importorskip("ray")
  from ray import cluster_utils

  monkeypatch.setenv("RAY_worker_niceness", "0")  # or they wait for all others
  draw = random.Random(seed)
  alone, home = tmp_path / "alone", tmp_path / "killed"
  assert len(drive(alone, None, jobs=4)) == 24
  cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
  try:
    node = cluster.add_node(num_cpus=2)
    with Driver(home, cluster.address, 24) as driver:
      driver.until(4, draw.random())
      victim = draw.choice(wait(lambda: busy(cluster.head_node) + busy(node)))
      with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(victim, signal.SIGKILL)
      driver.until(8, draw.random())
      driver.kill()
      time.sleep(draw.random())
      driver.start()
      driver.until(14, 0)
      cluster.remove_node(node, allow_graceful=False)
      assert driver.process.wait(timeout=300) == 0
  finally:
    cluster.shutdown()
  check(home, alone)


@pytest.mark.long
def test_a_task_that_no_node_has_room_for_is_said_to_wait():
  pytest.importorskip("ray")
  from ray import cluster_utils

  cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
  code = (
    "import sys; from gen_jax.sweeps import remote;"
    " print(remote.Ray(sys.argv[1], remote.options(sys.argv[2:])).room())"
  )
  try:
    for words, room, said in (
      (["num_cpus=2"], "1", ""),
      (["num_cpus=1", "num_gpus=1"], "2", "no node of Ray has 1 CPU, 1 GPU now"),
      (["num_cpus=3"], "1", "no node of Ray has 3 CPU now: the tasks wait"),
    ):
      given = [sys.executable, "-c", code, cluster.address, *words]
      out = subprocess.run(given, capture_output=True, text=True, cwd=ROOT, check=True)
      assert out.stdout.strip() == room and (said in out.stderr)
      assert bool(said) == ("no node" in out.stderr)
  finally:
    cluster.shutdown()


def wait(found):
  """What a function finds, when it is something."""
  deadline = time.monotonic() + 30
  while not (value := found()):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  return value
