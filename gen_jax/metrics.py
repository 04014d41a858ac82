"""Figures of merit, through the libraries whose numbers people compare."""

from collections.abc import Sequence


def answers(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
  """How near answers come to references, one each.

  Returns:
    num; exact_match in [0, 1], of the texts without space around them; rouge1, rouge2
    and rougeL in [0, 1] (Lin 2004; mean F with stemming, as rouge-score has it: it sees
    Latin letters and digits alone); bleu (Papineni et al. 2002) and chrf (Popovic
    2015) in [0, 100], over the whole corpus, as sacrebleu has them.
  """
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
