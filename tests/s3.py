"""An S3 server on this machine, in a process of its own, and a line that can break."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import uuid
from unittest import mock

import fsspec
import pytest

from gen_jax.system import stores

ROOT = pathlib.Path(__file__).parents[1]
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


def free_port():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


@contextlib.contextmanager
def process(words, port, **environment):
  """A process that serves a port, from when it does."""
  found = subprocess.Popen(
    words,
    cwd=ROOT,
    env={**os.environ, **environment},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    for _ in range(600):
      with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        break
      time.sleep(0.05)
    yield
  finally:
    found.kill()
    found.wait()


@contextlib.contextmanager
def serving(**environment):
  """Yields the port of a server."""
  pytest.importorskip("moto")
  port = free_port()
  words = [sys.executable, "-c", "from moto.server import main; main()"]
  words += ["-H", "127.0.0.1", "-p", str(port)]
  with process(words, port, **environment):
    yield port


class Line:
  """A port that passes everything on to another one, until it is cut."""

  def __init__(self, to):
    self.port, self._to, self._open = free_port(), to, []
    self.received = 0  # bytes of answers
    self._listener = None
    self.mend()

  def mend(self):
    self._listener = socket.create_server(("127.0.0.1", self.port))
    threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

  def cut(self):
    """Connections break, and new ones are refused."""
    self._listener.shutdown(socket.SHUT_RDWR)
    self._listener.close()
    for one in self._open:
      with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
        one.close()
    self._open.clear()

  def _accept(self, listener):
    with contextlib.suppress(OSError):
      while True:
        here, _ = listener.accept()
        there = socket.create_connection(("127.0.0.1", self._to))
        self._open += [here, there]
        for pair in ((here, there, False), (there, here, True)):
          threading.Thread(target=self._pass, args=pair, daemon=True).start()

  def _pass(self, source, target, answers):
    with contextlib.suppress(OSError):
      while data := source.recv(2**16):
        self.received += len(data) if answers else 0
        target.sendall(data)
    with contextlib.suppress(OSError):
      target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="session")
def s3_port():
  with serving() as port:
    yield port


@contextlib.contextmanager
def at(port):
  """The environment of whoever uses the server at a port."""
  found = {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
  with mock.patch.dict(os.environ, found):
    yield


def make_bucket(scheme):
  """The address of a new bucket."""
  stores.serve(scheme)
  name = f"b{uuid.uuid4().hex[:12]}"
  fsspec.filesystem(scheme).mkdir(name)
  return f"{scheme}://{name}"


@pytest.fixture
def bucket(s3_port):
  """The address of a new bucket; s3fs and tensorstore find it."""
  with at(s3_port):
    yield make_bucket("s3")
