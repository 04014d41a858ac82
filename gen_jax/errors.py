"""User errors: one line that names the value, the rule and the fix. Imports no jax."""

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator


class InputError(ValueError):
  """Bad input from the user: one line that names the value, the rule and the fix."""


class Unavailable(InputError):
  """A store did not answer for long: the same command goes on when it does."""


class Diverged(InputError):
  """Training diverged: its loss is not finite, and a retry would repeat that."""


def one_line(error: BaseException) -> str:
  """An error's message on one line, or its type if it has none.

  >>> one_line(ValueError('a\\n b')), one_line(KeyError())
  ('a b', 'KeyError')
  """
  return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
  """The first line of an error's message, without its full stop, or its type."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def refused(error: OSError) -> str:
  """What the system refused, where, and what to do; raises what is not the system's."""
  if error.strerror is None:
    raise error
  where = f" ({error.filename})" if error.filename else ""
  is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
  hint = "; make room, then give the same command again" if is_full else ""
  return f"{error.strerror}{where}{hint}"


def unknown(kind: str, name: object, options: Iterable[str]) -> InputError:
  """Returns the error for a name not in `options`; it suggests the nearest ones.

  >>> str(unknown('sampler', 'dim', ['ddim', 'heun']))
  "unknown sampler 'dim': did you mean 'ddim'? There are: ddim, heun"
  """
  options = sorted(options)
  near = difflib.get_close_matches(str(name)[:80], options, n=2, cutoff=0.5)
  hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
  listed = ", ".join(options) if options else "none"
  return InputError(f"unknown {kind} {name!r:.200}: {hint}There are: {listed}")


def unsupported(kind: str, name: object, options: Iterable[str]) -> InputError:
  """Returns the error for something that exists elsewhere but not here.

  It suggests no near name: a Qwen2 loaded as the similar LLaMA gives wrong results.

  >>> str(unsupported('architecture', 'Qwen2ForCausalLM', ['LlamaForCausalLM']))
  "architecture 'Qwen2ForCausalLM' is not supported; supported: LlamaForCausalLM"
  """
  listed = ", ".join(sorted(options))
  return InputError(f"{kind} {name!r:.60} is not supported; supported: {listed}")


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
  """Around the import of a package that only the extra `name` of gen_jax installs.

  Raises:
    InputError: it is not installed; names what to install.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    raise InputError(
      f"{error.name} is not installed: python -m pip install 'gen_jax[{name}]'"
    ) from None
