"""What compiled programs do, against what they were written to do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from gen_jax.cost import flops
from gen_jax.cost.hlo import cost, program

SHAPE = {"data": 2, "fsdp": 4}


def compiled(fn, *shapes, **options):
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(fn, **options).lower(*args).compile().as_text()


def measured(fn, *shapes):
  return cost.cost(compiled(fn, *shapes))


def chain(x, ws):
  """x times each of ws in turn, [L, n, n]."""
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]


def chains(x, ws):
  return jax.lax.scan(lambda x, _: (chain(x, ws), None), x, length=3)[0]


PRODUCT = 2 * 8 * 16 * 16  # x [8, 16] by w [16, 16]


def test_loops_count_as_often_as_they_run():
  shapes = (8, 16), (5, 16, 16)
  assert measured(chain, *shapes).flops == 5 * PRODUCT
  assert measured(chains, *shapes).flops == 3 * 5 * PRODUCT
  gradient = jax.grad(lambda x, ws: chain(x, ws).sum(), argnums=(0, 1))
  assert measured(gradient, *shapes).flops == 3 * 5 * PRODUCT
  again = jax.value_and_grad(lambda x, ws: jax.checkpoint(chains)(x, ws).sum())
  found = measured(again, *shapes)  # forward, forward again, and to x
  assert found.flops == 3 * 3 * 5 * PRODUCT and not found.open_loops


@pytest.mark.parametrize(
  "first, goes_on, step, times",
  [
    (0, lambda i: i < 7, 1, 7),
    (1, lambda i: i < 8, 2, 4),
    (2, lambda i: i <= 8, 3, 3),
    (9, lambda i: i > 0, -2, 5),
    (5, lambda i: i < 5, 1, 0),
  ],
)
def test_the_length_of_a_loop_is_read_from_its_counter(first, goes_on, step, times):
  def fn(x, w):
    def body(c):
      return (c[0] + step, c[1] @ w)

    return jax.lax.while_loop(lambda c: goes_on(c[0]), body, (first, x))[1]

  text = compiled(fn, (8, 16), (16, 16))
  found = cost.cost(re.sub('"known_trip_count":{[^}]*}', "", text))
  assert found.flops == times * PRODUCT and not found.open_loops


def test_a_loop_that_depends_on_data_is_named():
  def fn(x, w):
    return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x)

  found = measured(fn, (8, 16), (16, 16))
  assert found.flops == PRODUCT and len(found.open_loops) == 1


def test_the_larger_branch_counts():
  def fn(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ w @ w, x)

  assert measured(fn, (8, 16), (16, 16)).flops == 2 * PRODUCT


def products(x, y):
  return jnp.einsum("bqnd,bknd->bnqk", x, y)


def convolution(stride, x, kernel):
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
  )


@pytest.mark.parametrize(
  "fn, shapes",
  [
    (products, [(2, 6, 3, 5), (2, 7, 3, 5)]),
    (functools.partial(convolution, 1), [(2, 8, 8, 3), (3, 3, 3, 4)]),
    (functools.partial(convolution, 2), [(2, 8, 8, 3), (3, 3, 3, 4)]),
  ],
)
def test_products_and_convolutions_agree_with_the_jaxpr(fn, shapes):
  gradient = jax.grad(lambda x, y: jnp.sin(fn(x, y)).sum(), argnums=(0, 1))
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  assert measured(gradient, *shapes).flops == flops.count(gradient, *args)


def test_a_pass_over_memory_reads_and_writes_once():
  assert measured(lambda x: jnp.sin(x) + 1, (64, 64)).hbm_bytes == 2 * 64 * 64 * 4


def test_a_loop_over_slices_reads_each_once():
  """Not the whole array in every turn: that would be 50 times as much."""
  size = 50 * 64 * 64 * 4
  found = measured(lambda xs: jax.lax.map(jnp.sin, xs), (50, 64, 64)).hbm_bytes
  assert 2 * size <= found <= 4 * size


BYTES = 16 * 8 * 4  # of a whole array, float32 [16, 8]


@pytest.mark.parametrize(
  "kind, exchange, rows, axes, wire",
  [
    ("all-gather", "all_gather", "fsdp", ("fsdp",), 3 / 4 * BYTES),
    ("all-gather", "all_gather", "data", ("data",), 1 / 2 * BYTES),
    ("reduce-scatter", "psum_scatter", None, ("fsdp",), 3 / 4 * BYTES),
    ("all-reduce", "psum", None, ("fsdp",), 2 * 3 / 4 * BYTES),
    ("all-reduce", "psum", None, ("data", "fsdp"), 2 * 7 / 8 * BYTES),
    ("all-to-all", "all_to_all", None, ("fsdp",), 3 / 4 * BYTES),
    ("collective-permute", "ppermute", None, ("fsdp",), BYTES),
  ],
)
def test_exchanges_have_kind_size_and_axes(kind, exchange, rows, axes, wire):
  axis = axes if len(axes) > 1 else axes[0]
  mesh = Mesh(np.array(jax.devices()).reshape(2, 4), tuple(SHAPE))
  run = {
    "all_gather": lambda x: jax.lax.all_gather(x, axis, tiled=True),
    "psum": lambda x: jax.lax.psum(x, axis),
    "psum_scatter": lambda x: jax.lax.psum_scatter(x, axis, tiled=True),
    "all_to_all": lambda x: jax.lax.all_to_all(x, axis, 0, 0, tiled=True),
    "ppermute": lambda x: jax.lax.ppermute(x, axis, [(i, i ^ 1) for i in range(4)]),
  }[exchange]

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=PartitionSpec(rows),
    out_specs=PartitionSpec(),
    check_vma=False,
  )
  def three_times(x):
    def body(total, i):
      return (total + run(x + i).sum(), None)

    return jax.lax.scan(body, 0.0, jnp.arange(3.0))[0]

  found = measured(three_times, (16, 8)).collectives
  (exchanged,) = [c for c in found if c.bytes > 4]
  assert (exchanged.kind, exchanged.bytes) == (kind, BYTES)
  assert exchanged.axes(SHAPE) == axes
  assert exchanged.wire_bytes == wire
  assert found[exchanged] == 3


TEMPLATE = """HloModule m, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}}

%{name} (p: bf16[64,32]) -> bf16[16,32] {{
  %p = bf16[64,32]{{1,0:T(8,128)(2,1)S(1)}} parameter(0)
  %r = bf16[64,32]{{1,0}} all-reduce(%p), replica_groups={groups}, to_apply=%sum
  %zero = u32[] constant(0)
  ROOT %s = bf16[16,32]{{1,0}} dynamic-slice(%r, %zero, %zero), \
dynamic_slice_sizes={{16,32}}
}}

ENTRY %main (x: bf16[64,32]) -> bf16[16,32] {{
  %x = bf16[64,32]{{1,0}} parameter(0)
  ROOT %f = bf16[16,32]{{1,0}} fusion(%x), kind=kCustom, calls=%{name}
}}
"""


@pytest.mark.parametrize(
  "groups, axes",
  [
    ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
    ("{{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
    ("[2,4]<=[8]", ("fsdp",)),
    ("[4,2]<=[2,4]T(1,0)", ("data",)),
    ("[1,8]<=[8]", ("data", "fsdp")),
    ("{}", ("data", "fsdp")),
    ("mesh['a'=2,'b'=1,'c'=4] {'a'}", ("data",)),
    ("mesh['a'=2,'b'=1,'c'=4] {'c','a'}", ("data", "fsdp")),
    ("mesh['a'=8] {'a':(2)4}", ("fsdp",)),
    ("mesh['a'=8] {'a':(1)2}", ("data",)),
    ("mesh['a'=4,'b'=2], device_ids=([4,2]<=[2,4]T(1,0)) {'b'}", ("data",)),
    ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", ("fsdp",)),
    ("mesh['a'=2,'b'=4], device_ids=(0,4,1,5,2,6,3,7) {'a'}", ("fsdp",)),
  ],
)
def test_every_spelling_of_groups_names_axes(groups, axes):
  text = TEMPLATE.format(name="fused", groups=groups)
  (found,) = cost.cost(text).collectives
  assert found.axes(SHAPE) == axes and found.kind == "all-reduce"
  sizes = {("data",): 2, ("fsdp",): 4, ("data", "fsdp"): 8}
  # [4, 2] by columns: groups of four lie across both axes' order.
  assert found.group_size in (sizes[axes], 2)


def test_tpu_spelling_of_a_reduce_scatter():
  text = TEMPLATE.format(name="all-reduce-scatter.clone", groups="[2,4]<=[8]")
  found = cost.cost(text)
  ((exchanged, times),) = found.collectives.items()
  assert (exchanged.kind, exchanged.bytes, times) == ("reduce-scatter", 64 * 32 * 2, 1)
  assert found.hbm_bytes == (64 + 16) * 32 * 2


CONVOLUTION = """HloModule m

ENTRY %main (x: bf16[4,6,5], y: bf16[4,7,5]) -> bf16[4,6,7] {{
  %x = bf16[{left}]{{0}} parameter(0)
  %y = bf16[{right}]{{0}} parameter(1)
  ROOT %z = bf16[{out}]{{0}} convolution(%x, %y), window={{{window}}}, \
dim_labels={labels}
}}
"""


@pytest.mark.parametrize(
  "left, right, out, window, labels, expected",
  [
    # 4 products of [6, 5] by [5, 7]: the batch as a window with holes in between.
    ("4,6,5", "4,7,5", "4,6,7", "size=4 stride=3 lhs_dilate=4", "0bf_0oi->0bf", 4),
    (
      *("4,6,5", "4,7,5", "4,6,7"),
      *("size=4 stride=4 pad=3_3 lhs_dilate=3 rhs_reversal=1", "0bf_0oi->0bf", 4),
    ),
    # [6, 5] by [5, (4, 7)]: an output axis as a window over padding.
    ("1,6,5", "4,7,5", "4,6,7", "size=4 pad=3_3 rhs_reversal=1", "0bf_0oi->0bf", 4),
    # [6, (4, 5)] by [(4, 5), 7]: a contracted axis as the window.
    ("4,6,5", "4,7,5", "1,6,7", "size=4", "0bf_0oi->0bf", 4),
  ],
)
def test_tpu_spellings_of_products(left, right, out, window, labels, expected):
  text = CONVOLUTION.format(
    left=left, right=right, out=out, window=window, labels=labels
  )
  assert cost.cost(text).flops == expected * 2 * 6 * 5 * 7


def test_fused_asynchronous_collectives_count_once():
  gather = (
    "bf16[64,32]{1,0} all-gather(%p), channel_id=8, replica_groups=[2,4]<=[8],"
    ' dimensions={0}, frontend_attributes={chain_id="0"}'
  )
  text = f"""HloModule m, num_partitions=8

%start (p: bf16[16,32]) -> (bf16[16,32], bf16[64,32]) {{
  %p = bf16[16,32]{{1,0}} parameter(0)
  %g = {gather}
  ROOT %s = (bf16[16,32]{{1,0}}, bf16[64,32]{{1,0}}) custom-call(%g), \
custom_call_target="AsyncCollectiveStart"
}}

%done (p: bf16[16,32], q: bf16[64,32]) -> bf16[64,32] {{
  %p = bf16[16,32]{{1,0}} parameter(0)
  %q = bf16[64,32]{{1,0}} parameter(1)
  %g = {gather}
  ROOT %d = bf16[64,32]{{1,0}} custom-call(%p, %q, %g), \
custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (x: bf16[16,32]) -> bf16[64,32] {{
  %x = bf16[16,32]{{1,0}} parameter(0)
  %a = (bf16[16,32]{{1,0}}, bf16[64,32]{{1,0}}) fusion(%x), kind=kCustom, calls=%start
  %b = bf16[16,32]{{1,0}} get-tuple-element(%a), index=0
  %c = bf16[64,32]{{1,0}} get-tuple-element(%a), index=1
  ROOT %e = bf16[64,32]{{1,0}} fusion(%b, %c), kind=kCustom, calls=%done
}}
"""
  found = cost.cost(text)
  ((exchanged, times),) = found.collectives.items()
  assert (exchanged.kind, exchanged.bytes, times) == ("all-gather", 64 * 32 * 2, 1)
  assert found.hbm_bytes == (16 + 64) * 32 * 2


def test_what_another_core_gathers_meanwhile_counts_once():
  """As programs for TPU7x have it: a call that starts, and later is done."""
  text = """HloModule m, num_partitions=8

%called (p: bf16[16,32], t: token[]) -> bf16[64,32] {
  %p = bf16[16,32]{1,0} parameter(0)
  %t = token[] parameter(1)
  ROOT %g = bf16[64,32]{1,0} all-gather(%p), channel_id=1, \
replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (x: bf16[16,32]) -> bf16[64,32] {
  %x = bf16[16,32]{1,0} parameter(0)
  %t = token[] after-all()
  %s = ((bf16[16,32]{1,0}, token[]), bf16[64,32]{1,0}) call-start(%x, %t), \
async_execution_thread="sparsecore", to_apply=%called
  ROOT %d = bf16[64,32]{1,0} call-done(%s)
}
"""
  found = cost.cost(text)
  ((exchanged, times),) = found.collectives.items()
  assert (exchanged.kind, exchanged.bytes, times) == ("all-gather", 64 * 32 * 2, 1)
  assert found.hbm_bytes == (16 + 64) * 32 * 2


@pytest.mark.parametrize(
  "array, size",
  [("bf16[3,5]", 30), ("s4[3]", 2), ("pred[7]", 7), ("f8e4m3fn[9]", 9), ("f32[]", 4)],
)
def test_bytes_of_arrays(array, size):
  text = f"HloModule m\n\nENTRY %m () -> x {{\n  ROOT %p = {array} iota()\n}}\n"
  assert program.parse(text).computations["m"].root.shapes[0].bytes == size


@pytest.mark.parametrize(
  "attributes, expected", [("", 84), ("frontend_attributes={kernel_metadata={}}, ", 0)]
)
def test_the_compiler_knows_its_own_kernels_and_pallas_its(attributes, expected):
  text = (
    "HloModule m\n\nENTRY %main (x: f32[4,6]) -> f32[4,6] {\n"
    "  %x = f32[4,6]{1,0} parameter(0)\n"
    '  ROOT %y = f32[4,6]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", '
    f'{attributes}backend_config={{"cost_estimate":{{"flops":"84"}}}}\n}}\n'
  )
  assert cost.cost(text).flops == expected


@pytest.mark.parametrize("maker, expected", [("multiply", 2 * 6 * 7), ("add", 0)])
def test_a_product_with_one_row_is_a_sum_of_products(maker, expected):
  """A sum of anything else, say of parts of a product, is no product itself."""
  text = (
    "HloModule m\n\nENTRY %main (x: f32[6,7], y: f32[6,7], zero: f32[]) -> f32[7] {\n"
    "  %x = f32[6,7]{1,0} parameter(0)\n  %y = f32[6,7]{1,0} parameter(1)\n"
    f"  %zero = f32[] parameter(2)\n  %xy = f32[6,7]{{1,0}} {maker}(%x, %y)\n"
    "  ROOT %sum = f32[7]{0} reduce(%xy, %zero), dimensions={0}, to_apply=%add, "
    'metadata={op_name="jit(f)/dot_general" stack_frame_id=1}\n}\n'
  )
  assert cost.cost(text).flops == expected
