"""lm-evaluation-harness asks a run of ours, on tasks whose data is here."""

import json
import types

import jax
import numpy as np
import pytest

import gen_jax
from gen_jax.cli import main
from gen_jax.data import slicing

lm_eval = pytest.importorskip("lm_eval")
from lm_eval import tasks  # noqa: E402

from gen_jax.serving import harness  # noqa: E402
from gen_jax.types import InputError  # noqa: E402

QUESTIONS = [
  {
    "context": f"def f{i}(",
    "choices": [" x", "self, x", ") -> None:", f"{i * 7}"][: 2 + i % 3],
    "label": i % 2,
  }
  for i in range(12)
]
TEXTS = ["import os\nimport sys\n" * 40, "def f(x):\n  return x\n", "a"]
YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
{rest}
"""
CHOICES = """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}, {metric: bits_per_byte}]
"""
ANSWERS = """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def one_chip():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    yield


@pytest.fixture
def evaluate(tmp_path, workdir, one_chip, monkeypatch):
  """The harness's numbers of one task over rows."""
  monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

  def run(rest, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    home = tmp_path / "tasks"
    home.mkdir()
    (home / "own.yaml").write_text(YAML.format(name="own", path=path, rest=rest))
    manager = tasks.TaskManager(include_path=str(home), include_defaults=False)
    return lm_eval.simple_evaluate(
      model="gen_jax",
      model_args=f"workdir={workdir}",
      tasks=["own"],
      task_manager=manager,
      bootstrap_iters=0,
    )

  return run


def test_choices_are_those_of_evaluate(evaluate, workdir, tmp_path):
  path = tmp_path / "choices.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
  found = evaluate(CHOICES, QUESTIONS)["results"]["own"]
  own = main.run(["evaluate", "--workdir", str(workdir), "--choices", str(path)])
  assert found["acc,none"] == own["choices/accuracy"]
  assert found["acc_norm,none"] == own["choices/accuracy_norm"]
  assert 0 < own["choices/accuracy"] < 1


def test_rolling_likelihoods_are_those_of_evaluate(evaluate, workdir, tmp_path):
  """Of texts that fit the context, where the windows of both are the same."""
  (tmp_path / "0.txt").write_text(TEXTS[1])
  found = evaluate(ROLLING, [{"text": TEXTS[1]}])["results"]["own"]
  text = str(tmp_path / "0.txt")
  own = main.run(["evaluate", "--workdir", str(workdir), "--text", text])
  assert found["bits_per_byte,none"] == pytest.approx(own["text/bits_per_byte"])


@pytest.mark.long
def test_a_long_text_is_scored_once_a_token(workdir, one_chip):
  """The last window is full; every token but the opening counts."""
  model = harness.Model(workdir)
  request = type("Request", (), {"args": (TEXTS[0],)})
  (found,) = model.loglikelihood_rolling([request])
  run = gen_jax.open(workdir)
  ids = slicing.encode(TEXTS[0], run.experiment.tokenizer)
  weights, task = run.weights().params, run.experiment.task
  opening = run.experiment.tokenizer.bos
  ids, total, size = [opening, *ids], 0.0, task.model.config.max_length
  assert len(ids) - 1 > size
  for first in range(0, len(ids) - 1, size):
    end = min(first + size, len(ids) - 1)
    row = np.int32(ids[max(0, end - size) : end])[None]
    logits, _ = task.model.apply({"params": weights}, row)
    scores = jax.nn.log_softmax(logits[0])[-(end - first) :]
    total += float(sum(scores[i, ids[first + 1 + i]] for i in range(end - first)))
  assert found == pytest.approx(total, rel=1e-5)


def test_answers_are_those_of_generate(evaluate, workdir):
  """Greedy, up to a line's end: exact matches, but for one that is changed."""
  contexts = [f"def f{i}(" for i in range(9)]
  how = dict(temperature=0.0, max_tokens=12, stop=("\n",))
  answers = gen_jax.open(workdir).generate(contexts, **how)
  answers[3] += "?"
  rows = [{"context": c, "answer": a} for c, a in zip(contexts, answers, strict=True)]
  found = evaluate(ANSWERS, rows)["results"]["own"]
  assert found["exact_match,none"] == pytest.approx(8 / 9)


def test_greedy_is_the_likeliest_token(workdir, one_chip):
  """Of all tokens that are text, for contexts after which one of them is the first."""
  model, run = harness.Model(workdir), gen_jax.open(workdir)
  tokenizer, module = run.experiment.tokenizer, run.experiment.task.model
  params, num = run.weights().params, 0
  apply = jax.jit(module.apply)
  for context in ("import ", "def f(x", "class ", "x = 3", "return ", "# a"):
    before = [*tokenizer.opens(context), *tokenizer.encode(context)]
    filled = np.int32([before + [0] * (16 - len(before))])
    logits, _ = apply({"params": params}, filled)
    scores = np.asarray(jax.nn.log_softmax(logits[0, len(before) - 1]))
    pieces = {
      i: p.decode(errors="ignore") for i, p in enumerate(tokenizer.encoding.pieces)
    }
    after = {i: [*tokenizer.encode(context), i] for i in pieces}
    ids = [
      i for i, p in pieces.items() if p and tokenizer.encode(context + p) == after[i]
    ]
    kind = type("Request", (), {"task_name": "t", "doc_id": context})
    requests = [kind() for _ in ids]
    for request, i in zip(requests, ids, strict=True):
      request.args = (context, pieces[i])
    for i, (score, is_greedy) in zip(ids, model.loglikelihood(requests), strict=True):
      assert score == pytest.approx(scores[i], abs=1e-4)
      assert is_greedy == (i == scores.argmax())
      num += is_greedy
  assert num >= 2


@pytest.mark.parametrize(
  "words, says",
  [
    ({"chekpoint": 3}, "unknown argument 'chekpoint'"),
    ({"which": 99}, "no checkpoint"),
  ],
)
def test_bad_arguments(workdir, words, says):
  with pytest.raises(InputError, match=says):
    harness.Model(workdir, **words)


def test_an_empty_text_without_a_token_that_opens_it():
  tokenizer = types.SimpleNamespace(opening=(), bos=None, eos=None, encode=list)
  config = types.SimpleNamespace(max_length=8)
  scorer = types.SimpleNamespace(model=types.SimpleNamespace(config=config))
  scored = {"_tokenizer": tokenizer, "_scorer": scorer}
  scored["_scored"] = lambda rows: [(-float(len(row.tokens)), True) for row in rows]
  texts = [types.SimpleNamespace(args=(ids,)) for ids in ((), (5,), (5, 6, 7))]
  model = types.SimpleNamespace(**scored)
  assert harness.Model.loglikelihood_rolling(model, texts) == [0.0, 0.0, -3.0]
