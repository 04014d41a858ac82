"""What a compiled step sends between devices, read off its HLO, preset by preset."""

import functools
import math
import re

import jax

from gen_jax import sharding
from gen_jax.models import unet
from gen_jax.nn import kernels, mlp, spatial
from gen_jax.train import optim
from gen_jax.train import state as states
from gen_jax.train import step as steps
from tests import tiny

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
SMALL = 300  # norms, biases and scalars; a matrix of these models has 1,000 and more
TRANSFORMER = functools.partial(
  spatial.SpatialTransformer,
  mlp=functools.partial(mlp.GatedMLP, activation=jax.nn.silu),
)


def traffic(mesh, rules, task, batch):
  """({kind: sizes of results that are not small}, sizes of such parameters)."""
  layout = sharding.make_layout(*mesh, rules=rules)
  optimizer = optim.adamw(optim.constant(1e-3, 10))
  state = states.abstract(task, optimizer, batch, layout, with_ema=False)
  step = steps.make_step(task, optimizer, layout=layout)
  rows = {
    k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.batched(x))
    for k, x in batch.items()
  }
  compiled = (
    steps.compile_step(step, state, layout).lower(state, {}, rows, {}).compile()
  )
  found = {}
  alone = r"replica_groups=\{\{0\},"  # each with itself
  for shapes, kind in re.findall(
    rf" = (\(.*?\)|\S+) ({KINDS})(?:-start)?\((?!.*{alone})", compiled.as_text()
  ):
    for dims in re.findall(r"f32\[([\d,]+)\]", shapes):
      size = math.prod(map(int, dims.split(",")))
      if size > SMALL:
        found.setdefault(kind, []).append(size)
  return found, [x.size for x in jax.tree.leaves(state.params) if x.size > SMALL]


def text_traffic(mesh, rules, **changes):
  """Of two layers in a row, so that every collective stands in the text once.

  And with a head of its own: a table that is used twice is gathered, and its gradient
  summed, twice.
  """
  task = tiny.language_model(width=64, num_heads=8, tied_head=False, **changes)
  return traffic(mesh, rules, task, tiny.text_batch(length=24))


def test_data_parallel_sums_every_gradient_once():
  found, sizes = text_traffic((8, 1, 1), "dp")
  assert found == {"all-reduce": found["all-reduce"]}
  assert sorted(found["all-reduce"]) == sorted(sizes)


def test_fsdp_gathers_weights_and_scatters_the_sum_of_gradients():
  found, sizes = text_traffic((1, 8, 1), "fsdp")
  assert sorted(found["all-gather"]) == sorted(sizes)
  pieces = [size // 8 for size in sizes if size // 8 > SMALL]  # a device's own
  assert sorted(found["reduce-scatter"]) == sorted(pieces)
  assert found.keys() == {"all-gather", "reduce-scatter"}


def test_fsdp_beside_tensor_moves_parts_of_weights_and_sums_activations_alone():
  """Fourteen sums: as queries, keys and values each have one. Positions lie whole."""
  found, sizes = text_traffic((1, 4, 2), "fsdp_tensor")
  parts = [size if size == 24 * 64 else size // 2 for size in sizes]
  assert sorted(found["all-gather"]) == sorted(parts)
  pieces = [size // 4 for size in parts if size // 4 > SMALL]
  assert sorted(found["reduce-scatter"]) == sorted(pieces)
  assert found["all-reduce"] == [tiny.BATCH // 4 * 24 * 64] * (2 * (2 + 2 + 2) + 2)
  assert found.keys() == {"all-gather", "reduce-scatter", "all-reduce"}


def test_context_sends_keys_round_a_ring_and_sums_every_gradient_once():
  """Each layer's keys and values, 7 turns forwards; with their gradients 8 more.

  The backward pass sends the keys again, but where the compiler has kept them.
  """
  attend = functools.partial(kernels.ring, chunk=3)
  found, sizes = text_traffic((1, 1, 1, 8), "fsdp", attention_impl=attend)
  assert found.keys() == {"all-reduce", "collective-permute"}
  assert sorted(found["all-reduce"]) == sorted(sizes)
  assert set(found["collective-permute"]) == {tiny.BATCH * 64 * 24 // 8}
  each = 2 * 2
  assert each * (7 + 8) <= len(found["collective-permute"]) <= each * (7 + 7 + 8)


def test_a_unet_over_tensor_sums_what_its_blocks_add_and_moves_nothing():
  """Blocks of convolutions and of attention are cut inside and whole outside."""
  model = unet.Config(1, 32, (1,), 1, (0,), 8, num_groups=4, attention=TRANSFORMER)
  task = tiny.diffusion_task(network=unet.UNet(model))
  found, _ = traffic((4, 1, 2), "fsdp_tensor", task, tiny.image_batch())
  assert found.keys() == {"all-reduce"}
