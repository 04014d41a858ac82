"""Compiled programs between commands: kept, trimmed, damaged, and not kept."""

import os
import pathlib
import stat
import subprocess
import sys
import threading

import jax
import pytest

from gen_jax.system import compilation, files

CODE = """
import jax, sys
from gen_jax.system import compilation
with compilation.kept():
  print(float(jax.jit(lambda x: x * 3 + 1)(2.0)))
"""


def run(tmp_path, code=CODE, **environ):
  """What a process of its own prints, with a cache of its own."""
  env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
  env |= {"GEN_JAX_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu", **environ}
  done = subprocess.run(
    [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
  )
  assert done.stderr == ""
  return done.stdout.strip()


def entries(tmp_path):
  return sorted(p for p in tmp_path.glob("cache/compiled/*/*") if p.is_file())


def test_programs_are_kept_for_their_owner_and_survive_damage(tmp_path):
  assert run(tmp_path) == "7.0"
  found = entries(tmp_path)
  assert found
  for folder in (tmp_path / "cache" / "compiled", found[0].parent):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in found)
  whole = [path.read_bytes() for path in found]
  old = [path.stat().st_ino for path in found]
  assert run(tmp_path) == "7.0"
  assert [path.stat().st_ino for path in entries(tmp_path)] == old  # only read
  for damage in (lambda b: b[:-1], lambda b: b[:50] + b"?" + b[51:], lambda b: b""):
    for path, content in zip(found, whole, strict=True):
      path.write_bytes(damage(content))
    assert run(tmp_path) == "7.0"
    for path in found:  # compiled again, and written whole
      digest = compilation.hashlib.sha256(path.read_bytes()[32:]).digest()
      assert path.read_bytes()[:32] == digest


@pytest.mark.parametrize(
  "environ",
  [
    {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    {"JAX_COMPILATION_CACHE_DIR": "theirs"},
    {"GEN_JAX_CACHE": "/dev/null/cache"},
  ],
)
def test_not_where_it_is_off_or_cannot_be(tmp_path, environ):
  theirs = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "theirs")}
  environ = {name: theirs.get(name, value) for name, value in environ.items()}
  assert run(tmp_path, **environ) == "7.0"
  assert not entries(tmp_path)


def test_a_folder_that_others_may_write_to_is_not_believed(tmp_path):
  (tmp_path / "cache" / "compiled").mkdir(parents=True)
  (tmp_path / "cache" / "compiled").chmod(0o777)
  assert run(tmp_path) == "7.0"
  assert not entries(tmp_path)


def test_a_full_disk_keeps_nothing_and_breaks_nothing(tmp_path, monkeypatch):
  cache = compilation.Cache(tmp_path)

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  cache.put("key", b"program")
  assert not os.listdir(tmp_path)
  monkeypatch.undo()
  cache.put("key", b"program")
  assert cache.get("key") == b"program"


def test_readers_never_see_half_of_an_entry(tmp_path):
  cache, value = compilation.Cache(tmp_path), b"p" * 2**20
  writers = [threading.Thread(target=cache.put, args=("key", value)) for _ in range(8)]
  for writer in writers:
    writer.start()
  while any(writer.is_alive() for writer in writers):
    assert cache.get("key") in (None, value)
  assert os.listdir(tmp_path) == ["key"] and cache.get("key") == value


def test_the_oldest_go_when_there_are_too_many(tmp_path, monkeypatch):
  monkeypatch.setattr(compilation, "MAX_BYTES", 1000)
  for i in range(11):
    path = tmp_path / f"{i}"
    path.write_bytes(bytes(90))
    os.utime(path, (i, i))
  compilation._trim(tmp_path)  # 990 bytes
  assert len(os.listdir(tmp_path)) == 11
  (tmp_path / "11").write_bytes(bytes(90))
  compilation._trim(tmp_path)
  assert sorted(map(int, os.listdir(tmp_path))) == [7, 8, 9, 10, 11]


def test_afterwards_jax_is_as_it_was(monkeypatch, tmp_path):
  """Also where something failed; what is compiled then is not kept."""
  monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  try:
    with pytest.raises(ZeroDivisionError), compilation.kept():
      jax.jit(lambda x: x * 5 - 2)(3.0)
      kept = entries(tmp_path)
      assert kept
      raise ZeroDivisionError
    assert jax.config.jax_compilation_cache_dir is None
    jax.jit(lambda x: x * 7 - 2)(3.0)
    assert entries(tmp_path) == kept
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_terminal_shows_how_long_it_compiles(monkeypatch, capsys):
  """From JAX's own events: one program that takes long, then nothing."""
  monkeypatch.setattr(compilation, "_SAID_AFTER_SECS", 12.0)
  now = [100.0]
  monkeypatch.setattr(compilation.time, "monotonic", lambda: now[0])
  clock, event = compilation.Clock(), compilation._COMPILING

  class Steps:
    """In place of the event that ends the loop."""

    def __init__(self):
      self.left = [
        lambda: clock.begin(event, 0.0, fun_name="f"),  # 0 s
        lambda: now.append(now.pop() + 11.0),  # too early to say so
        lambda: now.append(now.pop() + 2.0),
        lambda: clock.end("/jax/core/compile/jaxpr_trace_duration", 1.0),  # another
        lambda: clock.end(event, 13.0, fun_name="f"),
        lambda: None,
      ]

    def is_set(self):
      return not self.left

    def wait(self, pause):
      if self.left:
        self.left.pop(0)()
      return not self.left

  clock.is_over = Steps()
  clock.run()
  line, wipe = "\rcompiling ... 13 s", "\r\x1b[K"
  assert capsys.readouterr().err == line + line + wipe


def test_jax_says_when_it_compiles(monkeypatch):
  """The names of its events are those that we listen to."""
  heard = []
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
  monkeypatch.setattr(compilation.Clock, "begin", lambda _, e, v, **k: heard.append(e))
  monkeypatch.setattr(compilation.Clock, "end", lambda _, e, v, **k: heard.append(e))
  with compilation.shown():
    jax.jit(lambda x: x * 11 - 2)(3.0)
  assert heard.count(compilation._COMPILING) >= 2
  heard.clear()
  jax.jit(lambda x: x * 13 - 2)(3.0)
  assert not heard


def test_the_cache_folder_is_a_folder_of_the_users(monkeypatch):
  monkeypatch.delenv("GEN_JAX_CACHE")
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  home = pathlib.Path.home() / ".cache" / "gen_jax" / "compiled"
  assert files.cache_folder("compiled") == home
