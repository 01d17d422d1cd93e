"""The laws of every model: a new family inherits them by one row in MODELS."""

from functools import partial
import math

import jax
import numpy as np
import optax
import pytest

from lm import checkpoint, generate, loss, optim, sharding, step, tree, types
from lm.layers import stack
from lm.models import decoder

V, L, B = 64, 16, 8
TINY = {'vocab': V, 'length': 32, 'width': 32, 'depth': 2, 'heads': 4}
# name -> (make, settings); tiny, float32, and no dropout unless asked for.
MODELS = {
  'gpt2': (decoder.make, TINY),
  'llama': (
    decoder.make,
    TINY
    | {
      'norm': 'rmsnorm',
      'positions': 'rope',
      'activation': 'swiglu',
      'bias': False,
      'kv_heads': 2,
      'mlp': 48,
      'tied': False,
    },
  ),
  'modern': (
    decoder.make,
    TINY
    | {
      'norm': 'rmsnorm',
      'positions': 'rope',
      'activation': 'relu2',
      'bias': False,
      'head_width': 16,
      'qk_norm': True,
      'attention_softcap': 20.0,
      'logit_softcap': 15.0,
      'kernel_std': None,
    },
  ),
}
RULES = {
  'vocab': 'tensor',
  'embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
}
MESHES = [(8, 1, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 4, 2)]

laws = pytest.mark.parametrize('name', list(MODELS))


@pytest.fixture(scope='module', autouse=True)
def forget_compiled():
  """Frees what this module compiled; eight devices hold a lot of code."""
  yield
  jax.clear_caches()


def build(name: str, **changes) -> types.Model:
  make, settings = MODELS[name]
  return make(**settings | changes)


def packed(seed: int = 0, rows: int = B, length: int = L) -> types.Batch:
  """Random documents of uneven lengths, packed, with padding at the end."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, V, (rows, length + 1)).astype(np.int32)
  segments = np.zeros((rows, length), np.int32)
  positions = np.zeros((rows, length), np.int32)
  for b in range(rows):
    start, document = 0, 1
    used = length - int(rng.integers(0, 4))
    while start < used:
      stop = min(used, start + int(rng.integers(2, 8)))
      segments[b, start:stop] = document
      positions[b, start:stop] = np.arange(stop - start)
      start, document = stop, document + 1
  weights = (segments > 0).astype(np.float32)
  return types.Batch(
    tokens[:, :-1], tokens[:, 1:], weights, positions, segments
  )


def random_params(model: types.Model, seed: int = 0) -> types.Params:
  """Initial parameters plus noise: zeros and ones would hide errors."""
  params = model.init(jax.random.key(seed), packed())
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return treedef.unflatten(
    x + 0.1 * jax.random.normal(k, x.shape)
    for x, k in zip(leaves, keys, strict=True)
  )


def logits(model: types.Model, params: types.Params, batch: types.Batch):
  return np.asarray(jax.jit(model.apply)(params, batch).logits)


def trainer(model: types.Model, **kw):
  """Returns an initial state and a compiled step for it."""
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
  state = step.init_state(jax.random.key(0), packed(), model=model, tx=tx)
  update = jax.jit(
    partial(step.train_step, model=model, tx=tx, rng=jax.random.key(1), **kw)
  )
  return state, update


def run(state, update, steps: int, first: int = 0):
  losses = []
  for n in range(first, first + steps):
    state, metrics = update(state, packed(n))
    losses.append(float(metrics['loss_nats'].total))
  return state, np.array(losses)


def assert_trees_equal(a, b):
  for (path, x), (_, y) in zip(tree.paths(a), tree.paths(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), path)


@laws
def test_a_position_sees_nothing_to_its_right(name):
  model = build(name)
  params, batch = random_params(model), packed()
  before = logits(model, params, batch)
  for l in (1, L // 2, L - 1):
    tokens = batch.tokens.copy()
    tokens[:, l:] = (tokens[:, l:] + 1) % V
    after = logits(model, params, batch._replace(tokens=tokens))
    np.testing.assert_array_equal(before[:, :l], after[:, :l])
    assert np.abs(before[:, l:] - after[:, l:]).max() > 1e-3


@laws
def test_a_packed_document_reads_as_if_alone(name):
  model = build(name)
  params, batch = random_params(model), packed()
  whole = logits(model, params, batch)
  for b in range(2):
    for document in range(1, batch.segments[b].max() + 1):
      where = np.flatnonzero(batch.segments[b] == document)
      # The same shape as the packed batch, so that one compilation serves all.
      alone = jax.tree.map(np.zeros_like, batch)
      for field in ('tokens', 'segments', 'positions'):
        getattr(alone, field)[0, : len(where)] = getattr(batch, field)[b, where]
      got = logits(model, params, alone)[0, : len(where)]
      np.testing.assert_allclose(whole[b, where], got, atol=2e-5)


@laws
def test_what_stands_in_padding_does_not_matter(name):
  model = build(name)
  params, batch = random_params(model), packed()
  padding = batch.segments == 0
  assert padding.any()
  tokens = np.where(padding, (batch.tokens + 7) % V, batch.tokens)
  metric = loss.token_loss(model.apply(params, batch).logits, batch)
  other = batch._replace(tokens=tokens, targets=np.where(padding, 0, tokens))
  again = model.apply(params, other).logits
  np.testing.assert_array_equal(
    model.apply(params, batch).logits[~padding], again[~padding]
  )
  assert float(metric.weight) == (~padding).sum()


@laws
@pytest.mark.parametrize('scan', [False, True])
def test_prefill_and_decoding_equal_one_pass(name, scan):
  model = build(name, scan=scan)
  params, batch = random_params(model), packed()
  whole = logits(model, params, batch)
  apply = jax.jit(lambda p, b, c: model.apply(p, b, cache=c))
  cache = model.start(params, batch, L)
  for first, stop in ((0, 6), (6, 7), (7, 8), (8, L)):
    part = jax.tree.map(lambda x, i=first, j=stop: x[:, i:j], batch)
    out = apply(params, part, cache)
    cache = out.cache
    np.testing.assert_allclose(whole[:, first:stop], out.logits, atol=2e-5)


@laws
def test_initial_loss_is_that_of_a_uniform_guess(name):
  model = build(name)
  params, batch = model.init(jax.random.key(0), packed()), packed()
  metric = loss.token_loss(model.apply(params, batch).logits, batch)
  assert float(metric.total / metric.weight) == pytest.approx(
    math.log(V), rel=0.05
  )


@laws
def test_overfits_one_batch(name):
  state, update = trainer(build(name))
  for _ in range(150):
    state, metrics = update(state, packed(0))
  metric = metrics['loss_nats']
  assert float(metric.total / metric.weight) < 0.2


@laws
def test_microbatches_of_uneven_weight_equal_one_batch(name):
  model = build(name)
  state, whole = trainer(model)
  _, parts = trainer(model, microbatches=4)
  a, losses = run(state, whole, 4)
  b, other = run(state, parts, 4)
  np.testing.assert_allclose(losses, other, rtol=1e-5)
  for (path, x), (_, y) in zip(
    tree.paths(a.params), tree.paths(b.params), strict=True
  ):
    np.testing.assert_allclose(x, y, atol=1e-4, err_msg=path)


@laws
def test_scanned_layers_equal_unrolled_ones(name):
  model, scanned = build(name), build(name, scan=True)
  params, batch = random_params(model), packed()
  stacked = stack.stack_params(params)
  assert_trees_equal(stack.unstack_params(stacked), params)
  np.testing.assert_allclose(
    logits(model, params, batch), logits(scanned, stacked, batch), atol=2e-5
  )


@laws
@pytest.mark.parametrize(
  ('remat', 'scan'), [('full', True), ('dots', False)], ids=str
)
def test_rematerialization_changes_nothing(name, remat, scan):
  def gradient(model, params):
    def total(p):
      return loss.token_loss(model.apply(p, packed()).logits, packed()).total

    return jax.jit(jax.grad(total))(params)

  plain, saving = build(name, scan=scan), build(name, scan=scan, remat=remat)
  params = random_params(plain)
  for (path, x), (_, y) in zip(
    tree.paths(gradient(plain, params)),
    tree.paths(gradient(saving, params)),
    strict=True,
  ):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5, err_msg=path)


@laws
def test_bfloat16_is_near_float32(name):
  model = build(name)
  params, batch = random_params(model), packed()
  whole = logits(model, params, batch)
  for changes in (
    {'operands': 'bfloat16'},
    {'operands': 'bfloat16', 'dtype': 'bfloat16'},
  ):
    narrow = logits(build(name, **changes), params, batch)
    # 8 bits of mantissa, through some ten roundings.
    assert np.abs(whole - narrow).max() < 0.1 * np.abs(whole).max()
    assert np.abs(whole - narrow).max() > 0


@laws
def test_dropout_is_on_exactly_with_a_key(name):
  model = build(name, dropout=0.5)
  params, batch = random_params(model), packed()
  quiet = model.apply(params, batch).logits
  np.testing.assert_array_equal(quiet, build(name).apply(params, batch).logits)
  noisy = model.apply(params, batch, rng=jax.random.key(0)).logits
  again = model.apply(params, batch, rng=jax.random.key(0)).logits
  other = model.apply(params, batch, rng=jax.random.key(1)).logits
  np.testing.assert_array_equal(noisy, again)
  assert np.abs(noisy - quiet).max() > 0.01
  assert np.abs(noisy - other).max() > 0.01


@laws
def test_resuming_gives_the_same_bits(name, tmp_path):
  state, update = trainer(build(name, dropout=0.1))
  straight, _ = run(state, update, 6)
  half, _ = run(state, update, 3)
  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(3, half, {})
    saver.wait()
    like = jax.eval_shape(lambda: half)
    where = jax.tree.map(lambda x: x.sharding, half)
    restored = saver.restore(like, where)
  assert restored is not None
  resumed, _ = run(restored[0], update, 3, first=3)
  assert_trees_equal(straight, resumed)


@pytest.mark.gpu
@laws
@pytest.mark.parametrize(
  ('operands', 'tolerance'), [('float32', 1e-4), ('bfloat16', 2e-2)]
)
def test_an_accelerator_trains_as_a_cpu_does(name, operands, tolerance):
  found = []
  for device in (jax.devices()[0], jax.devices('cpu')[0]):
    with jax.default_device(device):
      model = build(name, operands=operands, dtype=operands)
      state, update = trainer(model)
      state, losses = run(jax.device_put(state, device), update, 5)
    assert jax.tree.leaves(state)[0].devices() == {device}
    found.append(losses)
  np.testing.assert_allclose(*found, rtol=tolerance)


@pytest.mark.gpu
@laws
def test_a_checkpoint_moves_from_an_accelerator_to_a_cpu(name, tmp_path):
  state, update = trainer(build(name))
  state, _ = run(jax.device_put(state, jax.devices()[0]), update, 2)
  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(2, state, {})
    saver.wait()
    cpu = jax.devices('cpu')[0]
    there = jax.sharding.SingleDeviceSharding(cpu)
    restored = saver.restore(
      jax.eval_shape(lambda: state), jax.tree.map(lambda _: there, state)
    )
  assert restored is not None
  assert jax.tree.leaves(restored[0])[0].devices() == {cpu}
  assert_trees_equal(state, restored[0])
  moved, _ = run(restored[0], update, 1, first=2)
  assert int(moved.step) == 3


@laws
@pytest.mark.parametrize('shape', MESHES, ids=str)
def test_every_mesh_gives_the_loss_of_one_device(name, shape, capfd):
  if jax.device_count() < 8:
    pytest.skip('needs eight devices: CPU simulates them')
  # Eight rows of vocabulary and four kv heads: what every mesh here divides.
  changes = {'heads': 8, 'kv_heads': 4 if name == 'llama' else 8, 'mlp': 64}
  model = build(name, scan=shape == (2, 2, 2), **changes)
  plain, update = trainer(model)
  _, expected = run(plain, update, 10)
  mesh = sharding.make_mesh(
    **dict(zip(('data', 'fsdp', 'tensor'), shape, strict=True))
  )
  where = sharding.shardings(
    jax.eval_shape(lambda: plain),
    mesh=mesh,
    axes=(*optim.AXES, *model.axes),
    rules=RULES,
  )
  state = jax.device_put(plain, where)
  split = [x for x in jax.tree.leaves(state.params) if not _whole(x)]
  if shape[1:] != (1, 1):
    assert len(split) > len(jax.tree.leaves(state.params)) / 3
  losses = []
  with jax.set_mesh(mesh):
    compiled = jax.jit(update, donate_argnums=0, out_shardings=(where, None))
    for n in range(10):
      state, metrics = compiled(state, sharding.put(packed(n), mesh))
      losses.append(float(metrics['loss_nats'].total))
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert 'Involuntary full rematerialization' not in capfd.readouterr().err


def _whole(x: jax.Array) -> bool:
  return x.addressable_shards[0].data.shape == x.shape


@laws
def test_a_batch_generates_what_its_rows_generate_alone(name):
  model = build(name)
  params = random_params(model)
  rows = [[1, 2, 3, 4, 5], [7], [9, 8, 7]]
  greedy = generate.Sampler(temperature=0.0)

  def continued(rows):
    return np.asarray(
      generate.generate(
        params,
        generate.prompts(rows, 0),
        model=model,
        sampler=greedy,
        length=8,
        stop=V - 1,
        rng=jax.random.key(0),
      )
    )

  together = continued(rows)
  for n, row in enumerate(rows):
    np.testing.assert_array_equal(together[n], continued([row])[0])
    # And what a forward pass over the whole text finds likeliest.
    text = [*row, *together[n].tolist()]
    batch = generate.prompts([text], 0)
    best = logits(model, params, batch)[0].argmax(-1)
    for place, token in enumerate(together[n].tolist(), start=len(row) - 1):
      assert best[place] == token
      if token == V - 1:
        break
