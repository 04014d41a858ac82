"""The house rules: who imports whom, what an import costs, where things stand."""

import ast
import contextlib
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from gen_jax import build

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "gen_jax").rglob("*.py"))

# A room may import what stands above it here, itself, and nothing else of gen_jax;
# rooms of one line do not know each other. What is named "room.file" is a room of its
# own.
FLOORS = (
  ("errors",),
  ("types",),
  ("numbers", "ranges", "rng", "system", "tree"),
  ("safetensors", "collectives"),
  ("sharding", "diffusion", "decoding"),
  ("nn", "data", "cost"),
  ("models",),
  ("tasks.base",),
  ("tasks", "train"),
  ("inference",),
  ("evaluation",),
  ("build",),
  ("convert",),
  ("families",),
  ("experiment",),
  ("cost.plan",),
  ("runs",),
  ("sweeps", "serving"),
  ("cli",),
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


OLD_NAMES = ("prompting",)  # for one release more


def room(parts):
  """'diffusion' for gen_jax.diffusion.grids; what stands alone stays what it is."""
  pair = ".".join(parts[:2])
  return pair if pair in FLOOR else parts[0]


def imports(path):
  """Modules of gen_jax that a file imports, and top-level foreign packages."""
  own, foreign = set(), set()
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
      head, *rest = name.split(".")
      if head == "gen_jax" and rest:
        own.add(room(rest))
      elif head != "gen_jax":
        foreign.add(head)
  return own, foreign


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
  parts = list(path.relative_to(ROOT / "gen_jax").with_suffix("").parts)
  own, foreign = imports(path)
  here = room(parts)
  if here != "__init__" and here not in OLD_NAMES:
    upward = {other for other in own - {here} if FLOOR[other] >= FLOOR[here]}
    assert not upward, f"{here} must not import {upward}"
  here = parts[0]
  if here in ("diffusion", "decoding"):
    liftable = {"errors", "types", "numbers", "ranges", "rng", "tree", here}
    assert own <= liftable  # by strangers
    assert not foreign & {"flax", "ml_collections", "optax"}
  assert not foreign & {"torch", "tensorflow", "pickle"}
  if here != "cli":
    assert "ml_collections" not in foreign  # ConfigDict stops at the command line


def _modules():
  """{module: what it imports of gen_jax, in functions as well}."""
  names = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in FILES
  }
  graph = {}
  for path in FILES:
    here = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom):
        for alias in node.names:
          full = f"{node.module}.{alias.name}"
          found.add(full if full in names else node.module)
    graph[here.removesuffix(".__init__")] = found & names
  return graph


def test_no_circle():
  """No module imports itself by way of others, not even inside a function."""
  graph = _modules()
  while True:
    leaves = {name for name, found in graph.items() if not found & graph.keys()}
    if not leaves:
      break
    graph = {name: found for name, found in graph.items() if name not in leaves}
  assert not graph, sorted(graph)


def test_partition_specs_live_in_sharding_alone():
  for path in FILES:
    if path.name != "sharding.py":
      assert "PartitionSpec" not in path.read_text(), path


# Who reads or writes text and JSON without `files`, and why that is safe.
OWN_READERS = {
  "build/meanings.py": "docstrings",
  "runs/lease.py": "a record that its holder may be writing, and /proc",
  "cli/rendezvous.py": "messages on a socket",
  "safetensors.py": "heads of safetensors files",
  "data/emoji/emoji_dataset_builder.py": "runs inside TFDS, on pinned npm packages",
  "data/tfds.py": "JSON inside the JSON that `files` read",
  "data/tokenizer_json.py": "what the tokenizers library wrote",
  "system/buckets.py": "the methods by which `files` reads",
  "system/globs.py": "globs themselves",
  "system/memory.py": "/proc and control groups",
  "cost/hlo/program.py": "text that the compiler wrote",
  "train/proof.py": "heads of arrays, whose hashes are right",
}


def _reads(node):
  """Whether a call reads or writes text in another way than `files` does."""
  if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
    return False
  name, owner = node.func.attr, ast.unparse(node.func.value)
  if (owner, name) in (("json", "loads"), ("json", "load")):
    return not ast.unparse(node.args[0]).startswith("json.dumps(")
  if name == "splitlines":  # of messages, not of what users wrote
    return not any(w in owner for w in ("error", "message"))
  return name in ("read_text", "write_text") or owner == "glob"


def test_text_is_read_and_written_in_one_place_and_json_read():
  found = {
    str(path.relative_to(ROOT / "gen_jax")): node.lineno
    for path in FILES
    for node in ast.walk(ast.parse(path.read_text()))
    if _reads(node) and path.name != "files.py"
  }
  assert found.keys() <= OWN_READERS.keys(), found


# Who builds experiments: what opens a run, and what looks at a config that is of none.
MAKERS = {
  "runs/run.py",
  "runs/together.py",
  "runs/training.py",
  "sweeps/coordinates.py",
  "cli/import.py",
  "cli/plan.py",
}
# Files of a run; what a command writes for people (samples/, figures/) is its own.
OF_A_RUN = {"config.json", "run.json", "metrics.jsonl", "checkpoints", "tokenizer"}
OF_A_RUN |= {"import.json", "init_from.json", "health.json", "evaluation.json"}


def test_a_run_is_opened_in_one_room():
  """Nothing above `runs` builds a run's experiment, or names a file of a run."""
  made, named = set(), {}
  for path in FILES:
    name = str(path.relative_to(ROOT / "gen_jax"))
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute) and node.attr == "make":
        if ast.unparse(node.value) in ("experiments", "experiment"):
          made.add(name)
      if isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant):
        if isinstance(node.op, ast.Div) and node.right.value in OF_A_RUN:
          named.setdefault(name, set()).add(node.right.value)
  assert made == MAKERS
  commands = {name for name in named if name.startswith("cli/")}
  assert commands <= {"cli/import.py", "cli/export.py"}, named  # foreign folders' own
  opening = {f"gen_jax.{name}" for name in ("train.checkpoint", "train.items")}
  opening.add("gen_jax.runs.lease")
  graph = _modules()
  for name, found in graph.items():
    if name.startswith("gen_jax.cli.") and name != "gen_jax.cli.import":
      assert not found & opening, (name, found)


# Rooms that may ask of which kind a task, data or a source is.
KNOW_KINDS = ("families", "tasks", "build")
_KINDS = ("task", "dataset", "source")
_CLASSES = {
  *(
    e.signature.__name__
    for kind in (*_KINDS, "sampling")
    for e in build.TABLES[kind].values()
  ),
  *("LanguageModel", "TextData"),
}
_NAMES = {name for kind in _KINDS for name in build.TABLES[kind]}
_OF_A_KIND = re.compile(r"\b(task|dataset|data|source|family)\b")
_HELD = re.compile(r"(\b|\.)(task|dataset|data|source|experiment)$")


def _asks(node):
  """Whether an expression asks of which kind a task, data or a source is."""
  if isinstance(node, ast.Attribute):
    return node.attr == "is_text"
  if isinstance(node, ast.Call):
    name, *words = (ast.unparse(arg) for arg in (node.func, *node.args))
    if name in ("isinstance", "issubclass"):
      return bool(_CLASSES & set(re.findall(r"\w+", words[1])))
    is_asked = name in ("hasattr", "type") or (name == "getattr" and len(words) == 3)
    return is_asked and bool(_HELD.search(words[0]))
  if not isinstance(node, ast.Compare):
    return False
  is_key = isinstance(node.ops[0], ast.In | ast.NotIn)  # "autoencoder" in a tree
  sides = node.comparators if is_key else [node.left, *node.comparators]
  constants = (n for side in sides for n in ast.walk(side))
  names = {n.value for n in constants if isinstance(n, ast.Constant)}
  return bool(names & _NAMES) and bool(_OF_A_KIND.search(ast.unparse(node)))


def _kind_tests(code):
  """Lines of code that ask of which kind a task, data or a source is."""
  return [node.lineno for node in ast.walk(ast.parse(code)) if _asks(node)]


def test_kinds_are_known_in_one_place():
  """Elsewhere a family, data or a source is asked what it gives, not what it is."""
  found = {
    str(path): lines
    for path in FILES
    if path.relative_to(ROOT / "gen_jax").parts[0] not in KNOW_KINDS
    if (lines := _kind_tests(path.read_text()))
  }
  assert found.keys() == {str(ROOT / "gen_jax/data/sources.py")}, found  # `gives`
  assert len(*found.values()) == 1


@pytest.mark.parametrize(
  "line",
  [
    "isinstance(experiment.task, diffusion.Diffusion)",
    "isinstance(task, (lm.LanguageModel, autoencoder.Autoencode))",
    "issubclass(kind, datasets.EditData | datasets.LatentData)",
    "isinstance(experiment.sampling, generate.Sampling)",
    "isinstance(data.source, sources.ImageFolder)",
    "hasattr(experiment.data.source, 'class_names')",
    "hasattr(data, 'questions')",
    "getattr(self.task, 'model', None)",
    "type(task).__name__",
    "config['task']['name'] == 'autoencoder'",
    "config['data']['name'] in ('images', 'latents')",
    "run.family.name != 'language_model'",
    "run.is_text",
  ],
)
def test_a_test_of_a_kind_is_found(line):
  assert _kind_tests(f"if {line}:\n  pass") == [1]


def test_configs_never_import_the_library():
  for path in (ROOT / "configs").rglob("*.py"):
    own, foreign = imports(path)
    assert not own and "gen_jax" not in foreign, path
    assert foreign <= {"ml_collections", "configs", "difflib", "collections"}


# Lines of a room, docstrings and all; a room that is full asks for a deletion first.
BUDGETS = {
  "build": 1_491,  # with config files, overrides, users' own; a line for every key: 155
  "cli": 4_635,  # completion: 70; stores; forecasts; a sweep's page, engines
  "convert": 4_055,  # adapters: PEFT's, diffusers', kohya's; own models for diffusers
  "cost": 1_412,  # forecasts, Cloud's names of slices
  "data": 9_142,  # stores: of text 2,330 lines in tokens/, of images 640 in stored/
  "decoding": 370,
  "families": 893,  # many prompts, a chat; what own tasks must give: 90
  "diffusion": 2_250,
  "evaluation": 1_550,  # batches of a command that was cut off; settings of sampling
  "inference": 2_197,  # images that say how they were made; flags; slots, a chat, tints
  "models": 1_610,  # each at another width
  "nn": 1_675,  # widths: muP
  "runs": 2_829,  # adapters; groups and shared programs: 620; the bill; until; weights
  "sweeps": 3_833,  # groups; the page; clusters: 360; searches: 615; what is damaged
  "serving": 1_160,  # OpenAI's protocol, its scores, queue and HTTP; lm-eval
  "system": 2_193,  # own configs; compiled programs; buckets; processes
  "tasks": 1_285,
  "train": 3_401,  # trackers: 245; items, waiting for data, a profile, muP; buckets
  "loose files": 2_110,  # errors without jax, of the system; register; numbers
}


def test_size_budgets():
  rooms = dict.fromkeys(BUDGETS, 0)
  for path in FILES:
    room = path.relative_to(ROOT / "gen_jax").parts[0]
    room = "loose files" if room.endswith(".py") else room
    rooms[room] += len(path.read_text().splitlines())
  over = {room: n for room, n in rooms.items() if n > BUDGETS[room]}
  assert not over, rooms


CORE = ("diffusion", "decoding", "nn", "models", "tasks", "train")


def test_the_readme_says_how_large_the_house_is():
  lines = {path: len(path.read_text().splitlines()) for path in FILES}
  rooms = {path: path.relative_to(ROOT / "gen_jax").parts[0] for path in FILES}
  core = {*CORE, "sharding.py", "collectives.py"}
  sizes = sum(lines[path] for path in FILES if rooms[path] in core), sum(lines.values())
  said = (ROOT / "README.md").read_text().replace("\n", " ")
  found = re.search(r"about ([\d,]+) lines, all of `gen_jax/` about ([\d,]+);", said)
  for number, size in zip(found.groups(), sizes, strict=True):
    assert int(number.replace(",", "")) == pytest.approx(size, rel=0.02)


# Functions of more than 60 lines, and why they may be.
LONG_FUNCTIONS = {
  "train/loop.py run": "the order of a step is a contract, and is read in one piece"
}


def test_files_and_functions_are_short():
  files, functions = set(), set()
  for path in FILES:
    name, text = str(path.relative_to(ROOT / "gen_jax")), path.read_text()
    assert "noqa: E731" not in text, name  # a function with a name is a def
    if len(text.splitlines()) > 400:
      files.add(name)
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        if node.end_lineno - node.lineno >= 60:
          functions.add(f"{name} {node.name}")
  assert not files
  assert functions == LONG_FUNCTIONS.keys()


def test_no_name_is_defined_twice():
  """The second of two functions hides the first; linters pass over private ones."""
  for path in FILES:
    module = ast.parse(path.read_text())
    names = [
      n.name for n in module.body if isinstance(n, ast.FunctionDef | ast.ClassDef)
    ]
    assert len(names) == len(set(names)), (path, sorted(names))


def test_public_names_are_documented():
  for path in FILES:
    module = ast.parse(path.read_text())
    assert not path.read_text() or ast.get_docstring(module), path
    for node in module.body:
      if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
        assert ast.get_docstring(node), (path, node.name)


def run(code):
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
  ).stdout.strip()


def test_import_is_quick_and_quiet():
  """Under 1.5 s (best of three, the machine may be busy); no device, no frameworks."""
  code = (
    "import time; began = time.perf_counter(); import gen_jax, sys;"
    " print(time.perf_counter() - began);"
    " print(sorted({'tensorflow', 'torch'} & set(sys.modules)))"
  )
  runs = [run(code).splitlines() for _ in range(3)]
  assert min(float(secs) for secs, _ in runs) < 1.5
  assert runs[0][1] == "[]"


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts).removesuffix(".__init__")


def test_what_is_taken_from_our_modules_is_there():
  """A name that moved away is found here, not when a user comes by the line."""
  missing = []
  for path in FILES:
    nodes, modules = list(ast.walk(ast.parse(path.read_text()))), {}
    for node in nodes:
      if isinstance(node, ast.ImportFrom) and node.module.startswith("gen_jax"):
        for alias in node.names:
          importlib.import_module(node.module)
          with contextlib.suppress(ModuleNotFoundError):  # it is no module
            found = importlib.import_module(f"{node.module}.{alias.name}")
            modules[alias.asname or alias.name] = found
    for node in nodes:
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = modules.get(node.value.id)
        if owner is not None and not hasattr(owner, node.attr):
          missing.append(f"{path}:{node.lineno} {node.value.id}.{node.attr}")
  assert not missing


def test_no_module_touches_a_device_or_tensorflow_when_imported():
  names = list(map(module_name, FILES))
  code = (
    f"import importlib, sys; [importlib.import_module(n) for n in {names!r}];"
    " from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized(),"
    " sorted({'tensorflow', 'torch'} & set(sys.modules)))"
  )
  assert run(code) == "False []"


def _requirements(path):
  lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
  return [line for line in lines if line]


def test_what_a_clone_installs_is_the_package_with_extras():
  """requirements.txt has pyproject.toml's bounds; [all] lacks accelerators and Ray."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = project["optional-dependencies"]
  wanted = project["dependencies"] + [
    line
    for name in ("data", "hub", "metrics", "report", "sweeps")
    for line in extras[name]
  ]
  assert _requirements(ROOT / "requirements.txt") == wanted
  assert {*extras["corpora"]} < {*_requirements(ROOT / "requirements-dev.txt")}
  others = ",".join(name for name in extras if name not in ("tpu", "gpu", "ray", "all"))
  assert extras["all"] == [f"gen_jax[{others}]"]
  named = {
    *re.findall(r'errors\.extra\("(\w+)"\)', "".join(p.read_text() for p in FILES))
  }
  assert named <= extras.keys()


def test_digits_builder_imports_no_tensorflow(tmp_path):
  code = (
    "import sys; from gen_jax.data.digits import source;"
    f" examples = source.Digits({str(tmp_path)!r}).examples('validation');"
    " e = examples[3]; print(len(examples), e['image'].shape, e['image'].dtype,"
    " 'tensorflow' in sys.modules)"
  )
  assert run(code).splitlines()[-1] == "359 (8, 8, 1) uint8 False"


def _homes():
  """{block of a config: files that CONTRIBUTING says hold what it may be}."""
  table = (ROOT / "CONTRIBUTING.md").read_text().split("## Where do I add")[1]
  found = {}
  for line in table.splitlines():
    if line.startswith("| `"):
      blocks, files = line.strip("|").split("|")
      for block in re.findall(r"`(\w+)`", blocks):
        found[block] = re.findall(r"`([\w/]+(?:\.py|/))`", files)
  return found


def test_contributing_says_where_everything_is():
  tables, homes = build.TABLES, _homes()
  assert homes.keys() == tables.keys() - {"remat"}  # policies are jax's
  for block, files in homes.items():
    for name, entry in tables[block].items():
      made = inspect.unwrap(entry.signature)
      module = inspect.getmodule(made).__name__
      if module in ("gen_jax.build.tables", "jax._src.nn.functions"):
        continue  # a value, or a function around what the file holds
      path = f"{module.removeprefix('gen_jax.').replace('.', '/')}.py"
      assert any(path == f or (f[-1] == "/" and path.startswith(f)) for f in files), (
        f"CONTRIBUTING says that {block} {name} is in {files}, it is in {path}"
      )
  for file in (f for files in homes.values() for f in files):
    assert (ROOT / "gen_jax" / file).exists(), file
