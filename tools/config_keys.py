"""The page of all config keys, made of the tables that configs are built by.

    python tools/config_keys.py        # prints it, in Markdown

A section for each kind of block, in it a table for each name, with a row for each key.
"""

import inspect
import re
from collections.abc import Iterator

from gen_jax import build, ranges
from gen_jax.build import meanings

HEAD = """# Config keys

Every key that a config can have: its type and range, its default, and what it means.
This page is made of the code that builds configs; `gen-jax train --config NAME --keys`
lists the keys that one config has, with their values.

A block is `{"name": ..., keys}`; a name alone stands for a block with its defaults.
On the command line keys are dotted: `--config.optimizer.learning_rate.peak=1e-3`. A key
that is a block links to the section of its kind.

## The top { #top }

| key | type and range | default | meaning |
|---|---|---|---|
"""
TOP = {
  "seed": "of everything random: weights, order of the data, noise.",
  "task": "what is learned, with its model.",
  "data": "rows and where they come from.",
  "optimizer": "with its learning rate.",
  "train": "length, logs, checkpoints, averages.",
  "mesh": "how devices are used.",
  "sampling": "how text or images are drawn; `text` or `image` by the task.",
  "evaluators": "blocks by names of your own; the name stands before their metrics.",
  "init_from": "another run, whose weights this one starts from.",
  "adapter": "low-rank adapters instead of all weights.",
  "imports": "modules or files that call `gen_jax.register`.",
}
KIND_OF = {"data": "dataset", "evaluators": "evaluator"}
# Where a kind's blocks stand in a config, if not under the kind's own name.
_PATHS = {"dataset": "data", "evaluator": "evaluators.NAME", "writer": "train.writers"}


def page() -> str:
  """The page, in Markdown with attribute lists."""
  return "".join([HEAD, *_top(), *(_section(kind) for kind in kinds())])


def kinds() -> list[str]:
  """Kinds in the order of a config: each after what may hold it."""
  order = [KIND_OF.get(key, key) for key in TOP]
  order = [kind for kind in order if kind in build.TABLES]
  for kind in order:  # which grows
    entries = build.TABLES[kind].values()
    held = (key for entry in entries for key in entry.keys() if key in build.TABLES)
    order += [key for key in dict.fromkeys(held) if key not in order]
  return order + [kind for kind in build.TABLES if kind not in order]


def _top() -> Iterator[str]:
  hints = build.hints("", {})
  for key, meaning in TOP.items():
    kind = KIND_OF.get(key, key)
    wanted = f"[{kind}](#{kind})" if kind in build.TABLES else ranges.text(hints[key])
    needed = "needed" if key in (*build.BLOCKS, "seed", "evaluators") else "`None`"
    yield f"| `{key}` | {wanted} | {needed} | {meaning} |\n"


def _section(kind: str) -> str:
  table, path = build.TABLES[kind], _PATHS.get(kind, kind)
  text = f"\n## {kind} {{ #{kind} }}\n\n"
  text += f"In a config: `{path}`.\n\n" if path != kind else ""
  bare = [name for name, entry in table.items() if not entry.keys()]
  if bare:
    also = " (without keys)" if len(bare) < len(table) else ""
    text += f"One of{also}: {', '.join(f'`{name}`' for name in bare)}.\n"
  named = ((name, entry) for name, entry in table.items() if entry.keys())
  return text + "".join(_entry(kind, name, entry) for name, entry in named)


def _entry(kind: str, name: str, entry: build.Entry) -> str:
  rows = "".join(
    f"| `{key.path}` | {_wanted(key)} | {_default(kind, name, key)} | {key.meaning} |\n"
    for key in keys(kind, entry)
  )
  head = "| key | type and range | default | meaning |\n|---|---|---|---|\n"
  title = f"### `{name}` {{ #{kind}-{name} }}"
  return f"\n{title}\n\n{_summary(entry)}\n\n{head}{_cells(rows)}"


def _cells(rows: str) -> str:
  return rows.replace("<|", "<\\|").replace("|>", "\\|>")  # control tokens


def keys(kind: str, entry: build.Entry) -> Iterator[build.Key]:
  """The keys of an entry; `path` is the key alone."""
  for key, p in entry.keys().items():
    meaning = meanings.of(entry.signature, kind, key)
    yield build.Key(key, p.annotation, p.default, p.default, meaning)


def _wanted(key: build.Key) -> str:
  if not build.is_block(key.path, key.hint):
    return key.wanted or "see its meaning"
  none = " or None" if type(None) in ranges.options(key.hint) else ""
  return f"a block: [{key.path}](#{key.path}){none}"


def _default(kind: str, name: str, key: build.Key) -> str:
  if key.is_needed:
    return "needed"
  where = _PATHS.get(kind, kind)
  return f"`{build.default(where, {'name': name}, key.path)!r}`"


def _summary(entry: build.Entry) -> str:
  """The first paragraph of a docstring; nothing where it has none of its own."""
  said = (inspect.getdoc(entry.signature) or "").partition("\n\n")[0]
  if re.match(r"Args:|Hyper-parameters|\w+\(", said):
    return ""
  return " ".join(said.split()).replace("*", r"\*").replace("<", "&lt;")


if __name__ == "__main__":
  print(page())
