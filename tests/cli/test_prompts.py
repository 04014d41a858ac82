"""`gen-jax sample --prompts FILE`: many prompts, each continued as if alone."""

import json
import shutil

import pytest

from gen_jax.inference import slots
from tests.cli import conftest

pytestmark = pytest.mark.usefixtures("one_device")
PROMPTS = [f"def f{i}({'x, ' * (i % 9)}" for i in range(20)]


@pytest.fixture(scope="module")
def _workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp("prompts") / "run"
  changes = {"num_layers": 1, "width": 16, "num_heads": 2, "tied_head": False}
  pairs = ((f"task.model.{k}", str(v)) for k, v in changes.items())
  experiment = conftest._claim(path, "configs/lm/pydoc.py", *pairs)
  conftest.save(path, experiment, [(2, 1.0)], std=0.5)
  return path


@pytest.fixture
def workdir(_workdir, tmp_path):
  return shutil.copytree(_workdir, tmp_path / "run")


@pytest.fixture
def sample(call, workdir):
  """Calls `sample`; the texts by (prompt, index), and what was said."""

  def run(*words, code=0):
    outcome = call("sample", "--workdir", workdir, "--max_tokens", 9, *words)
    assert outcome.code == code, outcome
    path = workdir / "samples" / "text.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    return [(r["prompt"], r["index"], r["text"]) for r in rows], outcome

  return run


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_text("\n".join([*PROMPTS[:10], "", *PROMPTS[10:]]) + "\n")
  return path


def test_each_is_what_it_is_alone(sample, file, tmp_path, workdir):
  """Greedy and drawn, in any company, and as `--prompt` has it."""
  greedy = ("--temperature", 0)
  for how, num in ((greedy, 1), (("--seed", 3), 2)):
    words = (*how, "--num", num)
    together, outcome = sample("--prompts", file, *words)
    wanted = [(prompt, i) for prompt in PROMPTS for i in range(num)]
    assert [found[:2] for found in together] == wanted
    assert f"{20 * num} continuations in" in outcome.out
    assert len({text for *_, text in together}) > 15
    by_hand, _ = sample("--prompt", PROMPTS[8], "--prompt", PROMPTS[11], *words)
    assert by_hand == [f for f in together if f[0] in (PROMPTS[8], PROMPTS[11])]
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"id": 1, "prompt": PROMPTS[11]}) + "\n")
    shutil.rmtree(workdir / "samples")
    assert sample("--prompts", one, *words)[0] == by_hand[num:]
    shutil.rmtree(workdir / "samples")


def test_what_was_drawn_before_stands_and_what_is_other_is_kept(
  sample, file, workdir, monkeypatch
):
  words = ("--prompts", file, "--temperature", 0)
  whole, _ = sample(*words)
  path = workdir / "samples" / "text.jsonl"
  content, run, drawn = path.read_bytes(), slots.Slots.run, []
  path.unlink()

  def stops(self, jobs):
    for number, found in run(self, jobs):
      drawn.append(number)
      if len(drawn) == 8:
        raise KeyboardInterrupt
      yield number, found

  monkeypatch.setattr(slots.Slots, "run", stops)
  kept, _ = sample(*words, code=130)
  assert len(kept) == 7 and {*kept} < {*whole}
  assert sample(*words)[0] == whole and path.read_bytes() == content
  assert len(drawn) == 8 + 13
  monkeypatch.undo()
  _, outcome = sample("--prompts", file, "--temperature", 1)
  moved = workdir / "samples" / "text.1.jsonl"
  assert f"what another command drew (20) is now in {moved}" in outcome.err
  assert moved.read_bytes() == content


@pytest.mark.long
def test_images_as_well(call, digits_workdir, tmp_path):
  path = tmp_path / "captions.txt"
  path.write_text("one\ntwo\n")
  words = ("sample", "--workdir", digits_workdir, "--num_steps", 2, "--prompts", path)
  outcome = call(*words, "--out", tmp_path / "out")
  assert outcome.code == 0, outcome
  names = {"one_0_0.png", "two_0_0.png", "grid.png", "prompts.json"}
  assert {p.name for p in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize(
  "content, words, says",
  [
    ("", (), ["has no prompt"]),
    ("a\n" + "word " * 500, (), ["prompt 'word word", "the model's context holds"]),
    ("a", ("--interactive",), ["--prompts changes nothing: --interactive"]),
    ("a", ("--temperature", 0, "--num", 2), ["all would be the same"]),
    (None, (), ["cannot read"]),
  ],
)
def test_bad_input(refuse, workdir, tmp_path, content, words, says):
  path = tmp_path / "prompts.txt"
  if content is not None:
    path.write_text(content)
  refuse("sample", "--workdir", workdir, "--prompts", path, *words, says=says)
  assert not (workdir / "samples").exists()


def test_records_without_prompts(refuse, workdir, tmp_path):
  path = tmp_path / "prompts.jsonl"
  path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
  says = ["unknown field", "prompts.jsonl:2", "'prompt'", "text"]
  refuse("sample", "--workdir", workdir, "--prompts", path, says=says)
