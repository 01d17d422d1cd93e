"""The program of a run: its training step, placed on a mesh and compiled."""

from collections.abc import Iterator, Mapping
from concurrent import futures
import contextlib
from functools import partial
import os
import re
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lm import optim, sharding, tree, types
from lm.optim import masks, numbers
from lm.training import compiled, step
from lm.training import settings as settings_lib

Settings = settings_lib.Settings
_PLAIN = Settings()


class Program(NamedTuple):
  """The computation of a run, placed on a mesh and not yet compiled.

  Attributes:
    parameters: how the initial parameters are drawn, see `Model.parameters`.
    seed: that they are drawn with.
    init: `parameters -> state` of step 0, jitted.
    like: shapes of the state.
    where: shardings of the state.
    batch: shapes and shardings of a batch.
    update: `(state, batch) -> (state, metrics)`, a jitted step that takes over
      the memory of the state; see `compiled.Update`.
  """

  parameters: Any
  seed: int
  init: Any
  like: types.TrainState
  where: types.TrainState
  batch: types.Batch
  update: compiled.Update


def make(
  *,
  model: types.Model,
  tx: optax.GradientTransformation,
  example: types.Batch,
  mesh: jax.sharding.Mesh,
  rules: Mapping[str, Any],
  seed: int,
  settings: Settings = _PLAIN,
) -> Program:
  """Builds the program of a run; nothing is allocated.

  Args:
    model: what is trained.
    tx: the optimizer; see `lm.optim`.
    example: a batch of all processes, for shapes and types.
    mesh: the devices.
    rules: from logical axes to mesh axes, see `sharding.shardings`.
    seed: of initial parameters and of dropout.
    settings: how the step is computed.

  Raises:
    ValueError: something does not fit the mesh, cannot be private or cut in
      parts, or matches no parameter.
  """
  parameters = model.parameters(example)
  init = partial(step.init_state, tx=tx)
  like = jax.eval_shape(init, tree.shapes(parameters))
  where = sharding.shardings(
    like, mesh=mesh, axes=(*optim.AXES, *model.axes), rules=rules
  )
  own, structure = numbers.take(tx, like.params, like.opt_state)
  shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(example))
  table = repr(sorted(rules.items()))
  init, update = compiled.once(
    lambda: _jitted(settings, model, tx, example, where),
    *(model, settings, mesh, table, shapes, structure),
  )
  key = np.asarray(jax.random.key_data(jax.random.key(seed)))
  bound = compiled.Update(update, compiled.Arguments(key, own), mesh)
  batch = sharding.shapes(example, mesh)
  return Program(parameters, seed, init, like, where, batch, bound)


def _jitted(
  settings: Settings,
  model: types.Model,
  tx: optax.GradientTransformation,
  example: types.Batch,
  where: types.TrainState,
) -> tuple[Any, Any]:
  """Makes the two functions of a program that are compiled: init and update."""
  mesh = jax.tree.leaves(where)[0].mesh
  if settings.freeze:
    # What the optimizer leaves alone needs no gradient: the model is told, so
    # that the backward pass ends above it.
    chosen = tree.paths(masks.matching('freeze', settings.freeze)(where.params))
    frozen = [f'{re.escape(path)}$' for path, is_frozen in chosen if is_frozen]
    model = model._replace(fixed=(*model.fixed, *frozen))
  take = settings_lib.choose(settings, model=model, example=example, mesh=mesh)

  def update(state, batch, arguments):
    rng = jax.random.wrap_key_data(arguments.key)
    given = numbers.Optimizer(tx, arguments.numbers)
    return take(state, batch, tx=given, rng=rng)

  return (
    jax.jit(
      partial(step.init_state, tx=tx),
      donate_argnums=0,  # or two copies would be in memory at once
      out_shardings=where,
    ),
    jax.jit(
      update,
      donate_argnums=0,  # or two states would be in memory at once
      out_shardings=(where, None),
      compiler_options=compiled.options(settings.numerics, mesh),
    ),
  )


def start(
  run: Program, given: Mapping[str, Any] = MappingProxyType({})
) -> types.TrainState:
  """Makes the state of step 0, laid out in parts from the beginning.

  Args:
    run: the program.
    given: parameters that are not drawn but known, by path.
  """

  def place(path, parameter, where):
    if path in given:
      return jax.device_put(given[path], where)
    # A dict, since devices that hold the same part ask for it one by one.
    parts = {}

    def part(index):
      key = str(index)
      if key not in parts:
        parts[key] = parameter.draw(run.seed, index)
      return parts[key]

    return jax.make_array_from_callback(parameter.shape, where, part)

  # numpy lets other threads run while it computes.
  with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    waiting = tree.map_paths(
      partial(pool.submit, place), run.parameters, run.where.params
    )
    params = jax.tree.map(lambda x: x.result(), waiting)
  with jax.set_mesh(_mesh(run)):
    return run.init(params)


def lower(run: Program) -> Any:
  """Traces the update of a program; what is left to do is `.compile()`."""
  placed = jax.tree.map(lambda x, y: x.update(sharding=y), run.like, run.where)
  with jax.set_mesh(_mesh(run)):
    return run.update.lower(placed, run.batch)


@contextlib.contextmanager
def compiling(run: Program) -> Iterator[None]:
  """Compiles the update in a thread while `with` makes or reads the state.

  The first call of the update finds the compiled program in jax's cache.
  """
  with futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(lambda: lower(run).compile())
    yield
    waiting.result()


def _mesh(run: Program) -> jax.sharding.Mesh:
  return jax.tree.leaves(run.where)[0].mesh
