"""muP: models of several widths that share a learning rate (Maximal Update).

Of a model m times as wide as its base, every layer's activations and their changes by
a step keep the base's size, so that what is tuned at the base holds for it. With Adam:

    matrix                       initial deviation        learning rate
    tables (inputs are one-hot)  as the base              as the base
    biases, norms                as the base              as the base
    of inputs that do not grow   as the base              as the base
    of inputs that grow          1 / sqrt(m)              1 / m
    a head of its own            1 / m                    1 / m
    a tied head                  its input is divided by m

and scores q k / sqrt(Dh) become q k sqrt(Dh of the base) / Dh. Initial deviations and
the two factors stand in the models, rates by leaf in `train.mup`. A model as wide as
its base is the standard one, bit for bit.

Source: Yang et al. 2022 (arXiv:2203.03466) tables 3 and 8, definition 4.1. The head of
zeros of its appendix D.2 is for a base that starts with one, too; ours does not.
"""

from gen_jax.types import Array, InputError


def ratio(owner: str, width: int, base_width: int | None) -> float:
  """m; 1 without a base.

  >>> ratio("model", 256, 64), ratio("model", 256, None)
  (4.0, 1.0)

  Raises:
    InputError: a base that is wider than the model.
  """
  if base_width is None:
    return 1.0
  if base_width > width:
    raise InputError(
      f"{owner} base_width={base_width} must be at most width={width}: it is the width"
      " of the smaller model whose settings are kept"
    )
  return width / base_width


def scaled(owner: str, new: int, old: int, **sizes: int | None) -> dict[str, int]:
  """Sizes of a model, such as its number of heads, times new / old; None is left out.

  >>> scaled("model", 64, 256, num_heads=8, mlp_width=None)
  {'num_heads': 2}

  Raises:
    InputError: one would not be whole.
  """
  found = {}
  for name, size in sizes.items():
    if size is not None:
      found[name], rest = divmod(size * new, old)
      if rest or not found[name]:
        raise InputError(
          f"{owner} {name}={size} times {new} / {old}, the ratio of widths, must be"
          " whole: choose another width or base_width"
        )
  return found


def times(x: Array, factor: float) -> Array:
  """x times a factor; x itself, bit for bit, for 1."""
  return x if factor == 1.0 else x * factor
