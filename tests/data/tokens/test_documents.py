"""Pieces of a corpus: every document once, whatever the size of a piece."""

import gzip
import io
import json
import tarfile

import pyarrow
import pytest
from pyarrow import parquet

from gen_jax import types
from gen_jax.data.tokens import documents

TEXTS = [f"{i} {'é' * (i % 7)}\nline" + "x" * (i * 37 % 101) for i in range(60)]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)


def read(paths, size, field="text"):
  """All documents, piece by piece: {(task, piece): texts}."""
  paths = [str(path) for path in paths]
  return {
    (i, piece.number): list(piece.items)
    for i, task in enumerate(documents.plan(paths, field, size))
    for piece in documents.pieces(task, field, size, lambda _: True)
  }


def joined(found):
  return [text for texts in found.values() for text in texts]


def tar(texts, name="txt", dump=str):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    for i, text in enumerate(texts):
      for suffix, content in ((name, dump(text)), ("jpg", "no text")):
        info = tarfile.TarInfo(f"folder.v1/{i:04}.{suffix}")
        info.size = len(content.encode())
        archive.addfile(info, io.BytesIO(content.encode()))
  return buffer.getvalue()


@pytest.fixture(
  params=["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.tar", "json.tar.gz"]
)
def path(request, tmp_path):
  """The same documents in every format."""
  path = tmp_path / request.param
  if path.suffix == ".parquet":
    table = pyarrow.table({"id": range(60), "text": TEXTS})
    parquet.write_table(table, path, row_group_size=7)
  elif path.suffix == ".zst":
    zstandard = pytest.importorskip("zstandard")
    half = len(LINES) // 2
    frames = [zstandard.compress(x.encode()) for x in (LINES[:half], LINES[half:])]
    path.write_bytes(b"".join(frames))
  else:
    content = LINES.encode()
    if path.name == "a.tar":
      content = tar(TEXTS)
    elif path.name == "json.tar.gz":
      content = tar(TEXTS, "json", lambda text: json.dumps({"text": text}))
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
  return path


@pytest.mark.parametrize("size", [1, 50, 333, 10**6])
def test_every_document_is_in_one_piece_and_in_order(path, size):
  found = read([path], size)
  assert joined(found) == TEXTS
  if size == 1:
    assert len(found) > 5
  if size == 10**6:
    assert len(found) == 1


def test_a_piece_is_the_same_whoever_reads_it_alone(path):
  found = read([path], 200)
  for i, task in enumerate(documents.plan([str(path)], "text", 200)):
    for wanted in [piece for t, piece in found if t == i]:
      pieces = documents.pieces(task, "text", 200, wanted.__eq__)
      assert [list(piece.items) for piece in pieces] == [found[i, wanted]]


def test_small_files_share_a_piece_and_each_text_is_a_document(tmp_path):
  paths = [tmp_path / f"{i}.txt" for i in range(9)]
  for path, text in zip(paths, TEXTS, strict=False):
    path.write_text(text)
  found = read(paths, 300)
  assert joined(found) == TEXTS[:9]
  assert 1 < len(found) < 9


def test_a_long_text_is_cut_at_line_ends(tmp_path):
  text = "".join(f"line {i} é\n" for i in range(500))
  (tmp_path / "a.txt").write_text(text)
  (tmp_path / "b.txt").write_text("short")
  found = joined(read([tmp_path / "a.txt", tmp_path / "b.txt"], 1000))
  assert "".join(found) == text + "short"
  assert len(found) > 4 and found[-1] == "short"
  assert all(part.endswith("\n") for part in found[:-1])


def test_a_tar_without_texts_is_named(tmp_path):
  (tmp_path / "a.tar").write_bytes(tar(TEXTS))
  with pytest.raises(types.InputError, match=r"a\.tar has no files \*\.body"):
    read([tmp_path / "a.tar"], 100, field="body")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_off_is_named(tmp_path, ending):
  if ending == ".zst":
    compress = pytest.importorskip("zstandard").compress
  else:
    compress = gzip.compress
  content = compress(LINES.encode())
  path = tmp_path / f"a.jsonl{ending}"
  for cut in (len(content) - 9, len(content) // 2, 3):
    path.write_bytes(content[:cut])
    with pytest.raises(types.InputError, match=rf"a\.jsonl{ending} is cut off"):
      read([path], 1000)
  path.write_bytes(b"no such format")
  with pytest.raises(types.InputError, match="cut off or damaged"):
    read([path], 1000)


def test_parquet_without_the_column_lists_those_there(tmp_path):
  path = tmp_path / "a.parquet"
  parquet.write_table(pyarrow.table({"id": [1], "body": ["x"]}), path)
  with pytest.raises(types.InputError, match=r"unknown column .*There are: body, id"):
    read([path], 100)
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(types.InputError, match="not a Parquet table"):
    read([path], 100)


@pytest.mark.parametrize(
  ("line", "says"),
  [
    ('{"text": 3}', "byte 14: 3 is not text"),
    ('{"texts": ""}', "unknown field .*did you mean"),
    ("[]", "byte 14 is not a JSON object"),
    ('{"text": ', "byte 14 is not JSON"),
    ('{"text": "\\ud800"}', "not valid Unicode"),
  ],
)
def test_lines_that_are_no_documents(tmp_path, line, says):
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line + "\n")
  with pytest.raises(types.InputError, match=says):
    read([tmp_path / "a.jsonl"], 1000)


def test_folders_are_searched_and_names_of_data_sets_kept(tmp_path):
  for name in ("b/c.jsonl", "a.txt", ".hidden", "b/_meta.json"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
  found = documents.listed(str(tmp_path), None, "train")
  assert found == [str(tmp_path / "a.txt"), str(tmp_path / "b/c.jsonl")]
  assert documents.listed("hf:owner/x", "en", "test") == ["hf:owner/x|en|test"]
  with pytest.raises(types.InputError, match="no file matches"):
    documents.listed(str(tmp_path / "*.parquet"), None, "train")


def test_streams_of_hugging_face_are_read_in_parts(tmp_path):
  pytest.importorskip("datasets")
  for i in range(3):
    part = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS[20 * i : 20 * i + 20])
    (tmp_path / f"{i}.jsonl").write_text(part)
  name = documents.listed(f"hf:{tmp_path}", None, "train")
  found = read(name, 300)
  assert joined(found) == TEXTS
  assert {task for task, _ in found} == {0, 1, 2}
  with pytest.raises(types.InputError, match="unknown field"):
    read(name, 300, field="body")


WHOLE = tar(TEXTS)
SECOND = 2 * 2 * 512 + 5  # in a header: a member has one, and a block of content


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (WHOLE[: 20 * 1024], "empty header"),
    (WHOLE[:SECOND] + b"\x7f" + WHOLE[SECOND + 1 :], "bad checksum"),
    (WHOLE[: 20 * 1024 + 100], "truncated header"),
    (WHOLE + WHOLE, "more follows"),
  ],
)
def test_a_tar_is_read_to_its_end_or_refused(tmp_path, content, says):
  """`tarfile` takes a damaged header for the end, and gives what comes before."""
  (tmp_path / "a.tar").write_bytes(content)
  with pytest.raises(types.InputError, match=rf"a\.tar is cut off or damaged .*{says}"):
    read([tmp_path / "a.tar"], 10**6)


def test_every_text_of_a_tar_is_read_whatever_its_name(tmp_path):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    for name in ("Chapter 1. A start.txt", "B.TXT", "._c.txt", "v1.2.json", "d.jpg"):
      content = b'{"text": "x"}' if name.endswith("json") else name.encode()
      info = tarfile.TarInfo(f"./{name}")
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  (tmp_path / "a.tar").write_bytes(buffer.getvalue())
  texts = joined(read([tmp_path / "a.tar"], 10**6))
  assert texts == ["Chapter 1. A start.txt", "B.TXT", "x"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_an_empty_compressed_file_is_cut_off(tmp_path, ending):
  (tmp_path / f"a.jsonl{ending}").write_bytes(b"")
  with pytest.raises(types.InputError, match="cut off: it is empty"):
    read([tmp_path / f"a.jsonl{ending}"], 100)


def test_a_damaged_page_of_parquet_is_named(tmp_path):
  path = tmp_path / "a.parquet"
  table = pyarrow.table({"text": TEXTS})
  parquet.write_table(table, path, compression="none", use_dictionary=False)
  content = path.read_bytes()
  at = content.index("57 é".encode()) + 3
  path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
  with pytest.raises(types.InputError, match=r"a\.parquet is damaged"):
    read([path], 10**6)
  parquet.write_table(table, path, compression="none", write_page_checksum=True)
  content = path.read_bytes()
  path.write_bytes(content.replace(b"line", b"lime", 1))
  with pytest.raises(types.InputError, match=r"a\.parquet is damaged"):
    read([path], 10**6)
