"""The HTTP of the server: bodies in, JSON or a stream of events out, within limits.

Its loop runs in a thread of its own; the main thread draws, and hears signals.
"""

import asyncio
import contextlib
import dataclasses
import functools
import hmac
import json
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from gen_jax import errors
from gen_jax.serving import protocol, worker
from gen_jax.system import files
from gen_jax.types import InputError

with errors.extra("serve"):
  import uvicorn
  from starlette import applications, exceptions, requests, responses, routing
  from uvicorn.protocols.http import h11_impl

_READ_SECS = 30.0  # for the head of a request to come, and for its body
_CLOSE_SECS = 2.0  # for answers to end, once the server stops
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Doors:
  """Who may ask, and how much.

  Attributes:
    most_bytes: of a request's body.
    secs: after which a client that reads nothing is cut off.
    connections: at once.
    key: that requests must carry; None: none is asked for.
    is_local: the server listens to this machine alone; requests must name it.
  """

  most_bytes: int
  secs: float
  connections: int
  key: str | None
  is_local: bool


def _json(value: Any) -> str:
  return json.dumps(files.finite(value), allow_nan=False)


def _answer(value: Any, status: int = 200) -> responses.Response:
  headers = {"Retry-After": "1"} if status == 429 else None
  return responses.Response(_json(value), status, headers, "application/json")


def _host(header: str) -> str:
  """The name in a Host header, without its port.

  >>> _host("[::1]:80"), _host("localhost:80"), _host("a")
  ('::1', 'localhost', 'a')
  """
  if header.startswith("["):
    return header[1:].partition("]")[0]
  return header.partition(":")[0]


class _Server:
  """The handlers of requests."""

  def __init__(self, drawer: worker.Worker, reader: protocol.Reader, doors: Doors):
    self.drawer, self.reader, self.doors = drawer, reader, doors

  def app(self) -> applications.Starlette:
    """The routes, behind `_guarded`."""
    completion, chat = self.reader.completion, self.reader.chat
    routes = {
      ("/health", "GET"): self._health,
      ("/v1/models", "GET"): self._models,
      ("/v1/models/{name:path}", "GET"): self._model,
      ("/v1/completions", "POST"): functools.partial(self._complete, completion),
      ("/v1/chat/completions", "POST"): functools.partial(self._complete, chat),
    }
    return applications.Starlette(
      routes=[
        routing.Route(path, self._guarded(handle), methods=[method])
        for (path, method), handle in routes.items()
      ],
      exception_handlers={exceptions.HTTPException: self._no_route},
    )

  async def _no_route(self, request: requests.Request, error: Exception):
    assert isinstance(error, exceptions.HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _answer(protocol.error(message, error.status_code), error.status_code)

  def _guarded(self, handle: Callable) -> Callable:
    """A handler whose failures are answers of the protocol, too."""

    async def guarded(request: requests.Request) -> responses.Response:
      try:
        self._check(request)
        return await handle(request)
      except InputError as error:
        status = getattr(error, "status", 400)
        found = (errors.one_line(error), status, getattr(error, "code", None))
        return _answer(protocol.error(*found), status)
      except requests.ClientDisconnect:
        return responses.Response(status_code=499)
      except Exception as error:  # nobody sees a traceback
        line = errors.one_line(error)
        print(f"gen-jax: {type(error).__name__}: {line}", file=sys.stderr, flush=True)
        return _answer(protocol.error("internal error", 500), 500)

    return guarded

  def _check(self, request: requests.Request) -> None:
    """Refuses who has no key, and pages of a browser that reach for this machine."""
    if self.doors.is_local and _host(request.headers.get("host", "")) not in _LOCAL:
      raise protocol.Refused("the Host of a request must be localhost", 403)
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    key = self.doors.key
    if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
      raise protocol.Refused("the key is wrong", 401, "invalid_api_key")

  async def _health(self, request: requests.Request):
    del request
    return _answer({"status": "ok", **self.drawer.load})

  async def _models(self, request: requests.Request):
    del request
    return _answer(self.reader.models())

  async def _model(self, request: requests.Request):
    return _answer(self.reader.model(request.path_params["name"]))

  async def _body(self, request: requests.Request) -> dict[str, Any]:
    """The object in a request's body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what pages send without asking is no JSON
      raise protocol.Refused("the Content-Type must be application/json", 415)
    most, parts, size = self.doors.most_bytes, [], 0
    try:
      async with asyncio.timeout(_READ_SECS):
        async for part in request.stream():
          parts.append(part)
          if (size := size + len(part)) > most:
            raise protocol.Refused(f"a body of more than {most} bytes", 413)
    except TimeoutError:
      raise protocol.Refused(f"no body came in {_READ_SECS:g} s", 408) from None
    found = files.parse_json(b"".join(parts), "the body")
    if not isinstance(found, dict):
      raise protocol.Refused("the body is no JSON object")
    return found

  async def _complete(self, read: Callable, request: requests.Request):
    asked = await asyncio.to_thread(read, await self._body(request))
    loop, news = asyncio.get_running_loop(), asyncio.Queue()

    def tell(item: worker.News) -> None:
      with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(news.put_nowait, item)

    tickets = self.drawer.submit(asked.jobs, tell)
    if tickets is None:
      busy = f"{self.drawer.most} continuations wait already; try again later"
      raise protocol.Refused(busy, 429, "queue_full")
    leave = functools.partial(self.drawer.leave, tickets)
    if asked.is_streamed:
      events = self._events(asked, news, leave)
      return responses.StreamingResponse(events, media_type="text/event-stream")
    try:
      rows = await _unless_gone(request, _collected(asked, news))
    finally:
      leave()
    return _answer(
      protocol.whole(asked, rows, self.reader.batch.writer.tokenizer.piece)
    )

  async def _events(
    self, asked: protocol.Asked, news: asyncio.Queue, leave: Callable[[], None]
  ) -> AsyncIterator[str]:
    """Server-sent events; what a client is slow to read waits here, and nobody else."""
    rows: list[Any] = [None] * len(asked.jobs)
    piece = self.reader.batch.writer.tokenizer.piece
    try:
      for part in protocol.opening(asked):
        yield f"data: {_json(part)}\n\n"
      while None in rows:
        item = await news.get()
        if item.error:
          yield f"data: {_json(protocol.error(item.error, 503))}\n\n"
          return
        given = (asked, item.index, item.row, piece, item.start, item.stop)
        if (logprobs := protocol.logprobs(*given)) or item.text:
          part = protocol.chunk(asked, item.index, item.text, None, logprobs)
          yield f"data: {_json(part)}\n\n"
        if item.is_done:
          rows[item.index] = item.row
          yield f"data: {_json(protocol.chunk(asked, item.index, '', item.row))}\n\n"
      for part in protocol.closing(asked, rows):
        yield f"data: {_json(part)}\n\n"
      yield "data: [DONE]\n\n"
    finally:
      leave()


async def _collected(asked: protocol.Asked, news: asyncio.Queue) -> list:
  """All rows, once they are done."""
  rows: list[Any] = [None] * len(asked.jobs)
  while None in rows:
    item = await news.get()
    if item.error:
      raise protocol.Refused(item.error, 503)
    if item.is_done:
      rows[item.index] = item.row
  return rows


async def _unless_gone(request: requests.Request, answer):
  """The answer; ClientDisconnect as soon as nobody waits for it."""

  async def gone() -> None:
    while (await request.receive())["type"] != "http.disconnect":
      pass

  tasks = [asyncio.ensure_future(x) for x in (answer, gone())]
  try:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if tasks[0].done():
      return tasks[0].result()
    raise requests.ClientDisconnect
  finally:
    for task in tasks:
      task.cancel()


class _Impatient(h11_impl.H11Protocol):
  """HTTP that cuts off who does not finish the head of a request: uvicorn waits."""

  _limit: asyncio.TimerHandle | None = None

  def connection_made(self, transport) -> None:
    super().connection_made(transport)
    self._begin()

  def data_received(self, data: bytes) -> None:
    super().data_received(data)
    if self.conn.their_state is h11_impl.h11.IDLE:
      self._begin()
    else:
      self._end()

  def connection_lost(self, exc: Exception | None) -> None:
    self._end()
    super().connection_lost(exc)

  def _begin(self) -> None:
    """More of a head does not start the clock again."""
    if self._limit is None:
      self._limit = self.loop.call_later(_READ_SECS, self._cut)

  def _end(self) -> None:
    if self._limit is not None:
      self._limit.cancel()
      self._limit = None

  def _cut(self) -> None:
    self._limit = None
    if not self.transport.is_closing():
      self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")
      self.transport.close()


def listen(host: str, port: int, secs: float) -> socket.socket:
  """A socket that listens; InputError if it cannot.

  Args:
    secs: after which the system cuts off a client that reads nothing.
  """
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    found = socket.create_server((host, port), family=family, backlog=1024)
  except (OSError, OverflowError) as error:
    number = getattr(error, "errno", None) or 0
    why = os.strerror(number) if number > 0 else getattr(error, "strerror", error)
    raise InputError(f"cannot listen on --host {host} --port {port}: {why}") from None
  if hasattr(socket, "TCP_USER_TIMEOUT"):  # those who connect have it from this one
    millis = min(int(1e3 * secs), 2**31 - 1)  # what the system takes
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, millis)
  return found


@contextlib.contextmanager
def serving(
  at: socket.socket, drawer: worker.Worker, reader: protocol.Reader, doors: Doors
) -> Iterator[Callable[[], bool]]:
  """Answers requests in another thread; yields whether it has ended by itself."""
  config = uvicorn.Config(
    _Server(drawer, reader, doors).app(),
    loop="asyncio",
    http=_Impatient,
    ws="none",
    lifespan="off",
    log_config=None,
    log_level="critical",
    access_log=False,
    limit_concurrency=doors.connections,
    timeout_graceful_shutdown=int(_CLOSE_SECS),
    server_header=False,
  )
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
  thread.start()
  try:
    yield lambda: not thread.is_alive()
  finally:
    server.should_exit = True
    thread.join(2 * _CLOSE_SECS)
