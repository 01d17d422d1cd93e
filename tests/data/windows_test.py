"""Packing and order: every token once an epoch, and no token out of place."""

import tempfile

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from lm import types
from lm.data import shards, stream, windows, writer
from lm.data.tokenizers import utf8_bytes

WORDS = utf8_bytes.make()
TEXTS = st.lists(
  st.text('abé', min_size=1, max_size=30), min_size=1, max_size=9
)


def make_shards(texts, directory, shard_tokens=40) -> shards.Shards:
  writer.write(directory, texts, WORDS, shard_tokens=shard_tokens)
  return shards.load(directory, WORDS)


def read(cut: windows.Windows, samples) -> types.Batch:
  return windows.pack(*cut.read(np.asarray(samples)), WORDS)


def slow_window(ids: list[int], start: int, size: int, length: int):
  """One window, token by token: the meaning that `pack` must have."""
  rows = []
  segment, position = 1, 0
  for place in range(start, start + size):
    before, target = ids[(place - 1) % len(ids)], ids[place % len(ids)]
    begins = before == WORDS.eos
    if begins and place > start:
      segment, position = segment + 1, 0
    rows.append((WORDS.bos if begins else before, target, 1, position, segment))
    position += 1
  rows += [(WORDS.pad, WORDS.pad, 0, 0, 0)] * (length - size)
  return np.asarray(rows).T


@hypothesis.settings(max_examples=60)
@hypothesis.given(
  texts=TEXTS,
  length=st.integers(1, 40),
  batch=st.integers(1, 7),
  key=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
def test_every_token_is_a_target_once_an_epoch(texts, length, batch, key):
  with tempfile.TemporaryDirectory() as root:
    source = make_shards(texts, f'{root}/set')
    ids = source.read(0, source.manifest.tokens).tolist()
    cut = windows.Windows(source, length, key)
    for epoch in range(3):
      first = epoch * cut.count
      seen = np.zeros(len(ids), np.int64)
      for begin in range(first, first + cut.count, batch):
        n = np.arange(begin, min(begin + batch, first + cut.count))
        starts, sizes = cut.locate(n)
        got = read(cut, n)
        for b in range(len(n)):
          place = (starts[b] + np.arange(sizes[b])) % len(ids)
          np.add.at(seen, place, 1)
          expected = slow_window(ids, int(starts[b]), int(sizes[b]), length)
          np.testing.assert_array_equal(
            np.stack([field[b] for field in got[:5]]), expected
          )
      np.testing.assert_array_equal(seen, 1)


def test_batch_has_the_types_of_the_house(tmp_path):
  got = read(
    windows.Windows(make_shards(['ab', 'c'], tmp_path / 's'), 8, 1), [0]
  )
  for field, dtype in zip(got[:5], 'iifii', strict=True):
    assert field.shape == (1, 8) and field.dtype.kind == dtype
    assert field.dtype.itemsize == 4
  assert got[5:] == (None,) * len(got[5:])


def test_documents_restart_positions_and_segments(tmp_path):
  cut = windows.Windows(
    make_shards(['abc', 'd', 'ef'], tmp_path / 's'), 12, None
  )
  got = read(cut, [0])
  a, b, c, d, e, f = (WORDS.encode(x)[0] for x in 'abcdef')
  bos, eos = WORDS.bos, WORDS.eos
  assert got.tokens[0].tolist() == [bos, a, b, c, bos, d, bos, e, f, 0, 0, 0]
  assert got.targets[0].tolist() == [a, b, c, eos, d, eos, e, f, eos, 0, 0, 0]
  assert got.positions[0].tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 0, 0]
  assert got.segments[0].tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 3, 0, 0, 0]
  assert got.weights[0].tolist() == [1] * 9 + [0] * 3


def test_epochs_are_reshuffled_and_cut_anew(tmp_path):
  source = make_shards([f'{n:05d}' for n in range(400)], tmp_path / 's')
  one, two = (windows.Windows(source, 16, key) for key in (1, 2))
  n = one.count
  orders = [
    tuple(cut.locate(np.arange(n) + epoch * n)[0].tolist())
    for cut in (one, two)
    for epoch in range(4)
  ]
  assert len(set(orders)) == 8
  assert len({order[0] for order in orders}) > 4
  # another phase: the same tokens are not always together
  assert len({start % 16 for order in orders for start in order[:1]}) > 2
  # shuffled: neighbours in order are not neighbours in the stream
  steps = np.diff(orders[0])
  assert np.mean(np.abs(steps) == 16) < 0.05


def test_evaluation_scores_every_token_once_in_order(tmp_path):
  texts = [f'text number {n}' for n in range(50)]
  source = make_shards(texts, tmp_path / 's')
  data = stream.once(
    str(tmp_path / 's'), tokenizer=WORDS, batch_size=4, length=10
  )
  total = source.manifest.tokens
  steps = total // 40 + 1
  assert total % 40 and data.steps == steps
  assert data.text_bytes == sum(map(len, texts))
  batches = [data.batch(step) for step in range(steps)]
  weights = np.concatenate([b.weights.ravel() for b in batches])
  targets = np.concatenate([b.targets.ravel() for b in batches])
  assert weights.sum() == total
  np.testing.assert_array_equal(targets[weights > 0], source.read(0, total))
  last = batches[-1]
  assert (last.weights[-1] == 0).all() and (last.segments[-1] == 0).all()
  halves = [data.batch(2, host=h, hosts=2) for h in range(2)]
  joined = np.concatenate([h.targets for h in halves])
  np.testing.assert_array_equal(joined, batches[2].targets)


@pytest.mark.parametrize('count', (1, 2, 3, 4, 5, 16, 17, 99, 1000, 4097))
def test_permutation_is_one(count):
  values = np.arange(count, dtype=np.uint64)
  made = set()
  for key in range(5):
    keys = np.full(count, key, np.uint64)
    out = windows.permuted(values, count, keys)
    assert sorted(out.tolist()) == list(range(count))
    made.add(tuple(out.tolist()))
  assert len(made) >= min(count, 2)


def test_permutation_spreads_evenly():
  count = 64
  keys = np.arange(4096, dtype=np.uint64)
  first = windows.permuted(np.zeros(4096, np.uint64), count, keys)
  tally = np.bincount(first.astype(np.int64), minlength=count)
  # 64 expected in each; 5 deviations either way
  assert tally.min() >= 24 and tally.max() <= 104


def test_permutation_of_a_huge_corpus_stays_small():
  count = 10**13
  values = np.arange(1000, dtype=np.uint64) * np.uint64(10**9)
  out = windows.permuted(values, count, np.full(1000, 7, np.uint64))
  assert out.max() < count and len(set(out.tolist())) == 1000
