"""Sharding: meshes, partition specs and rules; no other file uses them.

Models name their axes ('embed', 'mlp', 'batch', ...); a preset maps each name to a mesh
axis. The mesh always has the axes of MESH_AXES, all of size 1 on a laptop: one code
path from one CPU to a pod.

    preset        parameters                    activations
    dp            replicated                    batch over data and fsdp
    fsdp          embed, conv_out over fsdp     batch over data and fsdp
    fsdp_tensor   as fsdp; heads, mlp, vocab    batch over data and fsdp; heads, mlp
                  over tensor                   and vocab over tensor

All of them shard the sequence length over context. Weights sharded over fsdp are
gathered for their use, see `gathering`; over tensor they stay sharded.

Unknown names, two dimensions on one mesh axis, and sizes that do not divide raise
`InputError` with the array's path. A single head is replicated.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gen_jax import collectives, ranges, tree
from gen_jax.types import Array, Batch, InputError, PyTree, unknown

# Devices along an axis of the mesh; -1: all that are left.
Axis = Annotated[int, ranges.Range(-1, 2**20, without=(0,))]
MESH_AXES = ("data", "fsdp", "tensor", "context")
_BATCH = ("data", "fsdp")
_HEADS = ("heads", "kv_heads", "act_heads")

_DP = {
  # Activations.
  "batch": _BATCH,
  "length": "context",
  "act_embed": None,
  "act_heads": None,
  "act_mlp": None,
  "act_vocab": None,
  "space": None,  # height or width of an image
  "act_channels": None,
  # Parameters.
  "layers": None,  # of a scan over layers
  "vocab": None,
  "position": None,
  "embed": None,
  "heads": None,
  "kv_heads": None,
  "head_dim": None,
  "mlp": None,
  "norm": None,
  "window": None,  # height or width of a convolution kernel
  "conv_in": None,
  "conv_out": None,
  "image": None,  # channels of the image itself: 1, 3, 4
}
_FSDP = {**_DP, "embed": "fsdp", "conv_out": "fsdp"}
_WIDE = ("vocab", "heads", "kv_heads", "mlp", "act_heads", "act_mlp", "act_vocab")
Rule = str | tuple[str, ...] | None
PRESETS: Mapping[str, Mapping[str, Rule]] = {
  "dp": _DP,
  "fsdp": _FSDP,
  "fsdp_tensor": _FSDP | dict.fromkeys(_WIDE, "tensor"),
}

Names = Sequence[str | None]


def _axes(rule: Rule) -> tuple[str, ...]:
  """The mesh axes of a rule."""
  return (rule,) if isinstance(rule, str) else rule or ()


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh and the rules that map axis names to it."""

  mesh: Mesh
  rules: Mapping[str, Rule]

  def spec(self, names: Names, shape: Sequence[int], path: str) -> PartitionSpec:
    """The partition spec of an array; raises InputError, see the module."""
    if len(names) != len(shape):
      raise InputError(f"{path}: axis names {tuple(names)} do not fit shape {shape}")
    used: dict[str, str | None] = {}
    entries = []
    for name, length in zip(names, shape, strict=True):
      if name is not None and name not in self.rules:
        raise unknown(f"logical axis (of {path})", name, self.rules)
      is_whole = length == 1 and name in _HEADS
      axes = _axes(None if name is None or is_whole else self.rules[name])
      for axis in axes:
        if axis in used:
          raise InputError(
            f"{path}: axes {used[axis]!r} and {name!r} both claim mesh axis {axis!r};"
            " change one of the two rules"
          )
        used[axis] = name
      shards = self._size(axes)
      if length % shards:
        raise InputError(
          f"{path}: axis {name!r} of size {length} must be divisible by"
          f" {'x'.join(axes)}={shards}; change the size or the mesh"
        )
      entries.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*entries)

  def named(self, names: Names, shape: Sequence[int], path: str) -> NamedSharding:
    """`spec` on this layout's mesh."""
    return NamedSharding(self.mesh, self.spec(names, shape, path))

  def gathered(self, names: Names) -> dict[int, str]:
    """{dimension: mesh axis} of a weight's dimensions on a mesh axis of the batch."""
    return {
      dim: axis
      for dim, name in enumerate(names)
      for axis in _axes(self.rules[name] if name is not None else None)
      if axis in _BATCH and self.mesh.shape[axis] > 1
    }

  def _size(self, axes: Sequence[str]) -> int:
    return math.prod(self.mesh.shape[axis] for axis in axes)

  @property
  def on_cpu(self) -> bool:
    """Whether this is a mesh of CPUs, which some programs are specialised for."""
    return self.mesh.devices.flat[0].platform == "cpu"

  @property
  def replicated(self) -> NamedSharding:
    """Sharding of a value that is the same on every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def num_batch_shards(self) -> int:
    """Number of shards of the batch axis."""
    return self._size(_BATCH)

  def batched(self, x: jax.ShapeDtypeStruct | Array | np.ndarray) -> NamedSharding:
    """Sharding of the leading axis over the batch axes."""
    return self.named(("batch",) + (None,) * (x.ndim - 1), x.shape, "batch")

  def spread(self, batch: PyTree) -> PyTree:
    """Shards arrays [B, ...] as `batched` if B divides, else leaves them unchanged."""

    def one(x):
      fits = x.shape[0] % self.num_batch_shards == 0
      # Compiled: `device_put` cannot place keys on other processes' devices.
      return jax.jit(jnp.copy, out_shardings=self.batched(x))(x) if fits else x

    return jax.tree.map(one, batch)

  def of(self, boxed: PyTree) -> PyTree:
    """Shardings for a tree whose leaves may carry linen's logical axis names."""

    def place(path, leaf):
      if nn.meta.is_axis_metadata(leaf):
        return self.named(leaf.names, leaf.value.shape, tree.path_str(path))
      return self.replicated

    return jax.tree.map_with_path(place, boxed, is_leaf=nn.meta.is_axis_metadata)

  def local_rows(self, batch_size: int) -> slice:
    """The rows of a global batch that this process must provide, see `_block`."""
    sharding = self.batched(jax.ShapeDtypeStruct((batch_size,), np.int32))
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    return _block([at[0] for at in places if at is not None], batch_size)

  def put(self, batch: dict[str, np.ndarray], batch_size: int) -> Batch:
    """Makes global arrays [batch_size, ...] from this process's `local_rows`."""
    first = self.local_rows(batch_size).start

    def one(x):
      shape = (batch_size, *x.shape[1:])
      sharding = self.batched(jax.ShapeDtypeStruct(shape, x.dtype))

      def piece(index):
        start, stop, _ = index[0].indices(batch_size)
        return x[start - first : stop - first]

      return jax.make_array_from_callback(shape, sharding, piece)

    return jax.tree.map(one, batch)


def _block(rows: Sequence[slice], size: int) -> slice:
  """The smallest of the equal blocks of size / 1, size / 2, ... that holds all `rows`.

  On most meshes a process's rows are such a block. If the device order scatters them,
  the block also holds rows of other processes, up to the whole batch.

  >>> _block([slice(4, 6), slice(6, 8)], 8), _block([slice(2, 4), slice(4, 6)], 8)
  (slice(4, 8, None), slice(0, 8, None))
  """
  starts, stops, _ = zip(*(row.indices(size) for row in rows), strict=True)
  low, high = min(starts), max(stops)
  widths = (w for w in range(high - low, size + 1) if size % w == 0)
  width = next(w for w in widths if low // w == (high - 1) // w)
  return slice(low // width * width, (low // width + 1) * width)


@ranges.checked
def make_layout(
  data: Axis = -1,
  fsdp: Axis = 1,
  tensor: Axis = 1,
  context: Axis = 1,
  rules: str = "fsdp",
  devices=None,
) -> Layout:
  """Builds the mesh; -1 takes all devices that are left.

  Raises:
    InputError: sizes that do not multiply out to the devices, or an unknown preset.
  """
  devices = jax.devices() if devices is None else devices
  if rules not in PRESETS:
    raise unknown("sharding preset", rules, PRESETS)
  sizes = dict(zip(MESH_AXES, (data, fsdp, tensor, context), strict=True))
  asked = " x ".join(f"{k}={v}" for k, v in sizes.items())
  fixed = [size for size in sizes.values() if size != -1]
  if len(fixed) < len(sizes) - 1:
    raise InputError(f"mesh {asked}: sizes must be positive, at most one of them -1")
  rest = len(devices) // math.prod(fixed)
  filled = [rest if size == -1 else size for size in sizes.values()]
  if math.prod(filled) != len(devices):
    raise InputError(
      f"mesh {asked} does not match {len(devices)} device(s): the sizes must multiply"
      " to that number; -1 takes all that are left"
    )
  grid = _arrange(filled, devices)
  mesh = Mesh(grid, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * grid.ndim)
  return Layout(mesh, PRESETS[rules])


def _arrange(sizes: list[int], devices: Sequence[jax.Device]) -> np.ndarray:
  """Devices as a grid whose axes follow the physical topology.

  Several slices, joined by a slower network, are split along data only.

  Raises:
    InputError: data is not a multiple of the number of slices.
  """
  split = {"allow_split_physical_axes": True}
  num_slices = len({getattr(d, "slice_index", 0) for d in devices})
  if num_slices == 1:
    return mesh_utils.create_device_mesh(sizes, devices, **split)
  if sizes[0] % num_slices:
    raise InputError(
      f"mesh data={sizes[0]} must be a multiple of {num_slices}, the number of slices"
    )
  inside = [sizes[0] // num_slices, *sizes[1:]]
  across = [num_slices] + [1] * (len(sizes) - 1)
  return mesh_utils.create_hybrid_device_mesh(inside, across, devices, **split)


_CURRENT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar(
  "layout", default=None
)


@contextlib.contextmanager
def use(layout: Layout | None):
  """Makes `layout` the current one within this context (at trace time)."""
  token = _CURRENT.set(layout)
  try:
    yield
  finally:
    _CURRENT.reset(token)


def constrain(x: Array, *names: str | None) -> Array:
  """Constrains activation x to the current layout; the identity without one."""
  layout = _CURRENT.get()
  if layout is None:
    return x
  sharding = layout.named(names, x.shape, f"activation {names}")
  return jax.lax.with_sharding_constraint(x, sharding)


def require(platform: str, what: str) -> None:
  """Raises InputError if the current layout is of another platform."""
  layout = _CURRENT.get()
  here = platform if layout is None else layout.mesh.devices.flat[0].platform
  if here != platform:
    raise InputError(
      f"{what} runs on a {platform} only, and this mesh is of {here}s; use chunked or"
      " xla"
    )


def local(fn: Callable[..., Array], *inputs: Names) -> Callable[..., Array]:
  """fn applied to each device's shards of its arguments; fn itself without a layout.

  For what the compiler cannot partition: kernels and explicit collectives.

  Args:
    fn: of arrays (or None), to an array of the shape of the first one.
    inputs: axis names of the arrays.
  """
  layout = _CURRENT.get()
  if layout is None:
    return fn

  def run(*args):
    specs = tuple(
      PartitionSpec() if x is None else layout.spec(names, x.shape, f"array {names}")
      for x, names in zip(args, inputs, strict=True)
    )
    return jax.shard_map(
      fn, mesh=layout.mesh, in_specs=specs, out_specs=specs[0], check_vma=False
    )(*args)

  return run


def ring(name: str) -> collectives.Ring:
  """The ring of devices over which a named axis is sharded; of size 1 if it is not.

  Raises:
    ValueError: it is sharded over several mesh axes.
  """
  layout = _CURRENT.get()
  if layout is None or not (axes := _axes(layout.rules[name])):
    return collectives.Ring(None, 1)
  if len(axes) > 1:
    raise ValueError(f"axis {name!r} is sharded over {axes}: no ring")
  return collectives.Ring(axes[0], layout.mesh.shape[axes[0]])


def gathering(
  fn: Callable[..., PyTree], names: Names, has_length: bool = False
) -> Callable[..., PyTree]:
  """fn(weight, *rows) on each device's rows, with the weight all-gathered.

  Explicit, because the compiler would all-reduce gradients and discard most of the
  result. The weight is sent in its dtype: cast it before. Sharding over tensor is kept
  and left to the compiler.

  The gathered weight has one copy per shard of the rows, [shards, ...], so that its
  gradient stays per shard until the reduce-scatter. Gather and fn are separate
  shard_maps: in one, a collective would be made whole over tensor.

  Args:
    fn: (weight, arrays [B, ...]) -> tree of arrays [B, ...].
    names: of the weight's axes.
    has_length: rows and results are [B, T, ...] and fn is independent over T, which may
      then be sharded over context.
  """
  layout = _CURRENT.get()
  if layout is None:
    return fn
  cut = layout.gathered(names)
  batch = tuple(axis for axis in _BATCH if layout.mesh.shape[axis] > 1)
  context = layout.mesh.shape["context"]
  manual = functools.partial(jax.shard_map, mesh=layout.mesh, check_vma=False)

  def gather(piece):
    for dim, axis in cut.items():
      piece = collectives.gather(piece, dim, axis)
    return piece[None]

  def apply(copy, *rows):
    with use(None):
      return fn(copy[0], *rows)

  def run(weight, *rows):
    is_long = has_length and context > 1 and rows[0].shape[1] % context == 0
    same_for_all = rows[0].shape[0] % layout.num_batch_shards
    if same_for_all or not (cut or is_long):
      return fn(weight, *rows)
    shards = (*batch, "context") if is_long else batch
    at = PartitionSpec(batch, "context" if is_long else None)
    own = layout.spec(names, weight.shape, f"weight {names}")
    kept = [None if dim in cut else axis for dim, axis in enumerate(own)]
    # Manual over no other axis: over one that does not shard it, it would be summed.
    over = {*shards, *filter(None, kept)}
    to = PartitionSpec(shards, *kept)
    copies = manual(gather, in_specs=own, out_specs=to, axis_names=over)(weight)
    specs = PartitionSpec(shards), *[at] * len(rows)
    local = manual(apply, in_specs=specs, out_specs=at, axis_names=set(shards))
    return local(copies, *rows)

  return run


unbox = nn.meta.unbox  # drops linen's axis names: plain nested dicts of arrays
