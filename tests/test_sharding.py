"""Names become placements, and every silent mistake is a loud one."""

import contextlib
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gen_jax import collectives, sharding
from gen_jax.types import InputError


def layout(mesh=(2, 2, 2), rules="fsdp_tensor"):
  return sharding.make_layout(*mesh, rules=rules)


def test_minus_one_takes_the_rest():
  assert [*layout((-1, 2, 2)).mesh.shape.values()] == [2, 2, 2, 1]
  assert [*layout((2, -1, 1)).mesh.shape.values()] == [2, 4, 1, 1]
  assert [*layout((2, 1, 1, -1)).mesh.shape.values()] == [2, 1, 1, 4]


@pytest.mark.parametrize(
  "mesh", [(3, 1, 1), (-1, -1, 1), (4, 4, 1), (0, 1, 1), (-1, 3, 1)]
)
def test_meshes_that_do_not_match_are_refused(mesh):
  with pytest.raises(InputError, match=r"(mesh |make_layout\.)data="):
    layout(mesh)


def test_presets_list_the_same_names():
  names = {frozenset(rules) for rules in sharding.PRESETS.values()}
  assert len(names) == 1


@pytest.mark.parametrize(
  "rules, expected",
  [
    ("dp", PartitionSpec(None, None)),
    ("fsdp", PartitionSpec("fsdp", None)),
    ("fsdp_tensor", PartitionSpec("fsdp", "tensor")),
  ],
)
def test_a_kernel_lies_as_its_preset_says(rules, expected):
  assert layout(rules=rules).spec(("embed", "mlp"), (4, 8), "up/kernel") == expected


@pytest.mark.parametrize(
  "names, shape, message",
  [
    (("embed", "mpl"), (4, 8), "did you mean 'mlp'"),
    (("embed", "embed"), (4, 4), "both claim mesh axis 'fsdp'"),
    (("embed", "mlp"), (4, 7), "must be divisible by tensor=2"),
    (("embed",), (4, 8), "do not fit shape"),
  ],
)
def test_mistakes_name_the_array(names, shape, message):
  with pytest.raises(InputError, match="up/kernel") as error:
    layout().spec(names, shape, "up/kernel")
  assert message in str(error.value)


def test_a_single_head_lies_whole():
  """That of an autoencoder's attention, or the keys that all queries share."""
  names = ("embed", "kv_heads", "head_dim")

  def lies(heads):
    return layout().spec(names, (4, heads, 8), "key/kernel")

  assert lies(1) == PartitionSpec("fsdp", None, None)
  assert lies(2) == PartitionSpec("fsdp", "tensor", None)
  with pytest.raises(InputError, match="must be divisible by tensor=2"):
    lies(3)


def test_boxed_trees_become_shardings_by_path():
  boxed = {"a": nn.LogicallyPartitioned(jnp.ones((4, 8)), ("embed", "mlp")), "b": 1}
  placed = layout().of(boxed)
  assert placed["a"].spec == PartitionSpec("fsdp", "tensor")
  assert placed["b"].is_fully_replicated
  bad = {"deep": {"a": nn.LogicallyPartitioned(jnp.ones(3), ("embed",))}}
  with pytest.raises(InputError, match="deep/a"):
    layout().of(bad)


def test_batches_go_to_their_rows():
  place = layout((4, 2, 1))
  assert place.num_batch_shards == 8
  assert place.local_rows(16) == slice(0, 16)
  x = np.arange(32).reshape(16, 2)
  put = place.put({"x": x}, 16)["x"]
  assert put.sharding.spec[0] == ("data", "fsdp")
  np.testing.assert_array_equal(put, x)
  for shard in put.addressable_shards:
    np.testing.assert_array_equal(shard.data, x[shard.index])
  with pytest.raises(InputError, match="size 12"):
    place.batched(np.zeros((12, 2)))


def test_constrain_places_activations_inside_use_alone():
  x = jnp.ones((8, 4, 8))
  assert sharding.constrain(x, "batch", "length", "act_mlp") is x
  place = layout()

  def fn(x):
    with sharding.use(place):
      return sharding.constrain(x, "batch", "length", "act_mlp")

  wanted = PartitionSpec(("data", "fsdp"), "context", "tensor")
  found = jax.jit(fn)(x).sharding  # may leave out axes of size 1
  assert found.is_equivalent_to(jax.sharding.NamedSharding(place.mesh, wanted), 3)


def slices(num, each):
  """Stand-ins for the devices of several slices."""
  device = types.SimpleNamespace
  return [
    device(id=i, slice_index=i // each, platform="cpu", device_kind="cpu")
    for i in range(num * each)
  ]


def test_slices_are_cut_along_data_alone():
  grid = sharding._arrange([4, 2, 1, 1], slices(2, 4))
  assert [{d.slice_index for d in half.flat} for half in (grid[:2], grid[2:])] == [
    {0},
    {1},
  ]
  with pytest.raises(InputError, match="multiple of 2, the number of slices"):
    sharding._arrange([1, 8, 1, 1], slices(2, 4))


@pytest.mark.parametrize("chips", [2, 4])
@pytest.mark.parametrize("mesh", [(2, 4), (1, 4, 2), (2, 2, 1, 2), (2, 1, 1, 4)])
@pytest.mark.parametrize(
  "names", [("embed", "mlp"), ("mlp", "embed"), ("position", "embed")]
)
def test_a_gathered_weight_gets_the_whole_gradient(chips, mesh, names, monkeypatch):
  """In two rounds or one, summed over data and context, cut along tensor or beside it.

  Whole numbers lose no bit.
  """
  monkeypatch.setattr(collectives, "_ROUND", chips)
  place = layout(mesh)
  weight = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (8, 12)), jnp.float32)
  x = jnp.asarray(np.random.default_rng(1).integers(-9, 9, (8, 4, 8)), jnp.float32)

  def loss(weight, x, place=None):
    with sharding.use(place) if place else contextlib.nullcontext():
      product = sharding.gathering(lambda w, x: x @ w, names, has_length=True)
      return jnp.sum(product(weight, x) ** 2)

  want = jax.grad(loss, (0, 1))(weight, x)
  at = place.named(names, weight.shape, "weight")
  ours = jax.jit(jax.grad(lambda w, x: loss(w, x, place), (0, 1)))
  got = ours(jax.device_put(weight, at), x)
  jax.tree.map(np.testing.assert_array_equal, got, want)
