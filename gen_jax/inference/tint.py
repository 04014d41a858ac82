"""How likely a model found each token, as a tint behind its text."""

import codecs
import math
from collections.abc import Iterable, Sequence

import jax
import rich.console
import rich.style
import rich.text

from gen_jax.data import tokenizers

_FULL = math.log(1000.0)  # nats of the darkest tint: a chance of 1 in 1,000


def pieces(tokenizer: tokenizers.Tokenizer, ids: Sequence[int]) -> list[str]:
  """The text of each token; one that ends inside a character has the part before it."""
  decoder = codecs.getincrementaldecoder("utf-8")("replace")
  last = len(ids) - 1
  return [
    decoder.decode(tokenizer.piece(x), final=i == last) for i, x in enumerate(ids)
  ]


def shade(logprob: float) -> float:
  """The strength of a tint: 0 of what is certain, 1 of 1 in 1,000 and less likely.

  >>> shade(0.0), shade(-math.log(1e9)), round(shade(-math.log(10)), 3)
  (0.0, 1.0, 0.333)
  """
  return min(1.0, max(0.0, -logprob / _FULL))


def show(found: Iterable[tuple[str, float]]) -> bool:
  """Prints (text, log-probability) tinted; False if stdout shows no colours.

  Several processes show nothing: what is found may need them all.
  """
  if jax.process_count() > 1:
    return False
  console = rich.console.Console(highlight=False)
  if not console.is_terminal or console.no_color or console.color_system is None:
    return False
  line = rich.text.Text()
  for text, logprob in found:
    rest = round(255 * (1 - shade(logprob)))
    colour = rich.style.Style(color="black", bgcolor=f"rgb(255,{rest},{rest})")
    line.append(text, colour)
  line.append("\n(redder: less likely; white: certain, full red: 1 in 1,000)", "dim")
  console.print(line, soft_wrap=True)
  return True
