"""Folders of images: their captions, their splits, and what is no image of theirs."""

import json

import numpy as np
import pytest
from PIL import Image

from gen_jax import types
from gen_jax.data import dreambooth, folders, sources

CAPTIONS = {"a.png": "a red barn", "b c.png": "two sheep, at 5 o'clock\nand a dog"}


def image(path, level=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(path)


def rows(prefix="", field="text"):
  return [{"file_name": f"{prefix}{k}", field: v} for k, v in CAPTIONS.items()]


def write_jsonl(path, table):
  path.write_text("".join(json.dumps(row) + "\n" for row in table))


def write_csv(path, table):
  def quote(text):
    return '"' + text.replace('"', '""') + '"'

  lines = [
    ",".join(map(quote, row)) for row in (table[0], *(r.values() for r in table))
  ]
  path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", newline="")  # as Excel does


def write_parquet(path, table):
  import pyarrow
  from pyarrow import parquet

  parquet.write_table(pyarrow.Table.from_pylist(table), path)


WRITE = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


def read(root, split="train", fraction=0.0, **options):
  examples = sources.ImageFolder(str(root), fraction, **options).examples(split)
  return sorted(examples[i]["caption"] for i in range(len(examples)))


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize(
  "home, below", [("", ""), ("train", ""), ("train", "images/"), ("cats/old", "")]
)
def test_captions_of_a_table_wherever_it_lies(tmp_path, kind, home, below):
  root = tmp_path / "[set] *"  # no glob
  for name in CAPTIONS:
    image(root / home / below / name)
  WRITE[kind](root / home / f"metadata.{kind}", rows(below))
  assert read(root) == sorted(CAPTIONS.values())


@pytest.mark.parametrize("directory", [".", "./", "../set", "../set/../set/"])
def test_captions_of_a_folder_by_any_of_its_names(tmp_path, monkeypatch, directory):
  for name in CAPTIONS:
    image(tmp_path / "set" / name)
  monkeypatch.chdir(tmp_path / "set")
  assert read(directory) == ["set", "set"]
  write_jsonl(tmp_path / "set" / "metadata.jsonl", rows())
  assert read(directory) == sorted(CAPTIONS.values())


@pytest.mark.parametrize("kind", WRITE)
def test_captions_in_another_column(tmp_path, kind):
  for name in CAPTIONS:
    image(tmp_path / name)
  WRITE[kind](tmp_path / f"metadata.{kind}", rows(field="prompt"))
  assert read(tmp_path, caption_field="prompt") == sorted(CAPTIONS.values())
  says = r"'text': .*file_name, prompt; data\.source\.caption_field names the field"
  with pytest.raises(types.InputError, match=says):
    read(tmp_path)


def test_an_image_with_several_captions_is_shown_with_each(tmp_path):
  """And lies in one split with all of them."""
  names = [f"{i}.png" for i in range(10)]
  for name in names:
    image(tmp_path / name)
  table = [{"file_name": n, "text": f"{n} {way}"} for n in names for way in "xy"]
  write_jsonl(tmp_path / "metadata.jsonl", table)
  train, held = (read(tmp_path, split, 0.3) for split in ("train", "validation"))
  assert (len(train), len(held)) == (14, 6)
  assert not {text.split()[0] for text in train} & {text.split()[0] for text in held}


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev", "Val"])
def test_folders_named_like_splits_are_the_splits(tmp_path, name):
  for split in ("train", name, "test"):
    image(tmp_path / split / "cat" / f"{split}.png")
    image(tmp_path / split / "x.png")
  assert read(tmp_path) == sorted(["cat", tmp_path.name])
  paths = sources.ImageFolder(str(tmp_path), 0.5).paths("validation")
  assert len(paths) == 2 and all(name in path.parts for path in paths)


def test_without_a_folder_of_validation_some_of_train_is_held_out(tmp_path):
  for i in range(10):
    image(tmp_path / "train" / f"{i}.png")
    image(tmp_path / "test" / f"{i}.png")
  source = sources.ImageFolder(str(tmp_path), 0.2)
  paths = [*source.paths("train"), *source.paths("validation")]
  assert sorted(paths) == sorted((tmp_path / "train").iterdir())


def test_a_class_may_be_called_train(tmp_path):
  for name in ("car", "train"):
    image(tmp_path / name / "1.png")
  assert read(tmp_path) == ["car", "train"]


def test_splits_among_other_folders_are_refused(tmp_path):
  for name in ("train", "val", "more"):
    image(tmp_path / name / "1.png")
  with pytest.raises(
    types.InputError, match=r"splits \(train, val\).*more, train, val"
  ):
    read(tmp_path)


def table(root, text, name="metadata.jsonl"):
  (root / name).write_text(text)


ROW = '{"file_name": "a.png", "text": "x"}\n'


@pytest.mark.parametrize(
  "name, text, says",
  [
    ("metadata.jsonl", ROW, "1 of 2 images .* have no caption in metadata.jsonl"),
    ("metadata.jsonl", ROW.replace("a.png", "z.png"), "2 of 2 images"),
    ("metadata.jsonl", ROW.replace("file_name", "image"), "'file_name'.*image, text"),
    ("metadata.jsonl", ROW.replace('"x"', "null"), "None is not text"),
    ("metadata.csv", "file_name,text\na.png,x\n", "no caption in metadata.csv"),
    ("metadata.csv", "file_name;text\na.png;x\n", "file_name;text"),
    ("metadata.csv", "file_name,text\na.png,x, y\n", "has 3 fields, the header"),
    (
      "metadata.csv",
      "file_name,text,text\na.png,x,y\n",
      "two columns of the same name",
    ),
    ("metadata.csv", 'file_name,text\na.png,"x', "is not CSV"),
    ("metadata.parquet", "no table", "is not a Parquet table"),
    ("metadata.json", "{}", "metadata.json is not read, but may hold captions"),
    ("metadata.jsonl.gz", "", "metadata.jsonl.gz is not read"),
    ("Metadata.JSONL", ROW, "Metadata.JSONL is not read"),
    ("captions.tsv", "", "captions.tsv is not read"),
    ("captions.txt", "a.png: x", "captions.txt is not read"),
    ("labels.csv", "", "labels.csv is not read"),
    ("a.caption", "x", "a.caption is not read"),
    ("a.json", "{}", "a.json is not read"),
  ],
)
def test_a_table_is_read_or_refused(tmp_path, name, text, says):
  """Never is the folder's name taken in its place."""
  image(tmp_path / "a.png")
  image(tmp_path / "b.png")
  (tmp_path / name).write_text(text)
  with pytest.raises(types.InputError, match=says) as error:
    read(tmp_path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["z.png", "../b.png", "a.jxl", "/b.png", "."])
def test_a_row_that_names_no_image_of_the_folder_is_refused(tmp_path, name):
  image(tmp_path / "set" / "a.png")
  image(tmp_path / "b.png")
  table = [{"file_name": n, "text": "x"} for n in ("./a.png", name)]
  write_jsonl(tmp_path / "set" / "metadata.jsonl", table)
  with pytest.raises(types.InputError, match=f"jsonl:2 names '{name}', not an image"):
    read(tmp_path / "set")


def test_two_tables_in_one_folder_are_refused(tmp_path):
  image(tmp_path / "a.png")
  (tmp_path / "metadata.jsonl").write_text(ROW)
  (tmp_path / "metadata.csv").write_text("file_name,text\na.png,y\n")
  with pytest.raises(types.InputError, match="more than one of metadata"):
    read(tmp_path)


def test_what_is_hidden_or_unfinished_is_no_image(tmp_path):
  image(tmp_path / "set" / "a.png")
  for name in ("._a.png", "__MACOSX/a.png", ".cache/a.png", "run.partial/a.png"):
    image(tmp_path / "set" / name)
  (tmp_path / "set" / "b.png.partial").write_bytes(b"")
  assert read(tmp_path / "set") == ["set"]


def test_links_are_followed_once(tmp_path):
  image(tmp_path / "elsewhere" / "a.png")
  (tmp_path / "set").mkdir()
  (tmp_path / "set" / "cats").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
  assert read(tmp_path / "set") == ["cats"]


def test_images_of_a_kind_that_is_not_read_are_refused(tmp_path):
  image(tmp_path / "a.png")
  (tmp_path / "b.HEIC").write_bytes(b"")
  with pytest.raises(types.InputError, match=r"1 images of an unsupported .*b\.HEIC"):
    read(tmp_path)


@pytest.mark.parametrize(
  "home, own, sheets",
  [
    ("out", ["prompts.json"], ["grid.png", "before_after.png"]),
    ("run/samples", [], ["grid.png", "drawn_00000500.png"]),
    ("run/edits", [], ["grid.png", "before_after.png"]),
    ("run/figures", [], ["nearest.png", "attention.png", "latents.png"]),
  ],
)
def test_sheets_that_commands_add_are_no_images(tmp_path, home, own, sheets):
  for name in ("config.json", "run.json"):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / name).write_text("{}")
  folder = tmp_path / home
  for name in sheets:
    image(folder / name)
  for name in own:
    (folder / name).write_text("{}")
  with pytest.raises(types.InputError, match="holds no images"):
    folders.images_in(str(folder), "--folder")
  for i in range(3):
    image(folder.parent / "more" / f"a_20240{i}.png")
    image(tmp_path / "kept" / f"IMG_2024010{i}.png")
  assert len(folders.images_in(str(tmp_path / "kept"), "--folder")) == 3
  source = dreambooth.DreamBooth(str(tmp_path / "kept"), "x", str(folder), "y")
  with pytest.raises(types.InputError, match=r"prior_directory.*holds no images"):
    source.examples("train")
