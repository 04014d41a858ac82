"""Defaults stand in signatures alone; config.json has them all, and keeps them."""

import functools
import inspect
import json
import shutil

import pytest

import gen_jax
from gen_jax import build, ranges
from gen_jax import experiment as experiments
from gen_jax.build import config_files, tables
from gen_jax.build import overrides as overriding
from gen_jax.runs import workdir
from gen_jax.train import optim
from gen_jax.types import InputError
from tests.cli import conftest
from tests.configs.test_configs import CONFIGS, name

TEXT = "configs/lm/pydoc.py:smoke"
digits_workdir = conftest.digits_workdir
ENTRIES = [
  pytest.param(kind, entry, id=f"{kind}-{name}")
  for kind, table in build.TABLES.items()
  for name, entry in table.items()
]
# Repeated to be seen, or to undo what a config starts from.
SHOWN = {
  *("data.caption_length", "optimizer.b2", "optimizer.weight_decay"),
  *("optimizer.learning_rate.final_fraction", "optimizer.learning_rate.warmup_steps"),
  *("sampling.guidance_scale", "sampling.num_steps", "sampling.top_p"),
  *("task.condition", "task.discriminator", "task.drop_prob", "task.model.dropout"),
  *("task.model.rotary.scaling.factor", "task.model.tied_head"),
  *("task.network.extra_channels", "task.network.head_dim", "task.network.num_heads"),
  *("task.network.num_groups", "train.save_every"),
}


def paths(block, above=""):
  for key, value in block.items():
    yield f"{above}{key}"
    if isinstance(value, dict):
      yield from paths(value, f"{above}{key}.")


@pytest.mark.parametrize("kind, entry", ENTRIES)
def test_every_default_may_be_written_out(kind, entry):
  """It is a name, or a value of its own annotation that JSON has."""
  for key, p in entry.keys().items():
    if p.default is inspect.Parameter.empty:
      continue
    if not build.is_block(key, p.annotation):
      found = ranges.typed(p.default, p.annotation, key)
      assert (type(found), found) == (type(p.default), p.default)
      again = json.loads(json.dumps(found))
      assert again == (list(found) if isinstance(found, tuple) else found)
    else:
      usual = build._default(key, p.default)
      assert usual is None or usual in build.TABLES[key], (kind, key)


@pytest.mark.parametrize("spec", CONFIGS, ids=name)
def test_a_config_its_shortest_and_its_whole_form_are_one(spec, monkeypatch):
  monkeypatch.chdir(conftest.ROOT)
  config = config_files.load(spec)
  whole, short = build.resolved(config), build.explicit(config)
  assert build.resolved(whole) == build.resolved(short) == whole
  assert build.explicit(whole) == short
  assert build.resolved(json.loads(json.dumps(whole))) == whole  # tuples are lists
  if config["task"] is not None:
    build.check_config(whole)
    missing = [one.path for one in build.keys(whole) if one.path not in {*paths(whole)}]
    assert not missing


@pytest.mark.parametrize("spec", CONFIGS, ids=name)
def test_a_config_file_does_not_repeat_a_default(spec, monkeypatch):
  monkeypatch.chdir(conftest.ROOT)
  config = config_files.load(spec)
  config |= {"init_from": config.get("init_from"), "adapter": config.get("adapter")}
  repeated = {*paths(config)} - {*paths(build.explicit(config))} - SHOWN
  assert not {path for path in repeated if not path.endswith(".name")}


def test_what_is_written_out_computes_the_same():
  """Block for block: what is built of both has the same fields."""
  config = config_files.load(f"{conftest.ROOT}/configs/diffusion/shapes.py:smoke")
  one, other = (
    experiments.make(c, None) for c in (build.explicit(config), build.resolved(config))
  )
  for field in ("data", "train", "sampling"):
    a, b = (repr(_plain(getattr(made, field))) for made in (one, other))
    assert a == b
  a, b = (made.abstract_params() for made in (one, other))
  assert repr(a) == repr(b)


def _plain(value):
  """Constructors with nothing bound to them but defaults are those alone."""
  fields = {}
  for key, item in vars(value).items():
    while isinstance(item, functools.partial):
      item = item.func
    fields[key] = item
  return fields


def test_the_order_is_that_of_the_owner():
  mixed = {"seed": 0, "optimizer": {"b2": 0.9, "name": "adamw", "odd": 1}}
  found = build.resolved(mixed)["optimizer"]
  assert list(found) == ["name", "b1", "b2", "eps", "weight_decay", "clip_norm", "odd"]


@pytest.mark.parametrize(
  "bad", [None, 3, "x", [], {}, {"name": []}, {"name": "x"}, {"name": {}}, {"x": 1}]
)
def test_what_is_no_block_stays_for_the_check_to_refuse(bad):
  config = config_files.load(f"{conftest.ROOT}/{TEXT}")
  for key in ("task", "data", "optimizer", "sampling", "evaluators"):
    for form in (build.resolved, build.explicit):
      assert form({**config, key: bad})[key] == bad
  if not isinstance(bad, dict):
    assert build.resolved(bad) == bad


def older(path):
  """A workdir as earlier versions left it: config.json is what its config file was."""
  config = json.loads(json.dumps(build.explicit(workdir.read_config(path))))
  del config["init_from"], config["adapter"]
  (path / "config.json").write_text(json.dumps(config))
  (path / "run.json").unlink()
  return config


def test_config_json_is_whole_and_one_without_defaults_is_the_same(
  digits_workdir, tmp_path
):
  copy = shutil.copytree(digits_workdir, tmp_path / "run")
  written = json.loads((copy / "config.json").read_text())
  whole = workdir.read_config(copy)
  assert build.resolved(written) == whole
  assert json.loads(json.dumps(whole)) == written
  assert written["train"]["keep"] == 2 and written["sampling"]["grid"] == "uniform"
  short = older(copy)
  assert "keep" not in short["train"] and "grid" not in short["sampling"]
  assert workdir.read_config(copy) == whole
  for same in (short, whole, build.explicit(whole)):
    assert workdir.check_owner(copy, same) == {}
  other = {**whole, "train": {**whole["train"], "ema_decay": 0.5}}
  with pytest.raises(InputError, match=r"train\.ema_decay"):
    workdir.check_owner(copy, other)


def changed(learning_rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=7.0):
  return optim.adamw(learning_rate, b1, b2, eps, weight_decay, clip_norm)


def test_a_default_that_changes_later_changes_no_run(
  digits_workdir, tmp_path, monkeypatch
):
  """The run keeps what it was made with; the same command is told what differs."""
  copy = shutil.copytree(digits_workdir, tmp_path / "run")
  older(old := shutil.copytree(digits_workdir, tmp_path / "old"))
  config = config_files.load(f"{conftest.ROOT}/configs/diffusion/digits.py:smoke")
  assert "clip_norm" not in config["optimizer"]
  before = workdir.read_config(copy)
  later = tables._scheduled(changed)
  monkeypatch.setitem(build.TABLES["optimizer"], "adamw", later)
  assert build.resolved(config)["optimizer"]["clip_norm"] == 7.0
  assert workdir.read_config(copy) == before
  run = gen_jax.open(copy, {"sampling.num_steps": 3})
  assert run.config["optimizer"]["clip_norm"] == 1.0
  assert run.sampled(num_steps=4).config["optimizer"]["clip_norm"] == 1.0
  with pytest.raises(InputError, match=r"optimizer\.clip_norm \(1\.0 there, 7.0 now\)"):
    workdir.check_owner(copy, config)
  same = overriding.apply(config, [("optimizer.clip_norm", "1.0")])
  assert workdir.check_owner(copy, same) == {}
  # One of an earlier version says nothing of it.
  assert workdir.read_config(old)["optimizer"]["clip_norm"] == 7.0


def test_a_name_is_changed_without_the_defaults_of_the_one_before(digits_workdir):
  """Which config.json has by now: `eta` is DDIM's, and nobody gave it."""
  run = gen_jax.open(digits_workdir, {"sampling.sampler": "ddim"})
  assert run.config["sampling"]["sampler"] == {"name": "ddim", "eta": 0.0}
  other = run.configured({"sampling.sampler.name": "heun"})
  assert other.config["sampling"]["sampler"] == {"name": "heun", "scale": "by_alpha"}
  eta = run.configured({"sampling.sampler.eta": "0.5"})
  with pytest.raises(InputError, match="'eta'"):
    build.check_config(eta.configured({"sampling.sampler.name": "heun"}).config)


def test_a_key_below_a_default_is_set_without_its_name():
  config = config_files.load(f"{conftest.ROOT}/{TEXT}")
  found = overriding.apply(config, [("task.model.norm.eps", "1e-3")])
  assert found["task"]["model"]["norm"] == {"name": "layer_norm", "eps": 1e-3}
