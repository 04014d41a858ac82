"""How the processes of a run find process 0, and believe nobody else.

Each line on the wire is JSON after its HMAC-SHA256, whose key is the run's token; a
line that was not signed with it is not read further. The token is GEN_JAX_TOKEN, or one
that process 0 leaves in the workdir until all are there: to know it is to be able to
read what the run writes. It never goes over the network.

    i -> 0    process, host, facts: config, code, versions
    0 -> i    the hosts, or what is wrong

What else comes to the port (a scanner, a browser, a connection that says nothing, or
never ends) costs one buffer for a few seconds and holds up nobody.
"""

import contextlib
import errno
import hashlib
import hmac
import ipaddress
import json
import os
import pathlib
import secrets
import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gen_jax.errors import InputError
from gen_jax.system import exclusive

TOKEN = "GEN_JAX_TOKEN"
_FILE = ".rendezvous"  # in the workdir, while process 0 waits for the others
_MAX_LINE = 2**20
_MAX_STRANGERS = 128
_STRANGER_SECS = 5.0  # to say a whole line
# A silent host is gone after 20 + 3 x 10 s.
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


def _sign(payload: bytes, token: str, sender: bytes) -> bytes:
  """Args: sender: b'0' for process 0: a line that is sent back is not an answer."""
  return hmac.new(token.encode(), sender + payload, hashlib.sha256).hexdigest().encode()


def encode(message: Mapping[str, Any], token: str, is_first: bool) -> bytes:
  """The signed line of a message; `is_first`: from process 0."""
  payload = json.dumps(message).encode()
  return _sign(payload, token, b"0" if is_first else b"i") + b" " + payload + b"\n"


def decode(line: bytes, token: str, is_first: bool) -> dict[str, Any] | None:
  """The message of a line that `encode` made with the same token; None of another."""
  signature, _, payload = line.rstrip(b"\n").partition(b" ")
  wanted = _sign(payload, token, b"0" if is_first else b"i")
  if not line.endswith(b"\n") or not hmac.compare_digest(signature, wanted):
    return None
  with contextlib.suppress(ValueError, RecursionError):
    message = json.loads(payload)
    return message if isinstance(message, dict) else None
  return None


class Link:
  """A connection that carries signed objects; None is read at its end.

  Attributes:
    socket: the connection.
  """

  def __init__(
    self, connection: socket.socket, secs: float, token: str, is_first: bool
  ):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
      if hasattr(socket, name):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    connection.settimeout(secs)
    self.socket, self._lines = connection, connection.makefile("rb")
    self._token, self._is_first = token, is_first

  def read(self) -> dict[str, Any] | None:
    """The next message; None: the connection broke, or somebody else speaks."""
    with contextlib.suppress(OSError, ValueError):
      line = self._lines.readline(_MAX_LINE)
      return decode(line, self._token, not self._is_first)
    return None

  def send(self, message: dict[str, Any]) -> None:
    """Sends a message; whoever is gone, the reader notices."""
    with contextlib.suppress(OSError):
      self.socket.sendall(encode(message, self._token, self._is_first))


@contextlib.contextmanager
def new_token(
  workdir: pathlib.Path, environ: Mapping[str, str] = os.environ
) -> Iterator[str]:
  """Process 0's token, which the others find in the workdir as long as the body runs.

  Nothing is left there afterwards.

  Raises:
    InputError: the workdir cannot be written to.
  """
  if given := environ.get(TOKEN):
    yield given
    return
  new = [path for path in (workdir, *workdir.parents) if not path.exists()]
  path, token = workdir / _FILE, secrets.token_hex(32)
  partial = path.with_name(f"{_FILE}.{token[:8]}")
  try:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      exclusive.write_private(partial, token)
      partial.replace(path)
    except OSError as error:
      raise InputError(
        f"cannot write to --workdir {workdir}: {error.strerror or error}; take another"
        " one"
      ) from None
    yield token
  finally:
    for made in (partial, path):
      with contextlib.suppress(OSError):
        made.unlink()
    for made in new:
      with contextlib.suppress(OSError):  # a folder with something else in it stays
        made.rmdir()


def find_token(
  workdir: pathlib.Path, environ: Mapping[str, str] = os.environ
) -> str | None:
  """The token of the run in a workdir, as the other processes see it; None: not yet."""
  if given := environ.get(TOKEN):
    return given
  with contextlib.suppress(OSError, ValueError):
    list(workdir.iterdir())  # network file systems look again
    return (workdir / _FILE).read_text()[:256] or None
  return None


def listen(host: str, port: int) -> list[socket.socket]:
  """Sockets at the coordinator's address; at all, where that is not this machine's.

  A name that means this machine only here (127.0.1.1, say) is not where others come.

  Raises:
    InputError: the port is taken.
  """
  with contextlib.suppress(OSError):
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys((family, at) for family, *_, at in found))
    if (
      host == "localhost" or _is_address(host) or not any(map(_is_loopback, addresses))
    ):
      if own := _bind(addresses, port):
        return own
  if socket.has_dualstack_ipv6():
    return _bind([(socket.AF_INET6, ("", port))], port, dualstack_ipv6=True)
  return _bind([(socket.AF_INET, ("", port))], port)


def _is_address(host: str) -> bool:
  try:
    return bool(ipaddress.ip_address(host))
  except ValueError:
    return False


def _is_loopback(address: tuple[int, tuple]) -> bool:
  return ipaddress.ip_address(address[1][0].partition("%")[0]).is_loopback


def _bind(addresses, port: int, **how) -> list[socket.socket]:
  """Those of the addresses that are this machine's.

  Raises:
    InputError: the port is taken.
  """
  own = []
  for family, address in addresses:
    try:
      own.append(socket.create_server(address, family=family, backlog=256, **how))
    except OSError as error:
      if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        continue
      for server in own:
        server.close()
      raise InputError(
        f"--coordinator: process 0 cannot listen on port {port} ({error.strerror});"
        " take another one"
      ) from None
  return own


def address(host: str, port: int) -> str:
  """HOST:PORT, of IPv6 in brackets."""
  return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def own_address(host: str, port: int) -> str:
  """The first address at which `listen` listens, as JAX's coordinator wants it."""
  servers = listen(host, port)
  found = address(*servers[0].getsockname()[:2])
  for server in servers:
    server.close()
  return found


def arrivals(
  servers: list[socket.socket], token: str, deadline: float
) -> Iterator[tuple[dict[str, Any], socket.socket]]:
  """Yields (report, connection) of each process of the run that comes before deadline.

  Strangers' connections are closed: at once when they say something else, after
  some seconds when they say nothing. In the end the servers are closed.
  """
  waiting: dict[socket.socket, tuple[float, bytearray]] = {}  # oldest first

  def close(connection):
    ready.unregister(connection)
    del waiting[connection]
    connection.close()

  with selectors.DefaultSelector() as ready, contextlib.ExitStack() as stack:
    stack.callback(lambda: [connection.close() for connection in waiting])
    for server in servers:
      stack.enter_context(server).setblocking(False)
      ready.register(server, selectors.EVENT_READ)
    while (left := deadline - time.monotonic()) > 0:
      for event, _ in ready.select(min(left, 1.0)):
        if event.fileobj in servers:
          with contextlib.suppress(OSError):
            connection, _ = event.fileobj.accept()
            connection.setblocking(False)
            waiting[connection] = (time.monotonic(), bytearray())
            ready.register(connection, selectors.EVENT_READ)
          if len(waiting) > _MAX_STRANGERS:
            close(next(iter(waiting)))
        elif (connection := event.fileobj) in waiting:
          line, chunk = waiting[connection][1], b""
          with contextlib.suppress(OSError):
            chunk = connection.recv(2**16)
          line += chunk
          if chunk and b"\n" not in chunk and len(line) < _MAX_LINE:
            continue
          if (report := decode(bytes(line), token, is_first=False)) is None:
            close(connection)
            continue
          ready.unregister(connection)
          del waiting[connection]
          yield report, connection
      late = time.monotonic() - _STRANGER_SECS
      for connection in [c for c, (since, _) in waiting.items() if since < late]:
        close(connection)
