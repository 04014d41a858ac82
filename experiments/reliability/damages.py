"""Files of workdirs and caches that come back changed: right to the bit, or said."""

import pathlib
import random
import shutil
from collections.abc import Iterator

from experiments.reliability import stories
from experiments.reliability.engine import Outcome, Trial

NEEDS = ("lm", "lora", "autoencoder", "diffusion", "encoding", "latents")
_WORDS = ("gen-jax:", "damaged", "cannot be read", "torn", "is gone")  # of who says it
_PASSED_OVER = ("tensorboard", "report.html")


def flip(path: pathlib.Path, draw: random.Random, others) -> None:
  """One bit."""
  del others
  content = bytearray(path.read_bytes())
  at = draw.randrange(len(content))
  content[at] ^= 1 << draw.randrange(8)
  path.write_bytes(content)


def truncate(path: pathlib.Path, draw: random.Random, others) -> None:
  """The end is missing."""
  del others
  path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def zero_tail(path: pathlib.Path, draw: random.Random, others) -> None:
  """The end is zero, as after a power cut."""
  del others
  content = path.read_bytes()
  at = draw.randrange(len(content))
  path.write_bytes(content[:at] + bytes(len(content) - at))


def swap(path: pathlib.Path, draw: random.Random, others) -> None:
  """The content of another file, of the same kind if there is one."""
  alike = [o for o in others if o.suffix == path.suffix and o != path] or others
  other = draw.choice(alike)
  ours, theirs = path.read_bytes(), other.read_bytes()
  path.write_bytes(theirs)
  other.write_bytes(ours)


def delete(path: pathlib.Path, draw: random.Random, others) -> None:
  """Gone."""
  del draw, others
  path.unlink()


WAYS = (flip, flip, truncate, zero_tail, swap, delete)


def trials(place, bases, draw: random.Random) -> Iterator[Trial]:
  """Each a copy of a folder, one fault in it, and the command that reads it."""
  told = stories.all_of(place.bases)
  cases = {name: _resume for name in ("lm", "lora", "autoencoder", "diffusion")}
  cases |= {"lm, sampled": _sample, "token cache": _from_cache}
  cases |= {"latents": _from_latents}
  cases = {
    n: case for n, case in cases.items() if n.split(",")[0] in (*bases, "token cache")
  }
  while True:
    for name, case in cases.items():
      seed = draw.random()

      def run(folder, case=case, name=name, seed=seed):
        story = name if name in bases else "lm"
        return case(place, told[story], bases[story][0], folder, random.Random(seed))

      yield Trial(name, f"seed {seed}", run)


def _damage(tree: pathlib.Path, draw: random.Random) -> str:
  """Damages one file of a tree; says which, and how."""
  paths = sorted(p for p in tree.rglob("*") if p.is_file() and p.stat().st_size)
  paths = [p for p in paths if not any(n in p.parts for n in _PASSED_OVER)]
  if draw.random() < 0.5:  # by size: where the weights are
    (path,) = draw.choices(paths, [p.stat().st_size for p in paths])
  else:  # each folder as often as each other
    parent = draw.choice(sorted({p.parent for p in paths}))
    path = draw.choice([p for p in paths if p.parent == parent])
  way = draw.choice(WAYS)
  way(path, draw, paths)
  return f"{way.__name__} {path.relative_to(tree)}"


def _judge(ended, is_same: bool, what: str, found: str = "") -> Outcome:
  if ended.code is None:
    return Outcome("hang", what)
  if not ended.is_clean:
    return Outcome("traceback", f"{what}: {ended.line()}")
  if ended.code:
    many = ended.err.count("gen-jax: error:") != 1  # notes may stand before it
    return Outcome("many lines" if many else "said", f"{what}: {ended.err[-300:]}")
  if is_same:
    return Outcome("same")
  is_said = any(word in ended.err + ended.out for word in _WORDS)
  return Outcome("said" if is_said else "silent", f"{what}: {found[:200]}")


def _resume(place, story, expected, folder, draw) -> Outcome:
  """A run that was ended before its last checkpoint goes on."""
  shutil.copytree(place.bases / story.name / "run", folder / "run")
  shutil.rmtree(folder / "run" / "checkpoints" / "9")
  what = _damage(folder / "run", draw)
  ended = place.run(story.words(folder), folder / "log")
  found = "" if ended.code else story.digest(folder, place)
  return _judge(ended, found == expected, what, found)


def _sample(place, story, expected, folder, draw) -> Outcome:
  """Drawn from a damaged workdir: the same text, or a line."""
  del story, expected
  words = ("--prompt=The ", "--num=2", "--max_tokens=8")
  shutil.copytree(place.bases / "lm" / "run", folder / "run")
  drawn = []
  for at in ("whole", "damaged"):
    what = _damage(folder / "run", draw) if at == "damaged" else ""
    out = folder / at / "out"
    words_at = ("sample", "--workdir", folder / "run", "--out", out, *words)
    ended = place.run(words_at, folder / f"{at}-log")
    drawn.append("" if ended.code else stories.files(folder / at, place))
  return _judge(ended, drawn[0] == drawn[1], what)


def _from_cache(place, story, expected, folder, draw) -> Outcome:
  """A run from the start, whose tokens lie in a damaged cache."""
  shutil.copytree(place.folder / "cache", folder / "cache")
  what = _damage(folder / "cache", draw)
  process = place.process(
    story.words(folder), folder / "log", GEN_JAX_CACHE=str(folder / "cache")
  )
  ended = process.wait(stories.SECS)
  found = "" if ended.code else story.digest(folder, place)
  return _judge(ended, found == expected, what, found)


def _from_latents(place, story, expected, folder, draw) -> Outcome:
  """A run from the start on damaged codes."""
  shutil.copytree(place.bases / "encoding" / "out", folder / "codes")
  what = _damage(folder / "codes", draw)
  words = stories.latent(folder / "codes", place.bases / "autoencoder" / "run")
  ended = place.run(words(folder), folder / "log")
  found = "" if ended.code else story.digest(folder, place)
  return _judge(ended, found == expected, what, found)
