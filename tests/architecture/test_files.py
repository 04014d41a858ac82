"""What may be in a bucket is touched by its path's methods, or through `system`."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[2] / "gen_jax"

# What works on a disk alone, by its owner; a workdir's address would go through it
# as the name of a local file, or make a folder called "s3:".
_OF_A_DISK = {
  "os": "open replace rename remove unlink mkdir makedirs listdir scandir stat walk"
  " rmdir link symlink truncate path",
  "shutil": "copy copy2 copyfile copytree move rmtree disk_usage",
  "pathlib": "Path",
  "np": "load save savez memmap fromfile",
  "Image": "open",
}
# Who does so, and why no address comes there.
LOCAL = {
  "build/overrides.py": "where a user's module is: `files.local`",
  "build/registry.py": "where a user's module is",
  "build/config_files.py": "--config is a local file: `files.local`",
  "cli/doctor.py": "this machine",
  "cli/engines.py": "files of this machine",
  "cli/hosts.py": "/dev/null, and the program's own files",
  "cli/launch.py": "files of this machine",
  "cli/main.py": "streams, and a report of an error in a temporary file",
  "cli/repro.py": "runs/ here by default",
  "cli/sweep.py": "runs/ here by default",
  "cli/sweep_page.py": "runs/ here by default",
  "convert/hub.py": "the hub's own cache",
  "convert/target.py": "a temporary folder, copied into the bucket",
  "data/cache.py": "the cache is of this disk: `files.local`",
  "data/embedded.py": "the standard library",
  "data/folders.py": "`copies.here`",
  "data/image_files.py": "`copies.here`",
  "data/stored/captioned.py": "folders of images are of this disk: `files.local`",
  "data/sources.py": "`copies.here`, and TFDS's own folder",
  "data/tfds.py": "`copies.here`",
  "data/tokens/documents.py": "the ending of a name",
  "data/tokens/duplicates.py": "`here` of `folder`",
  "data/tokens/indexed.py": "`copies.fetched`",
  "data/tokens/making.py": "the type of a log, which is `here` of `folder`",
  "data/tokens/folder.py": "`here`, what is made on this disk before it is sent",
  "inference/sheets.py": "bytes",
  "runs/lease.py": "/proc",
  "runs/workdir.py": "the program's own files",
  "safetensors.py": "`copies.here`",
  "sweeps/attempt.py": "the disk of a sweep, and locks in a temporary folder",
  "sweeps/chips.py": "/dev",
  "sweeps/engine.py": "`desk`",
  "sweeps/figure.py": "figures of experiments are in the repository",
  "train/items.py": "free space, asked of a disk alone",
  "train/proof.py": "orbax's paths, which say what they are",
}


def _is_of_a_disk(node):
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
    return node.func.id == "open"
  if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
    return node.attr in _OF_A_DISK.get(node.value.id, "").split()
  return False


def _touching(text):
  """Lines that touch files of a disk; a type that is named is not touched."""
  tree = ast.parse(text)
  types = (
    getattr(n, f, None) for n in ast.walk(tree) for f in ("annotation", "returns")
  )
  named = {part for type_ in types if type_ is not None for part in ast.walk(type_)}
  return [n.lineno for n in ast.walk(tree) if n not in named and _is_of_a_disk(n)]


def test_files_that_may_be_in_a_bucket_are_touched_in_one_room():
  found = {}
  for path in sorted(ROOT.rglob("*.py")):
    name = path.relative_to(ROOT).as_posix()
    if not name.startswith("system/") and (lines := _touching(path.read_text())):
      found[name] = lines
  assert found.keys() == LOCAL.keys()


def test_the_law_sees_what_it_forbids():
  assert _touching("open('x')\nos.replace(a, b)\nx = pathlib.Path(workdir)\n") == [
    1,
    2,
    3,
  ]
  assert not _touching("def f(x: pathlib.Path) -> pathlib.Path:\n  x.open()\n")
