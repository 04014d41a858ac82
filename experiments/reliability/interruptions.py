"""What ends a process: kills, signals, full disks, and a second run in its workdir."""

import contextlib
import itertools
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

from experiments.reliability import processes, stories
from experiments.reliability.engine import Outcome, Trial

KILLED = ("lm", "lora", "autoencoder", "diffusion")
KILLED += ("sampling text", "sampling images", "encoding")
_NAMES = ("kills", "signals", "disks", "pairs")


def _finish(story, folder: pathlib.Path, place, expected: str) -> Outcome:
  """Gives the command again until it is done: is all as if nothing had been?"""
  ended = story.end(place, folder, folder / "last")
  if ended.code is None:
    return Outcome("hang", "the command given again")
  if not ended.is_clean:
    return Outcome("traceback", ended.line())
  if ended.code and "is there already" in ended.err:  # it was done before the fault
    pass
  elif ended.code:
    return Outcome("lost", ended.line())
  found = story.digest(folder, place)
  return Outcome("same") if found == expected else Outcome("differs", found[:300])


def kills(place, bases, draw: random.Random) -> Iterator[Trial]:
  """SIGKILL at up to three random moments, then to the end."""
  told = stories.all_of(place.bases)
  while True:
    for name in KILLED:
      moments = [draw.uniform(0.0, 1.1) for _ in range(draw.randint(1, 3))]

      def run(folder, name=name, moments=tuple(moments)):
        expected, secs = bases[name]
        for i, moment in enumerate(moments):
          process = place.process(told[name].words(folder), folder / f"killed{i}")
          with contextlib.suppress(TimeoutError):
            processes.pause(process, moment * secs)
          process.send(signal.SIGKILL)
          process.wait(10.0)
        return _finish(told[name], folder, place, expected)

      yield Trial(name, f"killed at {', '.join(f'{m:.2f}' for m in moments)}", run)


def signals(place, bases, draw: random.Random) -> Iterator[Trial]:
  """One signal at a random moment; the process must end with 75 within 10 s."""
  told = stories.all_of(place.bases)
  cycle = (*KILLED, "imports", *(["two processes"] if "two processes" in bases else []))
  while True:
    for name in cycle:
      number, moment = draw.choice(processes.SIGNALS), draw.uniform(0.0, 1.0)
      which = draw.randrange(2)
      run = {"imports": _in_imports, "two processes": _in_two}.get(name, _in_one)

      def trial(folder, run=run, name=name, number=number, moment=moment, which=which):
        story = told.get(name, told["lm"])
        return run(place, bases, story, folder, number, moment, which)

      yield Trial(name, f"{number.name} at {moment:.2f}", trial)


def _judge(ended: processes.Ended, late: float) -> Outcome | None:
  """What is wrong with how a process ended after a signal."""
  if ended.code is None or late > 10.0:
    return Outcome("slow", f"{late:.1f} s: {ended.line()}")
  if not ended.is_clean:
    return Outcome("traceback", ended.line())
  if ended.code not in (os.EX_TEMPFAIL, 0):
    return Outcome("wrong code", f"{ended.code}: {ended.line()}")
  return None


def _in_one(place, bases, story, folder, number, moment, which) -> Outcome:
  del which
  expected, secs = bases[story.name]
  process = place.process(story.words(folder), folder / "told")
  processes.pause(process, 0.05 + moment * secs)
  ended, late = processes.tell(process, number)
  return _judge(ended, late) or _finish(story, folder, place, expected)


def _in_imports(place, bases, story, folder, number, moment, which) -> Outcome:
  """A started process, told while it imports; Python's own start is not ours."""
  del bases, which
  words = [sys.executable, "-X", "importtime", "-m", "gen_jax.cli.main"]
  words += map(str, story.words(folder))

  process = subprocess.Popen(
    words,
    cwd=processes.ROOT,
    env={**os.environ, **place.env},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    preexec_fn=processes.hear_signals,
  )
  for line in process.stderr:
    if line.rstrip().endswith(" gen_jax.system.signals"):
      break
  for _ in itertools.islice(process.stderr, 40 + int(moment * 800)):
    pass  # so many modules later
  process.send_signal(number)
  began = processes.now()
  try:
    _, err = process.communicate(timeout=processes.PATIENCE)
  except subprocess.TimeoutExpired:
    process.kill()
    return Outcome("slow", "imports")
  said = "\n".join(x for x in err.splitlines() if not x.startswith("import time:"))
  late = processes.now() - began
  ended = processes.Ended(process.returncode, "", said, late)
  left = (folder / "run").exists()
  return _judge(ended, late) or (Outcome("lost", "files") if left else Outcome("same"))


def _in_two(place, bases, story, folder, number, moment, which) -> Outcome:
  """Two processes, two devices; one of them is told, both must end with 75."""
  expected, secs = bases[story.name]
  pair = place.pair(story.words(folder), folder / "told")
  processes.pause(pair[which], 0.5 + moment * secs)
  ended, late = processes.tell(pair[which], number)
  other = pair[1 - which].wait(15.0)
  for one in (ended, other):
    if wrong := _judge(one, late):
      return wrong
  return _finish(story, folder, place, expected)


def disks(place, bases, draw: random.Random) -> Iterator[Trial]:
  """A disk that is full before the end; with more room the same command goes on."""
  told = stories.all_of(place.bases)
  while True:
    for name in ("lm", "autoencoder", "diffusion", "sampling text", "encoding"):
      kib = draw.randint(4, 3000 if name in ("lm", "autoencoder", "diffusion") else 64)

      def run(folder, name=name, kib=kib):
        if os.geteuid() != 0:
          return Outcome("skipped", "only root can mount a small disk")
        disk = folder / "disk"
        disk.mkdir(parents=True)
        mount = ("mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", disk)
        if subprocess.run(mount, capture_output=True).returncode:
          return Outcome("skipped", "mount is not allowed here")
        try:
          ended = place.run(told[name].words(disk), folder / "full")
          if ended.code is None:
            return Outcome("hang", f"{kib} KiB")
          if not ended.is_clean:
            return Outcome("traceback", ended.line())
          if ended.code == 2 and len(ended.err.strip().splitlines()) != 1:
            return Outcome("many lines", ended.err[-300:])
          if ended.code not in (0, 2):
            return Outcome("wrong code", f"{ended.code}: {ended.line()}")
          subprocess.run(("mount", "-o", "remount,size=256m", disk), check=True)
          return _finish(told[name], disk, place, bases[name][0])
        finally:
          subprocess.run(("umount", "--lazy", disk), check=False)

      yield Trial(name, f"{kib} KiB", run)


def _found_it_done(ended: processes.Ended) -> bool:
  """Whether a run of its workdir had ended before: there was nothing left to train."""
  found = re.search(r"^resuming .* from step (\d+) of (\d+)", ended.out, re.MULTILINE)
  return found is not None and found[1] == found[2]


def pairs(place, bases, draw: random.Random) -> Iterator[Trial]:
  """Two runs of one workdir at once: one goes on and ends as if alone."""
  story = stories.all_of(place.bases)["lm"]
  while True:
    delay = draw.choice((0.0, draw.uniform(0.0, 0.2), draw.uniform(0.0, 1.0)))

    def run(folder, delay=delay):
      first = place.process(story.words(folder), folder / "first")
      processes.pause(first, delay * bases["lm"][1])
      second = place.process(story.words(folder), folder / "second")
      both = [process.wait(stories.SECS) for process in (first, second)]
      for ended in both:
        if not ended.is_clean:
          return Outcome("traceback", ended.line())
      codes = sorted(ended.code for ended in both)
      if codes == [0, 2]:
        (refused,) = (ended for ended in both if ended.code == 2)
        if "another run (" not in refused.err:
          return Outcome("wrong words", refused.line())
      elif codes != [0, 0] or not any(_found_it_done(ended) for ended in both):
        return Outcome("wrong codes", f"{codes}: {both[0].line()} | {both[1].line()}")
      found = story.digest(folder, place)
      return Outcome("same") if found == bases["lm"][0] else Outcome("differs")

    yield Trial("lm", f"the second after {delay:.2f}", run)
