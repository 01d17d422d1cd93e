"""Checks heads on bodies of every kind: shapes, padding, learning."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from lm import config, loss, optim, sharding, tree, types
from lm.data import objectives
from lm.data.finetuning import batching
from lm.data.tokenizers import utf8_bytes
from lm.models import heads
from lm.training import step

V, L, B = 32, 12, 16
SMALL: dict[str, Any] = {'width': 16, 'depth': 1}
ENCODER = base.encoder(2, length=L, **SMALL)
BODIES = {
  'encoder': (ENCODER, 'first'),
  'decoder': (base.decoder(2, length=L, **SMALL), 'last'),
  'recurrent': (base.recurrent(**SMALL, bidirectional=True), 'mean'),
}


def texts(seed: int) -> types.Batch:
  """Makes uneven texts, half of which have the token 7."""
  rng = np.random.default_rng(seed)
  rows = [rng.integers(8, V, rng.integers(3, L)).tolist() for _ in range(B - 1)]
  rows.append(rng.integers(8, V, L).tolist())
  for row in rows[::2]:
    row[rng.integers(1, len(row))] = 7
  return objectives.padded(rows, 0)


def learnt(model: types.Model, task, steps: int = 120) -> float:
  """Trains on batches of `task(seed)`; returns the accuracy on another one."""
  tx = optax.adam(1e-2)
  state = step.init_state(model.init(0, task(0)), tx=tx)
  update = jax.jit(
    partial(step.train_step, model=model, tx=tx, rng=jax.random.key(1))
  )
  first = loss.token_loss(model.apply(state.params, task(0)).logits, task(0))
  for seed in range(steps):
    state, metrics = update(state, task(seed))
  last = metrics['loss_nats']
  assert last.total / last.weight < first.total / first.weight
  batch = task(steps)
  best = jnp.argmax(model.apply(state.params, batch).logits, axis=-1)
  return float(np.average(best == batch.targets, weights=batch.weights))


@pytest.mark.slow
@pytest.mark.parametrize('body', BODIES)
def test_a_text_is_classified(body):
  def task(seed):
    batch = texts(seed)
    found = (batch.tokens == 7).any(1)[:, None].astype(np.int32)
    return batch._replace(targets=found, weights=np.ones((B, 1), np.float32))

  spec, pool = BODIES[body]
  model = heads.classify(vocab=V, body=spec, classes=2, pool=pool, hidden=True)
  assert learnt(model, task) > 0.9


@pytest.mark.parametrize('body', BODIES)
def test_tokens_are_tagged(body):
  def task(seed):
    batch = texts(seed)
    return batch._replace(targets=batch.tokens % 3)

  model = heads.tag(vocab=V, body=BODIES[body][0], classes=3)
  assert learnt(model, task) > 0.95


@pytest.mark.slow
def test_a_span_is_found_and_never_in_padding():
  def task(seed):
    batch = texts(seed)
    row = np.arange(B)
    start = np.random.default_rng(seed).integers(0, 3, B)
    batch.tokens[row, start] = 5
    stop = (batch.segments > 0).sum(1) - 1
    batch.tokens[row, stop] = 6
    return batch._replace(
      targets=np.stack([np.where(start == stop, stop, start), stop], 1).astype(
        np.int32
      ),
      weights=np.stack([start != stop, stop >= 0], 1).astype(np.float32),
    )

  model = heads.span(vocab=V, body=BODIES['encoder'][0])
  assert learnt(model, task) > 0.95
  batch = task(0)
  scores = model.apply(model.init(0, batch), batch).logits
  assert scores.shape == (B, 2, L)
  padding = np.stack([batch.segments == 0] * 2, 1)
  assert scores[padding].max() < -1e30 < scores[~padding].min()


def test_sentences_of_the_same_meaning_have_similar_vectors():
  def task(seed):
    batch = texts(seed)
    # Rows 2 i and 2 i + 1 have the same words, in another order.
    for b in range(0, B, 2):
      size = (batch.segments[b] > 0).sum()
      for field in ('tokens', 'segments'):
        getattr(batch, field)[b + 1] = getattr(batch, field)[b]
      batch.tokens[b + 1, :size] = batch.tokens[b, :size][::-1]
    partner = (np.arange(B) ^ 1).astype(np.int32)[:, None]
    return batch._replace(targets=partner, weights=np.ones((B, 1), np.float32))

  model = heads.embed(vocab=V, body=BODIES['encoder'][0])
  assert learnt(model, task, 60) > 0.9
  batch = task(0)
  params = model.init(0, batch)
  vectors = model.apply(params, batch).hidden
  np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
  assert set(params) == {'body'}


@pytest.mark.parametrize('pool', heads.POOLS)
def test_padding_is_not_pooled(pool):
  x_BLD = jnp.arange(24.0).reshape(2, 4, 3)
  segments_BL = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]])
  got = heads.pooled(x_BLD, segments_BL, pool)[:, 0]
  want = {
    'first': [x_BLD[0, 0], x_BLD[1, 0]],
    'last': [x_BLD[0, 1], x_BLD[1, 3]],
    'mean': [x_BLD[0, :2].mean(0), x_BLD[1].mean(0)],
  }[pool]
  np.testing.assert_allclose(got, np.stack(want))


@pytest.mark.parametrize('pool', heads.POOLS)
@pytest.mark.parametrize('body', BODIES)
def test_a_packed_text_is_classified_as_if_alone(body, pool):
  model = heads.classify(vocab=V, body=BODIES[body][0], classes=3, pool=pool)
  rows = [
    batching.Row(
      n, ids, [0] * len(ids), [n], [1.0], [batching.NOT_SCORED] * len(ids)
    )
    for n, ids in enumerate(([8, 9, 7], [9, 10, 11, 8, 7], [12, 9]))
  ]
  form, words = batching.Form(lambda _: rows, 1), utf8_bytes.make(reserved=0)
  alone = batching.assemble([[row] for row in rows], form, L, words)
  batch = batching.assemble([rows, []], form._replace(scored=3), L, words)
  assert batch.targets.tolist() == [[0, 1, 2], [0, 0, 0]]
  assert batch.weights.tolist() == [[1, 1, 1], [0, 0, 0]]
  params = model.init(0, alone)
  want, got = (model.apply(params, x).logits for x in (alone, batch))
  np.testing.assert_allclose(got[0], want[:, 0], atol=1e-5)


@pytest.mark.slow
def test_a_decoder_reads_both_ways_if_asked():
  alone = objectives.padded([[8, 9, 7, 10]], 0)
  changed = alone._replace(tokens=np.array([[8, 9, 7, 11]], np.int32))
  for bidirectional in (False, True):
    model = heads.tag(
      vocab=V, body=BODIES['decoder'][0], classes=3, bidirectional=bidirectional
    )
    params = model.init(0, alone)
    a, b = (model.apply(params, x).logits for x in (alone, changed))
    assert (np.abs(a - b)[0, 0].max() > 1e-4) == bidirectional


def test_every_parameter_has_a_sharding():
  mesh = sharding.make_mesh()
  model = heads.next_sentence(vocab=V, body=ENCODER)
  state = jax.eval_shape(
    partial(step.init_state, tx=optax.adam(1.0)),
    tree.shapes(model.parameters(texts(0))),
  )
  names = ('vocab', 'embed', 'heads', 'kv_heads', 'mlp')
  rules: dict[str, None] = dict.fromkeys(names)
  sharding.shardings(
    state, mesh=mesh, axes=(*optim.AXES, *model.axes), rules=rules
  )
  assert {*state.params} == {'body', 'task'}


def test_impossible_settings_are_refused():
  with pytest.raises(ValueError, match="pool='max' is not one of first, last"):
    heads.classify(vocab=V, body=ENCODER, classes=2, pool='max')
  with pytest.raises(ValueError, match='classes=0 must be at least 1'):
    heads.tag(vocab=V, body=ENCODER, classes=0)
  with pytest.raises(ValueError, match=r'temperature=0\.0 must be above 0'):
    heads.embed(vocab=V, body=ENCODER, temperature=0.0)
  model = heads.tag(vocab=V, body=ENCODER, classes=2)
  with pytest.raises(ValueError, match='scores a text and generates none'):
    model.start({}, texts(0), 4)


@pytest.mark.slow
def test_both_directions_are_trained_and_read():
  """Checks ELMo, where each half of a batch has a stack of its own."""
  spec = base.recurrent(width=8, depth=1, bidirectional=True)
  model = config.build(spec, vocab=V)
  plain = objectives.padded([[3, 4, 5, 6], [7, 8, 9]], 0)
  params = model.init(0, plain)
  twice = jax.tree.map(lambda x: np.concatenate([x, x], 1), plain)
  token_types = np.repeat(np.array([[0, 1]] * 2, np.int32), 4, axis=1)
  both = model.apply(params, twice._replace(token_types=token_types))
  forward = model.apply(params, plain)
  np.testing.assert_allclose(both.logits[:, :4], forward.logits, atol=1e-6)
  assert np.abs(both.logits[:, 4:] - forward.logits).max() > 1e-3
  # Features: what the forward stack and the backward one know at a token.
  other = plain.tokens.copy()
  other[0, 2] = 9
  hidden = model.apply(params, plain).hidden
  changed = model.apply(params, plain._replace(tokens=other)).hidden
  moved = np.abs(hidden - changed).max(-1) > 1e-6
  assert hidden.shape == (2, 4, 16)
  np.testing.assert_array_equal(moved[0], [1, 1, 1, 1])
  np.testing.assert_array_equal(
    (np.abs(hidden - changed)[0] > 1e-6)[:, :8].any(-1), [0, 0, 1, 1]
  )
  np.testing.assert_array_equal(
    (np.abs(hidden - changed)[0] > 1e-6)[:, 8:].any(-1), [1, 1, 1, 0]
  )
  assert not moved[1].any()
  # Padding at the right is where the backward stack begins: it must not count.
  shorter = jax.tree.map(lambda x: x[1:, :3], plain)
  alone = model.apply(params, shorter).hidden[0]
  np.testing.assert_allclose(hidden[1, :3], alone, atol=1e-6)
