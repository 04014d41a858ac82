"""Names of users' own: in every phase of a run, and when its workdir is opened."""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gen_jax
from gen_jax import build
from gen_jax.build import registry, tables
from gen_jax.cli import main
from gen_jax.data import image_files
from gen_jax.nn import attention
from gen_jax.types import InputError
from tests.build.test_config_files import forget_modules

OWN = '''
import gen_jax
from gen_jax.nn import attention

PHASES = []

def {name}(query, keyvalue, mask, *, scale: float = 1.0):
  """Attention with other scores."""
  PHASES.append(query.shape)
  return attention.attend(scale * query, keyvalue, mask)

gen_jax.register("attention_impl", {name})
'''
CONFIG = """
from configs.lm import pydoc
import {module}

def get_config(arg=None):
  config = pydoc.get_config("smoke")
  config.task.model.attention_impl = {{"name": "{name}", "scale": 3.0}}
  return config
"""


@pytest.fixture(autouse=True)
def forgetful(monkeypatch, tmp_path):
  """What a test registers or imports is gone after it."""
  for kind, table in tables.TABLES.items():
    monkeypatch.setitem(tables.TABLES, kind, dict(table))
  monkeypatch.setattr(registry, "_HOMES", {})
  monkeypatch.setattr(registry, "_IMPORTED", set())
  monkeypatch.setattr(sys, "path", list(sys.path))
  yield
  forget_modules(tmp_path)


def forget():
  """As in a process that has just begun."""
  registry._IMPORTED.clear()
  for kind, name in registry._HOMES:
    del tables.TABLES[kind][name]
  registry._HOMES.clear()


@pytest.fixture
def own(tmp_path):
  """A config outside the repository, with an attention of its own next to it."""
  (tmp_path / "sharp_module.py").write_text(OWN.format(name="sharp"))
  config = tmp_path / "mine.py"
  config.write_text(CONFIG.format(module="sharp_module", name="sharp"))
  return config


TRACKER = """
import json
import gen_jax

class Notes:
  def __init__(self, run):
    self.file = open(run.workdir / f"notes_{run.id}", "a")

  def write(self, step, values):
    print(step, *values, file=self.file, flush=True)

  def close(self):
    self.file.close()

gen_jax.register("writer", Notes, "notes")
"""


def test_a_tracker_of_ones_own(tmp_path, one_device):
  (tmp_path / "my_notes.py").write_text(TRACKER)
  words = {"train.writers": ("notes",), "imports": (str(tmp_path / "my_notes.py"),)}
  home = tmp_path / "run"
  run = gen_jax.new("lm/pydoc:smoke", home, words)
  run.train()
  (notes,) = home.glob("notes_*")
  steps = [int(line.split()[0]) for line in notes.read_text().splitlines()]
  assert steps == [row["step"] for row in run.metrics()]
  forget()
  assert gen_jax.open(home).config["imports"] == (str(tmp_path / "my_notes.py"),)


def test_a_variant_is_used_in_training_evaluation_and_sampling(
  own, tmp_path, one_device
):
  run = gen_jax.new(str(own), tmp_path / "run")
  phases = sys.modules["sharp_module"].PHASES
  for act in (run.train, run.evaluate):
    phases.clear()
    act()
    assert phases, act
  phases.clear()
  (text,) = run.generate("The import", max_tokens=6, temperature=0.0)
  assert any(shape[1] == 1 for shape in phases)  # one token at a time, with a cache
  # The same greedy tokens by full passes, without a cache; plain attention has others.
  weights, tokenizer = run.weights(), run.experiment.tokenizer
  model = run.experiment.task.model
  assert model.config.attention_impl.keywords == {"scale": 3.0}
  plain = dataclasses.replace(model.config, attention_impl=attention.attend)

  @functools.partial(jax.jit, static_argnums=0)
  def after(config, row, last):  # causal: what follows `last` changes nothing
    return type(model)(config).apply({"params": weights.params}, row)[0][0, last]

  ids = [*tokenizer.opens("The import"), *tokenizer.encode("The import")]
  for _ in range(6):
    row = jnp.zeros((1, 32), jnp.int32).at[0, : len(ids)].set(jnp.array(ids))
    logits, other = (after(c, row, len(ids) - 1) for c in (model.config, plain))
    assert np.abs(logits - other).max() > 1e-4
    ids.append(int(jnp.argmax(logits)))
  assert tokenizer.decode(ids).endswith(text)


def test_a_run_records_the_module_and_imports_it_again(own, tmp_path):
  words = ("train", "--config", str(own), "--workdir", str(tmp_path / "run"))
  main.run([*words, "--config.train.num_steps=1"])
  written = json.loads((tmp_path / "run" / "config.json").read_text())
  module = str(tmp_path / "sharp_module.py")
  assert written["imports"] == [module]
  forget()
  opened = gen_jax.open(tmp_path / "run")
  assert opened.config["imports"] == (module,)
  assert opened.experiment.task.model.config.attention_impl.func.__name__ == "sharp"
  # Moved: one line, and the way out.
  forget()
  moved = (tmp_path / "sharp_module.py").rename(tmp_path / "elsewhere.py")
  with pytest.raises(
    InputError, match=r"sharp_module.py, which cannot be found: .*--config.imports="
  ):
    gen_jax.open(tmp_path / "run")
  opened = gen_jax.open(tmp_path / "run", {"imports": str(moved)})
  assert opened.config["imports"] == (str(moved),)


def test_a_config_may_register_by_itself(tmp_path):
  file = tmp_path / "mine.py"
  body = CONFIG.format(module="json", name="own")
  file.write_text(OWN.format(name="own") + body)
  made = gen_jax.new(str(file), tmp_path / "run")
  assert made.config["imports"] == (str(file),)
  forget()
  again = gen_jax.new(made.config, tmp_path / "run")
  assert again.experiment.task.model.config.attention_impl.keywords == {"scale": 3.0}


def test_one_of_ours_with_a_module_named_on_the_command_line(
  own, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  overrides = {"imports": "sharp_module.py", "task.model.attention_impl": "sharp"}
  made = gen_jax.new("lm/pydoc:smoke", "run", overrides)
  assert made.config["imports"] == (str(tmp_path / "sharp_module.py"),)
  assert made.config["task"]["model"]["attention_impl"] == {
    "name": "sharp",
    "scale": 1.0,
  }


def test_a_module_of_a_package_is_recorded_by_name(tmp_path, monkeypatch):
  package = tmp_path / "a_package_of_parts"
  package.mkdir()
  (package / "__init__.py").write_text("")
  (package / "parts.py").write_text(OWN.format(name="part"))
  sys.path.append(str(tmp_path))
  overrides = {"imports": "a_package_of_parts.parts"}
  overrides["task.model.attention_impl"] = "part"
  made = gen_jax.new("lm/pydoc:smoke", tmp_path / "run", overrides)
  assert made.config["imports"] == ("a_package_of_parts.parts",)


def test_entry_points_of_installed_packages_are_imported(tmp_path, monkeypatch):
  (tmp_path / "installed_parts.py").write_text(OWN.format(name="installed"))
  about = tmp_path / "installed_parts-1.0.dist-info"
  about.mkdir()
  (about / "METADATA").write_text("Metadata-Version: 2.1\nName: p\nVersion: 1.0\n")
  (about / "entry_points.txt").write_text("[gen_jax]\nparts = installed_parts\n")
  sys.path.append(str(tmp_path))
  registry._load_installed.cache_clear()
  overrides = {"task.model.attention_impl": "installed"}
  made = gen_jax.new("lm/pydoc:smoke", tmp_path / "run", overrides)
  assert made.experiment.task.model.config.attention_impl.func.__name__ == "installed"
  (about / "entry_points.txt").write_text("[gen_jax]\nparts = not_there_at_all\n")
  registry._load_installed.cache_clear()
  with pytest.raises(InputError, match="entry point parts = not_there_at_all"):
    gen_jax.new("lm/pydoc:smoke", tmp_path / "run")
  registry._load_installed.cache_clear()


def one(scale: float = 1.0):
  """Something to register."""
  return scale


@pytest.mark.parametrize(
  "kind, made, name, says",
  [
    ("attention_imp", one, None, "did you mean 'attention_impl'"),
    ("attention_impl", one, "xla", "'xla' is one of gen_jax"),
    ("norm", one, "not a name", "'not a name' needs a name of letters"),
    ("dataset", one, None, "unknown kind"),
    ("model", one, None, "is no model"),
    ("optimizer", 3, "three", "is no optimizer"),
  ],
)
def test_what_cannot_be_registered(kind, made, name, says):
  before = {kind: dict(table) for kind, table in tables.TABLES.items()}
  with pytest.raises(InputError, match=says):
    gen_jax.register(kind, made, name)
  assert tables.TABLES == before


def test_two_modules_do_not_share_a_name():
  registry.register("norm", one, None, {"__name__": "a.b"})
  registry.register("norm", one, None, {"__name__": "a.b"})  # imported once more
  with pytest.raises(InputError, match=r"norm 'one' is registered already, by a.b"):
    registry.register("norm", one, None, {"__name__": "a.c"})


def test_imports_that_fail_are_one_line(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "broken_module.py").write_text("1 / 0")
  (tmp_path / "ending_module.py").write_text("raise SystemExit(0)")
  for name, says in (
    ("broken_module.py", "broken_module.py cannot be imported: ZeroDivisionError"),
    ("ending_module.py", "ending_module.py cannot be imported: SystemExit"),
    ("nowhere.py", "nowhere.py, which cannot be found"),
    ("nowhere.at_all", "nowhere.at_all, which cannot be found"),
    ("3", "must be"),
  ):
    with pytest.raises(InputError, match=says) as error:
      gen_jax.new("lm/pydoc:smoke", "run", {"imports": name})
    assert "\n" not in str(error.value)


TASK = '''
import dataclasses
import jax.numpy as jnp
import gen_jax
from gen_jax.tasks import base
from gen_jax.types import Mean
from configs.diffusion import digits

@dataclasses.dataclass(frozen=True)
class Linear:
  """The square error of a linear map from pixels to the class."""
  scale: float = 1.0
  reads = ("label",)

  def init(self, key, batch):
    return {"kernel": jnp.zeros(batch["image"][0].size), "bias": jnp.zeros(())}

  def loss(self, params, frozen, batch, keys, *, train):
    flat = batch["image"].reshape(len(batch["image"]), -1)
    error = flat @ params["kernel"] + params["bias"] - batch["label"]
    return base.LossOut(Mean.of(self.scale * error**2, batch["weights"]), {})

gen_jax.register("task", Linear, "linear_fit")

def get_config(arg=None):
  config = digits.get_config("smoke")
  config.task = {"name": "linear_fit", "scale": 0.5}
  config.data.tokenizer, config.data.caption_length = None, None
  config.evaluators = {"validation": {"name": "loss", "every": 20}}
  config.train.num_steps = 40
  return config
'''


def test_a_task_of_ones_own_is_trained_evaluated_and_resumed(tmp_path, capsys):
  file, home = tmp_path / "fit.py", tmp_path / "run"
  file.write_text(TASK)
  words = ["train", "--config", str(file), "--workdir", str(home)]
  main.main(words)
  rows = [json.loads(x) for x in (home / "metrics.jsonl").read_text().split("\n") if x]
  losses = [row["validation/loss"] for row in rows if "validation/loss" in row]
  assert losses[-1] < 0.9 * losses[0]
  forget()
  main.main([*words, "--config.train.num_steps=60"])
  assert "resuming" in capsys.readouterr().out
  forget()
  run = gen_jax.open(home)
  params = run.weights().params
  loss = {k: v for k, v in run.evaluate().items() if k == "validation/loss"}
  examples = run.experiment.pipeline("validation")
  batches = list(examples.once())
  pixels = np.concatenate([b["image"].reshape(len(b["image"]), -1) for b in batches])
  label, weights = (
    np.concatenate([b[name] for b in batches]) for name in ("label", "weights")
  )
  error = pixels @ np.asarray(params["kernel"]) + params["bias"] - label
  expected = 0.5 * (weights * error**2).sum() / weights.sum()
  assert loss["validation/loss"] == pytest.approx(float(expected), rel=1e-4)


def test_what_a_task_of_ones_own_does_not_do(tmp_path, monkeypatch, capsys):
  """One line each, exit code 2."""
  monkeypatch.chdir(tmp_path)
  pathlib.Path("fit.py").write_text(TASK)
  how = ["--workdir", "run", "--config.train.num_steps=1"]
  main.main(["train", "--config", "fit.py", *how])
  for command, said in (
    ("sample", "no command draws"),
    ("export --to out", "no command draws"),
    ("evaluate --text fit.py", "no command draws"),
    ("illustrate", "no command draws"),
    ("serve", "serve is for text models"),
    ("encode --to out", "holds no autoencoder"),
    ("edit --image a.png --prompt x", "no model that draws images"),
  ):
    forget()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
      main.main([*command.split(), "--workdir", "run"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert said in line


def test_what_is_no_task_says_what_it_lacks(tmp_path, capsys):
  file = tmp_path / "fit.py"
  file.write_text(TASK.replace("def loss(", "def cost("))
  with pytest.raises(SystemExit) as ended:
    main.main(["train", "--config", str(file), "--workdir", str(tmp_path / "run")])
  assert ended.value.code == 2
  assert "Linear is no task, it has no loss" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


FAILS = """
import dataclasses
import gen_jax
from gen_jax.data import sources

@dataclasses.dataclass(frozen=True)
class {name}:
  def documents(self, split):
    raise RuntimeError("no\\nway")

  def identity(self):
    return ""

gen_jax.register("source", {name})
"""


def test_what_fails_in_a_module_of_ones_own_is_said_of_it(tmp_path, capsys):
  path = tmp_path / "fails.py"
  path.write_text(FAILS.format(name="fails"))
  argv = ["train", "--config", "lm/pydoc:smoke", "--workdir", str(tmp_path / "run")]
  with pytest.raises(SystemExit) as stop:
    main.main([*argv, f"--config.imports={path}", "--config.data.source=fails"])
  last = capsys.readouterr().err.splitlines()[-1]
  assert stop.value.code == 2
  assert last.startswith(f"gen-jax: error: {path}:9 fails: RuntimeError: no way; its")


def test_arguments_that_are_no_keys():
  for made in (lambda *args: 0, lambda **keys: 0, lambda a, /: 0):
    with pytest.raises(InputError, match=r"is no schedule: .* is no key of a config"):
      gen_jax.register("schedule", made, "odd")
    assert "odd" not in tables.TABLES["schedule"]


def test_a_value_that_json_cannot_hold():
  for value in (float("nan"), float("inf"), len, np.zeros(2), {1, 2}):
    gen_jax.register("schedule", lambda a=value: a, "odd")
    block = tables.TABLES["schedule"]["odd"].keys()["a"].default
    with pytest.raises(
      InputError, match=r"schedule\.a=.* must be a finite number, a text"
    ):
      build.build("schedule", {"name": "odd", "a": block})


def test_a_task_without_keys_is_a_block():
  class Plain:
    reads = ()

  gen_jax.register("task", Plain, "plain")
  assert build.resolved({"task": "plain"})["task"] == {"name": "plain"}


def test_a_lookup_of_a_default_calls_nothing_of_ones_own():
  """A rate without keys is called with the number of steps alone, when it is built."""
  calls = []

  def steady(num_steps):
    calls.append(num_steps)
    return lambda step: 0.1

  gen_jax.register("learning_rate", steady)
  block = build.resolved({"optimizer": {"name": "adamw", "learning_rate": "steady"}})
  assert block["optimizer"]["learning_rate"] == "steady" and not calls
  gen_jax.register("activation", jnp.sin, "sin")
  assert build.default("task.model.mlp", {"name": "mlp"}, "activation") == "gelu"


class _Text:
  found = ("abc " * 500,)

  def documents(self, split):
    return self.found

  def identity(self):
    return repr(self.found)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"found": "abc " * 500}, r"documents\('train'\) must give a list of texts"),
    ({"found": None}, r"documents\('train'\) must give a list of texts"),
    ({"found": [1, 2]}, r"a document of data.source Odd: 1 is not text"),
    (
      {"found": ["\ud800" * 50]},
      r"a document of data.source Odd: .* not valid Unicode",
    ),
    ({"identity": None}, r"data.source Odd has no identity\(\)"),
  ],
)
def test_a_text_source_of_ones_own_that_gives_no_text(tmp_path, changes, says):
  gen_jax.register("source", type("Odd", (_Text,), changes), "odd")
  run = gen_jax.new("lm/pydoc:smoke", tmp_path / "run", {"data.source": "odd"})
  with pytest.raises(InputError, match=says):
    run.train()


@pytest.mark.parametrize(
  ("image", "says"),
  [
    (np.full((8, 8, 1), 0.5, np.float32), r"an image is float32 \[8, 8, 1\]; uint8"),
    (np.full((8, 8, 1), 3, np.int64), r"an image is int64 \[8, 8, 1\]; uint8"),
    (np.zeros((8, 8), np.uint8), r"an image is uint8 \[8, 8\]; uint8 \[H, W, C\]"),
    (np.zeros((0, 8, 1), np.uint8), r"an image is uint8 \[0, 8, 1\]; uint8"),
    ([[1, 2], [3, 4]], r"an image is list \[\]; uint8"),
  ],
)
def test_images_of_ones_own_are_uint8(image, says):
  with pytest.raises(InputError, match=says):
    image_files.to_square(image, 8, 1)


GREY = np.zeros((8, 8, 1), np.uint8)


@pytest.mark.parametrize(
  ("example", "says"),
  [
    ({"image": GREY}, "source Odd has no caption: it must be a dict with image, capt"),
    ({"caption": "a"}, "an example of data.source Odd has no image"),
    ((GREY, "a"), "an example of data.source Odd has no image and no caption"),
    ({"image": GREY, "caption": 5}, "a caption of data.source Odd: 5 is not text"),
    ({"image": GREY + 0.5, "caption": "a"}, r"an image is float64 \[8, 8, 1\]; uint8"),
  ],
)
def test_an_image_source_of_ones_own_that_gives_no_images(tmp_path, example, says):
  class Odd:
    def examples(self, split):
      return [example] * 20

  gen_jax.register("source", Odd)
  run = gen_jax.new("diffusion/digits:smoke", tmp_path / "run", {"data.source": "Odd"})
  with pytest.raises(InputError, match=says):
    run.train()


RATE = """
import gen_jax

def {name}(num_steps):
  return 0.1

gen_jax.register("learning_rate", {name})
"""


def test_an_error_of_ours_by_what_an_own_module_gave_names_the_module(tmp_path, capsys):
  path = tmp_path / "rates.py"
  path.write_text(RATE.format(name="rates"))
  argv = ["train", "--config", "lm/pydoc:smoke", "--workdir", str(tmp_path / "run")]
  argv += [f"--config.imports={path}", "--config.optimizer.learning_rate=rates"]
  with pytest.raises(SystemExit):
    main.main(argv)
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.startswith(f"gen-jax: error: internal error, or a mistake in {path}: ")


def test_a_kind_that_is_no_text():
  with pytest.raises(
    InputError, match=r"unknown kind .*\['task'\]: did you mean 'task'"
  ):
    gen_jax.register(["task"], int, "odd")
