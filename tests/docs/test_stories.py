"""Every command in README and docs/ runs, made small; or it says what it would need.

The stories are those of the pages: each command finds what those before it have left.
"""

import contextlib
import json
import pathlib
import shlex
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from gen_jax.cli import main
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

# {page: {beginning of a command: what makes it small, and words in place of others}}.
STORIES = {
  "README.md": {
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
    "sweep experiments/learning_rate --list": ("", {}),
    "compare runs/a0,runs/a1,runs/a2": ("", {}),
    "compare runs/a0 runs/b0": ("", {}),
    "compare experiments": ("", {}),
  },
  "tpu.md": {
    "plan": ("--quick --config.task.model.num_layers=2", {}),
    "launch": ("--dry_run", {}),
  },
}

# What would need something that is not here, or hours, and which test does it small.
ELSEWHERE = {
  "train --config configs/lm/pydoc.py --dry_run": "tests/cli/test_commands.py",
  "import --from DIRECTORY --workdir runs/dit_xl": "tests/convert/test_dit.py",
  "sample --workdir runs/dit_xl": "tests/convert/test_dit.py",
  "export --workdir runs/dit_xl": "tests/convert/test_dit.py",
  "plan --config configs/diffusion/dit.py:xl": "tests/cost/test_plan.py",
  "plan --config configs/lm/gpt2.py:124m": "tests/cli/test_plan.py",
  "import --from DIRECTORY_OR_HUB_ID": "tests/docs/test_stories.py",
  "import --from DIRECTORY_OR_FILE_OR_HUB_ID": "tests/docs/test_stories.py",
  "train --config configs/lm/finetune.py:instructions": "tests/docs/test_stories.py",
  "sample --workdir runs/llama --interactive": "tests/e2e/test_talk.py",
  "sample --workdir W --chat": "tests/cli/test_instruct.py",
  "serve": "tests/serving/test_server.py",
  "export --workdir runs/sd --to v1": "tests/convert/test_stable_diffusion.py",
  "edit --workdir runs/sd": "tests/convert/test_stable_diffusion.py",
  "edit --workdir E": "tests/tasks/test_editing.py",
  "evaluate --workdir runs/ldm": "tests/docs/test_stories.py",
  "train --config C --workdir s3:": "tests/e2e/test_buckets.py",
  "export --workdir s3:": "tests/system/test_buckets.py",
  "train --config C --workdir /shared/run": "tests/e2e/test_hosts.py",
  "tokenize --source corpus/*.jsonl.zst --tokenizer TOKENIZER": (
    "tests/data/tokens"  # a bucket
  ),
  "sweep experiments/learning_rate --jobs": "tests/cli/test_sweep.py",
  "sweep experiments/learning_rate --record": "tests/cli/test_sweep.py",
  "sweep experiments/mine": "tests/sweeps/test_searching.py",
  "report --sweep": "tests/cli/test_sweep.py",
  "repro experiments/learning_rate": ".ci/run",
  "train --config lm/gpt2 --config.task.model.base_width": "tests/train/test_mup.py",
  "coordinates": "tests/cli/test_coordinates.py",
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
  assert all((ROOT / place).exists() for place in ELSEWHERE.values())


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
  mask = np.full((8, 8), 0, np.uint8)
  mask[:4] = 255
  Image.fromarray(mask).save(path / "mask.png")
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
  if page == "text.md":
    spec = ("--config", "lm/llama:7b,smoke", "--workdir", "runs/made")
    call(["train", *spec, "--config.task.model.max_length=512"])
    call(["export", "--workdir", "runs/made", "--to", "released"])
    spec = ("--config", "runs/made", "--workdir", "runs/mine", *shlex.split(TRAIN))
    lora = ("--config.init_from.workdir=runs/made", "--config.adapter.name=lora")
    call(["train", *spec, *lora])
  if page == "data.md":
    call(["train", "--config", "lm/pydoc", "--workdir", "runs/text", *small])
  if page == "images.md":
    spec = ("--config", "diffusion/digits", "--workdir", DIGITS)
    call(["train", *spec, *shlex.split(NETWORK), "--config.evaluators.reading=None"])


@pytest.mark.long
@pytest.mark.parametrize("page", STORIES)
def test_story(page, call, folder):
  _clear(folder)
  _before(page, call, folder)
  for name, words in test_commands.commands():
    if name != page or (begin := _in_story(page, words)) is None:
      continue
    more, others = STORIES[page][begin]
    words = [others.get(word, word) for word in words]
    at = words.index("--") if "--" in words else len(words)
    print("gen-jax", *words, flush=True)
    call([*words[:at], *shlex.split(more), *words[at:]])
    if "--baseline" in words:  # its numbers are another's, later
      shutil.copy("runs/ldm/evaluation.json", "other.json")


def _clear(folder):
  for name in ("runs", "stores", "exported", "released", "adapter"):
    shutil.rmtree(folder / name, ignore_errors=True)
