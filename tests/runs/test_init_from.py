"""Runs that start from another workdir's weights, whole or through adapters."""

import json
import shutil

import jax
import pytest

import gen_jax
from gen_jax import experiment as experiments
from gen_jax import tree
from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.models import transformer
from gen_jax.runs import workdir
from tests.cli import conftest
from tests.runs import conftest as old

CONFIG = "configs/lm/pydoc.py:smoke"
SHAPE = {"num_layers": 2, "width": 8, "num_heads": 2}


def words(directory, *more, **model):
  model = {f"--config.task.model.{k}={v}" for k, v in {**SHAPE, **model}.items()}
  quick = "--config.evaluators={}"
  return (
    "train",
    "--config",
    CONFIG,
    "--workdir",
    directory,
    quick,
    *sorted(model),
    *more,
  )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A trained-looking model: random weights at step 2."""
  path = tmp_path_factory.mktemp("base") / "run"
  changes = {f"task.model.{k}": str(v) for k, v in SHAPE.items()}
  experiment = conftest._claim(path, "configs/lm/pydoc.py", *changes.items())
  conftest.save(path, experiment, [(2, 1.0)], std=0.1)
  return path


def opened(directory, which="latest"):
  return gen_jax.open(directory).weights(which)


def digest(weights):
  return tree.sha256(jax.device_get(weights))


@pytest.mark.parametrize("scan", [False, True])
def test_step_zero_has_the_weights_of_the_source(scan, base, tmp_path, call):
  start = f"--config.init_from.workdir={base}"
  still = "--config.optimizer.learning_rate.peak=0.0"
  first = call(*words(tmp_path / "a", start, still, scan_layers=scan))
  assert first.code == 0, first
  got = opened(tmp_path / "a").params
  got = got if not scan else transformer.unstack(got)
  assert digest(got) == digest(opened(base).params)
  a, b = (p / "tokenizer" / "tokenizer.json" for p in (tmp_path / "a", base))
  assert not a.exists() or a.read_bytes() == b.read_bytes()


@pytest.mark.long
def test_adapters_train_resume_and_leave_the_base_alone(base, tmp_path, call, refuse):
  home = shutil.copytree(base, tmp_path / "base")
  before = digest(opened(home).params)
  more = (f"--config.init_from.workdir={home}", "--config.adapter.name=lora")
  steps = ("--config.train.save_every=1", "--config.train.keep=9")
  run = words(tmp_path / "a", *more, *steps)
  assert call(*run).code == 0
  end = opened(tmp_path / "a")
  state = gen_jax.open(tmp_path / "a").state()
  assert set(tree.flatten(state.params)) < {
    f"block_{i}/attention/{name}/kernel/{part}"
    for i in range(2)
    for name in ("query", "key", "value")
    for part in "ab"
  }
  assert digest(opened(home).params) == before
  assert digest(opened(tmp_path / "a", "0").params) == before  # b = 0
  assert digest(end.params) != before
  shutil.rmtree(tmp_path / "a" / "checkpoints" / "2")
  resumed = call(*run)
  assert "resuming" in resumed.out
  assert digest(opened(tmp_path / "a").params) == digest(end.params)

  sample = ("sample", "--checkpoint", "latest", "--workdir", tmp_path / "a")
  home.rename(tmp_path / "moved")  # the base is an item of the run by now
  assert call(*sample).code == 0
  assert digest(opened(tmp_path / "a").params) == digest(end.params)
  (tmp_path / "moved").rename(home)

  noted = old.base_by_its_hash(tmp_path / "a")
  assert digest(opened(tmp_path / "a").params) == digest(end.params)
  assert call(*run).code == 0
  text = noted.read_text()
  noted.write_text(json.dumps({**json.loads(text), "sha256": "0"}))
  refuse(*sample, says=["init_from.json is damaged", "file_sha256"])
  changed = {k: v for k, v in json.loads(text).items() if k != "file_sha256"}
  noted.write_text(json.dumps({**changed, "sha256": "0"}))
  refuse(*sample, says=["are not those that"])
  noted.write_text(text)
  home.rename(tmp_path / "moved")
  refuse(*sample, says=[f"{home} has no checkpoints"])
  at = f"--config.init_from.workdir={tmp_path / 'moved'}"
  assert call("sample", "--workdir", tmp_path / "a", at).code == 0


@pytest.mark.long
def test_a_run_with_adapters_is_a_source_like_any_other(base, tmp_path, call, refuse):
  """Its adapters in its base, bit for bit; whole weights and new adapters on top."""
  start = "--config.init_from.workdir="
  adapter = ("--config.adapter.name=lora", "--config.adapter.alpha=40.0")
  first = words(tmp_path / "a", f"{start}{base}", *adapter)
  assert call(*first).code == 0
  want = digest(opened(tmp_path / "a").params)
  assert want != digest(opened(base).params)
  latest = "--config.init_from.checkpoint=latest"
  still = "--config.optimizer.learning_rate.peak=0.0"
  saves = ("--config.train.save_every=1", "--config.train.keep=9", latest)
  for name, scan, flag in (("whole", True, still), ("again", False, adapter[0])):
    more = (f"{start}{tmp_path / 'a'}", flag, *saves)
    done = call(*words(tmp_path / name, *more, scan_layers=scan))
    assert done.code == 0, done
    got = opened(tmp_path / name, "0").params
    assert digest(transformer.unstacked(got)) == want

  # Known by its parts: on another mesh it is still the same.
  mesh = ("--config.mesh.data=4", "--config.mesh.fsdp=2")
  assert call("sample", "--workdir", tmp_path / "again", *mesh).code == 0
  old.base_by_its_hash(tmp_path / "again")
  assert digest(opened(tmp_path / "again", "0").params) == want
  assert call("sample", "--workdir", tmp_path / "again", *mesh).code == 0
  config = tmp_path / "a" / "config.json"
  text = config.read_text()
  config.write_text(text.replace('"alpha": 40.0', '"alpha": 41.0'))
  sample = ("sample", "--checkpoint", "latest", "--workdir", tmp_path / "again")
  refuse(*sample, says=[f"{config} is damaged", "run.json"])
  (tmp_path / "a" / "run.json").unlink()  # as earlier versions left it
  refuse(*sample, says=["are not those that"])
  config.write_text(text)
  wide = words(tmp_path / "b", f"{start}{tmp_path / 'a'}", latest, mlp_width=12)
  refuse(*wide, says=[f"{tmp_path / 'a'} belongs to another model: block_0/mlp"])
  assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (("--config.init_from.workdir=/nowhere",), "/nowhere has no checkpoints"),
    (("--config.init_from.checkpoint=7",), "no checkpoint at step 7"),
    (("--config.init_from.checkpoint=last",), "must be best, latest or a step"),
    (
      ("--config.task.model.mlp_width=12",),
      "belongs to another model: params/block_0/mlp",
    ),
    (("--config.task.model.num_layers=3",), "block_2/"),
    (("--config.adapter.name=lora", "--config.adapter.pattern=xyz"), "'xyz'"),
    (("--config.adapter.name=lora", "--config.adapter.rank=0"), "rank=0"),
  ],
)
def test_nothing_is_written_when_the_source_does_not_fit(
  changes, says, base, tmp_path, refuse
):
  start = f"--config.init_from.workdir={base}"
  refuse(*words(tmp_path / "a", start, *changes), says=[says])
  assert not (tmp_path / "a").exists()


def test_adapters_need_a_base(tmp_path, refuse):
  refuse(*words(tmp_path / "a", "--config.adapter.name=lora"), says=["init_from"])


def test_a_config_without_a_task_takes_that_of_its_source(
  base, tmp_path, call, refuse, monkeypatch
):
  monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.chdir(tmp_path)  # where there is no quickstart's run to start from
  run = (
    *("train", "--config", "lm/finetune:summaries"),
    *("--workdir", tmp_path / "a", "--config.train.num_steps=1"),
    *("--config.data.length=32", "--config.data.source.max_chars=60"),
    *("--config.data.batch_size=8", "--config.evaluators.validation.max_batches=1"),
    *("--config.evaluators.answers.num=2", "--config.evaluators.answers.max_tokens=2"),
  )
  start = f"--config.init_from.workdir={base}"
  refuse(*run[:3], "--workdir", tmp_path / "b", says=["runs/quickstart/text", "not a"])
  outcome = call(*run, start)
  assert outcome.code == 0, outcome
  config = workdir.read_config(tmp_path / "a")
  assert config["task"] == workdir.read_config(base)["task"]
  assert digest(opened(tmp_path / "a", "0").params) == digest(opened(base).params)
  assert "answers/exact_match" in (tmp_path / "a" / "metrics.jsonl").read_text()
  moved = f"--config.init_from.workdir={tmp_path / 'gone'}"
  assert call(*run, moved).code == 0  # it has a task of its own by now
  # The template came along: the run can be talked to.
  said = call("sample", "--workdir", tmp_path / "a", "--chat", "--prompt", "def f")
  assert said.code == 0, said


def fine_tuned(digits_workdir, *more):
  own = [("init_from.workdir", str(digits_workdir)), ("data.batch_size", "8"), *more]
  config = config_files.load(f"{conftest.ROOT}/configs/diffusion/finetune.py:full")
  return overriding.apply(workdir.inherit_task(config, own, None), own)


def test_fine_tuning_takes_the_size_of_images_from_what_it_starts_from(digits_workdir):
  """None is as there; what is given stays, and is said where it differs."""
  there = workdir.read_config(digits_workdir)["data"]
  config = fine_tuned(digits_workdir)
  for key in workdir.OF_IMAGES:
    assert config["data"][key] == there[key]
  assert workdir.unlike_start(config) is None
  assert experiments.make(config, None).data.channels == 1
  given = ("data.image_size", "16"), ("data.caption_length", "10")
  config = fine_tuned(digits_workdir, *given)
  assert (config["data"]["image_size"], config["data"]["channels"]) == (16, 1)
  said = workdir.unlike_start(config)
  assert "data.image_size=16 (8 there)" in said and str(digits_workdir) in said
  assert "data.caption_length=10 (12 there)" in said and "channels" not in said


def test_an_imported_folder_of_images_that_is_not_set_is_refused(
  digits_workdir, refuse, tmp_path
):
  """data.source.directory is empty in the config: never the current folder."""
  words = ("train", "--config", "configs/diffusion/finetune.py:full")
  start = f"--config.init_from.workdir={digits_workdir}"
  words = (*words, "--config.data.batch_size=8")
  says = ["data.source.directory is not set"]
  refuse(*words, "--workdir", tmp_path / "w", start, says=says)
  assert not (tmp_path / "w").exists()
