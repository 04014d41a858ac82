"""Tokens tinted by how likely they were found: nothing of the text is lost."""

import io
import math

import pytest
import rich.text

from gen_jax.data import tokenizers
from gen_jax.inference import tint

BYTES = tokenizers.plain_bytes()


def test_pieces_spell_the_text_whatever_tokens_cut():
  for text in ("a b", "é🙂", ""):
    ids = BYTES.encode(text)
    pieces = tint.pieces(BYTES, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == text
  assert tint.pieces(BYTES, BYTES.encode("é")[:1]) == ["\ufffd"]
  assert tint.pieces(BYTES, [BYTES.eos, 97]) == ["", "a"]


def test_a_terminal_shows_the_text_and_its_tints(monkeypatch):
  class Terminal(io.StringIO):
    isatty = lambda self: True  # noqa: E731

  found = [("sure", 0.0), (" odd", math.log(0.001)), ("\n", -1.0)]
  for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("TERM", "xterm-256color")
  monkeypatch.setenv("COLORTERM", "truecolor")
  monkeypatch.setattr("sys.stdout", shown := Terminal())
  assert tint.show(found)
  assert "48;2;255;255;255msure" in shown.getvalue()
  assert "48;2;255;0;0m odd" in shown.getvalue()
  assert rich.text.Text.from_ansi(shown.getvalue()).plain.startswith("sure odd\n")


@pytest.mark.parametrize("name, value", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_without_colours_nothing_is_shown(monkeypatch, capsys, name, value):
  monkeypatch.setenv(name, value)
  assert not tint.show([("a", -1.0)]) and capsys.readouterr().out == ""
