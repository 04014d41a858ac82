"""Bad input: one line that names the value, the rule and the fix; code 2; no trace."""

import collections
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen_jax import build, types
from gen_jax.build import overrides as overriding
from gen_jax.nn import attention
from gen_jax.runs import lease, workdir
from gen_jax.system import memory
from gen_jax.train import checkpoint, loop

TEXT = "configs/lm/pydoc.py:smoke"
IMAGES = "configs/diffusion/digits.py:smoke"
COMMANDS = (
  "compare, completion, coordinates, doctor, edit, encode, evaluate, export, "
  "illustrate, import, inspect, launch, list, pack, plan, report, repro, sample, "
  "serve, sweep, together, tokenize, train"
)


@pytest.mark.parametrize(
  "argv, says",
  [
    ("trian", ["'trian'", "did you mean 'train'?", COMMANDS]),
    ("--verbose", ["'--verbose'", "--help"]),
    ("inspect --workdri x", ["'--workdri'", "did you mean '--workdir'?"]),
    ("inspect --workdir x --chekpoint 1", ["'--chekpoint'", "'--checkpoint'"]),
    (f"train --config {TEXT} --dry-run", ["'--dry-run'", "'--dry_run'"]),
    ("train", ["required: --config", "gen-jax train --help"]),
    (f"train --config {TEXT}", ["--workdir is needed"]),
    (f"train --config {TEXT} --workdir=", ["--workdir is not set"]),
    ("inspect there --workdir x", ["--workdir of a run, or", "PATH", "; not both"]),
    ("inspect", ["give --workdir of a run"]),
    ("inspect x.png --step 1", ["--step changes nothing", "not an image"]),
    ("inspect x.png --checkpoint best", ["--checkpoint changes nothing"]),
    ("inspect nowhere.png", ["cannot read nowhere.png: No such file"]),
    ("inspect .", [". is a folder", "--workdir ."]),
    ("evaluate --workdir x --text y --images 3", ["--text and --images", "give one"]),
    ("evaluate --workdir x --choices y --likelihood 3", ["and --likelihood"]),
    (
      "tokenize --source README.md --tokenizer x --to y --workers 99999",
      ["--workers 99999", "four for each core"],
    ),
    ("report --workdir x --to y", ["--to changes nothing", "--sweep"]),
    ("report --sweep r.json --to y", ["--to changes nothing", "r.json alone"]),
    ("report --sweep x --summary y", ["--summary changes nothing"]),
    ("report --sweep README.md", ["README.md has no sweep.py"]),
    ("doctor there", ["unexpected argument 'there'", "doctor --help"]),
    ("doctor --config.seed=1", ["doctor takes no --config"]),
    ("inspect --workdir x --config.seed=1", ["'seed'", "belongs to the trained model"]),
    (f"train --config {TEXT} --config.seed", ["--config.seed=VALUE"]),
    (f"train --config {TEXT} --config.seed --json", ["--config.seed=VALUE"]),
    ("sample --workdir x --num many", ["--num", "'many'", "sample --help"]),
  ],
)
def test_command_line(refuse, argv, says):
  refuse(*argv.split(), says=says)


def test_a_real_process_says_it_the_same_way(tmp_path):
  argv = ["-m", "gen_jax.cli.main", "train", "--config", TEXT, "--workdri", tmp_path]
  done = subprocess.run([sys.executable, *argv], capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (2, "")
  assert len(done.stderr.splitlines()) == 1
  assert "did you mean '--workdir'" in done.stderr


@pytest.mark.parametrize(
  "source, says",
  [
    ("def get_config(arg:", ["SyntaxError", "line 1"]),
    ("x = 1", ["has no function get_config"]),
    ("def get_config():\n  return 1", ["TypeError", "0 positional arguments"]),
    ("def get_config(arg):\n  return 1", ["must return a ConfigDict, not 1"]),
    ("def get_config(arg):\n\n  return oops", ["line 3: NameError", "'oops'"]),
    ("import sys\n\nsys.exit(0)", ["line 3: SystemExit: 0"]),
    ("def get_config(arg):\n  exit()", ["line 2: SystemExit"]),
    ("import nowhere_to_be_found", ["line 1: ModuleNotFoundError", "nowhere"]),
    (
      "import ml_collections\ndef get_config(arg):\n"
      "  return ml_collections.ConfigDict({'seed': 0, 'optimiser': {}})",
      ["'optimiser'", "did you mean 'optimizer'"],
    ),
    (
      "import ml_collections\ndef get_config(arg):\n"
      "  return ml_collections.ConfigDict({'seed': 0})",
      ["the config needs task, data"],
    ),
  ],
)
def test_config_file(refuse, tmp_path, source, says):
  file = tmp_path / "mine.py"
  file.write_text(source)
  says = says if "the config" in says[0] or "opt" in says[0] else [str(file), *says]
  refuse("train", "--config", file, "--workdir", tmp_path / "run", says=says)
  assert os.listdir(tmp_path) == ["mine.py"]


@pytest.mark.parametrize(
  "spec, says",
  [
    ("configs/lm/pydo.py", ["'configs/lm/pydo.py'", "did you mean 'configs/lm/pydoc"]),
    ("configs", ["unknown config 'configs'", "diffusion/digits"]),
    ("configs/lm/pydoc.py:smok", ["'smok'", "did you mean 'smoke'?"]),
    ("configs/lm/pydoc.py:smoke,tiny", ["unknown variant 'tiny'", "smoke"]),
  ],
)
def test_config_path(refuse, tmp_path, spec, says):
  refuse("train", "--config", spec, "--workdir", tmp_path / "run", says=says)
  assert not os.listdir(tmp_path)


OVERRIDES = [
  # Unknown keys, at any level; where the key is instead.
  (TEXT, "sed=1", ["key (of the config) 'sed'", "did you mean 'seed'?"]),
  (TEXT, "train.num_step=1", ["train", "'num_step'", "did you mean 'num_steps'"]),
  (TEXT, "task.model.norm.epss=1", ["task.model.norm", "'epss'", "'eps'?"]),
  (TEXT, "evaluators.validaton.every=1", ["'validaton'", "did you mean 'validation'"]),
  (TEXT, "optimizer.learning_rate.pek=1", ["'pek'", "did you mean 'peak'?"]),
  (
    TEXT,
    "optimizer.momentum=0.9",
    ["optimizer 'adamw'", "'momentum'", "'muon' and 'sgd'"],
  ),
  (TEXT, "learning_rate.peak=1", ["--config.optimizer.learning_rate.peak?"]),
  (TEXT, "optimizer.peak=1", ["--config.optimizer.learning_rate.peak?"]),
  (TEXT, "seed.value=1", ["seed is 0, it has no keys"]),
  (
    TEXT,
    "optimizer.name=adafactor",
    ["optimizer 'adafactor'", "'b2'", "'adamw' and 'muon' and 'lion' have"],
  ),
  # Wrong types.
  (
    TEXT,
    "train.num_steps=ten",
    ["train.num_steps='ten'", "a whole number", "is 2 now"],
  ),
  (TEXT, "train.num_steps=1.5", ["train.num_steps=1.5", "a whole number"]),
  (TEXT, "train.num_steps=none", ["train.num_steps=None", "a whole number"]),
  (TEXT, "train.num_epochs=two", ["train.num_epochs='two'", "a number or None"]),
  (TEXT, "task.model.tied_head=1", ["task.model.tied_head=1", "true or false"]),
  (TEXT, "optimizer.b1=true", ["optimizer.b1=True", "a number"]),
  (TEXT, "task.model.norm=none", ["task.model.norm=None", "a name or a block"]),
  (TEXT, "task.model.norm=3", ["task.model.norm=3", "a name or a block"]),
  (TEXT, "mesh=none", ["the config needs mesh"]),
  (TEXT, "evaluators=none", ["the config needs evaluators"]),
  (
    IMAGES,
    "task.network.multipliers=(1,2.5)",
    ["multipliers[1]=2.5", "a whole number"],
  ),
  (IMAGES, "sampling.guidance_interval=1", ["guidance_interval=(1,)", "a tuple of 2"]),
  # Blocks by name, and names that do not exist.
  (TEXT, "optimizer=lion", ["optimizer 'lion' needs learning_rate"]),
  (TEXT, "optimizer=adam", ["'adam'", "did you mean 'adamw'?", "adafactor, adamw"]),
  (TEXT, "optimizer.learning_rate=cosin", ["'cosin'", "constant, cosine, linear, wsd"]),
  (TEXT, "task.model.norm=layernorm", ["'layernorm'", "'layer_norm'", "rms_norm"]),
  (TEXT, "task.model.dtype=float17", ["'float17'", "bfloat16, float16, float32"]),
  (TEXT, "data.source=tfds", ["'tfds'", "tfds_images, tfds_text"]),
  (TEXT, "evaluators.validation.name=los", ["'los'", "did you mean 'loss'?"]),
  (TEXT, "evaluators.validation.split=tset", ["'tset'", "train, validation"]),
  (TEXT, "mesh.rules=fdsp", ["'fdsp'", "did you mean 'fsdp'", "fsdp_tensor"]),
  (IMAGES, "task.target=epsilon", ["target", "'epsilon'", "'eps'", "velocity, x0"]),
  (IMAGES, "task.schedule=cosin", ["schedule", "'cosin'", "karras", "vp_linear"]),
  (IMAGES, "task.weighting=snr", ["weighting", "'snr'", "min_snr"]),
  (IMAGES, "task.time_sampler=normal", ["'normal'", "logit_normal", "stratified"]),
  (
    IMAGES,
    "sampling.sampler=dimm",
    ["'dimm'", "'ddim'", "churn, ddim, ddpm, dpmpp_2m"],
  ),
  (IMAGES, "sampling.grid=karas", ["'karas'", "did you mean 'karras'?"]),
  # What does not fit together.
  (TEXT, "mesh.data=3", ["mesh data=3", "8 device(s)", "-1 takes all that are left"]),
  (
    TEXT,
    "task.model.head_dim=3",
    ["rotary turns pairs", "the head size, 3, must be even"],
  ),
  # Numbers beyond their range, see tests/build/test_ranges.py.
  (TEXT, "train.num_epochs=-1", ["num_epochs=-1.0 must be more than 0 and finite"]),
  (TEXT, "train.num_epochs=1e400", ["num_epochs=1e400", "float can hold"]),
  (TEXT, "task.model.width=2147483648", ["at least 1 and at most 1048576", "is 32"]),
  (TEXT, "task.model.width=1e20", ["width=1e+20", "a whole number"]),
  (TEXT, "evaluators.validation.every=-1", ["every=-1 must be at least 0"]),
  (TEXT, "mesh.tensor=-1", ["mesh data=-1", "at most one of them -1"]),
  (TEXT, "data.batch_size=6", ["data.batch_size=6", "divisible by 8", "try 8 or 16"]),
  (
    TEXT,
    "train.num_microbatches=3",
    ["data.batch_size=8", "24", "num_microbatches = 3"],
  ),
  (TEXT, "data.length=64", ["data.length=64", "at most", "max_length=32"]),
  (TEXT, "data.source=digits", ["no text", "stdlib, files, jsonl, tfds_text"]),
  (IMAGES, "data.source=pydoc", ["no images", "digits, emoji", "image_folder, npz"]),
  (TEXT, "sampling=image", ["language_model needs sampling.name=text"]),
  (TEXT, "data.source=image_folder", ["data.source 'image_folder' needs directory"]),
  (
    TEXT,
    "task.model.attention_impl=splash",
    ["lengths divisible by 128, got 16", "chunked"],
  ),
  (TEXT, "task.model.head_chunk=7", ["head_chunk=7 must divide the length, 16"]),
  (TEXT, "task.model.num_heads=0", ["num_heads=0 must be at least 1"]),
  (TEXT, "task.model.width=30", ["width=30", "num_heads=4", "try width"]),
  (TEXT, "seed=-1", ["seed=-1 must be at least 0"]),
  (TEXT, "data.tokenizer.vocab_size=301", ["vocab_size=300", "301", "raise it"]),
  (TEXT, "data.tokenizer.vocab_size=100", ["vocab_size=100", "at least 257"]),
  (IMAGES, "data.channels=3", ["data.channels=3", "image_channels=1"]),
  (IMAGES, "data.image_size=7", ["sides divisible by 2, got 7x7", "change image_size"]),
]


@pytest.mark.parametrize(
  "spec, override, says", OVERRIDES, ids=[override for _, override, _ in OVERRIDES]
)
def test_overrides(refuse, tmp_path, spec, override, says):
  run = tmp_path / "deep" / "run"
  refuse("train", "--config", spec, f"--config.{override}", "--workdir", run, says=says)
  assert not os.listdir(tmp_path)


def _source(**block) -> str:
  return f"--config.data.source={block!r}"


@pytest.mark.parametrize(
  "files, block, says",
  [
    ({}, dict(name="files", pattern="{}/*.txt"), ["no file matches", "*.txt'"]),
    ({}, dict(name="files", pattern="{}"), ["no file matches", "folder/*"]),
    ({"a.txt": b""}, dict(name="files", pattern="{}/a.txt"), ["no text in", "a.txt"]),
    (
      {"a.txt": b"caf\xe9" * 9},
      dict(name="files", pattern="{}/*"),
      ["a.txt is not UTF-8 text (byte 3)", "iconv"],
    ),
    ({}, dict(name="files", pattern="/proc/self/mem"), ["cannot read /proc/self/mem"]),
    (
      {"a.txt": b"to be or not to be"},
      dict(name="files", pattern="{}/*"),
      ["training text has", "data.length=16", "give more text"],
    ),
    (
      {"a.txt": b"to be or not to be" * 50},
      dict(name="files", pattern="{}/*", validation_fraction=0.0),
      ["validation text has 0 tokens", "validation_fraction"],
    ),
    (
      {"a.txt": b"to be"},
      dict(name="files", pattern="{}/*", validation_fraction=1.5),
      ["validation_fraction=1.5 must be in [0, 1)"],
    ),
    (
      {"a.jsonl": b'{"text": "x"}\n{"text": '},
      dict(name="jsonl", pattern="{}/*"),
      ["a.jsonl:2 is not JSON"],
    ),
    (
      {"a.jsonl": b'{"text": "x"}\n\n{"txt": "y"}'},
      dict(name="jsonl", pattern="{}/*"),
      ["a.jsonl:3", "'text'", "did you mean 'txt'?"],
    ),
    (
      {"a.jsonl": b'{"text": 5}'},
      dict(name="jsonl", pattern="{}/*"),
      ["a.jsonl:1: 5 is not text"],
    ),
    (
      {"a.jsonl": b'["text"]'},
      dict(name="jsonl", pattern="{}/*"),
      ["a.jsonl[0] is not a JSON object"],
    ),
    (
      {"a.jsonl": b'{"text": "\\ud800"}'},
      dict(name="jsonl", pattern="{}/*"),
      ["a.jsonl:1: text is not valid Unicode"],
    ),
    ({}, dict(name="tfds_text", dataset="c5"), ["'c5'", "not found", "prepared direc"]),
    ({}, dict(name="tfds_text", dataset="{}"), ["cannot open", "dataset_info.json"]),
  ],
)
def test_text_data(refuse, tmp_path, files, block, says):
  data = tmp_path / "data"
  data.mkdir()
  for name, content in files.items():
    (data / name).write_bytes(content)
  block = {
    k: v.replace("{}", str(data)) if isinstance(v, str) else v for k, v in block.items()
  }
  refuse(
    "train",
    "--config",
    TEXT,
    _source(**block),
    "--workdir",
    tmp_path / "run",
    says=says,
  )
  assert os.listdir(tmp_path) == ["data"]


def _png(**changes) -> bytes:
  file = io.BytesIO()
  Image.new("RGB", (4, 4), **changes).save(file, "PNG")
  return file.getvalue()


def _npz(**arrays) -> bytes:
  file = io.BytesIO()
  np.savez(file, **arrays)
  return file.getvalue()


def _npy() -> bytes:
  file = io.BytesIO()
  np.save(file, np.zeros(3))
  return file.getvalue()


GREY = np.zeros((2, 4, 4, 1), np.uint8)
FOLDER = dict(name="image_folder", directory="{}")
NPZ = dict(name="npz", path="{}/a.npz")


@pytest.mark.parametrize(
  "files, block, says",
  [
    ({}, dict(name="image_folder", directory="{}/no"), ["/no' is not a folder"]),
    ({"a.txt": b"x"}, FOLDER, ["holds no images", ".png, .jpg"]),
    (
      {"a.png": _png(), "b.png": _png()[:40]},
      FOLDER,
      ["b.png is not a readable image"],
    ),
    ({"a.jpg": b"not an image"}, FOLDER, ["a.jpg is not a readable image"]),
    (
      {"a.png": _png(), "b.png": _png(), "a.txt": b"red"},
      FOLDER,
      ["1 of 2 images", "the first is", "b.png", "write the missing captions"],
    ),
    (
      {"a.png": _png(), "metadata.jsonl": b'{"file_name": "b.png", "text": "x"}'},
      FOLDER,
      ["1 of 1 images", "metadata.jsonl", "a.png"],
    ),
    (
      {"a.png": _png(), "metadata.jsonl": b'{"file_name": "a.png"}'},
      FOLDER,
      ["metadata.jsonl:1", "unknown field", "'text'", "file_name"],
    ),
    ({}, NPZ, ["cannot read", "a.npz: [Errno 2] No such file"]),
    ({"a.npz": b""}, NPZ, ["cannot read", "not a zip file"]),
    ({"a.npz": _npy()}, NPZ, ["cannot read", "not a zip file"]),
    ({"a.npz": _npz(image=GREY)[:-40]}, NPZ, ["cannot read", ".npz file"]),
    ({"a.npz": _npz(image=GREY)}, NPZ, ["array", "'caption'", "There are: image"]),
    (
      {"a.npz": _npz(image=GREY[0], caption=["a", "b"])},
      NPZ,
      ["image is uint8 [4, 4, 1]", "uint8 [N, H, W, C]"],
    ),
    (
      {"a.npz": _npz(image=GREY / 255.0, caption=["a", "b"])},
      NPZ,
      ["image is float64 [2, 4, 4, 1]", "uint8 [N, H, W, C]"],
    ),
    (
      {"a.npz": _npz(image=np.zeros((1, 4, 4, 4), np.uint8), caption=["a"])},
      NPZ,
      ["image is uint8 [1, 4, 4, 4]", "C of 1 or 3"],
    ),
    (
      {"a.npz": _npz(image=GREY, caption=["a"])},
      NPZ,
      ["caption is <U1 [1]", "one string for each of the 2 images"],
    ),
    ({"a.npz": _npz(image=GREY, caption=[1, 2])}, NPZ, ["caption is int64 [2]"]),
    (
      {"a.npz": _npz(image=GREY, caption=[b"\xff", b"b"])},
      NPZ,
      ["a.npz, caption 0: text is not valid Unicode"],
    ),
    ({}, dict(name="tfds_images", dataset="minst"), ["'minst'", "not found"]),
    (
      {},
      dict(name="tfds_images", dataset="mnist", template="{{digit}}"),
      ["template='{digit}'", "must have {}"],
    ),
  ],
)
def test_image_data(refuse, tmp_path, files, block, says):
  data = tmp_path / "data"
  data.mkdir()
  for name, content in files.items():
    (data / name).write_bytes(content)
  block = {k: v.format(data) for k, v in block.items()} | {"name": block["name"]}
  fraction = {"validation_fraction": 0.0} if "tfds" not in block["name"] else {}
  refuse(
    *("train", "--config", IMAGES, _source(**block, **fraction)),
    *("--workdir", tmp_path / "run"),
    says=says,
  )
  assert os.listdir(tmp_path) == ["data"]


class _Bomb:
  """Writes a file when it is unpickled."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_npz_is_never_unpickled(refuse, tmp_path):
  bomb = np.array([_Bomb(tmp_path / "exploded")] * 2)
  (tmp_path / "a.npz").write_bytes(_npz(image=GREY, caption=bomb))
  source = _source(name="npz", path=str(tmp_path / "a.npz"))
  run = tmp_path / "run"
  says = ["a.npz", "Object arrays cannot be loaded", "without pickled objects"]
  refuse("train", "--config", IMAGES, source, "--workdir", run, says=says)
  assert os.listdir(tmp_path) == ["a.npz"]


def test_workdir_that_cannot_be_written(refuse, tmp_path):
  file = tmp_path / "file"
  file.write_text("mine")
  for run, reason in ((file, "File exists"), (file / "run", "Not a directory")):
    says = ["cannot write to --workdir", str(run), reason, "take another one"]
    refuse("train", "--config", TEXT, "--workdir", run, says=says)
  assert file.read_text() == "mine"


@contextlib.contextmanager
def _files_of_at_most(num_bytes: int):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_at_the_start(refuse, tmp_path):
  with _files_of_at_most(500):
    says = ["cannot write to --workdir", "File too large", "take another one"]
    refuse("train", "--config", TEXT, "--workdir", tmp_path / "run", says=says)
  assert not os.listdir(tmp_path)


@pytest.fixture
def instead_of_training(monkeypatch, text_workdir):
  """Training is one save at step 2; returns the command that resumes the workdir."""

  def run(state, *, progress, manager, **_):
    state = dataclasses.replace(state, step=state.step + 2)
    checkpoint.save(manager, 2, state, progress, 1.0)
    manager.wait_until_finished()
    return loop.Result(state, progress, "finished")

  monkeypatch.setattr(loop, "run", run)
  model = json.loads((text_workdir / "config.json").read_text())["task"]["model"]
  model = f"--config.task.model={model!r}"
  return "train", "--config", TEXT, model, "--workdir", text_workdir


def test_full_disk_at_a_checkpoint(
  refuse, text_workdir, instead_of_training, monkeypatch
):
  folder = text_workdir / "checkpoints"
  (folder / "2").rename(text_workdir / "2")
  usage = collections.namedtuple("usage", "total used free")
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 2**20 // 100))
    says = ["cannot save step 2 to", " MiB needed, 0.01 MiB free", "make room"]
    refuse(*instead_of_training, says=says)
  assert [path.name for path in folder.iterdir()] == ["0"]
  with _files_of_at_most(4000):  # a quota: only the thread that writes comes to know
    says = ["cannot write to", str(folder), "File too large", "make room"]
    refuse(*instead_of_training, says=says)
  with checkpoint.open_manager(text_workdir, read_only=True) as manager:
    assert manager.all_steps() == [0]


def test_workdir_of_another_config(refuse, text_workdir):
  before = (text_workdir / "config.json").read_bytes()
  says = [
    "belongs to another config",
    "optimizer.learning_rate.peak (0.003 there, 0.5 now)",
    "task.model.num_layers (1 there, 2 now)",
    "take another --workdir",
  ]
  peak = "--config.optimizer.learning_rate.peak=0.5"
  refuse("train", "--config", TEXT, peak, "--workdir", text_workdir, says=says)
  assert (text_workdir / "config.json").read_bytes() == before


def _soft_cap(query, keyvalue, mask, cap: float = 5.0):
  return attention.attend(cap * jnp.tanh(query / cap), keyvalue, mask)


def test_only_exact_attention_may_be_exchanged(text_workdir, monkeypatch):
  """Overrides and a second `train` hold one rule; no kernel is named in it."""
  entry = build.Entry(lambda **keys: functools.partial(_soft_cap, **keys), _soft_cap,
                      ("query", "keyvalue", "mask"))  # fmt: skip
  monkeypatch.setitem(build.TABLES["attention_impl"], "soft_cap", entry)
  key = "task.model.attention_impl"
  chunked = workdir.read_config(text_workdir, [(key, "chunked"), (f"{key}.chunk", "4")])
  with workdir.claim(text_workdir, chunked):
    pass
  capped = overriding.apply(chunked, [(key, "soft_cap")])
  with pytest.raises(types.InputError, match="another attention"):
    workdir.read_config(text_workdir, [(key, "soft_cap")])
  with pytest.raises(types.InputError, match=key), workdir.claim(text_workdir, capped):
    pass
  workdir.write_config(text_workdir, capped)
  for other in ("chunked", "{'name': 'soft_cap', 'cap': 4.0}"):
    with pytest.raises(types.InputError, match="another attention"):
      workdir.read_config(text_workdir, [(key, other)])


def test_an_untrained_run_of_another_config_is_replaced(text_workdir):
  """It ended before its first step; with one step it keeps its workdir."""
  config = json.loads((text_workdir / "config.json").read_text())
  other = {**config, "seed": 7}
  with pytest.raises(types.InputError, match="another config: seed"):
    with workdir.claim(text_workdir, other):
      raise AssertionError
  shutil.rmtree(text_workdir / "checkpoints" / "2")
  with workdir.claim(text_workdir, other):
    assert not (text_workdir / "tokenizer").exists()  # the other one's
    assert not (text_workdir / "checkpoints").exists()
  assert workdir.read_config(text_workdir)["seed"] == 7


def test_a_workdir_where_another_run_is_at_work(refuse, text_workdir):
  before = sorted(text_workdir.rglob("*"))
  config = json.loads((text_workdir / "config.json").read_text())
  model = f"--config.task.model={config['task']['model']!r}"
  with lease.hold(text_workdir):
    says = [f"process {os.getpid()}) is at work in", "take another --workdir"]
    refuse("train", "--config", TEXT, model, "--workdir", text_workdir, says=says)
  assert sorted(text_workdir.rglob("*")) == before


def test_folder_of_another_program(refuse, tmp_path):
  """A foreign tokenizer would be taken for this run's own."""
  (tmp_path / "tokenizer").mkdir()
  says = [str(tmp_path), "has tokenizer but no config.json"]
  refuse("train", "--config", TEXT, "--workdir", tmp_path, says=says)
  assert os.listdir(tmp_path) == ["tokenizer"]


def test_a_workdir_that_checkpoints_could_not_be_read_from(refuse, tmp_path):
  """Arrays under a backslash would be written to a folder, and read from none."""
  path = tmp_path / "lr\\1e-3"
  refuse("train", "--config", TEXT, "--workdir", path, says=["a backslash"])
  assert not os.listdir(tmp_path)


def test_a_failed_start_takes_away_its_own_files_alone(text_workdir, tmp_path):
  config = json.loads((text_workdir / "config.json").read_text())
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "notes").write_text("keep this")
  for folder in (text_workdir, tmp_path / "mine", tmp_path / "new" / "run"):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt), workdir.claim(folder, config):
      if folder != text_workdir:
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").touch()
      raise KeyboardInterrupt
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["sample", "evaluate", "inspect", "report"])
def test_not_a_workdir(refuse, tmp_path, command):
  for path in (tmp_path, tmp_path / "none", pathlib.Path(__file__)):
    says = [f"{path} is not a workdir", "no config.json"]
    refuse(command, "--workdir", path, says=says)
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize("command", ["sample", "evaluate", "inspect"])
def test_no_checkpoint(refuse, text_workdir, command):
  (text_workdir / "checkpoints").rename(text_workdir / "moved")
  refuse(command, "--workdir", text_workdir, says=["has no checkpoint yet", "train it"])
  shutil.rmtree(text_workdir / "tokenizer")
  refuse(command, "--workdir", text_workdir, says=["has no checkpoint yet", "train it"])
  assert not (text_workdir / "tokenizer").exists()


@pytest.mark.parametrize(
  "name, content, says",
  [
    ("config.json", b'{"seed": 0, "ta', ["config.json is damaged", "Unterminated"]),
    ("config.json", b"\xff\xfe", ["config.json is damaged", "UTF-8"]),
    ("config.json", b"[1]", ["config.json: a config has the keys", "[1]"]),
    ("config.json", b'{"seed": 0}', ["config.json: the config needs task"]),
    (
      "tokenizer/tokenizer.json",
      b'{"model": ',
      ["cannot read tokenizer", "tokenizer.json"],
    ),
    ("tokenizer/tokenizer.json", b"", ["cannot read tokenizer", "tokenizer.json"]),
  ],
)
@pytest.mark.parametrize("command", ["sample", "inspect"])
def test_damaged_workdir(refuse, text_workdir, command, name, content, says):
  (text_workdir / name).write_bytes(content)
  refuse(command, "--workdir", text_workdir, says=says)


LONG = "word " * 40


@pytest.mark.parametrize(
  "flags, says",
  [
    ("--temperature -1", ["temperature=-1.0", "at least 0"]),
    ("--temperature hot", ["temperature='hot'", "a number"]),
    ("--top_p 0", ["top_p=0.0 must be in (0, 1]"]),
    ("--top_p 1.5", ["top_p=1.5 must be in (0, 1]"]),
    ("--top_k 0", ["top_k=0", "at least 1"]),
    ("--top_k some", ["top_k='some'", "a whole number or None"]),
    ("--min_p 1", ["min_p=1.0 must be in [0, 1)"]),
    ("--max_tokens 0", ["max_tokens=0 must be at least 1"]),
    ("--num 0", ["--num 0 must be at least 1"]),
    ("--seed -1", ["--seed -1 must be at least 0"]),
    (f"--seed {2**64}", [f"--seed {2**64}", "2**63"]),
    ("--checkpoint newest", ["'newest'", "best, latest or a step"]),
    ("--checkpoint 7", ["no checkpoint at step 7", "there are: [0, 2]"]),
    ("--weights emma", ["'emma'", "did you mean 'ema'?"]),
    ("--num_steps 5", ["--num_steps is for images", "--temperature"]),
    ("--sampler ddim", ["--sampler is for images", "--top_p"]),
    (f"--out {__file__}", [f"cannot write to {__file__}", "another --out"]),
  ],
)
def test_sampling_text(refuse, text_workdir, flags, says):
  refuse("sample", "--workdir", text_workdir, *flags.split(), says=says)
  assert not (text_workdir / "samples").exists()


def test_prompts(refuse, text_workdir, tmp_path):
  sample = ("sample", "--out", tmp_path / "out", "--workdir", text_workdir, "--prompt")
  says = ["tokens", "the model's context holds 32", "shorten the prompt"]
  refuse(*sample, LONG, says=says)
  refuse(*sample, "\udcff", says=["'\\udcff' is not valid Unicode"])
  assert not (tmp_path / "out").exists()


def test_caption(refuse, image_workdir, tmp_path, monkeypatch):
  def zeros(manager, abstract, **_):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract), 0

  monkeypatch.setattr(checkpoint, "restore_weights", zeros)
  says = [LONG, "tokens", "the text encoder reads 12: shorten it"]
  out = tmp_path / "out"
  refuse(
    "sample", "--workdir", image_workdir, "--out", out, "--prompt", LONG, says=says
  )
  assert not out.exists()


@pytest.mark.parametrize(
  "flags, says",
  [
    ("--temperature 1", ["--temperature is for text", "--sampler"]),
    ("--num_steps 0", ["num_steps=0 must be at least 1"]),
    ("--sampler dimm", ["'dimm'", "'ddim'", "churn, ddim, ddpm, dpmpp_2m"]),
    ("--grid karas", ["'karas'", "did you mean 'karras'?", "uniform_logsnr"]),
    ("--guidance_scale big", ["guidance_scale='big'", "a number"]),
    ("--guidance_rescale 2", ["guidance_rescale=2.0 must be in [0, 1]"]),
    ("--guidance_interval 0.5", ["guidance_interval=(0.5,)", "a tuple of 2"]),
    ("--guidance_interval 0.5,0.2", ["guidance_interval=0.5,0.2", "rising times"]),
    ("--grid {'name':'leading','first':1.5}", ["grid.first=1.5 must be in (0, 1]"]),
  ],
)
def test_sampling_images(refuse, image_workdir, flags, says):
  refuse("sample", "--workdir", image_workdir, *flags.split(), says=says)
  assert not (image_workdir / "samples").exists()


def _truncate(folder: pathlib.Path) -> None:
  for path in folder.rglob("*"):
    if path.is_file():
      os.truncate(path, path.stat().st_size // 2)


def _lose_metadata(folder: pathlib.Path) -> None:
  (folder / "state" / "_METADATA").unlink()


def _lose_state(folder: pathlib.Path) -> None:
  (folder / "state").rename(folder / "elsewhere")


@pytest.mark.parametrize("damage", [_truncate, _lose_metadata, _lose_state])
def test_damaged_checkpoints(call, refuse, text_workdir, damage):
  """The newest, which is the best as well, then both."""
  folder = text_workdir / "checkpoints"
  damage(folder / "2")
  inspect = ("inspect", "--json", "--workdir", text_workdir, "--checkpoint")
  outcome = call(*inspect, "latest")
  (warning,) = outcome.err.splitlines()
  assert "step 2 cannot be read" in warning and "going back to step 0" in warning
  for done in (outcome, call(*inspect, "best")):
    assert json.loads(done.out.splitlines()[-1])["step"] == 0
  says = ["no checkpoint", "can be read, of [2]", "move that folder away"]
  refuse("inspect", "--workdir", text_workdir, "--checkpoint", "2", says=says)
  damage(folder / "0")
  says = [str(folder), "can be read, of [0, 2]", "move that folder away"]
  refuse("inspect", "--workdir", text_workdir, says=says)
  assert sorted(path.name for path in folder.iterdir()) == ["0", "2"]


def test_training_goes_on_below_a_damaged_checkpoint(
  call, text_workdir, instead_of_training
):
  """Orbax would silently skip every save up to the damaged step."""
  folder = text_workdir / "checkpoints"
  _truncate(folder / "2")
  outcome = call(*instead_of_training)
  assert outcome.code == 0, outcome.err
  assert "step 2 cannot be read" in outcome.out
  with checkpoint.open_manager(text_workdir, read_only=True) as manager:
    assert manager.all_steps() == [0, 2]
  assert len(list(folder.glob("2.damaged-*"))) == 1  # nothing is lost


def test_what_was_trained_cannot_be_overridden_later(refuse, text_workdir):
  words = ("evaluate", "--workdir", text_workdir, "--config.data.length=4")
  refuse(*words, says=["'data.length'", "trained model", "mesh, sampling"])


@pytest.mark.parametrize("there, says", [(1e5, "state takes"), (4.2e5, "state takes")])
def test_what_cannot_fit_is_refused_before_anything_is_written(
  refuse, tmp_path, monkeypatch, there, says
):
  """The state alone is too much, or the step's temporaries are."""
  monkeypatch.setattr(memory, "available", lambda sharding: there)
  folder = tmp_path / "run"
  refuse(
    *("train", "--config", TEXT, "--workdir", folder),
    says=["out of memory: a device needs", says],
  )
  assert not folder.exists()


def test_a_checkpoint_that_cannot_fit_is_not_read(refuse, text_workdir, monkeypatch):
  monkeypatch.setattr(memory, "available", lambda sharding: 1e3)
  refuse(
    *("sample", "--workdir", text_workdir, "--prompt", "a"),
    says=["out of memory: the checkpoint would take"],
  )
