"""Experts against loops over experts, their balance, and their layouts."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from configs import base
from lm import config, initial, metrics, optim, sharding, tree
from lm.layers import (
  activations,
  dispatch,
  grouped,
  initializers,
  mlp,
  parts,
  routing,
)
from lm.models import linen
from lm.optim import optimizers
from lm.planning import flops
from lm.training import step

B, L, D, F, E = 8, 16, 16, 12, 8
TINY: dict[str, Any] = {'length': L, 'width': D, 'depth': 2}
# Four documents a row and some padding at its end.
SEGMENTS = np.where(
  np.arange(L)[None] < L - np.arange(B)[:, None] % 4,
  1 + np.arange(L)[None] // 4,
  0,
).astype(np.int32)
TEXT = parts.Text(jnp.asarray(SEGMENTS), jnp.zeros_like(SEGMENTS))
LIVE = SEGMENTS > 0
PARTS: dict[str, Any] = {
  'kernel_init': initializers.normal(0.5),
  'dtype': 'float32',
  'compute_dtype': 'float32',
}


ROUTER = base.router().keys() - {'fn'}


def spec_of(settings):
  """The spec of experts, of settings of theirs and of their router."""
  own = {k: v for k, v in settings.items() if k not in ROUTER}
  router = {k: v for k, v in settings.items() if k in ROUTER}
  return base.experts(count=E, width=F, router=base.router(**router)) | own


def mixture(activation='swiglu', **settings):
  init = parts.init(std=None, outputs='plain')
  shared = parts.Shared(D, 1, init)
  spec = spec_of({'activation': activation, **settings})
  return config.build(spec, shared=shared).build(
    kernel_init=PARTS['kernel_init'], name=None
  )


@functools.cache
def stream():
  return jax.random.normal(jax.random.key(0), (B, L, D))


def start(module) -> Any:
  return initial.draw(initializers.parameters(module, stream(), TEXT), 1)


def build(settings, vocab=64, **changes):
  """A decoder with these experts."""
  main = base.block(
    base.attention(heads=2), spec_of(settings), base.layernorm(bias=False)
  )
  spec = base.decoder(
    blocks={'main': main}, norm=base.layernorm(bias=False), **TINY
  )
  return config.build(spec | changes, vocab=vocab)


def say(module, params, x_BLD, text=TEXT) -> Any:
  return module.apply({'params': params}, x_BLD, text)


def gradients(fn, *args):
  """A function's value, and gradients of its product with random numbers."""
  mix = jax.random.normal(jax.random.key(2), (B, L, D))
  return jax.jit(
    jax.value_and_grad(
      lambda *args: jnp.sum(fn(*args) * mix), argnums=tuple(range(len(args)))
    )
  )(*args)


def close(want, got, error=1e-5):
  """Compares leaves, to an error that is relative to the largest number."""

  def one(a, b):
    assert np.abs(a - b).max() <= error * np.abs(a).max()

  jax.tree.map(one, want, got)


def looped(params, x_BLD, *, top_k, scoring, normalize, activation):
  """Computes a mixture without limits, one expert after another."""
  logits_BLE = x_BLD @ params['router']
  score = {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[scoring]
  scores_BLE = score(logits_BLE)
  least_BL1 = jnp.sort(logits_BLE, axis=-1)[..., -top_k][..., None]
  weights_BLE = jnp.where(logits_BLE >= least_BL1, scores_BLE, 0)
  if normalize:
    weights_BLE /= jnp.sum(weights_BLE, axis=-1, keepdims=True)
  y_BLD = jnp.zeros_like(x_BLD)
  for e in range(logits_BLE.shape[-1]):
    kernels = {k: v[e] for k, v in params['experts'].items()}
    h_BLF = x_BLD @ kernels['up']
    activate = activations.FUNCTIONS[activation]
    if 'gate' in kernels:
      h_BLF *= activate(x_BLD @ kernels['gate'])
    else:
      h_BLF = activate(h_BLF)
    y_BLD += weights_BLE[..., e : e + 1] * (h_BLF @ kernels['down'])
  return jnp.where(LIVE[..., None], y_BLD, 0)


@pytest.mark.parametrize('capacity', [None, 1.25])
def test_one_expert_is_an_mlp(capacity):
  module = mixture(count=1, top_k=1, capacity=capacity)
  plain = mlp.Dense(
    F, 'swiglu', False, output_init=initializers.normal(F**-0.5), **PARTS
  )
  params = initial.draw(initializers.parameters(plain, stream()), 1)
  routed = {
    'router': jnp.ones((D, 1)),
    'experts': {name: kernel[None] for name, kernel in params.items()},
  }

  def dense(x_BLD, params):
    y_BLD = plain.apply({'params': params}, x_BLD)[0]
    return jnp.where(LIVE[..., None], y_BLD, 0)

  def one(x_BLD, params):
    return say(module, params, x_BLD)[0]

  value, (dx_BLD, dparams) = gradients(dense, stream(), params)
  got, (dx, drouted) = gradients(one, stream(), routed)
  close((value, dx_BLD), (got, dx))
  close(dparams, jax.tree.map(lambda x: x[0], drouted['experts']))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('scoring', 'normalize', 'activation', 'top_k'),
  [
    ('softmax', True, 'swiglu', 2),
    ('sigmoid', True, 'gelu', 3),
    ('softmax', False, 'swiglu', 1),
  ],
)
def test_tokens_read_what_a_loop_over_experts_says(
  scoring, normalize, activation, top_k
):
  settings = {'scoring': scoring, 'normalize': normalize, 'top_k': top_k}
  module = mixture(activation, **settings)
  params = start(module)
  want = gradients(
    partial(looped, activation=activation, **settings), params, stream()
  )
  got = gradients(lambda p, x: say(module, p, x)[0], params, stream())
  close(got, want)


@pytest.mark.slow
def test_all_read_shared_experts():
  module = mixture(shared_experts=2)
  params = start(module)
  assert params['shared']['up'].shape == (D, 2 * F)
  apart = {k: v for k, v in params.items() if k != 'shared'}
  whole_BLD = say(module, params, stream())[0]
  routed_BLD = say(mixture(), apart, stream())[0]
  plain = mlp.Dense(
    2 * F, 'swiglu', False, output_init=initializers.ZEROS, **PARTS
  )
  shared_BLD = plain.apply({'params': params['shared']}, stream())[0]
  close(whole_BLD, routed_BLD + shared_BLD)


def test_room_for_all_drops_nothing():
  params = start(mixture())

  def run(capacity, p, x):
    return say(mixture(capacity=capacity), p, x)[0]

  dropless, limited = (
    gradients(partial(run, capacity), params, stream())
    for capacity in (None, E / 2)
  )
  close(dropless, limited)


@pytest.mark.slow
def test_a_full_expert_keeps_the_earliest_of_a_row():
  module = mixture(capacity=0.5, normalize=False)
  params = start(module)
  C = 2  # 0.5 * 2 choices * 16 positions / 8 experts
  logits_BLE = np.asarray(stream() @ params['router'])
  chosen_BLE = np.argsort(np.argsort(-logits_BLE)) < 2
  chosen_BLE &= LIVE[..., None]
  kept_BLE = chosen_BLE & (np.cumsum(chosen_BLE, axis=1) <= C)
  assert kept_BLE.sum() < 0.7 * chosen_BLE.sum()
  scores_BLE = jax.nn.softmax(logits_BLE)
  said_EBLD = jnp.stack(
    [
      jax.nn.silu(stream() @ gate) * (stream() @ up) @ down
      for up, gate, down in zip(
        *(params['experts'][k] for k in ('up', 'gate', 'down')), strict=True
      )
    ]
  )
  want_BLD = jnp.einsum(
    'EBLD,BLE->BLD', said_EBLD, jnp.where(kept_BLE, scores_BLE, 0)
  )
  apply = jax.jit(lambda x: say(module, params, x)[0])
  close(apply(stream()), want_BLD)
  # So no position depends on a later one.
  later = stream().at[:, L // 2 :].multiply(-1)
  np.testing.assert_array_equal(
    apply(later)[:, : L // 2], apply(stream())[:, : L // 2]
  )


@pytest.mark.slow
@pytest.mark.parametrize('compute_dtype', ['float32', 'bfloat16'])
def test_a_grouped_product_is_one_product_a_group(compute_dtype):
  sizes = np.array([3, 0, 130, 300, 1])
  rng = np.random.default_rng(0)
  x, mix, kernels = (
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((500, D), (500, F), (5, D, F))
  )
  live = np.arange(500)[:, None] < sizes.sum()

  def one(multiply, x, kernels):
    y = multiply(x, kernels)
    return jnp.sum(jnp.where(live, y, 0) * mix), jnp.where(live, y, 0)

  def plain(x, kernels):
    # Added up in float32, whatever is multiplied.
    x, kernels = (
      a.astype(compute_dtype).astype('float32') for a in (x, kernels)
    )
    groups = jnp.repeat(jnp.arange(5), sizes, total_repeat_length=500)
    return jnp.einsum(
      'TD,TDF->TF', x, kernels[groups], preferred_element_type='float32'
    )

  def ours(x, kernels):
    return grouped.contract(
      x, kernels, jnp.asarray(sizes), compute_dtype, 'float32'
    )

  (want, got) = (
    jax.value_and_grad(partial(one, fn), argnums=(0, 1), has_aux=True)(
      x, kernels
    )
    for fn in (plain, ours)
  )
  close(want[0][1], got[0][1])
  exact = compute_dtype == 'float32'
  for a, b in zip(want[1], got[1], strict=True):
    assert np.abs(a - b).max() < (1e-5 if exact else 1e-2) * np.abs(a).max()


@pytest.mark.slow
def test_groups_of_several_texts_share_kernels():
  kernels = jax.random.normal(jax.random.key(0), (2, D, F))
  x = jax.random.normal(jax.random.key(1), (3, 9, D))
  sizes = jnp.array([[4, 5], [9, 0], [1, 8]])
  multiply = partial(
    grouped.contract, compute_dtype='float32', result='float32'
  )
  together = jax.vmap(multiply, in_axes=(0, None, 0))(x, kernels, sizes)
  for n in range(3):
    close(together[n], multiply(x[n], kernels, sizes[n]))


def measured(rows=slice(None), **settings):
  module = mixture(**settings)
  params = start(module)
  if 'router_bias' in params:
    params['router_bias'] = jnp.linspace(-0.3, 0.3, E)
  text = parts.Text(TEXT.segments[rows], TEXT.positions[rows])
  return params, say(module, params, stream()[rows], text)[1]


@pytest.mark.slow
def test_losses_are_their_formulas():
  settings = {
    'scoring': 'sigmoid',
    'top_k': 3,
    'balance_weight': 0.5,
    'balance_bias': True,
    'z_weight': 2.0,
  }
  params, aux = measured(**settings)
  logits_BLE = np.asarray(stream() @ params['router'])
  scores_BLE = 1 / (1 + np.exp(-logits_BLE))
  wanted_BLE = scores_BLE + np.asarray(params['router_bias'])
  chosen_BLE = np.argsort(np.argsort(-wanted_BLE)) < 3
  balance, z = 0.0, 0.0
  for row in range(B):
    live = LIVE[row]
    T = live.sum()
    f_E = E / (3 * T) * chosen_BLE[row, live].sum(0)
    share_LE = scores_BLE[row] / scores_BLE[row].sum(-1, keepdims=True)
    balance += T * (f_E * share_LE[live].mean(0)).sum()
    z += (np.log(np.exp(logits_BLE[row, live]).sum(-1)) ** 2).sum()
  load_E = chosen_BLE[LIVE].sum(0)
  want = {
    'balance_loss': 0.5 * balance,
    'router_z_loss': 2.0 * z,
    'imbalance': LIVE.sum() * (load_E.max() / load_E.mean() - 1),
  }
  assert aux.keys() == want.keys()
  for name, metric in aux.items():
    assert metric.weight == LIVE.sum()
    np.testing.assert_allclose(metric.total, want[name], rtol=1e-5)
  # Rows add up: microbatches have the loss of their batch.
  parts = [measured(rows, **settings)[1] for rows in (slice(3), slice(3, B))]
  for name in ('balance_loss', 'router_z_loss'):
    merged = metrics.merge(*(part[name] for part in parts))
    close(merged, aux[name])
  assert measured(balance_weight=0.0)[1].keys() == {'imbalance'}


def test_what_is_never_chosen_is_in_no_sum():
  module = mixture()
  params = start(module)

  def of(x_BLD):
    y_BLD, aux = say(module, params, x_BLD)
    return y_BLD, aux

  spoilt = jnp.where(LIVE[..., None], stream(), jnp.nan)
  (want_BLD, want), (got_BLD, got) = of(stream()), of(spoilt)
  np.testing.assert_array_equal(want_BLD[LIVE], got_BLD[LIVE])
  jax.tree.map(np.testing.assert_array_equal, want, got)


def batch(seed, rows):
  """Random tokens: nothing to learn but an even load."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, 1024, (rows, 64)).astype(np.int32)
  example = linen.example_batch(rows, 64)
  return example._replace(tokens=tokens, targets=np.roll(tokens, -1, axis=1))


def trained(settings, steps=200):
  """Trains a layer: imbalance before and after, on a held-out batch."""
  model = build(
    settings, vocab=1024, length=64, depth=1, init=base.init(std=0.5)
  )
  # Loads swing by the size of a bias's step: of six seeds the worst ends at
  # 0.07, and at 0.10 with steps twice as large.
  tx, _ = optimizers.make(
    steps=steps, peak=3e-3, warmup=10, balance_rate=2.5e-3
  )
  state = step.init_state(model.init(0, batch(0, 32)), tx=tx)
  update = jax.jit(
    partial(step.train_step, model=model, tx=tx, rng=jax.random.key(1)),
    donate_argnums=0,
  )
  held = batch(1_000_000, 128)
  measure = jax.jit(lambda p: model.apply(p, held).aux['imbalance'])
  before = metrics.value(measure(state.params))
  for n in range(steps):
    state, _ = update(state, batch(n, 32))
  return before, metrics.value(measure(state.params))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('settings', 'even'),
  [
    ({'balance_weight': 0.1}, True),
    (
      {'balance_weight': 0.0, 'balance_bias': True, 'scoring': 'sigmoid'},
      True,
    ),
    ({'balance_weight': 0.0}, False),
  ],
  ids=('loss', 'bias', 'neither'),
)
def test_loads_become_even(settings, even):
  before, after = trained(settings)
  assert before > 0.3
  assert after < 0.1 if even else after > 0.3


BIASED = {'balance_bias': True, 'balance_weight': 0.0, 'top_k': 1}
BIASED |= {'normalize': False}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['adamw', 'muon', 'adafactor'])
def test_a_bias_follows_the_error_of_its_load_alone(name):
  model = build(BIASED)
  settings: dict[str, Any] = {'steps': 10, 'peak': 0.1, 'balance_rate': 0.01}
  rule: dict[str, Any] = {'fn': f'lm.optim.rules:{name}'}
  if name == 'muon':
    rule['adam_peak'] = 0.1
  if name != 'adamw':
    rule['matrices'] = None
  settings |= optim.fitted({'rule': rule}, model)
  # A clip and a decay that would be seen.
  tx, _ = optimizers.make(clip=1e-3, decay=0.5, decay_mask='.', **settings)
  data = linen.example_batch(B, L)._replace(segments=SEGMENTS)
  rng = np.random.default_rng(0)
  data = data._replace(tokens=rng.integers(0, 64, (B, L)).astype(np.int32))
  state = step.init_state(model.init(0, data), tx=tx)
  update = partial(step.train_step, model=model, tx=tx, rng=jax.random.key(1))
  new, _ = jax.jit(update)(state, data)
  parts, _ = jax.jit(partial(update, microbatches=4))(state, data)
  # What the first layer chooses.
  seen = []
  plain, routing.choose = (
    routing.choose,
    lambda *a: seen.append(plain(*a)) or seen[-1],
  )
  try:
    model.apply(state.params, data)
  finally:
    routing.choose = plain
  load_E = np.bincount(np.asarray(seen[0][0])[LIVE].reshape(-1), minlength=E)
  want_E = 0.01 * np.sign(load_E.mean() - load_E)
  assert (want_E > 0).any()
  assert (want_E < 0).any()
  for result in (new, parts):
    got_E = result.params['layers_0']['mlp']['router_bias']
    np.testing.assert_allclose(got_E, want_E, rtol=1e-6)
  moments = [
    leaf for path, leaf in tree.paths(new.opt_state) if 'router_bias' in path
  ]
  assert moments
  for leaf in moments:
    # Adafactor begins its second moment at 1e-30.
    assert np.abs(leaf).max() < 1e-20 or leaf.dtype == jnp.int32


@pytest.mark.slow
def test_without_a_bias_no_optimizer_notices():
  params = {'mlp': {'up': jnp.ones((4, 4)), 'down': jnp.ones((4, 4))}}
  tx, _ = optimizers.make(steps=10, peak=0.1, clip=0.1)
  more = {'mlp': {**params['mlp'], 'router_bias': jnp.ones(4)}}
  grow = partial(jax.tree.map, lambda x: 3 * x)
  one: Any
  two: Any
  one, _ = tx.update(grow(params), tx.init(params), params)
  two, _ = tx.update(grow(more), tx.init(more), more)
  assert jax.tree.structure(tx.init(params)) != jax.tree.structure(
    tx.init(more)
  )
  np.testing.assert_array_equal(one['mlp']['up'], two['mlp']['up'])
  np.testing.assert_allclose(two['mlp']['router_bias'], -1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
  'layout',
  [
    {'expert': 8},
    {'expert': 2, 'sequence': 4},
    {'fsdp': 2, 'expert': 2, 'tensor': 2},
  ],
  ids=str,
)
@pytest.mark.parametrize('capacity', [None, 1.0], ids=('dropless', 'capacity'))
def test_a_mesh_changes_nothing(capacity, layout, capfd):
  if jax.device_count() < 8:
    pytest.skip('needs eight devices: CPU simulates them')
  params = start(mixture())
  scores_BLE = jax.nn.softmax(stream() @ params['router'])
  choices_BLK, weights_BLK = routing.choose(
    scores_BLE, scores_BLE, None, 2, True
  )
  choices_BLK = jnp.where(LIVE[..., None], choices_BLK, E)

  def run(x_BLD, weights_BLK, kernels):
    return dispatch.apply(
      x_BLD,
      choices_BLK,
      weights_BLK,
      kernels,
      activation='swiglu',
      capacity=capacity,
      dtype='float32',
      compute_dtype='float32',
    )

  args = stream(), weights_BLK, params['experts']
  want = gradients(run, *args)
  mesh = sharding.make_mesh(data=1, **layout)
  rows = NamedSharding(mesh, PartitionSpec(sharding.BATCH, 'sequence'))
  cut = NamedSharding(mesh, PartitionSpec('expert', 'fsdp', 'tensor'))
  down = NamedSharding(mesh, PartitionSpec('expert', 'tensor', 'fsdp'))
  with jax.set_mesh(mesh):
    got = gradients(
      run,
      *jax.device_put(
        args, (rows, rows, {'up': cut, 'gate': cut, 'down': down})
      ),
    )
  close(want, got)
  assert 'Involuntary full rematerialization' not in capfd.readouterr().err


@pytest.mark.slow
def test_first_layers_may_keep_an_mlp():
  dense = base.block(
    base.attention(heads=2),
    base.mlp(width=F, activation='swiglu'),
    base.layernorm(bias=False),
  )
  routed = dense | {'mlp': spec_of({})}
  model = build({}, blocks={'dense': dense, 'main': routed}, first=('dense',))
  data = linen.example_batch(2, L)
  params = model.init(0, data)
  assert params['layers_0']['mlp'].keys() == {'up', 'gate', 'down'}
  assert params['layers_1']['mlp'].keys() == {'router', 'experts'}
  # A metric's weight counts the layers that have it.
  assert model.apply(params, data).aux['imbalance'].weight == 2 * L


def test_only_experts_that_are_read_count_as_active():
  model = build({'shared_experts': 1}, scan=True)
  params = tree.shapes(model.parameters(linen.example_batch(1, L)))
  expert = 3 * D * F
  whole = flops.multiplied(params)
  assert flops.multiplied(params, top_k=2) == whole - 2 * (E - 2) * expert
  # As counted in what is computed, of which the router is a part.
  counted = flops.products(
    lambda p, x: say(mixture(shared_experts=1), p, x)[0],
    start(mixture(shared_experts=1)),
    stream(),
  )
  assert counted == B * L * 2 * (3 * expert + D * E)


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    ({'count': 0}, 'count=0 must be at least 1'),
    ({'top_k': 9}, 'top_k=9 is more than count=8 experts'),
    ({'width': 0}, 'width=0 must be at least 1'),
    ({'scoring': 'tanh'}, "scoring='tanh' is not one of softmax, sigmoid"),
    ({'shared_experts': -1}, 'shared_experts=-1 must be at least 0'),
    ({'top_k': 1}, 'learns nothing: set normalize=False'),
    ({'z_weight': -1.0}, 'z_weight=-1.0 must be at least 0'),
    ({'capacity': 0.0}, 'capacity=0.0 must be above 0'),
    ({'topk': 1}, 'lm.layers.experts:make has no parameter topk'),
  ],
)
def test_settings_that_do_not_fit_are_one_line(settings, said):
  with pytest.raises(Exception, match=said) as error:
    build(settings)
  assert '\n' not in str(error.value)
  assert len(str(error.value)) < 200
