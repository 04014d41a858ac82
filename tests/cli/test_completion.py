"""A real bash completes commands, flags, choices and names of configs."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from gen_jax.cli import main
from gen_jax.system import own_configs

# What a shell does at TAB: the words so far, the last one unfinished.
ASK = """
source "$1"; shift
COMP_WORDS=(gen-jax "$@") COMP_CWORD=$# COMP_TYPE=9 COMPREPLY=()
how=$(complete -p gen-jax)
function=${how#*-F }; function=${function%% *}
"$function" gen-jax "${COMP_WORDS[$COMP_CWORD]}" "${COMP_WORDS[$COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell):
  command = [sys.executable, "-m", "gen_jax.cli.main", "completion", shell]
  done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
  assert (done.returncode, done.stderr) == (0, "")
  return done.stdout


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
  """words -> what bash offers for the last one."""
  path = tmp_path_factory.mktemp("bash") / "gen-jax"
  path.write_text(script("bash"))
  (path.parent / "photo.png").touch()
  (path.parent / "folder").mkdir()

  def ask(*words):
    shell = [shutil.which("bash"), "--norc", "-c", ASK, "bash", str(path), *words]
    done = subprocess.run(shell, capture_output=True, text=True, cwd=path.parent)
    assert done.returncode == 0 and done.stderr == ""
    return set(done.stdout.split())

  return ask


def test_bash_completes(bash):
  assert bash("tr") == {"train"}
  assert bash("") >= main.COMMANDS.keys()
  assert bash("sample", "--prom") == {"--prompt", "--prompts"}
  assert bash("train", "--workdir", "r", "--dry") == {"--dry_run"}
  assert bash("tokenize", "--drop", "") == {"exact", "near"}
  assert bash("tokenize", "--drop", "n") == {"near"}
  assert bash("completion", "z") == {"zsh"}
  assert bash("train", "--seed") == set()  # a flag of another command


def test_bash_completes_files_folders_and_configs(bash):
  assert bash("edit", "--image", "ph") == {"photo.png"}
  assert bash("train", "--workdir", "") == {"folder"}
  assert bash("train", "--config", "lm/py") == {
    name for name in own_configs.names() if name.startswith("lm/py")
  }
  assert "photo.png" in bash("train", "--config", "ph")


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
@pytest.mark.parametrize(
  "words, whole",
  [
    ("tr", "train"),
    ("sample --promp", "--prompt"),
    ("tokenize --drop n", "near"),
    ("train --config lm/pyd", "lm/pydoc"),
  ],
)
def test_zsh_completes(tmp_path, words, whole):
  """In a terminal: zsh completes nowhere else."""
  (tmp_path / "script").write_text(script("zsh"))
  pid, terminal = pty.fork()
  if pid == 0:
    os.chdir(tmp_path)
    os.execvp("zsh", ["zsh", "-f"])

  def typed(text, until):
    os.write(terminal, text.encode())
    said, last, poller = "", time.monotonic() + 30, select.poll()
    poller.register(terminal, select.POLLIN)  # select takes no file beyond the 1,024th
    while until not in said and time.monotonic() < last:
      if poller.poll(100):
        said += os.read(terminal, 65536).decode(errors="replace")
    return said

  ready = 'autoload -Uz compinit; compinit -u -D; eval "$(<script)"; print re""ady\n'
  assert "\nready" in typed(ready, "\nready")
  try:
    said = typed(f"gen-jax {words}\t", f" {whole}")
    assert f" {whole}" in said and "not found" not in said
  finally:
    os.close(terminal)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_know_every_command(shell):
  found = script(shell)
  assert all(name in found for name in (*main.COMMANDS, "dry_run", "prompts"))
  assert shell == "tcsh" or own_configs.names()[0] in found


def test_no_jax():
  code = f"import sys; sys.argv = ['x', 'completion', 'bash']\n{BODY}"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0 and done.stderr == ""


BODY = f"""
from {main.__name__} import main
main()
assert not {{"jax", "flax", "gen_jax.types", "gen_jax.build"}} & set(sys.modules)
"""
