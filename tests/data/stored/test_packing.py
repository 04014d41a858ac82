"""Image stores: what goes in comes out, whoever packs it, killed or not."""

import functools
import io
import subprocess
import sys

import numpy as np
import pytest
from flax import serialization
from PIL import Image

from gen_jax.data import image_files, sources
from gen_jax.data.stored import captioned, packing, records, source
from gen_jax.data.tokens import documents, making, store
from gen_jax.system import files
from gen_jax.types import InputError
from tests.data.stored import images
from tests.data.tokens import processes

NUM = 40


def job(*paths, fields=(), **changes):
  found = [p for path in paths for p in captioned.listed(str(path), None, "train")]
  options = {"shard_bytes": 1000, "held_out": 0.2, **changes}
  return packing.Job(tuple(found), captioned.Fields(*fields), **options)


def packed(home, given, workers=1):
  making.make(home, given, workers)
  return source.ImageStore(str(home))


def rows(found, split):
  return list(found._records(split))


def content(home):
  """{name: bytes} of a folder, of a disk or a bucket."""
  return {name: (home / name).read_bytes() for name in files.names(home)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return images.folder(tmp_path_factory.mktemp("images") / "folder", NUM)


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
  """A store of one worker."""
  home = tmp_path_factory.mktemp("made") / "store"
  packed(home, job(folder))
  return home


def test_images_are_kept_as_they_are_encoded_and_read_as_from_their_files(folder, made):
  found = source.ImageStore(str(made))
  want = {c: (caption, label) for c, caption, label in images.all_of(NUM)}
  seen = []
  for split in store.SPLITS:
    kept = rows(found, split)
    for record, example in zip(kept, found.examples(split), strict=True):
      assert (record["caption"], record["label"]) == want[record["image"]]
      pixels = image_files.decoded(record["image"], "x")
      np.testing.assert_array_equal(example["image"], pixels)
      seen.append(record["image"])
    assert list(found.captions(split)) == [record["caption"] for record in kept]
  assert sorted(seen) == sorted(want)
  assert len(found.examples("validation")) in range(2, 20)
  assert found.class_names() == images.CLASSES
  loose = sources.ImageFolder(str(folder), validation_fraction=0.0)
  pairs = {e["caption"]: e for e in loose.examples("train")}
  for example in found.examples("train"):
    np.testing.assert_array_equal(example["image"], pairs[example["caption"]]["image"])
    assert example["label"] == pairs[example["caption"]]["label"]


def of_tfds(home):
  pytest.importorskip("tensorflow_datasets")
  from gen_jax.data.digits import digits_dataset_builder

  builder = digits_dataset_builder.Builder(
    data_dir=str(home), file_format="array_record"
  )
  builder.download_and_prepare()
  return f"tfds:{builder.data_path}"


@pytest.mark.parametrize("form", ["tars", "parquet", "hf"])
def test_every_form_of_source_gives_the_same_images(form, made, tmp_path):
  if form == "hf":
    pytest.importorskip("datasets")
  if form in ("parquet", "hf"):
    pytest.importorskip("pyarrow")
  home = getattr(images, form.replace("hf", "parquet"))(tmp_path / "in", NUM)
  given = f"hf:{home}" if form == "hf" else home
  label = None if form == "tars" else "class"
  found = packed(tmp_path / "s", job(given, fields=("image", "text", label)))
  for split in store.SPLITS:
    want = rows(source.ImageStore(str(made)), split)
    key = lambda record: record["image"]  # noqa: E731 (a test)
    assert sorted(rows(found, split), key=key) == sorted(want, key=key)
  assert found.class_names() == ("0", "1", "2")


def test_digits_of_tfds(tmp_path):
  name = of_tfds(tmp_path / "tfds")
  given = job(name, fields=("image", "caption", "label"), shard_bytes=100_000)
  found = packed(tmp_path / "s", given, 2)
  assert found.class_names()[:2] == ("zero", "one")
  splits = [found.examples(split) for split in store.SPLITS]
  assert sum(map(len, splits)) == 1438
  assert splits[0][5]["image"].shape == (8, 8, 3)


def test_a_class_names_its_images_where_they_have_no_caption(tmp_path):
  home = images.parquet(tmp_path / "in", 12)
  found = packed(tmp_path / "s", job(home, fields=("image", "class")))
  kept = rows(found, "train")
  assert {(r["caption"], r["label"]) for r in kept} == {(str(i), i) for i in range(3)}


def test_a_folders_own_splits_count(tmp_path):
  for split, num in (("train", 9), ("validation", 4), ("test", 3)):
    images.folder(tmp_path / "in" / split, num, captions=False)
  found = packed(tmp_path / "s", job(tmp_path / "in"))
  assert [len(found.examples(split)) for split in store.SPLITS] == [9, 4]


def test_two_workers_make_the_same_bytes_and_the_same_command_finds_them(
  folder, made, tmp_path
):
  packed(tmp_path / "s", job(folder), 2)
  assert content(tmp_path / "s") == content(made)
  packed(tmp_path / "s", job(folder), 2)
  with pytest.raises(InputError, match="store of another held_out"):
    packed(tmp_path / "s", job(folder, held_out=0.3))


killed = functools.partial(processes.killed, "tests.data.stored.test_packing", "images")


def test_killed_at_any_moment_it_goes_on_and_makes_the_same_bytes(
  folder, made, tmp_path
):
  assert not killed(tmp_path / "s", folder, after=2)
  with pytest.raises(InputError, match="not finished"):
    source.ImageStore(str(tmp_path / "s")).examples("train")
  packed(tmp_path / "s", job(folder))
  assert content(tmp_path / "s") == content(made)


def test_records_have_flaxs_bytes_and_their_makers_need_no_jax():
  """A plain record is packed without it, one with arrays or NumPy's numbers by it."""
  plain = {"label": 70_000, "image": bytes(range(256)), "caption": "ü", "none": None}
  for record in (plain, {**plain, "label": np.int32(3), "codes": np.ones(2, "f2")}):
    assert records._packed(record) == serialization.msgpack_serialize(dict(record))
  starts = "import sys; from gen_jax.data.tokens import worker; print(*sys.modules)"
  done = subprocess.run([sys.executable, "-c", starts], capture_output=True, text=True)
  assert not {"jax", "flax", "orbax"} & {*done.stdout.split()}, done.stderr


def test_copies_are_dropped(tmp_path):
  home = images.folder(tmp_path / "in", 12)
  for i in (3, 6):
    name = next(home.glob(f"*/{i:04}.*"))
    (home / "cat" / f"copy_{i}{name.suffix}").write_bytes(name.read_bytes())
  (home / "metadata.jsonl").unlink()
  found = packed(tmp_path / "s", job(home, held_out=0.0, duplicates="exact"))
  assert len(found.examples("train")) == 12


def bad_tar(home, *members):
  with images.tarfile.open(home / "a.tar", "w") as tar:
    for name, data in members:
      images.add(tar, name, data)
  return home / "a.tar"


PNG = images.encoded(0)


@pytest.mark.parametrize(
  ("members", "says"),
  [
    ([("a.png", PNG[:50]), ("a.txt", b"x")], r"a.tar: a.png is not a readable image"),
    ([("a.png", PNG)], "'text'"),
    ([("a.txt", b"x")], "holds no images"),
    ([("a.png", PNG), ("a.jpg", PNG)], "second image"),
    ([("a.avif", PNG)], "unsupported format"),
    ([("a.png", PNG), ("a.cls", b"x")], "is no class"),
    ([("a.png", PNG), ("a.cls", b"9999999")], "is no class; whole numbers from 0 to"),
    ([("a.png", PNG), ("a.json", b'{"text": null}')], "None is not text"),
    ([("a 1.2.png", PNG), ("a 1.2.txt", b"x")], "a 1.2.png is no image of a sample"),
  ],
)
def test_tars_that_cannot_be_packed(tmp_path, members, says):
  with pytest.raises(InputError, match=says):
    packed(tmp_path / "s", job(bad_tar(tmp_path, *members)))
  assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), -1, 2**40, "x"])
def test_classes_are_whole_numbers(value):
  with pytest.raises(InputError, match=r"row 0: .* is no class"):
    captioned._label(value, "row 0")
  assert [captioned._label(v, "row 0") for v in (2.0, "2", b"2", np.int8(2))] == [2] * 4


@pytest.mark.parametrize("shape", [(8, 8, 2), (8, 8, 5), (0, 8, 3), (8, 8, 0)])
def test_pixels_that_are_no_image_are_refused(shape):
  """Colours are one, three or four; of those the bytes are a PNG of the pixels."""
  with pytest.raises(InputError, match=r"row 0: pixels of shape .* are no image"):
    captioned._encoded(np.zeros(shape, np.uint8), "row 0")
  for colors in (1, 3, 4):
    pixels = np.arange(16 * colors, dtype=np.uint8).reshape(4, 4, colors)
    found = Image.open(io.BytesIO(captioned._encoded(pixels, "row 0")))
    np.testing.assert_array_equal(np.asarray(found).reshape(pixels.shape), pixels)


def test_what_is_no_source_of_images(tmp_path):
  with pytest.raises(InputError, match="no images"):
    packed(tmp_path / "s", job(tmp_path))
  (tmp_path / "a.jsonl").write_text("{}")
  with pytest.raises(InputError, match=r"neither a .tar nor a .parquet"):
    job(tmp_path / "a.jsonl")
  home = images.parquet(tmp_path / "in", 3)
  with pytest.raises(InputError, match="There are: class, image, text"):
    packed(tmp_path / "s", job(home, fields=("image", "words")))
  tar = images.tars(tmp_path / "tars", 6, 1) / "0.tar"
  tar.write_bytes(tar.read_bytes()[:3000])
  with pytest.raises(InputError, match=r"0.tar is cut off"):
    packed(tmp_path / "s", job(tar))


def test_shards_that_are_cut_off_or_changed_are_named(made, tmp_path):
  home = tmp_path / "s"
  files_of = content(made)
  home.mkdir()
  name = sorted(n for n in files_of if n.startswith("train") and n.endswith("bin"))[1]
  for change, says in (
    (lambda c: c[:-1], f"{name} is cut off"),
    (lambda c: c[:9] + bytes([c[9] ^ 1]) + c[10:], f"{name}, record 0 is damaged"),
  ):
    for n, c in files_of.items():
      (home / n).write_bytes(change(c) if n == name else c)
    with pytest.raises(InputError, match=says):
      list(source.ImageStore(str(home)).examples("train"))


def test_stores_of_another_kind_say_what_reads_them(made, tmp_path):
  with pytest.raises(InputError, match=r"store of images.*data.source=image_store"):
    store.open_store(made, None)
  with pytest.raises(InputError, match="is no image store"):
    source.ImageStore(str(tmp_path)).examples("train")


def test_pieces_do_not_depend_on_who_reads_them(tmp_path):
  """Every image is in one piece, by parts and by wholes."""
  home = images.tars(tmp_path / "in", NUM)
  given = [str(p) for p in sorted(home.iterdir())]
  fields = captioned.Fields()
  for task in captioned.plan(given, fields, 700):
    whole = {}
    for piece in captioned.pieces(task, fields, 700, lambda _: True):
      whole[piece.number] = list(piece.items)
    assert len(whole) > 1
    for number, want in whole.items():
      alone = captioned.pieces(task, fields, 700, number.__eq__)
      assert [list(piece.items) for piece in alone] == [want]
    assert isinstance(task, documents.Task)
