"""The front door of the library: what it gives is what the commands give."""

import json
import math
import pathlib
import shutil
import subprocess
import types

import jax
import numpy as np
import pytest
from PIL import Image

import gen_jax
from gen_jax import experiment as experiments
from gen_jax import tree
from gen_jax.build import config_files
from gen_jax.inference import sheets
from gen_jax.runs import training
from gen_jax.runs import workdir as workdirs
from gen_jax.system import files
from gen_jax.train import checkpoint, loop, writers

pytestmark = pytest.mark.usefixtures("one_device")
ROOT = pathlib.Path(__file__).parents[2]
TINY = {"num_layers": 1, "width": 8, "num_heads": 2}
TINY = {f"task.model.{key}": value for key, value in TINY.items()}


def result(outcome):
  assert outcome.code == 0, outcome
  return json.loads(outcome.out.splitlines()[-1])


def test_texts_are_those_of_the_command(call, text_workdir):
  """Two prompts, and more samples than are drawn at once."""
  words = ("--prompt", "a", "--prompt", "the", "--num", 9, "--seed", 3)
  how = ("--temperature", "0.7", "--max_tokens", "5", "--top_k", "4", "--stop", "#")
  found = result(call("sample", "--workdir", text_workdir, *words, *how, "--json"))
  run = gen_jax.open(text_workdir)
  given = {"temperature": 0.7, "max_tokens": 5, "top_k": 4, "stop": ("#",)}
  texts = run.generate(["a", "the"], num=9, seed=3, **given)
  assert texts == [sample["text"] for sample in found["samples"]]
  assert len(set(texts)) > 1
  assert run.generate("the", num=2, seed=3, **given) == texts[9:11]


@pytest.fixture(scope="module")
def noisy_workdir(digits_workdir, tmp_path_factory):
  """A run whose weights are drawn at random, so that images depend on them."""
  path = shutil.copytree(digits_workdir, tmp_path_factory.mktemp("noisy") / "run")
  shutil.rmtree(path / "checkpoints")
  from tests.cli import conftest

  conftest.save(path, gen_jax.open(path).experiment, [(2, 1.0)], std=0.1)
  return path


def images(found):
  return np.stack([sheets.open_own(pathlib.Path(s["path"])) for s in found["samples"]])


def test_images_are_those_of_the_command(call, noisy_workdir, tmp_path):
  words = ("--prompt", "the digit one", "--prompt", "the digit two", "--num", 2)
  how = ("--seed", 5, "--num_steps", "3", "--guidance_scale", "3", "--negative", "two")
  words = ("sample", "--workdir", noisy_workdir, *words, *how, "--out", tmp_path)
  found = images(result(call(*words, "--json")))
  run, prompts = gen_jax.open(noisy_workdir), ["the digit one", "the digit two"]
  how = {"negative": "two", "num_steps": 3, "guidance_scale": np.float32(3)}
  drawn = run.generate(prompts, num=2, seed=5, **how)
  np.testing.assert_array_equal(drawn, found)
  assert len(np.unique(drawn, axis=0)) > 1
  other = run.generate(prompts, 2, 5, num_steps=3, guidance_scale=3)
  assert (other != drawn).any()  # the negative prompt counts


@pytest.mark.parametrize(
  "given",
  [
    dict(prompt="the digit two", strength=0.5),
    pytest.param(dict(prompt="the digit two", mask=True), marks=pytest.mark.long),
    pytest.param(
      dict(prompt="the digit two", outpaint="0,0,8,0"), marks=pytest.mark.long
    ),
    pytest.param(
      dict(prompt="the digit two", invert="the digit one"), marks=pytest.mark.long
    ),
  ],
)
def test_edits_are_those_of_the_command(call, noisy_workdir, tmp_path, given):
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 1)).astype(np.uint8)
  mask = np.arange(8)[None] < np.full((8, 1), 3)
  Image.fromarray(pixels[..., 0]).save(tmp_path / "image.png")
  Image.fromarray(mask).save(tmp_path / "mask.png")
  flags = {**given, "image": tmp_path / "image.png", "num_steps": 3}
  flags |= {"mask": tmp_path / "mask.png"} if "mask" in given else {}
  flags = [word for name, value in flags.items() for word in (f"--{name}", value)]
  command = ("edit", "--workdir", noisy_workdir, "--num", 2, "--seed", 1, *flags)
  found = images(result(call(*command, "--out", tmp_path / "out", "--json")))
  given = {**given, "mask": mask} if "mask" in given else given
  run = gen_jax.open(noisy_workdir)
  ours = run.edit(pixels, **given, num=2, seed=1, num_steps=3)
  np.testing.assert_array_equal(ours, found)
  if "mask" in given:
    np.testing.assert_array_equal(ours[:, ~mask], np.stack([pixels[~mask]] * 2))


def test_numbers_are_those_of_the_command(call, text_workdir, noisy_workdir):
  for workdir in (text_workdir, noisy_workdir):
    found = result(call("evaluate", "--workdir", workdir, "--json"))
    ours = gen_jax.open(workdir).evaluate()
    assert ours and ours.items() <= found.items()


def digests(state):
  parts = (state.params, state.ema, state.opt_state)
  return [tree.sha256(part) for part in parts if jax.tree.leaves(part)]


@pytest.mark.long
def test_training_is_that_of_the_command(call, tmp_path):
  """Bit for bit, begun and lengthened; before a checkpoint there is nothing to see."""
  flags = [f"--config.{key}={value}" for key, value in TINY.items()]
  words = ("train", "--config", "configs/lm/pydoc.py:smoke", *flags, "--workdir")
  overrides = {**TINY, "train.num_steps": 2}
  ours = gen_jax.new("configs/lm/pydoc.py:smoke", tmp_path / "ours", overrides)
  with pytest.raises(gen_jax.InputError, match="no checkpoint yet"):
    ours.generate("a")
  for num_steps in (2, 4):
    steps = f"--config.train.num_steps={num_steps}"
    assert call(*words, tmp_path / "theirs", steps).code == 0
    told = ours.train(num_steps)
    assert (told["reason"], told["step"]) == ("finished", num_steps)
    states = [gen_jax.open(tmp_path / n).state() for n in ("ours", "theirs")]
    assert digests(states[0]) == digests(states[1])
  rows, others = ours.metrics(), gen_jax.open(tmp_path / "theirs").metrics()
  assert [row["step"] for row in rows] == [row["step"] for row in others]
  assert rows[-1]["step"] == 4 and any("loss" in row for row in rows)
  assert ours.weights("latest").step == 4 and ours.weights(2).step == 2
  assert ours.generate("a", max_tokens=2)  # by the tokenizer that training made
  assert not (tmp_path / "ours" / "lease.json").exists()


def test_a_run_is_built_once_and_its_weights_are_read_once(text_workdir, monkeypatch):
  made, make = [], experiments.make
  monkeypatch.setattr(experiments, "make", lambda *a: made.append(a) or make(*a))
  run = gen_jax.open(text_workdir)
  assert not made
  weights = run.weights()
  assert weights is run.weights("best")
  assert (weights.step, weights.kind) == (2, "params")
  assert run.generate("a", max_tokens=2) and run.evaluate() and run.state()
  assert len(made) == 1 + 1  # with another sampling block once more
  run.generate("b", max_tokens=2)
  assert len(made) == 2 and run.weights() is weights
  assert run.weights(0).step == 0


def test_what_is_asked_for_in_vain(text_workdir, noisy_workdir):
  run = gen_jax.open(text_workdir)
  for call, says in (
    (lambda: run.generate("a", temprature=1), "did you mean .*temperature"),
    (lambda: run.generate("a", temperature=-1), "temperature=-1"),
    (lambda: run.generate("a", temperature=0, top_k=3), "top_k changes nothing"),
    (lambda: run.generate("a", num=0), "--num 0 must be at least 1"),
    (lambda: run.generate("a", num=10**11), "--num 100000000000 must be .* at most"),
    (lambda: run.generate("a", negative="b"), "is for images"),
    (lambda: run.edit(np.zeros((8, 8, 1), np.uint8), "a"), "no model that draws"),
    (lambda: run.weights(7), "no checkpoint at step 7"),
    (lambda: run.weights("newest"), "best, latest or a step"),
    (lambda: run.weights(kind="emma"), "did you mean 'ema'"),
  ):
    with pytest.raises(gen_jax.InputError, match=says) as caught:
      call()
    assert len(str(caught.value).splitlines()) == 1
  with pytest.raises(gen_jax.InputError, match="uint8"):
    gen_jax.open(noisy_workdir).edit(np.zeros((8, 8, 1)), "a")
  with pytest.raises(gen_jax.InputError, match="bool"):
    image = np.zeros((8, 8, 1), np.uint8)
    gen_jax.open(noisy_workdir).edit(image, "a", mask=image[..., 0])


def change_run(workdir, **values):
  run = files.read_sealed(workdir / "run.json")
  files.write_json(workdir / "run.json", files.sealed({**run, **values}))


def test_folders_that_hold_no_whole_run_of_this_format(refuse, text_workdir, tmp_path):
  """The same line from Python and from commands."""

  def check(workdir, *says):
    with pytest.raises(gen_jax.InputError) as caught:
      gen_jax.open(workdir)
    for words in says:
      assert words in str(caught.value)
    for command in ("sample", "inspect"):
      refuse(command, "--workdir", workdir, says=[str(caught.value)])

  (tmp_path / "empty").mkdir()
  check(tmp_path / "empty", "is not a workdir", "gen-jax train")
  change_run(text_workdir, format=2)
  check(text_workdir, "is of format 2", "reads up to 1", "install")
  change_run(text_workdir, format="new")
  check(text_workdir, "is of format 'new'")
  change_run(text_workdir, format=1)
  (text_workdir / "config.json").rename(text_workdir / "moved")
  check(text_workdir, "half-written", "checkpoints", "put config.json back")
  shutil.rmtree(text_workdir / "checkpoints")
  check(text_workdir, "half-written", "tokenizer", "again")


def test_runs_of_before_formats_open(text_workdir):
  run = files.read_sealed(text_workdir / "run.json")
  assert run.pop("format") == 1
  files.write_json(text_workdir / "run.json", files.sealed(run))
  assert gen_jax.open(text_workdir).weights().step == 2
  (text_workdir / "run.json").unlink()
  assert gen_jax.open(text_workdir).weights().step == 2


def test_a_revision_is_that_of_this_code_and_says_what_is_changed(
  tmp_path, monkeypatch
):
  """A package installed within a checkout of something else has none."""
  outer, clone = tmp_path, tmp_path / "clone"
  place = clone / "gen_jax" / "runs" / "workdir.py"
  place.parent.mkdir(parents=True)
  place.write_text("1")
  monkeypatch.setattr(workdirs, "__file__", str(place))

  def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *who, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()

  for folder in (outer, clone):
    git(folder, "init")
    git(folder, "commit", "--allow-empty", "-m", folder.name)
    if folder == outer:
      assert workdirs._revision.__wrapped__() is None
  git(clone, "add", ".")
  git(clone, "commit", "-m", "code")
  commit = git(clone, "rev-parse", "HEAD")
  assert workdirs._revision.__wrapped__() == commit
  place.write_text("2")
  assert workdirs._revision.__wrapped__() == f"{commit}-dirty"


def test_new_takes_a_config_in_any_form_and_a_folder_of_the_same(text_workdir):
  config = gen_jax.open(text_workdir).config
  spec, home = "configs/lm/pydoc.py:smoke", text_workdir
  loaded = config_files.module("configs/lm/pydoc.py").get_config("smoke")
  for given in (spec, loaded, loaded.to_dict()):
    run = gen_jax.new(given, home, TINY)
    assert run.config == config
  assert run.weights().step == 2
  with pytest.raises(gen_jax.InputError, match="belongs to another config: seed"):
    gen_jax.new(spec, home, {**TINY, "seed": 7})
  with pytest.raises(gen_jax.InputError, match=r"did you mean .*num_layers"):
    gen_jax.new(spec, home, {"task.model.num_layer": 7})
  with pytest.raises(gen_jax.InputError, match=r"a config is .* \[1\]"):
    gen_jax.new([1], home)


def test_values_of_what_may_change_are_given_when_a_run_is_opened(text_workdir):
  run = gen_jax.open(text_workdir, {"sampling.temperature": 0.25})
  assert run.experiment.sampling.temperature == 0.25
  with pytest.raises(gen_jax.InputError, match="belongs to the trained model"):
    gen_jax.open(text_workdir, {"task.model.width": 16})


def test_names_at_the_door():
  from gen_jax import types
  from gen_jax.runs import run

  assert gen_jax.InputError is types.InputError and gen_jax.Run is run.Run
  with pytest.raises(AttributeError, match="opne"):
    gen_jax.opne  # noqa: B018


@pytest.mark.long
def test_the_python_of_the_readme(monkeypatch, tmp_path):
  """Its first block, with a smaller config and another folder."""
  text = (ROOT / "README.md").read_text()
  block = text.split("```python\n")[1].split("```")[0]
  assert len(block.strip().splitlines()) == 8 and text.index(block) < 2000
  monkeypatch.chdir(ROOT)
  assert '"diffusion/digits"' in block
  block = block.replace("diffusion/digits", "diffusion/digits:smoke")
  names = {}
  exec(block.replace("runs/digits", str(tmp_path / "run")), names)
  assert names["images"].shape == (8, 8, 8, 1) and names["images"].dtype == np.uint8
  assert names["edits"].shape == (1, 8, 8, 1)
  assert "validation/loss" in names["numbers"]
  assert names["weights"].kind == "ema" and names["weights"].step > 0


def test_the_last_line_names_metrics_that_are_not_finite(tmp_path, capsys):
  rows = writers.JsonLines(tmp_path, -1)
  rows.write(2, {"validation/loss": 1.0, "validation/extra": math.nan})
  rows.write(4, {"validation/loss": math.nan, "validation/extra": 1.0})
  rows.close()
  state = types.SimpleNamespace(step=4)
  result = loop.Result(state, checkpoint.Progress(), "finished")
  training._ended(result, 4, tmp_path, training.Alone())
  line = capsys.readouterr().out.split("\n")[0]
  assert line == "finished at step 4; not finite: validation/loss"
