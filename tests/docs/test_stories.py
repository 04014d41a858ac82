"""Every command in README and docs/ runs, made small; or it says what it would need.

The stories are those of the pages: each command finds what those before it have left.
"""

import contextlib
import io
import json
import pathlib
import shlex
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from gen_jax.cli import main
from tests.convert import test_dit
from tests.docs import test_commands

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden_pictures" / "v1"
TRAIN = "--config.train.num_steps=2 --config.train.health_check=False"
ONE = "--config.evaluators.validation.max_batches=1"
TEXT = f"{TRAIN} {ONE} --config.task.model.num_layers=1 --config.task.model.width=24"
TEXT += " --config.task.model.num_heads=2 --config.data.length=16"
TUNED = f"{TRAIN} {ONE} --config.data.batch_size=2"
ANSWERS = "--config.evaluators.answers.num=1 --config.evaluators.answers.max_tokens=2"
NETWORK = f"{TRAIN} {ONE} --config.task.network.width=16 --config.data.batch_size=4"
NETWORK += " --config.sampling.num_steps=2"
VAE = "--config.task.{}autoencoder.multipliers=(1,) --config.task.{}autoencoder.width=8"
VAE += " --config.task.{}autoencoder.latent_channels=4"
LDM = f"{NETWORK} {VAE.format(*['codec.'] * 3)} --config.data.latent_size=16"
LDM += " --config.task.network.image_channels=4 --config.data.latent_channels=4"
LDM += " --config.data.image_size=16 --config.task.conditioning.text_encoder.width=16"
DIGITS = "runs/digits"
SMALL = {"experiments/learning_rate": "small"}
SWEEPS = {
  "small": """get_sweep():
  return product(fixed(SHORT), values(X_AXIS, (1e-3, 1e-2)), values("seed", (0, 1)))
""",
  "mine": """get_search():
  return {"optimizer.learning_rate.peak": log_uniform(1e-4, 1e-1), **SHORT}
""",
}
SWEEP = '''"""Which rate?"""
from gen_jax.sweeps import fixed, log_uniform, product, values
CONFIG, METRIC = "lm/pydoc:smoke", "validation/loss"
X_AXIS = "optimizer.learning_rate.peak"
SHORT = {"train.num_steps": 9}
def {}'''

# {page: {beginning of a command: what makes it small, and words in place of others}}.
STORIES = {
  "README.md": {
    "train --config configs/lm/pydoc.py --dry_run": ("", {}),
    "import --from DIRECTORY_OR_HUB_ID": ("", {"DIRECTORY_OR_HUB_ID": "released"}),
    "sample --workdir runs/llama --interactive": ("--max_tokens 2", {}),
    "train --config configs/lm/finetune.py:instructions": (
      f"{TUNED} {ANSWERS} --config.data.length=384",
      {},
    ),
    "import --from DIRECTORY_OR_FILE": (
      "",
      {"DIRECTORY_OR_FILE_OR_HUB_ID": str(GOLDEN)},
    ),
    "edit --workdir runs/sd": (
      "--num_steps 2",
      {"apple.png": "my_dog/0.png", "mask.png": "mask16.png"},
    ),
    "evaluate --workdir runs/ldm": ("", {"runs/ldm": DIGITS, "500": "4"}),
    "train --config C --workdir s3:": (
      f"{TEXT} --config.train.num_steps=14 --config.data.batch_size=2",
      {"C": "lm/pydoc"},
    ),
    "sweep": ("", SMALL),
    "repro": ("", SMALL),
    "report --sweep": ("", SMALL),
    "list": ("lm/pydoc", {}),
    "train --config lm/pydoc": (TEXT, {}),
    "train --config configs/lm/pydoc.py --workdir runs/text": (TEXT, {}),
    "sample --workdir runs/text --prompt": ("--max_tokens 2", {}),
    "train --config configs/diffusion/digits.py": (
      f"{NETWORK} --config.evaluators.reading.num=2",
      {},
    ),
    "sample --workdir runs/digits": ("", {}),
    "evaluate --workdir runs/digits": ("", {}),
    "inspect": ("", {}),
    "report --workdir": ("", {}),
    "doctor": ("", {}),
    "launch": ("--dry_run", {}),
    "compare": ("", {}),
    "plan": ("--quick --config.task.model.num_layers=2", {}),
  },
  "text.md": {
    "sample --workdir runs/llama --interactive": ("--max_tokens 2", {}),
    "sample --workdir W --chat": ("--max_tokens 2", {"W": "runs/instructions"}),
    "import --from DIRECTORY_OR_HUB_ID": ("", {"DIRECTORY_OR_HUB_ID": "released"}),
    "export --workdir runs/llama": ("", {}),
    **{
      f"train --config configs/lm/finetune.py:{name}": (
        f"{TUNED} {ANSWERS} --config.init_from.workdir=runs/llama {more}",
        {"W": f"runs/{name}"},
      )
      for name, more in (
        ("summaries", "--config.data.source.max_chars=60 --config.data.length=128"),
        ("completion", "--config.data.length=128"),
        ("instructions", "--config.data.length=384"),
        ("translation", "--config.data.length=128"),
      )
    },
    "sample --workdir W --infill": ("--max_tokens 2", {"W": "runs/completion"}),
    "export --workdir runs/mine": ("", {}),
    "import --from ADAPTER_OR_HUB_ID": ("", {"ADAPTER_OR_HUB_ID": "adapter"}),
  },
  "images.md": {
    "plan": ("--quick --config.task.network.num_layers=2", {}),
    "import --from DIRECTORY --workdir": ("", {"DIRECTORY": "pipeline"}),
    "sample --workdir runs/dit_xl": ("--num_steps 2", {"golden retriever": "hen"}),
    "export --workdir runs/dit_xl": ("", {"exported": "runs/exported"}),
    "edit --workdir E": (
      "--num_steps 2",
      {"E": "runs/edit", "before.png": "my_dog/0.png"},
    ),
    "import --from DIRECTORY_OR_FILE": (
      "",
      {
        "DIRECTORY_OR_FILE_OR_HUB_ID": str(GOLDEN),
        "FILE": str(GOLDEN / "lora_kohya.safetensors"),
      },
    ),
    "sample --workdir runs/sd --prompt a red": ("--num_steps 2", {}),
    "export --workdir runs/sd --to exported": ("", {}),
    "import --from FILE_OR_DIRECTORY": (
      "",
      {"FILE_OR_DIRECTORY": str(GOLDEN / "lora_kohya.safetensors")},
    ),
    "export --workdir runs/styled --to DIRECTORY": ("", {}),
    "export --workdir runs/styled --to FILE": ("", {}),
    "train --config configs/diffusion/finetune.py:lora": (TUNED, {}),
    "sample --workdir runs/sd --prompt a dog": ("--num_steps 2", {"200": "2"}),
    "train --config configs/diffusion/finetune.py:dreambooth": (
      TUNED,
      {"runs/mine": "runs/dog"},
    ),
    "train --config configs/vae/emoji.py": (
      f"{TRAIN} {ONE} --config.data.image_size=16 --config.data.batch_size=4"
      f" {VAE.format('', '', '')}",
      {},
    ),
    "encode": ("", {}),
    "train --config configs/diffusion/ldm_emoji.py": (LDM, {}),
    "train --config configs/diffusion/dit.py": (
      f"{NETWORK} --config.task.network.num_layers=1 --config.evaluators.reading=None",
      {},
    ),
    "sample --workdir runs/dit --num": ("", {}),
    "sample --workdir W --prompt a red apple": ("", {"W": DIGITS}),
    "edit --workdir W --image apple.png --prompt green apple --strength": (
      "",
      {"W": DIGITS},
    ),
    "edit --workdir W --image apple.png --prompt green apple --mask": (
      "",
      {"W": DIGITS},
    ),
    "edit --workdir W --image apple.png --invert a red apple --prompt": (
      "",
      {"W": DIGITS},
    ),
    "edit --workdir W --image apple.png --invert a red apple --vary": (
      "",
      {"W": DIGITS},
    ),
    "evaluate --workdir W --images 500 --baseline": ("", {"W": "runs/ldm", "500": "4"}),
    "evaluate --workdir W --folder": ("", {"W": "runs/ldm"}),
    "evaluate --workdir VAE": ("", {"VAE": "runs/vae", "1000": "2"}),
    "evaluate --workdir W --likelihood": ("", {"W": DIGITS, "100": "2"}),
    "evaluate --workdir W --images 500 --against": (
      "",
      {"W": "runs/ldm", "500": "4", "other/evaluation.json": "other.json"},
    ),
  },
  "data.md": {
    "tokenize": ("--workers 1", {}),
    "train --config configs/lm/gpt2.py": (
      f"{TEXT} --config.data.batch_size=2 --config.task.model.vocab_size=1024",
      {},
    ),
    "pack": ("--workers 1", {}),
    "train --config configs/vae/emoji.py": (
      f"{TRAIN} {ONE} --config.data.image_size=16 --config.data.batch_size=4"
      f" {VAE.format('', '', '')}",
      {},
    ),
  },
  "scale.md": {
    "plan --config configs/lm/gpt2.py:124m": (
      "--quick --limit 2 --config.task.model.num_layers=1",
      {},
    ),
    "train --config C --workdir s3:": (f"{TRAIN} {ONE}", {"C": "lm/llama:7b,smoke"}),
    "export --workdir s3:": ("", {}),
    "plan --config configs/lm/llama.py:7b": (
      "--quick --config.task.model.num_layers=2",
      {},
    ),
    "train --config C --workdir W": (
      f"{TEXT} --config.train.num_steps=14 --config.data.batch_size=2",
      {"C": "lm/pydoc", "W": "runs/profiled"},
    ),
    "launch --on ssh": ("--dry_run", {}),
    "launch --on tpu-vm": ("--dry_run", {}),
    "launch --on slurm": ("--dry_run", {}),
    "launch --on sky": ("--dry_run", {}),
  },
  "sweeps.md": {
    "sweep experiments/learning_rate": ("", SMALL),
    "repro": ("", SMALL),
    "sweep experiments/mine": (
      "--fresh 2",
      {"experiments/mine": "mine", "40": "2", "80": "4", "60": "3"},
    ),
    "train --config lm/gpt2": (
      f"{TRAIN} --workdir runs/mup",
      {
        "lm/gpt2": "lm/gpt2:smoke",
        "--config.task.model.base_width=256": "--config.task.model.base_width=16",
      },
    ),
    "coordinates": (
      "--steps 1 --seeds 1",
      {"lm/gpt2": "lm/pydoc:smoke", "64,128,256,512,1024": "32,64"},
    ),
    "sweep experiments/learning_rate --list": ("", {}),
    "compare runs/a0,runs/a1,runs/a2": ("", {}),
    "compare runs/a0 runs/b0": ("", {}),
    "compare experiments": ("", {}),
  },
  "tpu.md": {
    "tokenize": ("", {"TOKENIZER": "runs/text/tokenizer", "32": "1"}),
    "plan": ("--quick --config.task.model.num_layers=2", {}),
    "launch": ("--dry_run", {}),
  },
}

# What needs something that is not here, and the test that does its like.
ELSEWHERE = {
  "export --workdir runs/sd --to v1": (
    "Stable Diffusion 1 itself",
    "tests/convert/test_stable_diffusion.py",
  ),
  "train --config C --workdir /shared/run": ("two hosts", "tests/e2e/test_hosts.py"),
  "serve": ("somebody who asks and stops it", "tests/serving/test_server.py"),
}


def _in_story(page, words):
  """The longest beginning in the page's story that a command has; None without one."""
  line = " ".join(words)
  found = [begin for begin in STORIES.get(page, ()) if line.startswith(begin)]
  return max(found, key=len, default=None)


def test_every_command_is_in_a_story_or_elsewhere():
  told = {(page, begin): [] for page, story in STORIES.items() for begin in story}
  others = dict.fromkeys(ELSEWHERE, 0)
  for page, words in test_commands.commands():
    begin, line = _in_story(page, words), " ".join(words)
    if begin is not None:
      told[page, begin].append(line)
      continue
    known = [other for other in ELSEWHERE if line.startswith(other)]
    assert known, f"{page}: no story has `gen-jax {line}`"
    others[max(known, key=len)] += 1
  assert all(told.values()), [where for where, lines in told.items() if not lines]
  assert all(others.values()), [name for name, count in others.items() if not count]
  assert all((ROOT / place).exists() for _, place in ELSEWHERE.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with what the pages take to be there."""
  path = tmp_path_factory.mktemp("reader")
  for name in ("configs", "experiments"):
    (path / name).symlink_to(ROOT / name)
  draw = np.random.default_rng(0)
  for name in ("images/train", "images/validation", "my_dog"):
    (path / name).mkdir(parents=True)
    for i in range(8):
      pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(path / name / f"{i}.png")
      (path / name / f"{i}.txt").write_text("a red apple")
  Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(
    path / "apple.png"
  )
  for name, side in (("mask.png", 8), ("mask16.png", 16)):
    mask = np.zeros((side, side), np.uint8)
    mask[: side // 2] = 255
    Image.fromarray(mask).save(path / name)
  for name, body in SWEEPS.items():
    (path / name).mkdir()
    (path / name / "sweep.py").write_text(SWEEP.replace("{}", body))
  (path / "pipeline").mkdir()
  test_dit.whole_pipeline(path / "pipeline")
  say = {"instruction": "Say {}.", "input": "", "output": "one"}
  asked = [{k: v.format(i) for k, v in say.items()} for i in range(100)]
  (path / "alpaca_data.json").write_text(json.dumps(asked))
  for end in ("en", "de"):
    (path / f"train.{end}").write_text("".join(f"one {i}\n" for i in range(100)))
  import zstandard

  lines = "".join(json.dumps({"text": "one two three " * 20}) + "\n" for _ in range(40))
  (path / "corpus").mkdir()
  packed = zstandard.ZstdCompressor().compress(lines.encode())
  (path / "corpus" / "a.jsonl.zst").write_bytes(packed)
  return path


@pytest.fixture(scope="module")
def call(folder):
  """Runs a line as in the folder, on one device."""
  with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
    patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    yield lambda words: main.run([str(word) for word in words])


def _before(page, call, folder):
  """What a page's story takes from others."""
  small = shlex.split(f"{TEXT} --config.data.batch_size=2")
  if page in ("README.md", "sweeps.md"):
    for name in [f"runs/{a}{i}" for a in "ab" for i in range(3)]:
      spec = ("--config", "lm/pydoc:smoke", "--workdir", name)
      call(["train", *spec, f"--config.seed={name[-1]}"])
  if page in ("README.md", "text.md"):
    spec = ("--config", "lm/llama:7b,smoke", "--workdir", "runs/made")
    call(["train", *spec, "--config.task.model.max_length=512"])
    call(["export", "--workdir", "runs/made", "--to", "released"])
    spec = ("--config", "runs/made", "--workdir", "runs/mine", *shlex.split(TRAIN))
    lora = ("--config.init_from.workdir=runs/made", "--config.adapter.name=lora")
    call(["train", *spec, *lora])
  if page in ("data.md", "tpu.md"):
    call(["train", "--config", "lm/pydoc", "--workdir", "runs/text", *small])
  if page == "images.md":
    spec = ("--config", "diffusion/digits", "--workdir", DIGITS)
    call(["train", *spec, *shlex.split(NETWORK), "--config.evaluators.reading=None"])
    call(["train", "--config", "diffusion/shapes_edit:smoke", "--workdir", "runs/edit"])


@pytest.mark.long
@pytest.mark.parametrize("page", STORIES)
def test_story(page, call, folder, bucket, gs_bucket, monkeypatch):
  _clear(folder)
  _before(page, call, folder)
  buckets = {"s3://bucket": bucket, "gs://other": gs_bucket, "gs://NAME": gs_bucket}
  for name, words in test_commands.commands():
    if name != page or (begin := _in_story(page, words)) is None:
      continue
    more, others = STORIES[page][begin]
    words = [others.get(word, word) for word in words]
    for name, address in buckets.items():
      words = [word.replace(name, address) for word in words]
    at = words.index("--") if "--" in words else len(words)
    print("gen-jax", *words, flush=True)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/exit\n"))
    call([*words[:at], *shlex.split(more), *words[at:]])
    if "--baseline" in words:  # its numbers are another's, later
      shutil.copy(f"{words[2]}/evaluation.json", "other.json")
    if words[:2] == ["sweep", "small"] and "--jobs" in words:
      call([*words[:2], "--record"])  # for `repro`


def _clear(folder):
  for name in ("runs", "stores", "exported", "released", "adapter"):
    shutil.rmtree(folder / name, ignore_errors=True)
