"""Every config: its ':smoke' runs two steps, its full size has a consistent shape."""

import pathlib

import jax
import pytest

from gen_jax import experiment as experiments
from gen_jax import tree
from gen_jax.build import config_files
from gen_jax.cli import main
from gen_jax.runs import workdir

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(
  str(p.relative_to(ROOT))
  for p in (ROOT / "configs").glob("*/*.py")
  if p.name != "__init__.py"
)


def variants(file):
  """'file:variant' for each variant that a config names, or the file alone."""
  names = getattr(config_files.module(file), "VARIANTS", ())
  return [f"{file}:{name}" for name in names] or [file]


CONFIGS = [spec for file in FILES for spec in variants(str(ROOT / file))]
# As published, or closed forms: V D + L (12 D^2 + 2 D norms) + D for rotary, bias-free,
# tied models.
SIZES = {
  "lm/pydoc.py": 1024 * 192 + 4 * (12 * 192**2 + 4 * 192) + 2 * 192,
  "lm/gpt2.py:124m": 124_439_808,
  "lm/gpt2.py:355m": 354_823_168,
  "lm/gpt2.py:774m": 774_030_080,
  "lm/gpt2.py:1558m": 1_557_611_200,
  "lm/llama.py:7b": 6_738_415_616,
  "lm/llama.py:13b": 13_015_864_320,
  "lm/llama.py:33b": 32_528_943_616,
  "lm/llama.py:65b": 65_285_660_672,
  "lm/llama.py:2-70b": 68_976_648_192,
  "lm/llama.py:3-8b": 8_030_261_248,
  "lm/llama.py:3-70b": 70_553_706_496,
  "lm/llama.py:3.1-405b": 405_853_388_800,
  "lm/llama.py:3.2-1b": 1_235_814_400,
  "lm/llama.py:3.2-3b": 3_212_749_824,
  "lm/llama.py:tinyllama": 1_100_048_384,
  "lm/shakespeare.py:cpu": 804_096,
  "lm/shakespeare.py:gpu": 10_745_088,
  "lm/shakespeare.py:best": 804_096 - 64 * 128,  # no table of positions
  # Networks and text encoders; the autoencoder is not trained.
  "diffusion/stable_diffusion.py:v1": 859_520_964 + 123_060_480,
  "diffusion/stable_diffusion.py:v1-inpainting": 859_535_364 + 123_060_480,
  "diffusion/stable_diffusion.py:v2-base": 865_910_724 + 340_387_840,
  "diffusion/stable_diffusion.py:v2": 865_910_724 + 340_387_840,
  "diffusion/ddpm_cifar10.py": 35_746_307,
  "diffusion/dit.py:xl": 675_129_632 - 256 * 1152,  # less the fixed positions
}
# Brown et al. 2020 print rounded sizes; these are of their shapes, in millions.
ROUNDED = {
  "lm/gpt3.py:small": 125.2,
  "lm/gpt3.py:medium": 355.9,
  "lm/gpt3.py:large": 760.3,
  "lm/gpt3.py:xl": 1316,
  "lm/gpt3.py:2.7b": 2652,
  "lm/gpt3.py:6.7b": 6658,
  "lm/gpt3.py:13b": 12950,
  "lm/gpt3.py:175b": 174600,
}


def name(spec):
  return spec.removeprefix(f"{ROOT}/configs/")


ON_EIGHT = ("lm/pydoc.py", "diffusion/digits.py", "vae/emoji.py")
SHORT = ("lm/pydoc.py", "lm/gpt2.py", "lm/llama.py", "lm/gpt3.py", "lm/shakespeare.py")


def files():
  """All, those that take long marked so."""
  for file in FILES:
    marks = () if file.endswith(SHORT) else pytest.mark.long
    yield pytest.param(file, id=file, marks=marks)


@pytest.mark.parametrize("config", list(files()))
def test_smoke_runs_two_steps(config, tmp_path, monkeypatch):
  """Of each kind of task one on eight devices, for which compiling takes longer."""
  if not config.endswith(ON_EIGHT):
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  words = ["train", "--config", f"{config}:smoke", "--workdir", str(tmp_path / "run")]
  result = main.run(words)
  assert result["reason"] == "finished" and result["step"] == 2
  assert result["loss"] > 0 and result["validation/loss"] > 0


LARGE = [  # like others, and slow to trace
  *(f"diffusion/stable_diffusion.py:{v}" for v in ("v2", "v2-base", "v1-inpainting")),
  *(f"diffusion/finetune.py:{v}" for v in ("full", "lora", "dreambooth")),
]


@pytest.mark.parametrize(
  "config",
  [
    pytest.param(c, id=name(c), marks=[pytest.mark.long] * (name(c) in LARGE))
    for c in CONFIGS
  ],
)
def test_full_size_builds_without_data(config, monkeypatch):
  monkeypatch.chdir(ROOT)
  blocks = config_files.load(config)
  if blocks["task"] is None:  # it is that of the model to start from
    if "/diffusion/" in config:
      start = config_files.load("configs/diffusion/stable_diffusion.py")
      blocks["task"] = start["task"]
      for key in workdir.OF_IMAGES:
        blocks["data"][key] = start["data"][key]
    else:
      blocks["task"] = config_files.load(f"{config},smoke")["task"]
      blocks["task"]["model"]["max_length"] = 256
  blocks["mesh"] = {"data": 1, "fsdp": 1, "tensor": 1, "rules": "fsdp"}
  with monkeypatch.context() as m:
    m.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    experiment = experiments.make(blocks, None)
  optimizer, rate = experiment.optimizer(experiment.train.num_steps)
  state = experiment.abstract_state(optimizer)
  size = tree.size(state.params)
  if name(config) in ROUNDED:
    assert size / 1e6 == pytest.approx(ROUNDED[name(config)], rel=2e-3)
  else:
    assert size == SIZES.get(name(config), size)
  assert rate(experiment.train.num_steps // 2) > 0
  assert (state.ema is None) == (experiment.train.ema_decay is None)
