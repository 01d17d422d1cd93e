"""Compares n-gram models with slow ones written from the formulas."""

from collections import Counter, defaultdict
from functools import cache
import math

import jax
import numpy as np
import pytest

from lm import sharding, types
from lm.data import objectives
from lm.models import ngram

V, BOS, EOS = 40, 0, 1
ORDERS = (1, 2, 3, 5)


def corpus(seed: int, documents: int, vocab: int = V) -> list[np.ndarray]:
  """Makes documents with frequent and rare words, and with repeated pairs."""
  rng = np.random.default_rng(seed)
  text = []
  for _ in range(documents):
    draws = rng.zipf(1.3, int(rng.integers(0, 30)))
    ids = 2 + np.cumsum(draws * rng.integers(1, 3)) % (vocab - 2)
    text.append(np.append(ids, EOS).astype(np.int32))
  return text


@cache
def fitted(
  order: int, method: str = 'kneser_ney', seed: int = 0
) -> types.Params:
  return ngram.fit(
    corpus(seed, 60), vocab=V, order=order, bos=BOS, method=method
  )


def documents(rows) -> types.Batch:
  """Makes a batch whose rows are each the beginning of a document."""
  return objectives.padded([list(row) for row in rows], EOS)


def packed(seed: int = 0, rows: int = 4, length: int = 16) -> types.Batch:
  """Packs random documents of uneven lengths, with padding at the end."""
  rng = np.random.default_rng(seed)
  source = np.concatenate(corpus(0, 60))
  starts = rng.integers(0, len(source) - length - 1, (rows, 1))
  tokens = source[starts + np.arange(length + 1)[None]]
  segments = np.zeros((rows, length), np.int32)
  positions = np.zeros((rows, length), np.int32)
  for b in range(rows):
    start, document = 0, 1
    used = length - int(rng.integers(1, 4))
    while start < used:
      stop = min(used, start + int(rng.integers(2, 8)))
      segments[b, start:stop] = document
      positions[b, start:stop] = np.arange(stop - start)
      start, document = stop, document + 1
  weights = (segments > 0).astype(np.float32)
  return types.Batch(
    tokens[:, :-1], tokens[:, 1:], weights, positions, segments
  )


@cache
def compiled(order: int, vocab: int):
  return jax.jit(ngram.make(vocab=vocab, order=order).apply)


def logits(order, params, batch, vocab=V) -> np.ndarray:
  # One shape for all: to compile takes longer than to compute.
  B, L = batch.tokens.shape
  whole = jax.tree.map(lambda x: np.pad(x, ((0, 126 - B), (0, 16 - L))), batch)
  return np.asarray(compiled(order, vocab)(params, whole).logits)[:B, :L]


def after(order, params, *history: int, vocab=V) -> np.ndarray:
  """Returns the probabilities [V] of the word after a history."""
  return np.exp(logits(order, params, documents([history]), vocab)[0, -1])


def occurrences(text, order: int) -> list[Counter]:
  """Counts the n-grams of each order that end in a word of a document."""
  counts = [Counter() for _ in range(order + 1)]
  for document in text:
    ids = (BOS, *document.tolist())
    for stop in range(2, len(ids) + 1):
      for n in range(1, min(order, stop) + 1):
        counts[n][ids[stop - n : stop]] += 1
  return counts


class KneserNey:
  """Computes Chen and Goodman's equations in dictionaries, word by word."""

  def __init__(self, text, order: int, vocab: int):
    self.vocab = vocab
    self.following = defaultdict(dict)
    self.discounts = {}
    seen = occurrences(text, order)
    for n in range(1, order + 1):
      counts = dict(seen[n])
      if n < order:
        left = Counter(gram[1:] for gram in seen[n + 1])
        for gram in counts:
          if n == 1 or gram[0] != BOS:
            counts[gram] = left[gram]
      for gram, count in counts.items():
        self.following[gram[:-1]][gram[-1]] = count
      self.discounts[n] = self.discount(list(counts.values()))

  def discount(self, counts):
    n1, n2, n3, n4 = (counts.count(c) for c in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) > 0:
      y = n1 / (n1 + 2 * n2)
      found = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
      if min(found) > 0:
        return [0, *found]
    return [0, 0.5, 1.0, 1.5]

  def probability(self, history: tuple, word: int) -> float:
    if not history:
      lower = 1 / self.vocab
    else:
      lower = self.probability(history[1:], word)
    follows = self.following.get(history)
    if follows is None:
      return lower
    discounts = self.discounts[len(history) + 1]
    total = sum(follows.values())
    gamma = sum(discounts[min(c, 3)] for c in follows.values()) / total
    count = follows.get(word, 0)
    return (count - discounts[min(count, 3)]) / total + gamma * lower


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('seed', [0, 1])
def test_kneser_ney_equals_the_formulas(order, seed):
  # 60 documents have the counts of counts that discounts need, 2 have not.
  vocab, size = ((V, 60), (12, 2))[seed]
  text = corpus(seed, size, vocab)
  params = ngram.fit(text, vocab=vocab, order=order, bos=BOS)
  expected = KneserNey(text, order, vocab)
  if order > 1:
    fallback = expected.discounts[2] == [0, 0.5, 1.0, 1.5]
    assert fallback == (seed == 1)
  rng = np.random.default_rng(seed)
  rows = [
    *((BOS, *max(text, key=len)[:7].tolist()), text[-1][:7].tolist()),
    *([BOS, *row] for row in rng.integers(0, vocab, (3, 7)).tolist()),
    *rng.integers(0, vocab, (3, 8)).tolist(),
  ]
  got = np.exp(logits(order, params, documents(rows), vocab))
  for b, row in enumerate(rows):
    for l in range(len(row)):
      history = tuple(row[max(0, l + 2 - order) : l + 1])
      np.testing.assert_allclose(
        got[b, l],
        [expected.probability(history, word) for word in range(vocab)],
        rtol=1e-5,
        err_msg=str(history),
      )


def test_a_bigram_worked_out_by_hand():
  # bos is 0, a and b are 1 and 2, eos is 3. Texts: 'a b' and 'a'. Too few
  # counts of counts for discounts of their own: 0.5, 1 and 1.5.
  text = [np.array([1, 2, 3]), np.array([1, 3])]
  params = ngram.fit(text, vocab=4, order=2, bos=0)
  # Left of a: bos; of b: a; of eos: a and b. Of 4, discounts take 0.5 + 0.5 +
  # 1 and give each of 4 ids an eighth.
  unigram = [0.125, 0.125 + 0.5 / 4, 0.125 + 0.5 / 4, 0.125 + 1 / 4]
  np.testing.assert_allclose(params['mass'][:4], unigram, rtol=1e-6)
  for history, expected in (
    (0, [0.0625, 0.625, 0.125, 0.1875]),  # a twice: takes 1 of 2
    (1, [0.0625, 0.125, 0.375, 0.4375]),  # b and eos once: takes 1 of 2
    (2, [0.0625, 0.125, 0.125, 0.6875]),  # eos once: takes half
    (3, unigram),  # nothing follows eos
  ):
    np.testing.assert_allclose(
      after(2, params, history, vocab=4), expected, rtol=1e-6
    )


def test_discounts_worked_out_by_hand():
  # Four words once, three twice, two three times, one four times: y is 4 / 10
  # and D1, D2, D3+ are 0.4, 1.2 and 2.2.
  words = [*range(2, 6), *range(6, 9), *range(9, 11), 1]
  times = [1] * 4 + [2] * 3 + [3] * 2 + [4]
  text = [np.repeat(words, times)]
  params = ngram.fit(text, vocab=12, order=1, bos=0)
  shared = (4 * 0.4 + 3 * 1.2 + 3 * 2.2) / 20 / 12
  expected = np.full(12, shared)
  discounts = [0.4] * 4 + [1.2] * 3 + [2.2] * 3
  expected[words] += (np.array(times) - discounts) / 20
  np.testing.assert_allclose(params['mass'][:12], expected, rtol=1e-6)


@pytest.mark.parametrize('method', ['kneser_ney', 'add_k'])
@pytest.mark.parametrize('order', ORDERS)
def test_probabilities_sum_to_one(order, method):
  rng = np.random.default_rng(1)
  source = np.concatenate(corpus(0, 60))
  starts = rng.integers(0, len(source) - 8, (63, 1))
  seen = source[starts + np.arange(8)[None]]
  rows = np.concatenate([seen, rng.integers(0, V, (63, 8))])
  sums = np.exp(
    logits(order, fitted(order, method), documents(rows)).astype(np.float64)
  ).sum(-1)
  assert sums.size >= 1000
  np.testing.assert_allclose(sums, 1, atol=1e-5)


@pytest.mark.parametrize('k', [1.0, 0.01])
def test_add_k_is_counted_by_hand(k):
  text = corpus(0, 60)
  seen = occurrences(text, 3)
  for order, histories in (
    (1, [()]),
    (2, [(BOS,), (5,), (7,), (EOS,)]),
    (3, [(BOS,), (BOS, 5), tuple(text[3][:2]), (6, 6)]),
  ):
    params = ngram.fit(text, vocab=V, order=order, bos=BOS, method='add_k', k=k)
    for history in histories:
      counts = np.array([seen[len(history) + 1][*history, w] for w in range(V)])
      np.testing.assert_allclose(
        after(order, params, *(history or (BOS,))),
        (counts + k) / (counts.sum() + k * V),
        rtol=1e-5,
      )
  # A history that a window has cut short is none that was counted.
  np.testing.assert_allclose(after(3, params, 5), 1 / V, rtol=1e-6)


def test_a_unigram_is_the_frequency_of_words():
  text = corpus(0, 60)
  params = ngram.fit(text, vocab=V, order=1, bos=BOS, method='add_k', k=1e-9)
  frequency = np.bincount(np.concatenate(text), minlength=V) / sum(
    map(len, text)
  )
  np.testing.assert_allclose(after(1, params, 7), frequency, atol=1e-7)


def test_a_history_never_seen_backs_off_to_a_shorter_one():
  params = fitted(5)
  # What follows eos was never seen, so all that holds it was not either.
  short = after(5, params, 9, 8)
  np.testing.assert_array_equal(after(5, params, EOS, 9, 8), short)
  np.testing.assert_array_equal(after(5, params, EOS, EOS, 9, 8), short)
  np.testing.assert_allclose(
    after(5, params, 9, EOS), params['mass'][:V], rtol=1e-6
  )


@pytest.mark.slow
def test_padding_after_a_prompt_is_not_part_of_the_history():
  model, params, text = ngram.make(vocab=V, order=5), fitted(5), corpus(0, 60)
  rows = [[BOS, *max(text, key=len)[:n].tolist()] for n in (7, 4, 2, 1)]
  prompt = documents([row[:-1] for row in rows])
  cache = model.start(params, prompt, 8)
  cache = compiled(5, V)(params, prompt, cache=cache).cache
  ones = np.ones((4, 1), np.int32)
  last = np.array([row[-1:] for row in rows], np.int32)
  positions = prompt.segments.sum(1, keepdims=True, dtype=np.int32)
  step = types.Batch(last, last, ones.astype(np.float32), positions, ones)
  got = compiled(5, V)(params, step, cache=cache).logits[:, 0]
  for row, found in zip(rows, got, strict=True):
    np.testing.assert_array_equal(np.exp(found), after(5, params, *row))


@pytest.mark.parametrize('method', ['kneser_ney', 'add_k', None])
@pytest.mark.parametrize('order', ORDERS)
def test_scores_on_the_host_equal_those_of_the_model(order, method):
  model = ngram.make(vocab=V, order=order)
  params = fitted(order, method) if method else model.init(0, None)
  texts = [text for text in corpus(1, 20) if len(text) > 1]
  batch = objectives.padded([[BOS, *text] for text in texts], EOS)
  log_BLV = np.asarray(model.apply(params, batch).logits)
  want = [
    -log[np.arange(len(text)), text].sum()
    for log, text in zip(log_BLV, texts, strict=True)
  ]
  found = ngram.nats(params, texts, bos=BOS)
  np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize('order', [1, 3])
def test_initial_parameters_are_uniform_and_of_the_same_structure(order):
  model, batch = ngram.make(vocab=V, order=order), packed()
  params = model.init(0, batch)
  np.testing.assert_allclose(
    logits(order, params, batch), -math.log(V), rtol=1e-6
  )
  found = fitted(order)
  assert jax.tree.structure(params) == jax.tree.structure(found)
  assert [x.dtype for x in jax.tree.leaves(params)] == [
    x.dtype for x in jax.tree.leaves(found)
  ]
  out = jax.eval_shape(model.apply, params, batch)
  assert (out.cache, out.aux, out.hidden) == (None, {}, None)


def test_a_mesh_gives_the_logits_of_one_device():
  if jax.device_count() < 8:
    pytest.skip('needs eight devices: CPU simulates them')
  model, params, batch = ngram.make(vocab=V, order=3), fitted(3), packed(rows=8)
  mesh = sharding.make_mesh(data=4, fsdp=2)
  where = sharding.shardings(params, mesh=mesh, axes=model.axes, rules={})
  with jax.set_mesh(mesh):
    split = jax.jit(model.apply)(
      jax.device_put(params, where), sharding.put(batch, mesh)
    )
  np.testing.assert_allclose(logits(3, params, batch), split.logits, rtol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'order': 0}, 'order=0 must be at least 1'),
    ({'vocab': 0}, 'vocab=0 must be at least 1'),
    (
      {'method': 'turing'},
      "method='turing' is not one of kneser_ney, add_k",
    ),
    ({'method': 'add_k', 'k': 0.0}, r'k=0\.0 must be above 0'),
    ({'bos': V}, 'bos=40 is outside the vocabulary of 40 ids'),
    ({'documents': []}, 'no documents: give at least one that has tokens'),
    (
      {'documents': [np.array([], np.int32)]},
      'no documents: give at least one that has tokens',
    ),
    (
      {'documents': [np.array([3, 1]), np.array([3, 40, 1])]},
      'document 1 holds id 40, outside the vocabulary of 40 ids: give the '
      'vocab that it was written with',
    ),
    (
      {'documents': [np.array([-1, 1])]},
      'document 0 holds id -1, outside the vocabulary of 40 ids',
    ),
  ],
)
def test_documents_that_cannot_be_counted_are_refused(changes, message):
  settings = {'documents': corpus(0, 2), 'vocab': V, 'order': 2, 'bos': BOS}
  with pytest.raises(ValueError, match=message) as refused:
    ngram.fit(**settings | changes)
  assert '\n' not in str(refused.value) and len(str(refused.value)) <= 200


def test_impossible_settings_are_refused():
  with pytest.raises(ValueError, match='order=0 must be at least 1'):
    ngram.make(vocab=V, order=0)
  model = ngram.make(vocab=V, order=1)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((2**13, 2**13), x.dtype), packed()
  )
  with pytest.raises(ValueError, match='more n-grams than int32 counts: make'):
    jax.eval_shape(model.apply, fitted(1), batch)
