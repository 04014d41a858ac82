"""`gen-jax evaluate` on other data: figures, stamps, refusals."""

import dataclasses
import hashlib
import json
import math

import pytest

import gen_jax
from gen_jax.inference import tint
from gen_jax.runs import workdir
from gen_jax.train import evaluators


def test_text_and_choices(call, text_workdir, tmp_path):
  """All parameters of that model are 0: perplexity is V = 300."""
  text, choices = tmp_path / "a.txt", tmp_path / "c.jsonl"
  text.write_text("The import statement. " * 20)
  choices.write_text('{"context": "a", "choices": ["b", "cc"], "label": 0}\n')
  outcome = call(
    *("evaluate", "--workdir", text_workdir, "--text", text, "--stride", "7"),
    *("--choices", choices, "--json"),
  )
  assert outcome.code == 0, outcome
  result = json.loads(outcome.out.splitlines()[-1])
  assert result == json.loads((text_workdir / "evaluation.json").read_text())
  assert result["text/perplexity"] == pytest.approx(300, rel=1e-4)
  assert result["text/num_bytes"] == len(text.read_bytes())
  assert result["choices/accuracy"] == 1.0
  assert hashlib.sha256(text.read_bytes()).hexdigest() == result["text/sha256"]
  assert (result["text/stride"], result["weights"], result["step"]) == (7, "raw", 2)


def test_a_terminal_shows_how_likely_the_beginning_was(
  call, text_workdir, tmp_path, monkeypatch
):
  """Each token of all 300 is as likely; elsewhere nothing is computed."""
  text, shown = tmp_path / "a.txt", []
  text.write_text("The import statement. " * 200)
  words = ("evaluate", "--workdir", text_workdir, "--text", text)
  plain = call(*words)
  monkeypatch.setattr(tint, "show", lambda found: shown.extend(found))
  assert call(*words).out == plain.out and plain.code == 0
  pieces, logprobs = zip(*shown, strict=True)
  assert text.read_text().startswith("".join(pieces))
  context = gen_jax.open(text_workdir).config["task"]["model"]["max_length"]
  assert len(pieces) == min(context, 300)
  assert logprobs == pytest.approx([-math.log(300)] * len(pieces), rel=1e-4)


def test_flags_are_blocks_of_a_config(text_workdir, tmp_path):
  """A run measures by itself what the command measures."""
  text = tmp_path / "a.txt"
  text.write_text("The import statement. " * 20)
  run = gen_jax.open(text_workdir)
  block = {"name": "text", "every": 0, "pattern": str(text), "stride": 7}
  run = dataclasses.replace(run, config={**run.config, "evaluators": {"x": block}})
  found = run.evaluate()
  assert found["text/perplexity"] == pytest.approx(300, rel=1e-4)
  (evaluator,) = run.experiment.evaluators()
  assert evaluator.about["text/stride"] == 7
  assert found.keys() == {"text/perplexity", "text/bits_per_byte"}


def test_text_of_an_image_model(refuse, digits_workdir):
  says = ["--text and --choices are for text", "an image model"]
  refuse("evaluate", "--workdir", digits_workdir, "--text", "README.md", says=says)


@pytest.mark.parametrize(
  "flags, says",
  [
    ("--text nowhere.txt", ["no file matches 'nowhere.txt'"]),
    ("--text README.md --stride 0", ["stride=0", "at least 1"]),
    ("--stride 4", ["--stride 4 is for --text"]),
    ("--choices README.md", ["README.md:1 is not JSON"]),
    ("--text docs/digits.png", ["docs/digits.png is not UTF-8"]),
  ],
)
def test_bad_flags(refuse, text_workdir, flags, says):
  refuse("evaluate", "--workdir", text_workdir, *flags.split(), says=says)
  assert not (text_workdir / "evaluation.json").exists()


def test_evaluators_that_ended_are_not_run_again(call, text_workdir, monkeypatch):
  """Those of a command that was cut off stand, if it was the same one."""
  words = ("evaluate", "--workdir", text_workdir, "--json")
  config = workdir.read_config(text_workdir)
  blocks = {**config["evaluators"], "gzip": {"name": "gzip", "every": 0}}
  config = {**config, "evaluators": blocks}
  monkeypatch.setattr(workdir, "read_config", lambda *args: config)
  whole = call(*words)
  assert whole.code == 0, whole
  ran, interrupt = [], [True]

  def baseline(self, weights, frozen):
    if interrupt:
      raise KeyboardInterrupt
    yield "gzip/bits_per_byte", 8.0 * len(self.documents)

  loss = evaluators.LossEvaluator.__call__
  monkeypatch.setattr(
    evaluators.LossEvaluator, "__call__", lambda *args: ran.append(1) or loss(*args)
  )
  monkeypatch.setattr(evaluators.GzipBaseline, "__call__", baseline)
  assert call(*words).code == 130
  interrupt.clear()
  again = call(*words)
  assert again.code == 0 and len(ran) == 1
  first, second = (json.loads(o.out.splitlines()[-1]) for o in (whole, again))
  assert first.pop("gzip/bits_per_byte") != second.pop("gzip/bits_per_byte")
  assert first == second and call(*words).code == 0
  assert len(ran) == 2  # nothing was left
