"""Globs: every file once."""

from gen_jax.system import globs


def test_a_file_of_several_names_is_one_and_links_in_circles_end(tmp_path):
  (tmp_path / "b.txt").write_text("b")
  (tmp_path / "c.txt").write_text("c")
  (tmp_path / "a.txt").symlink_to("c.txt")
  (tmp_path / "nowhere.txt").symlink_to("nothing")
  (tmp_path / "self").symlink_to(tmp_path)
  found = globs.matching(str(tmp_path / "**/*.txt"))
  assert [path.name for path in found] == ["a.txt", "b.txt"]
  assert all(path.parent == tmp_path for path in found)
