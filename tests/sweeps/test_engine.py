"""Arms as real processes: each done once, whatever is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from gen_jax.sweeps import engine, space
from gen_jax.system import files

ARMS = [
  space.Arm(f"k={i}", {"k": i}, {"k": i}, files.value_sha256({"k": i}))
  for i in range(4)
]


def command(body):
  """A process that runs `body` with the arm's number `k` and its folder `home`."""

  def words(arm, workdir):
    head = f"import os, pathlib, sys, time; k = {arm.overrides['k']}\n"
    head += f"home = pathlib.Path({str(workdir)!r}); home.mkdir(exist_ok=True)\n"
    return [sys.executable, "-c", head + body]

  return words


COUNT = """
with open(home / "starts", "a") as file: file.write("x")
"""


def starts(home):
  counts = {}
  for arm in ARMS:
    path = engine.workdir(home, arm) / "starts"
    counts[arm.name] = len(path.read_text()) if path.exists() else 0
  return list(counts.values())


def run(home, body, jobs=2, arms=ARMS):
  return dict(
    (arm.name, state["status"])
    for arm, state in engine.run(
      arms, home, command(body), jobs, ("finished", "diverged")
    )
  )


def test_every_arm_runs_once_and_none_again(tmp_path):
  assert run(tmp_path, COUNT) == {arm.name: "finished" for arm in ARMS}
  assert run(tmp_path, COUNT) == {}
  assert starts(tmp_path) == [1, 1, 1, 1]


def test_more_arms_later_run_alone(tmp_path):
  assert set(run(tmp_path, COUNT, arms=ARMS[:2])) == {"k=0", "k=1"}
  assert set(run(tmp_path, COUNT)) == {"k=2", "k=3"}


def test_a_grown_sweep_finds_its_folders_under_new_names(tmp_path):
  run(tmp_path, COUNT, arms=ARMS[:1])
  other = space.Arm("seed=0,k=0", *list(vars(ARMS[0]).values())[1:])
  assert engine.workdir(tmp_path, other) == engine.workdir(tmp_path, ARMS[0])


def test_diverged_is_a_result_and_failed_is_tried_three_times(tmp_path):
  body = COUNT + "sys.exit({0: 0, 1: 65, 2: 2, 3: 75}[k])"
  found = run(tmp_path, body)
  assert found == {
    "k=0": "finished",
    "k=1": "diverged",
    "k=2": "failed",
    "k=3": "interrupted",
  }
  assert starts(tmp_path) == [1, 1, 3, 1]
  assert run(tmp_path, COUNT) == {"k=2": "finished", "k=3": "finished"}


def test_cores_are_shared(tmp_path):
  body = '(home / "cores").write_text(repr(sorted(os.sched_getaffinity(0))))'
  run(tmp_path, body)
  cores = {(engine.workdir(tmp_path, a) / "cores").read_text() for a in ARMS}
  all_cores = sorted(os.sched_getaffinity(0))
  shares = engine.shares(all_cores, 2)
  assert cores <= {repr(sorted(share)) for share in shares}
  assert {core for share in shares for core in share} == set(all_cores)


def test_a_killed_process_is_started_again(tmp_path):
  body = COUNT + (
    'first = len((home / "starts").read_text()) == 1\n'
    "if k == 1 and first: os.kill(os.getpid(), 9)"
  )
  assert set(run(tmp_path, body).values()) == {"finished"}
  assert starts(tmp_path) == [1, 2, 1, 1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_takes_its_arms_along_and_goes_on(tmp_path, number):
  """The arms die with it, and the next driver runs what is missing."""
  driver = f"""
import pathlib, sys
sys.path.insert(0, {os.getcwd()!r})
from tests.sweeps import test_engine as t
body = t.COUNT + "time.sleep(0 if k == 0 else 60)"
for arm, state in t.engine.run(
  t.ARMS, pathlib.Path({str(tmp_path)!r}), t.command(body), 2, ("finished",)
): print(arm.name, flush=True)
"""
  process = subprocess.Popen(
    [sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == "k=0\n"
  while sum(starts(tmp_path)) < 3:
    time.sleep(0.05)
  process.send_signal(number)
  process.wait(timeout=30)
  time.sleep(0.3)
  listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
  assert str(tmp_path) not in listed
  assert set(run(tmp_path, COUNT)) == {"k=1", "k=2", "k=3"}


def test_what_arms_print_is_kept_in_a_bucket_too(bucket):
  """A later start adds to it; its last line says why an arm failed."""
  home = files.path(bucket, "home") / "runs"

  def run(*words):
    body = [sys.executable, "-c", *words]
    (home / f"k-{ARMS[0].sha256[:8]}" / "made").write_bytes(b"")
    return list(engine.run(ARMS[:1], home, lambda *_: body, 1, ("finished",)))

  ((_, state),) = run("import sys; print('one'); sys.exit('why')")[-1:]
  assert (state["status"], state["line"]) == ("failed", "why")
  assert [state["status"] for _, state in run("print('two')")] == ["finished"]
  (log,) = (home / engine.LOGS).iterdir()
  assert sorted(log.read_text().split()) == ["one"] * 3 + ["two"] + ["why"] * 3
  assert engine.states(home)[ARMS[0].sha256]["starts"] == 4


def test_states_survive_and_damage_is_said(tmp_path):
  run(tmp_path, COUNT, arms=ARMS[:1])
  state = engine.states(tmp_path)[ARMS[0].sha256]
  assert (state["status"], state["starts"], state["line"]) == ("finished", 1, "")
  path = tmp_path / engine.NAME
  path.write_text(path.read_text().replace("finished", "diverged"))
  with pytest.raises(ValueError, match="damaged"):
    engine.states(tmp_path)
  for damaged in ("{}", '{"arms": []}', '{"arms": {"a": null}}', '{"arms": {"a": {}}}'):
    path.write_text(damaged)
    with pytest.raises(ValueError, match="is damaged; restore it, or delete it"):
      engine.states(tmp_path)


def test_an_arm_whose_folder_is_gone_runs_again(tmp_path):
  run(tmp_path, COUNT, arms=ARMS[:2])
  shutil.rmtree(engine.workdir(tmp_path, ARMS[0]))
  assert [*engine.states(tmp_path)] == [ARMS[1].sha256]
  assert run(tmp_path, COUNT, arms=ARMS[:2]) == {"k=0": "finished"}
