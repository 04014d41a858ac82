"""Conversations: read, split, packed; the answers alone are learned."""

import dataclasses
import itertools
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from gen_jax import types
from gen_jax.data import (
  cache,
  chat,
  conversations,
  datasets,
  embedded,
  pipeline,
  tokenizers,
)

BYTES = dataclasses.replace(tokenizers.plain_bytes(), chat_template=chat.PLAIN)
ROWS = [
  {"instruction": "Add.", "input": "1 and 1", "output": "2"},
  {"instruction": "Greet me.", "input": "", "output": "Hello"},
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  """A cache of its own."""
  monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
  "text", [json.dumps(ROWS, indent=1), "\n".join(map(json.dumps, ROWS))]
)
def test_alpaca_in_both_spellings(text, tmp_path):
  path = tmp_path / "data.json"
  path.write_text(text)
  found = conversations.Alpaca(str(path), 0.0).conversations("train")
  assert found == [
    conversations.ask("Add.\n\n### Input:\n1 and 1", "2"),
    conversations.ask("Greet me.", "Hello"),
  ]


def test_splits_share_no_conversation(tmp_path):
  rows = [{"instruction": f"{i % 30}", "output": f"{i % 30}"} for i in range(90)]
  (tmp_path / "a.json").write_text(json.dumps(rows))
  source = conversations.Alpaca(str(tmp_path / "a.json"), 0.2)
  train, held = map(source.conversations, ("train", "validation"))
  assert (len(train), len(held)) == (24, 6)
  assert not any(messages in train for messages in held)


@pytest.mark.parametrize("name", ["weight", *conversations._NOT_READ])
@pytest.mark.parametrize("is_inner", [False, True])
def test_what_would_not_be_trained_on_is_refused(name, is_inner, tmp_path):
  """Empty, null, or a weight of 1 says nothing."""
  for value, is_refused in ((1 if name == "weight" else [], False), ([{"a": 1}], True)):
    messages = conversations.ask("x", "y")
    row = {"messages": messages}
    (messages[1] if is_inner else row)[name] = value
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    source = conversations.Chats(str(tmp_path / "a.jsonl"), validation_fraction=0.0)
    if is_refused:
      with pytest.raises(types.InputError, match=f"a.jsonl:1: {name}"):
        source.conversations("train")
    else:
      assert source.conversations("train") == [conversations.ask("x", "y")]


def test_chats(tmp_path):
  messages = [
    {"role": "system", "content": "Be brief."},
    *conversations.ask("a", "b"),
    *conversations.ask("c", "d"),
  ]
  (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
  (found,) = conversations.Chats(str(tmp_path / "*"), "messages", 0).conversations(
    "train"
  )
  assert found == messages


def test_parallel_lines(tmp_path):
  (tmp_path / "en").write_text("one\n\ntwo\n")
  (tmp_path / "de").write_text("eins\n\nzwei\n")
  pair = str(tmp_path / "en"), str(tmp_path / "de")
  found = conversations.Parallel(*pair, "Translate.", 0).conversations("train")
  assert found[1] == conversations.ask("Translate.\n\ntwo", "zwei") and len(found) == 2


@pytest.mark.parametrize(
  "make, content, says",
  [
    (conversations.Alpaca, '[{"instruction": "x"}]', "'output'"),
    (conversations.Alpaca, '[{"instruction": "x", "output": 3}]', "3 is not text"),
    (conversations.Alpaca, "[1]", r"a\[0\] is not a JSON object"),
    (conversations.Alpaca, "[1", "is not JSON"),
    (conversations.Alpaca, "[]", "no conversations"),
    (conversations.Chats, '{"chat": []}', "did you mean|messages"),
    (conversations.Chats, '{"messages": "x"}', "a list is needed"),
    (conversations.Chats, '{"messages": [{"role": "user"}]}', "has no content"),
    (
      conversations.Chats,
      '{"messages": [{"role": "user", "content": "x"}]}',
      "so no answer",
    ),
    (lambda path: conversations.Parallel(path, path[:-1] + "b"), "1\n2", "has 2 lines"),
  ],
)
def test_bad_files(make, content, says, tmp_path):
  (tmp_path / "a").write_text(content)
  (tmp_path / "b").write_text("one line")
  with pytest.raises(types.InputError, match=says) as error:
    make(str(tmp_path / "a")).conversations("train")
  assert "\n" not in str(error.value)


@hypothesis.given(
  strategies.lists(strategies.integers(1, 40), max_size=60), strategies.integers(1, 30)
)
def test_packing_leaves_no_two_rows_that_would_fit_into_one(sizes, room):
  rows = pipeline.pack(sizes, room)
  assert sorted(itertools.chain(*rows)) == list(range(len(sizes)))
  loads = [sum(min(sizes[i], room) for i in row) for row in rows]
  assert all(load <= room for load in loads)
  assert all(a + b > room for a, b in itertools.combinations(loads, 2))


def test_rows_hold_each_conversation_once_and_count_its_answers(monkeypatch):
  pairs = [("a" * n, "b" * (1 + n % 3)) for n in range(1, 12)]
  source = embedded.Docstrings()
  asked = [conversations.ask(*pair) for pair in pairs]
  monkeypatch.setattr(embedded.Docstrings, "conversations", lambda self, split: asked)
  data = datasets.Instructions(source, None, 24, 2, template=chat.PLAIN)
  seen = []
  for batch in data.pipeline("validation", BYTES, 0).once():
    for row in range(2):
      part = {key: value[row] for key, value in batch.items()}
      for number in range(1, part["segments"].max() + 1):
        own = part["segments"] == number
        counted = own & (part["weights"] > 0)
        answer = part["targets"][counted].tolist()
        assert answer[-1] == BYTES.eos and set(answer[:-1]) == {ord("b")}
        asks = part["inputs"][own].tolist()
        assert asks[0] == BYTES.bos and part["positions"][own].tolist() == list(
          range(own.sum())
        )
        seen.append((bytes(i for i in asks if i == ord("a")), len(answer) - 1))
      assert not part["weights"][part["segments"] == 0].any()
  unpadded = [(a.encode(), len(b)) for a, b in pairs]
  assert sorted(set(seen)) == sorted(unpadded)


def test_a_row_is_cut_at_its_end():
  made = pipeline.packed_row(
    [pipeline.Piece([1, 2, 3]), pipeline.Piece([7, 8, 9, 10, 11])], 5
  )
  assert made["inputs"].tolist() == [1, 2, 7, 8, 9]
  assert made["targets"].tolist() == [2, 3, 8, 9, 10]
  assert made["segments"].tolist() == [1, 1, 2, 2, 2]
  assert made["positions"].tolist() == [0, 1, 0, 1, 2]
  assert made["weights"].tolist() == [1] * 5
  made = pipeline.packed_row(
    [pipeline.Piece([1, 2, 3], np.array([True, False, True]))], 4
  )
  assert made["weights"].tolist() == [0, 1, 0, 0]


def test_turns_are_cached_with_their_template(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps(ROWS))
  source = conversations.Alpaca(str(tmp_path / "a.json"), 0)
  first, second = (cache.tokens_of_turns(source, "train", BYTES) for _ in range(2))
  assert isinstance(second.is_answer, np.memmap)
  np.testing.assert_array_equal(first.is_answer, second.is_answer)
  other = dataclasses.replace(BYTES, chat_template=chat.ALPACA)
  third = cache.tokens_of_turns(source, "train", other)
  assert third.is_answer.sum() == first.is_answer.sum() < len(first.ids)
  assert BYTES.decode(third.ids[third.is_answer]) == "2Hello"
  assert BYTES.decode(third.ids).startswith(
    "### Instruction:\nAdd.\n\n### Input:\n1 and 1\n\n### Response:\n2### Instruction"
  )


def test_docstrings_are_taken_out_of_their_functions():
  found = embedded.Docstrings().conversations("validation")
  assert len(found) > 100
  for question, answer in found:
    assert question["content"].startswith(("def ", "async def ", "@"))
    assert '"""' + answer["content"] not in question["content"]


def test_no_answer_within_a_row_is_refused(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps(ROWS))
  source = conversations.Alpaca(str(tmp_path / "a.json"), 0)
  data = datasets.Instructions(source, None, 4, 2, template=chat.PLAIN)
  with pytest.raises(types.InputError, match="length=4"):
    data.pipeline("train", BYTES, 0)
