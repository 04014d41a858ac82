"""A sandbox for untrusted Jinja templates, with limits of time and memory.

Jinja's immutable sandbox protects the machine, but not its time and memory:
`'a' * 10**9`, nested loops, values that repeatedly contain themselves. A meter adds
that: it charges the size of every value and output, and for every loop iteration and
macro call the text in it; operations that could make a huge value at once are charged
before they run.
"""

import re
import time
from collections.abc import Callable, Mapping, Set, ValuesView
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor
from jinja2 import nodes

SECONDS = 1.0  # processor time
CHARACTERS = 2**26  # characters made in all, plus 64 times the input's
OUTPUT = 2**22  # characters of the text, plus 16 times the input's
SOURCE = 2**17  # characters of the template
_PAUSE = SECONDS / 4  # longer ones are Python's collection of garbage
_TURN = 128  # cost of a loop iteration, a call or a container, in characters
# Names with a space, which no template can use.
_METER, _CHARGE, _MEASURE = "the meter", "the charge", "the measure"
_GONE = ("urlize", "striptags", "pprint", "xmlattr", "random")  # costly, or random

Spend = Callable[[int], None]


def _meter(limit: int) -> Spend:
  """A function that adds up costs and raises above `limit` or `SECONDS`."""
  left, look, used, seen = limit, limit, 0.0, time.thread_time()

  def spend(size: int) -> None:
    nonlocal left, look, used, seen
    left -= size
    if left < 0:
      raise jinja2.TemplateError(f"it makes more than {limit} characters, or steps")
    if left < look:  # reading the clock costs more than most iterations
      look = left - 64 * _TURN
      now = time.thread_time()
      used, seen = used + min(now - seen, _PAUSE), now
      if used > SECONDS:
        raise jinja2.TemplateError(f"it takes more than {SECONDS:g} s")

  return spend


def size(value: Any, limit: int = CHARACTERS) -> int:
  """About how many characters a value has; shared parts count every time."""
  total, pending = 0, [value]
  while pending and total <= limit:
    item = pending.pop()
    if isinstance(item, str | bytes):
      total += len(item)
    elif isinstance(item, int):
      total += item.bit_length() // 3
    elif isinstance(item, jinja2.utils.Namespace):
      pending.append(item._Namespace__attrs)
      total += _TURN
    elif isinstance(item, Mapping):
      pending += [*item.keys(), *item.values()]
      total += _TURN
    elif isinstance(item, list | tuple | Set | ValuesView):
      pending += item
      total += _TURN
  return total


def _format_size(text: str, values: tuple) -> int:
  """An upper bound of the size of `text % values` and `text.format(*values)`."""
  if re.search(r"%[^a-zA-Z%]*\*|\{[^}]*\{", text):
    raise jinja2.TemplateError("a width in a format is not written out")
  widths = sum(int(n[:12]) for n in re.findall(r"\d+", text))
  return len(text) + widths + (text.count("%") + text.count("{")) * size(values)


def _reach(name: str, value: Any, given: tuple) -> int:
  """An upper bound of the size of a method's or filter's result, or 0."""
  widths = sum(abs(x) for x in given if isinstance(x, int))
  others = tuple(x for x in given if not isinstance(x, int))
  match name:
    case "replace" if isinstance(value, str) and all(
      isinstance(x, str) for x in others
    ):
      old, new = (*others, "", "")[:2]
      return len(value) + value.count(old) * len(new)
    case "join":
      pair = value, *others[:1]  # a generator: as long as a range may be
      lengths = (len(x) if hasattr(x, "__len__") else 10**5 for x in pair)
      items, separator = (*lengths, 0)[:2]
      return size(value) + size(others) + items * separator
    case "format" | "format_map":
      return _format_size(str(value), others)
    case "center" | "ljust" | "rjust" | "zfill" | "to_bytes" | "round":
      return size(value) + widths
    case "indent" | "expandtabs" | "wordwrap" | "batch" | "slice" | "tojson":
      return (size(value) + _TURN) * (widths + size(others) + 1)
    case "translate":
      return (size(value) + 1) * (size(others) + 1)
    case "sum" if any(isinstance(x, list | tuple) for x in others):
      raise jinja2.TemplateError("lists are not summed")
  return 0


def _operation_size(operator: str, left: Any, right: Any) -> int:
  """An upper bound of the size of a binary operation's result, or 0."""
  if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
    long = right if operator == "**" else right.bit_length()
    if left.bit_length() * long > 2**20:
      raise jinja2.TemplateError(f"it makes a number of more than {2**20} bits")
    return 0
  if operator == "*":
    pair = (left, right) if isinstance(right, int) else (right, left)
    return size(pair[0]) * max(pair[1], 0) if isinstance(pair[1], int) else 0
  if operator == "%" and isinstance(left, str):
    return _format_size(left, right if isinstance(right, tuple) else (right,))
  return size(left) + size(right) if operator in "+*" else 0


def _metered(name: str, function: Callable) -> Callable:
  """A filter that is charged before and after it runs."""
  passed = jinja2.utils._PassArg.from_obj(function)

  @jinja2.pass_context
  def run(context, value, *args, **kwargs):
    spend = context.parent[_METER]
    spend(_TURN + _reach(name, value, (*args, *kwargs.values())))
    own = {
      jinja2.utils._PassArg.context: (context,),
      jinja2.utils._PassArg.eval_context: (context.eval_ctx,),
      jinja2.utils._PassArg.environment: (context.environment,),
    }.get(passed, ())
    made = function(*own, value, *args, **kwargs)
    spend(size(made))
    return made

  return run


@jinja2.pass_context
def _measure(context, value):
  context.parent[_METER](size(value))
  return value


@jinja2.pass_context
def _charge(context, cost):
  context.parent[_METER](cost)
  return ""


class _Metering(jinja2.visitor.NodeTransformer):
  """Inserts charges for a template's loops, macros and values."""

  def _charged(self, node):
    text = node.find_all((nodes.TemplateData, nodes.Const))
    cost = _TURN + sum(len(str(each.as_const())) for each in text)
    node = self.generic_visit(node)
    charge = nodes.Filter(nodes.Const(cost), _CHARGE, [], [], None, None)
    node.body.insert(0, nodes.Output([charge]))
    return node

  def _measured(self, node):
    node = self.generic_visit(node)
    return nodes.Filter(node, _MEASURE, [], [], None, None, lineno=node.lineno)

  visit_For = visit_Macro = visit_CallBlock = _charged
  visit_Concat = visit_List = visit_Dict = _measured

  def visit_Tuple(self, node):
    return self._measured(node) if node.ctx == "load" else self.generic_visit(node)

  def visit_Getitem(self, node):
    is_slice = isinstance(node.arg, nodes.Slice)
    return self._measured(node) if is_slice else self.generic_visit(node)


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """Jinja's immutable sandbox with a meter."""

  intercepted_binops = frozenset(["+", "*", "**", "%"])

  def __init__(self, filters: Mapping[str, Callable], extensions: list):
    super().__init__(
      trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_measure
    )
    known = {**self.filters, **filters}
    kept = {name: known[name] for name in known if name not in _GONE}
    self.filters = {name: _metered(name, kept[name]) for name in kept}
    self.filters |= {_MEASURE: _measure, _CHARGE: _charge}
    del self.globals["lipsum"]

  def _parse(self, source, name, filename):
    if len(source) > SOURCE:
      raise jinja2.TemplateError(f"it has {len(source)} characters, more than {SOURCE}")
    return _Metering().visit(super()._parse(source, name, filename))

  def call_binop(self, context, operator, left, right):
    """See Jinja's sandbox; charged before it runs."""
    context.parent[_METER](_operation_size(operator, left, right))
    return super().call_binop(context, operator, left, right)

  def call(__self, __context, __obj, *args, **kwargs):
    """See Jinja's sandbox; charged before and after it runs."""
    spend, method = __context.parent[_METER], getattr(__obj, "__wrapped__", __obj)
    owner = getattr(method, "__self__", None)
    spend(
      _TURN + _reach(getattr(method, "__name__", ""), owner, (*args, *kwargs.values()))
    )
    made = super().call(__context, __obj, *args, **kwargs)
    spend(size(made))
    return made


def render(template: jinja2.Template, given: Mapping[str, Any]) -> str:
  """The text of a template of an `Environment`.

  Raises:
    jinja2.TemplateError: beyond the limits of time or size.
    Exception: whatever the template raises.
  """
  amount = size(given)
  text = template.render({**given, _METER: _meter(CHARACTERS + 64 * amount)})
  if len(text) > OUTPUT + 16 * amount:
    raise jinja2.TemplateError(f"its text has {len(text)} characters")
  return text
