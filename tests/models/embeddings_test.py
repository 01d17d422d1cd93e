"""Compares GloVe with counts by hand and with pairs taken one by one."""

import re

import jax
import numpy as np
import pytest

from configs import base
from lm import checkpoint, config, evaluate, fit, tree
from lm.data import objectives
from lm.models import embeddings, heads, linen
from tests import programs

EOS = 1


def matrix(documents, vocab, window) -> np.ndarray:
  """Makes a dense matrix of the result of `cooccurrences`."""
  pairs = embeddings.cooccurrences(documents, vocab=vocab, window=window)
  assert pairs.starts[0] == 0 and pairs.starts[-1] == len(pairs.words)
  dense = np.zeros((vocab, vocab))
  for row in range(vocab):
    here = slice(pairs.starts[row], pairs.starts[row + 1])
    assert (np.diff(pairs.words[here]) > 0).all()
    dense[row, pairs.words[here]] = pairs.counts[here]
  return dense


def by_hand(documents, vocab, window) -> np.ndarray:
  """Counts the same pairs by their definition, one place at a time."""
  dense = np.zeros((vocab, vocab))
  for document in documents:
    words = document[:-1]
    for here, word in enumerate(words):
      for there, other in enumerate(words):
        if 0 < abs(here - there) <= window:
          dense[word, other] += 1 / abs(here - there)
  return dense


def classes(seed: int = 0) -> list[np.ndarray]:
  """Makes texts of words of one class, 2..11 or 12..21, but for one in ten."""
  rng = np.random.default_rng(seed)
  texts = []
  for n in range(60):
    other = (rng.random(40) < 0.1) ^ (n % 2 == 1)
    texts.append(np.append(2 + 10 * other + rng.integers(0, 10, 40), EOS))
  return texts


def fitted(capsys, **changes) -> tuple[np.ndarray, list[float]]:
  """Fits vectors to the texts of `classes`; returns the printed losses too."""
  settings = {'vocab': 22, 'bos': 0, 'width': 8, 'epochs': 15, 'rate': 0.1}
  params = embeddings.glove(classes(), **{**settings, **changes})
  losses = re.findall(r'epoch \d+ of \d+: loss (\S+)', capsys.readouterr().out)
  assert sorted(params) == ['embed'] and sorted(params['embed']) == ['table']
  return np.asarray(params['embed']['table']), list(map(float, losses))


def test_pairs_of_words_are_counted_by_their_distance():
  a, b, c, d = range(2, 6)
  texts = [np.array(x) for x in ([a, b, a, c, EOS], [d, EOS], [c, c, EOS])]
  want = np.zeros((6, 6))
  want[a, a] = 2 * 1 / 2  # it stands on either side of itself
  want[a, b] = want[b, a] = 1 + 1
  want[a, c] = want[c, a] = 1
  want[b, c] = want[c, b] = 1 / 2
  want[c, c] = 2
  np.testing.assert_array_equal(matrix(texts, 6, window=2), want)
  want[a, c] = want[c, a] = 1 + 1 / 3
  np.testing.assert_allclose(matrix(texts, 6, window=9), want, rtol=1e-15)


@pytest.mark.parametrize('at_once', [1, 50, 10_000])
def test_counts_are_the_same_however_many_are_sorted_at_once(
  at_once, monkeypatch
):
  rng = np.random.default_rng(0)
  texts = [
    np.append(rng.zipf(1.5, rng.integers(0, 30)) % 20 + 2, EOS)
    for _ in range(20)
  ]
  monkeypatch.setattr(embeddings, '_PAIRS', at_once)
  np.testing.assert_allclose(
    matrix(texts, 22, window=4), by_hand(texts, 22, window=4), rtol=1e-12
  )


def test_what_cannot_be_counted_is_one_line():
  one = [np.array([5, EOS])]
  with pytest.raises(
    ValueError, match='no two words occur together: give documents'
  ):
    embeddings.cooccurrences(one, vocab=6, window=2)
  with pytest.raises(ValueError, match='no two words occur together'):
    embeddings.cooccurrences([], vocab=6, window=2)
  with pytest.raises(
    ValueError, match='document 1 holds id 6, outside the vocabulary of 6 ids'
  ):
    embeddings.cooccurrences([*one, np.array([2, 6, EOS])], vocab=6, window=2)
  good = {'vocab': 6, 'bos': 0, 'width': 2}
  for name, bad in (('rate', 0.0), ('cap', float('inf')), ('power', -1.0)):
    with pytest.raises(ValueError, match=f'{name}={bad} must be above 0'):
      embeddings.glove(one, **{**good, name: bad})
  for name in ('window', 'epochs', 'width'):
    with pytest.raises(ValueError, match=f'{name}=0 must be at least 1'):
      embeddings.glove(one, **{**good, name: 0})


def test_a_block_is_updated_as_its_pairs_alone_would_be(capsys):
  """Compares epochs of a single block with the equations, pair by pair."""
  V, D, cap, power, rate = 22, 8, 30.0, 0.75, 0.3
  table, losses = fitted(
    capsys, epochs=3, cap=cap, power=power, rate=rate, window=3, seed=4
  )
  # A vector and a bias a row; the last column is that of the other side.
  generator = np.random.default_rng(4)
  word, context = (
    generator.uniform(-0.5 / D, 0.5 / D, (V, D + 2)) for _ in range(2)
  )
  w, b, c, d = word[:, :D], word[:, D], context[:, :D], context[:, D + 1]
  learnt = [w, b, c, d]
  squares = [np.ones_like(x) for x in learnt]
  counts = by_hand(classes(), V, window=3)
  want = []
  for _ in range(3):
    steps = [np.zeros_like(x) for x in learnt]
    more = [np.zeros_like(x) for x in learnt]
    total = 0.0
    for i, j in np.argwhere(counts):
      x = counts[i, j]
      weight = (x / cap) ** power if x < cap else 1
      miss = w[i] @ c[j] + b[i] + d[j] - np.log(x)
      total += weight * miss**2
      for n, (at, slope) in enumerate(((i, c[j]), (i, 1), (j, w[i]), (j, 1))):
        step = rate * weight * miss * slope
        steps[n][at] += step
        more[n][at] += step**2
    for value, square, step, extra in zip(
      learnt, squares, steps, more, strict=True
    ):
      value -= step / np.sqrt(square)
      square += extra
    want.append(total / np.count_nonzero(counts))
  np.testing.assert_allclose(losses, want, rtol=1e-4)
  np.testing.assert_allclose(table, w + c, rtol=1e-3, atol=1e-4)


def test_parts_and_blocks_take_every_pair_once_an_epoch(capsys, monkeypatch):
  """Checks with steps so small that their order does not matter."""
  start, _ = fitted(capsys, epochs=1, rate=1e-9)
  want, losses = fitted(capsys, epochs=1, rate=1e-3)
  most = np.abs(want - start).max()
  # One part of six blocks; six parts of one; two of two, where three are words.
  for block, cells in ((4, 2**26), (4, 1), (8, 2 * 3 * 8 * 8)):
    monkeypatch.setattr(embeddings, '_BLOCK', block)
    monkeypatch.setattr(embeddings, '_CELLS', cells)
    table, found = fitted(capsys, epochs=1, rate=1e-3)
    assert found == pytest.approx(losses, rel=0.02)
    np.testing.assert_allclose(table, want, atol=0.02 * most)


def test_the_loss_falls_and_classes_come_apart(capsys):
  table, losses = fitted(capsys)
  assert losses[0] > losses[7] > losses[14] and losses[14] < 0.2 * losses[0]
  unit = table[2:] / np.linalg.norm(table[2:], axis=1, keepdims=True)
  near = unit @ unit.T - 2 * np.eye(20)
  assert (near.argmax(1) // 10 == np.arange(20) // 10).all()
  same = np.arange(20)[:, None] // 10 == np.arange(20)[None] // 10
  assert near[same & ~np.eye(20, dtype=bool)].mean() > near[~same].mean() + 0.2


def test_the_same_seed_gives_the_same_vectors(capsys):
  one, other, third = (
    fitted(capsys, epochs=2, seed=seed)[0] for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(one, other)
  assert (one != third).any(axis=1).all()


def test_vectors_are_a_body_of_a_bag_of_words():
  body = {'fn': 'lm.models.embeddings:vectors', 'width': 4}
  model = heads.classify(vocab=9, body=body, classes=2, pool='mean')
  plain = embeddings.vectors(vocab=9, width=4)
  batch = objectives.padded([[3, 4, 5], [5, 4]], 0)

  @jax.jit
  def both():
    params = model.init(0, batch)
    table = params['body']['embed']['table']
    hidden = model.apply(params, batch).hidden
    return table, hidden, plain.apply(params['body'], batch).logits

  table, hidden, logits = map(np.asarray, both())
  assert table.shape == (9, 4)
  np.testing.assert_allclose(hidden[1, 0], table[4:6].mean(0), rtol=1e-5)
  np.testing.assert_allclose(logits[0, 1], table @ table[4], rtol=1e-5)
  with pytest.raises(ValueError, match='word embeddings generate no text'):
    plain.start({}, batch, 1)


def test_a_run_is_fitted_and_has_nothing_to_evaluate(data, tmp_path, capsys):
  c = programs.make(data).unlock()
  c.steps = 1
  c.data.fn = 'lm.data.stream:make'
  del c.data.seconds, c.data.hang_at
  c.model, c.fit = base.glove()
  c.fit.update(width=8, epochs=2)
  c.evals = {}
  state = fit.fit(c.lock(), tmp_path)
  assert state.params['embed']['table'].shape == (259, 8)
  assert 'epoch 2 of 2: loss' in capsys.readouterr().out
  found = checkpoint.restore_params(tmp_path)
  np.testing.assert_array_equal(
    found['embed']['table'], state.params['embed']['table']
  )
  # and these are the parameters of the config's model
  model = config.build(c.model, vocab=259)
  like = tree.shapes(model.parameters(linen.example_batch(1, 4)))
  assert tree.diff(found, like) == []
  with pytest.raises(config.ConfigError, match='its config has no evals'):
    evaluate.evaluate(tmp_path)
