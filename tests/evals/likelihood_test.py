import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, sharding, types
from lm.data import writer
from lm.data.tokenizers import utf8_bytes
from lm.evals import context, likelihood

TEXTS = ['hello world\n', 'a', 'the quick brown fox, 你好', 'x' * 40]


@pytest.fixture(scope='module')
def words():
  return utf8_bytes.make()


@pytest.fixture(scope='module')
def path(tmp_path_factory, words):
  where = tmp_path_factory.mktemp('evals') / 'shards'
  writer.write(where, TEXTS, words)
  return str(where)


def small(words, **changes):
  spec = base.decoder(2, width=16, depth=1, **changes)
  return config.build(spec, vocab=words.size)


def uniform(vocab):
  """A model without parameters that finds every token equally likely."""

  def apply(params, batch, *, cache=None, rng=None):
    del params, rng
    shape = (*batch.tokens.shape, vocab)
    return types.Output(jnp.zeros(shape), cache, {})

  return types.Model(lambda rng, batch: {}, apply, lambda *a: None, ())


def evaluator(model, ids, path, **kw):
  return likelihood.make(
    context=context.Context(model, ids, sharding.make_mesh()), path=path, **kw
  )


def test_a_uniform_model_scores_every_token_and_byte_once(words, path):
  model = uniform(words.size)
  found = evaluator(model, words, path, batch_size=8, length=16, words=7)({})
  text_bytes = sum(len(t.encode()) for t in TEXTS)
  tokens = text_bytes + len(TEXTS)  # an eos each
  assert found['tokens'] == tokens
  assert found['loss_nats'] == pytest.approx(math.log(words.size), rel=1e-5)
  assert found['perplexity'] == pytest.approx(words.size, rel=1e-4)
  assert found['bits_per_byte'] == pytest.approx(
    tokens * math.log2(words.size) / text_bytes, rel=1e-5
  )
  assert found['word_perplexity'] == pytest.approx(
    words.size ** (tokens / 7), rel=1e-3
  )


@pytest.mark.slow
def test_batch_size_and_chunks_change_nothing(words, path):
  model = small(words, length=16, init=base.init(outputs='zero'))
  params = model.init(0, example(words))
  first, *others = [
    evaluator(model, words, path, batch_size=n, length=16, chunks=m)(params)
    for n, m in ((8, 1), (16, 1), (24, 4))
  ]
  for other in others:
    assert other == pytest.approx(first, rel=1e-5)


@pytest.mark.slow
def test_documents_are_scored_as_if_alone(words, path):
  """By hand: each document whole, from bos on, in one long window."""
  model = small(words, length=128)
  params = jax.tree.map(lambda x: x + 0.3, model.init(0, example(words)))
  found = evaluator(model, words, path, batch_size=8, length=128)(params)
  total = count = 0.0
  for text in TEXTS:
    ids = [*words.encode(text), words.eos]
    batch = types.Batch(
      tokens=np.array([[words.bos, *ids[:-1]]], np.int32),
      targets=np.array([ids], np.int32),
      weights=np.ones((1, len(ids)), np.float32),
      positions=np.arange(len(ids), dtype=np.int32)[None],
      segments=np.ones((1, len(ids)), np.int32),
    )
    scores = jax.nn.log_softmax(model.apply(params, batch).logits)[0]
    total -= float(sum(scores[i, t] for i, t in enumerate(ids)))
    count += len(ids)
  assert found['loss_nats'] == pytest.approx(total / count, rel=1e-4)


def example(words):
  ids = np.zeros((1, 16), np.int32)
  return types.Batch(ids, ids, np.ones((1, 16), np.float32), ids, ids + 1)
