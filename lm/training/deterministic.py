"""Deterministic numerics: the same bits on any number of devices.

The sum of floating-point numbers depends on their order, and compilers choose
another order for each mesh. So a batch is cut into a fixed number of logical
shards. Each shard is computed by itself, with random numbers of its own, in a
loop whose body is the same program on every mesh. The results are added in
pairs, in the order of a fixed tree. The optimizer then runs whole on every
device.

The price: a device holds a gradient for each of its shards and, during the
update, the whole state; and its shards are computed one after another.

Tests compare 1, 2, 4 and 8 simulated CPU devices, and every family of models.
The bits are those of one version of jax and one kind of device: another
version, or a GPU in place of a CPU, rounds differently. Each shard is a batch
by itself, so a loss that compares rows, as that of `heads.embed` does, sees its
shard alone.
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
  """Checks that a batch on a mesh can be computed in a fixed order.

  Args:
    mesh: the devices.
    rows: of a batch.
    shards: logical shards, as in `sums`.

  Raises:
    ValueError: it cannot.
  """
  # Tensor, sequence and stage parts add up within an example, in an order that
  # the mesh decides.
  cut = {
    name: size
    for name, size in mesh.shape.items()
    if size > 1 and name not in sharding.BATCH
  }
  if cut:
    raise ValueError(
      f"numerics='deterministic': mesh axes {', '.join(cut)} cut what is added "
      'up within an example: use data, fsdp and expert alone'
    )
  if shards & (shards - 1) or shards % mesh.size or rows % shards:
    raise ValueError(
      f"numerics='deterministic': logical_shards={shards} must be a power of "
      f'two, a multiple of the {mesh.size} devices and divide batch_size={rows}'
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
    fn: takes `fixed`, the rows of a shard and its number, and returns a tree of
      arrays.
    fixed: a tree of arrays that every shard gets whole.
    batch: a tree of arrays whose first dimension is rows; shard n gets the n-th
      run of neighbouring rows.
    shards: how many; see `check`.
    mesh: the devices; its axes `sharding.BATCH` cut the rows.

  Returns:
    The tree of sums, whole on every device.
  """

  def local(fixed, batch, places):
    # On one device: its rows, cut into its own logical shards.
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

    # Each shard's result is kept by itself and not added in the loop: adding
    # one after another would be another order on another number of devices.
    count = len(places)
    one = jax.eval_shape(
      _alone(fn), fixed, jax.tree.map(lambda x: x[0], parts), places[0]
    )
    kept = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), one)
    # A loop of one trip would be inlined, and its sums fused with others.
    kept = jax.lax.fori_loop(0, _hidden(count), body, kept)
    # The lower levels of the tree of sums lie on one device, as their number
    # is a power of two; the upper ones are computed alike on all of them.
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
  """Calls a function on every device, with whole arguments."""

  return jax.shard_map(
    partial(_apart, fn),
    mesh=mesh,
    in_specs=PartitionSpec(),
    out_specs=PartitionSpec(),
    check_vma=False,
  )(*args)


def _alone(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a function that calls `fn` as if there were one device.

  `shard_map` has cut all axes of the mesh already, so hints such as
  `sharding.constrain` must find none left.
  """

  def call(*args):
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
      return fn(*args)

  return call


def _apart(fn: Callable[..., Any], *args: Any) -> Any:
  """Calls `fn` so that nothing around it is compiled into it.

  The call stands in a branch that the compiler cannot know to be taken.
  Otherwise what comes before would be fused into its sums, and their order
  would differ from mesh to mesh.
  """

  def nothing(*args):
    return jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(_alone(fn), *args)
    )

  return jax.lax.cond(_hidden(True), _alone(fn), nothing, *args)


def _hidden(value: Any) -> jax.Array:
  """Makes a constant whose value the compiler cannot see."""
  return jax.lax.optimization_barrier(jnp.asarray(value))


def _pairs(x: jax.Array) -> jax.Array:
  """Adds neighbours, then neighbouring sums, up to one."""
  while len(x) > 1:
    x = x[0::2] + x[1::2]
  return x[0]
