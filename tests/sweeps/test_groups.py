"""Groups of arms as real processes: each arm is accounted for, whatever they do."""

import json
import signal
import subprocess
import sys
import time

import pytest

from gen_jax import build
from gen_jax.build import config_files
from gen_jax.sweeps import engine, groups, ledger, space

BASE = build.resolved(config_files.load("configs/lm/pydoc.py:smoke"))
RATE = "optimizer.learning_rate.peak"
SPACE = [{RATE: 0.001 * k, "seed": s} for k in (1, 2) for s in (0, 1)]
ARMS = space.arms(BASE, SPACE)
WIDER = space.arms(BASE, [{"task.model.width": 64, "seed": s} for s in (0, 1, 2)])

# What stands for `gen-jax together FILE`.
HEAD = """
import json, os, pathlib, sys, time
file = pathlib.Path(sys.argv[1])
runs = json.loads(file.read_text())["runs"]
def end(i, status):
  pathlib.Path(runs[i]["workdir"]).mkdir(exist_ok=True)
  found = {"status": status, "line": "", "secs": 1.0, "mode": "map"}
  path = file.with_name(f"{file.stem}-{i}.json")
  path.with_suffix(".x").write_text(json.dumps(found))
  path.with_suffix(".x").rename(path)
"""


def run(home, body, arms=ARMS, jobs=1):
  words = [sys.executable, "-c", HEAD + body]
  ended = groups.run(arms, home, words, jobs, None, ledger.DONE)
  return {arm.name: state["status"] for arm, state in ended}


def test_arms_of_one_structure_are_shared_among_jobs():
  sizes = [len(some) for some in groups.split([*ARMS, *WIDER], 2)]
  assert sorted(sizes) == [2, 2, 3]
  assert [len(some) for some in groups.split([*ARMS, WIDER[0]], 1)] == [4]
  assert groups.split(ARMS[:1], 2) == []


def test_runs_that_start_from_others_are_alone():
  config = {**BASE, "init_from": {"workdir": "elsewhere"}}
  arms = [space.Arm(f"{s}", {}, {**config, "seed": s}, f"{s}") for s in (0, 1)]
  assert groups.split(arms, 1) == []


def test_every_arm_ends_as_its_process_says(tmp_path):
  body = "for i, _ in enumerate(runs): end(i, ('finished', 'diverged')[i % 2])"
  found = run(tmp_path, body)
  assert list(found.values()) == ["finished", "diverged"] * 2
  assert run(tmp_path, body) == {}  # nothing again
  known = engine.states(tmp_path)
  assert {state["together"] for state in known.values()} == {"map"}


def test_what_a_group_leaves_is_run_alone_and_what_it_did_is_not(tmp_path):
  """Apart, failed, and the process killed before it said anything of the last."""
  body = (
    "end(0, 'finished'); end(1, 'apart'); end(2, 'failed'); os.kill(os.getpid(), 9)"
  )
  assert run(tmp_path, body) == {ARMS[0].name: "finished"}
  known = engine.states(tmp_path)
  statuses = [known[arm.sha256]["status"] for arm in ARMS]
  assert statuses == ["finished", "apart", "failed", "failed"]
  assert "exit code -9" in known[ARMS[3].sha256]["line"]

  def command(arm, workdir):
    workdir.mkdir(exist_ok=True)
    return [sys.executable, "-c", ""]

  left = [arm for arm, _ in engine.run(ARMS, tmp_path, command, 1, ledger.DONE)]
  assert left == ARMS[1:]


def test_a_group_that_is_told_to_stop_is_interrupted(tmp_path):
  body = "end(0, 'finished'); sys.exit(os.EX_TEMPFAIL)"
  assert list(run(tmp_path, body).values()) == ["finished"] + 3 * ["interrupted"]


def test_groups_get_chips_of_their_own(tmp_path, monkeypatch):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
  body = "print(os.environ['CUDA_VISIBLE_DEVICES'])\n"
  body += "for i, _ in enumerate(runs): end(i, 'finished')"
  assert len(run(tmp_path, body, jobs=2)) == 4
  logs = (tmp_path / "logs").glob("group-*.txt")
  assert sorted(log.read_text() for log in logs) == ["5\n", "7\n"]


@pytest.mark.long
def test_a_killed_group_goes_on_and_ends_as_its_arms_alone(tmp_path):
  folder, home = tmp_path / "experiment", tmp_path / "runs"
  folder.mkdir()
  steps = {"train.num_steps": 40, "train.save_every": 5}
  (folder / "sweep.py").write_text(
    '"""?"""\n'
    "from gen_jax.sweeps import fixed, product, values\n"
    'CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"\n'
    "def get_sweep():\n"
    f"  return product(values('{RATE}', (1e-3, 2e-3, 3e-3)), fixed({steps}))\n"
  )
  words = [sys.executable, "-m", "gen_jax.cli.main", "sweep", str(folder)]
  words += ["--to", str(home), "--together", "map"]
  for number, at, code in ((signal.SIGTERM, 10, 75), (signal.SIGKILL, 20, -9)):
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(home.glob(f"*/checkpoints/{at}")) and time.monotonic() < deadline:
      time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == code
  assert subprocess.run(words, stdout=subprocess.DEVNULL).returncode == 0
  known = engine.states(home)
  assert {(s["status"], s["together"]) for s in known.values()} == {("finished", "map")}
  train = [sys.executable, "-m", "gen_jax.cli.main", "train", "--workdir"]
  train += [str(tmp_path / "alone"), "--config", "configs/lm/pydoc.py:smoke"]
  overrides = (f"--config.{k}={v}" for k, v in {**steps, RATE: 2e-3}.items())
  subprocess.run([*train, *overrides], stdout=subprocess.DEVNULL, check=True)
  (arm,) = (path for path in home.glob("peak=0.002-*"))
  hashes = []
  for workdir in (arm, tmp_path / "alone"):
    inspect = [sys.executable, "-m", "gen_jax.cli.main", "inspect", "--json"]
    done = subprocess.run(
      [*inspect, "--workdir", str(workdir)], capture_output=True, check=True
    )
    hashes.append(json.loads(done.stdout.split(b"\n")[-2])["sha256"])
  assert hashes[0] == hashes[1]
