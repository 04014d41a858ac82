"""What a program is said to need, held against what is known of it."""

import jax
import jax.numpy as jnp
import pytest

from gen_jax.system import memory
from gen_jax.types import InputError

SIZE = 2**20  # numbers of an array, four bytes each


def peak(fn, *shapes, **options):
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return memory.peak(jax.jit(fn, **options).lower(*args).compile())


def test_temporaries_count():
  """A product of two vectors that is sorted is there as a whole, in between."""

  def fn(x):
    return jnp.sort(x[:, None] * x[None], axis=0)[0]

  assert peak(fn, (1024,)) >= 4 * SIZE


def test_results_count_unless_they_take_the_place_of_arguments():
  apart, reused = (
    peak(lambda x: x + 1, (SIZE,), donate_argnums=donated) for donated in ((), 0)
  )
  assert apart == pytest.approx(2 * 4 * SIZE, rel=0.01)
  assert reused == pytest.approx(4 * SIZE, rel=0.01)


def test_devices_of_a_cpu_share_the_host(monkeypatch):
  monkeypatch.setattr(memory, "_host", lambda: 800.0)
  mesh = jax.sharding.Mesh(jax.devices()[:8], "x")
  sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))
  assert memory.available(sharding) == 100.0
  fits = jax.ShapeDtypeStruct((200,), jnp.float32, sharding=sharding)  # 100 bytes each
  memory.check("it", fits)
  with pytest.raises(InputError, match="out of memory: it would take"):
    memory.check("it", [fits, fits])


@pytest.mark.parametrize("limit", ["1000", "max"])
@pytest.mark.parametrize("folder", ["", "memory"])
def test_a_container_may_have_less_than_the_machine(
  tmp_path, monkeypatch, folder, limit
):
  """Files that the kernel keeps in memory can go: they are not used."""
  names = ["memory.max", "memory.current", "inactive_file"]
  if folder:
    names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"]
  meminfo, root = tmp_path / "meminfo", tmp_path / "cgroup"
  meminfo.write_text("MemTotal: 9 kB\nMemAvailable:  3 kB\nSwapFree: 1 kB\n")
  (root / folder).mkdir(parents=True)
  (root / folder / names[0]).write_text(f"{limit}\n")
  (root / folder / names[1]).write_text("700\n")
  (root / folder / "memory.stat").write_text(f"anon 5\n{names[2]} 600\n")
  monkeypatch.setattr(memory, "_MEMINFO", meminfo)
  monkeypatch.setattr(memory, "_CGROUP", root)
  assert memory._host() == (900.0 if limit == "1000" else 4096.0)
