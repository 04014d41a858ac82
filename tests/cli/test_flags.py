"""Every flag that names a file or folder is read by `files.path`."""

import argparse
import pathlib

import pytest

from gen_jax import types
from gen_jax.build import config_files
from gen_jax.cli import compare, flags, main
from gen_jax.convert import hub
from gen_jax.data.tokens import documents
from gen_jax.system import buckets

ADDRESS = "ftp://host/x"
NOT_PATHS = set(
  "checkpoint weights coordinator prompt negative interpolate max_tokens temperature"
  " top_k top_p min_p repetition_penalty order stop sampler grid num_steps"
  " guidance_scale guidance_interval guidance_rescale size tile topology invert"
  " outpaint samplers image_guidance_scale features split revision dtype title"
  " metric field subset drop search address together system host name image"
  " caption label widths".split()
)
ENGINES = ("launch", "sweep", "tokenize", "pack")  # the commands that take --on
OF_THE_HOSTS = set("on hosts name zone bucket directory python setup option".split())
ELSEWHERE = {
  "config",
  "compare",
  "from",
  "source",
  "tokenizer",
}  # a path and more; see below


def _flags(command: str) -> dict[str, argparse.Action]:
  _, parsers = main._parser()
  main._add_arguments(command, parsers[command])
  return {a.dest: a for a in parsers[command]._actions if a.option_strings}


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_path_expands_the_home_and_refuses_an_address(command):
  others = NOT_PATHS | ELSEWHERE | (OF_THE_HOSTS if command in ENGINES else set())
  for name, action in _flags(command).items():
    if not isinstance(action, flags.Path | flags.Paths):
      is_text = action.nargs != 0 and action.type in (None, str)
      assert not is_text or name in others, f"is --{name} a path?"
      continue
    place, option = argparse.Namespace(**{name: None}), f"--{name}"
    action(None, place, "~/x", option)
    home = pathlib.Path.home() / "x"
    assert getattr(place, name) == ([home] if type(action) is flags.Paths else home)
    with pytest.raises(types.InputError, match=f"{option} '{ADDRESS}' is an address"):
      action(None, place, ADDRESS, option)


@pytest.mark.parametrize(
  "given, says",
  [
    ({"on": "local", "address": "a:1"}, "--address needs --on ray"),
    ({"on": "sky", "option": ["a=1"]}, "--option needs --on ray or slurm"),
    ({"on": "ray"}, "--on ray needs --address"),
    ({"on": "ray", "address": "a:1", "to": buckets.Address("s3://b/x")}, "a disk that"),
    ({"on": "slurm", "to": buckets.Address("s3://b/x")}, "s3://b/x is in a bucket"),
  ],
)
def test_flags_of_an_engine_fit_together(given, says):
  args = argparse.Namespace(**{"address": None, "option": None, "to": None, **given})
  wanted = {"address": ("ray",), "option": ("ray", "slurm")}
  with pytest.raises(types.InputError, match=says):
    flags.check_engine(args, wanted)
  good = argparse.Namespace(**{**vars(args), "on": "ray", "address": "a:1", "to": None})
  flags.check_engine(good, wanted)


def test_a_repeated_path_does_not_change_the_default():
  action = flags.Paths(["--x"], "x", default=[])
  place = argparse.Namespace(x=action.default)
  for name in ("a", "b"):
    action(None, place, name, "--x")
  assert place.x == [pathlib.Path("a"), pathlib.Path("b")]
  assert action.default == []


@pytest.mark.parametrize(
  "read, flag",
  [
    (config_files.load, "--config"),
    (hub.locate, "--from"),
    (lambda text: documents.listed(text, None, "train"), "--source"),
    (lambda text: compare._row(text, "validation/loss"), "A or B"),
    (lambda text: compare._row(f"{text}#seed=0", "validation/loss"), "A or B"),
  ],
)
def test_what_is_a_path_and_more_is_held_to_the_same(read, flag):
  with pytest.raises(types.InputError, match=f"{flag} '{ADDRESS}' is an address"):
    read(ADDRESS)


def test_a_config_is_found_in_the_home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  text = "import ml_collections\nget_config = lambda arg: ml_collections.ConfigDict()\n"
  (tmp_path / "c.py").write_text(text)
  assert config_files.load("~/c.py") == {}


def test_the_command_says_it_in_one_line(refuse):
  for command in ("inspect", "sample", "train"):
    words = ("--config", "configs/lm/pydoc.py") if command == "train" else ()
    refuse(command, *words, f"--workdir={ADDRESS}", says=["--workdir", "is an address"])
  words = ("--source=README.md", f"--tokenizer={ADDRESS}", "--to=x")
  refuse("tokenize", *words, says=["--tokenizer", "is an address"])
