"""Copies: the first of its kind stays, wherever keys are compared."""

import numpy as np
import pytest

from gen_jax.data.tokens import duplicates

TEXT = " ".join(f"word{i * 37 % 113}" for i in range(200))


def test_exact_keys_ignore_case_and_spaces_alone():
  key = duplicates.exact("A b\n c é")
  for same in ("a B c\tÉ", "  A b c e\u0301 "):
    np.testing.assert_array_equal(duplicates.exact(same), key)
  for other in ("a bc é", "a b c e", "a b c é."):
    assert duplicates.exact(other) != key


def test_the_first_of_each_key_stays_over_files_and_parts(tmp_path, monkeypatch):
  """From the definition, with keys compared in one part or in many."""
  draw = np.random.default_rng(0)
  files = [draw.integers(0, 40, (n, 2)).astype(np.uint64) for n in (30, 0, 25)]
  paths = []
  for i, keys in enumerate(files):
    paths.append(tmp_path / f"{i}.npy")
    np.save(paths[-1], keys)
  seen, want = set(), []
  for row in np.concatenate(files).tolist():
    want.append(bool(seen & set(row)))
    seen |= set(row)
  for at_once in (10**6, 7):
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    assert duplicates.mark(paths, tmp_path / "copies.npy") == [30, 0, 25]
    assert np.load(tmp_path / "copies.npy").tolist() == want


def test_near_keys_are_shared_by_the_similar_alone():
  pytest.importorskip("datasketch")
  words = TEXT.split()
  near = " ".join([*words[:100], "other", *words[101:]])  # 5 of 196 runs differ
  far = " ".join([*words[:100], *(f"else{i}" for i in range(100))])
  keys = set(duplicates.near(TEXT).tolist())
  assert len(keys) == duplicates.BANDS
  assert keys & set(duplicates.near(near).tolist())
  assert not keys & set(duplicates.near(far).tolist())  # s = 0.33: p = 0.002


def test_held_out_is_a_share_that_the_text_alone_decides():
  found = np.array([duplicates.fraction(f"document {i}") for i in range(4000)])
  assert abs((found < 0.1).mean() - 0.1) < 0.02
  assert duplicates.fraction("A  b") == duplicates.fraction("a b")
