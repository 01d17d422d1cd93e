"""The program of a run: its training step, placed on a mesh and compiled."""

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import contextlib
from functools import partial
import os
import re
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import optax

from lm import optim, sharding, tree, types
from lm.optim import masks
from lm.training import deterministic, diagnostics, privacy, step


class Settings(NamedTuple):
  """How a step is computed, beside the model and its optimizer.

  Attributes:
    loss: see `step.train_step`.
    microbatches: parts of the batch that are computed one after another.
    numerics: 'deterministic' gives the same bits on 1, 2, 4 or more devices of
      one kind, up to `logical_shards`, and for any number of microbatches, see
      `lm.training.deterministic`; 'fast' does not.
    logical_shards: parts that a deterministic batch is cut into.
    private: how gradients are made private; None: they are not.
    freeze: regex of the parameters that the optimizer leaves alone beside
      `Model.fixed`; '': none.
    norms_every: steps after which norms are measured; 0: never.
  """

  loss: step.Loss = step.DEFAULT
  microbatches: int = 1
  numerics: str = 'fast'
  logical_shards: int = 8
  private: privacy.Privacy | None = None
  freeze: str = ''
  norms_every: int = 0


_PLAIN = Settings()


class Program(NamedTuple):
  """The computation of a run, placed on a mesh and not yet compiled.

  Attributes:
    parameters: how the initial parameters are drawn, see `Model.parameters`.
    seed: that they are drawn with.
    init: `parameters -> state` of step 0.
    like: shapes of the state.
    where: shardings of the state.
    batch: shapes and shardings of a batch.
    update: `(state, batch) -> (state, metrics)`, a jitted step that takes over
      the memory of the state.
  """

  parameters: Any
  seed: int
  init: Callable[[types.Params], types.TrainState]
  like: types.TrainState
  where: types.TrainState
  batch: types.Batch
  update: Any


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
  if settings.freeze:
    # What the optimizer leaves alone needs no gradient: the model is told, so
    # that the backward pass ends above it.
    chosen = tree.paths(masks.matching('freeze', settings.freeze)(like.params))
    frozen = [f'{re.escape(path)}$' for path, is_frozen in chosen if is_frozen]
    model = model._replace(fixed=(*model.fixed, *frozen))
  chosen = _choose(
    settings,
    model=model,
    tx=tx,
    rng=jax.random.key(seed),
    example=example,
    mesh=mesh,
  )
  update = jax.jit(
    diagnostics.measuring(chosen, settings.norms_every),
    donate_argnums=0,  # or two states would be in memory at once
    out_shardings=(where, None),
    compiler_options=_options(settings, mesh),
  )
  batch = sharding.shapes(example, mesh)
  return Program(parameters, seed, init, like, where, batch, update)


def _choose(
  settings: Settings,
  *,
  model: types.Model,
  tx: optax.GradientTransformation,
  rng: jax.Array,
  example: types.Batch,
  mesh: jax.sharding.Mesh,
) -> Callable[..., Any]:
  """Chooses the step that settings ask for, and binds all but its arguments."""
  common = {'model': model, 'tx': tx, 'rng': rng, 'loss': settings.loss}
  numerics, private = settings.numerics, settings.private
  if numerics not in ('fast', 'deterministic'):
    raise ValueError(
      f"numerics={numerics!r} is neither 'fast' nor 'deterministic'"
    )
  if model.compares_rows and (
    settings.microbatches > 1 or numerics == 'deterministic' or private
  ):
    raise ValueError(
      'the model compares the rows of a batch with each other: set'
      " microbatches=1, numerics='fast' and no privacy"
    )
  if private is not None:
    if numerics == 'deterministic':
      raise ValueError("privacy: not with numerics='deterministic': use 'fast'")
    if private.expected is None:
      raise ValueError(
        'privacy: each record has to be drawn by itself: set data.expected'
      )
    return partial(
      step.private_step,
      private=private,
      microbatches=settings.microbatches,
      **common,
    )
  if numerics == 'deterministic':
    shards = settings.logical_shards
    deterministic.check(mesh, len(example.tokens), shards)
    return partial(step.deterministic_step, shards=shards, mesh=mesh, **common)
  return partial(step.train_step, microbatches=settings.microbatches, **common)


def _options(settings: Settings, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Returns the compiler's options for the update on a mesh."""
  options = {}
  if _on_gpu(mesh):
    # cuBLAS adds biases and residuals as it writes products; Triton does not.
    options['xla_gpu_enable_triton_gemm'] = False
  if settings.numerics == 'deterministic':
    # For several devices XLA merges equal operations once more, before it
    # simplifies the program. So on one device it would fuse others, and round
    # differently.
    options['xla_disable_hlo_passes'] = 'cse'
  return options


def _on_gpu(mesh: jax.sharding.Mesh) -> bool:
  # A GPU that is compiled for without being there calls itself 'cuda'.
  return mesh.devices.flat[0].platform in ('gpu', 'cuda')


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
    return jax.jit(
      run.init,
      donate_argnums=0,  # or two copies would be in memory at once
      out_shardings=run.where,
    )(params)


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
    compiled = pool.submit(lambda: lower(run).compile())
    yield
    compiled.result()


def _mesh(run: Program) -> jax.sharding.Mesh:
  return jax.tree.leaves(run.where)[0].mesh
