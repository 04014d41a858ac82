"""Who serves gs:// and s3://: gcsfs and s3fs, which wait for their stores.

A store that does not answer is asked again for `patience()` seconds, and a line says
so; one that has been away for longer is asked once. What waiting does not cure is an
`InputError`.
"""

import asyncio
import contextlib
import errno
import functools
import importlib
import inspect
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import fsspec

from gen_jax.errors import InputError, Unavailable, one_line
from gen_jax.system import signals

SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}  # and the package that serves each
PATIENCE = "GEN_JAX_BUCKET_SECS"
_MOST_SECS = 1e6
_HOW = {
  "gs": "run `gcloud auth application-default login`, or set"
  " GOOGLE_APPLICATION_CREDENTIALS",
  "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`",
}
# Errors of botocore, aiohttp, requests and google.auth, by the names of their classes:
# the packages are extras.
_NO_CREDENTIALS = {
  *("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"),
  *("ProfileNotFound", "TokenRetrievalError"),
}
_AWAY = {
  *("ConnectionError", "HTTPClientError", "ClientConnectionError", "TimeoutError"),
  *("TransportError", "ClientPayloadError", "IncompleteRead", "FSTimeoutError"),
}
_BUSY = {*range(500, 505), 408, 429}  # answers of a store that is at its limits
_MEANWHILE = {errno.EBUSY, errno.EREMOTEIO}  # what s3fs makes of them


def patience() -> float:
  """Seconds for which a store that does not answer is waited for."""
  text = os.environ.get(PATIENCE, "240")
  with contextlib.suppress(ValueError):
    if 0 <= (secs := float(text)) <= _MOST_SECS:
      return secs
  raise InputError(f"{PATIENCE}={text!r:.80} must be seconds in [0, {_MOST_SECS:g}]")


def _names(error: BaseException) -> set[str]:
  return {kind.__name__ for kind in type(error).__mro__}


def _is_away(error: BaseException) -> bool:
  if getattr(error, "code", None) in _BUSY or _names(error) & _AWAY:
    return True
  return isinstance(error, OSError) and error.errno in _MEANWHILE


def code(error: BaseException) -> str:
  """S3's own name of an error."""
  cause = error if hasattr(error, "response") else error.__cause__
  response = getattr(cause, "response", None)
  return response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""


def _refuse(error: BaseException, where: str, what: str) -> None:
  """Raises InputError for what waiting does not cure."""
  scheme, said = where.split(":")[0], one_line(error)
  if _names(error) & _NO_CREDENTIALS:
    raise InputError(f"no credentials for {where}: {_HOW[scheme]}") from None
  if code(error) == "NoSuchBucket":
    raise InputError(f"{where} does not exist: make the bucket, or check its name")
  if isinstance(error, ValueError) or "BotoCoreError" in _names(error):
    raise InputError(
      f"{where} cannot be asked ({said[:200]}): check its name, and the endpoint and"
      " region in the environment"
    ) from None
  is_denied = isinstance(error, PermissionError) or said.startswith("Forbidden")
  if is_denied or getattr(error, "code", None) in (401, 403):
    raise InputError(
      f"{where} denies access ({what}: {said[:200]}): check the credentials, and what"
      " they may do there"
    ) from None


_since: dict[str, float] = {}  # when stores that are being waited for went away


async def _waited(call: Callable[[], Awaitable], where: str, what: str) -> Any:
  """What a request to a store returns, once it answers."""
  pause = 0.5
  while True:
    try:
      found = await call()
      _answers(where)
      return found
    except Exception as error:
      if not _is_away(error):
        _answers(where)
        _refuse(error, where, what)
        raise
      reason, now = one_line(error)[:200], time.monotonic()
      if where not in _since:
        _since[where] = now
        signals.say(
          f"gen-jax: {where} does not answer ({reason}); waiting for it, up to"
          f" {patience():g} s"
        )
      waited = now - _since[where]
      if waited > patience():
        raise Unavailable(
          f"{where} has not answered for {waited:.0f} s ({reason}): the same command"
          " goes on when it does"
        ) from None
      await asyncio.sleep(pause)
      pause = min(2 * pause, 5.0)


def _answers(where: str) -> None:
  if _since.pop(where, None) is not None:
    signals.say(f"gen-jax: {where} answers again")


_OPTIONS = {
  "s3": {
    "use_listings_cache": False,  # other processes write there
    "config_kwargs": {  # `_waited` is what tries again
      "retries": {"total_max_attempts": 1},
      "connect_timeout": 10,
      "read_timeout": 60,
    },
  },
  "gs": {"use_listings_cache": False},  # and time limits, see `_gs`
}


def _s3(base: type) -> type:
  class S3(base):
    """s3fs, which waits for its store."""

    protocol = ("s3", "s3a")

    def __init__(self, *args, **kwargs):
      super().__init__(*args, **{**_OPTIONS["s3"], **kwargs})

    async def _call_s3(self, method, *args, **kwargs):
      call = functools.partial(super()._call_s3, method, *args, **kwargs)
      return await _waited(call, f"s3://{kwargs.get('Bucket', '')}", method)

  return S3


def _gs(module: Any) -> type:
  import aiohttp  # of gcsfs

  base = module.core.GCSFileSystem
  # gcsfs tries six times, in half a minute and without a limit for an answer. Twice is
  # enough, for a token that has run out; else `_waited` is what tries again.
  twice = module.retry.retry_request(retries=2)
  request, get_file = (
    twice(inspect.unwrap(method)) for method in (base._request, base._get_file_request)
  )

  class GCS(base):
    """gcsfs, which waits for its store."""

    def __init__(self, *args, **kwargs):
      super().__init__(*args, **{**_OPTIONS["gs"], **kwargs})
      self.requests_timeout = aiohttp.ClientTimeout(sock_connect=10, sock_read=60)

    async def _request(self, *args, **kwargs):
      return await request(self, *args, **kwargs)

    async def _get_file_request(self, rpath, lpath, *args, **kwargs):
      call = functools.partial(get_file, self, rpath, lpath, *args, **kwargs)
      return await _waited(call, f"gs://{self.split_path(rpath)[0]}", f"GET {rpath}")

    async def _call(self, method, path, *args, **kwargs):
      call = functools.partial(super()._call, method, path, *args, **kwargs)
      where = f"gs://{args[0] if args else ''}"
      try:
        return await _waited(call, where, f"{method} {path}")
      except FileNotFoundError:
        if path == "b/{}/o" and method == "GET":  # a listing
          raise InputError(
            f"{where} does not exist: make the bucket, or check its name"
          ) from None
        raise

  return GCS


@functools.cache
def serve(scheme: str) -> None:
  """Registers who serves a scheme, for orbax as well.

  Raises:
    InputError: its package is not installed.
  """
  try:
    module = importlib.import_module(SCHEMES[scheme])
  except ImportError:
    raise InputError(
      f"{scheme}:// needs {SCHEMES[scheme]}: pip install 'gen_jax[cloud]'"
    ) from None
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what matters is raised
  is_s3 = scheme == "s3"
  made = _s3(module.S3FileSystem) if is_s3 else _gs(module)
  for name in ("s3", "s3a") if is_s3 else ("gs", "gcs"):
    fsspec.register_implementation(name, made, clobber=True)


def driver(scheme: str) -> dict[str, Any]:
  """What names a store to tensorstore, which does not know S3's variables."""
  retries = {"max_retries": max(1, int(patience() / 5)), "max_delay": "5s"}
  if scheme == "gs":
    return {"driver": "gcs", "gcs_request_retries": retries}
  names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
  url = next(filter(None, map(os.environ.get, names)), None)
  names = ("AWS_REGION", "AWS_DEFAULT_REGION")
  region = next(filter(None, map(os.environ.get, names)), "us-east-1")
  found = {"endpoint": url, "aws_region": region} if url else {}
  if "AWS_ACCESS_KEY_ID" in os.environ:  # else it complains of every place without keys
    found["aws_credentials"] = {"type": "environment"}
  return {"driver": "s3", "s3_request_retries": retries, **found}


def forget() -> None:
  """Every store is waited for again."""
  _since.clear()
