"""The training step: one update of the parameters.

A step adds gradients up over microbatches, and drops an update that is not
finite. There are three of them: `train_step`, `deterministic_step`, whose bits
are the same on any number of devices, and `private_step`, whose gradient is
private.
"""

from collections.abc import Callable
from functools import partial
import re

import jax
import jax.numpy as jnp
import optax

from lm import loss, tree, types
from lm import metrics as metrics_lib
from lm.optim import schedules
from lm.training import deterministic, injected, privacy

Loss = Callable[..., types.Metric]
DEFAULT = loss.make()


def init_state(
  params: types.Params, *, tx: optax.GradientTransformation
) -> types.TrainState:
  """Makes the state of step 0 from initial parameters."""
  extra = {'skipped': jnp.zeros((), jnp.int32)}
  return types.TrainState(
    jnp.zeros((), jnp.int32), params, tx.init(params), extra
  )


def train_step(
  state: types.TrainState,
  batch: types.Batch,
  *,
  model: types.Model,
  tx: optax.GradientTransformation,
  rng: jax.Array,
  loss: Loss = DEFAULT,
  microbatches: int = 1,
) -> tuple[types.TrainState, dict[str, types.Metric]]:
  """Takes one optimizer step on the mean loss of the batch.

  What is minimized is the sum of the values that are logged: `loss_nats`, and
  the model's own metrics whose names end in '_loss'.

  An update with a non-finite loss or gradient, or that makes a parameter or the
  optimizer's state non-finite, is dropped as a whole and counted in
  `extra['skipped']`. The step counts on, and so data and learning rate go on.

  Args:
    state: donate it.
    batch: B rows, a multiple of `microbatches`.
    model: what is trained.
    tx: the optimizer; see `lm.optim`.
    rng: the run's key; dropout draws from it by step and microbatch.
    loss: `(output, batch, head) -> Metric` in nats, where `head` is the
      model's, with its parameters bound.
    microbatches: parts that are computed one after another.

  Returns:
    The new state, and metrics: `loss_nats`, `grad_norm`, `skipped`, and those
    of the model itself (`Output.aux`).
  """
  rng = jax.random.fold_in(rng, state.step)
  if microbatches == 1:
    grads, metrics = _gradients(model, loss, None, state.params, batch, rng)
  else:
    # The weights of the whole batch divide losses before gradients are added:
    # microbatches of uneven weight then give the gradient of one batch.
    weights = _weights(model, loss, state.params, batch, rng)
    gradients = partial(_gradients, model, loss, weights)
    parts = jax.tree.map(
      # A microbatch takes every n-th row, not a run of rows: so each device
      # computes on the rows that it holds, and none are sent.
      lambda x: jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1),
      batch,
    )

    def accumulate(sums, part_and_key):
      new = gradients(state.params, *part_and_key)
      return jax.tree.map(jnp.add, sums, new), None

    keys = jax.random.split(rng, microbatches)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
      jnp.zeros_like, jax.eval_shape(gradients, state.params, first, rng)
    )
    (grads, metrics), _ = jax.lax.scan(accumulate, zeros, (parts, keys))
  return _updated(state, grads, metrics, tx=tx)


def deterministic_step(
  state: types.TrainState,
  batch: types.Batch,
  *,
  model: types.Model,
  tx: optax.GradientTransformation,
  rng: jax.Array,
  loss: Loss = DEFAULT,
  shards: int,
  mesh: jax.sharding.Mesh,
) -> tuple[types.TrainState, dict[str, types.Metric]]:
  """Takes one step as `train_step` does, with the same bits on each mesh.

  The dropout of an example depends only on its place in the whole batch.

  Args:
    state, batch, model, tx, rng, loss: see `train_step`.
    shards, mesh: see `deterministic.sums`.
  """
  rng = jax.random.fold_in(rng, state.step)
  add = partial(deterministic.sums, shards=shards, mesh=mesh)

  def count(fixed, part, n):
    params, rng = fixed
    return _weights(model, loss, params, part, jax.random.fold_in(rng, n))

  def gradients(fixed, part, n):
    params, rng, weights = fixed
    key = jax.random.fold_in(rng, n)
    return _gradients(model, loss, weights, params, part, key)

  weights = add(count, (state.params, rng), batch)
  grads, metrics = add(gradients, (state.params, rng, weights), batch)
  return deterministic.whole(_updated, state, grads, metrics, tx, mesh=mesh)


def private_step(
  state: types.TrainState,
  batch: types.Batch,
  *,
  model: types.Model,
  tx: optax.GradientTransformation,
  rng: jax.Array,
  loss: Loss = DEFAULT,
  private: privacy.Privacy,
  microbatches: int = 1,
) -> tuple[types.TrainState, dict[str, types.Metric]]:
  """Takes one step as `train_step` does, by a private gradient.

  It is the gradient of the mean of the rows' own mean losses, so that long
  rows count as much as short ones.

  Args:
    state, batch, model, tx, rng, loss, microbatches: see `train_step`.
    private: how the gradient is made private, see `privacy.gradients`.
  """

  grads, metrics = privacy.gradients(
    partial(_total, model, loss, None),
    state.params,
    batch,
    jax.random.fold_in(rng, state.step),
    private=private,
    microbatches=microbatches,
  )
  return _updated(state, grads, metrics, tx=tx)


def _measure(
  model: types.Model,
  loss: Loss,
  params: types.Params,
  part: types.Batch,
  key: jax.Array,
) -> dict[str, types.Metric]:
  """Computes the loss of a part of a batch, and what the model reports."""
  out = model.apply(params, part, rng=key)
  head = model.head and jax.tree_util.Partial(model.head, params)
  return {'loss_nats': loss(out, part, head), **out.aux}


def _losses(metrics: dict[str, types.Metric]) -> dict[str, types.Metric]:
  """Selects the metrics whose sum is minimized."""
  return {
    name: metric
    for name, metric in metrics.items()
    if name == 'loss_nats' or name.endswith('_loss')
  }


def _weights(
  model: types.Model,
  loss: Loss,
  params: types.Params,
  batch: types.Batch,
  key: jax.Array,
) -> dict[str, jax.Array]:
  """Computes the weight of each loss in a batch.

  Weights depend on the batch alone, so compilers remove the model from this.
  """
  losses = _losses(_measure(model, loss, params, batch, key))
  return {name: jnp.asarray(x.weight) for name, x in losses.items()}


def _total(
  model: types.Model,
  loss: Loss,
  weights: dict[str, jax.Array] | None,
  params: types.Params,
  part: types.Batch,
  key: jax.Array,
) -> tuple[jax.Array, dict[str, types.Metric]]:
  """Computes what is minimized, and the metrics.

  Args:
    model, loss: see `train_step`.
    weights: of the losses in the whole batch; None where the part is all of it.
    params: to differentiate by.
    part: rows of the batch.
    key: of dropout.

  Returns:
    The part's share of the sum of all losses, and the metrics of the part.
  """
  if model.fixed:
    # Below them nothing is computed for the backward pass.
    fixed = re.compile('|'.join(f'(?:{regex})' for regex in model.fixed))
    params = tree.map_paths(
      lambda p, w: jax.lax.stop_gradient(w) if fixed.match(p) else w, params
    )
  metrics = _measure(model, loss, params, part, key)
  losses = _losses(metrics)
  # Each loss is divided by the weight that divides its logged value. The bound
  # is for a batch in which nothing is scored.
  shares = [
    x.total / jnp.maximum(weights[name] if weights else x.weight, 1e-9)
    for name, x in losses.items()
  ]
  return sum(shares, start=jnp.zeros(())), metrics


def _gradients(model, loss, weights, params, part, key):
  total = partial(_total, model, loss, weights)
  (_, metrics), grads = jax.value_and_grad(total, has_aux=True)(
    params, part, key
  )
  return grads, metrics


def _updated(
  state: types.TrainState,
  grads: types.Params,
  metrics: dict[str, types.Metric],
  tx: optax.GradientTransformation,
) -> tuple[types.TrainState, dict[str, types.Metric]]:
  """Applies gradients, unless they, the loss or the result are not finite."""

  def applied(grads, opt_state, params):
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  grads = injected.gradients(grads, state.step)
  norm = metrics_lib.tree_norm(grads)
  state = state._replace(
    opt_state=schedules.at_step(state.opt_state, state.step)
  )
  params, opt_state = applied(grads, state.opt_state, state.params)
  # Settings can make finite gradients overflow, or divide them by zero. So the
  # new state is computed once more, only to be looked at: behind the barrier
  # nothing of it is stored, where one result for both uses would need memory
  # for a second state, and would round in another way.
  finite = metrics_lib.all_finite(
    (
      norm,
      metrics['loss_nats'].total,
      applied(
        *jax.lax.optimization_barrier((grads, state.opt_state, state.params))
      ),
    )
  )
  # Chosen by `where` and not by a product with 0, since nan * 0 is nan.
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (params, opt_state),
    (state.params, state.opt_state),
  )
  skipped = 1 - finite.astype(jnp.int32)
  extra = {**state.extra, 'skipped': state.extra['skipped'] + skipped}
  params = injected.parameters(params, state.step)
  kept = finite.astype(jnp.float32)
  metrics = {
    **metrics,
    # One nan would blank a whole interval's mean: a dropped step weighs 0.
    'grad_norm': types.Metric(jnp.where(finite, norm, 0), kept),
    'skipped': types.Metric(skipped, jnp.ones(())),
  }
  return types.TrainState(state.step + 1, params, opt_state, extra), metrics
