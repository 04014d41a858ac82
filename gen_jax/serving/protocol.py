"""OpenAI's completions and chat completions: what is asked, and how it is answered.

A field that would change the answer and is not supported here is refused.
"""

import dataclasses
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gen_jax import errors, rng
from gen_jax.data import chat, tokenizer
from gen_jax.inference import slots, text_generator
from gen_jax.serving import scores
from gen_jax.types import InputError

_USUAL_TOKENS = 16  # of a completion that asks for no number, as the protocol has it
_MOST_STOPS, _LONGEST_STOP = 16, 1_000
_MOST_TEMPERATURE, _MOST_PENALTY = 100.0, 2.0
# Fields that change nothing here.
_IGNORED = {
  *("user", "metadata", "store", "service_tier", "safety_identifier"),
  *("prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"),
  "include_obfuscation",  # of a stream
}
# Fields of what is not supported, with the values that ask for nothing.
_NOTHING: dict[str, tuple[Any, ...]] = {
  "logit_bias": ({},),
  "best_of": (1,),
  "suffix": ("",),
  "tools": ([],),
  "functions": ([],),
  "tool_choice": ("none", "auto"),
  "function_call": ("none", "auto"),
  "response_format": ({"type": "text"},),
  "modalities": (["text"],),
  "verbosity": ("medium",),
}
_ROLES = {"system": "system", "developer": "system", "user": "user"}
_ROLES |= {"assistant": "assistant"}


class Refused(InputError):
  """A request that is not answered.

  Attributes:
    status: of HTTP.
    code: of the protocol, for programs.
  """

  def __init__(self, message: str, status: int = 400, code: str | None = None):
    super().__init__(message)
    self.status, self.code = status, code


def error(message: str, status: int = 400, code: str | None = None) -> dict[str, Any]:
  """The body of an answer that is none."""
  kind = "invalid_request_error" if status < 500 else "server_error"
  inner = {"message": message, "type": kind, "param": None, "code": code}
  return {"error": inner}


class Echo(NamedTuple):
  """A prompt that is repeated.

  Attributes:
    text: of it.
    num_opening: tokens before it that open every text, and are not repeated.
  """

  text: str
  num_opening: int


@dataclasses.dataclass(frozen=True)
class Asked:
  """A request that can be answered.

  Attributes:
    jobs: its continuations: `num` of each prompt, one prompt after the other.
    num: continuations of a prompt.
    is_chat, is_streamed: how they are answered.
    logprobs: number of likeliest tokens that are named next to each token; 0: the
      token alone has its log-probability; None: there are none.
    echoes: of each prompt, what is repeated before its continuations; None: nothing.
    counts: whether a stream ends with the numbers of tokens.
    about: fields of every answer.
  """

  jobs: list[slots.Job]
  num: int
  is_chat: bool
  is_streamed: bool
  logprobs: int | None
  echoes: list[Echo] | None
  counts: bool
  about: dict[str, Any]


class _Body:
  """The fields of a request; each is taken once, what is left over is refused."""

  def __init__(self, fields: Mapping[str, Any]):
    self._fields = {k: v for k, v in fields.items() if v is not None}
    self._known: set[str] = set()

  def take(self, name: str, kinds: tuple[type, ...], usual: Any, what: str) -> Any:
    """A field's value, or the usual one; True is no number."""
    self._known.add(name)
    value = self._fields.pop(name, usual)
    if value is usual:
      return value
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
      raise Refused(f"{name}={value!r:.60} must be {what}")
    return value

  def number(self, name: str, usual: Any, low: float, high: float, whole: bool) -> Any:
    """A number in [low, high]."""
    what = f"a {'whole ' * whole}number, at least {low} and at most {high}"
    value = self.take(name, (int,) if whole else (int, float), usual, what)
    if value is not usual and not low <= value <= high:
      raise Refused(f"{name}={value!r:.60} must be {what}")
    return value

  def flag(self, name: str) -> bool:
    """True or false; false if it is not given."""
    return self.take(name, (bool,), False, "true or false")

  def end(self) -> None:
    """Raises Refused for a field that asks for what is not supported."""
    for name, value in self._fields.items():
      if name in _IGNORED or value in _NOTHING.get(name, ()):
        continue
      if name in _NOTHING:
        raise Refused(f"{name}={value!r:.60} is not supported; leave it out")
      raise Refused(str(errors.unknown("field", name, self._known)))


def _stops(body: _Body, usual: tuple[str, ...]) -> tuple[str, ...]:
  what = (
    f"a text, or a list of at most {_MOST_STOPS}, of 1 to {_LONGEST_STOP} characters"
  )
  given = body.take("stop", (str, list), None, what)
  given = [given] if isinstance(given, str) else given or []
  sizes = [len(s) if isinstance(s, str) else 0 for s in given]
  if len(given) > _MOST_STOPS or not all(0 < n <= _LONGEST_STOP for n in sizes):
    raise Refused(f"stop={given!r:.60} must be {what}")
  tokenizer.check_unicode("".join(given))
  return (*usual, *given)


def _content(content: Any, where: str) -> str:
  """A message's text; of several parts, all of them."""
  if isinstance(content, list):
    for part in content:
      fields = part if isinstance(part, dict) else {}
      if fields.get("type") != "text" or not isinstance(fields.get("text"), str):
        raise Refused(f"{where} has a part {part!r:.60}; only parts of text are read")
    content = "".join(part["text"] for part in content)
  if not isinstance(content, str):
    raise Refused(f"{where} has the content {content!r:.60}, which is no text")
  return content


def _messages(given: list[Any]) -> list[dict[str, str]]:
  found = []
  for i, message in enumerate(given):
    where = f"messages[{i}]"
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
      raise Refused(
        f"{where}={message!r:.60} must have a role: {', '.join(_ROLES)}, and content"
      )
    rest = {k: v for k, v in message.items() if k not in ("role", "content") and v}
    if rest:
      raise Refused(f"{where} has {', '.join(rest)}: not supported; leave it out")
    content = _content(message.get("content"), where)
    found.append({"role": _ROLES[role], "content": content})
  chat.check(found)
  return found


class Reader:
  """Reads requests for one model.

  Attributes:
    batch: where they will be drawn.
    name: of the model.
    most: continuations that one request may ask for.
    most_tokens: of a continuation.
  """

  def __init__(self, batch: slots.Slots, name: str, most: int, most_tokens: int):
    self.batch, self.name = batch, name
    self.most, self.most_tokens = most, most_tokens
    self._created = int(time.time())

  def models(self) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [self.model(self.name)]}

  def model(self, name: str) -> dict[str, Any]:
    """What is said about a model; Refused for another one."""
    if name != self.name:
      message = f"there is no model {name!r:.60} here; there is {self.name!r}"
      raise Refused(message, 404, "model_not_found")
    about = {"created": self._created, "owned_by": "gen_jax"}
    return {"id": name, "object": "model", **about, "context": self.batch.context}

  def completion(self, fields: Mapping[str, Any]) -> Asked:
    """Reads a request of /v1/completions.

    Raises:
      InputError: it cannot be answered; says why.
    """
    body = _Body(fields)
    given = body.take("prompt", (str, list), "", "a text, or a list of texts or ids")
    is_one = isinstance(given, str) or (bool(given) and type(given[0]) is int)
    prompts = [given] if is_one else given
    logprobs = body.number("logprobs", None, 0, slots.MOST_LIKELIEST, True)
    is_echoed = body.flag("echo")
    return self._asked(body, prompts, _USUAL_TOKENS, False, logprobs, is_echoed)

  def chat(self, fields: Mapping[str, Any]) -> Asked:
    """Reads a request of /v1/chat/completions; see `completion`."""
    body = _Body(fields)
    messages = _messages(body.take("messages", (list,), [], "a list of messages"))
    prompts = [self.batch.writer.tokenizer.encode_chat(messages)]
    most = body.number("max_completion_tokens", None, 1, self.most_tokens, True)
    usual = self.most_tokens if most is None else most
    named = body.number("top_logprobs", None, 0, slots.MOST_LIKELIEST, True)
    logprobs = (named or 0) if body.flag("logprobs") else None
    if named and logprobs is None:
      raise Refused(f"top_logprobs={named} needs logprobs=true")
    return self._asked(body, prompts, usual, True, logprobs)

  def _asked(
    self,
    body: _Body,
    prompts: list[Any],
    tokens: int,
    is_chat: bool,
    logprobs: int | None,
    is_echoed: bool = False,
  ) -> Asked:
    self.model(body.take("model", (str,), "", "the name of a model"))
    how, most = self.batch.writer.sampling, self.most_tokens
    num = body.number("n", 1, 1, self.most, True)
    if not 1 <= num * len(prompts) <= self.most:
      raise Refused(
        f"{num} continuations of {len(prompts)} prompts must be at least 1 and at most"
        f" {self.most}"
      )
    numbers = (
      body.number("max_tokens", min(tokens, most), 0 if is_echoed else 1, most, True),
      body.number("temperature", float(how.temperature), 0, _MOST_TEMPERATURE, False),
      body.number("top_p", float(how.top_p), 1e-9, 1, False),
    )
    penalties = (
      body.number("presence_penalty", 0.0, -_MOST_PENALTY, _MOST_PENALTY, False),
      body.number("frequency_penalty", 0.0, -_MOST_PENALTY, _MOST_PENALTY, False),
    )
    stop = _stops(body, how.stop)
    seed = body.number("seed", None, 0, 2**63 - 1, True)
    is_streamed = body.flag("stream")
    options = _Body(body.take("stream_options", (dict,), {}, "an object"))
    counts = options.flag("include_usage")
    options.end()
    is_scored = is_echoed and logprobs is not None
    if is_scored and is_streamed:
      raise Refused("echo with logprobs is not streamed; leave one of the three out")
    body.end()
    seed = int.from_bytes(os.urandom(7)) if seed is None else seed
    keys = [rng.sample_keys(seed, 1, i)[0] for i in range(num)]
    ids = [self._ids(prompt) for prompt in prompts]
    kind = "chat.completion" if is_chat else "text_completion"
    about = {
      "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
      "object": f"{kind}.chunk" if is_chat and is_streamed else kind,
      "created": int(time.time()),
      "model": self.name,
    }
    rest = (stop, *penalties, logprobs or 0, is_scored)
    jobs = [slots.Job(row, key, *numbers, *rest) for row in ids for key in keys]
    echoes = [self._echo(prompt) for prompt in prompts] if is_echoed else None
    return Asked(jobs, num, is_chat, is_streamed, logprobs, echoes, counts, about)

  def _echo(self, prompt: Any) -> Echo:
    own = self.batch.writer.tokenizer
    if isinstance(prompt, str):
      return Echo(prompt, len(own.opens(prompt)))
    return Echo(own.decode(prompt), 0)

  def _ids(self, prompt: Any) -> list[int]:
    if isinstance(prompt, list):
      vocab = self.batch.writer.model.config.vocab_size
      if not all(type(i) is int and 0 <= i < vocab for i in prompt):
        raise Refused(f"prompt={prompt!r:.60} must be ids, each less than {vocab}")
    elif not isinstance(prompt, str):
      raise Refused(f"prompt={prompt!r:.60} must be a text or a list of ids")
    ids, context = self.batch.writer.ids(prompt), self.batch.context
    if len(ids) >= context:
      message = f"a prompt has {len(ids)} tokens; with its answer {context} fit here"
      raise Refused(message, 400, "context_length_exceeded")
    return ids


def _finish(row: text_generator.Row | None) -> str | None:
  return None if row is None else ("stop" if row.is_stopped else "length")


def chunk(
  asked: Asked,
  index: int,
  text: str,
  row: text_generator.Row | None,
  logprobs: dict[str, Any] | None = None,
) -> dict:
  """A part of a stream: new text of a continuation, and at its end, how it ended."""
  choice = {"index": index, "logprobs": logprobs, "finish_reason": _finish(row)}
  if asked.is_chat:
    return _answer(asked, [{**choice, "delta": {"content": text} if text else {}}])
  return _answer(asked, [{**choice, "text": text}])


def opening(asked: Asked) -> list[dict]:
  """How a stream begins."""
  if asked.echoes is not None:
    texts = [echo.text for echo in asked.echoes for _ in range(asked.num)]
    return [chunk(asked, i, text, None) for i, text in enumerate(texts)]
  delta = {"role": "assistant", "content": ""}
  choice = {"logprobs": None, "finish_reason": None, "delta": delta}
  indices = range(len(asked.jobs) if asked.is_chat else 0)
  return [_answer(asked, [{"index": i, **choice}]) for i in indices]


def closing(asked: Asked, rows: Sequence[text_generator.Row]) -> list[dict]:
  """How a stream ends that was asked to count."""
  return [{**_answer(asked, []), "usage": _usage(asked, rows)}] if asked.counts else []


def whole(
  asked: Asked, rows: Sequence[text_generator.Row], piece: scores.Piece
) -> dict:
  """The answer that is not streamed.

  Args:
    rows: finished, in the order of the jobs.
    piece: token -> its bytes.
  """
  choices = []
  for index, row in enumerate(rows):
    choice: dict[str, Any] = {"index": index, "finish_reason": _finish(row)}
    choice["logprobs"] = logprobs(asked, index, row, piece)
    if asked.is_chat:
      choice["message"] = {"role": "assistant", "content": row.text}
    else:
      before = asked.echoes[index // asked.num].text if asked.echoes else ""
      choice["text"] = before + row.text
    choices.append(choice)
  return {**_answer(asked, choices), "usage": _usage(asked, rows)}


def logprobs(
  asked: Asked,
  index: int,
  row: text_generator.Row,
  piece: scores.Piece,
  start: int = 0,
  stop: int | None = None,
) -> dict[str, Any] | None:
  """Those of a continuation's tokens [start, stop), and of an echo before the first."""
  if asked.logprobs is None:
    return None
  found = [*scores.drawn(row, start, stop)]
  if asked.is_chat:
    return scores.chat(found, piece)
  before = [*scores.drawn(row, 0, start)]
  if asked.echoes is not None:
    num_opening = asked.echoes[index // asked.num].num_opening
    found = [*scores.prompt(row, asked.jobs[index].ids, num_opening), *found]
  at = sum(len(piece(one.token).decode(errors="replace")) for one in before)
  return scores.completion(found, piece, asked.logprobs > 0, at)


def _answer(asked: Asked, choices: list[dict]) -> dict:
  return {**asked.about, "choices": choices}


def _usage(asked: Asked, rows: Sequence[text_generator.Row]) -> dict[str, int]:
  """Numbers of tokens; a prompt counts once."""
  given = sum(len(job.ids) for job in asked.jobs[:: asked.num])
  drawn = sum(len(row.tokens) for row in rows)
  counts = {"prompt_tokens": given, "completion_tokens": drawn}
  return {**counts, "total_tokens": given + drawn}
