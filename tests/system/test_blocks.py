"""Ranges of a file of a bucket: the right bytes, few of them, and few kept."""

import concurrent.futures
import threading
import time

import numpy as np
import pytest

from gen_jax.system import blocks
from gen_jax.types import InputError


class File:
  """A file that counts what is asked of it."""

  def __init__(self, content):
    self.content, self.asked = content, []

  def __str__(self):
    return f"s3://bucket/{id(self)}"

  def read_range(self, start, stop):
    self.asked.append((start, stop))
    return self.content[start:stop]


@pytest.fixture
def file(monkeypatch):
  monkeypatch.setattr(blocks, "SIZE", 10)
  blocks.forget()
  return File(bytes(range(95)))


@pytest.mark.parametrize(
  ("start", "stop"), [(0, 1), (9, 11), (10, 20), (0, 95), (90, 95), (7, 7)]
)
def test_the_bytes_are_those_of_the_file(file, start, stop):
  assert blocks.read(file, start, stop) == file.content[start:stop]
  assert len(file.asked) == (start < stop)
  blocks.read(file, start, stop)
  assert len(file.asked) == (start < stop)  # kept


def test_only_what_is_missing_is_asked_for(file):
  blocks.read(file, 25, 35)
  blocks.read(file, 55, 56)
  blocks.read(file, 0, 80)
  assert file.asked == [(20, 40), (50, 60), (0, 20), (40, 50), (60, 80)]


def test_what_was_asked_for_last_is_kept_within_bounds(file, monkeypatch):
  monkeypatch.setattr(blocks, "KEPT", 30)
  for at in (0, 10, 20, 0, 30):  # block 0 was asked for again
    blocks.read(file, at, at + 10)
  assert len(blocks._kept) == 3
  asked = len(file.asked)
  blocks.read(file, 0, 10)
  assert len(file.asked) == asked
  blocks.read(file, 10, 20)
  assert len(file.asked) == asked + 1


def test_a_file_that_ends_too_early(file):
  with pytest.raises(InputError, match="cut off at byte 95, and 96"):
    blocks.read(file, 93, 96)
  with pytest.raises(InputError, match="cut off"):
    blocks.read(file, 200, 201)


def test_arrays_are_slices_of_the_file(file):
  want = np.frombuffer(file.content[3:93], "<i2")
  array = blocks.Array(file, np.dtype("<i2"), 3, 45)
  assert len(array) == 45 and array[7] == want[7]
  for part in (slice(None), slice(4, 9), slice(40, 99), slice(9, 4)):
    np.testing.assert_array_equal(array[part], want[part])
  part = array.part(4, 8, np.dtype("u1"))
  np.testing.assert_array_equal(part[:], want[4:8].view("u1"))


def test_threads_that_want_one_block_ask_once(file):
  answer = threading.Event()
  asked, read = file.asked, file.read_range

  def slow(start, stop):
    answer.wait(10)
    return read(start, stop)

  file.read_range = slow
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = [pool.submit(blocks.read, file, 25 - i, 41) for i in range(8)]
    time.sleep(0.2)
    answer.set()
    assert [f.result() for f in found] == [file.content[25 - i : 41] for i in range(8)]
  assert sorted(n for start, stop in asked for n in range(start, stop, 10)) == [
    *(10, 20, 30, 40)
  ]


def test_a_request_that_fails_leaves_nobody_waiting(file):
  read, tries = file.read_range, []

  def broken(start, stop):
    tries.append(start)
    if len(tries) == 1:
      time.sleep(0.2)
      raise OSError("away")
    return read(start, stop)

  file.read_range = broken
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    one, other = (pool.submit(blocks.read, file, 0, 5) for _ in range(2))
    errors = [f.exception() for f in (one, other)]
  assert [type(e) for e in errors if e] == [OSError] and len(tries) == 2
