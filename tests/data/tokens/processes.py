"""Commands that make stores, killed for real."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from gen_jax.data.tokens import folder, store


def killed(
  module: str, what: str, home: pathlib.Path, given: pathlib.Path, after: int
) -> bool:
  """Kills a command when `after` pieces are done; returns whether the store was whole.

  Args:
    module: of the test, whose `job(given)` two workers make.
    what: is stored, 'tokens' or 'images'.
  """
  code = (
    f"import pathlib, sys; from {module} import job;"
    " from gen_jax.data.tokens import making; from gen_jax.system import files;"
    " making.make(files.path(sys.argv[1], 'x'), job(pathlib.Path(sys.argv[2])), 2)"
  )
  words = [sys.executable, "-c", code, str(home), str(given)]
  process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
  until, place = time.monotonic() + 120, folder.Folder(home)
  while process.poll() is None and time.monotonic() < until:
    if len(place.done(what)) >= after:
      os.kill(process.pid, signal.SIGKILL)
      break
    time.sleep(0.001)
  process.wait()
  return (home / store.MANIFEST).exists()
