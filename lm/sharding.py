"""Places arrays on devices: a mesh, and a strict table from paths to axes.

A model names the dimensions of its parameters once, in `Model.axes`, and rules
of the config map those names to mesh axes. The arithmetic of a model mentions
no device; `constrain` fixes the layout of activations in a few places.
"""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from lm import tree, types

# From the slowest links to the fastest. Replicas and pipeline stages
# communicate least, and parts of a tensor in every layer.
AXES = ('data', 'stage', 'fsdp', 'expert', 'sequence', 'tensor')
BATCH = ('data', 'fsdp', 'expert')  # the axes that split the rows of a batch

# The mesh axes that activations are split over. Parameters follow the rules of
# the config; activations always follow the batch, or every layer would have to
# move them.
_ACTIVATIONS = {
  'batch': BATCH,
  'length': ('sequence',),
  'heads': ('tensor',),
  'vocab': ('tensor',),
  'stage': ('stage',),
}

# The logical axis of a dimension that grows with the width and is never cut.
WHOLE = 'features'

Table = Sequence[tuple[str, tuple[str | None, ...]]]


def make_mesh(
  *,
  data: int | None = None,
  stage: int = 1,
  fsdp: int = 1,
  expert: int = 1,
  sequence: int = 1,
  tensor: int = 1,
  slices: int = 1,
  devices: Sequence[Any] | None = None,
) -> jax.sharding.Mesh:
  """Makes the device mesh.

  Args:
    data: number of replicas; None takes all devices that the other axes leave.
    stage: number of pipeline stages, each with a run of layers (GPipe).
    fsdp: number of parts that parameters, optimizer state and the rows of a
      batch are cut into (ZeRO-3).
    expert: number of parts that experts are dealt to; for the rest of the model
      this axis cuts the rows of a batch, as `fsdp` does.
    sequence: number of parts that the positions of a text are cut into.
    tensor: number of parts that heads, mlp and vocabulary are cut into
      (Megatron).
    slices: number of groups of devices with slow links between them; `data` is
      cut over these first.
    devices: None takes all devices.

  Raises:
    ValueError: the product of the axes is not the number of devices, or `data`
      does not divide over the slices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = {
    'stage': stage,
    'fsdp': fsdp,
    'expert': expert,
    'sequence': sequence,
    'tensor': tensor,
  }
  if data is None:
    # At least 1, so that the error below names the axes that are too large.
    data = max(len(devices) // math.prod(sizes.values()), 1)
  sizes = {'data': data, **sizes}
  asked = ' '.join(f'{k}={n}' for k, n in sizes.items() if k == 'data' or n > 1)
  if math.prod(sizes.values()) != len(devices):
    raise ValueError(
      f'mesh {asked} needs {math.prod(sizes.values())} devices and there are '
      f'{len(devices)}: change mesh.*'
    )
  if data % slices:
    raise ValueError(
      f'mesh {asked}: data={data} does not divide over slices={slices}, and no '
      'other axis may cross slow links: change mesh.*'
    )
  shape = tuple(sizes[name] for name in AXES)
  # `allow_split_physical_axes`: an axis of 16 may lie along two axes of a torus
  # of 4 x 4 x 4, which has none of that length.
  if slices == 1 or not hasattr(devices[0], 'slice_index'):
    # `data` is the outermost axis, so simulated slices are runs of neighbours.
    placed = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  else:
    # The first shape lies within a slice, the second across slices: only `data`
    # crosses the slow links.
    placed = mesh_utils.create_hybrid_device_mesh(
      (data // slices, *shape[1:]),
      (slices, *(1 for _ in shape[1:])),
      devices,
      allow_split_physical_axes=True,
    )
  # Linen does not accept Explicit axes, which are jax's default.
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.sharding.Mesh(placed, AXES, axis_types=auto)


def shardings(
  state: Any,
  *,
  mesh: jax.sharding.Mesh,
  axes: Table,
  rules: Mapping[str, str | Sequence[str] | None],
) -> Any:
  """Chooses a NamedSharding for every leaf of a tree, by its path.

  The first row of `axes` whose regex is found in a path names the last
  dimensions of that leaf. One more dimension before them is that of scanned
  layers, called 'layers'. Rows match optimizer state too, since its paths
  contain those of the parameters. Scalars are replicated.

  Args:
    state: a tree of arrays or shapes.
    mesh: the mesh, from `make_mesh`.
    axes: `((path_regex, logical_axes), ...)`; empty logical axes replicate.
    rules: the mesh axis, mesh axes or None of each logical axis.

  Raises:
    ValueError: no row matches a path, a rank does not fit its row, a logical
      axis has no rule, or a dimension does not divide over its mesh axes.
  """

  def place(path: str, leaf) -> NamedSharding:
    if not leaf.shape:
      return NamedSharding(mesh, PartitionSpec())
    names = next((row for regex, row in axes if re.search(regex, path)), None)
    if names is None:
      raise ValueError(f'{path}: no row of the sharding table matches: add one')
    # Too few or too many dimensions mean that the row was written for another
    # parameter: aligning it anyway would cut the wrong dimension.
    if names and len(leaf.shape) - len(names) not in (0, 1):
      raise ValueError(
        f'{path}: rank {len(leaf.shape)} does not fit its sharding row {names}'
      )
    if names:
      names = ('layers',) * (len(leaf.shape) - len(names)) + tuple(names)
    else:
      names = (None,) * len(leaf.shape)
    spec = tuple(_rule(path, name, rules) for name in names)
    used = [axis for split in spec for axis in _tuple(split)]
    if twice := {axis for axis in used if used.count(axis) > 1}:
      raise ValueError(
        f'{path}: mesh axis {min(twice)} would cut two dimensions, {names}: '
        'change sharding.*'
      )
    for size, split in zip(leaf.shape, spec, strict=True):
      parts = math.prod(mesh.shape[a] for a in _tuple(split))
      if size % parts:
        raise ValueError(
          f'{path}: dimension {size} does not divide over mesh axis '
          f'{split}={parts}: change the model or the mesh'
        )
    return NamedSharding(mesh, PartitionSpec(*spec))

  return tree.map_paths(place, state)


def _rule(path, name, rules):
  if name in (None, WHOLE):
    return None
  if name not in rules:
    raise ValueError(f'{path}: logical axis {name!r} has no rule: add one')
  split = rules[name]
  return tuple(split) if isinstance(split, (tuple, list)) else split


def _tuple(split) -> tuple[str, ...]:
  return () if split is None else (split,) if isinstance(split, str) else split


def platform() -> str:
  """Finds what is compiled for: of the mesh, which may be far away."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  device = jax.default_device.value if device is None else device
  name = jax.default_backend() if device is None else device
  name = name if isinstance(name, str) else name.platform
  # A card that is compiled for from afar calls itself by its maker's library.
  return 'gpu' if name == 'cuda' else name


def parts(*axes: str) -> int:
  """Counts the parts that mesh axes cut a dimension into; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[a] for a in axes)


def free(*axes: str) -> tuple[str, ...]:
  """Returns those mesh axes that no surrounding `shard_map` has cut already.

  Without a mesh there are none.
  """
  mesh = jax.sharding.get_abstract_mesh()
  known = set(mesh.axis_names) - set(mesh.manual_axes)
  return tuple(a for a in axes if a in known)


def spec(*names: str | None) -> PartitionSpec:
  """Returns the layout of an activation, one name of `constrain` a dimension.

  Axes that a surrounding `shard_map` has cut are left out: within it an array
  is the part of one device.
  """
  cut = jax.sharding.get_abstract_mesh().manual_axes
  return PartitionSpec(
    *(
      tuple(a for a in _ACTIVATIONS[name] if a not in cut) if name else None
      for name in names
    )
  )


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Fixes the layout of an activation, so that the compiler does not choose it.

  Models call it after the embedding, after each block and on logits. Without a
  mesh (`jax.set_mesh`) it returns `x` as it is.

  Args:
    x: an activation.
    *names: 'batch', 'length', 'heads', 'vocab', 'stage' or None for each
      dimension.
  """
  mesh = jax.sharding.get_abstract_mesh()
  # With one device, or where `shard_map` has cut all axes, nothing is left to
  # choose.
  if mesh.size == 1 or not free(*mesh.axis_names):
    return x
  return jax.lax.with_sharding_constraint(x, spec(*names))


def shapes(example: types.Batch, mesh: jax.sharding.Mesh) -> types.Batch:
  """Describes the global batch, laid out as `put` lays it out.

  Args:
    example: the batch of all processes together.
    mesh: the mesh of all processes.

  Raises:
    ValueError: rows or positions do not divide over their axes.
  """
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=_batch_sharding(x.shape, mesh)
    ),
    example,
  )


def host(mesh: jax.sharding.Mesh, batch_size: int) -> tuple[int, int]:
  """Finds which rows of a batch this process has to read.

  Processes that need the same rows, for other parts of a tensor or of a text,
  count as one host. Where a mesh deals rows out of order, every process reads
  all rows.

  Returns:
    `(host, hosts)`: the rows are part number `host` of `hosts` equal parts.

  Raises:
    ValueError: rows do not divide over their axes.
  """
  where = _batch_sharding((batch_size,), mesh)
  if where.is_fully_addressable:  # there is no other process
    return 0, 1
  spans = [
    rows.indices(batch_size)
    for index in where.addressable_devices_indices_map((batch_size,)).values()
    for rows in index or ()
  ]
  # From the first row of any device of this process to the last; if that is not
  # one of equal parts, the mesh deals rows out of order.
  first = min(span[0] for span in spans)
  size = max(span[1] for span in spans) - first
  if first % size or batch_size % size:
    return 0, 1
  return first // size, batch_size // size


def put(
  batch: types.Batch, mesh: jax.sharding.Mesh, host: int = 0, hosts: int = 1
) -> types.Batch:
  """Makes global arrays from the rows that this process has read.

  Args:
    batch: the rows of this host.
    mesh: the mesh of all processes.
    host: which part of the rows these are, from the function `host`.
    hosts: how many parts there are.

  Raises:
    ValueError: rows or positions do not divide over their axes.
  """

  def place(x):
    x = np.asarray(x)
    shape = (len(x) * hosts, *x.shape[1:])
    where = _batch_sharding(shape, mesh)
    if where.is_fully_addressable:  # there is no other process
      return jax.device_put(x, where)

    # jax asks for parts by their place in the global array; this process holds
    # rows from `offset` on.
    def part(index):
      first, stop, _ = index[0].indices(shape[0])
      offset = host * len(x)
      return x[(slice(first - offset, stop - offset), *index[1:])]

    return jax.make_array_from_callback(shape, where, part)

  return jax.tree.map(place, batch)


def _batch_sharding(shape, mesh) -> NamedSharding:
  """Splits rows, and positions if there are several.

  Classes are targets [B, 1], whose one position cannot be split.
  """
  axes = [BATCH, *(('sequence',) for _ in shape[1:2] if shape[1] > 1)]
  rows, length = shape[0], shape[1] if len(axes) > 1 else 0
  into = math.prod(mesh.shape[a] for a in BATCH)
  if rows % into:
    raise ValueError(
      f'batch_size: {rows} rows do not divide over {into} parts (mesh.data *'
      ' mesh.fsdp * mesh.expert): change batch_size or mesh'
    )
  if length % mesh.shape['sequence']:
    raise ValueError(
      f'data.length: {length} positions do not divide over mesh.sequence='
      f'{mesh.shape["sequence"]}: change data.length or mesh'
    )
  return NamedSharding(mesh, PartitionSpec(*axes))
