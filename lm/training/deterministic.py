"""Gradients whose bits do not depend on how many devices there are.

Floating-point sums depend on their order, and compilers choose another order
for each mesh. Here the batch is cut into a fixed number of logical shards; each
is computed by itself, in a loop whose body is the same program on every mesh,
with random numbers of its own; and what they give is added in pairs, in the
order of a fixed tree. The optimizer then runs whole on every device.

The price: a device holds a gradient for each of its shards and, during the
update, the whole state; shards are computed one after another.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from lm import sharding


def check(mesh: jax.sharding.Mesh, rows: int, shards: int) -> None:
  """Checks that a mesh and a batch can be computed in a fixed order.

  Raises:
    ValueError: they cannot.
  """
  cut = {
    name: size
    for name, size in mesh.shape.items()
    if size > 1 and name not in sharding.BATCH
  }
  if cut:
    raise ValueError(
      f"numerics='deterministic': mesh axes {', '.join(cut)} cut what is added up "
      'within an example: use data, fsdp and expert alone'
    )
  if shards & (shards - 1) or shards % mesh.size or rows % shards:
    raise ValueError(
      f"numerics='deterministic': logical_shards={shards} must be a power of two, "
      f'a multiple of the {mesh.size} devices and divide batch_size={rows}'
    )


def sums(
  fn: Callable[..., Any],
  fixed: Any,
  batch: Any,
  *,
  shards: int,
  mesh: jax.sharding.Mesh,
) -> Any:
  """Adds up `fn(fixed, part, n)` over the logical shards of a batch.

  Args:
    fn: from anything, the rows of a shard and its number to a tree of arrays.
    fixed: a tree of arrays, whole for every shard.
    batch: a tree of arrays with rows; shard n has the n-th run of them.
    shards: how many; see `check`.
    mesh: whose axes `sharding.BATCH` cut the rows.

  Returns:
    The tree of sums, whole on every device.
  """

  def local(fixed, batch, places):
    parts = jax.tree.map(
      lambda x: x.reshape(shards // mesh.size, -1, *x.shape[1:]), batch
    )

    def body(n, kept):
      part, place = jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, n, keepdims=False),
        (parts, places),
      )
      return jax.tree.map(
        lambda all_, x: jax.lax.dynamic_update_index_in_dim(all_, x, n, 0),
        kept,
        _apart(fn, fixed, part, place),
      )

    count = len(places)
    one = jax.eval_shape(
      _alone(fn), fixed, jax.tree.map(lambda x: x[0], parts), places[0]
    )
    kept = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), one)
    kept = jax.lax.fori_loop(0, _hidden(count), body, kept)
    kept = jax.tree.map(_pairs, kept)
    kept = jax.tree.map(lambda x: jax.lax.all_gather(x, sharding.BATCH), kept)
    return jax.tree.map(_pairs, kept)

  rows = PartitionSpec(sharding.BATCH)
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(PartitionSpec(), rows, rows),
    out_specs=PartitionSpec(),
    check_vma=False,
  )(fixed, batch, np.arange(shards, dtype=np.int32))


def whole(fn: Callable[..., Any], *args: Any, mesh: jax.sharding.Mesh) -> Any:
  """Calls a function on every device with whole arguments, uncut."""

  return jax.shard_map(
    partial(_apart, fn),
    mesh=mesh,
    in_specs=PartitionSpec(),
    out_specs=PartitionSpec(),
    check_vma=False,
  )(*args)


def _alone(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Calls `fn` outside of the mesh, which is spent: there is one device."""

  def call(*args):
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
      return fn(*args)

  return call


def _apart(fn: Callable[..., Any], *args: Any) -> Any:
  """Calls `fn` so that nothing around it is compiled into it.

  In a branch that the compiler cannot know to be taken: otherwise what comes
  before is fused into its sums, and their order differs from mesh to mesh.
  """

  def nothing(*args):
    return jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(_alone(fn), *args)
    )

  return jax.lax.cond(_hidden(True), _alone(fn), nothing, *args)


def _hidden(value: Any) -> jax.Array:
  """A constant that the compiler cannot see."""
  return jax.lax.optimization_barrier(jnp.asarray(value))


def _pairs(x: jax.Array) -> jax.Array:
  """Adds neighbours, then neighbouring sums, up to one."""
  while len(x) > 1:
    x = x[0::2] + x[1::2]
  return x[0]
