"""Inputs that no one meant to give: accepted or refused in one line, never a trace.

Commands run in the worker's own process, and stop where computing would begin.
"""

import contextlib
import io
import json
import math
import pathlib
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from typing import Any

from experiments.reliability.engine import Outcome, Trial

LIMIT_SECS = 20.0
_VALUES = (
  *(None, True, False, 0, -1, 3, 2**31, 2**63, -(2**70), 10**400, 1e20, 0.5, -0.0),
  *(float("inf"), float("nan"), "", "x", "../..", "\0", "\u2028", "ä" * 300, "1e400"),
  *([], {}, [[]], [1, "a", None], {"name": "x"}, {"a": {"b": {}}}, {"name": None}),
)
_BYTES = (
  *(
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"[" * 100_000,
    b'{"a":' * 50_000,
  ),
  *(
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"\r",
    b"\n\n",
    b"\xe2\x80\xa8",
    b"null",
    b'"',
    b"}",
  ),
)
_WORDS = (
  *("none", "true", "1e400", "-1", "9" * 400, "2**31", "(", "((((" * 5000, "[1,", "''"),
  *("{'name': 'x'}", "{}", "()", "(1,)", "lambda: 1", "__import__('os')", "\0", "nan"),
  *(
    "-(" * 50_000 + "1",
    "1" + "+1" * 20_000,
    "'\\ud800'",
    "*" * 300,
    "~/x",
    "gs://b/x",
  ),
)
_TEMPLATES = (
  *(
    "{{ messages }}",
    "{% for m in messages %}",
    "{{ x.y.z }}",
    "{{ 1/0 }}",
    "{{",
    "{%",
  ),
  *("{% for i in range(999999999) %}x{% endfor %}", "{{ 'a' * 999999999 }}"),
  *(
    "{{ ''.__class__.__mro__ }}",
    "{{ messages[9] }}",
    "{% raw %}",
    "{{ raise_exception(1) }}",
  ),
  "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
)


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
  """One to three slices changed, cut, doubled or put in."""
  for _ in range(draw.randint(1, 3)):
    at, length = draw.randrange(len(content) + 1), draw.randint(1, 40)
    kind = draw.randrange(5)
    if kind == 0:
      content = content[:at] + draw.choice(_BYTES) + content[at:]
    elif kind == 1:
      content = content[:at] + content[at + length :]
    elif kind == 2:
      content = content[:at] + content[at : at + length] * 2 + content[at + length :]
    elif kind == 3:
      content = content[:at] + draw.randbytes(length) + content[at + length :]
    else:
      content = content[:at]
  return content


def mutate_json(value: Any, draw: random.Random) -> Any:
  """One value somewhere in it replaced, removed, renamed or repeated."""
  places = []

  def visit(node):
    if isinstance(node, dict | list):
      keys = list(node) if isinstance(node, dict) else range(len(node))
      for key in keys:
        places.append((node, key))
        visit(node[key])

  value = json.loads(json.dumps(value))
  visit(value)
  if not places:
    return draw.choice(_VALUES)
  node, key = draw.choice(places)
  kind = draw.randrange(6)
  if kind == 0:
    del node[key]
  elif kind == 1 and isinstance(node, dict):
    node[draw.choice(("", "x", "name", key + "s"))] = node.pop(key)
  else:
    node[key] = draw.choice((*_near(node[key]), *_VALUES))
  return value


def _near(value: Any) -> tuple:
  """Values of the same kind, as many as there are others: these come further."""
  if isinstance(value, bool) or value is None:
    return (not value,) * 20
  if isinstance(value, int):
    return (0, 1, 2, 3, 7, value + 1, value * 2, -value, 10**6, 10**9, 2**31 - 1) * 2
  if isinstance(value, float):
    return (0.0, 1.0, 0.3, -value, 2 * value, 1e-30, 1e20, 1e300, 1.0 - 1e-9) * 2
  return (value,) * 5


def mutate_file(path: pathlib.Path, draw: random.Random) -> None:
  """A JSON file by its values or by its bytes, any other by its bytes."""
  content = path.read_bytes()
  if path.suffix == ".json" and draw.random() < 0.7:
    text = json.dumps(mutate_json(json.loads(content), draw))
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
  else:
    path.write_bytes(mutate_bytes(content, draw))


class _Enough(BaseException):
  """All input has been read."""


def _call(words) -> tuple[int, str]:
  """Exit code and stderr of a command that ends before it computes."""
  from gen_jax.cli import main, sample
  from gen_jax.runs import training, weights, workdir

  def begin(config, directory, group, shared):
    del group, shared
    from gen_jax import experiment as experiments

    with workdir.claim(directory, config):
      experiment = experiments.make(config, directory)
      experiment.pipeline("train")
      experiment.abstract_state(experiment.optimizer(1)[0])
    raise _Enough

  def opened(*args, **kwargs):
    raise _Enough

  def draw(args, run):
    run.require_tokenizer()
    tokenizer = run.experiment.tokenizer
    if args.chat:
      tokenizer.encode_chat([{"role": "user", "content": "hello"}])
    list(tokenizer.decode_pieces(tokenizer.encode("hello, world")))
    raise _Enough

  saved = training._begin, weights.load, sample._draw
  training._begin, sample._draw = begin, draw
  weights.load = opened if words[0] == "evaluate" else saved[1]
  out, err, code = io.StringIO(), io.StringIO(), 0
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      try:
        main.main([str(word) for word in words])
      except SystemExit as stop:
        code = stop.code or 0
      except _Enough:
        pass
  finally:
    training._begin, weights.load, sample._draw = saved
  return code, err.getvalue()


def _seen(folder: pathlib.Path) -> list[tuple]:
  paths = sorted(folder.rglob("*"))
  stats = [(p, p.stat()) for p in paths]
  return [(p, s.st_size, s.st_mtime_ns) for p, s in stats if not p.is_dir()] + [
    (p,) for p, _ in stats
  ]


def _judge(words, folder: pathlib.Path) -> Outcome:
  before = _seen(folder)
  code, err = _call(words)
  lines = err.strip().splitlines()
  if code == 70 or code not in (0, 2) or "Traceback" in err:
    return Outcome("traceback", (lines or ["?"])[-1][:300])
  if code == 0:
    return Outcome("accepted")
  # Notes may stand before the error ("gen-jax: ... not verified"), each on its line.
  if not all(line.startswith("gen-jax: ") for line in lines):
    return Outcome("many lines", err[-300:])
  if [line for line in lines if line.startswith("gen-jax: error: ")] != lines[-1:]:
    return Outcome("many errors", err[-300:])
  if _seen(folder) != before:
    new = {p[0] for p in _seen(folder)} ^ {p[0] for p in before}
    return Outcome("written", f"{sorted(map(str, new))[:3]} after {lines[-1][:200]}")
  return Outcome("refused")


def _overrides(place, folder: pathlib.Path, draw: random.Random):
  config = json.loads((place.bases / "lm" / "run" / "config.json").read_text())
  keys = []

  def visit(prefix, node):
    for key, value in node.items():
      keys.append((f"{prefix}{key}", value))
      if isinstance(value, dict):
        visit(f"{prefix}{key}.", value)

  visit("", config)
  words = []
  for _ in range(draw.randint(1, 2)):
    key, value = draw.choice(keys)
    values = (*_WORDS, *map(repr, (*_near(value), *_near(value), *_VALUES)))
    words.append(f"--config.{key}={draw.choice(values)}")
  base = ("train", "--config=configs/lm/pydoc.py:smoke")
  return (*base, "--workdir", folder / "run", *words)


def _flags(place, folder: pathlib.Path, draw: random.Random):
  flags = ("checkpoint", "weights", "num", "seed", "temperature", "top_k", "top_p")
  flags += ("min_p", "stop", "order", "prompt", "coordinator", "host_timeout")
  chosen = [f"--{draw.choice(flags)}={draw.choice(_WORDS)}" for _ in range(2)]
  return ("sample", "--workdir", place.bases / "lm" / "run", *chosen)


def _workdir(place, folder: pathlib.Path, draw: random.Random, *names: str) -> None:
  """A copy of a language model's workdir, one of its files changed."""
  shutil.copytree(
    place.bases / "lm" / "run",
    folder / "run",
    ignore=shutil.ignore_patterns("tensorboard", "3", "6"),
  )
  mutate_file(folder / "run" / draw.choice(names), draw)
  _forget_hashes(folder / "run")


def _forget_hashes(run: pathlib.Path) -> None:
  """A workdir of before there were any, or of somebody who edits files on purpose.

  What a hash refuses is counted among the damages; here readers are tried.
  """
  for path in (run / "run.json", *run.rglob("hashes.json")):
    path.unlink(missing_ok=True)


def _config(place, folder: pathlib.Path, draw: random.Random):
  _workdir(place, folder, draw, "config.json")
  return (draw.choice(("inspect", "report", "sample")), "--workdir", folder / "run")


def _side_files(place, folder: pathlib.Path, draw: random.Random):
  run = folder / "run"
  shutil.copytree(
    place.bases / "lm" / "run", run, ignore=shutil.ignore_patterns("tensorboard", "3")
  )
  (run / "samples").mkdir(exist_ok=True)
  files = {
    "evaluation.json": {"step": 9, "weights": "ema", "validation/loss": 1.5},
    "samples/prompts.json": {"prompts": ["a"], "seed": 0, "step": 9},
    "init_from.json": {"workdir": "x", "step": 9, "weights": "ema", "sha256": "0"},
  }
  for name, value in files.items():
    (run / name).write_text(json.dumps(value))
  (run / "samples" / "text.jsonl").write_text('{"prompt": "a", "text": "b"}\n' * 2)
  names = (*files, "samples/text.jsonl", "metrics.jsonl", "run.json")
  mutate_file(run / draw.choice(names), draw)
  return ("report", "--workdir", run, "--out", folder / "page.html")


def _tokenizer(place, folder: pathlib.Path, draw: random.Random):
  _workdir(
    place, folder, draw, "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"
  )
  return ("sample", "--workdir", folder / "run")


def _template(place, folder: pathlib.Path, draw: random.Random):
  shutil.copytree(
    place.bases / "lm" / "run",
    folder / "run",
    ignore=shutil.ignore_patterns("tensorboard", "3", "6"),
  )
  path = folder / "run" / "tokenizer" / "tokenizer_config.json"
  config = json.loads(path.read_text())
  text = draw.choice(_TEMPLATES)
  if draw.random() < 0.5:
    text = mutate_bytes(text.encode(), draw).decode(errors="replace")
  path.write_text(json.dumps({**config, "chat_template": text}))
  _forget_hashes(folder / "run")
  return ("sample", "--chat", "--workdir", folder / "run")


def _jsonl(folder: pathlib.Path, draw: random.Random, row: dict) -> pathlib.Path:
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "rows.jsonl"
  rows = [json.dumps(row)] * 3
  if draw.random() < 0.5:
    rows.append(json.dumps(mutate_json(row, draw)))
  path.write_bytes("".join(f"{r}\n" for r in rows).encode("utf-8", "surrogatepass"))
  if len(rows) == 3:
    path.write_bytes(mutate_bytes(path.read_bytes(), draw))
  return path


def _questions(place, folder: pathlib.Path, draw: random.Random):
  row = {"context": "one and one is", "choices": [" two", " three"], "label": 0}
  path = _jsonl(folder, draw, row)
  return ("evaluate", "--workdir", place.bases / "lm" / "run", "--choices", path)


def _texts(place, folder: pathlib.Path, draw: random.Random):
  path = _jsonl(folder, draw, {"text": "a text of some words " * 20, "id": 3})
  source = {"name": "jsonl", "pattern": str(path), "validation_fraction": 0.5}
  words = ("train", "--config=configs/lm/pydoc.py:smoke", "--workdir", folder / "run")
  return (*words, f"--config.data.source={source}")


def _released(place, folder: pathlib.Path, draw: random.Random):
  """A GPT-2 as it lies in a folder, one of its files changed, imported."""
  del place
  source = folder / "gpt2"
  source.mkdir(parents=True)
  width, layers, vocab = 4, 1, 256
  config = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": vocab,
    "n_positions": 8,
    "n_embd": width,
    "n_layer": layers,
    "n_head": 2,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
  }
  shapes = {"wte.weight": (vocab, width), "wpe.weight": (8, width)}
  for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
    shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
  for name, size_in, size_out in (
    ("attn.c_attn", width, 3 * width),
    ("attn.c_proj", width, width),
    ("mlp.c_fc", width, 4 * width),
    ("mlp.c_proj", 4 * width, width),
  ):
    shapes |= {
      f"h.0.{name}.weight": (size_in, size_out),
      f"h.0.{name}.bias": (size_out,),
    }
  header, at = {}, 0
  for name, shape in shapes.items():
    size = 4 * math.prod(shape)
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
    at += size
  (source / "config.json").write_text(json.dumps(config))
  which = draw.choice(("config.json", "header", "model.safetensors"))
  if which == "header":
    header = mutate_json(header, draw)
  text = json.dumps(header).encode("utf-8", "surrogatepass")
  (source / "model.safetensors").write_bytes(
    struct.pack("<Q", len(text)) + text + bytes(at)
  )
  if which != "header":
    mutate_file(source / which, draw)
  return ("import", "--from", source, "--workdir", folder / "run")


GROUPS: dict[str, Callable] = {
  "overrides": _overrides,
  "flags": _flags,
  "config.json": _config,
  "side files": _side_files,
  "tokenizers": _tokenizer,
  "templates": _template,
  "questions": _questions,
  "texts": _texts,
  "released weights": _released,
}


def trials(place, bases, draw: random.Random) -> Iterator[Trial]:
  """Each one input, drawn from a seed of its own."""
  del bases
  while True:
    for group, make in GROUPS.items():
      seed = draw.random()

      def run(folder, make=make, seed=seed):
        own = random.Random(seed)
        folder.mkdir(parents=True, exist_ok=True)
        return _judge(make(place, folder, own), folder)

      yield Trial(group, f"seed {seed}", run, LIMIT_SECS)
