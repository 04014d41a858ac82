"""A server on this machine that speaks Google's storage: an emulator, and two repairs.

Run as a program it serves a port. What gcp-storage-emulator lacks, and the real store
has: the generation in the head of what is downloaded, which tensorstore asks for, and
uploads that fail where the object is there (ifGenerationMatch=0).
"""

import contextlib
import http
import os
import sys
import threading
from unittest import mock

import pytest

from tests import s3


class Exists(Exception):
  """An object is there already."""


class _New:
  """The emulator's storage, which makes new objects alone."""

  def __init__(self, storage):
    self._storage = storage

  def __getattr__(self, name):
    return getattr(self._storage, name)

  def create_file(self, bucket, name, *args):
    from gcp_storage_emulator import exceptions

    with contextlib.suppress(exceptions.NotFound):
      self._storage.get_file_obj(bucket, name)
      raise Exists
    return self._storage.create_file(bucket, name, *args)


def serve(port):
  from gcp_storage_emulator.handlers import objects

  insert, download, one = objects.insert, objects.download, threading.Lock()

  def insert_new(request, response, storage, *args, **kwargs):
    is_new = request.query.get("ifGenerationMatch") == ["0"]
    try:
      with one:
        insert(request, response, _New(storage) if is_new else storage)
    except Exists:
      response.status = http.HTTPStatus.PRECONDITION_FAILED
      response.json({"error": {"code": 412, "message": "conditionNotMet"}})

  def download_with_generation(request, response, storage, *args, **kwargs):
    download(request, response, storage)
    with contextlib.suppress(Exception):
      names = request.params["bucket_name"], request.params["object_id"]
      response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]

  objects.insert, objects.download = insert_new, download_with_generation
  from gcp_storage_emulator import server  # its table of handlers is made here

  server.create_server("127.0.0.1", port, in_memory=True).run()


@pytest.fixture(scope="session")
def gs_port():
  pytest.importorskip("gcp_storage_emulator")
  pytest.importorskip("gcsfs")
  port = s3.free_port()
  with s3.process([sys.executable, "-m", "tests.gcs", str(port)], port):
    yield port


@contextlib.contextmanager
def at(port):
  """The environment of whoever uses the server at a port."""
  url = f"http://127.0.0.1:{port}"
  names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
  with mock.patch.dict(os.environ, dict.fromkeys(names, url)):
    yield


@pytest.fixture
def gs_bucket(gs_port):
  """The address of a new bucket; gcsfs and tensorstore find it."""
  with at(gs_port):
    yield s3.make_bucket("gs")


if __name__ == "__main__":
  serve(int(sys.argv[1]))
