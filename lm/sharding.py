"""Where arrays live: a mesh, a strict table from paths to axes, three hints.

A model names the dimensions of its parameters once, in `Model.axes`; rules map
those names to mesh axes. Nothing in a model's arithmetic mentions a device.
"""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from lm import tree, types

AXES = ('data', 'fsdp', 'tensor')
BATCH = ('data', 'fsdp')  # the axes that split the examples of a batch

# What activations are split over. Parameters follow the rules of the config;
# activations follow the batch, or every layer would move them.
_ACTIVATIONS = {'batch': BATCH, 'vocab': ('tensor',)}

Table = Sequence[tuple[str, tuple[str | None, ...]]]


def make_mesh(
  *, data: int | None = None, fsdp: int = 1, tensor: int = 1
) -> jax.sharding.Mesh:
  """Makes the device mesh.

  Args:
    data: replicas; None takes all devices that the other axes leave.
    fsdp: parts that parameters and optimizer state are cut into (ZeRO-3).
    tensor: parts that heads, mlp and vocabulary are cut into (Megatron).

  Raises:
    ValueError: if the product is not the number of devices.
  """
  have = jax.device_count()
  if data is None:
    data = max(have // (fsdp * tensor), 1)
  shape = (data, fsdp, tensor)
  if math.prod(shape) != have:
    raise ValueError(
      f'mesh data={data} fsdp={fsdp} tensor={tensor} needs '
      f'{math.prod(shape)} devices and there are {have}: change mesh.*'
    )
  # Auto axes: Linen does not take the Explicit ones that are jax's default.
  return jax.make_mesh(
    shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3
  )


def shardings(
  state: Any,
  *,
  mesh: jax.sharding.Mesh,
  axes: Table,
  rules: Mapping[str, str | Sequence[str] | None],
) -> Any:
  """Gives every leaf of a tree its NamedSharding, by its path.

  The first row of `axes` whose regex is found in a path names the last
  dimensions of that leaf; a leading dimension beyond them (scanned layers) is
  not split. Rows match optimizer state too, since its paths contain those of
  the parameters. Scalars are replicated.

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
    lead = (None,) * (len(leaf.shape) - len(names))
    spec = lead + tuple(_rule(path, name, rules) for name in names)
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


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Pins an activation's layout: after embed, after each block, on logits.

  A no-op without a mesh (`jax.set_mesh`). `names` are 'batch', 'vocab' or None,
  one a dimension.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  spec = [_ACTIVATIONS[name] if name else None for name in names]
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Splits the leading dimension over the batch axes."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def shapes(example: types.Batch, mesh: jax.sharding.Mesh) -> types.Batch:
  """Describes a batch of all processes as `put` places its parts.

  Raises:
    ValueError: if the rows do not divide over the batch axes.
  """
  where = batch_sharding(mesh)
  _check_rows(len(example.tokens) // jax.process_count(), mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), example
  )


def put(batch: types.Batch, mesh: jax.sharding.Mesh) -> types.Batch:
  """Turns this process's rows of a batch into global arrays.

  Raises:
    ValueError: if the rows do not divide over the batch axes.
  """
  where = batch_sharding(mesh)
  _check_rows(len(batch.tokens), mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(where, np.asarray(x)),
    batch,
  )


def _check_rows(rows: int, mesh: jax.sharding.Mesh) -> None:
  parts = math.prod(mesh.shape[a] for a in BATCH) // jax.process_count()
  if rows % parts:
    raise ValueError(
      f'batch_size: {rows} rows a process do not divide over {parts} devices '
      '(mesh.data * mesh.fsdp): change batch_size or mesh'
    )
