"""One update: gradients over microbatches, and never a bad number kept."""

from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm import faults, loss, types
from lm import metrics as metrics_lib

Loss = Callable[..., types.Metric]


def init_state(
  rng: jax.Array,
  batch: types.Batch,
  *,
  model: types.Model,
  tx: optax.GradientTransformation,
) -> types.TrainState:
  """Makes the state of step 0; see `start`."""
  params = model.init(rng, batch)
  extra = {'skipped': jnp.zeros((), jnp.int32)}
  return types.TrainState(
    jnp.zeros((), jnp.int32), params, tx.init(params), extra
  )


def start(init: Callable[[], types.TrainState], where: Any) -> types.TrainState:
  """Calls `init` and places what it makes, in parts from the beginning.

  Args:
    init: `init_state` with its arguments.
    where: shardings of the state, all of one mesh.
  """
  # It runs once, so that compiling is what it costs: half the time this way.
  fast = {'xla_backend_optimization_level': 1}
  on_cpu = jax.default_backend() == 'cpu'
  with jax.set_mesh(_mesh(where)):
    return jax.jit(
      init, out_shardings=where, compiler_options=fast if on_cpu else None
    )()


@contextlib.contextmanager
def compiling(
  update: Any, like: Any, where: Any, batch: types.Batch
) -> Iterator[None]:
  """Compiles in a thread, while the state is made or read inside `with`.

  The call that comes next finds what was compiled.

  Args:
    update: a jitted `train_step`.
    like: shapes of the state.
    where: their shardings, all of one mesh.
    batch: shapes of a batch, from `sharding.shapes`.
  """
  placed = jax.tree.map(lambda x, y: x.update(sharding=y), like, where)

  def compile_update():
    with jax.set_mesh(_mesh(where)):
      update.lower(placed, batch).compile()

  with futures.ThreadPoolExecutor(1) as pool:
    compiled = pool.submit(compile_update)
    yield
    compiled.result()


def train_step(
  state: types.TrainState,
  batch: types.Batch,
  *,
  model: types.Model,
  tx: optax.GradientTransformation,
  rng: jax.Array,
  loss: Loss = loss.token_loss,
  microbatches: int = 1,
) -> tuple[types.TrainState, dict[str, types.Metric]]:
  """Takes one optimizer step on the mean loss of the batch.

  The loss is divided by the weight of the whole batch before gradients are
  added, so that microbatches of uneven weight give the gradient of one batch.
  An update with a non-finite loss or gradient is dropped, moments included,
  and counted in `extra['skipped']`; the step and so the data go on.

  Args:
    state: donate it.
    batch: B rows, a multiple of `microbatches`.
    model, tx: see `types.Model` and `lm.optim`.
    rng: the run's key; dropout draws from it by step and microbatch.
    loss: `(logits, batch) -> Metric` in nats.
    microbatches: parts that are computed one after another.

  Returns:
    The new state, and metrics: `loss_nats`, `grad_norm`, `skipped`.
  """
  weight = jnp.sum(batch.weights)
  rng = jax.random.fold_in(rng, state.step)

  def total(params, part, key):
    metric = loss(model.apply(params, part, rng=key).logits, part)
    # An empty batch has gradient 0, not 0 / 0.
    return metric.total / jnp.maximum(weight, 1e-9), metric

  def gradients(part, key):
    (_, metric), grads = jax.value_and_grad(total, has_aux=True)(
      state.params, part, key
    )
    return grads, metric

  if microbatches == 1:
    grads, metric = gradients(batch, rng)
  else:
    parts = jax.tree.map(
      # Strided, not cut in runs: each device keeps its own rows.
      lambda x: jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1),
      batch,
    )

    def accumulate(sums, part_and_key):
      return jax.tree.map(jnp.add, sums, gradients(*part_and_key)), None

    keys = jax.random.split(rng, microbatches)
    zeros = jax.tree.map(
      jnp.zeros_like,
      jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], parts), rng),
    )
    (grads, metric), _ = jax.lax.scan(accumulate, zeros, (parts, keys))
  grads = _inject(grads, state.step)

  norm = metrics_lib.tree_norm(grads)
  finite = jnp.isfinite(norm) & jnp.isfinite(metric.total)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  # Select, never multiply: nan * 0 is nan.
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (params, opt_state),
    (state.params, state.opt_state),
  )
  skipped = 1 - finite.astype(jnp.int32)
  extra = {**state.extra, 'skipped': state.extra['skipped'] + skipped}
  kept = finite.astype(jnp.float32)
  metrics = {
    'loss_nats': metric,
    # One nan would blank a whole interval's mean: a dropped step weighs 0.
    'grad_norm': types.Metric(jnp.where(finite, norm, 0), kept),
    'skipped': types.Metric(skipped, jnp.ones(())),
  }
  return types.TrainState(state.step + 1, params, opt_state, extra), metrics


def _mesh(where):
  return jax.tree.leaves(where)[0].mesh


def _inject(grads, step):
  """Spoils gradients at the steps that the fault hook names (tests only)."""
  bad = faults.at('nan_grad')
  if not bad:
    return grads
  hit = jnp.isin(step, jnp.asarray(bad))
  return jax.tree.map(lambda g: jnp.where(hit, jnp.nan, g), grads)
