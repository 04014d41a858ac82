"""Sources read the formats that people have, exactly, and split them for good."""

import io
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from gen_jax import types
from gen_jax.data import (
  datasets,
  dreambooth,
  edits,
  embedded,
  kept,
  latents,
  pipeline,
  sources,
  tokenizers,
)
from gen_jax.data.digits import digits_dataset_builder
from gen_jax.data.digits import source as digits
from gen_jax.data.emoji import source as emoji
from gen_jax.data.tokens import documents, foreign
from gen_jax.train import init_from

BYTES = tokenizers.train_bpe([], 257)


def _save(path, image, **options):
  path.parent.mkdir(exist_ok=True)
  image.save(path, **options)


def _grey(value, size=(6, 4)):
  return Image.new("L", size, value)


def _both(source):
  return source.documents("train"), source.documents("validation")


def _batch(source):
  """One batch of text windows, through the whole pipeline."""
  data = datasets.TextData(source, lambda texts: BYTES, length=8, batch_size=2)
  return data.pipeline("train", BYTES, seed=0).batch(0)


def _images(source, split="train"):
  """{caption: image}, and one batch through the whole pipeline."""
  prompts = ("caption",)
  data = datasets.ImageData(source, 4, 1, 2, lambda _: BYTES, 16, prompts=prompts)
  batch = data.pipeline(split, BYTES, seed=0).batch(0)
  assert batch["image"].shape == (2, 4, 4, 1)
  assert np.abs(batch["image"]).max() <= 1
  examples = source.examples(split)
  return {examples[i]["caption"]: examples[i]["image"] for i in range(len(examples))}


def test_small_sets_are_decoded_once_and_large_ones_not_kept():
  calls = []

  def decode(i):
    calls.append(i)
    return {"image": np.full((8, 8, 1), i, np.uint8), "caption": "a"}

  examples = pipeline.Remembered(sources.Mapped(range(5), decode), 3 * (64 + 64))
  for _ in range(3):
    for i in range(5):
      assert (examples[i]["image"] == i).all()
  assert calls == [0, 1, 2, *[3, 4] * 3]
  assert len(examples) == 5
  with pytest.raises(IndexError):
    examples[5]
  named = sources.Mapped(["a.png", "b.png"], str, np.array([1, 0]))
  assert sources.file_of(pipeline.Remembered(named), 0) == "b.png"


def test_text_files(tmp_path):
  """One document per file in the order of names; line ends are left as they are."""
  (tmp_path / "b").mkdir()
  (tmp_path / "b" / "2.txt").write_bytes(b"second\r\nfile")
  (tmp_path / "1.txt").write_bytes("erste Größe".encode())
  (tmp_path / "3.md").write_bytes(b"not asked for")
  train, validation = _both(sources.TextFiles(f"{tmp_path}/**/*.txt", 0.25))
  assert (train, validation) == (["erste Größe", "second"], ["\r\nfile"])
  one = sources.TextFiles(str(tmp_path / "1.txt"), 0.0)
  assert _both(one) == (["erste Größe"], [])
  assert BYTES.decode(_batch(one)["inputs"][0][1:]) in "erste Größe"


def test_jsonl(tmp_path):
  """A line ends where the file says so, not at every Unicode line separator."""
  texts = ["one\u2028still one\x85", "two", "three"]
  rows = [
    json.dumps({"id": i, "body": t}, ensure_ascii=False) for i, t in enumerate(texts)
  ]
  (tmp_path / "a.jsonl").write_text("\n\n".join(rows[:2]) + "\r\n", newline="")
  (tmp_path / "b.jsonl").write_text(rows[2])
  source = sources.JsonLines(f"{tmp_path}/*.jsonl", "body", 0.0)
  assert _both(source) == (texts, [])
  assert _batch(source)["inputs"].shape == (2, 8)


def test_pydoc_splits_share_no_paragraph():
  train, validation = (
    {p for document in documents for p in document.split("\n\n")}
    for documents in _both(embedded.Pydoc())
  )
  assert len(train) > 5 * len(validation) > 500
  assert not train & validation


def test_the_standard_library_is_read_without_entering_what_is_installed(monkeypatch):
  """site-packages lies inside it: walking that takes minutes on a cold disk."""
  entered, scandir = [], os.scandir
  monkeypatch.setattr(os, "scandir", lambda path: entered.append(path) or scandir(path))
  assert embedded._stdlib_files()
  parts = {part for path in entered for part in pathlib.Path(path).parts}
  assert "json" in parts and not parts & {"site-packages", "dist-packages", "idle_test"}


def test_stdlib_has_code_and_no_tests():
  train, validation = _both(embedded.Stdlib())
  assert len(train) > 5 * len(validation) > 100
  assert not set(train) & set(validation)
  assert any("class JSONDecoder" in text for text in (*train, *validation))
  assert not any("class TestCase" in t and "import test." in t for t in train)


def test_the_cut_of_tinyshakespeare_is_nanogpts():
  """The first int(0.9 n) characters train, where 0.9 n is no whole number."""
  text = "x" * 1_115_394
  sizes = [len(sources.split_text([text], s, 0.1)[0]) for s in ("train", "validation")]
  assert sizes == [1_003_854, 111_540]


class _Notes(tfds.core.GeneratorBasedBuilder):
  """Five notes with an image, a class and a text."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "text": tfds.features.Text(),
      "image": tfds.features.Image(shape=(6, 4, 1)),
      "label": tfds.features.ClassLabel(names=["no", "yes"]),
      "depth": tfds.features.Tensor(shape=(2, 2, 1), dtype=np.float32),
    }
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(4), "test": self._generate_examples(1)}

  def _generate_examples(self, num):
    for i in range(num):
      image = io.BytesIO()
      _grey(50 * i, (4, 6)).save(image, "PNG")
      image.seek(0)
      depth = np.zeros((2, 2, 1), np.float32)
      yield i, {"text": f"note {i} ö", "image": image, "label": i % 2, "depth": depth}


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
  """A prepared TFDS directory."""
  builder = _Notes(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
  builder.download_and_prepare()
  return str(builder.data_path)


def test_tfds_text(notes):
  source = sources.TfdsText(notes, validation_split="test")
  train, validation = _both(source)
  assert sorted(train) == [f"note {i} ö" for i in range(4)]
  assert list(validation) == ["note 0 ö"]
  assert _batch(source)["inputs"].shape == (2, 8)
  for split, num in (("train[:50%]", 2), ("train+test", 5)):
    assert len(sources.TfdsText(notes, train_split=split).documents("train")) == num


def test_tfds_as_a_corpus(notes, monkeypatch):
  want = list(sources.TfdsText(notes).documents("train"))
  for at_once in (100_000, 2):
    monkeypatch.setattr(foreign, "_EXAMPLES", at_once)
    (name,) = documents.listed(f"tfds:{notes}", None, "train")
    found = [
      text
      for task in documents.plan([name], "text", 10)
      for piece in documents.pieces(task, "text", 10, lambda _: True)
      for text in piece.items
    ]
    assert found == want


def test_tfds_images(notes):
  images = _images(sources.TfdsImages(notes, caption_field="text"))
  assert {k: v.max() for k, v in images.items()} == {
    f"note {i} ö": 50 * i for i in range(4)
  }
  labels = sources.TfdsImages(notes, caption_field="label", template="class {}!")
  assert set(_images(labels)) == {"class 0!", "class 1!"}


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(train_split="tran"), "unknown split .*'tran': did you mean 'train'"),
    (dict(train_split="train[:x]"), r"cannot read split 'train\[:x\]'.*train, test"),
    (dict(caption_field="txt"), "unknown field .*'txt': did you mean 'text'"),
    (dict(caption_field="depth"), r"depth of .*: array\(.* is not text"),
    (dict(image_field="depth", caption_field="text"), "depth of .* is float32"),
    (dict(image_field="img", caption_field="text"), "unknown field .*'img'.*'image'"),
  ],
)
def test_tfds_with_other_fields_than_asked_for(notes, changes, says):
  with pytest.raises(types.InputError, match=says) as error:
    sources.TfdsImages(notes, **changes).examples("train")[0]
  assert "\n" not in str(error.value)


def _named(path, name):
  """Replaces the class of the feature `text`, wherever a features.json may say one."""
  features = json.loads(path.read_text())
  features["featuresDict"]["features"]["text"] = {
    "direct": {"pythonClassName": name, "text": {}},
    "snake": {"python_class_name": name, "text": {}},
    "legacy": {"type": name, "content": {}},
    "nested": {
      "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
      "sequence": {"feature": {"pythonClassName": name, "text": {}}},
    },
    "in text": {
      "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
      "jsonFeature": {"json": json.dumps({"feature": {"type": name, "content": {}}})},
    },
  }[path.parent.name]
  path.write_text(json.dumps(features))


@pytest.mark.parametrize("where", ["direct", "snake", "legacy", "nested", "in text"])
@pytest.mark.parametrize("by", ["directory", "name"])
def test_no_module_that_a_tfds_folder_names_is_imported(
  notes, tmp_path, monkeypatch, where, by
):
  (tmp_path / "intruder.py").write_text("raise SystemExit('imported')")
  monkeypatch.syspath_prepend(tmp_path)
  folder = tmp_path / "kept" / where
  home = folder if by == "directory" else tmp_path / "data" / where / "1.0.0"
  shutil.copytree(notes, folder)
  _named(folder / "features.json", "intruder.Feature")
  if by == "name":  # TFDS finds it in its own folder, where no code of that name is
    shutil.copytree(folder, home)
  dataset = str(folder) if by == "directory" else where
  source = sources.TfdsText(dataset, data_dir=str(tmp_path / "data"))
  with pytest.raises(types.InputError, match=r"names 'intruder\.Feature'"):
    source.documents("train")


@pytest.mark.parametrize(
  "make, key",
  [
    (lambda: sources.ImageFolder("").examples("train"), "directory"),
    (lambda: sources.ImageFolder(" ").paths("train"), "directory"),
    (lambda: sources.Npz("").examples("train"), "path"),
    (lambda: sources.TfdsImages("").examples("train"), "dataset"),
    (lambda: sources.TfdsText("").documents("train"), "dataset"),
    (lambda: edits.EditFolder("").edits("train"), "directory"),
    (lambda: dreambooth.DreamBooth("", "x").examples("train"), "directory"),
    (lambda: dreambooth.DreamBooth(".", "x", "").paths("train"), "directory"),
    (lambda: emoji.Emoji("").examples("train"), "directory"),
    (lambda: latents.Latents("").codes("train"), "directory"),
    (lambda: sources.TextFiles("").documents("train"), "pattern"),
    (lambda: sources.JsonLines("").documents("train"), "pattern"),
    (lambda: init_from.InitFrom("").directory, "init_from.workdir"),
  ],
)
def test_a_path_that_is_not_set_is_never_the_current_folder(
  tmp_path, monkeypatch, make, key
):
  monkeypatch.chdir(tmp_path)
  _save(tmp_path / "a.png", _grey(0))
  with pytest.raises(types.InputError, match=f"{key} is not set"):
    make()


def test_a_damaged_tfds_file_is_said_in_one_line(notes, tmp_path):
  """A flipped bit in the middle, a tail cut off: on opening or on reading."""
  shutil.copytree(notes, tmp_path / "notes")
  (path,) = (tmp_path / "notes").glob("*train*")
  content = path.read_bytes()
  middle = len(content) // 2
  flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
  for damaged in (flipped, content[:-9], b""):
    path.write_bytes(damaged)
    with pytest.raises(types.InputError, match=r"is damaged|cannot") as error:
      list(sources.TfdsText(str(tmp_path / "notes")).documents("train"))
    assert "\n" not in str(error.value)


def test_digits_are_prepared_on_first_use(tmp_path):
  source = digits.Digits(str(tmp_path))
  train, validation = source.examples("train"), source.examples("validation")
  assert (len(train), len(validation)) == (1438, 359)
  example = train[0]
  assert example["image"].shape == (8, 8, 1) and example["image"].dtype == np.uint8
  assert isinstance(example["caption"], str) and 0 <= example["label"] <= 9
  assert list(tmp_path.glob("**/*.array_record*"))


@pytest.fixture(scope="module")
def prepared_digits(tmp_path_factory):
  folder = tmp_path_factory.mktemp("digits")
  digits.Digits(str(folder)).examples("train")
  return folder


@pytest.mark.parametrize(
  ("name", "content", "why"),
  [
    ("digits-train*", b"", "example 0 of .* is damaged .*prepare the data set again"),
    ("digits-train*", None, "example 0 of .* is damaged"),
    (
      "dataset_info.json",
      b"{",
      "digits is damaged .*; remove .*/digits, and it is made",
    ),
    (
      "dataset_info.json",
      None,
      "digits is damaged .*; remove .*/digits, and it is made",
    ),
  ],
)
def test_damaged_digits_are_said_in_one_line(
  prepared_digits, tmp_path, name, content, why
):
  shutil.copytree(prepared_digits, tmp_path / "copy")
  (path,) = (tmp_path / "copy").glob(f"digits/*/{name}")
  path.unlink()
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(types.InputError, match=why) as error:
    digits.Digits(str(tmp_path / "copy")).examples("train")[0]
  assert "\n" not in str(error.value)


def test_preparing_says_nothing_on_stdout(tmp_path, capsys):
  digits.Digits(str(tmp_path)).examples("train")
  assert capsys.readouterr().out == ""


def test_the_exam_of_digits_asks_for_what_it_judges(tmp_path):
  """Images that the judge has learned are right for their own prompts alone."""
  source = digits.Digits(str(tmp_path))
  prompt_benchmark, examples = source.prompt_benchmark(20, 8), source.examples("train")
  first = {e["label"]: e["image"] for e in (examples[i] for i in range(100))}
  names = digits_dataset_builder.NAMES
  order = [names.index(caption.split()[-1]) for caption in prompt_benchmark.captions]
  assert sorted(order) == sorted([*range(10), *range(10)])
  pictures = np.stack([first[label] for label in order])
  assert prompt_benchmark.scorer(pictures) == {"prompt_accuracy": 1.0}
  assert prompt_benchmark.scorer(np.roll(pictures, 1, 0)) == {"prompt_accuracy": 0.0}
  assert prompt_benchmark.real_accuracy > 0.95


def test_image_folder_with_folder_names(tmp_path):
  _save(tmp_path / "cat" / "a.png", _grey(10))
  _save(tmp_path / "dog" / "b.BMP", _grey(20))
  _save(tmp_path / "dog" / "c.webp", _grey(20), lossless=True)
  (tmp_path / "dog" / "notes.md").write_text("not an image")
  images = _images(sources.ImageFolder(str(tmp_path), 0.0))
  assert {k: (v.shape, v.max()) for k, v in images.items()} == {
    "cat": ((4, 6, 3), 10),
    "dog": ((4, 6, 3), 20),
  }


def test_image_folder_with_text_beside_each_image(tmp_path):
  for i, name in enumerate(("a", "b")):
    _save(tmp_path / f"{name}.png", _grey(i))
    (tmp_path / f"{name}.txt").write_text(f" caption {i}\n")
  images = _images(sources.ImageFolder(str(tmp_path), 0.0))
  assert {k: v.max() for k, v in images.items()} == {"caption 0": 0, "caption 1": 1}


def test_image_folder_with_metadata(tmp_path):
  """metadata.jsonl comes before text files; paths in it start at the folder."""
  _save(tmp_path / "a.png", _grey(0))
  _save(tmp_path / "sub" / "b.png", _grey(1))
  (tmp_path / "a.txt").write_text("not this")
  rows = [
    {"file_name": "sub/b.png", "text": "zwei"},
    {"file_name": "a.png", "text": "1"},
  ]
  (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
  images = _images(sources.ImageFolder(str(tmp_path), 0.0))
  assert {k: v.max() for k, v in images.items()} == {"1": 0, "zwei": 1}


@pytest.mark.parametrize(
  "image, options, pixel",
  [
    (Image.new("RGB", (4, 4), (9, 8, 7)), {}, [9, 8, 7]),
    (Image.new("RGBA", (4, 4), (9, 8, 7, 0)), {}, [255, 255, 255]),
    (Image.new("LA", (4, 4), (9, 255)), {}, [9, 9, 9]),
    (Image.new("P", (4, 4), 0), {"transparency": 0}, [255, 255, 255]),
    (Image.new("1", (4, 4), 1), {}, [255, 255, 255]),
    (Image.new("I;16", (4, 4), 0x80FF), {}, [128, 128, 128]),
  ],
  ids=["rgb", "clear", "grey", "clear palette", "black and white", "16 bit"],
)
def test_image_modes(tmp_path, image, options, pixel):
  """Transparent parts lie on white paper; 16 bits are not clipped to white."""
  _save(tmp_path / "a.png", image, **options)
  (array,) = _pixels(tmp_path)
  assert array.shape == (4, 4, 3) and array.dtype == np.uint8
  assert array[0, 0].tolist() == pixel


def _pixels(folder):
  examples = sources.ImageFolder(str(folder), 0.0).examples("train")
  return [examples[i]["image"] for i in range(len(examples))]


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is wrong with them
def test_any_broken_image_is_named(tmp_path):
  """Whatever a damaged file makes Pillow raise."""
  generator = np.random.default_rng(0)
  noise = Image.fromarray(generator.integers(0, 255, (9, 9, 3), dtype=np.uint8))
  broken = 0
  for kind in ("png", "jpeg", "webp", "bmp"):
    file = io.BytesIO()
    noise.save(file, kind)
    for _ in range(60):
      damaged = np.frombuffer(file.getvalue(), np.uint8).copy()
      at = generator.integers(0, len(damaged), 8)
      damaged[at] = generator.integers(0, 256, 8)
      path = tmp_path / f"a.{kind}"
      path.write_bytes(damaged[: generator.integers(0, 2 * len(damaged))].tobytes())
      try:
        _pixels(tmp_path)
      except types.InputError as error:
        broken += 1
        assert f"{path} is not a readable image" in str(error)
    path.unlink()
  assert broken > 50


def test_a_broken_image_stops_the_thread_that_loads_it(tmp_path):
  _save(tmp_path / "a.png", _grey(0))
  data = pipeline.images(
    sources.ImageFolder(str(tmp_path), 0.0).examples("train"),
    pipeline.Prompts(("caption",), BYTES, 8),
    image_size=4,
    channels=3,
    batch_size=1,
    seed=0,
  )
  (tmp_path / "a.png").write_bytes(b"gone bad since")
  with pytest.raises(types.InputError, match=r"a\.png is not a readable image"):
    next(data.stream(0))


def _classes(folder, **images):
  """A folder of folders: {class: number of grey images}."""
  for name, num in images.items():
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(num):
      _save(folder / name / f"{i}.png", _grey(10 * i))


def test_labels_of_an_image_folder_are_the_numbers_of_its_folders(tmp_path):
  """In alphabetical order over both splits, and where captions stand in a table too."""
  _classes(tmp_path / "train", cat=3, ant=2)
  _classes(tmp_path / "validation", bee=1, cat=1)
  source = sources.ImageFolder(str(tmp_path))
  assert source.class_names() == ("ant", "bee", "cat")
  found = {split: source.examples(split) for split in ("train", "validation")}
  for examples in found.values():
    for i in range(len(examples)):
      assert source.class_names()[examples[i]["label"]] == examples[i]["caption"]
  data = datasets.ImageData(source, 4, 1, batch_size=5).giving(("label",))
  batch = data.pipeline("train", None, seed=0).batch(0)
  assert sorted(batch["label"].tolist()) == [0, 0, 2, 2, 2]
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    k: (v.shape, v.dtype) for k, v in data.abstract_batch().items()
  }
  rows = [{"file_name": f"cat/{i}.png", "text": "a pet"} for i in range(3)]
  rows += [{"file_name": f"ant/{i}.png", "text": "an insect"} for i in range(2)]
  table = "\n".join(json.dumps(row) for row in rows)
  (tmp_path / "train" / "metadata.jsonl").write_text(table)
  examples = sources.ImageFolder(str(tmp_path / "train"), 0.0).examples("train")
  assert {e["caption"]: e["label"] for e in examples} == {"an insect": 0, "a pet": 1}


def test_images_outside_of_folders_have_no_class(tmp_path):
  _classes(tmp_path, cat=2)
  _save(tmp_path / "stray.png", _grey(0))
  with pytest.raises(types.InputError, match=r"1 of 3 images .* lie in none"):
    sources.ImageFolder(str(tmp_path)).class_names()


def test_classes_are_noted_and_held_against_the_data(tmp_path):
  _classes(tmp_path / "images", cat=1, dog=1)
  data = datasets.ImageData(sources.ImageFolder(str(tmp_path / "images")), 4, 1, 1)
  names = kept.class_names_for(data, tmp_path)
  assert names == ("cat", "dog")
  _classes(tmp_path / "images", bat=1)
  assert kept.class_names_for(data, tmp_path) == names  # those it was trained on
  with pytest.raises(types.InputError, match="'bat' is where 'cat' was"):
    kept.check_class_names(data, names)


def test_npz(tmp_path):
  pictures = np.arange(3 * 4 * 4 * 3).reshape(3, 4, 4, 3).astype(np.uint8)
  path = tmp_path / "a.npz"
  for texts in (["a", "ö", "c"], [t.encode() for t in ("a", "ö", "c")]):
    tags = np.array([["x"], 1, None], object)  # pickled, and not asked for
    np.savez_compressed(path, image=pictures, text=np.array(texts), tags=tags)
    images = _images(sources.Npz(str(path), "image", "text", 0.0))
    assert list(images) == ["a", "ö", "c"]
    assert np.array_equal(np.stack(list(images.values())), pictures)


def test_held_out_examples_are_the_same_in_every_run(tmp_path):
  path = tmp_path / "a.npz"
  names = np.array([f"{i:02}" for i in range(20)])
  np.savez(path, image=np.zeros((20, 4, 4, 1), np.uint8), caption=names)
  source = sources.Npz(str(path), validation_fraction=0.2)
  train, validation = (
    [source.examples(split)[i]["caption"] for i in range(len(source.examples(split)))]
    for split in ("train", "validation")
  )
  assert (len(train), len(validation)) == (16, 4)
  assert sorted(train + validation) == names.tolist()
  assert validation != names[-4:].tolist()  # not just the last ones
  again = source.examples("validation")
  assert [again[i]["caption"] for i in range(4)] == validation


def test_every_phrase_is_in_both_splits_of_the_digits(tmp_path):
  for split in ("train", "validation"):
    examples = digits.Digits(str(tmp_path)).examples(split)
    captions = {examples[i]["caption"] for i in range(len(examples))}
    assert len(captions) == len(digits_dataset_builder.PHRASES) * 10


def test_the_file_of_an_example_is_known_through_all_that_was_chosen():
  paths = [pathlib.Path(name) for name in "abc"]
  some = sources.Mapped(paths, str, np.array([2, 0]))
  fewer = sources.Mapped(some, str.upper, np.array([1]))
  assert fewer[0] == "A" and sources.file_of(fewer, 0) == "a"
  assert sources.file_of(sources.Mapped(range(3), str), 1) is None
