"""From a document to the steps that read it, and back: equal to brute force."""

import tempfile

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from lm.data import locate, mixture, shards, stream, windows, writer
from lm.data.tokenizers import utf8_bytes

BYTES = utf8_bytes.make()


def write(root, seed: int, sizes) -> dict[str, str]:
  """Writes a dataset of random texts for each name."""
  rng = np.random.default_rng(seed)
  paths = {}
  for name, size in sizes.items():
    texts = ['x' * int(n) for n in rng.integers(1, 40, size)]
    writer.write(f'{root}/{name}', texts, BYTES, shard_tokens=150)
    paths[name] = f'{root}/{name}'
  return paths


def slow_pieces(samples, step: int):
  """Follows the windows of a step forward, token by token."""
  dataset, place = mixture.locate(
    samples.phases, samples.before(step) + np.arange(samples.batch_size)
  )
  for row, (k, n) in enumerate(zip(dataset, place, strict=True)):
    name, cut = list(samples.cuts.items())[k]
    source = cut.source
    (start,), (size,) = cut.locate(np.asarray([n]))
    ends = np.cumsum(
      [len(source.document(i)) for i in range(source.manifest.documents)]
    )
    for token in (start + np.arange(size)) % source.manifest.tokens:
      document = int(np.searchsorted(ends, token, 'right'))
      inside = token - (ends[document] - len(source.document(document)))
      yield row, name, document, int(inside), int(n // cut.count)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
  data=st.data(),
  seed=st.integers(0, 2**32 - 1),
  window=st.integers(1, 50),
  batch_size=st.integers(1, 9),
)
def test_both_ways_agree_over_epochs_phases_and_eras(
  data, seed, window, batch_size
):
  steps = 40
  share = st.tuples(st.integers(0, 3), st.integers(1, 5))
  changes = data.draw(
    st.lists(st.tuples(st.integers(1, steps), share), max_size=3)
  )
  changes = sorted(dict(changes).items())
  turn = data.draw(st.integers(1, steps))
  with tempfile.TemporaryDirectory() as root:
    paths = write(root, seed, {'a': 5, 'b': 12})
    settings = {
      'sources': {n: {'path': p, 'weight': 1.0} for n, p in paths.items()},
      'tokenizer': BYTES,
      'changes': [(n, dict(zip('ab', x, strict=True))) for n, x in changes],
      'seed': seed,
      'batch_size': batch_size,
      'length': window,
    }
    first = stream.make(**settings)
    settings |= {'batch_size': batch_size % 4 + 1, 'length': window // 2 + 1}
    second = stream.make(**settings, position=first.state(turn))
    now = second.samples
    assert now is not None and first.samples is not None
    want = set()
    for step in range(steps):
      samples = first.samples if step < turn else now
      have = {
        (p.row, p.source, p.document, token)
        for p in locate.pieces(now, step)
        for token in range(p.start, p.stop)
      }
      slow = list(slow_pieces(samples, step))
      assert have == {x[:4] for x in slow}
      want |= {(step, *x) for x in slow}
    found = []
    for name, cut in now.cuts.items():
      for document in range(cut.source.manifest.documents):
        place = cut.source.place(document)
        seen = list(
          locate.visits(now, name, (place.start, place.stop), (0, steps))
        )
        assert seen == sorted(seen, key=lambda x: (x.step, x.row, x.start))
        found += [
          (x.step, x.row, name, document, token, x.epoch)
          for x in seen
          for token in range(x.start, x.stop)
        ]
    assert len(found) == len(set(found))
    assert set(found) == want


def test_a_stretch_of_steps_is_what_lies_in_it(tmp_path):
  paths = write(tmp_path, 1, {'a': 30})
  now = stream.make(
    {'a': {'path': paths['a'], 'weight': 1.0}},
    tokenizer=BYTES,
    seed=3,
    batch_size=2,
    length=16,
  ).samples
  assert now is not None
  place = now.cuts['a'].source.place(7)
  tokens = (place.start, place.stop)
  whole = list(locate.visits(now, 'a', tokens, (0, 400)))
  part = list(locate.visits(now, 'a', tokens, (50, 300)))
  assert part and part == [x for x in whole if 50 <= x.step < 300]
  assert not list(locate.visits(now, 'a', tokens, (300, 300)))
  # Far steps cost what near ones do.
  far = list(locate.visits(now, 'a', tokens, (10**12, 10**12 + 100)))
  assert far and all(10**12 <= x.step < 10**12 + 100 for x in far)


def test_many_epochs_are_found_in_pieces(tmp_path, monkeypatch):
  paths = write(tmp_path, 1, {'a': 9})
  now = stream.make(
    {'a': {'path': paths['a'], 'weight': 1.0}},
    tokenizer=BYTES,
    seed=3,
    batch_size=2,
    length=16,
  ).samples
  assert now is not None
  want = list(locate.visits(now, 'a', (0, 20), (0, 500)))
  monkeypatch.setattr(locate, '_AT_ONCE', 1)
  assert list(locate.visits(now, 'a', (0, 20), (0, 500))) == want


def test_steps_before_what_a_checkpoint_knows_are_refused(tmp_path):
  """An older version kept no past when batch size, window or seed changed."""
  paths = write(tmp_path, 1, {'a': 9})

  def make(batch_size, position=None):
    return stream.make(
      {'a': {'path': paths['a'], 'weight': 1.0}},
      tokenizer=BYTES,
      seed=3,
      batch_size=batch_size,
      length=16,
      position=position,
    )

  position = make(3, make(2).state(5)).state(8)
  assert [x['step'] for x in position['anchor'].pop('past')] == [0]
  now = make(3, position).samples
  assert now is not None and locate.eras(now)[0].start == 5
  assert [x.step for x in locate.visits(now, 'a', (0, 9), (0, 5))] == []
  with pytest.raises(ValueError, match='step 4 lies before step 5'):
    locate.pieces(now, 4)


@hypothesis.given(
  count=st.integers(1, 3000), key=st.integers(0, 2**64 - 1), big=st.booleans()
)
def test_an_order_is_undone(count, key, big):
  count += (1 << 40) * big
  values = np.arange(min(count, 200), dtype=np.uint64)
  keys = np.full(len(values), key, np.uint64)
  turned = windows.permuted(values, count, keys)
  np.testing.assert_array_equal(windows.unpermuted(turned, count, keys), values)
  np.testing.assert_array_equal(
    windows.permuted(windows.unpermuted(values, count, keys), count, keys),
    values,
  )


def test_places_of_documents_are_those_that_are_read(tmp_path):
  paths = write(tmp_path, 5, {'a': 60})
  source = shards.load(paths['a'])
  assert len(source.manifest.shards) > 3
  for number in range(60):
    place = source.place(number)
    np.testing.assert_array_equal(
      source.read(place.start, place.stop), source.document(number)
    )
    for token in (place.start, place.stop - 1):
      assert source.document_at(token) == number
    tokens = np.fromfile(tmp_path / 'a' / f'{place.shard}.bin', '<u2')
    size = place.stop - place.start
    assert (tokens[place.offset : place.offset + size][-1]) == BYTES.eos
