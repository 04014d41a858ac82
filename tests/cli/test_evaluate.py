"""`gen-jax evaluate` on other data: figures, stamps, refusals."""

import dataclasses
import hashlib
import json
import math
import re

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


def test_answers_stand_next_to_their_references(call, tmp_path, one_device):
  """After training and by command, one file per step; the report shows the last."""
  rows = [{"instruction": f"Say <{w}>", "output": f"{w}\n{w}"} for w in range(64)]
  (tmp_path / "rows.json").write_text(json.dumps(rows))
  home, answers = tmp_path / "run", {"name": "answers", "every": 1, "num": 3}
  data = {"name": "instructions", "length": 128, "batch_size": 2, "tokenizer": "bytes"}
  data["source"] = {"name": "alpaca", "pattern": str(tmp_path / "rows.json")}
  data["source"]["validation_fraction"] = 0.25
  data |= {"template": "plain"}
  model = {"num_layers": 1, "width": 8, "num_heads": 2, "max_length": 128}
  run = gen_jax.new("lm/pydoc:smoke", home)
  config = {
    **run.config,
    "data": data,
    "evaluators": {"a": {**answers, "max_tokens": 9}},
  }
  config["task"] = {**config["task"], "model": {**config["task"]["model"], **model}}
  config["train"] |= {"num_steps": 1, "monitor": "answers/exact_match"}
  run = gen_jax.new(config, home)
  run.train()
  texts = [home / "samples" / f"answers_{step:08}.txt" for step in (0, 1)]
  assert sorted((home / "samples").glob("answers*")) == texts
  found = texts[1].read_text()
  assert found.startswith("1: another\nprompt    | ") and found.count("\n\n") == 2
  asked = re.search(r"Say <(\w+)>", found)[1]
  assert f"reference | {asked}\n          | {asked}\n" in found
  texts[1].unlink()
  outcome = call("evaluate", "--workdir", home, "--checkpoint", "latest")
  assert outcome.code == 0 and f"answers: {texts[1]}" in outcome.out
  assert texts[1].read_text() == found
  assert call("report", "--workdir", home).code == 0
  page = (home / "report.html").read_text()
  assert "answers, step 1" in page and "answers, step 0" not in page
  assert f"Say &lt;{asked}&gt;" in page and "first rows of training" in page


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
