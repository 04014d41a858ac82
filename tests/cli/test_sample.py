"""`gen-jax sample` for text: what is printed, kept and refused."""

import dataclasses
import io
import json
import math

import pytest

from gen_jax import experiment
from gen_jax.decoding import generate
from gen_jax.inference import image_generator, text_generator

SHORT = ("--max_tokens", "6", "--seed", "3")


@pytest.fixture
def sample(call, text_workdir):
  def run(*flags):
    outcome = call("sample", "--workdir", text_workdir, *SHORT, *flags, "--json")
    assert outcome.code == 0, outcome
    return json.loads(outcome.out.splitlines()[-1])["samples"]

  return run


def test_the_ith_of_many_is_the_ith_of_fewer(sample):
  many, few = (sample("--prompt", "a", "--num", str(n)) for n in (10, 3))
  assert [s["text"] for s in many[:3]] == [s["text"] for s in few]
  assert len({s["text"] for s in many}) > 1


def test_logprobs_of_a_model_that_knows_nothing(sample):
  """All its parameters are 0: every token of 300 is as likely, filtered or not."""
  (drawn,) = sample("--prompt", "a", "--logprobs", "--top_k", "2")
  assert len(drawn["tokens"]) == len(drawn["logprobs"]) == 6
  assert drawn["logprobs"] == pytest.approx([-math.log(300)] * 6, rel=1e-4)
  assert drawn["logprob"] == pytest.approx(-6 * math.log(300), rel=1e-4)


def test_stop_texts_and_order_reach_the_writer(sample):
  (free,) = sample("--prompt", "a")
  stop = free["text"][2]
  (cut,) = sample("--prompt", "a", "--stop", "no such text", "--stop", stop)
  assert cut["text"] == free["text"][: free["text"].index(stop)]
  order = "top_p,min_p,top_k,temperature,repetition"
  assert sample("--prompt", "a", "--order", order)[0]["text"] == free["text"]


def test_what_is_kept_says_how_it_was_drawn(call, text_workdir, tmp_path):
  """The config's block with the flags over it, enough to build it again."""
  flags = ("--temperature", "0.5", "--top_k", "3", "--stop", "##")
  out = ("--prompt", "a", "--num", "2", "--out", tmp_path, "--json")
  assert call("sample", "--workdir", text_workdir, *SHORT, *flags, *out).code == 0
  lines = (tmp_path / "text.jsonl").read_text().splitlines()
  own = json.loads((text_workdir / "config.json").read_text())["sampling"]
  given = dict(max_tokens=6, temperature=0.5, top_k=3, stop=("##",))
  want = generate.Sampling(**{"top_p": own["top_p"], **given})
  for record in map(json.loads, lines):
    block = {
      k: tuple(v) if isinstance(v, list) else v for k, v in record["sampling"].items()
    }
    assert generate.Sampling(**block) == want
  assert len(lines) == 2


def test_a_talk(call, text_workdir, monkeypatch):
  """Lines in, answers out; a refused line does not end it."""
  lines = "the import\n" + "word " * 500 + "\n/reset\nagain\n/exit\nnever read\n"
  monkeypatch.setattr("sys.stdin", io.StringIO(lines))
  outcome = call("sample", "--workdir", text_workdir, *SHORT, "--interactive", "--json")
  assert outcome.code == 0
  assert json.loads(outcome.out.splitlines()[-1]) == {"answers": 3}
  assert "the model's context holds" in outcome.err


@pytest.mark.parametrize(
  "flags, says",
  [
    ("--order temperature", ["order=", "all of repetition, temperature"]),
    ("--repetition_penalty 0.5", ["repetition_penalty=0.5", "at least 1"]),
    ("--chat --prompt hello", ["no chat template"]),
    ("--temperature -1", ["temperature=-1.0", "at least 0"]),
    ("--top_p 1.5", ["top_p=1.5", "(0, 1]"]),
    ("--temperature 0 --top_p 0.5", ["--top_p changes nothing: temperature=0"]),
    ("--temperature 0 --num 2", ["--num 2", "all would be the same"]),
    ("--temperature 0 --seed 3", ["--seed changes nothing: temperature=0"]),
    ("--temperature 0 --min_p 0.1", ["--min_p changes nothing: temperature=0"]),
    ("--interactive --prompt a", ["--prompt changes nothing: --interactive"]),
    ("--interactive --logprobs", ["--logprobs changes nothing: --interactive"]),
    ("--chat --infill", ["--infill changes nothing: --chat"]),
  ],
)
def test_bad_flags(refuse, text_workdir, flags, says):
  refuse("sample", "--workdir", text_workdir, *flags.split(), says=says)
  assert not (text_workdir / "samples").exists()


@pytest.mark.parametrize(
  "flags", ["--negative grey", "--guidance_rescale 0.5", "--guidance_interval 0,0.5"]
)
def test_guidance_that_is_off_takes_no_flags(refuse, digits_workdir, tmp_path, flags):
  words = ("sample", "--workdir", digits_workdir, "--out", tmp_path / "out")
  says = [f"{flags.split()[0]} changes nothing", "guidance_scale=1"]
  refuse(*words, *flags.split(), "--guidance_scale", "1", says=says)
  assert not (tmp_path / "out").exists()


def test_a_prompt_over_the_context_leaves_nothing(refuse, text_workdir):
  says = ["the model's context holds"]
  refuse("sample", "--workdir", text_workdir, "--prompt", "word " * 500, says=says)
  assert not (text_workdir / "samples").exists()


def test_switches_of_text_are_refused_for_images(refuse, image_workdir):
  refuse("sample", "--workdir", image_workdir, "--chat", says=["--chat is for text"])


def test_text_goes_on_where_it_was(call, text_workdir, monkeypatch):
  """What an interrupted command drew stands; another seed draws all."""
  words = ("sample", "--workdir", text_workdir, "--prompt", "a", "--num", "20")
  path = text_workdir / "samples" / "text.jsonl"
  whole = call(*words, *SHORT)
  assert whole.code == 0, whole
  content = path.read_bytes()
  drawn, samples, stop_after = [], text_generator.TextGenerator.samples, 1

  def counting(self, weights, prompts, *args):
    drawn.append(len(prompts))
    if len(drawn) > stop_after:
      raise KeyboardInterrupt
    return samples(self, weights, prompts, *args)

  monkeypatch.setattr(text_generator.TextGenerator, "samples", counting)
  path.unlink()
  assert call(*words, *SHORT).code == 130
  kept = path.read_text().split("\n")
  assert len(kept) == 9  # a batch of 8, and the last line's end
  path.rename(path.with_name("text.jsonl.partial"))  # as a process that is killed
  with path.with_name("text.jsonl.partial").open("a") as file:
    file.write('{"prompt": "a", "te')
  drawn.clear()
  stop_after = 9
  assert call(*words, *SHORT).out == whole.out
  assert drawn == [8, 4] and path.read_bytes() == content
  # Cut off again before the last of what is there: nothing of it is lost.
  lines = content.decode().split("\n")
  path.write_text("\n".join([*lines[:8], *lines[16:]]))
  drawn.clear()
  stop_after = 0
  assert call(*words, *SHORT).code == 130
  assert sorted(path.read_text().split("\n")) == sorted([*lines[:8], *lines[16:]])
  drawn.clear()
  stop_after = 9
  assert call(*words, "--max_tokens", "6", "--seed", "4").code == 0
  assert drawn == [8, 8, 4]


def test_images_go_on_where_they_were(call, digits_workdir, tmp_path, monkeypatch):
  make = experiment.Experiment.generator
  monkeypatch.setattr(
    experiment.Experiment,
    "generator",
    lambda self: dataclasses.replace(make(self), batch_size=2),
  )
  words = ("sample", "--workdir", digits_workdir, "--num_steps", "2", "--num", "5")
  words = (*words, "--prompt", "one", "--out", tmp_path)
  assert call(*words).code == 0
  names = [f"one_0_{i}.png" for i in range(5)]
  whole = {name: (tmp_path / name).read_bytes() for name in (*names, "grid.png")}
  starts, batches = [], image_generator.ImageGenerator.batches

  def watched(self, *args):
    starts.append(args[-1])
    return batches(self, *args)

  monkeypatch.setattr(image_generator.ImageGenerator, "batches", watched)
  (tmp_path / names[3]).unlink()
  assert call(*words).code == 0
  assert call(*words).code == 0  # nothing is left to draw
  assert starts == [2]
  assert whole == {name: (tmp_path / name).read_bytes() for name in whole}
  assert call(*words, "--guidance_scale", "3").code == 0  # the same names, other images
  assert starts == [2, 0]


def test_an_autoencoder_draws_nothing(refuse, vae_workdir):
  says = ["an autoencoder draws nothing"]
  refuse("sample", "--workdir", vae_workdir, "--prompt", "one", says=says)
  assert not (vae_workdir / "samples").exists()
