"""Requests of any shape are read, or refused in one line; nothing else happens."""

import types

import hypothesis
import pytest
from hypothesis import strategies as st

from gen_jax.data import tokenizers
from gen_jax.decoding import generate
from gen_jax.inference import slots, text_generator
from gen_jax.serving import protocol
from gen_jax.types import InputError

BYTES = tokenizers.plain_bytes()
CONFIG = types.SimpleNamespace(vocab_size=257, max_length=40)
SMALL = types.SimpleNamespace(
  model=types.SimpleNamespace(config=CONFIG),
  tokenizer=BYTES,
  sampling=generate.Sampling(stop=("##",)),
)
SMALL.ids = lambda prompt: text_generator.TextGenerator.ids(SMALL, prompt)
BATCH = types.SimpleNamespace(writer=SMALL, context=30)
READER = protocol.Reader(BATCH, "own", most=6, most_tokens=30)

ODD = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
  max_leaves=5,
)
FIELDS = (
  *("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "n", "seed"),
  *("temperature", "top_p", "stop", "stream", "stream_options", "logprobs", "user"),
  *("echo", "tools", "response_format", "logit_bias", "best_of", "other"),
)
GOOD = {
  "model": "own",
  "prompt": "a",
  "messages": [{"role": "user", "content": "a"}],
  "n": 2,
  "max_tokens": 3,
  "top_p": 0.5,
  "stop": "x",
  "seed": 1,
}


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
  st.lists(st.sampled_from(FIELDS), max_size=4), st.lists(ODD, min_size=4, max_size=4)
)
def test_whatever_is_asked(names, values):
  for read, left_out in ((READER.completion, "messages"), (READER.chat, "prompt")):
    fields = {**GOOD, **dict(zip(names, values, strict=False))}
    del fields[left_out]
    try:
      asked = read(fields)
    except InputError as error:
      assert "\n" not in str(error)
    else:
      assert all(isinstance(job, slots.Job) for job in asked.jobs)
      assert 1 <= len(asked.jobs) <= 6


def test_a_request_as_jobs():
  asked = READER.completion({"model": "own", "prompt": ["ab", "c"], "n": 2, "seed": 5})
  assert [job.ids for job in asked.jobs] == [[256, 97, 98]] * 2 + [[256, 99]] * 2
  first, second, again, _ = asked.jobs
  assert (first.key == again.key).all() and not (first.key == second.key).all()
  assert (first.max_tokens, first.temperature, first.top_p) == (16, 1.0, 1.0)
  assert first.stop == ("##",)  # the config's own
  more = READER.completion({**GOOD, "messages": None, "user": "me", "echo": False})
  assert more.jobs[0].stop == ("##", "x") and more.jobs[0].max_tokens == 3


def test_a_prompt_leaves_room_for_an_answer():
  for size, fits in ((28, True), (29, False)):
    fields = {"model": "own", "prompt": "a" * size}
    if fits:
      assert len(READER.completion(fields).jobs[0].ids) == 1 + size
    else:
      with pytest.raises(protocol.Refused, match="30 tokens; with its answer 30 fit"):
        READER.completion(fields)


@pytest.mark.parametrize("role", [["user"], {"user": 1}, 3, None, "robot"])
def test_a_role_that_is_none(role):
  fields = {"model": "own", "messages": [{"role": role, "content": "a"}]}
  with pytest.raises(protocol.Refused, match="must have a role: system"):
    READER.chat(fields)


@pytest.mark.parametrize("text", [None, 5, ["a"], {"value": "a"}])
def test_a_part_whose_text_is_none(text):
  parts = [{"type": "text", "text": "a"}, {"type": "text", "text": text}]
  with pytest.raises(
    InputError, match=r"messages\[0\] has a part .*only parts of text"
  ):
    READER.chat({"model": "own", "messages": [{"role": "user", "content": parts}]})


@pytest.mark.parametrize(
  ("options", "why"),
  [
    ({"include_usage": "yes"}, "include_usage='yes' must be true or false"),
    ({"include_use": True}, "unknown field 'include_use': did you mean"),
    ({"n": 2}, "unknown field 'n'"),
  ],
)
def test_options_of_a_stream_that_are_none(options, why):
  with pytest.raises(InputError, match=why):
    READER.completion({**GOOD, "messages": None, "stream_options": options})


def test_a_stop_that_cannot_occur():
  for stop in ("\ud800", ["a", "b\udcff"]):
    with pytest.raises(InputError, match="is not valid Unicode"):
      READER.completion({**GOOD, "messages": None, "stop": stop})
    with pytest.raises(
      InputError, match="must be valid Unicode of 1 character or more"
    ):
      generate.Sampling(stop=tuple(stop))
  joined = READER.completion(
    {**GOOD, "messages": None, "stop": ["\u00e9", "\U0001f600"]}
  )
  assert joined.jobs[0].stop == ("##", "\u00e9", "\U0001f600")
