"""Token stores, measured: tokenising, being killed, and reading; writes results.json.

    python experiments/data/run.py                   # all, of small sizes
    python experiments/data/run.py --mb 4000 --tokens 1000000000
    python experiments/data/run.py --only reading

The corpus is real text that every environment has: the sources and documents of Python
and its packages, a line of JSON each. `datasets` is the peer, if it is installed.
"""

import argparse
import filecmp
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time

import numpy as np

from gen_jax.data import cache, tokenizers
from gen_jax.data.tokens import indexed, store
from gen_jax.system import files

HERE = pathlib.Path(__file__).parent
ENDINGS = (".py", ".md", ".rst", ".txt", ".c", ".h", ".pyi", ".js", ".json")
VOCAB = 32_000
LENGTH, BATCH = 2048, 64


def write_corpus(path: pathlib.Path, num_bytes: int) -> None:
  """Files of this environment as lines of JSON; again from the start if too few."""
  roots = [sysconfig.get_path(name) for name in ("stdlib", "purelib")]
  found = [
    pathlib.Path(home, name)
    for root in dict.fromkeys(roots)
    for home, _, names in os.walk(root)
    for name in sorted(names)
    if name.endswith(ENDINGS)
  ]
  random.Random(0).shuffle(found)
  size, turn = 0, 0
  with path.open("w") as file:
    while size < num_bytes:
      for name in found:
        text = name.read_bytes()[: 2**20].decode("utf-8", "ignore")
        if len(text) > 200:
          size += file.write(json.dumps({"text": text[turn:]}) + "\n")
        if size >= num_bytes:
          break
      turn += 1


def train_tokenizer(corpus: pathlib.Path, home: pathlib.Path) -> None:
  """A byte-level BPE of the corpus's first 20 MB."""
  texts, size = [], 0
  with corpus.open() as file:
    for line in file:
      texts.append(json.loads(line)["text"])
      size += len(texts[-1])
      if size > 2e7:
        break
  tokenizers.train_bpe(texts, VOCAB).save(home)


def command(corpus: pathlib.Path, home: pathlib.Path, to: pathlib.Path, workers: int):
  words = ("--source", corpus, "--tokenizer", home, "--to", to, "--workers", workers)
  run = (sys.executable, "-m", "gen_jax.cli.main", "tokenize", "--shard_mib", 16)
  return list(map(str, (*run, *words)))


def timed(words: list[str]) -> float:
  began = time.perf_counter()
  subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
  return time.perf_counter() - began


def tokenising(home: pathlib.Path, num_bytes: int) -> dict:
  """Seconds of one and two workers and of `datasets.map`; the peak of memory."""
  corpus, tokenizer = home / "corpus.jsonl", home / "tokenizer"
  write_corpus(corpus, num_bytes)
  train_tokenizer(corpus, tokenizer)
  found = {"mb": corpus.stat().st_size / 1e6, "secs": {}}
  for workers in (1, 2):
    to = home / f"store_{workers}"
    found["secs"][f"{workers} workers"] = timed(command(corpus, tokenizer, to, workers))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    found["peak_mib_of_a_worker"] = peak / 1024
  peer = [sys.executable, __file__, "--peer", str(home)]
  try:
    import datasets  # noqa: F401

    for processes in (1, 2):
      name = f"datasets.map, {processes} processes"
      found["secs"][name] = timed([*peer, str(processes)])
  except ImportError:
    print("datasets is not installed: no peer")
  found["tokens"] = store.read_manifest(home / "store_1")["num_tokens"]["train"]
  secs = found["secs"]
  found["two_workers_over_one"] = secs["1 workers"] / secs["2 workers"]
  found["same_bytes"] = same(home / "store_1", home / "store_2")
  return found


def peer(home: pathlib.Path, processes: int) -> None:
  """The way of a user of Hugging Face: the tokenizer in batches over a data set."""
  import datasets
  import tokenizers as huggingface

  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  tokenizer = huggingface.Tokenizer.from_file(
    str(home / "tokenizer" / "tokenizer.json")
  )
  cache_dir = home / f"peer_{processes}"
  data = datasets.load_dataset(
    "json", data_files=str(home / "corpus.jsonl"), split="train", cache_dir=cache_dir
  )

  def encode(rows):
    return {"ids": [x.ids for x in tokenizer.encode_batch(rows["text"])]}

  made = data.map(
    encode, batched=True, num_proc=processes, remove_columns=data.column_names
  )
  assert len(made) == len(data)


def same(one: pathlib.Path, other: pathlib.Path) -> bool:
  names = [files.names(home) for home in (one, other)]
  equal, _, _ = filecmp.cmpfiles(one, other, names[0], shallow=False)
  return names[0] == names[1] and len(equal) == len(names[0])


def killing(home: pathlib.Path, times: int = 10) -> dict:
  """Kills the command at random moments, then lets it end."""
  to, draw = home / "store_killed", random.Random(0)
  words = command(home / "corpus.jsonl", home / "tokenizer", to, 2)
  kills = 0
  while kills < times:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
      process.wait(draw.uniform(1, 15))
      break
    except subprocess.TimeoutExpired:
      os.kill(process.pid, signal.SIGKILL)
      process.wait()
      kills += 1
  subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
  return {"kills": kills, "same_bytes": same(home / "store_1", to)}


def write_store(to: pathlib.Path, num: int) -> None:
  """Random tokens in shards of at most 2^25, documents of 700 on average."""
  draw, shards = np.random.default_rng(0), []
  to.mkdir()
  while num > 0:
    size = min(num, 2**25)
    name = f"train-{len(shards):05}-00000"
    ids = draw.integers(0, VOCAB, size, np.uint16)
    starts = np.unique(draw.integers(0, size, size // 700))
    starts[0] = 0
    written = indexed.write(to / name, [cache.Tokens(ids, starts)])
    shards.append({"name": name, **written._asdict()})
    num -= size
  about = {"format": store.FORMAT, "dtype": "uint16", "tokenizer": "none"}
  manifest = files.sealed({**about, "splits": {"train": shards}})
  files.write_json(to / store.MANIFEST, manifest)


def forget(to: pathlib.Path) -> None:
  """Takes the files out of the page cache, so that they are read from the disk."""
  os.sync()
  for path in to.iterdir():
    with path.open("rb") as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(home: pathlib.Path, num_tokens: int) -> dict:
  """Of a store of 10^7 tokens and one of `num_tokens`."""
  found = {}
  for num in (10**7, num_tokens):
    to = home / f"random_{num}"
    write_store(to, num)
    for kind in ("windows", "packed"):
      forget(to)
      words = [sys.executable, __file__, "--read", str(to), kind]
      done = subprocess.run(words, check=True, capture_output=True, text=True)
      found[f"{num:.0e} tokens, {kind}"] = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(to)
  return found


def _anonymous_mib() -> float:
  status = files.read(pathlib.Path("/proc/self/status"))
  (line,) = (x for x in status.split("\n") if x.startswith("RssAnon"))
  return int(line.split()[1]) / 1024


def read(to: pathlib.Path, kind: str, secs: float = 10.0) -> None:
  """Reads for some seconds; prints what a training process would see."""
  from gen_jax.data import rows
  from gen_jax.data.tokens import feed, order

  before, began = _anonymous_mib(), time.perf_counter()
  stream = store.open_store(to, None).stream("train", 0.0)
  cut = {
    "windows": rows.windows,
    "packed": lambda *given: rows.packed(*given, shared_marks=True),
  }[kind]
  mixture = order.Mixture([order.Stage(0, (1.0,))])
  batches = feed.Feed([stream], mixture, cut, LENGTH, BATCH, VOCAB).stream(0)
  next(batches)
  first, began, num = time.perf_counter() - began, time.perf_counter(), 0
  while time.perf_counter() - began < secs:
    next(batches)
    num += 1
  rate = num * BATCH * LENGTH / (time.perf_counter() - began)
  values = {
    "first_batch_secs": first,
    "million_tokens_per_sec": rate / 1e6,
    "anonymous_mib": _anonymous_mib() - before,
  }
  print(json.dumps(values))


def table(found: dict) -> str:
  """The figures as rows of a table."""
  rows = ["| what | measured |", "|---|---|"]
  if "tokenising" in found:
    one, per = found["tokenising"], found["tokenising"]["tokens"]
    for name, secs in one["secs"].items():
      rate = f"{secs:.0f} s, {per / secs / 1e6:.2f} million tokens a second"
      rows.append(f"| {one['mb']:.0f} MB of text, {name} | {rate} |")
    rows.append(f"| two workers over one | {one['two_workers_over_one']:.2f} times |")
    rows.append(f"| most memory of a worker | {one['peak_mib_of_a_worker']:.0f} MiB |")
    rows.append(f"| two workers' bytes are one's | {one['same_bytes']} |")
    kills, same = found["killing"].values()
    rows.append(f"| killed {kills} times: the same bytes | {same} |")
  for name, one in found.get("reading", {}).items():
    rows.append(
      f"| reading {name} | first batch {one['first_batch_secs']:.2f} s,"
      f" {one['million_tokens_per_sec']:.1f} million tokens a second,"
      f" {one['anonymous_mib']:.0f} MiB |"
    )
  loads = ", ".join(f"{load:.1f}" for load in found["load"])
  rows.append(f"| load of {found['cores']} cores at the end | {loads} |")
  return "\n".join(rows)


def write_table(found: dict) -> None:
  """Puts the table into README.md."""
  path, text = HERE / "README.md", f"<!-- table -->\n{table(found)}\n<!-- end -->"
  pattern = re.compile(r"<!-- table -->.*<!-- end -->", re.DOTALL)
  files.write(path, pattern.sub(lambda _: text, files.read(path)))


def main() -> None:
  """See the module's docstring."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--mb", type=int, default=200)
  parser.add_argument("--tokens", type=int, default=10**8)
  parser.add_argument("--only", choices=("tokenising", "reading"))
  parser.add_argument("--scratch", type=pathlib.Path, default=HERE / "scratch")
  parser.add_argument("--peer", nargs=2)
  parser.add_argument("--read", nargs=2)
  args = parser.parse_args()
  if args.peer:
    return peer(pathlib.Path(args.peer[0]), int(args.peer[1]))
  if args.read:
    return read(pathlib.Path(args.read[0]), args.read[1])
  path = HERE / "results.json"
  found = files.read_json(path) if path.exists() else {}
  shutil.rmtree(args.scratch, ignore_errors=True)
  args.scratch.mkdir(parents=True)
  if args.only != "reading":
    found["tokenising"] = tokenising(args.scratch, args.mb * 10**6)
    found["killing"] = killing(args.scratch)
  if args.only != "tokenising":
    found["reading"] = reading(args.scratch, args.tokens)
  found["load"] = os.getloadavg()
  found["cores"] = os.cpu_count()
  files.write_json(path, found)
  write_table(found)
  print(json.dumps(found, indent=1))
  shutil.rmtree(args.scratch)


if __name__ == "__main__":
  main()
