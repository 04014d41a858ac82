"""Figures of merit, through the libraries whose numbers people compare."""

from collections.abc import Sequence

import numpy as np

from gen_jax import errors


def answers(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
  """How near answers come to references, one each.

  Returns:
    num; exact_match in [0, 1], of the texts without space around them; rouge1, rouge2
    and rougeL in [0, 1] (Lin 2004; mean F with stemming, as rouge-score has it: it sees
    Latin letters and digits alone); bleu (Papineni et al. 2002) and chrf (Popovic
    2015) in [0, 100], over the whole corpus, as sacrebleu has them.
  """
  with errors.extra("metrics"):
    import sacrebleu  # imported here, with what follows: half a second
    from rouge_score import rouge_scorer

  pairs = [(a.strip(), r.strip()) for a, r in zip(answers, references, strict=True)]
  names = ("rouge1", "rouge2", "rougeL")
  scorer = rouge_scorer.RougeScorer(names, use_stemmer=True)
  rouge = [scorer.score(reference, answer) for answer, reference in pairs]
  given, wanted = map(list, zip(*pairs, strict=True))
  return {
    "num": float(len(pairs)),
    "exact_match": sum(a == r for a, r in pairs) / len(pairs),
    **{n: sum(r[n].fmeasure for r in rouge) / len(pairs) for n in names},
    "bleu": sacrebleu.corpus_bleu(given, [wanted]).score,
    "chrf": sacrebleu.corpus_chrf(given, [wanted]).score,
  }


def edits(before: np.ndarray, after: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
  """How well edits were drawn, as shares of black to white; all uint8 [N, H, W, C].

  Returns:
    edits/inside: mean |drawn - after| over the pixels that the edit changes;
    edits/outside: mean |drawn - before| over all others. A copy of `before` has 0.
  """
  change = (before != after).any(-1)
  away = np.abs(drawn - after.astype(np.float64)).mean(-1) / 255.0
  return {
    "edits/inside": float(away[change].mean()) if change.any() else 0.0,
    "edits/outside": float(away[~change].mean()) if not change.all() else 0.0,
  }
