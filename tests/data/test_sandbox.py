"""Templates of strangers: as Jinja renders them, and never for long."""

import resource
import time

import jinja2
import jinja2.sandbox
import pytest

from gen_jax import types
from gen_jax.data import chat, sandbox

MESSAGES = [{"role": "user", "content": "a <b>\n c"}, {"role": "bot", "content": "d"}]
GROW = "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
TOO_MUCH = [
  "{{ 'a' * 10**9 }}",
  "{{ 10**9 * ['a'] }}",
  "{{ 2**100000000 }}",
  "{{ 'a'.center(10**10) }}",
  "{{ 'a' | center(10**10) }}",
  "{{ 'a' | attr('ljust')(10**10) }}",
  "{% filter center(10**10) %}x{% endfilter %}",
  "{{ '%1000000000d' % 5 }}",
  "{{ '%1000000000d' | format(5) }}",
  "{{ '%*d' % (10**9, 5) }}",
  "{{ '{:1000000000}'.format(5) }}",
  "{{ '{:{}}'.format(5, 10**9) }}",
  "{{ '%s%s%s' % ('x' * 30000000, 'x' * 30000000, 'x' * 30000000) }}",
  "{{ (1).to_bytes(10**10, 'big') }}",
  "{{ [1] | tojson(indent=10**9) }}",
  "{{ [1] | batch(10**9, 'x') | list }}",
  "{{ [[0] * 100] * 10000 | sum(start=[]) }}",
  "{{ range(100000) | map('center', 10000) | list }}",
  "{{ ('x' * 100000).join(range(100000) | map('string')) }}",
  "{{ ('x\t' * 100000).expandtabs(100000) }}",
  "{{ 'x'.translate({120: 'x' * 10**9}) }}",
  "{{ ('ab ' * 100000) | wordwrap(1, wrapstring='x' * 1000000) }}",
  f"{GROW}{{% set n.x = n.x + n.x %}}{{% endfor %}}",
  f"{GROW}{{% set n.x = n.x ~ n.x %}}{{% endfor %}}",
  f"{GROW}{{% set n.x = [n.x, n.x] %}}{{% endfor %}}{{{{ n.x }}}}",
  f"{GROW}{{% set n.x = (n.x, n.x) %}}{{% endfor %}}{{{{ n.x == n.x }}}}",
  f"{GROW}{{% set n.x = {{'a': n.x, 'b': n.x}} %}}{{% endfor %}}{{{{ n.x | tojson }}}}",
  f"{GROW}{{% set n.x = n.x.replace('a', 'aaaaaaaaaaaaaaaa') %}}{{% endfor %}}",
  f"{GROW}{{% set n.x %}}{{{{ n.x }}}}{{{{ n.x }}}}{{% endset %}}{{% endfor %}}",
  "{% set n = namespace(x=99) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}"
  "{% endfor %}",
  "{% set n = namespace(x=1) %}{% for i in range(60) %}"
  "{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ n.x }}",
  "{% for i in range(100000) %}{{ 'x' * 5000 }}{% endfor %}",
  "{% for i in range(10**9) %}{% endfor %}",
  "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
  "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
  "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
  "{{ f(60) }}",
  "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
  "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
  "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
  "x" * (sandbox.SOURCE + 1),
]


@pytest.mark.parametrize("template", TOO_MUCH, ids=lambda text: text[:40])
def test_too_much_is_refused_soon_and_in_little_memory(template):
  before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
  with pytest.raises(types.InputError, match="the chat template cannot") as error:
    chat.render(template, MESSAGES, True)
  assert "\n" not in str(error.value) and len(str(error.value)) < 400
  assert time.thread_time() - start < 5
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


@pytest.mark.parametrize("each, fails", [(0.2, True), (1e-4, False)])
def test_one_pause_is_not_the_template_s(monkeypatch, each, fails):
  """A collection of garbage may take seconds; many slow stretches are too long."""
  times = iter([0.0, 9.0])
  last = [9.0]

  def clock():
    last[0] += each
    return next(times, last[0])

  monkeypatch.setattr(sandbox.time, "thread_time", clock)
  template = "{% for i in range(20000) %}x{% endfor %}"
  if fails:
    with pytest.raises(types.InputError, match="more than 1 s"):
      chat.render(template, MESSAGES, True)
  else:
    assert chat.render(template, MESSAGES, True) == [("x" * 20000, False)]


def test_a_template_cannot_reach_the_meter():
  for name in ("the meter", "the_meter", "context", "environment"):
    text = chat.render(f"{{{{ self }}}}{{{{ {name.split()[0]} }}}}", MESSAGES, True)
    assert "function" not in "".join(part for part, _ in text)


@pytest.mark.parametrize(
  "template",
  [
    "{% for m in messages %}{{ loop.index0 }}{{ m.role + ': ' + m['content'] | trim }}"
    "{{ '\\n' if not loop.last }}{% if loop.first %}{% continue %}{% endif %}|"
    "{% endfor %}",
    "{%- set n = namespace(a=1, b='x') -%}{%- for i in range(3) -%}"
    "{%- set n.a = n.a * 2 -%}{%- set n.b = n.b ~ i ~ none -%}{%- endfor -%}"
    "{{ n.a, n.b }}",
    "{% macro f(x, y=2) %}{{ x * y }}{% endmacro %}{{ f(3) }}{{ f('ab', y=3) }}",
    "{% macro f() %}[{{ caller(1) }}]{% endmacro %}"
    "{% call(x) f() %}{{ x }}{% endcall %}",
    "{{ messages[::-1] | map(attribute='role') | join(', ') }}"
    "{{ messages[1:] | count }}",
    "{{ '%05.2f|%s' % (1.5, 'x') }}{{ '{:>6}|{}'.format('a', [1]) }}"
    "{{ '%d' | format(7) }}",
    "{% for k, v in {'a': (1, 2), 'b': [3]}.items() %}{{ k }}{{ v[0] }}{% endfor %}",
    "{{ 'a-b-c'.split('-')[-1].replace('c', 'dd') | upper | indent(2, true) }}",
    "{% set x %}a{{ messages[0].content }}{% endset %}{{ x | replace('<', '&lt;') }}",
    "{% for i in [1, [2, [3]]] recursive %}{% if i is iterable %}({{ loop(i) }})"
    "{% else %}{{ i }}{% endif %}{% endfor %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ missing is defined }}{{ missing }}{{ messages is iterable }}{{ 2 ** 10 % 7 }}",
    "{{ {'b': 1, 'a': 2} | dictsort }}{{ [3, 1] | sort | sum }}{{ 'x y' | title }}",
  ],
)
def test_the_meter_changes_nothing(template):
  plain = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  wanted = plain.from_string(template).render(messages=MESSAGES)
  made = chat.render(template, MESSAGES, True)
  assert "".join(part for part, _ in made) == wanted


def test_long_conversations_are_no_trouble():
  messages = [{"role": "user", "content": "word " * 200}] * 2000
  template = (
    "{% set n = namespace(t='') %}{% for m in messages %}{{ m.content | trim }}"
    "{% if messages | length > loop.index %}{{ m.content.split('x')[-1] }}{% endif %}"
    "{% endfor %}"
  )
  made = chat.render(template, messages[:400], True)
  assert len(made[0][0]) > 400_000
  made = chat.render(
    "{% for m in messages %}{{ m.content }}{% endfor %}", messages, True
  )
  assert len(made[0][0]) == 2_000_000
