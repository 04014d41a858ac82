"""Plans of small models for real slices of TPUs, compiled by the real compiler."""

import collections
import pathlib

import jax
import numpy as np
import pytest

from gen_jax import experiment as experiments
from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.cost import chips, plan
from gen_jax.system import memory

ROOT = pathlib.Path(__file__).parents[2]
WIDTH, LENGTH, ROWS, VOCAB = 256, 128, 16, 512
LONG = pytest.mark.long


def make(topology, spec, overrides):
  config = config_files.load(str(ROOT / "configs" / spec))
  config = overriding.apply(config, [(k, str(v)) for k, v in overrides.items()])
  return experiments.make(config, None, devices=topology.devices)


def text(topology, *overrides):
  """A small transformer on a slice."""
  given = {
    "task.model.width": WIDTH,
    "task.model.max_length": LENGTH,
    "task.model.vocab_size": VOCAB,
    "data.length": LENGTH,
    "data.batch_size": ROWS,
    "mesh.data": 1,
    "mesh.fsdp": -1,
    **dict(overrides),
  }
  return make(topology, "lm/gpt2.py:124m,smoke", given)


@pytest.fixture(scope="module")
def small():
  return chips.topology("v5e:2x4")


def deep(topology, layers, scanned):
  """`text` of some layers, each computed again in the backward pass."""
  return text(
    topology,
    ("task.model.num_layers", layers),
    ("task.model.scan_layers", scanned),
    ("task.model.remat", "full"),
  )


def quick(experiment):
  """Its training step, compiled."""
  return plan.compile(plan.training(experiment), plan.QUICK)


@pytest.fixture(scope="module")
def depths(small):
  """Costs by (layers, scanned)."""
  shapes = (1, False), (2, False), (3, False), (3, True)
  return {shape: quick(deep(small, *shape)) for shape in shapes}


@pytest.mark.long
def test_a_quick_plan_has_the_flops_and_exchanges_of_a_slow_one(depths, small):
  """Of matrices, as many; in float32, which a slow one casts to bfloat16 first."""
  slow = plan.compile(plan.training(deep(small, 1, False))).cost
  fast = depths[1, False].cost

  def exchanges(cost):
    found = collections.Counter()
    for c, times in cost.collectives.items():
      found[c.kind] += times * (c.bytes >= 2 * WIDTH**2)
    return found

  assert fast.flops == slow.flops
  assert exchanges(fast) == exchanges(slow)


def test_compiled_flops_are_those_of_the_formula(depths):
  """6 (12 L D^2 + V D) + 12 L T D a token; remat repeats all of a layer but its end.

  The last product of a layer, 4 D^2 of 12, is needed by nothing that is repeated.
  """
  for (layers, _), program in depths.items():
    matrices = 12 * layers * WIDTH**2
    attention = 12 * layers * LENGTH * WIDTH
    model = 6 * (matrices + VOCAB * WIDTH) + attention
    again = 2 * matrices * 8 / 12 + attention / 3
    tokens = ROWS * LENGTH
    assert program.model_flops["mfu"] == tokens * model
    devices = 8
    compiled = program.cost.flops * devices
    assert compiled == pytest.approx(tokens * (model + again), rel=0.03)
    assert not program.cost.open_loops


@pytest.mark.parametrize("what", ["flops", "wire_bytes"])
def test_two_depths_tell_a_third(depths, what):
  """a + b L from one and two layers, against three; and scanned against in a row."""

  def measure(program):
    if what == "flops":
      return program.cost.flops
    return sum(c.wire_bytes * n for c, n in program.cost.collectives.items())

  one, two, three = (measure(depths[n, False]) for n in (1, 2, 3))
  assert two + (two - one) == pytest.approx(three, rel=0.01)
  if what == "flops":
    assert measure(depths[3, True]) == pytest.approx(three, rel=0.01)


def exchanged(program, mesh):
  """{kind: bytes of whole arrays} along each axis that is cut; along two, vectors."""
  sums = {axis: collections.Counter() for axis, size in mesh.items() if size > 1}
  for c, times in program.cost.collectives.items():
    axes = c.axes(mesh)
    if len(axes) > 1:
      assert c.kind == "all-reduce" and c.bytes <= 16 * WIDTH * 4
    else:
      sums[axes[0]][c.kind] += c.bytes * times
  return sums


def test_fsdp_scatters_gradients_and_reduces_no_matrix_whole(depths):
  """3 layers of 12 D^2 weights in float32; all-reduces are of norms and biases.

  Permutations move what a scatter pads.
  """
  (found,) = exchanged(depths[3, True], {"data": 1, "fsdp": 8, "tensor": 1}).values()
  layers = 3 * 12 * WIDTH**2 * 4
  once = layers + (VOCAB + LENGTH) * WIDTH * 4
  twice = VOCAB * WIDTH * 4  # the table of tokens is the head as well
  assert once <= found["reduce-scatter"] <= 1.01 * (once + twice)
  assert found["all-gather"] <= once + layers + twice
  rest = sum(found.values()) - found["reduce-scatter"] - found["all-gather"]
  assert rest <= 0.02 * layers and "all-to-all" not in found


def cut(topology, **mesh):
  """`text` of two layers, weights over fsdp and tensor."""
  overrides = {
    **{f"mesh.{axis}": size for axis, size in mesh.items()},
    "mesh.rules": "fsdp_tensor",
    "task.model.num_layers": 2,
    "task.model.num_heads": 8,
  }
  return text(topology, *overrides.items())


def test_tensor_sums_activations_twice_a_layer_each_way(small):
  """And once for the table of tokens, once for the head; no weight travels.

  What is gathered are the best scores of each part of the vocabulary.
  Source: Shoeybi et al. 2019 (arXiv:1909.08053) section 3.
  """
  program = quick(cut(small, fsdp=1, tensor=8))
  (found,) = exchanged(program, {"data": 1, "fsdp": 1, "tensor": 8}).values()
  activation = ROWS * LENGTH * WIDTH * 4
  sums = 2 * (2 + 2) + 2
  assert found["all-reduce"] == pytest.approx(sums * activation, rel=0.02)
  assert found.pop("all-gather", 0.0) <= 2 * ROWS * LENGTH * 8 * 4
  assert found.keys() == {"all-reduce"}


@pytest.mark.parametrize("data, fsdp", [pytest.param(1, 4, marks=LONG), (2, 2)])
def test_fsdp_and_tensor_exchange_each_what_they_do_alone(small, data, fsdp):
  """Over fsdp a device's part of the weights; over tensor its rows of activations.

  Over data its piece of the gradients. Positions lie whole over tensor. FLOPs do not
  depend on the mesh.
  """
  mesh = {"data": data, "fsdp": fsdp, "tensor": 2}
  program = quick(cut(small, **mesh))
  found = exchanged(program, mesh)
  sums, table = 2 * (2 + 2) + 2, VOCAB * WIDTH * 4 / 2
  layers = 2 * 12 * WIDTH**2 * 4 / 2
  once = layers + table + LENGTH * WIDTH * 4
  for kind in ("all-gather", "reduce-scatter"):  # of the table, which is used twice
    assert once <= found["fsdp"].pop(kind) <= 1.01 * (once + table)
  assert found["fsdp"].keys() <= {"all-reduce", "collective-permute"}
  assert found["fsdp"].total() <= 0.02 * layers  # norms and biases
  activation = ROWS // 4 * LENGTH * WIDTH * 4
  assert found["tensor"].pop("all-reduce") == pytest.approx(sums * activation, rel=0.02)
  assert found["tensor"].pop("all-gather", 0) <= 2 * ROWS // 4 * LENGTH * 2 * 4
  assert not found["tensor"]
  if data > 1:
    assert found["data"].keys() == {"all-reduce"}
    assert found["data"]["all-reduce"] == pytest.approx(once / fsdp, rel=0.02)
  matrices = 12 * 2 * WIDTH**2 + VOCAB * WIDTH
  tokens = ROWS * LENGTH
  assert program.matrix_flops == tokens * (6 * matrices + 12 * 2 * LENGTH * WIDTH)


@pytest.mark.parametrize(
  "fsdp, context, chunk", [(4, 2, None), pytest.param(1, 8, LENGTH // 4, marks=LONG)]
)
def test_context_turns_keys_and_sums_pieces_of_gradients(small, fsdp, context, chunk):
  """Over fsdp what it exchanges alone; over context gradients as fsdp leaves them.

  Keys and values go round forwards and once more with their gradients, which also
  come home; numbers of slots are few.
  """
  overrides = {
    "mesh.fsdp": fsdp,
    "mesh.context": context,
    "task.model.num_layers": 2,
    "task.model.attention_impl": "ring",
    "task.model.head_chunk": chunk,
  }
  mesh = {"data": 1, "fsdp": fsdp, "tensor": 1, "context": context}
  found = exchanged(quick(text(small, *overrides.items())), mesh)
  layers, table = 2 * 12 * WIDTH**2 * 4, VOCAB * WIDTH * 4
  once = layers + table + LENGTH * WIDTH * 4
  assert once <= found["context"].pop("all-reduce") * fsdp <= 1.02 * (once + table)
  keys = 2 * ROWS * LENGTH * WIDTH * 4 / 8  # and values, on each device
  turns = found["context"].pop("collective-permute") / (2 * keys)
  assert turns == pytest.approx(2 * (context - 1) + context, rel=0.01)
  assert not found["context"]
  if fsdp > 1:
    for kind in ("all-gather", "reduce-scatter"):  # of the table, which is used twice
      assert once <= found["fsdp"].pop(kind) <= 1.01 * (once + table)
    assert found["fsdp"].total() <= 0.02 * layers  # norms and biases
    assert "all-to-all" not in found["fsdp"]


def test_splash_beside_context_gathers_keys_and_scatters_their_gradients(small):
  mesh = {"data": 1, "fsdp": 4, "tensor": 1, "context": 2}
  length, layers = 2 * LENGTH, 2
  overrides = {
    **{f"mesh.{axis}": size for axis, size in mesh.items()},
    "task.model.num_layers": layers,
    "task.model.attention_impl": "splash",
    "task.model.max_length": length,
    "data.length": length,
  }
  found = exchanged(quick(text(small, *overrides.items())), mesh)["context"]
  weights = layers * 12 * WIDTH**2 + (VOCAB + length) * WIDTH
  assert found.pop("all-reduce") == pytest.approx(weights, rel=0.02)  # 4 bytes, 4 parts
  keys = layers * 2 * ROWS // 4 * length * WIDTH * 4  # and values
  assert found == {"all-gather": keys, "reduce-scatter": keys}


@pytest.mark.long
def test_attention_in_the_compilers_own_kernel_is_counted():
  """All that is traced, and once more the scores that a gradient needs: 2 S^2 D a row.

  The kernel makes its own, forwards and where a block is computed again. With less
  than eight rows a device the compiler cuts images too, into pieces that overlap.
  """
  topology, rows, side, width = chips.topology("v5e:2x2"), 32, 16, 32
  overrides = {
    "data.batch_size": rows,
    "data.image_size": side,
    "task.network.width": width,
    "task.network.multipliers": (1,),
    "task.network.attention_levels": (0,),
    "task.network.remat": "full",
  }
  experiment = make(topology, "diffusion/stable_diffusion.py:v1,smoke", overrides)
  program = quick(experiment)
  scores = 4 * rows * 2 * side**4 * width  # of four blocks
  compiled = program.cost.flops * len(topology.devices)
  assert compiled == pytest.approx(program.matrix_flops + scores, rel=1e-3)


def test_products_with_one_row_are_counted_as_such(small):
  """TPU programs have sums in their place, and one row on each device is all there is.

  Weights 12 L D^2 + V D and keys and values 2 L D S, twice, for each of max_tokens.
  """
  num_tokens, layers = 8, 2
  overrides = ("sampling.max_tokens", num_tokens), ("task.model.num_layers", layers)
  program = plan.compile(plan.sampling(text(small, *overrides)), plan.QUICK)
  work = 12 * layers * WIDTH**2 + VOCAB * WIDTH + 2 * layers * WIDTH * LENGTH
  assert program.matrix_flops == 8 * num_tokens * 2 * work
  assert program.cost.flops == num_tokens * 2 * work and not program.cost.open_loops


def test_state_lies_in_shards(depths, small):
  """12 bytes a parameter over 8 chips, but for norms and biases; memory fits."""
  program = depths[3, True]
  held = sum(memory.bytes_per_device(x) for x in program.held.values())
  params = sum(x.size for x in jax.tree.leaves(program.held["parameters"]))
  assert 12 * params / 8 <= held <= 12 * params / 8 * 1.2
  assert held <= program.peak_hbm_bytes < small.chip.hbm_bytes


@pytest.mark.parametrize(
  "text, expected",
  [
    ("Used 25.30G of 15.75G hbm. Exceeded hbm capacity", (25.3, 15.75)),
    ("HLO temporaries (3.12T) exceeds available HBM (95.74G).", (3.12 * 2**10, 95.74)),
  ],
)
def test_the_compilers_complaints_are_understood(text, expected):
  assert np.array(plan.out_of_memory(text)) / chips.GIB == pytest.approx(expected)
  assert plan.out_of_memory("some other error") is None
