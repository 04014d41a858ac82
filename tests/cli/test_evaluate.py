"""`gen-jax evaluate` on other data: figures, stamps, refusals."""

import hashlib
import json

import pytest


def test_text_and_choices(call, text_workdir, tmp_path):
  """All parameters of that model are 0: perplexity is V = 300, int8 changes nothing."""
  text, choices = tmp_path / "a.txt", tmp_path / "c.jsonl"
  text.write_text("The import statement. " * 20)
  choices.write_text('{"context": "a", "choices": ["b", "cc"], "label": 0}\n')
  outcome = call(
    *("evaluate", "--workdir", text_workdir, "--text", text, "--stride", "7"),
    *("--choices", choices, "--int8", "--json"),
  )
  assert outcome.code == 0, outcome
  result = json.loads(outcome.out.splitlines()[-1])
  assert result == json.loads((text_workdir / "evaluation.json").read_text())
  assert result["text/perplexity"] == pytest.approx(300, rel=1e-4)
  assert result["text/perplexity_int8"] == pytest.approx(300, rel=1e-4)
  assert result["text/num_bytes"] == len(text.read_bytes())
  assert result["choices/accuracy"] == 1.0
  assert hashlib.sha256(text.read_bytes()).hexdigest() == result["text/sha256"]
  assert (result["text/stride"], result["weights"], result["step"]) == (7, "raw", 2)


@pytest.mark.parametrize(
  "flags, says",
  [
    ("--text nowhere.txt", ["no file matches 'nowhere.txt'"]),
    ("--text README.md --stride 0", ["stride=0", "at least 1"]),
    ("--stride 4", ["--stride 4 is for --text"]),
    ("--int8", ["--int8", "--text"]),
    ("--choices README.md", ["README.md:1 is not JSON"]),
    ("--text docs/digits.png", ["docs/digits.png is not UTF-8"]),
  ],
)
def test_bad_flags(refuse, text_workdir, flags, says):
  refuse("evaluate", "--workdir", text_workdir, *flags.split(), says=says)
  assert not (text_workdir / "evaluation.json").exists()
