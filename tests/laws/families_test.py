"""Whole runs of other families: train, judge, sample; and fit by counting."""

from functools import partial
import json
import math
import shutil
from typing import Any

import jax
import numpy as np
import optax
import pytest

from configs import base
from lm import checkpoint, config, evaluate, fit, sample, train
from lm.checkpoint import manifest
from lm.data import masking, objectives, stream, writer
from lm.data.tokenizers import utf8_bytes
from lm.models import embeddings
from lm.training import step
from tests import programs

SMALL: dict[str, Any] = {'width': 16, 'depth': 1}
SPANS = base.span_corruption(source=24) | {'noise': 0.3, 'mean_span': 2.0}
PAIRS = {'fn': 'lm.models.encoder:head', 'next_sentence': True}
FAMILIES = {
  'lstm': (base.recurrent(**SMALL), {'fn': 'lm.data.objectives:causal'}),
  'elmo': (
    base.recurrent(**SMALL, bidirectional=True),
    {'fn': 'lm.data.objectives:bidirectional'},
  ),
  'bert': (base.encoder(2, **SMALL), base.masked()),
  'pairs': (
    base.encoder(2, **SMALL, head=PAIRS),
    base.masked() | {'fn': 'lm.data.masking:next_sentence'},
  ),
  'prefix': (
    base.decoder(2, **SMALL, length=16),
    {'fn': 'lm.data.objectives:prefix_lm'},
  ),
  't5': (base.t5(2, width=16, depth=1), SPANS),
}


def make(folder, name):
  """The tiny run with another model and objective."""
  c = programs.on_eight(folder, steps=4, save_every=2)
  c = c.unlock()
  model, objective = FAMILIES[name]
  c.data.fn = 'lm.data.stream:make'
  del c.data.seconds, c.data.hang_at, c.evals.pause
  c.tokenizer.reserved = 16
  c.model, c.data.objective = model, objective
  c.evals.valid.objective = objective
  return c.lock()


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_a_run_is_trained_resumed_judged_and_sampled(data, tmp_path, name):
  c = make(data, name)
  state = train.train(c, tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'half')
  shutil.rmtree(manifest.directory(tmp_path / 'half', 4))
  train.train(c, tmp_path / 'half')
  digests = {checkpoint.digest(tmp_path / x, 4) for x in ('whole', 'half')}
  assert len(digests) == 1
  records = evaluate.evaluate(tmp_path / 'whole')
  assert [r['step'] for r in records] == [2, 4]
  metrics = records[-1]['metrics']
  assert 0 < metrics['valid/loss_nats'] < 2 * math.log(275)
  # Nats are the text's only where each token is scored once, left to right.
  assert ('valid/bits_per_byte' in metrics) == (name == 'lstm')
  lines = (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()
  assert ('bits_per_byte' in json.loads(lines[-1])) == (name == 'lstm')
  assert json.loads(lines[-1])['tokens'] == 4 * 4 * window(c)
  if name in ('bert', 'pairs'):
    with pytest.raises(config.ConfigError, match='cannot continue a text'):
      sample.sample(tmp_path / 'whole', 'the ', length=4)
  else:
    texts = sample.sample(tmp_path / 'whole', 'the ', length=4, count=2)
    assert len(texts) == 2 and all(t.startswith('the ') for t in texts)
  assert int(state.step) == 4


def window(c) -> int:
  words = utf8_bytes.make(c.tokenizer.reserved)
  return config.build(
    c.data.objective, tokenizer=words, length=c.data.length
  ).window


def counted(folder):
  c = programs.make(folder).unlock()
  c.steps = 1
  c.data.fn = 'lm.data.stream:make'
  del c.data.seconds, c.data.hang_at, c.evals.pause
  c.model, c.fit = base.ngram()
  return c.lock()


def test_an_ngram_is_fitted_judged_and_sampled(data, start, tmp_path):
  c = counted(data)
  state = fit.fit(c, tmp_path)
  (record,) = evaluate.evaluate(tmp_path)
  # Of text that was seen whole, a 5-gram is nearly sure.
  assert record['step'] == 1 and record['metrics']['valid/loss_nats'] < 1
  text = sample.sample(tmp_path, 'the quick br', temperature=0, length=20)[0]
  assert text == 'the quick brown fox jumps over a'
  # Done: nothing is counted again, and another config is refused.
  digest = checkpoint.digest(tmp_path, 1)
  again = fit.fit(c, tmp_path)
  assert checkpoint.digest(tmp_path, 1) == digest
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)
  other = c.copy_and_resolve_references().unlock()
  other.fit.order = 3
  with pytest.raises(config.ConfigError, match='was made with another config'):
    fit.fit(other, tmp_path)


def test_training_and_counting_do_not_mix(data, start, tmp_path):
  with pytest.raises(
    config.ConfigError, match=r'has no gradients: use lm\.fit'
  ):
    train.train(counted(data), tmp_path)
  process = start('fit', programs.flags(data, tmp_path))
  assert process.error(2) == (
    'fit: None, so this config trains by gradients: use lm.train'
  )


@pytest.mark.slow
def test_next_sentence_scores_stand_at_the_first_position():
  words = utf8_bytes.make(1)
  objective = masking.next_sentence(tokenizer=words, length=16)
  batch = objectives.example(objective, 2)
  spec = base.encoder(2, length=16, width=8, depth=1, head=PAIRS)
  model = config.build(spec, vocab=words.size)
  params = model.init(0, batch)
  logits = model.apply(params, batch).logits
  assert logits.shape == (2, 16, words.size)
  assert logits[:, 0, 2:].max() < -1e30 < logits[:, 0, :2].min()
  assert logits[:, 1:].min() > -1e30


def test_words_of_one_topic_come_to_lie_together(tmp_path):
  """Skip-gram: two topics of ten letters each that never meet."""
  words = utf8_bytes.make()
  rng = np.random.default_rng(0)
  topics = ('abcdefghij', 'klmnopqrst')
  texts = [
    ''.join(rng.choice(list(topics[n % 2]), 60).tolist()) for n in range(100)
  ]
  writer.write(tmp_path / 'train', texts, words)
  data = stream.make(
    {'train': {'path': str(tmp_path / 'train'), 'weight': 1.0}},
    tokenizer=words,
    seed=0,
    batch_size=16,
    length=96,
    objective={
      'fn': 'lm.data.objectives:skip_gram',
      'context': 3,
      'negatives': 3,
    },
  )
  model = embeddings.make(vocab=words.size, width=16)
  tx = optax.adam(0.02)
  state = step.init_state(model.init(0, data.example), tx=tx)
  update = jax.jit(
    partial(step.train_step, model=model, tx=tx, rng=jax.random.key(1))
  )
  losses = []
  for n in range(60):
    state, metrics = update(state, data.batch(n))
    losses.append(
      float(metrics['loss_nats'].total / metrics['loss_nats'].weight)
    )
  assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
  assert losses[-1] < 0.62
  ids = [words.encode(topic) for topic in topics]
  table = np.asarray(state.params['embed']['table'])[np.concatenate(ids)]
  table /= np.linalg.norm(table, axis=1, keepdims=True)
  near = table @ table.T - 2 * np.eye(20)
  assert (near.argmax(1) // 10 == np.arange(20) // 10).all()
