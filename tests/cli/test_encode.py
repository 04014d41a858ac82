"""`gen-jax encode`: what an interrupted command has done stands."""

import json

import pytest

from gen_jax.cli import encode
from gen_jax.data import latents
from gen_jax.inference import codes
from gen_jax.runs import lease
from gen_jax.system import copies, files
from gen_jax.types import InputError

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("to", [True, False], ids=["codes", "statistics alone"])
def test_encoding_goes_on_where_it_was(call, vae_workdir, tmp_path, monkeypatch, to):
  """Piece by piece, and byte for byte what an unbroken command writes."""
  monkeypatch.setattr(codes, "BATCH_SIZE", 100)
  monkeypatch.setattr(encode, "PIECE", 400)
  words = ("encode", "--workdir", vae_workdir)
  flags = [("--to", tmp_path / name) if to else () for name in ("whole", "broken")]
  whole = call(*words, *flags[0], "--json")
  assert whole.code == 0, whole
  pieces, sums = [], codes.sums

  def counting(some):
    pieces.append(len(some))
    if len(pieces) == 3:
      raise KeyboardInterrupt
    return sums(some)

  monkeypatch.setattr(codes, "sums", counting)
  assert call(*words, *flags[1]).code == 130
  assert not (tmp_path / "broken").exists()
  again = call(*words, *flags[1], "--json")
  assert again.code == 0, again
  # 1,438 digits of training, 359 of validation; the third piece is encoded twice.
  assert pieces == [400, 400, 400, 400, 238, *([359] if to else [])]
  found = [json.loads(outcome.out.splitlines()[-1]) for outcome in (whole, again)]
  assert {**found[0], "to": None} == {**found[1], "to": None}
  assert not list(tmp_path.glob("*.partial")) + list(vae_workdir.glob("*.partial"))
  if to:
    files = [
      {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
      for name in ("whole", "broken")
    ]
    shards = [f"train-{i:05}" for i in range(4)] + ["validation-00000"]
    names = {f"{shard}.{end}" for shard in shards for end in ("bin", "idx")}
    assert files[0] == files[1] and files[0].keys() == {"latents.json", *names}
    checked = call("inspect", tmp_path / "whole", "--json")
    assert json.loads(checked.out.splitlines()[-1])["shards"] == 5


def test_pieces_of_another_command_are_not_taken(call, vae_workdir, tmp_path):
  home = tmp_path / "codes.partial"
  home.mkdir()
  (home / "about.json").write_text('{"sha256": "another"}')
  (home / "train-00000.json").write_text('{"num_images": 1, "count": 1, "sums": []}')
  done = call("encode", "--workdir", vae_workdir, "--to", tmp_path / "codes", "--json")
  assert done.code == 0, done
  assert json.loads(done.out.splitlines()[-1])["num_images"] == 1438


def test_two_at_once(call, vae_workdir, tmp_path):
  with lease.hold(vae_workdir, "latents.lease"):
    refused = call("encode", "--workdir", vae_workdir, "--to", tmp_path / "codes")
  assert refused.code == 2 and "is at work" in refused.err
  assert not list(tmp_path.iterdir())


def test_codes_in_a_bucket_are_those_of_a_disk(
  call, vae_workdir, tmp_path, monkeypatch, bucket
):
  """Cut off while the finished cache is put where it goes, and given again."""
  monkeypatch.setattr(encode, "PIECE", 800)
  words = ("encode", "--workdir", vae_workdir, "--to")
  assert call(*words, tmp_path / "codes").code == 0
  there = f"{bucket}/codes"

  def cut_off(home, target, spare):
    copies.copy(home, target, (*spare, latents.NAME))
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(encode, "_place", cut_off)
    assert call(*words, there).code == 130
  with pytest.raises(InputError, match="is not a latent cache"):
    latents.Latents(there).statistics()
  assert call(*words, there).code == 0
  root = files.path(there, "x")
  here = {path.name: path.read_bytes() for path in (tmp_path / "codes").iterdir()}
  assert {n: (root / n).read_bytes() for n in files.names(root)} == here
  assert not files.path(f"{there}.partial", "x").exists()
  one, other = (
    latents.Latents(str(p)).codes("validation") for p in (tmp_path / "codes", there)
  )
  assert (one[7]["codes"] == other[7]["codes"]).all() and len(one) == len(other)
