"""Where a process stands, and what it is told when others are missing or differ."""

import argparse
import concurrent.futures
import contextlib
import pathlib
import socket
import time

import pytest

from gen_jax import types
from gen_jax.cli import hosts, rendezvous
from gen_jax.runs import workdir


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


@pytest.fixture(autouse=True)
def token(monkeypatch):
  monkeypatch.setenv(rendezvous.TOKEN, "of this run")


def group(port, number, *reports, secs=10.0, workdir=pathlib.Path("/none")):
  """What each of the processes that start gets to hear: a roll or an error."""

  def call(index, facts):
    try:
      return hosts.assemble(
        hosts.Place(("localhost", port), number, index), facts, secs, workdir
      )
    except types.InputError as error:
      return str(error)

  with concurrent.futures.ThreadPoolExecutor(len(reports)) as pool:
    return list(pool.map(call, *zip(*reports, strict=True)))


def test_all_are_there_and_process_0_goes_first(port):
  rolls = group(port, 3, (2, {}), (1, {}), (0, {}))
  assert [r.process_id for r in rolls] == [2, 1, 0]
  assert all(len(r.hosts) == 3 for r in rolls)
  order = []

  def body(r):
    with r.main_process_first():
      time.sleep(0.1 * (r.process_id == 0))
      order.append(r.process_id)

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    list(pool.map(body, rolls))
  assert order[0] == 0 and sorted(order) == [0, 1, 2]
  for r in rolls:
    r.end()


def test_those_who_are_missing_are_named(port, monkeypatch):
  monkeypatch.setenv("GEN_JAX_HOSTS", "a,b,c,d")
  told = group(port, 4, (0, {}), (2, {}), secs=1.0)
  message = f"process 1 (b), 3 (d) of 4 did not come to localhost:{port} within 1 s"
  assert all(text.startswith(message) for text in told)


def test_process_0_is_missed_by_its_address(port):
  (text,) = group(port, 2, (1, {}), secs=0.5)
  assert text.startswith(f"process 0 of 2 did not answer at localhost:{port} within")


def connect(port):
  """A connection, as soon as somebody listens."""
  for _ in range(200):
    try:
      return socket.create_connection(("localhost", port), timeout=1.0)
    except OSError:
      time.sleep(0.02)
  raise TimeoutError


SIGNED = rendezvous.encode({"process": 1, "host": "x", "facts": {}}, "another", False)
STRANGERS = {
  "nothing": b"",
  "a browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
  "TLS": bytes([0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3]) + bytes(range(256)),
  "not UTF-8": b"\xff\xfe\n",
  "JSON": b'{"process": 1, "host": "x", "facts": {}}\n',
  "another run": SIGNED,
  "two lines": SIGNED * 2,
  "deep": b"[" * 100_000 + b"\n",
  "endless": b"x" * 4_000_000,
}


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_are_not_believed_and_hold_up_nobody(port, kind, ends):
  """Ten of a kind come first; some of them stay, as a half-open connection does."""
  stay = []

  def strangers():
    for _ in range(10):
      connection = connect(port)
      stay.append(connection)
      with contextlib.suppress(OSError):
        connection.sendall(STRANGERS[kind])
      if ends:
        connection.close()
    return group(port, 2, (1, {}))

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    begin, other = time.monotonic(), pool.submit(strangers)
    (first,) = group(port, 2, (0, {}))
    (second,) = other.result()
  assert time.monotonic() - begin < 4.0
  for r in (first, second):
    assert [len(r.hosts), r.process_id] == [2, first is not r]
    r.end()
  for connection in stay:
    connection.close()


def test_a_flood_is_held_off(port):
  """More connections than are kept; the oldest go, a process of the run is heard."""
  with (
    contextlib.ExitStack() as stack,
    concurrent.futures.ThreadPoolExecutor(1) as pool,
  ):
    first = pool.submit(group, port, 2, (0, {}))
    for _ in range(300):
      stack.enter_context(connect(port))
    told = group(port, 2, (1, {}))
    for r in (*told, *first.result()):
      assert len(r.hosts) == 2
      r.end()


def test_nobody_who_lacks_the_token_is_process_0(port):
  """One that sends back what it hears, and one that signs with another token."""
  wrong = {"hosts": ["x", "y"], "wrong": None}
  heard = []

  def impostor():
    with socket.create_server(("localhost", port)) as server:
      for i in range(2):
        connection, _ = server.accept()
        with connection:
          heard.append(connection.makefile("rb").readline())
          forged = rendezvous.encode(wrong, "another", True)
          connection.sendall((heard[0], forged)[i])

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pool.submit(impostor)
    (text,) = group(port, 2, (1, {}), secs=1.5)
  assert text.startswith("process 0 of 2 did not answer") and len(heard) == 2
  assert b"of this run" not in b"".join(heard)  # the token itself is not sent


def test_the_workdir_carries_the_token_for_as_long_as_it_is_needed(
  port, tmp_path, monkeypatch
):
  monkeypatch.delenv(rendezvous.TOKEN)
  workdir = tmp_path / "runs" / "new"
  with rendezvous.new_token(workdir) as token:
    assert rendezvous.find_token(workdir) == token and len(token) == 64
    (file,) = workdir.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
  assert not any(tmp_path.iterdir())  # what it made is taken away
  workdir.mkdir(parents=True)
  (workdir / rendezvous._FILE).write_text("of a run that was killed")
  rolls = group(port, 3, (2, {}), (0, {}), (1, {}), workdir=workdir)
  assert all(len(r.hosts) == 3 for r in rolls)
  assert not any(workdir.iterdir())
  for r in rolls:
    r.end()


def test_another_workdir_is_not_this_run(port, tmp_path, monkeypatch):
  monkeypatch.delenv(rendezvous.TOKEN)
  monkeypatch.setattr(hosts, "_SHARED_SECS", 0.3)

  def call(index):
    return group(port, 2, (index, {}), secs=1.0, workdir=tmp_path / str(index))[0]

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first, second = pool.map(call, range(2))
  assert first.startswith("process 1 of 2 did not come")
  assert "is not that of process 0: put it on a file system" in second
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  "host, bound",
  [
    ("127.0.0.1", {"127.0.0.1"}),
    ("localhost", {"127.0.0.1", "::1"}),
    ("192.0.2.1", {"::", "0.0.0.0"}),  # nobody's: another machine's, or behind a NAT
    ("no-such-host.invalid", {"::", "0.0.0.0"}),
  ],
)
def test_it_listens_where_the_others_come(port, host, bound):
  servers = rendezvous.listen(host, port)
  found = {server.getsockname()[0] for server in servers}
  assert found and found <= bound
  for server in servers:
    server.close()


def test_a_name_that_is_loopback_here_alone_is_not_where_others_come(port, monkeypatch):
  at = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", port))]
  monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: at)
  (server,) = rendezvous.listen("node1", port)
  with server:
    assert server.getsockname()[0] in ("::", "0.0.0.0")


def test_a_port_that_is_taken_is_named(port):
  with socket.create_server(("localhost", port)):
    (text,) = group(port, 2, (0, {}), secs=0.5)
  assert text.startswith(f"--coordinator: process 0 cannot listen on port {port}")


def test_another_config_is_refused_everywhere_and_names_the_key(port):
  told = group(port, 2, (0, {"config seed": "0"}), (1, {"config seed": "7"}))
  assert told[0] == told[1]
  assert "has another config seed: 7, process 0" in told[0]


def test_a_number_given_twice_is_refused(port):
  told = group(port, 3, (0, {}), (1, {}), (1, {}))
  assert told[0] == told[1] == told[2] and "process 1" in told[0]
  assert "is there twice" in told[0]


def test_a_workdir_that_is_not_shared_is_refused(tmp_path):
  workdir.write_json(tmp_path / "config.json", {"seed": 0})
  workdir._check_shared(tmp_path, {"seed": 0}, secs=0.0)
  with pytest.raises(types.InputError, match="file system that all hosts share"):
    workdir._check_shared(tmp_path / "other", {"seed": 0}, secs=0.0)
