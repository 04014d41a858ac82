"""Log-probabilities of tokens as OpenAI's protocol has them: completions', and chats'.

They are the model's own, before temperature, penalties and any filter.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from gen_jax.inference import text_generator

Piece = Callable[[int], bytes]  # of a token


class Scored(NamedTuple):
  """A token.

  Attributes:
    token: its id.
    logprob: None of the first one of a text: nothing comes before it.
    likeliest: ids and log-probabilities of the likeliest tokens there.
  """

  token: int
  logprob: float | None
  likeliest: text_generator.Likeliest = ([], [])


def drawn(
  row: text_generator.Row, start: int = 0, stop: int | None = None
) -> Iterator[Scored]:
  """The tokens that were drawn, from number `start` to before `stop`."""
  tokens = row.tokens[start:stop]
  likeliest = row.likeliest[start:stop] or [([], [])] * len(tokens)
  found = zip(tokens, row.logprobs[start:stop], likeliest, strict=True)
  return (Scored(*one) for one in found)


def prompt(row: text_generator.Row, ids: Sequence[int], start: int) -> Iterator[Scored]:
  """The tokens of a prompt that was scored, from number `start` on."""
  logprobs, likeliest = row.prompt or ([], [])
  for i in range(start, len(ids)):
    near = likeliest[i - 1] if i and likeliest else ([], [])
    yield Scored(ids[i], logprobs[i - 1] if i else None, near)


def completion(
  found: Sequence[Scored], piece: Piece, are_named: bool, at: int = 0
) -> dict[str, Any]:
  """`logprobs` of a choice of /v1/completions.

  Args:
    are_named: whether with the likeliest tokens; the token itself is among them.
    at: characters before the first token.
  """
  tokens, offsets = [], []
  for one in found:
    tokens.append(_text(piece(one.token)))
    offsets.append(at)
    at += len(tokens[-1])
  logprobs = [one.logprob for one in found]
  about = {"tokens": tokens, "token_logprobs": logprobs, "text_offset": offsets}
  named = [_named(one, piece) for one in found] if are_named else None
  return {**about, "top_logprobs": named}


def _named(one: Scored, piece: Piece) -> dict[str, float] | None:
  if one.logprob is None:
    return None
  named: dict[str, float] = {}
  for token, logprob in zip(*one.likeliest, strict=True):  # the likeliest first
    named.setdefault(_text(piece(token)), logprob)
  return {**named, _text(piece(one.token)): one.logprob}


def chat(found: Sequence[Scored], piece: Piece) -> dict[str, Any]:
  """`logprobs` of a choice of /v1/chat/completions."""
  content = []
  for one in found:
    pairs = zip(*one.likeliest, strict=True)
    top = [_part(piece(token), logprob) for token, logprob in pairs]
    content.append({**_part(piece(one.token), one.logprob), "top_logprobs": top})
  return {"content": content, "refusal": None}


def _part(part: bytes, logprob: float | None) -> dict[str, Any]:
  return {"token": _text(part), "bytes": list(part), "logprob": logprob}


def _text(part: bytes) -> str:
  return part.decode(errors="replace")
