"""A bucket and a folder of a disk do the same, but for what `buckets` says."""

import concurrent.futures
import contextlib
import importlib
import os
import pathlib
import threading
import time

import fsspec
import pytest

from gen_jax.system import buckets, copies, exclusive, files, folders, globs, stores
from gen_jax.types import InputError, Unavailable
from tests import gcs, s3


@pytest.fixture(params=["disk", "s3", "gs"])
def root(request, tmp_path):
  """A folder that is there: of a disk, or of a bucket with a file next to it."""
  if request.param == "disk":
    return tmp_path
  bucket = request.getfixturevalue({"s3": "bucket", "gs": "gs_bucket"}[request.param])
  files.write(files.path(bucket, "x") / "other" / "file", "")
  return files.path(f"{bucket}/a [b]", "--workdir")


def fill(root):
  for name in ("a.txt", "sub/b.txt", "sub/deep/c.json", "sub/*.txt"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, name)


def test_files_and_folders_are_what_they_are_on_a_disk(root):
  assert not (root / "sub").exists()
  fill(root)
  assert files.names(root) == ["a.txt", "sub/*.txt", "sub/b.txt", "sub/deep/c.json"]
  assert sorted(p.name for p in root.iterdir()) == ["a.txt", "sub"]
  assert sorted(p.name for p in (root / "sub").glob("*.txt")) == ["*.txt", "b.txt"]
  assert [p.name for p in root.glob("*/deep/*.json")] == ["c.json"]
  assert [p.name for p in root.glob("sub")] == ["sub"]
  assert (root / "sub").is_dir() and not (root / "sub").is_file()
  assert (root / "a.txt").is_file() and not (root / "a.txt").is_dir()
  assert not (root / "su").exists()  # a beginning of a name is no folder
  assert (root / "a.txt").stat().st_size == 5
  assert files.sha256(root / "a.txt") == files.hashes(root, ["a.txt"])["a.txt"]
  with (root / "sub/b.txt").open(encoding="utf-8") as file:
    assert file.read() == "sub/b.txt"
  for missing in ((root / "no").read_bytes, (root / "no").unlink, (root / "no").stat):
    with pytest.raises(FileNotFoundError):
      missing()
  with pytest.raises(FileNotFoundError):
    list((root / "no").iterdir())
  with pytest.raises(FileExistsError):
    (root / "sub").mkdir()
  with pytest.raises(OSError):
    (root / "sub").rmdir()
  copies.remove(root / "sub")
  assert files.names(root) == ["a.txt"]
  copies.remove(root / "sub")  # gone already


def test_a_file_is_replaced_whole_or_not_at_all(root):
  path = root / "x.json"
  root.mkdir(exist_ok=True)
  files.write_json(path, {"a": 1})
  with pytest.raises(KeyError), files.replacing(path) as partial:
    with partial.open("wb") as file:
      file.write(b"half")
    raise KeyError
  assert files.read_json(path) == {"a": 1}
  with files.replacing(path) as partial:
    partial.write_bytes(b"{}")
  assert files.read_json(path) == {}
  assert [p.name for p in root.iterdir()] == ["x.json"]


def test_copies_carry_the_hashes_last_and_damage_is_found(root, tmp_path):
  fill(root / "one")
  files.write_hashes(root / "one")
  copies.copy(root / "one", root / "two")
  copies.copy(root / "two", tmp_path / "three", but=("a.txt",))
  files.check_hashes(root / "two")
  assert copies.is_whole(root / "two")
  with pytest.raises(InputError, match=r"a\.txt is missing"):
    files.check_hashes(tmp_path / "three")
  files.write(root / "two" / "sub" / "b.txt", "another")
  with pytest.raises(InputError, match=r"b\.txt is not as it was written"):
    files.check_hashes(root / "two")
  (root / "two").rename(root / "moved")
  assert not (root / "two").exists() and len(files.names(root / "moved")) == 4


def test_a_user_finds_files_by_a_glob(root):
  fill(root)
  for pattern, names in {
    "sub/*.txt": ["*.txt"],  # a file of that name
    "sub/?.txt": ["*.txt", "b.txt"],
    "*/deep/*": ["c.json"],
    "**/*": ["*.txt", "a.txt", "b.txt", "c.json"],
  }.items():
    found = globs.matching(str(root / pattern))
    assert sorted(p.name for p in found) == names
  assert globs.matching(str(root / "a.txt")) == [root / "a.txt"]
  with pytest.raises(InputError, match="no file matches"):
    globs.matching(str(root / "*.png"))
  before = files.stamps([root / "a.txt"])
  time.sleep(1.1)  # S3 has whole seconds
  files.write(root / "a.txt", "other")
  assert files.stamps([root / "a.txt"]) != before


def test_of_many_that_make_a_file_one_does(root):
  root.mkdir(exist_ok=True)
  ready = threading.Barrier(8)

  def make(i):
    ready.wait()
    try:
      exclusive.make(root / "x", b"%d" % i, root / f"x.{i}").close()
    except FileExistsError:
      return None
    return i

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    made = [i for i in pool.map(make, range(8)) if i is not None]
  assert len(made) == 1
  assert (root / "x").read_bytes() == b"%d" % made[0]


def test_a_lost_answer_is_no_other_holder(bucket):
  """The request is sent again, and finds the file that it has made itself."""
  path = files.path(f"{bucket}/x", "x")
  path.create(b"mine")
  path.create(b"mine")
  with pytest.raises(FileExistsError):
    path.create(b"theirs")


def test_pieces_of_work_are_found_again(root):
  import numpy as np

  home, drawn = root / "work", []

  def pieces(first):
    for i in range(first, 3):
      drawn.append(i)
      yield np.full(2, i)

  def run(stop):
    with folders.unfinished(home, {"a": 1}):
      for i, array in enumerate(folders.kept(home, pieces)):
        assert (array == i).all()
        if i == stop:
          raise KeyError

  with pytest.raises(KeyError):
    run(1)
  run(None)
  assert drawn == [0, 1, 2] and not home.exists()


def test_data_of_a_bucket_are_fetched_once(bucket):
  root = files.path(f"{bucket}/data", "x")
  fill(root)
  here = copies.here(f"{bucket}/data", "data.source.directory")
  assert isinstance(here, pathlib.Path) and len(files.names(here)) == 4
  copies.remove(root)
  assert copies.here(here, "x") == here
  with pytest.raises(InputError, match=r"x 's3://.*/no': there is no such file"):
    copies.here(f"{bucket}/no", "x")


BAD = {
  "gs:/bucket/x": "has one slash",
  "http://bucket/x": "is an address of no store that is served",
  "s3://": "give s3://bucket/folder",
  "s3://b//x": "give s3://bucket/folder",
  "s3://b/../x": "give s3://bucket/folder",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_address_is_refused(text, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match=f"--workdir '{text}'.*{BAD[text]}"):
    files.path(text, "--workdir")
  assert os.listdir(tmp_path) == []


def test_a_package_that_is_missing_is_named(monkeypatch):
  def missing(name):
    raise ImportError(name)

  monkeypatch.setattr(importlib, "import_module", missing)
  stores.serve.cache_clear()
  with pytest.raises(InputError, match=r"needs s3fs: pip install 'gen_jax\[cloud\]'"):
    files.path("s3://b/x", "--workdir")
  stores.serve.cache_clear()


def test_a_bucket_that_does_not_exist_is_named(bucket):
  with pytest.raises(InputError, match=r"s3://nosuch\S* does not exist: make"):
    files.path("s3://nosuchbucket/x", "--workdir")


@contextlib.contextmanager
def fresh():
  """Clients that read the environment again."""
  _forget()
  try:
    yield
  finally:
    _forget()
    stores.forget()


def _forget():
  for scheme in stores.SCHEMES:
    stores.serve(scheme)
    fsspec.get_filesystem_class(scheme).clear_instance_cache()
  buckets._reach.cache_clear()


def test_missing_credentials_are_named(bucket, monkeypatch, tmp_path):
  for name in s3.KEYS:
    monkeypatch.delenv(name)
  monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
  monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
  monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
  with (
    fresh(),
    pytest.raises(InputError, match=r"no credentials for s3://.*set AWS_ACC"),
  ):
    files.path(bucket, "--workdir")


def test_settings_that_cannot_be_are_named(bucket, monkeypatch):
  monkeypatch.setenv("AWS_ENDPOINT_URL", "nowhere")
  with fresh(), pytest.raises(InputError, match=r"s3://.*nowhere.*the endpoint and"):
    files.path(bucket, "--workdir")
  for text in ("soon", "nan", "-1", "inf"):
    monkeypatch.setenv(stores.PATIENCE, text)
    with pytest.raises(InputError, match=f"{stores.PATIENCE}='{text}' must be"):
      stores.patience()


def test_a_bucket_that_denies_is_named():
  """A server that asks who it is."""
  with s3.serving(INITIAL_NO_AUTH_ACTION_COUNT="0") as port, s3.at(port), fresh():
    with pytest.raises(InputError, match=r"s3://mine denies access .*check the cred"):
      files.path("s3://mine/x", "--workdir")


def test_a_store_that_goes_away_is_waited_for(s3_port, capfd, monkeypatch):
  line = s3.Line(s3_port)
  with s3.at(line.port), fresh():
    root = files.path(name := s3.make_bucket("s3"), "x")
    files.write(root / "a", "before")
    line.cut()
    threading.Timer(2.0, line.mend).start()
    began = time.monotonic()
    files.write(root / "a", "after")
    assert 1.5 < time.monotonic() - began < 20.0
    assert files.read(root / "a") == "after"
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"gen-jax: {name} does not answer (")
    assert said[1] == f"gen-jax: {name} answers again"
    line.cut()
    monkeypatch.setenv(stores.PATIENCE, "1")
    for _ in range(2):  # the second time it is not waited for
      began = time.monotonic()
      with pytest.raises(Unavailable, match=r"not answered for .* the same command"):
        files.write(root / "a", "never")
    assert time.monotonic() - began < 3.0


ASKED = {
  "write": lambda root, to: files.write(root / "a", "never"),
  "read": lambda root, to: root.read_range(0, 3),
  "fetch": lambda root, to: root.store.get_file(str(root / "a"), str(to)),
}


@pytest.mark.parametrize(
  "what", [pytest.param(k, marks=[pytest.mark.long] * (k != "write")) for k in ASKED]
)
def test_googles_storage_is_given_up_in_time(what, gs_port, tmp_path, monkeypatch):
  """gcsfs alone would try for half a minute, whatever GEN_JAX_BUCKET_SECS says."""
  line = s3.Line(gs_port)
  with gcs.at(line.port), fresh():
    root = files.path(s3.make_bucket("gs"), "x")
    files.write(root / "a", "before")
    line.cut()
    monkeypatch.setenv(stores.PATIENCE, "1")
    stores.forget()
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"not answered for .* the same command"):
      ASKED[what](root, tmp_path / "a")
    assert time.monotonic() - began < 10.0
