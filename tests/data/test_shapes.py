"""Shapes: what is said is drawn, and read back exactly; edits touch nothing else."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from gen_jax import types
from gen_jax.data import datasets, edits, tokenizers
from gen_jax.data.shapes import edits as shape_edits
from gen_jax.data.shapes import scenes, scorer, source
from gen_jax.evaluation import metrics

BYTES = tokenizers.train_bpe([], 257)
SHAPES = source.Shapes(num=300, num_validation=40)
PLACE_OF = {phrase: at for at, said in scenes.PHRASES.items() for phrase in said}
THING = re.compile(rf"a (\w+) (\w+) (\w+) ({'|'.join(PLACE_OF)})")


def scene_of(caption):
  """What a caption says, by another way than that in which it was written."""
  return {PLACE_OF[at]: tuple(words) for *words, at in THING.findall(caption)}


@pytest.mark.parametrize("side", [24, 32, 64])
def test_the_judge_reads_every_real_image(side):
  examples = source.Shapes(num=300, side=side).examples("train")
  wanted = [example["scene"] for example in examples]
  images = np.stack([example["image"] for example in examples])
  assert set(scorer.accuracy(images, wanted).values()) == {1.0}
  shaken = images + np.random.default_rng(0).normal(0, 8, images.shape)
  shaken = np.clip(np.round(shaken), 0, 255).astype(np.uint8)
  assert scorer.accuracy(shaken, wanted)["prompt_accuracy"] == 1.0


def test_captions_say_the_scene():
  examples = SHAPES.examples("train")
  assert len({example["caption"] for example in examples}) > 280
  for example in examples:
    assert scene_of(example["caption"]) == scenes.words(example["scene"])


@pytest.mark.parametrize(
  "name, area", [("square", 4.0), ("circle", math.pi), ("triangle", 2.0)]
)
def test_covered_area(name, area):
  for size, half in scenes.SIZES.items():
    covered = scenes.coverage(name, size, (0.513, 0.479), 48)
    assert covered.sum() / 48**2 == pytest.approx(area * half**2, rel=0.02)
    faint = (covered > 0) & (covered < 1)
    assert 0 < faint.sum() < 8 * half * 48 * 1.5  # at the outline alone


def test_accuracy_counts_what_is_wrong():
  """Four images of two things each; in each of three one word of one thing is off."""
  thing = scenes.Thing("large", "red", "circle")
  wanted = {"left": thing, "top": thing}
  shown = [
    wanted,
    {**wanted, "left": thing._replace(colour="blue")},
    {**wanted, "left": thing._replace(shape="triangle")},
    {"left": thing, "bottom": thing._replace(size="small")},
  ]
  images = np.stack([scenes.draw(scene, 24) for scene in shown])
  assert scorer.accuracy(images, [wanted] * 4) == {
    "prompt_accuracy": 0.25,
    "prompt/place": 7 / 8,
    "prompt/size": 7 / 8,
    "prompt/colour": 6 / 8,
    "prompt/shape": 6 / 8,
  }


def test_what_is_like_nothing_is_read_as_such():
  image = np.full((24, 24, 3), 255, np.uint8)
  assert scorer.read(image) == {}
  image[11:13, 9:16] = scenes.COLOURS["green"]  # a bar
  assert scorer.read(image) == {"centre": ("", "green", "")}


def test_an_example_is_a_function_of_seed_and_index():
  pairs = zip(SHAPES.edits("train"), source.Shapes(num=300).edits("train"), strict=True)
  for one, other in list(pairs)[:20]:
    assert one["caption"] == other["caption"]
    np.testing.assert_array_equal(one["image"], other["image"])
  captions = [
    [e["caption"] for e in s.examples(split)]
    for s, split in (
      (SHAPES, "train"),
      (SHAPES, "validation"),
      (source.Shapes(num=300, seed=1), "train"),
    )
  ]
  assert captions[0][:40] != captions[1] and captions[0] != captions[2]
  assert len(captions[1]) == 40


def _obey(instruction, scene):
  """What becomes of the words of a scene, by reading the instruction."""

  def the(said):
    found = [at for at, words in scene.items() if set(said.split()) <= set(words)]
    if " on " in said or " in " in said or " at " in said:
      said, phrase = re.match(r"(\w+ \w+ \w+) (.*)", said).groups()
      found = [PLACE_OF[phrase]]
    assert len(found) == 1, (instruction, scene)
    return found[0]

  def put(at, number, word):
    words = list(scene[at])
    assert words[number] != word
    words[number] = word
    return {**scene, at: tuple(words)}

  if match := re.fullmatch(r"make the (.*) (\w+)", instruction):
    return put(the(match[1]), 0 if match[2] in scenes.SIZES else 1, match[2])
  if match := re.fullmatch(r"turn the (.*) into a (\w+)", instruction):
    return put(the(match[1]), 2, match[2])
  if match := re.fullmatch(r"remove the (.*)", instruction):
    return {at: words for at, words in scene.items() if at != the(match[1])}
  if match := re.fullmatch(r"move the (.*) to the (\w+)", instruction):
    assert match[2] not in scene
    place = the(match[1])
    rest = {at: words for at, words in scene.items() if at != place}
    return {**rest, match[2]: scene[place]}
  assert instruction.startswith("add ")
  (added,) = scene_of(instruction).items()
  assert added[0] not in scene
  return {**scene, added[0]: added[1]}


def test_the_instruction_leads_from_before_to_after():
  kinds = set()
  for pair in SHAPES.edits("train"):
    before, after = map(scenes.words, pair["scenes"])
    assert _obey(pair["caption"], before) == after
    kinds.add(pair["caption"].split()[0])
  assert kinds == {"make", "turn", "remove", "move", "add"}
  assert len(shape_edits.EDITS) == 6


def test_an_edit_changes_no_other_pixel():
  for pair in SHAPES.edits("train"):
    before, after = pair["scenes"]
    touched = np.zeros((24, 24), np.bool_)
    for at in scenes.PLACES:
      if before.get(at) != after.get(at):
        for scene in (before, after):
          only = {at: scene[at]} if at in scene else {}
          touched |= (scenes.draw(only, 24) != scenes.PAPER).any(-1)
    changed = (pair["before"] != pair["image"]).any(-1)
    assert changed.any() and not (changed & ~touched).any()


def test_edit_figures_of_the_truth_and_of_a_copy():
  pairs = list(SHAPES.edits("validation"))
  before, after = (np.stack([p[name] for p in pairs]) for name in ("before", "image"))
  read = SHAPES.edit_scorer(pairs)
  assert set(read(after).values()) == {1.0}
  assert read(before) == {"edits/accuracy": 0, "edits/changed": 0, "edits/kept": 1}
  empty = read(np.full_like(after, 255))
  gone = np.mean([not pair["scenes"][1] for pair in pairs])  # the only thing, removed
  assert empty["edits/accuracy"] == gone < empty["edits/kept"] < 1
  assert set(metrics.edits(before, after, after).values()) == {0.0}


def test_distances_inside_and_outside_an_edit():
  before, after, drawn = np.zeros((3, 1, 2, 2, 3), np.uint8)
  after[0, 0, 0] = [51, 0, 0]
  drawn[0, 0, 0] = [0, 51, 0]  # 2 x 0.2 of 3 channels
  drawn[0, 1, 1] = [0, 0, 255]  # 1 of 3 channels of one of the three others
  assert metrics.edits(before, after, drawn) == {
    "edits/inside": pytest.approx(0.4 / 3),
    "edits/outside": pytest.approx(1 / 9),
  }


def _folder(path, rows):
  for i, size in enumerate(((6, 6), (6, 6), (6, 8))):
    Image.new("RGB", size, (i, 0, 0)).save(path / f"{i}.png")
  lines = [dict(zip(("a", "say", "b"), row, strict=True)) for row in rows]
  (path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
  return edits.EditFolder(str(path), "t.jsonl", "a", "say", "b", 0.0)


def test_a_folder_of_edits(tmp_path):
  folder = _folder(tmp_path, [("0.png", "brighter", "1.png")])
  (pair,) = folder.edits("train")
  assert pair["caption"] == "brighter"
  assert (pair["before"].max(), pair["image"].max()) == (0, 1)
  assert folder.edit_scorer([pair])(pair["image"][None]) == {}


@pytest.mark.parametrize(
  "rows, says",
  [
    ([("0.png", "x", "9.png")], "t.jsonl names 9.png, which does not exist"),
    ([("0.png", "x", "2.png")], "0.png and 2.png must be of one size"),
    ([], "has no edits"),
  ],
)
def test_a_folder_that_cannot_be(tmp_path, rows, says):
  with pytest.raises(types.InputError, match=says):
    list(_folder(tmp_path, rows).edits("train"))


def test_before_and_after_are_mirrored_together():
  data = datasets.EditData(
    SHAPES, 24, 3, 64, lambda texts: BYTES, 64, flip=True, prompts=("caption",)
  )
  batch = data.pipeline("train", BYTES, seed=0).batch(0)
  assert batch.keys() == data.abstract_batch().keys()
  still = {p["before"].tobytes(): p["image"] for p in SHAPES.edits("train")}
  mirrored = 0
  for before, after in zip(batch["before"], batch["image"], strict=True):
    before, after = (
      np.round(127.5 * x + 127.5).astype(np.uint8) for x in (before, after)
    )
    if before.tobytes() not in still:
      before, after, mirrored = before[:, ::-1], after[:, ::-1], mirrored + 1
    np.testing.assert_array_equal(still[before.tobytes()], after)
  assert 16 < mirrored < 48
