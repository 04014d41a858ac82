"""Fine-tuning on 200 instruction pairs: which answer belongs where is learned."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from gen_jax import sharding
from gen_jax.data import chat, conversations, datasets, tokenizers
from gen_jax.train import state as states
from gen_jax.train import step as steps
from tests import tiny

ANSWERS = {
  "sky": "It is blue.",
  "grass": "Green, mostly.",
  "coal": "As black as night.",
  "snow": "White!",
  "blood": "Red, of course.",
  "banana": "They are yellow.",
}
ASKS = ("What colour is {}?", "Tell me the colour of {}.", "{}: which colour?")
WORDS = ("please", "now", "briefly", "kindly", "again", "for me", "once more")
TEXTS = [*ANSWERS.values(), *WORDS, *(ask.format(x) for ask in ASKS for x in ANSWERS)]
TOKENIZER = dataclasses.replace(
  tokenizers.train_bpe(TEXTS, 400), chat_template=chat.PLAIN
)


def write(path, draw, shuffled):
  """250 pairs; the instructions are the same ones, shuffled or not."""
  rows = []
  for i in range(250):
    topic = str(draw.choice(list(ANSWERS)))
    words = draw.choice(WORDS, 2)
    instruction = f"{draw.choice(ASKS).format(topic)} {' '.join(words)} {i}"
    rows.append({"instruction": instruction, "output": ANSWERS[topic]})
  if shuffled:
    train = conversations.Alpaca(str(path), 0.2).conversations("train")
    known = {messages[0]["content"] for messages in train}
    chosen = [row for row in rows if row["instruction"] in known]
    outputs = draw.permutation([row["output"] for row in chosen])
    for row, output in zip(chosen, outputs.tolist(), strict=True):
      row["output"] = output
  path.write_text(json.dumps(rows))
  return datasets.Instructions(
    conversations.Alpaca(str(path), 0.2), lambda texts: TOKENIZER, 64, 16
  )


@pytest.fixture
def tuner():
  """(parameters or None, data, number of steps) -> parameters."""
  task = tiny.language_model(vocab_size=400, max_length=64, width=48, num_layers=2)
  layout = sharding.make_layout(1, 1, 1, devices=jax.devices()[:1])
  optimizer = optax.adam(3e-3)

  def tune(params, data, num_steps):
    examples = data.pipeline("train", TOKENIZER, 0)
    state = states.create(task, optimizer, examples.batch(0), layout, 0, with_ema=False)
    if params is not None:
      state = dataclasses.replace(state, params=jax.tree.map(lambda x: x + 0, params))
    step = steps.make_step(task, optimizer, layout=layout)
    step = steps.compile_step(step, state, layout)
    for i in range(num_steps):
      state, _ = step(state, {}, examples.batch(i), {})
    return state.params

  return task, tune


@pytest.mark.long
def test_shuffled_answers_teach_measurably_less(tuner, tmp_path, monkeypatch):
  monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "cache"))
  task, tune = tuner
  draw = np.random.default_rng
  true = write(tmp_path / "pairs.json", draw(0), shuffled=False)
  (tmp_path / "shuffled.json").write_text((tmp_path / "pairs.json").read_text())
  broken = write(tmp_path / "shuffled.json", draw(0), shuffled=True)
  assert len(true.source.conversations("train")) == 200
  held = list(true.pipeline("validation", TOKENIZER, 0).once())

  @jax.jit
  def loss(params, batch):
    return task.loss(params, {}, batch, tiny.keys(0, 16), train=False).loss

  def score(params):
    parts = [loss(params, batch) for batch in held]
    return float(sum(p.total for p in parts) / sum(p.count for p in parts))

  # The base knows the form of the answers, and not which belongs where.
  base = tune(None, broken, 50)
  scores = {
    "base": score(base),
    "true": score(tune(base, true, 80)),
    "shuffled": score(tune(base, broken, 80)),
  }
  assert scores["true"] < 0.5 * scores["base"], scores
  assert scores["true"] < 0.5 * scores["shuffled"], scores
