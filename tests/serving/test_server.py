"""A real server asked by the real client of the protocol."""

import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import re
import signal
import socket
import time
import types
import urllib.error
import urllib.parse
import urllib.request

import jax
import jax.numpy as jnp
import openai
import pytest

import gen_jax
from gen_jax.serving import server as server_
from tests.serving import conftest

PROMPTS = [f"{'import sys ' * (i % 7)}def f{i}(x" for i in range(100)]
GREEDY = {"model": "run", "temperature": 0, "max_tokens": 24}


def client(server, **options):
  return openai.OpenAI(
    base_url=server[1],
    **{"api_key": "none", "max_retries": 0, "timeout": 120, **options},
  )


@pytest.fixture(scope="module")
def ask(server):
  return client(server)


@pytest.fixture(scope="module")
def own(workdir):
  """The same model in this process."""
  return gen_jax.open(workdir)


def peak(process):
  """MiB that a process holds at most until now."""
  status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
  return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def complete(ask, prompt, **how):
  return ask.completions.create(prompt=prompt, **{**GREEDY, **how}).choices[0].text


def test_a_hundred_at_once_are_each_answered_as_if_alone(server, ask, own):
  alone = [complete(ask, prompt) for prompt in PROMPTS[:10]]
  with concurrent.futures.ThreadPoolExecutor(100) as pool:

    def all_at_once():
      return list(pool.map(lambda prompt: complete(ask, prompt), PROMPTS))

    together = all_at_once()
    before = peak(server[0])
    assert all_at_once() == together
  assert together[:10] == alone
  assert together == own.generate(PROMPTS, temperature=0.0, max_tokens=24)
  assert len({*together}) > 50
  assert peak(server[0]) - before < 32


@pytest.mark.long
def test_who_does_not_read_holds_nobody_up(server, ask):
  """Twenty ask for more than any buffer holds, and read nothing of it."""
  at = urllib.parse.urlsplit(server[1])
  how = {**GREEDY, "prompt": "x", "max_tokens": 500, "n": 12, "stream": True}
  body = json.dumps({**how, "temperature": 1, "prompt": "def "}).encode()
  head = f"POST /v1/completions HTTP/1.1\r\nHost: {at.hostname}\r\nContent-Type:"
  head += f" application/json\r\nContent-Length: {len(body)}\r\n\r\n"
  with contextlib.ExitStack() as stack:
    for _ in range(20):
      slow = socket.socket()
      slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
      slow.connect((at.hostname, at.port))
      slow.sendall(head.encode() + body)
      stack.callback(slow.close)
    alone = complete(ask, "import os")
    again = [complete(ask, "import os") for _ in range(5)]
    assert again == [alone] * 5
  for _ in range(100):  # who went away is not drawn for
    if (load := health(server)) == {"status": "ok", "running": 0, "queued": 0}:
      break
    time.sleep(0.1)
  assert load["running"] == load["queued"] == 0


def fetch(url, content=None, **headers):
  """Status and body of an answer, whatever it is."""
  asked = urllib.request.Request(url, content, headers)
  try:
    with urllib.request.urlopen(asked, timeout=60) as found:
      return found.status, json.load(found)
  except urllib.error.HTTPError as error:
    return error.code, json.load(error)


def health(server):
  return fetch(server[1].removesuffix("/v1") + "/health")[1]


def test_a_stream_spells_the_answer(ask):
  how = {"stream": True, "stream_options": {"include_usage": True}, "n": 3}
  how |= {"temperature": 0.8, "seed": 5, "max_tokens": 40}
  asked = {**GREEDY, "prompt": "import ", **how}
  whole = ask.completions.create(**{**asked, "stream": False, "stream_options": None})
  parts, ends = {}, {}
  for part in ask.completions.create(**asked):
    for choice in part.choices:
      parts[choice.index] = parts.get(choice.index, "") + choice.text
      ends[choice.index] = choice.finish_reason
  assert parts == {c.index: c.text for c in whole.choices}
  assert ends == {c.index: c.finish_reason for c in whole.choices}
  assert part.usage == whole.usage and part.choices == []
  assert whole.usage.total_tokens == (
    whole.usage.prompt_tokens + whole.usage.completion_tokens
  )


def test_samples_are_those_of_the_command(ask, own):
  how = {"temperature": 0.9, "top_p": 0.8, "max_tokens": 20}
  found = ask.completions.create(model="run", prompt="class A", n=3, seed=7, **how)
  got = [choice.text for choice in found.choices]
  assert got == own.generate("class A", num=3, seed=7, **how)
  assert len({*got}) > 1
  other = ask.completions.create(model="run", prompt="class A", n=3, seed=8, **how)
  assert [choice.text for choice in other.choices] != got


def test_stop_texts_and_numbers_of_tokens(ask, own):
  free = complete(ask, "def f", max_tokens=40)
  stop = free[5:7]
  found = ask.completions.create(prompt="def f", **{**GREEDY, "stop": [stop, "\0"]})
  (choice,) = found.choices
  assert choice.text == free[: free.index(stop)] and choice.finish_reason == "stop"
  ids = own.experiment.tokenizer.encode("def f")
  opening = own.experiment.tokenizer.opens("def f")
  assert found.usage.prompt_tokens == len(ids) + len(opening)
  cut = ask.completions.create(prompt="def f", **GREEDY)
  assert cut.choices[0].finish_reason == "length"
  assert cut.usage.completion_tokens == 24
  by_ids = ask.completions.create(prompt=[*opening, *ids], **GREEDY)
  assert by_ids.choices[0].text == cut.choices[0].text


def test_several_prompts_and_log_probabilities(ask):
  how = {**GREEDY, "logprobs": 0}
  found = ask.completions.create(prompt=["import", "def"], **how)
  alone = [
    ask.completions.create(prompt=p, **how).choices[0] for p in ("import", "def")
  ]
  for i, (one, other) in enumerate(zip(found.choices, alone, strict=True)):
    assert one.index == i and one.text == other.text
    assert one.logprobs.token_logprobs == other.logprobs.token_logprobs
    assert max(one.logprobs.token_logprobs) < 0
    assert len(one.logprobs.tokens) == 24


def test_penalties(ask, own):
  """A token that was drawn once is drawn again only where nothing else is near."""
  how = {**GREEDY, "prompt": "import ", "logprobs": 0, "max_tokens": 60}
  plain = ask.completions.create(**how).choices[0].logprobs.tokens
  for name in ("presence_penalty", "frequency_penalty"):
    low, high = (
      ask.completions.create(**how, **{name: x}).choices[0].logprobs.tokens
      for x in (-2, 2)
    )
    assert len({*low}) <= len({*plain}) < len({*high})
  messages = [{"role": "user", "content": "What?"}]
  asked = {**GREEDY, "messages": messages, "max_tokens": 60}
  one, two = (
    ask.chat.completions.create(**asked, frequency_penalty=x).choices[0].message.content
    for x in (0, 2)
  )
  assert one != two


def test_the_likeliest_tokens(ask):
  how = {**GREEDY, "prompt": "import ", "max_tokens": 8}
  found = ask.completions.create(**how, logprobs=3).choices[0].logprobs
  assert len(found.tokens) == len(found.top_logprobs) == 8
  for token, logprob, top in zip(
    found.tokens, found.token_logprobs, found.top_logprobs, strict=True
  ):
    assert len(top) == 3 and max(top.values()) == top[token] == logprob  # greedy
  asked = {**GREEDY, "max_tokens": 8, "temperature": 1.5, "seed": 3, "logprobs": True}
  asked["messages"] = [{"role": "user", "content": "What?"}]
  whole = ask.chat.completions.create(**asked, top_logprobs=4).choices[0].logprobs
  for token in whole.content:
    near = [one.logprob for one in token.top_logprobs]
    assert len(near) == 4 and near == sorted(near, reverse=True)
    assert token.logprob <= near[0] + 1e-5
    same = [one.logprob for one in token.top_logprobs if one.bytes == token.bytes]
    assert same == pytest.approx([token.logprob] * len(same), abs=1e-5)
  none = ask.chat.completions.create(**asked).choices[0].logprobs
  assert [t.logprob for t in none.content] == [t.logprob for t in whole.content]
  assert all(t.top_logprobs == [] for t in none.content)


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_stream_has_the_same_log_probabilities(ask, is_chat):
  how = {**GREEDY, "temperature": 0.9, "seed": 4, "max_tokens": 30, "n": 2}
  if is_chat:
    how |= {"messages": [{"role": "user", "content": "a"}], "logprobs": True}
    how["top_logprobs"], create = 2, ask.chat.completions.create
  else:
    how |= {"prompt": "import ", "logprobs": 2}
    create = ask.completions.create
  found = {0: [], 1: []}
  for part in create(**how, stream=True):
    for choice in part.choices:
      if choice.logprobs is not None:
        found[choice.index].append(choice.logprobs.model_dump())
  for choice in create(**how).choices:
    for name, value in choice.logprobs.model_dump().items():
      if value is not None:
        joined = [x for part in found[choice.index] for x in part[name]]
        assert joined == value, name
  assert len(found[0]) > 2


def test_an_echo(ask, own):
  prompt = "import sys, os"
  how = {"prompt": prompt, "echo": True}
  plain = complete(ask, prompt, max_tokens=5)
  assert complete(ask, max_tokens=5, **how) == prompt + plain
  parts = ask.completions.create(**{**GREEDY, **how, "max_tokens": 5, "stream": True})
  text = "".join(choice.text for part in parts for choice in part.choices)
  assert text == prompt + plain
  asked = {**GREEDY, **how, "logprobs": 1}
  none = ask.completions.create(**{**asked, "max_tokens": 0})
  (choice,) = none.choices
  assert choice.text == prompt and none.usage.completion_tokens == 0
  tokenizer = own.experiment.tokenizer
  ids, opening = tokenizer.encode(prompt), tokenizer.opens(prompt)
  found = choice.logprobs
  assert found.tokens == [tokenizer.piece(i).decode() for i in ids]
  starts = [prompt[at:] for at in found.text_offset]
  assert all(s.startswith(t) for s, t in zip(starts, found.tokens, strict=True))
  model, params = own.experiment.task.model, own.weights().params
  logits, _ = model.apply({"params": params}, jnp.asarray([[*opening, *ids]]))
  want = jax.nn.log_softmax(logits[0])[jnp.arange(len(ids)) + len(opening) - 1, ids]
  first = 0 if opening else 1  # nothing comes before the first token
  got = found.token_logprobs
  assert got[first:] == pytest.approx(want[first:].tolist(), abs=1e-3)
  assert got[:first] == [None] * first == found.top_logprobs[:first]
  more = ask.completions.create(**{**asked, "max_tokens": 3, "n": 1}).choices[0]
  assert more.logprobs.token_logprobs[: len(ids)] == got
  assert more.text.startswith(prompt) and len(more.logprobs.tokens) == len(ids) + 3
  by_ids = ask.completions.create(**{**asked, "prompt": ids, "max_tokens": 0})
  assert by_ids.choices[0].logprobs.token_logprobs[0] is None


def test_a_chat(ask, own):
  messages = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is "}] * 2},
  ]
  asked = {**GREEDY, "messages": messages, "logprobs": True}
  found = ask.chat.completions.create(**asked)
  plain = [messages[0], {"role": "user", "content": "What is What is "}]
  ids = own.experiment.tokenizer.encode_chat(plain)
  assert complete(ask, ids) == found.choices[0].message.content
  total = sum(token.logprob for token in found.choices[0].logprobs.content)
  assert len(found.choices[0].logprobs.content) == 24 and total < 0
  stream = ask.chat.completions.create(**{**asked, "logprobs": False, "stream": True})
  deltas = [part.choices[0].delta for part in stream]
  assert deltas[0].role == "assistant"
  assert "".join(d.content or "" for d in deltas) == found.choices[0].message.content


def test_models(ask):
  assert [model.id for model in ask.models.list()] == ["run"]
  assert ask.models.retrieve("run").owned_by == "gen_jax"
  with pytest.raises(openai.NotFoundError, match="there is no model 'other' here"):
    ask.models.retrieve("other")


PROMPT = {"model": "run", "prompt": "a"}
SAYS = {"model": "run", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
  "path, body, status, says",
  [
    ("completions", {**PROMPT, "model": "gpt"}, 404, "there is no model 'gpt' here"),
    ("completions", {"prompt": "a"}, 404, "there is no model ''"),
    ("completions", {**PROMPT, "max_tokens": 0}, 400, "max_tokens=0 must be a whole"),
    ("completions", {**PROMPT, "max_tokens": True}, 400, "max_tokens=True"),
    ("completions", {**PROMPT, "max_tokens": 513}, 400, "at most 512"),
    ("completions", {**PROMPT, "temperature": "hot"}, 400, "temperature='hot'"),
    ("completions", {**PROMPT, "temperature": -1}, 400, "temperature=-1"),
    ("completions", b'{"model":"run","temperature":NaN}', 400, "temperature=nan"),
    ("completions", {**PROMPT, "top_p": 0}, 400, "top_p=0"),
    ("completions", {**PROMPT, "n": 10**6}, 400, "n=1000000"),
    ("completions", {**PROMPT, "prompt": ["a"] * 100, "n": 9}, 400, "9 continuations"),
    ("completions", {**PROMPT, "prompt": []}, 400, "of 0 prompts"),
    ("completions", {**PROMPT, "prompt": [[1, -1]]}, 400, "must be ids"),
    ("completions", {**PROMPT, "prompt": [10**9]}, 400, "must be ids"),
    ("completions", {**PROMPT, "prompt": [1.5]}, 400, "prompt=1.5 must be a text"),
    ("completions", {**PROMPT, "prompt": "word " * 2000}, 400, "context holds"),
    ("completions", {**PROMPT, "stop": [""]}, 400, "stop=['']"),
    ("completions", {**PROMPT, "stop": ["a"] * 17}, 400, "at most 16"),
    ("completions", {**PROMPT, "seed": -1}, 400, "seed=-1"),
    ("completions", {**PROMPT, "echo": 1}, 400, "echo=1 must be true or false"),
    ("completions", {**PROMPT, "logprobs": 21}, 400, "at least 0 and at most 20"),
    ("completions", {**PROMPT, "presence_penalty": 3}, 400, "presence_penalty=3"),
    ("completions", {**PROMPT, "frequency_penalty": "a"}, 400, "frequency_penalty"),
    ("completions", {**PROMPT, "suffix": "b"}, 400, "suffix='b' is not supported"),
    ("completions", {**PROMPT, "maxtokens": 3}, 400, "did you mean 'max_tokens'"),
    ("completions", b'{"model":"run","prompt":"\\ud800"}', 400, "not valid Unicode"),
    ("completions", b"{", 400, "the body is not JSON"),
    ("completions", b"[1]", 400, "no JSON object"),
    ("completions", b"\xff", 400, "not UTF-8"),
    ("completions", b"[" * 10**5, 400, "nested too deeply"),
    ("completions", b" " * (2**20 + 1), 413, "more than 1048576 bytes"),
    ("chat/completions", {**SAYS, "messages": []}, 400, "no messages"),
    ("chat/completions", {**SAYS, "messages": ["a"]}, 400, "must have a role"),
    ("chat/completions", {**SAYS, "tools": [{}]}, 400, "tools=[{}] is not supported"),
    ("chat/completions", {**SAYS, "messages": [{"role": "user"}]}, 400, "no text"),
    ("chat/completions", {**SAYS, "top_logprobs": 2}, 400, "needs logprobs=true"),
    ("chat/completions", {**SAYS, "echo": True}, 400, "echo"),
    (
      "completions",
      {**PROMPT, "echo": True, "logprobs": 1, "stream": True},
      400,
      "echo with logprobs is not streamed",
    ),
    ("complete", {}, 404, "Not Found"),
  ],
)
def test_what_cannot_be_answered_is_said(server, path, body, status, says):
  content = body if isinstance(body, bytes) else json.dumps(body).encode()
  kind = {"Content-Type": "application/json"}
  code, found = fetch(f"{server[1]}/{path}", content, **kind)
  error = found["error"]
  assert code == status and says in error["message"]
  assert error["type"] == "invalid_request_error" and "\n" not in error["message"]
  assert health(server)["status"] == "ok"


def test_only_programs_of_this_machine_may_ask(server):
  """A page in a browser can send text to any port, or name this machine its own."""
  url = f"{server[1]}/completions"
  text = {"Content-Type": "text/plain"}
  assert fetch(url, json.dumps(PROMPT).encode(), **text)[0] == 415
  assert fetch(f"{server[1]}/models", Host="pages.example:80")[0] == 403
  assert fetch(url)[0] == 405


def test_a_key_a_full_queue_and_ctrl_c(workdir):
  """A server with little room; it stops within seconds, and says nothing more."""
  small = ("--slots=1", "--queue=2", "--name=small")
  with conftest.process(workdir, *small, GEN_JAX_API_KEY="secret") as server:
    with pytest.raises(openai.AuthenticationError):
      complete(client(server), "a", model="small")
    ask = client(server, api_key="secret")
    assert complete(ask, "a", model="small")
    at = urllib.parse.urlsplit(server[1])
    waiting = http.client.HTTPConnection(at.hostname, at.port)
    long = {**GREEDY, "model": "small", "prompt": ["def "] * 2, "max_tokens": 500}
    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    body = json.dumps({**long, "temperature": 1.0, "stream": True})
    busy = [http.client.HTTPConnection(at.hostname, at.port) for _ in range(3)]
    for connection in busy:
      connection.request("POST", "/v1/completions", body, headers)
    statuses = sorted(connection.getresponse().status for connection in busy)
    assert 429 in statuses and 200 in statuses
    waiting.close()
    server[0].send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = server[0].communicate(timeout=30)
    assert time.monotonic() - sent < 8
    assert (server[0].returncode, out, err) == (0, "", "")


def test_a_time_limit_beyond_what_the_system_takes():
  with server_.listen("127.0.0.1", 0, 1e9) as at:
    assert at.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2**31 - 1


def test_who_does_not_finish_the_head_of_a_request_is_cut_off(monkeypatch):
  """Not by sending a byte now and then either; others are answered meanwhile."""
  monkeypatch.setattr(server_, "_READ_SECS", 1.0)
  doors = server_.Doors(1000, 60.0, 16, None, True)
  drawer, reader = types.SimpleNamespace(load={}), types.SimpleNamespace()
  reader.completion = reader.chat = None  # nobody asks so much
  head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
  with server_.listen("127.0.0.1", 0, 60.0) as at:
    with server_.serving(at, drawer, reader, doors), contextlib.ExitStack() as stack:

      def connect():
        return stack.enter_context(socket.create_connection(at.getsockname(), 10))

      def answer(connection):
        connection.sendall(head + b"\r\n")
        found = b""
        while b"}" not in found:
          found += connection.recv(4096)
        return found

      slow, silent, second = connect(), connect(), connect()
      assert answer(second).startswith(b"HTTP/1.1 200")
      began = time.monotonic()
      second.sendall(head)  # the next request of a connection that stays
      slow.sendall(head)
      with contextlib.suppress(OSError):
        while time.monotonic() - began < 5.0:
          slow.sendall(b"X")
          slow.settimeout(0.1)
          with contextlib.suppress(TimeoutError):
            if slow.recv(4096).startswith(b"HTTP/1.1 408"):
              break
      assert 0.5 < time.monotonic() - began < 4.0
      for other in (silent, second):
        assert other.recv(4096).startswith(b"HTTP/1.1 408") and other.recv(1) == b""
      assert answer(connect()).startswith(b"HTTP/1.1 200")
