"""Compiled steps that runs of one process share.

Runs whose configs differ only in numbers, in their seed or in their folders
have the same program: see `lm.optim.numbers`. So the few newest programs stay,
and a run that has the program of an earlier one neither traces nor compiles.
"""

import collections
from collections.abc import Callable, Mapping
import os
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from lm import config, types
from lm.optim import numbers

MOST = 4  # things of a kind that stay

_programs: collections.OrderedDict[Any, Any] = collections.OrderedDict()
_parts: collections.OrderedDict[Any, Any] = collections.OrderedDict()


class Arguments(NamedTuple):
  """Numbers of a run that its program takes, beside the state and a batch.

  Attributes:
    key: data of the run's random key: uint32.
    numbers: of the optimizer.
  """

  key: Any
  numbers: numbers.Numbers


class Update:
  """The jitted update with the numbers of one run: `(state, batch) -> ...`."""

  def __init__(
    self, jitted: Any, arguments: Arguments, mesh: jax.sharding.Mesh
  ):
    """Binds the numbers; nothing is allocated before the first call."""
    self._jitted, self._arguments = jitted, arguments
    self._where = jax.sharding.NamedSharding(mesh, PartitionSpec())
    self._placed: Arguments | None = None

  def __call__(self, state: types.TrainState, batch: types.Batch) -> Any:
    """Takes one step; the memory of `state` is taken over."""
    return self._jitted(state, batch, self.arguments())

  def arguments(self) -> Arguments:
    """Returns the numbers of the run, placed on the mesh."""
    placed = self._placed
    if placed is None:
      # Once, since each transfer to a device costs as much as a small kernel.
      placed = jax.tree.map(
        lambda x: jax.make_array_from_callback(
          x.shape, self._where, x.__getitem__
        ),
        self._arguments,
      )
      self._placed = placed
    return placed

  def trace(self, state: Any, batch: Any) -> Any:
    """Traces the update for states and batches like these."""
    return self._jitted.trace(state, batch, self._shapes())

  def lower(self, state: Any, batch: Any) -> Any:
    """Lowers the update for states and batches like these."""
    return self._jitted.lower(state, batch, self._shapes())

  def _shapes(self) -> Any:
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._where),
      self._arguments,
    )


def options(numerics: str, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Returns the compiler's options for an update, see `Settings.numerics`."""
  options = {}
  if _on_gpu(mesh):
    # cuBLAS adds biases and residuals as it writes products; Triton does not.
    options['xla_gpu_enable_triton_gemm'] = False
  if numerics == 'deterministic':
    # For several devices XLA merges equal operations once more, before it
    # simplifies the program. So on one device it would fuse others, and round
    # differently.
    options['xla_disable_hlo_passes'] = 'cse'
  return options


def _on_gpu(mesh: jax.sharding.Mesh) -> bool:
  # A GPU that is compiled for without being there calls itself 'cuda'.
  return mesh.devices.flat[0].platform in ('gpu', 'cuda')


def once(build: Callable[[], Any], *key: Any) -> Any:
  """Returns what `build` made when it was last asked for with an equal key."""
  # Faults are compiled into a program.
  return _kept(_programs, (*key, os.environ.get('FAULT')), build)


def same(spec: Mapping[str, Any], made: Any, *more: Any) -> Any:
  """Returns the first of the equal things that a spec has described.

  So that functions which are compiled for a model are found again for the next
  run with an equal one.

  Args:
    spec: with the defaults of all functions; one that names files describes
      something else each time.
    made: what was built from it.
    *more: what it was built with besides.
  """
  leaves = config.flatten(spec).values()
  if any(type(x) is str and os.path.exists(x) for x in leaves):
    return made
  functions = []
  for _, part in config.walk(spec):
    fn = config.resolve(part['fn'])
    # A notebook may load a module again, or put other code into a function.
    functions.append((fn, getattr(fn, '__code__', None)))
  key = (config.to_json(spec), *functions, *more)
  return _kept(_parts, key, lambda: made)


def forget() -> None:
  """Drops all that is kept, as if the process had just started."""
  _programs.clear()
  _parts.clear()


def _kept(
  kept: collections.OrderedDict[Any, Any], key: Any, build: Callable[[], Any]
) -> Any:
  try:
    hash(key)
  except TypeError:
    return build()  # a model of lists, for example, has no equal
  if key not in kept:
    kept[key] = build()
    while len(kept) > MOST:
      kept.popitem(last=False)
  kept.move_to_end(key)
  return kept[key]
