"""Private gradients, the draws that they need, and what they promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize, stats

from configs import base
from lm import checkpoint, config, sharding, train, tree, types
from lm.data.finetuning import tasks
from lm.data.tokenizers import utf8_bytes
from lm.reporting import metrics_log
from lm.training import privacy
from lm.training import program as program_lib
from tests import programs
from tests.data import tasks_test
from tests.laws import laws_test as laws

SILENT = privacy.Privacy(clip=1e6, noise=1e-12, delta=1e-5)


@functools.cache
def program(expected, private, microbatches, seed, places):
  devices = jax.devices()[: max(dict(places).values(), default=1)]
  mesh = sharding.make_mesh(devices=devices, **dict(places))
  run = program_lib.make(
    model=laws.build('gru'),
    tx=optax.sgd(1.0),
    example=laws.packed('gru'),
    mesh=mesh,
    rules={**base.get_config().sharding, 'vocab': None},
    seed=seed,
    settings=program_lib.Settings(
      private=private and private._replace(expected=expected),
      microbatches=microbatches,
    ),
  )
  return run, jax.device_get(program_lib.start(run))


def updated(batch, expected, private=None, microbatches=1, seed=0, **places):
  """Takes one step of gradient descent; gives parameters before and after."""
  run, state = program(
    expected, private, microbatches, seed, tuple(places.items())
  )
  placed = jax.device_put(state, run.where)
  with jax.set_mesh(jax.tree.leaves(run.where)[0].mesh):
    after, metrics = run.update(placed, batch)
  return state.params, *jax.device_get((after.params, metrics))


def moved(before, after):
  return float(optax.tree.norm(jax.tree.map(lambda a, b: a - b, before, after)))


def whole():
  """A batch of rows that weigh the same: their mean is the batch's."""
  batch = laws.packed('gru')
  return batch._replace(weights=np.ones_like(batch.weights))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('microbatches', 'places'), [(1, {}), (4, {}), (1, {'fsdp': 4})]
)
def test_without_clip_and_noise_it_is_the_plain_step(microbatches, places):
  batch = whole()
  rows = len(batch.tokens)
  _, plain, found = updated(batch, None)
  _, private, same = updated(batch, rows, SILENT, microbatches, **places)
  for (path, a), (_, b) in zip(
    tree.paths(plain), tree.paths(private), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5, err_msg=path)
  assert same['loss_nats'].total == pytest.approx(found['loss_nats'].total)
  assert same['loss_nats'].weight == found['loss_nats'].weight


@pytest.mark.slow
def test_no_row_moves_the_sum_further_than_the_clip():
  batch = whole()
  clip = 0.01
  private = privacy.Privacy(clip, 1e-9, 1e-5)
  empty = batch._replace(weights=np.zeros_like(batch.weights))
  before, after, _ = updated(empty, 4, private)
  assert moved(before, after) < 1e-6  # padding has no gradient
  one = empty.weights.copy()
  one[0] = 1.0
  before, after, _ = updated(batch._replace(weights=one), 4, private)
  assert moved(before, after) == pytest.approx(clip / 4, rel=1e-3)
  before, after, _ = updated(batch, 4, private)
  assert moved(before, after) <= len(one) * clip / 4


@pytest.mark.slow
def test_noise_is_of_its_size_and_comes_again():
  batch = whole()
  empty = batch._replace(weights=np.zeros_like(batch.weights))
  private = privacy.Privacy(0.5, 3.0, 1e-5)
  before, after, metrics = updated(empty, 2, private)
  noise = np.concatenate(
    [
      np.ravel(a - b)
      for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)
    ]
  )
  assert noise.std() == pytest.approx(3.0 * 0.5 / 2, rel=0.03)
  assert abs(noise.mean()) < 0.05 and not metrics['skipped'].total
  assert moved(after, updated(empty, 2, private)[1]) == 0
  other = updated(empty, 2, private, seed=1)
  assert moved(other[0], other[1]) != moved(before, after)


def test_a_row_without_a_number_is_left_out():
  def total(params, row, key):
    value = jnp.sum(params) / row.weights[0, 0]
    return value, {'loss_nats': types.Metric(value, jnp.sum(row.weights))}

  batch = laws.packed('gru')._replace(
    tokens=jnp.ones((2, 1)), weights=jnp.array([[1e-39], [1.0]])
  )
  batch = jax.tree.map(lambda x: x[:2], batch)
  grads, found = privacy.gradients(
    total,
    jnp.ones(3),
    batch,
    jax.random.key(0),
    private=SILENT._replace(expected=2),
  )
  assert np.isfinite(grads).all()
  assert found['loss_nats'].total == pytest.approx(3.0)


def test_a_row_without_weight_has_no_gradient_whatever_its_loss():
  def total(params, row, key):
    return jnp.sum(params), {}

  batch = types.Batch(*(jnp.array([[0.0], [1.0]]) for _ in range(5)))
  grads, _ = privacy.gradients(
    total,
    jnp.ones(3),
    batch,
    jax.random.key(0),
    private=SILENT._replace(expected=1),
  )
  np.testing.assert_allclose(grads, 1.0, rtol=1e-5)


def test_epsilon_is_that_of_the_gaussian_mechanism():
  """Balle and Wang 2018, arXiv 1805.06083, theorem 8."""
  private = privacy.Privacy(1.0, 2.0, 1e-5, expected=8)

  def delta(epsilon, sigma):
    a, b = 1 / (2 * sigma), epsilon * sigma
    return stats.norm.cdf(a - b) - np.exp(epsilon) * stats.norm.cdf(-a - b)

  for steps in (1, 4):
    sigma = 2.0 / np.sqrt(steps)
    want = optimize.root_scalar(
      lambda x, s=sigma: delta(x, s) - 1e-5, bracket=(0, 50)
    ).root
    got = privacy.epsilon(private, steps, records=8, rows=8)
    assert got == pytest.approx(want, rel=0.02) and got > want - 1e-6
  rare = privacy.epsilon(private, 4, records=800, rows=32)
  assert 0 < rare < got / 4


def test_records_are_drawn_each_by_itself(tmp_path):
  data = tasks_test.source(tmp_path, batch_size=12, expected=5)
  assert data.drawn == (20, 5)
  steps = 400
  counts, seen = [], np.zeros(20)
  known: dict[str, int] = {}
  for n in range(steps):
    batch = data.batch(n)
    live = batch.weights[:, 0] > 0
    texts = [utf8_bytes.make().decode(x.tolist()) for x in batch.tokens[live]]
    assert len({*texts}) == len(texts)  # each at most once
    for text in texts:
      seen[known.setdefault(text, len(known))] += 1
    counts.append(live.sum())
  # Binomial: mean 5 and variance 20 / 4 * 3 / 4; each record in a fourth.
  assert np.mean(counts) == pytest.approx(5, abs=0.4)
  assert np.var(counts) == pytest.approx(3.75, rel=0.3)
  assert np.abs(seen / steps - 0.25).max() < 0.08
  parts = [data.batch(7, host, 2).tokens for host in range(2)]
  assert np.array_equal(np.concatenate(parts), data.batch(7).tokens)
  tight = tasks_test.source(tmp_path, batch_size=5, expected=5)
  assert max((tight.batch(n).weights > 0).sum() for n in range(99)) == 5


def config_of(tmp_path, **changes):
  spec = {
    'fn': 'lm.data.finetuning.readers:texts',
    'path': tasks_test.write_texts(tmp_path / 'texts', 100, 0),
  }
  c = base.get_config().unlock()
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make', 'reserved': 0}
  c.steps, c.batch_size, c.save_every = 6, 16, 3
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': spec,
    'form': {
      'fn': 'lm.data.finetuning.forms:classify',
      'classes': 2,
      'labels': spec,
    },
    'length': 32,
    'expected': 8,
  }
  c.model = {
    'fn': 'lm.models.heads:classify',
    'classes': 2,
    'pool': 'mean',
    'body': tasks_test.BODIES['lstm'],
  }
  c.privacy = {
    'fn': 'lm.training.privacy:gaussian',
    'clip': 0.1,
    'noise': 1.0,
    'delta': 1e-3,
  }
  c.optim.warmup = 2
  c.evals = {}
  for key, value in changes.items():
    config_of_key(c, key.split('__'), value)
  return c.lock()


def config_of_key(c, path, value):
  for key in path[:-1]:
    c = c[key]
  c[path[-1]] = value


@pytest.mark.slow
@pytest.mark.usefixtures('one_device')
def test_a_private_run_tells_its_epsilon_and_goes_on(tmp_path):
  c = config_of(tmp_path)
  train.train(c, tmp_path / 'run')
  lines = metrics_log.read(tmp_path / 'run' / 'metrics.jsonl')
  told = {
    x['step']: x['privacy/epsilon'] for x in lines if 'privacy/epsilon' in x
  }
  private = privacy.Privacy(0.1, 1.0, 1e-3, expected=8)
  assert told == {
    n: privacy.epsilon(private, n, records=100, rows=16) for n in (3, 6)
  }
  assert 0 < told[3] < told[6]
  again = programs.rewind(tmp_path / 'run', tmp_path / 'again', 3)
  train.train(c, again)
  assert checkpoint.digest(again, 6) == checkpoint.digest(tmp_path / 'run', 6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data__expected': None}, 'drawn by itself: set data.expected'),
    ({'data__expected': 17}, 'expected=17 is above batch_size=16 or the 100'),
    (
      {'numerics': 'deterministic'},
      "not with numerics='deterministic': use 'fast'",
    ),
    ({'privacy__noise': 0.0}, 'privacy: noise=0.0 must be above 0'),
  ],
)
def test_what_promises_nothing_is_refused(tmp_path, changes, message):
  with pytest.raises(config.ConfigError) as caught:
    train.train(config_of(tmp_path, **changes), tmp_path / 'run')
  assert message in str(caught.value) and len(str(caught.value)) <= 200


def test_a_record_of_two_rows_cannot_be_drawn_by_itself(tmp_path):
  spec = {
    'fn': 'lm.data.finetuning.readers:conll',
    'path': tasks_test.write_tags(tmp_path / 'tags', 8, 0),
  }
  form = {'fn': 'lm.data.finetuning.forms:tag', 'classes': 3, 'labels': spec}
  with pytest.raises(ValueError) as caught:
    tasks.make(
      records=spec,
      form=form,
      tokenizer=utf8_bytes.make(),
      seed=0,
      batch_size=4,
      length=8,
      expected=2,
    )
  assert 'a row has to be one record, and 8 records are' in str(caught.value)
