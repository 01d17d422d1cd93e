"""Where arrays live: a mesh, a strict table from paths to axes, three hints.

A model names the dimensions of its parameters once, in `Model.axes`; rules map
those names to mesh axes. Nothing in a model's arithmetic mentions a device.
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

# From the slowest links to the fastest: replicas and pipeline stages talk
# least, tensor parts in every layer.
AXES = ('data', 'stage', 'fsdp', 'expert', 'sequence', 'tensor')
BATCH = ('data', 'fsdp', 'expert')  # the axes that split the rows of a batch

# What activations are split over. Parameters follow the rules of the config;
# activations follow the batch, or every layer would move them.
_ACTIVATIONS = {
  'batch': BATCH,
  'length': ('sequence',),
  'heads': ('tensor',),
  'vocab': ('tensor',),
  'stage': ('stage',),
}

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
    data: replicas; None takes all devices that the other axes leave.
    stage: parts that layers are dealt to, one after another (GPipe).
    fsdp: parts that parameters and optimizer state are cut into (ZeRO-3).
    expert: parts that experts are dealt to; the rest of the model takes them
      for more of `fsdp`'s rows of the batch.
    sequence: parts that the positions of a text are cut into.
    tensor: parts that heads, mlp and vocabulary are cut into (Megatron).
    slices: groups of devices with slow links between them; `data` is cut over
      them first.
    devices: None takes all there are.

  Raises:
    ValueError: if the product is not the number of devices, or `data` cannot
      be cut over the slices.
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
  if slices == 1 or not hasattr(devices[0], 'slice_index'):
    # Simulated slices are runs of neighbours, as `data` is the outermost axis.
    placed = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  else:
    placed = mesh_utils.create_hybrid_device_mesh(
      (data // slices, *shape[1:]),
      (slices, *(1 for _ in shape[1:])),
      devices,
      allow_split_physical_axes=True,
    )
  # Auto axes: Linen does not take the Explicit ones that are jax's default.
  kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.sharding.Mesh(placed, AXES, axis_types=kinds)


def shardings(
  state: Any,
  *,
  mesh: jax.sharding.Mesh,
  axes: Table,
  rules: Mapping[str, str | Sequence[str] | None],
) -> Any:
  """Gives every leaf of a tree its NamedSharding, by its path.

  The first row of `axes` whose regex is found in a path names the last
  dimensions of that leaf; a leading dimension beyond them is that of scanned
  layers, called 'layers'. Rows match optimizer state too, since its paths
  contain those of the parameters. Scalars are replicated.

  Args:
    state: arrays or shapes.
    mesh: of `make_mesh`.
    axes: `((path_regex, logical_axes), ...)`; empty logical axes replicate.
    rules: logical axis -> mesh axis, mesh axes or None.

  Raises:
    ValueError: for a path that no row matches, a rank that does not fit its
      row, a logical axis without a rule, or a dimension that does not divide.
  """

  def place(path: str, leaf) -> NamedSharding:
    if not leaf.shape:
      return NamedSharding(mesh, PartitionSpec())
    names = next((row for regex, row in axes if re.search(regex, path)), None)
    if names is None:
      raise ValueError(f'{path}: no row of the sharding table matches: add one')
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
  if name is None:
    return None
  if name not in rules:
    raise ValueError(f'{path}: logical axis {name!r} has no rule: add one')
  split = rules[name]
  return tuple(split) if isinstance(split, (tuple, list)) else split


def _tuple(split) -> tuple[str, ...]:
  return () if split is None else (split,) if isinstance(split, str) else split


def parts(*axes: str) -> int:
  """Counts the parts that mesh axes cut into: 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[a] for a in axes)


def free(*axes: str) -> tuple[str, ...]:
  """Keeps the mesh axes that no `shard_map` around has cut; none without."""
  mesh = jax.sharding.get_abstract_mesh()
  known = set(mesh.axis_names) - set(mesh.manual_axes)
  return tuple(a for a in axes if a in known)


def spec(*names: str | None) -> PartitionSpec:
  """Says where an activation lies: a name of `constrain` a dimension.

  What a `shard_map` around has cut is left out: it is cut already.
  """
  cut = jax.sharding.get_abstract_mesh().manual_axes
  return PartitionSpec(
    *(
      tuple(a for a in _ACTIVATIONS[name] if a not in cut) if name else None
      for name in names
    )
  )


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Pins an activation's layout: after embed, after each block, on logits.

  A no-op without a mesh (`jax.set_mesh`). `names` are 'batch', 'length',
  'heads', 'vocab', 'stage' or None, one a dimension.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size == 1 or not free(*mesh.axis_names):
    return x
  return jax.lax.with_sharding_constraint(x, spec(*names))


def shapes(example: types.Batch, mesh: jax.sharding.Mesh) -> types.Batch:
  """Describes a batch of all processes as `put` places its parts.

  Raises:
    ValueError: if rows or positions do not divide over their axes.
  """
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=_batch_sharding(x.shape, mesh)
    ),
    example,
  )


def host(mesh: jax.sharding.Mesh, batch_size: int) -> tuple[int, int]:
  """Says which rows of a batch this process has to read: `(host, hosts)`.

  For `lm.data` and `put`. Processes that hold the same rows, parts of a tensor
  or a text, are the same host; where a mesh deals rows out of order, a process
  reads them all.

  Raises:
    ValueError: if rows do not divide over their axes.
  """
  where = _batch_sharding((batch_size,), mesh)
  if where.is_fully_addressable:
    return 0, 1
  spans = [
    rows.indices(batch_size)
    for index in where.addressable_devices_indices_map((batch_size,)).values()
    for rows in index or ()
  ]
  first = min(span[0] for span in spans)
  size = max(span[1] for span in spans) - first
  if first % size or batch_size % size:
    return 0, 1
  return first // size, batch_size // size


def put(
  batch: types.Batch, mesh: jax.sharding.Mesh, host: int = 0, hosts: int = 1
) -> types.Batch:
  """Turns rows of a batch into global arrays.

  Args:
    batch: the rows of a host, as of the function `host`.
    mesh: of all processes.
    host: which rows these are,
    hosts: of how many parts.

  Raises:
    ValueError: if rows or positions do not divide over their axes.
  """

  def place(x):
    x = np.asarray(x)
    shape = (len(x) * hosts, *x.shape[1:])
    where = _batch_sharding(shape, mesh)
    if where.is_fully_addressable:
      return jax.device_put(x, where)

    def part(index):
      first, stop, _ = index[0].indices(shape[0])
      offset = host * len(x)
      return x[(slice(first - offset, stop - offset), *index[1:])]

    return jax.make_array_from_callback(shape, where, part)

  return jax.tree.map(place, batch)


def _batch_sharding(shape, mesh) -> NamedSharding:
  """Splits rows, and positions unless there is one (the target of a class)."""
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
