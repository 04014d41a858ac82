"""The commands' surface: help, machine-readable results, a dry run of a giant."""

import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys

import pytest
from jax._src import hardware_utils, xla_bridge

from gen_jax.cli import main
from gen_jax.train import writers

TEXT = "configs/lm/pydoc.py"


@pytest.mark.parametrize("command", [None, *main.COMMANDS])
def test_help(call, command):
  outcome = call(*([command] if command else []), "--help")
  assert (outcome.code, outcome.err) == (0, "")
  lines = outcome.out.splitlines()
  assert lines[0].startswith(f"usage: gen-jax {command or ''}".rstrip())
  assert max(map(len, lines)) <= 100
  flags = [line.strip() for line in lines if line.startswith("  -")]
  summaries = main.COMMANDS.values() if command is None else ["--json", "--help"]
  assert all(any(words in line for line in lines) for words in summaries)
  assert all(len(flag.split()) > 1 for flag in flags)


@pytest.mark.parametrize(
  "words, code, said", [(["--version"], 0, "gen-jax"), (["trian"], 2, "did you mean")]
)
def test_a_process_ends_with_its_code_when_its_last_words_are_said(words, code, said):
  """Threads end, exit functions run, what was printed comes out: it frees nothing."""
  program = (
    "import atexit, sys, threading, time; from gen_jax.cli import main\n"
    "whole, slow = main.main, lambda: (time.sleep(0.5), print('thread'))\n"
    "def begun():\n"
    "  atexit.register(lambda: print('at exit', end=''))\n"
    "  threading.Thread(target=slow).start()\n"
    "  whole()\n"
    "main.main = begun\n"
    f"sys.argv[1:] = {words}; main.console()"
  )
  command = [sys.executable, "-c", program]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == code
  assert said in done.stdout + done.stderr and done.stdout.endswith("thread\nat exit")


def test_no_arguments_are_a_question(call):
  assert call() == call("--help")


@pytest.mark.parametrize("chips", [0, 4])
@pytest.mark.parametrize("name", ["JAX_PLATFORMS", "JAX_FORCE_TPU_INIT", None])
def test_tpus_are_looked_for_where_there_are_some_or_by_demand(
  call, monkeypatch, chips, name
):
  factories = {"tpu": None, "cpu": None}
  monkeypatch.setattr(xla_bridge, "_backend_factories", factories)
  count = "num_available_tpu_chips_and_device_id"
  monkeypatch.setattr(hardware_utils, count, lambda: (chips, None))
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  if name:
    monkeypatch.setenv(name, "tpu")
  call("inspect", "--workdir", "nowhere")
  assert ("tpu" in factories) == bool(chips or name)


def test_doctor_ends_in_json(call):
  outcome = call("doctor", "--json")
  assert outcome.code == 0, outcome.err
  *_, last = outcome.out.splitlines()
  result = json.loads(last)
  assert result["ok"] and result["gemm_float32_gflops"] > 0
  assert len(result["devices"]) == 8
  assert not result["torch_imported"]


def test_runs_of_one_name_have_plots_of_their_own(call, text_workdir, tmp_path):
  both = []
  for folder in ("a", "b"):
    shutil.copytree(text_workdir, tmp_path / folder / "run")
    sink = writers.JsonLines(tmp_path / folder / "run", -1)
    sink.write(1, {"loss": 1.0})
    sink.close()
    both += ["--workdir", tmp_path / folder / "run"]
  outcome = call("report", *both, "--out", tmp_path / "page.html")
  assert outcome.code == 0, outcome.err
  page = (tmp_path / "page.html").read_text()
  assert set(re.findall('id="(plot-[^"]*)"', page)) == {"plot-0", "plot-1"}


def test_inspect_says_what_training_left(call, text_workdir):
  """Two runs that end the same have the same hashes; here, two checkpoints."""
  results = []
  for step in ("0", "2"):
    outcome = call("inspect", "--json", "--workdir", text_workdir, "--checkpoint", step)
    assert (outcome.code, outcome.err) == (0, "")
    results.append(json.loads(outcome.out.splitlines()[-1]))
  first, second = results
  assert (first["step"], second["step"]) == (0, 2)
  assert first["steps"] == [0, 2] and first["latest_step"] == first["best_step"] == 2
  assert first["sha256"] == second["sha256"]
  assert first["params"] == sum(first["params_by_module"].values())
  assert f"{first['params']:,}" in outcome.out
  assert set(first["sha256"]) == {"params", "opt_state"}


def test_dry_run_of_a_model_far_larger_than_this_machine(call):
  width, layers, vocab = 32768, 2, 1024
  outcome = call(
    *("train", "--config", TEXT, "--dry_run", "--json"),
    f"--config.task.model.width={width}",
    f"--config.task.model.num_layers={layers}",
    "--config.task.model.num_heads=64",
  )
  assert outcome.code == 0, outcome.err
  result = json.loads(outcome.out.splitlines()[-1])
  attention, mlp, norms = 4 * width**2, 2 * width * 4 * width, 2 * 2 * width
  params = vocab * width + layers * (attention + mlp + norms) + 2 * width
  assert result["params"] == params > 10**10
  assert result["params_by_module"]["block_0/mlp"] == mlp
  batch = 3 * 4 * 16 * 128
  # Parameters, two moments, and a step count of Adam.
  assert result["held_bytes"] - batch - 12 * params == pytest.approx(0, abs=64)
  peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert peak < result["held_bytes"] / 10  # nothing of it was made
  assert result["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1, "context": 1}
  # 6 N per token, but for the embedding's lookup and for attention's own products.
  tokens = 16 * 128
  assert result["matrix_flops"] == pytest.approx(6 * params * tokens, rel=0.02)


def test_a_trained_model_opens_on_another_mesh(call, text_workdir):
  words = ("inspect", "--json", "--workdir", text_workdir)
  here = json.loads(call(*words).out.splitlines()[-1])
  other = call(*words, "--config.mesh.data=1", "--config.mesh.fsdp=8")
  assert other.code == 0, other.err
  assert json.loads(other.out.splitlines()[-1])["sha256"] == here["sha256"]


def test_list_counts_what_configs_have(call, refuse, monkeypatch, tmp_path):
  outcome = call("list", "lm/shakespeare", "lm/pydoc", "--json")
  assert outcome.code == 0, outcome.err
  found = json.loads(outcome.out.splitlines()[-1])["configs"]
  assert [*found] == ["lm/pydoc", "lm/shakespeare"]
  variants = found["lm/shakespeare"]["variants"]
  assert {name: one["parameters"] for name, one in variants.items()} == {
    "cpu": 804_096,
    "gpu": 10_745_088,
    "best": 804_096 - 64 * 128,
  }
  assert found["lm/pydoc"]["variants"][""]["needs"] == ["data: pydoc"]
  outcome = call("list", "lm/finetune")
  start = "init_from.workdir=runs/quickstart/text"
  assert outcome.out.count(f"parameters of its start  data: docstrings, {start}") == 1
  refuse(
    "list", "lm/pydo", says=["unknown config 'lm/pydo'", "did you mean 'lm/pydoc'"]
  )


def test_programs_for_chips_that_are_not_here_are_not_kept(call, monkeypatch):
  """They cannot be read back: JAX would warn."""
  kept = []
  monkeypatch.setattr(
    main.compilation, "kept", lambda: kept.append(1) or contextlib.nullcontext()
  )
  call("plan", "--config", "nowhere", "--topology", "v5e:2x2")
  assert not kept
  call("inspect", "--workdir", "nowhere")
  assert kept
