"""The law of losses: what is minimized is the sum of the values logged.

A failure means that a metric whose name ends in '_loss' has another weight in
the gradient than its logged value says, or that it is not minimized at all.
"""

import copy
from functools import partial
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

from configs import base
from lm import config, loss, sharding, tree, types
from lm.training import program as program_lib
from lm.training import step
from tests.laws import laws_test as laws

V, L, B, D = laws.V, laws.L, laws.B, 16
TINY: dict[str, Any] = {'width': D, 'depth': 2, 'length': 2 * L}


class Case(NamedTuple):
  """A model with losses of its own.

  Attributes:
    spec: of the model.
    found: the names of these losses.
    targets: the shape of a row's targets.
    source: whether it reads a source.
  """

  spec: dict[str, Any]
  found: set[str]
  targets: tuple[int, ...] = (L,)
  source: bool = False


def experts(**changes: Any) -> dict[str, Any]:
  # Weights so large that each loss has a part in the gradient that shows.
  settings = {'balance_weight': 2.0, 'z_weight': 0.5} | changes
  return base.experts(width=D, count=4, router=base.router(**settings))


def mixture(**changes: Any) -> dict[str, Any]:
  attention = base.attention(heads=2, positions=base.rotary())
  return base.llama(attention, experts(**changes), **TINY)


def two_sides() -> dict[str, Any]:
  spec = base.t5(2, width=D, depth=2)
  for side in ('encoder', 'decoder'):
    spec[side]['blocks']['main']['mlp'] = experts()
  return spec


def around(name: str, body: dict[str, Any], **changes: Any) -> dict[str, Any]:
  return {'fn': f'lm.models.{name}', 'body': body, **changes}


ROUTED = {'balance_loss', 'router_z_loss'}
PLAIN = base.decoder(2, **TINY)
CASES = {
  'experts': Case(mixture(), ROUTED),
  'scanned': Case(mixture() | {'scan': True}, ROUTED),
  'biased': Case(
    mixture(balance_bias=True, balance_weight=0.0, scoring='sigmoid'), ROUTED
  ),
  'sides': Case(two_sides(), ROUTED, source=True),
  'lora': Case(around('lora:make', mixture(), paths='attention'), ROUTED),
  'distill': Case(
    around('distill:make', PLAIN, teacher=PLAIN), {'distill_loss'}
  ),
  'distill-experts': Case(
    around('distill:make', mixture(), teacher=PLAIN), ROUTED | {'distill_loss'}
  ),
  'preference': Case(around('preference:make', mixture()), ROUTED, (1,)),
  'classify': Case(
    around('heads:classify', mixture(), classes=3, pool='mean'), ROUTED, (2,)
  ),
  'tag': Case(around('heads:tag', mixture(), classes=V), ROUTED),
  'span': Case(around('heads:span', mixture()), ROUTED, (2,)),
}


def batch(case: Case) -> types.Batch:
  """Packs documents, of whose tokens half are scored and some by a part."""
  made = laws.packed('t5' if case.source else 'gpt2')
  rng = np.random.default_rng(1)
  shape = (B, *case.targets)
  weights = rng.choice(np.array([0, 0, 0.5, 1], np.float32), shape)
  if case.targets == (L,):
    return made._replace(weights=weights * made.weights)
  # Two answers a row, of uneven lengths.
  segments = np.clip(made.segments, 0, 2)
  return made._replace(
    segments=segments,
    positions=np.tile(np.arange(L, dtype=np.int32), (B, 1)),
    token_types=(rng.random((B, L)) < 0.7).astype(np.int32),
    targets=np.zeros(shape, np.int32),
    weights=np.maximum(weights, np.eye(*shape, dtype=np.float32)),
  )


def build(case: Case) -> tuple[types.Model, types.Params]:
  model = config.build(copy.deepcopy(case.spec), vocab=V)
  params = model.init(0, batch(case))
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return model, treedef.unflatten(
    x + 0.1 * jax.random.normal(k, x.shape)
    for x, k in zip(leaves, keys, strict=True)
  )


def logged(model, scored, params, batch):
  """Sums the values of losses as `metrics.value` does, and returns them."""
  out = model.apply(params, batch)
  head = model.head and jax.tree_util.Partial(model.head, params)
  found = {'loss_nats': scored(out, batch, head), **out.aux}
  values = {
    name: x.total / x.weight
    for name, x in found.items()
    if name.endswith('_loss') or name == 'loss_nats'
  }
  return sum(values.values()), values


def check(case, model, params, scored, update):
  """Compares the gradient and the metrics of a step with what is logged."""
  (_, values), want = jax.jit(
    jax.value_and_grad(partial(logged, model, scored), has_aux=True)
  )(params, batch(case))
  assert values.keys() == case.found | {'loss_nats'}
  after, metrics = update
  for name, value in values.items():
    got = metrics[name].total / metrics[name].weight
    np.testing.assert_allclose(got, value, rtol=1e-5, err_msg=name)
  fixed = [re.compile(regex) for regex in model.fixed]
  for (path, old), (_, new), (_, gradient) in zip(
    tree.paths(params), tree.paths(after.params), tree.paths(want), strict=True
  ):
    if any(regex.match(path) for regex in fixed):
      gradient = np.zeros_like(gradient)
    # The difference of two numbers near 1 has an error of 1e-7.
    np.testing.assert_allclose(
      np.asarray(old) - np.asarray(new),
      gradient,
      rtol=1e-3,
      atol=1e-6 + 1e-4 * np.abs(gradient).max(),
      err_msg=path,
    )


def stepped(case, model, params, scored, microbatches):
  state = step.init_state(params, tx=optax.sgd(1.0))
  update = partial(
    step.train_step,
    model=model,
    tx=optax.sgd(1.0),
    rng=jax.random.key(0),
    loss=scored,
    microbatches=microbatches,
  )
  return jax.jit(update)(state, batch(case))


@pytest.mark.parametrize(
  ('name', 'microbatches'),
  [
    pytest.param(name, n, marks=() if name == 'distill' else pytest.mark.slow)
    for name in CASES
    for n in (1, 4)
  ],
)
def test_the_gradient_is_that_of_the_values_logged(name, microbatches):
  case = CASES[name]
  model, params = build(case)
  scored = loss.make()
  result = stepped(case, model, params, scored, microbatches)
  check(case, model, params, scored, result)


def halved(out, batch, head):
  """A loss of one's own, whose weight is not that of the batch."""
  metric = step.DEFAULT(out, batch, head)
  return metric._replace(weight=metric.weight / 2)


@pytest.mark.slow
@pytest.mark.parametrize('microbatches', [1, 4])
@pytest.mark.parametrize(
  'scored',
  [loss.make(z_weight=0.1, smoothing=0.1), loss.make(chunks=4), halved],
  ids=('smooth', 'chunks', 'own'),
)
def test_so_it_is_for_every_loss_of_a_text(scored, microbatches):
  case = CASES['experts']
  model, params = build(case)
  result = stepped(case, model, params, scored, microbatches)
  check(case, model, params, scored, result)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['experts', 'distill', 'sides'])
def test_so_it_is_for_deterministic_numerics(name):
  case = CASES[name]
  model, params = build(case)
  mesh = sharding.make_mesh(devices=jax.devices()[:2])
  run = program_lib.make(
    model=model,
    tx=optax.sgd(1.0),
    example=batch(case),
    mesh=mesh,
    rules=laws.RULES,
    seed=0,
    settings=program_lib.Settings(numerics='deterministic'),
  )
  # Copied, since the step takes over the memory of the state.
  given = {path: np.array(x) for path, x in tree.paths(params)}
  state = program_lib.start(run, given)
  with jax.set_mesh(mesh):
    result = run.update(state, sharding.put(batch(case), mesh))
  check(case, model, params, loss.make(), result)


def test_the_weights_of_losses_cost_no_forward_pass():
  case = CASES['scanned']
  model, params = build(case)
  state = step.init_state(params, tx=optax.sgd(1.0))
  update = partial(
    step.train_step, model=model, tx=optax.sgd(1.0), rng=jax.random.key(0)
  )

  def flops(microbatches):
    one = jax.jit(partial(update, microbatches=microbatches))
    compiled: Any = one.lower(state, batch(case)).compile()
    return compiled.cost_analysis()['flops']

  # The count of a loop is that of one turn, here of a fourth of the rows. A
  # forward pass of all rows would add a third of the count on the right.
  assert flops(4) < 0.5 * flops(1)
