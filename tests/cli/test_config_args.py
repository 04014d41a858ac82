"""Overrides become typed values; a config file becomes a plain dict."""

import copy
import json
import pathlib

import pytest

from gen_jax import build, types
from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.cli import config_args
from gen_jax.runs import workdir

ROOT = pathlib.Path(__file__).parents[2]
TEXT = config_files.load(str(ROOT / "configs" / "lm" / "pydoc.py"))
IMAGES = config_files.load(str(ROOT / "configs" / "diffusion" / "digits.py"))

SMOKE = "configs/lm/pydoc.py:smoke"


def _apply(config, *overrides):
  return overriding.apply(config, [tuple(o.split("=", 1)) for o in overrides])


@pytest.mark.parametrize(
  "config, override, value",
  [
    # Numbers; a whole number is a number, and becomes one.
    (TEXT, "train.num_steps=7", 7),
    (TEXT, "train.num_steps=1_000", 1000),
    (TEXT, "seed=3", 3),
    (TEXT, "optimizer.learning_rate.peak=1e-3", 1e-3),
    (TEXT, "optimizer.weight_decay=1", 1.0),
    (TEXT, "sampling.temperature=-0", 0.0),
    # Bools.
    (TEXT, "task.model.tied_head=false", False),
    (IMAGES, "data.flip=TRUE", True),
    # None where the annotation has it, and values where it was.
    (TEXT, "optimizer.clip_norm=none", None),
    (TEXT, "task.model.rotary=None", None),
    (TEXT, "evaluators.gzip=none", None),
    (TEXT, "train.num_epochs=2", 2.0),
    (TEXT, "train.patience=2", 2),
    # Text stays text, whatever it looks like.
    (TEXT, "train.monitor=validation/accuracy", "validation/accuracy"),
    (TEXT, "train.monitor=1", "1"),
    (TEXT, "train.monitor=none", "none"),
    (IMAGES, "data.source.data_dir=7", "7"),
    (IMAGES, "data.source.data_dir=none", None),
    # Keys that the config leaves at their defaults.
    (IMAGES, "evaluators.validation.split=train", "train"),
    (TEXT, "data.tokenizer.vocab_size=300", 300),
    # Tuples, with or without brackets.
    (IMAGES, "task.network.multipliers=1,2,4", (1, 2, 4)),
    (IMAGES, "task.network.multipliers=[1, 2]", (1, 2)),
    (IMAGES, "task.network.attention_levels=1", (1,)),
    (IMAGES, "task.network.attention_levels=()", ()),
    (IMAGES, "sampling.guidance_interval=(0,0.5)", (0.0, 0.5)),
    # Blocks: by name, whole, and where there was none.
    (IMAGES, "task.target=eps", {"name": "eps"}),
    (IMAGES, "task.schedule=karras", {"name": "karras"}),
    (TEXT, "task.model.mlp.activation=relu", "relu"),
    (TEXT, "task.model.norm={'name': 'rms_norm'}", {"name": "rms_norm"}),
    (TEXT, "task.model.position=learned", {"name": "learned"}),
    (TEXT, "evaluators={}", {}),
  ],
)
def test_values(config, override, value):
  before = copy.deepcopy(config)
  changed = _apply(config, override)
  build.check_config(changed)
  for key in override.split("=", 1)[0].split("."):
    changed = changed[key]
  assert repr(changed) == repr(value)  # 1 is not 1.0 is not True
  assert config == before


NASTY = {
  "brackets": "[" * 10**5,
  "closed brackets": "[" * 150 + "]" * 150,
  "signs": "-" * 10**5 + "1",
  "a sum": "1+" * 10**5 + "1j",
  "blocks": "{'a':" * 10**4 + "1" + "}" * 10**4,
  "blocks that parse": "{'name':" * 90 + "1" + "}" * 90,
  "digits": "9" * 5000,
  "hexadecimal": "0x" + "f" * 5000,
  "beyond floats": "1e999999",
  "beyond floats, inside": "(1, [-1e400])",
  "a whole number beyond floats": "1" + "0" * 400,
  "nan": "nan",
  "no keys": "{[]: 1}",
  "keys that are no text": "{1: 2}",
  "a name that is a block": "{'name': {'name': 'x'}}",
  "a name that is a list": "{'name': []}",
  "no set": "{[1]}",
  "escapes": r"'\d\N'",
  "a warning": "1 is 2",
  "nul": "a\0b",
  "a surrogate": "\udc80",
  "long": "x" * 10**6,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize(
  "key",
  [
    "seed",
    "optimizer.learning_rate.peak",
    "data.tokenizer",
    "data.source",
    "task.model.tied_head",
    "task.model.rotary",
    "task.model.attention_impl",
    "evaluators.gzip",
    "mesh",
    "train",
  ],
)
def test_what_no_value_can_be_is_one_short_line(key, text):
  with pytest.raises(types.InputError) as caught:
    build.check_config(_apply(TEXT, f"{key}={text}"))
  line = str(caught.value)
  assert len(line) < 2000 and "\n" not in line


@pytest.mark.parametrize("name", ["{}", "[]", "{'name': []}", "None", "1"])
def test_a_key_below_a_name_that_is_none(name):
  with pytest.raises(types.InputError):
    changes = f"data.source.name={name}", "data.source.pattern=x"
    build.check_config(_apply(TEXT, *changes))
  with pytest.raises(types.InputError):
    changes = f"evaluators.x={name}", "evaluators.x.name.name=x", "evaluators.x.y=1"
    build.check_config(_apply(TEXT, *changes))


def test_later_overrides_see_earlier_ones():
  changed = _apply(
    TEXT,
    "optimizer=lion",
    "optimizer.learning_rate.name=constant",
    "optimizer.learning_rate.peak=1",
    "optimizer.b2=0.5",
    "task.model.position.name=sinusoidal",
    "task.model.position.max_period=100",
  )
  build.check_config(changed)
  rate = {"name": "constant", "peak": 1.0}
  assert changed["optimizer"] == {"name": "lion", "learning_rate": rate, "b2": 0.5}
  position = {"name": "sinusoidal", "max_period": 100.0}
  assert changed["task"]["model"]["position"] == position


def test_a_key_may_be_a_number_here_and_a_block_there():
  """`scale` is the spread of a codec, and the name of a function of a sampler."""
  changed = _apply(
    IMAGES,
    "task.codec=affine",
    "task.codec.shift=0",
    "task.codec.scale=2",
    "sampling.sampler=heun",
    "sampling.sampler.scale=by_sum",
  )
  build.check_config(changed)
  assert changed["task"]["codec"] == {"name": "affine", "shift": 0.0, "scale": 2.0}
  with pytest.raises(types.InputError, match=r"codec.scale='by_sum' must be a number"):
    _apply(changed, "task.codec.scale=by_sum")


def test_overrides_are_taken_out_of_the_words():
  words = ["train", "--config", "c.py", "--config.a=1=2", "--config.b", "-1", "--json"]
  overrides, rest = config_args.split_overrides(words)
  assert overrides == [("a", "1=2"), ("b", "-1")]
  assert rest == ["train", "--config", "c.py", "--json"]


def test_load_runs_the_file_with_its_argument(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(
    "import ml_collections\n"
    "def get_config(arg=None):\n"
    "  return ml_collections.ConfigDict({'arg': arg, 'block': {'pair': (1, 2)}})\n"
  )
  assert config_files.load(f"{file}:a,b") == {"arg": "a,b", "block": {"pair": (1, 2)}}
  assert config_files.load(str(file))["arg"] is None


@pytest.mark.parametrize("config", [TEXT, IMAGES])
def test_a_config_survives_json(config):
  """A workdir's config.json has lists for tuples; it must pass the same checks."""
  build.check_config(json.loads(json.dumps(config)))


def test_dump_shows_every_value():
  text = config_args.dump({"a": {"b": (1, 2), "c": None}, "d": "x"})
  assert text.split("\n") == ["a:", "  b: (1, 2)", "  c: None", "d: 'x'"]


def test_every_key_is_listed_with_its_range_default_and_meaning(call):
  """Set or not; of the blocks that the config names, to any depth."""
  outcome = call("train", "--config", SMOKE, "--keys", "--json")
  found = json.loads(outcome.out.splitlines()[-1])["keys"]
  assert found["optimizer.b1"] == {
    "value": "0.9",
    "wanted": "a number in [0, 1)",
    "default": "0.9",
    "meaning": "decay of the average of gradients; Lion: its share in an update.",
  }
  peak = found["optimizer.learning_rate.peak"]
  assert peak["wanted"] == "a number at least 0 and finite" and "default" not in peak
  assert "how attention is computed" in found["task.model.attention_impl"]["meaning"]
  assert "chunked" in found["task.model.attention_impl"]["wanted"]
  config = config_files.load(SMOKE)
  plain = {"name", "evaluators", "init_from", "adapter", "mesh.rules"}
  unlisted = {k for k in workdir.flat(config) if k.split(".")[-1] not in plain}
  assert unlisted <= found.keys()
  assert (
    "optimizer.b1 = 0.9\n    a number in [0, 1); default 0.9\n    decay of"
    in outcome.out
  )


@pytest.mark.parametrize(
  "override, says",
  [
    ("learning_rate=1e-3", "or did you mean --config.optimizer.learning_rate.peak?"),
    ("learning_rate=cosine", "or did you mean --config.optimizer.learning_rate?"),
    ("optimizer.peak=1", "or did you mean --config.optimizer.learning_rate.peak?"),
    (
      "optimizer.learning_rate=1e-3",
      "did you mean --config.optimizer.learning_rate.peak=1e-3?",
    ),
    ("train=100", "did you mean --config.train.num_steps=100?"),
    ("train.batch_size=8", "or did you mean --config.data.batch_size?"),
    ("b2=0.9", "or did you mean --config.optimizer.b2?"),
    ("model.width=64", "or did you mean --config.task.model.width?"),
    ("model.widht=64", "or did you mean --config.task.model?"),
  ],
)
def test_hints_lead_to_a_key_that_takes_the_value(override, says):
  with pytest.raises(types.InputError) as caught:
    _apply(TEXT, override)
  assert str(caught.value).endswith(says)


def test_a_config_file_with_a_key_in_the_wrong_place_is_told_where():
  config = copy.deepcopy(TEXT)
  config["train"]["batch_size"] = 8
  with pytest.raises(types.InputError, match=r"did you mean data\.batch_size\?"):
    build.check_config(config)


@pytest.mark.parametrize(
  "words, says",
  [
    (("--learning_rate=1e-3",), "did you mean --config.optimizer.learning_rate.peak?"),
    (("--learning_rate", "1e-3"), "--config.optimizer.learning_rate.peak?"),
    (("--batch_size", "8"), "did you mean --config.data.batch_size?"),
    (("--dry_rnu",), "did you mean '--dry_run'?"),
  ],
)
@pytest.mark.parametrize("config", [("--config", SMOKE), (f"--config={SMOKE}",)])
def test_a_flag_that_is_a_key_of_the_config_is_told_so(refuse, words, says, config):
  refuse("train", *config, *words, says=["unknown flag", says])
