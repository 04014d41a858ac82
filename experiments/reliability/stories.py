"""Small jobs of every kind of model, and what an unbroken one leaves."""

import dataclasses
import hashlib
import json
import pathlib
import socket
from collections.abc import Callable, Mapping, Sequence

from experiments.reliability import processes

SECS = 240.0  # until a command counts as hung
_TIMED = (
  "_per_sec",
  "mfu",
  "data_wait",
  "time",
  "secs",
  "crc32",
)  # and what is computed of them
_SMALL = (
  *("--config.train.num_steps=9", "--config.train.save_every=3"),
  *("--config.train.ema_decay=0.9", "--config.evaluators.validation.every=3"),
)
_SMALL_LATENTS = (  # of the small autoencoder's digits
  *("--config.task.network.width=16", "--config.task.network.num_groups=8"),
  *(
    "--config.task.network.multipliers=(1,)",
    "--config.task.network.attention_levels=()",
  ),
  *(
    "--config.task.conditioning.text_encoder.width=32",
    "--config.task.conditioning.text_encoder.num_layers=1",
  ),
  "--config.task.conditioning.text_encoder.vocab_size=300",
  "--config.task.codec.autoencoder.multipliers=(1,2)",
  "--config.task.codec.autoencoder.width=8",
  "--config.task.codec.autoencoder.num_groups=4",
  "--config.task.codec.autoencoder.image_channels=1",
  *("--config.data.image_size=8", "--config.data.channels=1"),
  *("--config.data.latent_size=4", "--config.data.batch_size=4"),
  "--config.data.tokenizer.vocab_size=300",
  "--config.evaluators.validation.max_batches=1",
  "--config.train.health_check=False",
)


@dataclasses.dataclass(frozen=True)
class Story:
  """One command, given again until it is done.

  Attributes:
    words: of a folder of its own -> the command.
    digest: of that folder: all that must come out bit for bit.
    processes: that run it.
  """

  name: str
  words: Callable[[pathlib.Path], Sequence[object]]
  digest: Callable[[pathlib.Path, "Place"], str]
  processes: int = 1

  def end(self, place: "Place", folder: pathlib.Path, at: pathlib.Path):
    """Gives the command, to its end; of several processes, that of the worst one."""
    if self.processes == 1:
      return place.run(self.words(folder), at)
    both = [process.wait(SECS) for process in place.pair(self.words(folder), at)]
    return next((one for one in both if one.code or not one.is_clean), both[0])


@dataclasses.dataclass(frozen=True)
class Place:
  """Where trials run: a folder, and what all of them share."""

  folder: pathlib.Path
  env: Mapping[str, str]

  def pair(self, words: Sequence[object], at: pathlib.Path):
    """Starts a command as two processes of one run, a device each."""
    with socket.socket() as free:
      free.bind(("localhost", 0))
      address = f"localhost:{free.getsockname()[1]}"
    words = (*words, f"--coordinator={address}", "--num_processes=2")
    return [
      self.process((*words, f"--process_id={i}"), at / str(i), JAX_NUM_CPU_DEVICES="1")
      for i in range(2)
    ]

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


def latent(codes: pathlib.Path, vae: pathlib.Path):
  """Trains on a folder of codes of that autoencoder."""
  return lambda folder: (
    *("train", "--config", "configs/diffusion/ldm_emoji.py"),
    *("--workdir", folder / "run", *_SMALL, *_SMALL_LATENTS),
    f"--config.data.source.directory={codes}",
    f"--config.task.codec.workdir={vae}",
  )


def all_of(bases: pathlib.Path) -> dict[str, Story]:
  """The stories, by name; those that come later may start from earlier ones."""

  def train(config: str, *words: str):
    return lambda folder: (
      *("train", "--config", config, "--workdir", folder / "run"),
      *_SMALL,
      *words,
    )

  lm, vae, digits = (bases / n / "run" for n in ("lm", "autoencoder", "diffusion"))
  small = "--config.task.network.multipliers=(1,)"
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
    Story(
      "two processes",
      train("configs/lm/pydoc.py:smoke", "--config.mesh.data=2"),
      trained,
      processes=2,
    ),
    Story("encoding", lambda f: ("encode", "--workdir", vae, "--to", f / "out"), files),
    Story("latents", latent(bases / "encoding" / "out", vae), trained),
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
      ended = story.end(place, folder, folder / "log")
      if ended.code:
        raise RuntimeError(f"{name} fails without a fault: {ended.line()}")
      twice.append((story.digest(folder, place), ended.secs))
    if twice[0][0] != twice[1][0]:
      raise RuntimeError(f"{name}: two unbroken runs differ; nothing can be compared")
    found[name] = twice[1]
  return found
