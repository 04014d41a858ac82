"""A chat as a user has it: in a terminal, with keys that edit and keys that stop."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.serving.conftest import ROOT, workdir  # noqa: F401

LEFT, BACKSPACE = "\x1b[D", "\x7f"


class Terminal:
  """A command in a pseudo-terminal."""

  def __init__(self, *words):
    self.end, other = pty.openpty()
    command = [sys.executable, "-m", "gen_jax.cli.main", "sample", *map(str, words)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    self.process = subprocess.Popen(
      command,
      stdin=other,
      stdout=other,
      stderr=other,
      cwd=ROOT,
      env={**env, "TERM": "xterm"},
      start_new_session=True,
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(other)
    self.until()

  def until(self, mark="> "):
    """What is shown up to a prompt, without the terminal's own codes."""
    said = b""
    while not self._plain(said).endswith(mark):
      said += os.read(self.end, 1)
    return self._plain(said)

  @staticmethod
  def _plain(said):
    text = said.decode(errors="replace")
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "")

  def type(self, keys):
    os.write(self.end, keys.encode())

  def ask(self, line):
    """Types a line; what is shown until the next prompt."""
    self.type(f"{line}\n")
    return self.until()


@pytest.fixture
def chat(workdir):  # noqa: F811
  words = ("--workdir", workdir, "--interactive", "--temperature=0")
  terminal = Terminal(*words, "--max_tokens=200", "--system", "Be brief.")
  yield terminal
  terminal.process.kill()
  terminal.process.wait()
  os.close(terminal.end)


def test_a_chat(chat):
  first = chat.ask("hello")
  assert len(first) > 20
  assert chat.ask("hello") != first  # the first turn is in the context
  assert "forget what was said" in chat.ask("/help")
  chat.ask("/reset")
  assert chat.ask("hello") == first
  chat.ask("/reset")
  chat.ask("/system")
  assert chat.ask("hello") != first
  chat.ask("/reset")
  chat.ask("/system Be brief.")
  assert chat.ask("hello") == first
  said = chat.ask("/rest")
  assert "unknown command '/rest': did you mean '/reset'" in said
  assert "unknown" not in chat.ask(f"/resxet{LEFT * 2}{BACKSPACE}")
  assert chat.ask(f"helo{LEFT}l").split("\n", 1)[1] == first.split("\n", 1)[1]
  chat.type("/exit\n")
  assert chat.process.wait(timeout=90) == 0


def test_ctrl_c_stops_an_answer_or_clears_a_line(chat):
  first = chat.ask("hello")
  chat.ask("/reset")
  chat.type("not sent")
  time.sleep(0.3)
  chat.process.send_signal(signal.SIGINT)
  assert "Ctrl-C again, or /exit, leaves" in chat.until()
  assert chat.ask("hello") == first  # nothing of the line is left
  chat.process.send_signal(signal.SIGINT)
  chat.until()
  for _ in range(20):  # on a busy machine two may come too far apart, or together
    chat.process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
      chat.process.wait(timeout=4)
      break
  assert chat.process.returncode == 0
