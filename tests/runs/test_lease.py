"""One run at work in a workdir: a second one is refused, that of a dead one goes on."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from gen_jax import types
from gen_jax.runs import lease
from gen_jax.system import files

ROOT = pathlib.Path(__file__).parents[2]
HOLDER = """
import sys, time
from gen_jax.runs import lease
from gen_jax.system import files
with lease.hold(files.path(sys.argv[1], "x")):
  print("held", flush=True)
  time.sleep(float(sys.argv[2]))
"""


def holder(folder, secs=60.0):
  """A process that holds the lease of `folder`."""
  words = [sys.executable, "-c", HOLDER, str(folder), str(secs)]
  process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  return process


@pytest.fixture(params=["disk", "s3", "gs"])
def root(request, tmp_path):
  """A folder of a disk, or of a bucket."""
  if request.param == "disk":
    return tmp_path
  bucket = request.getfixturevalue({"s3": "bucket", "gs": "gs_bucket"}[request.param])
  return files.path(bucket, "x") / "folder"


def record(folder):
  return lease._read(folder / lease.NAME)


def names(folder):
  return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def elsewhere(folder, **changes):
  """A lease as another host has written it."""
  folder.mkdir(exist_ok=True)
  for path in folder.glob(f"{lease.NAME}.*"):
    path.unlink()
  found = {"host": "other", "pid": 7, "machine": "m", "id": "x", "count": 0, **changes}
  (folder / lease.NAME).write_text(json.dumps(found))
  return found


def test_a_second_run_is_refused_and_the_first_goes_on(root):
  with lease.hold(root / "a" / "run"):
    with pytest.raises(types.InputError, match=f"process {os.getpid()}.*is at work"):
      with lease.hold(root / "a" / "run"):
        raise AssertionError
    assert record(root / "a" / "run")["pid"] == os.getpid()
  assert not (root / "a").exists()  # nothing was written but the lease


def test_what_was_written_stays_and_the_lease_goes(root):
  with lease.hold(root / "run"):
    (root / "run" / "mine").touch()
  assert names(root / "run") == ["mine"]


def test_a_killed_holder_is_followed_at_once_a_living_one_never(root):
  process = holder(root / "run")
  with pytest.raises(types.InputError, match=f"process {process.pid}"):
    with lease.hold(root / "run"):
      raise AssertionError
  process.kill()
  process.wait()
  began = time.monotonic()
  with lease.hold(root / "run"):
    assert record(root / "run")["pid"] == os.getpid()
    assert names(root / "run") == [lease.NAME]
  assert time.monotonic() - began < 2.0


def test_another_process_with_the_same_number_is_not_the_holder(root):
  found = elsewhere(root, machine=lease._machine(), pid=os.getpid(), began="1")
  assert not lease._lives(found)
  with lease.hold(root):
    assert record(root)["id"] != "x"


# Of another host, or unreadable; in a bucket one of each.
LEFT = [("disk", x) for x in (None, "", "{", "[1]", "\xff", '{"count": 3}')]
LEFT += [(place, x) for place in ("s3", "gs") for x in (None, "{")]


@pytest.mark.parametrize("root, content", LEFT, indirect=["root"])
def test_a_still_counter_is_followed_after_a_while(root, monkeypatch, content):
  """It is watched, then taken over."""
  monkeypatch.setattr(lease, "_STALE_SECS", 0.5)
  elsewhere(root)
  if content is not None:
    (root / lease.NAME).write_bytes(content.encode("latin-1"))
  began = time.monotonic()
  with lease.hold(root):
    assert time.monotonic() - began > 0.5
    assert record(root)["pid"] == os.getpid()


def test_a_moving_counter_is_not_followed(root, monkeypatch):
  monkeypatch.setattr(lease, "_STALE_SECS", 1.5)
  elsewhere(root)
  timer = threading.Timer(0.7, elsewhere, [root], {"count": 1})
  timer.start()
  with pytest.raises(types.InputError, match="host other, process 7"):
    with lease.hold(root):
      raise AssertionError
  timer.join()


@pytest.mark.parametrize(
  "root",
  ["disk", *(pytest.param(x, marks=pytest.mark.long) for x in ("s3", "gs"))],
  indirect=True,
)
def test_of_many_that_take_over_one_does(root, monkeypatch):
  """Each saw the same dead holder; whoever comes late sees the new one."""
  monkeypatch.setattr(lease, "_lives", lambda found: found["id"] != "x")
  for _ in range(20 if files.is_local(root) else 3):
    elsewhere(root, machine=lease._machine())
    entered, ready = [], threading.Barrier(8)

    def enter(i, entered=entered, ready=ready):
      ready.wait()
      try:
        with lease.hold(root):
          entered.append(i)
          time.sleep(0.3 if files.is_local(root) else 3.0)
      except types.InputError:
        pass

    threads = [threading.Thread(target=enter, args=[i]) for i in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert len(entered) == 1
    assert names(root) == []


STANDS = """
from gen_jax.runs import lease
lease._RENEW_SECS = 0.1
""" + HOLDER.replace("time.sleep", "print('over') or time.sleep")


def test_a_holder_that_finds_another_lease_ends(root):
  words = [sys.executable, "-c", STANDS, str(root), "30"]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  with subprocess.Popen(words, cwd=ROOT, **pipes) as process:
    assert process.stdout.readline() == "held\n"
    before = record(root)["count"]
    time.sleep(0.5)
    assert record(root)["count"] > before
    (root / lease.NAME).unlink()  # by hand: it is made again
    time.sleep(0.5)
    assert record(root)["pid"] == process.pid
    content = json.dumps({"host": "other", "pid": 7, "id": "y"})
    files.write(root / lease.NAME, content)
    assert process.wait(timeout=10) == 2
    (line,) = process.stderr.read().splitlines()
  assert "host other, process 7" in line and "this one ends" in line
  assert record(root)["id"] == "y"


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(types.InputError, match="cannot write to"):
    with lease.hold(tmp_path / "file"):
      raise AssertionError
