"""Schedules at key points, optimizers against numpy and optax, scan = loop."""

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
import pytest

from lm import config, metrics, optim, tree
from lm.models import ngram
from lm.optim import masks, optimizers, rules, schedules, spikes

DEPTH, D, N, H, F, V = 2, 16, 4, 8, 40, 24
PLAIN: dict[str, Any] = {'steps': 10, 'peak': 0.1, 'schedule': 'constant'}
BARE: dict[str, Any] = PLAIN | {'clip': 0.0, 'decay': 0.0}
# size=8, so that these small matrices are factored.
MATRICES = (
  (r'attention/q$', 1, 2),
  (r'attention/o$', 2, 1),
  (r'mlp/up$', 1, 1),
)
SETTINGS: dict[str, dict[str, Any]] = {
  'adamw': {},
  'sgd': {'nesterov': True},
  'lion': {},
  'adafactor': {'size': 8, 'momentum': 0.5, 'matrices': MATRICES},
  'muon': {'adam_peak': 0.05, 'matrices': MATRICES},
  'normuon': {'adam_peak': 0.05, 'matrices': MATRICES},
  # A side of 40 without a factor, and the others with one.
  'soap': {'every': 2, 'max_size': 32, 'matrices': MATRICES},
  'soap_muon': {'adam_peak': 0.05, 'every': 2, 'matrices': MATRICES},
}


def _block(rng):
  # One leaf of each kind: each costs compile time in every test.
  return {
    'attention': {
      'q': rng.normal(size=(D, N, H)),
      'o': rng.normal(size=(N, H, D)),
      'q_norm': {'scale': rng.normal(size=H)},
    },
    'mlp': {'up': rng.normal(size=(D, F)), 'up_bias': rng.normal(size=F)},
  }


def _params(seed=0):
  rng = np.random.default_rng(seed)
  params = {f'layers_{i}': _block(rng) for i in range(DEPTH)}
  params |= {
    'embed': {'table': rng.normal(size=(V, D))},
    'final_norm': {'scale': rng.normal(size=D)},
  }
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def _stack(params):
  layers = [params[f'layers_{i}'] for i in range(DEPTH)]
  rest = {k: v for k, v in params.items() if not k.startswith('layers_')}
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
  return rest | {'layers': {'0': stacked}}


def _make(name: str, **settings: Any) -> Any:
  """Makes an optimizer; settings are those of its rule, and of all of them."""
  rule = getattr(rules, name)
  keys = {*inspect.signature(rule).parameters} & {*settings}
  own = SETTINGS[name] | {key: settings.pop(key) for key in keys}
  tx, _ = optimizers.make(rule=rule(**own), **(PLAIN | settings))
  return tx


def _updates(tx, params, gradients):
  """Yields the updates of some steps, the parameters moving."""
  state = tx.init(params)
  update = jax.jit(tx.update)
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    yield updates


def _close(a, b, tolerance=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-7),
    a,
    b,
  )


# Schedules.


@pytest.mark.parametrize(
  'schedule', ['constant', 'cosine', 'linear', 'rsqrt', 'wsd']
)
@pytest.mark.parametrize(('share', 'updates'), [(0.2, 20), (0.004, 0)])
def test_a_warmup_below_1_is_a_share_of_the_steps(schedule, share, updates):
  settings = {'steps': 100, 'peak': 2.0, 'schedule': schedule}
  by_share = schedules.make(warmup=share, **settings)
  by_count = schedules.make(warmup=updates, **settings)
  numbers = np.arange(100)
  np.testing.assert_array_equal(
    jax.vmap(by_share)(numbers) * np.ones(100),
    jax.vmap(by_count)(numbers) * np.ones(100),
  )


@pytest.mark.parametrize(
  ('settings', 'want'),
  [
    ({'schedule': 'constant', 'warmup': 4}, {0: 0.2, 3: 0.8, 4: 1, 99: 1}),
    ({'schedule': 'cosine'}, {0: 1, 50: 0.5, 100: 0, 120: 0}),
    (
      {'schedule': 'cosine', 'warmup': 20, 'final': 0.1},
      {0: 1 / 21, 19: 20 / 21, 20: 1, 60: 0.55, 100: 0.1},
    ),
    (
      {'schedule': 'linear', 'warmup': 20, 'final': 0.5},
      {20: 1, 60: 0.75, 100: 0.5, 120: 0.5},
    ),
    (
      {'schedule': 'rsqrt', 'warmup': 4, 'final': 0.25},
      {3: 0.8, 4: 1, 16: 0.5, 36: 1 / 3, 100: 0.25},
    ),
    ({'schedule': 'rsqrt'}, {0: 1, 3: 0.5, 99: 0.1}),
    (
      {'schedule': 'wsd', 'warmup': 10, 'decay_fraction': 0.4},
      {9: 10 / 11, 10: 1, 60: 1, 70: 0.75, 100: 0},
    ),
    (
      {'schedule': 'wsd', 'cooldown': 'sqrt', 'final': 0.1},
      {0: 1, 60: 1, 70: 0.55, 100: 0.1, 120: 0.1},
    ),
    (
      {'schedule': 'wsd', 'cooldown': 'power', 'cooldown_power': 2.0},
      {0: 1, 60: 1, 70: 0.5625, 80: 0.25, 100: 0, 120: 0},
    ),
    (
      {'schedule': 'wsd', 'cooldown': 'power', 'final': 0.1},
      {60: 1, 80: 0.1 + 0.9 * 0.5**1.4, 100: 0.1},
    ),
    ({'schedule': 'wsd', 'decay_fraction': 0.0}, {0: 1, 99: 1}),
    ({'schedule': 'linear', 'warmup': 100}, {99: 100 / 101, 100: 1}),
    ({'schedule': 'linear', 'warmup': 1.0}, {0: 0.5, 1: 1}),
  ],
)
def test_schedule_at_key_points(settings, want):
  rate = schedules.make(steps=100, peak=2.0, **settings)
  jitted = jax.jit(rate)
  for step, value in want.items():
    np.testing.assert_allclose(rate(step), 2 * value, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jitted(step), rate(step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'warmup': 11}, 'optim.warmup=11: give a number from 0 to 10'),
    ({'warmup': 1.5}, 'optim.warmup=1.5: give a whole number of steps, or bel'),
    ({'warmup': -1}, 'optim.warmup=-1: give'),
    ({'steps': 0}, 'optim.steps=0: give'),
    ({'peak': 0.0}, 'optim.peak=0.0: give'),
    ({'peak': float('nan')}, 'optim.peak=nan: give'),
    ({'peak': float('inf')}, 'optim.peak=inf: give'),
    ({'final': 1.5}, 'optim.final=1.5: give a number from 0 to 1'),
    ({'schedule': 'cosin'}, "optim.schedule='cosin': use constant, cosine,"),
    ({'schedule': 'wsd', 'cooldown': 'x'}, "optim.cooldown='x': use linear"),
    ({'cooldown_power': 0.0}, 'optim.cooldown_power=0.0: give a number from'),
    ({'schedule': 'wsd', 'warmup': 9}, 'optim.decay_fraction=0.4: warmup=9'),
    ({'clip': -1.0}, 'optim.clip=-1.0: give'),
    ({'l1': float('nan')}, 'optim.l1=nan: give'),
    ({'peak': 1e39}, 'optim.peak=1e+39: give a number from 1e-12 to 3.40282e'),
    ({'b2': 1.0}, 'optim.rule.b2=1.0: give'),
    ({'b2': 1 - 1e-9}, 'optim.rule.b2=0.999999999: give a number from 0 to be'),
    ({'eps': 0}, 'optim.rule.eps=0: give a number from 1.17549e-38 to'),
    ({'eps': 1e-45}, 'optim.rule.eps=1e-45: give'),
    (
      {'moment_dtype': 'int8'},
      "optim.rule.moment_dtype='int8': use float32 or bfloat16",
    ),
    ({'decay_mask': '('}, "optim.decay_mask='(': not a regex:"),
    ({'freeze': '('}, "optim.freeze='(': not a regex:"),
    ({'decay_where': 'x'}, "optim.decay_where='x': use everywhere or aligned"),
    ({'layer_decay': 1.1}, 'optim.layer_decay=1.1: give a number from 0 to 1'),
  ],
)
def test_refuses_bad_settings(settings, message):
  with pytest.raises(ValueError, match='^' + re.escape(message)) as error:
    _make('adamw', **settings)
  assert len(str(error.value)) <= 200 and '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('name', 'key', 'value'),
  [
    ('muon', 'eps', 0.0),
    ('muon', 'b1', 1.0),
    ('muon', 'update_rms', -1.0),
    ('adafactor', 'eps', 0.0),
    ('adafactor', 'power', -0.8),
    ('adafactor', 'size', 0),
    ('adafactor', 'threshold', 0.0),
    ('lion', 'b2', float('nan')),
    ('sgd', 'momentum', 1.0),
    ('normuon', 'neuron_b2', 1.0),
    ('normuon', 'update_rms', -1.0),
    ('soap', 'shampoo_beta', 1.0),
    ('soap', 'every', 0),
    ('soap', 'max_size', -1),
    ('soap_muon', 'every', 0.5),
    ('soap_muon', 'shampoo_beta', -0.1),
  ],
)
def test_refuses_bad_settings_of_rules(name, key, value):
  with pytest.raises(ValueError) as error:
    _make(name, **{key: value})
  assert str(error.value).startswith(f'optim.rule.{key}={value}: give a number')


@pytest.mark.parametrize('key', ['decay_mask', 'freeze'])
def test_refuses_a_regex_that_matches_nothing(key):
  tx = _make('adamw', **{key: 'atention'})
  with pytest.raises(ValueError, match=f"optim.{key}='atention': matches no"):
    tx.init(_params())


@pytest.mark.parametrize('name', ['muon', 'normuon', 'soap', 'soap_muon'])
def test_muon_refuses_parameters_without_matrices(name):
  with pytest.raises(ValueError, match=r'optim\.rule\.matrices: no param'):
    _make(name).init({'embed': {'table': jnp.ones((4, 4))}})


@pytest.mark.parametrize('name', SETTINGS)
def test_a_config_shows_every_setting(name):
  rule = {'fn': f'lm.optim.rules:{name}', **SETTINGS[name]}
  spec = {'fn': 'lm.optim.optimizers:make', 'peak': 0.1, 'rule': rule}
  full = config.fill({'optim': spec}).optim
  shared = {*inspect.signature(optimizers.make).parameters} - {'steps'}
  assert {*full} == shared | {'fn'}
  own = inspect.signature(getattr(rules, name)).parameters
  assert {*full.rule} == {*own, 'fn'}
  tx, rate = config.build(full, steps=3)
  assert tx.init(_params()) and float(rate(0)) == pytest.approx(0.1)
  with pytest.raises(config.ConfigError, match='has no parameter warm_up; did'):
    config.build(spec | {'warm_up': 3}, steps=3)
  with pytest.raises(config.ConfigError, match=f'rules:{name} has no param'):
    config.build(spec | {'rule': rule | {'b9': 0.5}}, steps=3)


# Optimizers, against numpy and optax.


def test_adamw_is_numpy_adamw():
  params, gradients = _params(), [_params(1), _params(2)]
  got = list(_updates(_make('adamw', clip=0.0), params, gradients))
  w = np.asarray(params['embed']['table'])
  m = v = 0
  for t, (gradient, update) in enumerate(zip(gradients, got, strict=True), 1):
    g = np.asarray(gradient['embed']['table'])
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
    unit = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    want = -0.1 * (unit + 0.1 * w)
    np.testing.assert_allclose(update['embed']['table'], want, rtol=1e-5)
    w = w + want


def test_adamw_is_optax_adamw():
  params, gradients = _params(), [_params(i) for i in (1, 2, 3)]
  rate = schedules.make(steps=10, peak=0.1, schedule='cosine', warmup=2)
  reference = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      rate, b2=0.95, weight_decay=0.1, mask=masks.matching('', masks.DECAYED)
    ),
  )
  tx = _make('adamw', schedule='cosine', warmup=2)
  _close(
    list(_updates(tx, params, gradients)),
    list(_updates(reference, params, gradients)),
  )


@pytest.mark.parametrize(
  ('name', 'settings', 'reference'),
  [
    ('sgd', {}, optax.sgd(0.1, 0.9, nesterov=True)),
    ('sgd', {'momentum': 0.0}, optax.sgd(0.1)),
    ('lion', {}, optax.lion(0.1, weight_decay=0.0)),
  ],
)
def test_is_the_optax_optimizer(name, settings, reference):
  params, gradients = _params(), [_params(1), _params(2)]
  tx = _make(name, clip=0.0, decay=0.0, **settings)
  _close(
    list(_updates(tx, params, gradients)),
    list(_updates(reference, params, gradients)),
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['adamw', 'lion', 'muon'])
def test_first_moments_in_bfloat16_change_little(name):
  params, gradients = _params(), [_params(1), _params(2)]
  narrow = _make(name, moment_dtype='bfloat16')
  types = {
    str(leaf.dtype)
    for path, leaf in tree.paths(jax.eval_shape(narrow.init, params))
    if '/mu/' in path
  }
  assert types == {'bfloat16'}
  wide = list(_updates(_make(name), params, gradients))
  for a, b in zip(wide, _updates(narrow, params, gradients), strict=True):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
      assert y.dtype == jnp.float32
      assert jnp.linalg.norm(x - y) < 0.03 * jnp.linalg.norm(x)


def test_lion_and_sgd_are_numpy():
  w, g1, g2 = (np.asarray(_params(i)['embed']['table']) for i in range(3))

  def tree_of(x):
    return {'embed': {'table': jnp.asarray(x)}}

  for name, want in (
    ('lion', np.sign(0.9 * 0.01 * g1 + 0.1 * g2)),
    ('sgd', g2 + 0.9 * (g2 + 0.9 * g1)),
  ):
    tx = _make(name, clip=0.0, decay=0.0)
    _, got = _updates(tx, tree_of(w), [tree_of(g1), tree_of(g2)])
    np.testing.assert_allclose(got['embed']['table'], -0.1 * want, rtol=1e-4)


def test_adafactor_is_optax_adafactor_on_single_matrices():
  def keep(p):
    return {k: p[k] for k in ('embed', 'final_norm')}

  params, gradients = keep(_params()), [keep(_params(i)) for i in (1, 2, 3)]
  for scaled in (True, False):
    reference = optax.adafactor(
      0.1, min_dim_size_to_factor=8, multiply_by_parameter_scale=scaled
    )
    tx = _make(
      'adafactor', clip=0.0, decay=0.0, momentum=0.0, parameter_scale=scaled
    )
    _close(
      list(_updates(tx, params, gradients)),
      list(_updates(reference, params, gradients)),
      1e-5,
    )


def test_adafactor_factors_heads_as_one_matrix():
  tx = _make('adafactor', clip=0.0, decay=0.0, momentum=0.0)
  params, gradient = _params(), _params(1)
  (got,) = _updates(tx, params, [gradient])
  for name, rows in (('q', D), ('o', N * H)):
    g = np.asarray(gradient['layers_0']['attention'][name]).reshape(rows, -1)
    w = np.asarray(params['layers_0']['attention'][name])
    row, column = (g**2).mean(1), (g**2).mean(0)
    unit = g / np.sqrt(np.outer(row, column) / row.mean())
    unit /= max(1, np.sqrt((unit**2).mean()))
    want = -0.1 * unit.reshape(w.shape) * np.sqrt((w**2).mean())
    update = got['layers_0']['attention'][name]
    np.testing.assert_allclose(update, want, rtol=1e-4)
  state = tx.init(params)['scale']
  assert state.v_row['layers_0']['attention']['q'].shape == (1, D)
  assert state.v_col['layers_0']['attention']['q'].shape == (1, N * H)
  assert state.v['layers_0']['attention']['q'].shape == (1, 1)


@pytest.mark.parametrize('scanned', [False, True])
def test_muon_updates_are_near_orthogonal(scanned):
  params, gradient = _params(), _params(1)
  if scanned:
    params, gradient = _stack(params), _stack(gradient)
  tx = _make('muon', clip=0.0, decay=0.0)
  (updates,) = _updates(tx, params, [gradient])
  seen = 0
  for path, update in tree.paths(updates):
    dims = masks.dimensions(path, MATRICES)
    if dims is None:
      continue
    rows = np.prod([update.shape[d] for d in dims[0]])
    columns = np.prod([update.shape[d] for d in dims[1]])
    matrices = np.asarray(update).reshape(-1, rows, columns)
    seen += len(matrices)
    unit = matrices / (0.1 * 0.2 * max(rows, columns) ** 0.5)
    values = np.linalg.svd(unit, compute_uv=False)
    assert values.min() > 0.7 and values.max() < 1.2, (path, values)
  assert seen == 3 * DEPTH


@pytest.mark.parametrize('rms', [0.2, 0.0])
def test_muon_is_optax_muon_on_matrices_and_adam_elsewhere(rms):
  def keep(p):
    return {'mlp': {'up': p['layers_0']['mlp']['up']}, 'embed': p['embed']}

  params, gradients = keep(_params()), [keep(_params(i)) for i in (1, 2)]
  tx = _make('muon', clip=0.0, decay=0.0, update_rms=rms, peak=1e-3)
  ready = contrib.muon(1e-3, ns_coeffs='dion', consistent_rms=rms or None)
  adam = optax.adam(0.05, b2=0.95)
  for mine, matrices, rest in zip(
    *(_updates(t, params, gradients) for t in (tx, ready, adam)), strict=True
  ):
    _close(mine['mlp'], matrices['mlp'], 1e-3)
    _close(mine['embed'], rest['embed'])


def test_muon_decays_each_group_by_its_own_rate():
  params = {'mlp': {'up': jnp.ones((4, 8))}, 'embed': {'table': jnp.ones(4)}}
  zero = jax.tree.map(jnp.zeros_like, params)
  (got,) = _updates(_make('muon', decay=0.5), params, [zero])
  np.testing.assert_allclose(got['mlp']['up'], np.full((4, 8), -0.05), 1e-5)
  np.testing.assert_allclose(got['embed']['table'], np.full(4, -0.025), 1e-5)


# Of one gradient SOAP's larger side has eigenvalues of 0, whose eigenvectors
# rounding chooses: tests/optim/soap_test.py gives it gradients without any.
@pytest.mark.slow
@pytest.mark.parametrize('name', [x for x in SETTINGS if 'soap' not in x])
def test_scanned_layers_update_as_unrolled_ones(name):
  tx = _make(name, l1=0.01, l2=0.01, clip=5.0)
  params, gradients = _params(), [_params(1), _params(2)]
  unrolled = _updates(tx, params, gradients)
  scanned = _updates(tx, _stack(params), map(_stack, gradients))
  for a, b in zip(unrolled, scanned, strict=True):
    # Rounding grows where a gradient and its penalties nearly cancel.
    _close(_stack(a), b, 2e-4)


def test_what_a_model_fixes_is_named_beside_what_a_config_does():
  def freeze(spec, fixed):
    model = ngram.make(vocab=2, order=2)._replace(fixed=fixed)
    return optim.fitted(spec, model).get('freeze', '')

  assert optim.fitted({'peak': 1.0}, ngram.make(vocab=2, order=2)) == {
    'peak': 1.0
  }
  found = re.compile(freeze({'freeze': 'bias$'}, ('a/(?!b)',)))
  names = ('a/c', 'a/b', 'x/a/c', 'x/bias')
  assert [bool(found.search(name)) for name in names] == [
    True,
    False,
    False,
    True,
  ]


@pytest.mark.parametrize('freeze', ['', 'layers_1/'])
def test_layer_decay_slows_what_is_below(freeze):
  params, gradient = _params(), _params(1)
  for block in (params['layers_0'], gradient['layers_0']):
    block['router_bias'] = jnp.ones(4)  # follows loads, at a rate of its own
  tx = _make('adamw', freeze=freeze, layer_decay=0.5)
  (got,) = _updates(tx, params, [gradient])
  (whole,) = _updates(_make('adamw', freeze=freeze), params, [gradient])
  rates = {'layers_0': 0.25, 'layers_1': 0.5, 'embed': 0.125}
  want = {
    name: jax.tree.map(lambda x, name=name: x * rates.get(name, 1.0), part)
    for name, part in whole.items()
  }
  want['layers_0']['router_bias'] = whole['layers_0']['router_bias']
  _close(got, want)


def test_layer_decay_slows_stacks_and_changes_alike():
  params, gradient = _params(), _params(1)
  tx = _make('adamw', layer_decay=0.5)
  (got,) = _updates(tx, params, [gradient])
  (scanned,) = _updates(tx, _stack(params), [_stack(gradient)])
  _close(_stack(got), scanned)
  # Without `clip`, whose norm is that of both.
  tx = _make('adamw', layer_decay=0.5, clip=0.0)
  (got,) = _updates(tx, params, [gradient])
  both = [{'body': x, 'lora': x} for x in (params, gradient)]
  (twice,) = _updates(tx, both[0], both[1:])
  _close(twice, {'body': got, 'lora': got})


def test_layer_decay_refuses_what_has_no_layers():
  params = {'embed': _params()['embed']}
  with pytest.raises(ValueError) as caught:
    _make('adamw', layer_decay=0.9).init(params)
  assert str(caught.value) == (
    'optim.layer_decay=0.9: no parameter is in a layer: set it to 1'
  )


# Without noise a gradient is diagonal in the bases of SOAP-Muon, which makes
# what rounding leaves beside the diagonal as large: see soap_test.py.
@pytest.mark.parametrize('name', [x for x in SETTINGS if x != 'soap_muon'])
def test_reduces_a_quadratic(name):
  def keep(p):
    return {k: p[k] for k in ('layers_0', 'embed')}

  params, target = keep(_params()), keep(_params(5))
  tx = _make(name, clip=0.0, decay=0.0, steps=100, schedule='linear')

  def loss(p):
    return sum(
      jnp.sum((x - y) ** 2) / 2
      for x, y in zip(jax.tree.leaves(p), jax.tree.leaves(target), strict=True)
    )

  def step(carry, _):
    p, state = carry
    updates, state = tx.update(jax.grad(loss)(p), state, p)
    return (optax.apply_updates(p, updates), state), None

  run = jax.jit(
    lambda p: jax.lax.scan(step, (p, tx.init(p)), None, length=100)[0][0]
  )
  before, after = jax.jit(loss)(params), jax.jit(loss)(run(params))
  assert after < 0.2 * before


# The shared chain.


def test_decay_mask_leaves_norms_and_biases():
  params = _params()
  zero = jax.tree.map(jnp.zeros_like, params)
  (default,) = _updates(_make('sgd', decay=0.5), params, [zero])
  (chosen,) = _updates(
    _make('sgd', decay=0.5, decay_mask='/mlp/'), params, [zero]
  )
  for (path, update), (_, other), (_, w) in zip(
    tree.paths(default), tree.paths(chosen), tree.paths(params), strict=True
  ):
    kept = path.endswith(('scale', 'bias'))
    np.testing.assert_allclose(update, w * (0.0 if kept else -0.05), 1e-5)
    np.testing.assert_allclose(
      other, w * (-0.05 if '/mlp/' in path else 0), 1e-5
    )


def test_cautious_decay_leaves_what_an_update_pushes_away_from_0():
  w = {'w': jnp.asarray([2.0, 2.0, -2.0, -2.0, 2.0, 0.0])}
  gradient = {'w': jnp.asarray([1.0, -1.0, 1.0, -1.0, 0.0, 1.0])}
  tx = _make(
    'sgd', momentum=0.0, decay_where='aligned', **(BARE | {'decay': 0.5})
  )
  (got,) = _updates(tx, w, [gradient])
  # A positive update makes a weight smaller. Without one weights decay.
  want = [-0.1 * (1 + 1), 0.1, -0.1, 0.1 * (1 + 1), -0.1, -0.1]
  np.testing.assert_allclose(got['w'], want, rtol=1e-6)
  # Products of these are flushed to 0.
  tiny = jax.tree.map(lambda x: x * 1e-30, (w, gradient))
  (got,) = _updates(tx, tiny[0], [tiny[1]])
  np.testing.assert_allclose(got['w'] * 1e30, want, rtol=1e-6)


@pytest.mark.parametrize('name', SETTINGS)
def test_cautious_decay_follows_the_update_of_every_rule(name):
  params, gradients = _params(), [_params(1), _params(2)]
  plain = [*_updates(_make(name, decay=0.0), params, gradients[:1])]
  (got,) = _updates(
    _make(name, decay=0.3, decay_where='aligned'), params, gradients[:1]
  )
  for (path, update), (_, free), (_, w) in zip(
    *map(tree.paths, (got, plain[0], params)), strict=True
  ):
    rate = 0.05 if 'adam_peak' in SETTINGS[name] else 0.1
    rate = 0.1 if masks.dimensions(path, MATRICES) else rate
    decayed = 0 if path.endswith(('scale', 'bias')) else -rate * 0.3 * w
    want = free + jnp.where(jnp.sign(free) * jnp.sign(w) <= 0, decayed, 0)
    np.testing.assert_allclose(update, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('key', ['l1', 'l2'])
def test_penalties_add_their_gradient(key):
  params, gradient, towards = _params(), _params(1), _params(2)
  tx = _make('sgd', momentum=0.0, **(BARE | {key: 0.3}))
  (got,) = _updates(tx, params, [gradient])

  def penalty(w):
    return 0.3 * (np.abs(w).sum() if key == 'l1' else (w**2).sum() / 2)

  for (path, w), (_, update), (_, g), (_, d) in zip(
    *map(tree.paths, (params, got, gradient, towards)), strict=True
  ):
    added = update / -0.1 - g
    if path.endswith(('scale', 'bias')):
      np.testing.assert_allclose(added, np.zeros(w.shape), atol=1e-6)
      continue
    w, d = np.asarray(w, np.float64), np.asarray(d, np.float64)
    numeric = (penalty(w + 1e-6 * d) - penalty(w - 1e-6 * d)) / 2e-6
    np.testing.assert_allclose((added * d).sum(), numeric, rtol=1e-3)


@pytest.mark.parametrize('freeze', ['', '^embed'])
@pytest.mark.parametrize('name', SETTINGS)
def test_a_spike_makes_no_finite_update(name, freeze):
  params, gradient = _params(), _params(1)
  tx = _make(name, freeze=freeze, spike_factor=3.0)
  update = jax.jit(tx.update)
  state = tx.init(params)

  def is_finite(factor):
    scaled = jax.tree.map(lambda g: g * factor, gradient)
    updates, _ = update(scaled, state, params)
    return metrics.all_finite(updates)

  for _ in range(spikes.WINDOW):
    assert is_finite(100.0)  # there is no median yet
    _, state = update(gradient, state, params)
  assert is_finite(2.9) and is_finite(0.1)
  assert not is_finite(3.1)


def test_penalties_are_not_clipped_and_gradients_are():
  w = {'w': jnp.asarray([3.0, 4.0])}
  tx = _make('sgd', momentum=0.0, l2=1.0, **(BARE | {'clip': 1.0}))
  (got,) = _updates(tx, w, [{'w': jnp.asarray([30.0, 40.0])}])
  np.testing.assert_allclose(got['w'], [-0.36, -0.48], rtol=1e-5)
  tx = _make('sgd', momentum=0.0, **BARE)
  (got,) = _updates(tx, w, [{'w': jnp.asarray([30.0, 40.0])}])
  np.testing.assert_allclose(got['w'], [-3.0, -4.0], rtol=1e-5)


@pytest.mark.parametrize('name', SETTINGS)
def test_frozen_leaves_stay_and_hold_no_state(name):
  params, gradient = _params(), _params(1)
  tx = _make(name, freeze=r'^embed|layers_0/')
  (got,) = _updates(tx, params, [gradient])
  for path, update in tree.paths(got):
    frozen = path.startswith(('embed', 'layers_0/'))
    assert bool(jnp.any(update != 0)) != frozen, path
  state = [path for path, _ in tree.paths(tx.init(params))]
  assert state and not any(re.search('embed|layers_0/', p) for p in state)


def test_state_paths_do_not_depend_on_settings():
  params = _params()
  full = _make('adamw', l1=0.1, l2=0.1, layer_decay=0.9)
  bare = _make('adamw', clip=0.0, decay=0.0, schedule='wsd')
  have, want = (jax.eval_shape(tx.init, params) for tx in (full, bare))
  assert tree.diff(have, want) == []
  assert 'scale/mu/layers_0/attention/q' in dict(tree.paths(have))


@pytest.mark.parametrize('freeze', ['', '^embed'])
@pytest.mark.parametrize('scanned', [False, True])
@pytest.mark.parametrize('name', SETTINGS)
def test_state_leaves_have_a_parameters_shape_or_a_row(name, scanned, freeze):
  """Rows of `optim.AXES` take exactly what a model's table would misplace."""
  params = _stack(_params()) if scanned else _params()
  shapes = {path: leaf.shape for path, leaf in tree.paths(params)}
  sphere = {'sphere': 'neuron', 'matrices': MATRICES}
  if 'matrices' in SETTINGS[name]:
    sphere = {}
  tx = _make(name, freeze=freeze, spike_factor=10.0, **sphere)
  state = {'opt_state': jax.eval_shape(tx.init, params)}
  for path, leaf in tree.paths(state):
    row = [axes for regex, axes in optim.AXES if re.search(regex, path)]
    own = [s for p, s in shapes.items() if path.endswith('/' + p)]
    if re.search('/(factors|bases)/', path):
      assert row == [(None, None, 'embed')] and len(leaf.shape) == 3, path
    elif re.search(
      '/(v_row|v_col|v|neurons|radius)/[^/]+/|ns_coeffs|spikes/norms', path
    ):
      assert row == [()], path
    else:
      assert not row, path
      assert leaf.shape == () or own == [leaf.shape], path
