"""`gen-jax serve`: a text model behind OpenAI's protocol, for this machine alone."""

from __future__ import annotations

import dataclasses
import os
import resource

import jax

from gen_jax import rng
from gen_jax.cli import flags
from gen_jax.errors import InputError
from gen_jax.inference import settings
from gen_jax.runs import run as runs
from gen_jax.serving import protocol, server, worker
from gen_jax.system import progress, signals

_KEY = "GEN_JAX_API_KEY"
_LIMITS = {
  "slots": (8, "continuations drawn at once"),
  "queue": (256, "continuations that may wait; more are refused with 429"),
  "limit_bytes": (2**20, "of a request"),
  "limit_secs": (600, "for an answer, waiting included"),
}


def add_arguments(parser) -> None:
  """See `gen-jax serve --help`."""
  add = parser.add_argument
  flags.add_model(parser)
  add("--host", default="127.0.0.1", help="default: only this machine")
  add("--port", type=int, default=8000, help="default 8000; 0: any free one")
  add("--name", help="model name; default: the workdir's")
  for name, (usual, what) in _LIMITS.items():
    words = f"{what}; default {usual}"
    add(f"--{name}", type=int, default=usual, metavar="N", help=words)
  add("--context", type=int, metavar="N", help="prompt and answer; default the model's")
  title = "defaults for requests (default: the config's sampling block)"
  flags.add(parser.add_argument_group(title), settings.TEXT_SETTINGS)


def run(args) -> dict:
  """Answers requests until it is told to stop."""
  for name in _LIMITS:
    if getattr(args, name) < 1:
      raise InputError(f"--{name} {getattr(args, name)} must be at least 1")
  if not 0 <= args.port < 2**16:
    raise InputError(f"--port {args.port} must be at least 0 and at most 65535")
  given = flags.given(args, settings.TEXT_SETTINGS)
  opened = runs.open_run(args.workdir, args.overrides)
  if opened.family.slots is None:
    raise InputError(
      f"serve is for text models; {args.workdir} is {opened.family.kind}"
    )
  opened = opened.configured({f"sampling.{k}": v for k, v in given.items()})
  if jax.process_count() > 1:
    raise InputError("serve is for a run of one process")
  opened.require_tokenizer()
  with server.listen(args.host, args.port, args.limit_secs) as at:
    weights = opened.weights(args.checkpoint, args.weights)
    how = (args.slots, args.context)
    batch = opened.family.slots(opened.generator, weights.params, *how)
    first = dataclasses.replace(batch.job([0], rng.sample_keys(0, 1)[0]), max_tokens=1)
    list(batch.run([first]))  # compiles what all answers need
    drawer = worker.Worker(batch, args.queue, args.limit_secs)
    host, port = at.getsockname()[:2]
    name = args.name or args.workdir.name
    reader = protocol.Reader(batch, name, args.queue, batch.context)
    doors = _doors(args, host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    with signals.held(), signals.rescued(lambda: None):
      with server.serving(at, drawer, reader, doors) as has_ended:
        print(f"{name} at {url}; Ctrl-C stops", flush=True)
        drawer.run(lambda: signals.asked() or has_ended())
    signals.forget()  # to be stopped is how a server ends
  return {"url": url, "model": name, "answered": drawer.answered}


def _doors(args, host: str) -> server.Doors:
  key, is_local = os.environ.get(_KEY) or None, host in ("127.0.0.1", "::1")
  if key is None and not is_local:
    progress.warn(f"whoever reaches {host} may ask: set {_KEY} to ask for a key")
  most_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  connections = max(16, min(64 + 4 * args.queue, most_open - 128))
  return server.Doors(args.limit_bytes, args.limit_secs, connections, key, is_local)
