from functools import partial
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from lm import config, loss, metrics, sharding, tree, types
from lm.models import embeddings, heads, linen
from lm.training import step
from tests.laws import laws_test as laws


def example(V=11, B=2, L=5, seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(B, L, V)).astype(np.float32) * 3
  batch = linen.example_batch(B, L)._replace(
    targets=rng.integers(0, V, (B, L)).astype(np.int32),
    weights=rng.integers(0, 2, (B, L)).astype(np.float32),
  )
  return logits, batch


def test_one_pass_computes_the_same_normalizer():
  logits, _ = example(V=1000)
  logits[0, 0] *= 1e4
  logits[0, 1, :-3] = -np.inf
  logits[0, 2] = -np.inf
  logits[1] -= 1e30
  np.testing.assert_allclose(
    loss._log_sum_exp(jnp.asarray(logits)),
    jax.nn.logsumexp(jnp.asarray(logits), axis=-1),
    rtol=1e-6,
  )
  logits[0, 0, 5] = np.nan
  assert not np.isfinite(loss._log_sum_exp(jnp.asarray(logits))[0, 0])


@pytest.mark.parametrize('z_weight', [0.0, 0.1])
@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_loss_and_gradient_equal_optax(z_weight, smoothing):
  logits, batch = example()

  def reference(x):
    labels = optax.smooth_labels(
      jax.nn.one_hot(batch.targets, x.shape[-1]), smoothing
    )
    nats = optax.softmax_cross_entropy(x, labels)
    nats += z_weight * jnp.square(jax.nn.logsumexp(x, axis=-1))
    return jnp.sum(nats * batch.weights)

  def ours(x):
    return loss.token_loss(
      x, batch, z_weight=z_weight, smoothing=smoothing
    ).total

  want, want_grad = jax.value_and_grad(reference)(logits)
  got, got_grad = jax.value_and_grad(ours)(logits)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(got_grad, want_grad, atol=1e-5)


def test_z_loss_gradient_equals_a_finite_difference():
  logits, batch = example()

  def total(x):
    return float(loss.token_loss(x, batch, z_weight=0.5).total)

  grad = jax.grad(lambda x: loss.token_loss(x, batch, z_weight=0.5).total)(
    jnp.asarray(logits)
  )
  b, l = np.argwhere(batch.weights)[0]
  for v in range(3):
    step = np.zeros_like(logits)
    step[b, l, v] = 0.05
    slope = (total(logits + step) - total(logits - step)) / 0.1
    assert float(grad[b, l, v]) == pytest.approx(slope, abs=0.02)


def test_huge_logits_stay_finite():
  logits, batch = example()
  value, grad = jax.value_and_grad(lambda x: loss.token_loss(x, batch).total)(
    logits * 1e4
  )
  assert np.isfinite(value) and np.isfinite(grad).all()


def test_bfloat16_logits_get_bfloat16_gradients():
  logits, batch = example()
  grad = jax.grad(lambda x: loss.token_loss(x, batch).total)(
    jnp.asarray(logits, jnp.bfloat16)
  )
  assert grad.dtype == jnp.bfloat16


def test_settings_out_of_range_are_refused():
  with pytest.raises(ValueError, match=r'smoothing=1\.0 must be below 1'):
    loss.make(smoothing=1.0)
  with pytest.raises(ValueError, match='chunks=0 must be at least 1'):
    loss.make(chunks=0)


def head_of(model: types.Model, params):
  assert model.head is not None
  return jax.tree_util.Partial(model.head, params)


with_a_head = laws.over(
  [n for n in laws.names('gradients') if laws.build(n).head is not None]
)
SETTINGS: dict[str, Any] = {'z_weight': 0.01, 'smoothing': 0.1}


def hidden(name: str) -> np.ndarray:
  """Draws a random input for the output layer of a model of the laws."""
  model, batch = laws.build(name), laws.packed(name)
  out = jax.eval_shape(model.apply, laws.random_params(name), batch)
  rng = np.random.default_rng(0)
  return rng.normal(size=out.hidden.shape).astype(np.float32)


def score_head(name, score):
  """Computes a loss of an output layer, and the gradients of all its inputs."""

  def total(params, x_BLD):
    head = head_of(laws.build(name), params)
    out = types.Output(head(x_BLD), None, {}, x_BLD)
    return score(out, laws.packed(name), head).total

  return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(
    laws.random_params(name), hidden(name)
  )


def assert_near(a, b):
  for (path, x), (_, y) in zip(tree.paths(a), tree.paths(b), strict=True):
    bound = 1e-6 * np.abs(x).max()
    np.testing.assert_allclose(x, y, rtol=0, atol=bound, err_msg=path)


def test_an_output_layer_apart_reads_the_forward_half_of_both_ways():
  model, batch = laws.build('lstm', bidirectional=True), laws.packed('lstm')
  params = model.init(0, batch)
  out = model.apply(params, batch)
  assert out.hidden.shape[-1] == 2 * 32
  np.testing.assert_array_equal(head_of(model, params)(out.hidden), out.logits)


@with_a_head
def test_a_loss_in_chunks_equals_the_whole(name):
  want, grads = score_head(name, loss.make(**SETTINGS))
  got, others = score_head(name, loss.make(**SETTINGS, chunks=4))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert_near(grads, others)


@pytest.mark.parametrize(
  ('shape', 'count'),
  [
    ((8, 256, 65), 1),
    ((8, 256, 4096), 2),
    ((16, 256, 8192), 8),
    ((8, 250, 8192), 5),  # chunks are of one size
    ((1, 512, 250_000), 4),  # and of 128 positions or more
    ((8, 512, 250_000), 8),
    ((2, 16, 10**6), 1),
  ],
)
def test_a_cpu_scores_in_chunks_that_fit_its_caches(shape, count):
  """The loss would be right with any other count, and slower."""
  chosen = loss._chunks(*shape)
  assert chosen == (count if jax.default_backend() == 'cpu' else 1)


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_a_loss_in_chunks_is_the_same_on_a_mesh(name):
  if jax.device_count() < 8:
    pytest.skip('needs eight devices: CPU simulates them')
  model, params = laws.build(name), laws.random_params(name)
  want, grads = score_head(name, loss.make(**SETTINGS))
  mesh = sharding.make_mesh(fsdp=2, sequence=2, tensor=2)
  where = sharding.shardings(
    jax.eval_shape(lambda: params), mesh=mesh, axes=model.axes, rules=laws.RULES
  )

  def total(params, hidden, batch):
    score = partial(loss.chunked_loss, chunks=4, **SETTINGS)
    return score(head_of(model, params), hidden, batch).total

  place = jax.sharding.PartitionSpec(sharding.BATCH, 'sequence')
  placed = (
    jax.device_put(params, where),
    jax.device_put(hidden(name), jax.sharding.NamedSharding(mesh, place)),
    sharding.put(laws.packed(name), mesh),
  )
  with jax.set_mesh(mesh):
    compiled = (
      jax.jit(
        jax.value_and_grad(total, argnums=(0, 1)),
        out_shardings=(None, (where, None)),
      )
      .lower(*placed)
      .compile()
    )
    got, others = compiled(*placed)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert_near(grads, others)
  # Parameters are collected, and their gradients added up, once.
  inside = [
    line
    for line in (compiled.as_text() or '').splitlines()
    if 'while/body' in line and re.search(r' all-(gather|reduce)\(', line)
  ]
  assert inside and not [x for x in inside if f'{laws.V // 2},' in x]


def test_a_step_with_a_loss_in_chunks_is_the_same():
  model = embeddings.vectors(vocab=laws.V, width=8)
  batch = laws.packed('gpt2')
  tx = optax.sgd(1.0)
  state = step.init_state(model.init(0, batch), tx=tx)
  results = []
  for chunks in (1, 4):
    update = partial(
      step.train_step,
      model=model,
      tx=tx,
      rng=jax.random.key(1),
      loss=loss.make(**SETTINGS, chunks=chunks),
      microbatches=2,
    )
    results.append(jax.jit(update)(state, batch))
  (a, metrics), (b, others) = results
  assert_near(a.params, b.params)
  assert_near(metrics, others)


def test_logits_of_a_large_vocabulary_never_exist_whole():
  V, D, L, chunks = 2**17, 16, 512, 32
  model = embeddings.vectors(vocab=V, width=D)
  batch = linen.example_batch(1, L)
  params = tree.shapes(model.parameters(batch))

  def bytes_needed(score):
    def total(params):
      # It computes all logits too; but nobody reads them.
      out = model.apply(params, batch)
      return score(out, batch, head_of(model, params)).total

    compiled = jax.jit(jax.value_and_grad(total)).lower(params).compile()
    needed = compiled.memory_analysis()
    assert needed is not None
    return needed.temp_size_in_bytes

  logits, table = 4 * V * L, 4 * V * D
  assert bytes_needed(loss.make(chunks=1)) > logits
  few = bytes_needed(loss.make(chunks=chunks))
  assert few < 3 * logits / chunks + 4 * table < logits / 3, few


def test_a_loss_in_chunks_names_the_reason_if_it_is_impossible():
  model, batch = embeddings.vectors(vocab=laws.V, width=8), laws.packed('gpt2')
  params = model.init(0, batch)
  out, score = model.apply(params, batch), loss.make(chunks=3)
  with pytest.raises(
    config.ConfigError,
    match='chunks=3 does not divide the 16 positions of a row that a device '
    'has: change chunks or length',
  ):
    score(out, batch, head_of(model, params))
  body = base.decoder(8, **laws.TINY)
  pairs = {'fn': 'lm.models.encoder:head', 'next_sentence': True}
  for without in (
    heads.tag(vocab=laws.V, body=body, classes=2),
    config.build(base.encoder(8, **laws.TINY, head=pairs), vocab=laws.V),
    laws.build('ngram'),
  ):
    assert without.head is None
  with pytest.raises(
    config.ConfigError,
    match='chunks=3: this model has no output layer that could be applied to a '
    'part of a row: use chunks=1',
  ):
    score(out, batch, None)


def test_metrics_merge_exactly_and_a_metric_without_weight_is_nan():
  a, b = types.Metric(3.0, 2.0), types.Metric(5.0, 6.0)
  assert metrics.merge(a, b) == types.Metric(8.0, 8.0)
  assert metrics.values({'x': metrics.merge(a, b)}) == {'x': 1.0}
  assert np.isnan(metrics.value(types.Metric(0.0, 0.0)))


def test_a_uniform_byte_model_needs_eight_bits():
  assert metrics.bits_per_byte(100 * np.log(256), 100) == pytest.approx(8)
