"""A run as a model of lm-evaluation-harness (Gao et al. 2024, zenodo.12608602).

  python -m gen_jax.serving.harness --model gen_jax --model_args workdir=W --tasks T

is the harness's own command, which then also knows the model `gen_jax`. From Python
`lm_eval.simple_evaluate(model=harness.Model("W"), tasks=[...])`.
"""

import collections
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gen_jax import errors, rng
from gen_jax.evaluation import scoring
from gen_jax.inference import slots
from gen_jax.runs import run as runs
from gen_jax.types import InputError

with errors.extra("harness"):
  import lm_eval.utils
  from lm_eval.api import model, registry

_USUAL_TOKENS = 256  # of an answer, where a task gives no number; the harness's own
_PLAIN = {  # what the harness does not ask for
  "sampling.top_k": None,
  "sampling.min_p": 0.0,
  "sampling.repetition_penalty": 1.0,
}
_PASSED_OVER = ("batch_size", "max_batch_size", "device")  # the harness's, for torch


@registry.register_model("gen_jax")
class Model(model.LM):
  """Log-likelihoods and continuations by a run's weights.

  Choices are scored as by `gen-jax evaluate --choices`: those of a question after the
  same tokens. Rolling log-likelihoods are over the harness's windows. Chat templates
  are not applied.

  Args:
    workdir: of a text model.
    which, kind: see `Run.weights`.
    num: continuations drawn at once.
    seed: of continuations that are not greedy.

  Raises:
    InputError: no such run, or no text model.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    which: str | int = "best",
    kind: str | None = None,
    num: int = 8,
    seed: int = 0,
    **passed_over: Any,
  ):
    super().__init__()
    if unknown := passed_over.keys() - {*_PASSED_OVER}:
      known = ("workdir", "which", "kind", "num", "seed")
      raise errors.unknown("argument", min(unknown), known)
    run = runs.open_run(workdir)
    run.require_tokenizer()
    own = run.family.scorer(run.experiment)
    self._params = run.weights(which, kind).params
    measure = scoring.likelihood_and_rank
    self._scorer = scoring.Scorer(own.model, own.batch_tokens, measure)
    self._run, self._num, self._seed = run.configured(_PLAIN), num, seed
    self._tokenizer = run.experiment.tokenizer

  @property
  def tokenizer_name(self) -> str:
    """A hash of the tokenizer."""
    return self._tokenizer.fingerprint

  def loglikelihood(self, requests, disable_tqdm: bool = False):
    """(log-likelihood of the continuation, whether greedy decoding gives it) of each.

    Raises:
      InputError: see `scoring.choice_rows`.
    """
    groups = collections.defaultdict(list)
    for i, request in enumerate(requests):
      groups[request.task_name, request.doc_id, request.args[0]].append(i)
    rows, places = [], []
    for (task, doc, context), members in groups.items():
      choices = tuple(requests[i].args[1] for i in members)
      question = scoring.Question(context, choices, 0, f"{task}, document {doc}")
      size = self._scorer.model.config.max_length
      rows += scoring.choice_rows(question, self._tokenizer, size)[0]
      places += members
    found = dict(zip(places, self._scored(rows), strict=True))
    return [found[i] for i in range(len(requests))]

  def _scored(self, rows: Sequence[scoring.Row]) -> list[tuple[float, bool]]:
    scores = self._scorer.log_likelihoods(self._params, rows)
    total = [np.sum(score, axis=0, dtype=np.float64) for score in scores]
    return [
      (float(t[0]), int(t[1]) == len(s)) for t, s in zip(total, scores, strict=True)
    ]

  def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
    """The log-likelihood of each text, after what opens a text."""
    tokenizer, size = self._tokenizer, self._scorer.model.config.max_length
    rows, owners = [], []
    for i, request in enumerate(requests):
      ids = tokenizer.encode(request.args[0])
      marks = (*tokenizer.opening[-1:], tokenizer.bos, tokenizer.eos)
      start = next((mark for mark in marks if mark is not None), None)
      if start is None:  # the first token, if any, is what cannot be scored
        start, ids = next(iter(ids), 0), ids[1:]
      windows = lm_eval.utils.get_rolling_token_windows(ids, start, size, 1)
      for context, scored in map(lm_eval.utils.make_disjoint_window, windows):
        rows.append(scoring.Row(np.int32([*context, *scored]), len(context)))
        owners.append(i)
    total = [0.0] * len(requests)
    for owner, (score, _) in zip(owners, self._scored(rows), strict=True):
      total[owner] += score
    return total

  def generate_until(self, requests, disable_tqdm: bool = False):
    """A continuation of each text, without the stop text that ends it.

    A text that leaves too little room for the answer loses its beginning.

    Raises:
      InputError: a way of drawing that is not known here.
    """
    writer, context = self._run.generator, self._scorer.model.config.max_length
    seen: collections.Counter[str] = collections.Counter()
    jobs = []
    for request in requests:
      text, how = request.args
      job_of = _how(how, context)
      ids = [*self._tokenizer.opens(text), *self._tokenizer.encode(text)]
      if not ids:
        raise InputError("an empty text needs a tokenizer with a token that opens it")
      key = rng.sample_keys(self._seed, 1, seen[text])[0]
      jobs.append(slots.Job(ids[job_of["max_tokens"] - context :], key, **job_of))
      seen[text] += 1
    batch = self._run.family.slots(writer, self._params, self._num)
    found = {number: sample.text for number, sample in batch.run(jobs)}
    return [found[i] for i in range(len(requests))]


def _how(given: dict[str, Any], context: int) -> dict[str, Any]:
  """What a task says of drawing, as fields of a `slots.Job`."""
  rest = dict(given)
  until = rest.pop("until", None) or []
  is_drawn = rest.pop("do_sample", False) or "do_sample" not in given
  heat = float(rest.pop("temperature", 0.0))
  tokens = rest.pop("max_gen_toks", rest.pop("max_new_tokens", _USUAL_TOKENS))
  top_p = float(rest.pop("top_p", 1.0))
  if rest:
    raise InputError(f"{', '.join(rest)}: the task's way of drawing is not known here")
  return {
    "max_tokens": max(1, min(int(tokens), context - 1)),
    "temperature": heat if is_drawn else 0.0,
    "top_p": top_p,
    "stop": (until,) if isinstance(until, str) else tuple(filter(None, until)),
  }


def main() -> None:
  """The harness's own command, which says in one line what is wrong with a run."""
  from lm_eval.__main__ import cli_evaluate

  try:
    cli_evaluate()
  except InputError as error:
    print(f"gen-jax: error: {errors.one_line(error)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
