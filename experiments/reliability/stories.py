"""Small jobs of every kind of model, and what an unbroken one leaves."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

from experiments.reliability import processes

SECS = 240.0  # until a command counts as hung
_TIMED = ("_per_sec", "mfu", "secs", "crc32")  # and what is computed of them
_SMALL = (
  *("--config.train.num_steps=9", "--config.train.save_every=3"),
  *("--config.train.ema_decay=0.9", "--config.evaluators.validation.every=3"),
)


@dataclasses.dataclass(frozen=True)
class Story:
  """One command, given again until it is done.

  Attributes:
    words: of a folder of its own -> the command.
    digest: of that folder: all that must come out bit for bit.
  """

  name: str
  words: Callable[[pathlib.Path], Sequence[object]]
  digest: Callable[[pathlib.Path, "Place"], str]


@dataclasses.dataclass(frozen=True)
class Place:
  """Where trials run: a folder, and what all of them share."""

  folder: pathlib.Path
  env: Mapping[str, str]

  def process(self, words: Sequence[object], at: pathlib.Path, **env: str):
    """Starts a command; what it says goes to `at`."""
    return processes.Process(processes.command(words), {**self.env, **env}, at)

  def run(self, words: Sequence[object], at: pathlib.Path, secs: float = SECS):
    """Runs a command to its end."""
    return self.process(words, at).wait(secs)

  @property
  def bases(self) -> pathlib.Path:
    """Unbroken runs, by story; read only."""
    return self.folder / "bases"


def rows(workdir: pathlib.Path) -> list[dict]:
  """Of metrics.jsonl, without what depends on time, in one order."""
  found = []
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line).items()
    found.append({k: v for k, v in row if not any(t in k for t in _TIMED)})
  return sorted(found, key=lambda row: (row["step"], sorted(row)))


def trained(folder: pathlib.Path, place: Place) -> str:
  """Hashes of the state by `gen-jax inspect`, and the metrics."""
  words = ("inspect", "--workdir", folder / "run", "--json")
  ended = place.run(words, folder / "inspect")
  if ended.code:
    return f"inspect: {ended.line()}"
  hashes = json.loads(ended.out.splitlines()[-1])["sha256"]
  return json.dumps([hashes, rows(folder / "run")], sort_keys=True)


def files(folder: pathlib.Path, place: Place) -> str:
  """Names and hashes of all files in the folder `out`."""
  del place
  paths = sorted(p for p in (folder / "out").rglob("*") if p.is_file())
  hashes = [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]
  names = [str(p.relative_to(folder)) for p in paths]
  return json.dumps(list(zip(names, hashes, strict=True)))


def all_of(bases: pathlib.Path) -> dict[str, Story]:
  """The stories, by name; those that come later may start from earlier ones."""

  def train(config: str, *words: str):
    return lambda folder: (
      *("train", "--config", config, "--workdir", folder / "run"),
      *_SMALL,
      *words,
    )

  lm, vae, digits = (bases / n / "run" for n in ("lm", "autoencoder", "diffusion"))
  small = "--config.task.unet.multipliers=(1,)"
  lora = ("--config.adapter.name=lora", f"--config.init_from.workdir={lm}")
  text = ("--prompt=The ", "--prompt=A class", "--num=24", "--max_tokens=16")
  draw = ("--prompt=the digit one", "--prompt=two", "--num=4", "--num_steps=4")
  stories = (
    Story("lm", train("configs/lm/pydoc.py:smoke"), trained),
    Story("lora", train("configs/lm/pydoc.py:smoke", *lora), trained),
    Story("autoencoder", train("configs/vae/emoji.py:smoke"), trained),
    Story("diffusion", train("configs/diffusion/digits.py:smoke", small), trained),
    Story(
      "sampling text",
      lambda f: ("sample", "--workdir", lm, "--out", f / "out", *text),
      files,
    ),
    Story(
      "sampling images",
      lambda f: ("sample", "--workdir", digits, "--out", f / "out", *draw),
      files,
    ),
    Story("encoding", lambda f: ("encode", "--workdir", vae, "--to", f / "out"), files),
  )
  return {story.name: story for story in stories}


def make_bases(place: Place, names: Sequence[str]) -> dict[str, tuple[str, float]]:
  """Runs stories unbroken, twice; (digest, seconds of the second) of each.

  Raises:
    RuntimeError: one fails, or two unbroken runs differ.
  """
  found = {}
  for name, story in all_of(place.bases).items():
    if name not in names:
      continue
    twice = []
    for folder in (place.bases / name, place.folder / "again" / name):
      ended = place.run(story.words(folder), folder / "log")
      if ended.code:
        raise RuntimeError(f"{name} fails without a fault: {ended.line()}")
      twice.append((story.digest(folder, place), ended.secs))
    if twice[0][0] != twice[1][0]:
      raise RuntimeError(f"{name}: two unbroken runs differ; nothing can be compared")
    found[name] = twice[1]
  return found
