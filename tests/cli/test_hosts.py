"""Where a process stands, and what it is told when others are missing or differ."""

import argparse
import concurrent.futures
import socket
import time

import pytest

from gen_jax import types
from gen_jax.cli import hosts, workdir


def place(environ, *words):
  parser = argparse.ArgumentParser()
  hosts.add_arguments(parser)
  return hosts.find_place(parser.parse_args(words), environ)


FLAGS = ("--coordinator=[::1]:8476", "--num_processes=4", "--process_id=3")
SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NODELIST": "node[07-08],big1",
  "SLURM_NTASKS": "3",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "1",
}


def test_a_place_comes_from_flags_before_the_environment():
  environ = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"}
  assert place(environ, "--process_id=1") == hosts.Place(("a", 1), 2, 1)
  assert place(environ, *FLAGS) == hosts.Place(("::1", 8476), 4, 3)


def test_a_place_comes_from_slurm(monkeypatch):
  for name, value in SLURM.items():  # JAX's own detection reads os.environ
    monkeypatch.setenv(name, value)
  assert place({}) == hosts.Place(("node07", 65535 - 4096 + 2), 3, 2, [1])
  assert place({"JAX_LOCAL_DEVICE_IDS": "0,1"}).devices is None


def test_a_place_comes_from_open_mpi_4_and_in_part_from_5(monkeypatch):
  new = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
  with pytest.raises(types.InputError, match="--coordinator not given"):
    place(new)
  assert place(new, "--coordinator=a:1") == hosts.Place(("a", 1), 2, 1)
  old = {"OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.0.0.7:34911"}
  for name, value in {**new, **old, "OMPI_COMM_WORLD_LOCAL_RANK": "1"}.items():
    monkeypatch.setenv(name, value)
  assert place(new) == hosts.Place(("10.0.0.7", 65535 - 4096 + 3), 2, 1, [1])


def test_without_flags_environment_and_cluster_a_run_is_its_own(monkeypatch):
  assert place({}) is None
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  assert place({}, "--num_processes=1") is None


@pytest.mark.parametrize(
  "words, message",
  [
    (FLAGS[:2], "--process_id not given; --num_processes=1"),
    ((*FLAGS, "--process_id=4"), r"--process_id 4 must be in \[0, --num_processes 4\)"),
    ((*FLAGS, "--coordinator=node1"), "'node1' must be HOST:PORT"),
    ((*FLAGS, "--coordinator=node1:70000"), "must be HOST:PORT"),
    ((*FLAGS, "--host_timeout=0"), "--host_timeout 0.0 must be more than 0"),
  ],
)
def test_a_place_that_cannot_be_is_refused(words, message):
  with pytest.raises(types.InputError, match=message):
    place({}, *words)


def test_a_number_in_the_environment_must_be_one():
  with pytest.raises(types.InputError, match="JAX_NUM_PROCESSES='two'"):
    place({"JAX_NUM_PROCESSES": "two"})


@pytest.fixture
def port():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def roll(port, number, *reports, secs=10.0):
  """What each of the processes that start gets to hear: a roll or an error."""

  def call(index, facts):
    try:
      return hosts.call_roll(
        hosts.Place(("localhost", port), number, index), facts, secs
      )
    except types.InputError as error:
      return str(error)

  with concurrent.futures.ThreadPoolExecutor(len(reports)) as pool:
    return list(pool.map(call, *zip(*reports, strict=True)))


def test_all_are_there_and_process_0_goes_first(port):
  rolls = roll(port, 3, (2, {}), (1, {}), (0, {}))
  assert [r.process_id for r in rolls] == [2, 1, 0]
  assert all(len(r.hosts) == 3 for r in rolls)
  order = []

  def body(r):
    with r.first():
      time.sleep(0.1 * (r.process_id == 0))
      order.append(r.process_id)

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    list(pool.map(body, rolls))
  assert order[0] == 0 and sorted(order) == [0, 1, 2]
  for r in rolls:
    r.end()


def test_those_who_are_missing_are_named(port, monkeypatch):
  monkeypatch.setenv("GEN_JAX_HOSTS", "a,b,c,d")
  told = roll(port, 4, (0, {}), (2, {}), secs=1.0)
  message = f"process 1 (b), 3 (d) of 4 did not come to localhost:{port} within 1 s"
  assert all(text.startswith(message) for text in told)


def test_process_0_is_missed_by_its_address(port):
  (text,) = roll(port, 2, (1, {}), secs=0.5)
  assert text.startswith(f"process 0 of 2 did not answer at localhost:{port} within")


def test_strangers_do_not_disturb(port):
  def stranger():
    for _ in range(50):
      try:
        with socket.create_connection(("localhost", port), timeout=1.0) as connection:
          connection.sendall(b"GET / HTTP/1.1\r\n")
          return
      except OSError:
        time.sleep(0.02)

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pool.submit(stranger)
    told = roll(port, 2, (0, {}), secs=0.7)
  assert told[0].startswith("process 1 of 2 did not come")


def test_a_port_that_is_taken_is_named(port):
  with socket.create_server(("localhost", port)):
    (text,) = roll(port, 2, (0, {}), secs=0.5)
  assert text.startswith(f"--coordinator: process 0 cannot listen on port {port}")


def test_another_config_is_refused_everywhere_and_names_the_key(port):
  told = roll(port, 2, (0, {"config seed": "0"}), (1, {"config seed": "7"}))
  assert told[0] == told[1]
  assert "has another config seed: 7, process 0" in told[0]


def test_a_number_given_twice_is_refused(port):
  told = roll(port, 3, (0, {}), (1, {}), (1, {}))
  assert told[0] == told[1] == told[2] and "process 1" in told[0]
  assert "is there twice" in told[0]


def test_a_workdir_that_is_not_shared_is_refused(tmp_path):
  workdir.write_json(tmp_path / "config.json", {"seed": 0})
  workdir._check_shared(tmp_path, {"seed": 0}, secs=0.0)
  with pytest.raises(types.InputError, match="file system that all hosts share"):
    workdir._check_shared(tmp_path / "other", {"seed": 0}, secs=0.0)
