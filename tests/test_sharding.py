"""Names become placements, and every silent mistake is a loud one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gen_jax import sharding, types


def layout(mesh=(2, 2, 2), rules="fsdp_tensor"):
  return sharding.make_layout(*mesh, rules=rules)


def test_minus_one_takes_the_rest():
  assert dict(layout((-1, 2, 2)).mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert dict(layout((2, -1, 1)).mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
  "mesh", [(3, 1, 1), (-1, -1, 1), (4, 4, 1), (0, 1, 1), (-1, 3, 1)]
)
def test_meshes_that_do_not_match_are_refused(mesh):
  with pytest.raises(types.InputError, match="mesh data="):
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
  with pytest.raises(types.InputError, match="up/kernel") as error:
    layout().spec(names, shape, "up/kernel")
  assert message in str(error.value)


def test_boxed_trees_become_shardings_by_path():
  boxed = {"a": nn.LogicallyPartitioned(jnp.ones((4, 8)), ("embed", "mlp")), "b": 1}
  placed = layout().of(boxed)
  assert placed["a"].spec == PartitionSpec("fsdp", "tensor")
  assert placed["b"].is_fully_replicated
  bad = {"deep": {"a": nn.LogicallyPartitioned(jnp.ones(3), ("embed",))}}
  with pytest.raises(types.InputError, match="deep/a"):
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
  with pytest.raises(types.InputError, match="size 12"):
    place.batched(np.zeros((12, 2)))


def test_constrain_places_activations_inside_use_alone():
  x = jnp.ones((8, 4, 8))
  assert sharding.constrain(x, "batch", "length", "act_mlp") is x
  place = layout()

  def fn(x):
    with sharding.use(place):
      return sharding.constrain(x, "batch", "length", "act_mlp")

  assert jax.jit(fn)(x).sharding.spec == PartitionSpec(("data", "fsdp"), None, "tensor")
