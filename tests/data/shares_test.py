"""Shares by temperature and caps on epochs: as the papers say, and exact."""

import hashlib
import math

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from lm.data import mixture, position, shares, stream, writer
from lm.data.tokenizers import utf8_bytes

BYTES = utf8_bytes.make()
P = mixture.PERIOD


def unimax(sizes: dict[str, float], budget: float, most: float):
  """Follows algorithm 1 of UniMax: from the smallest source to the largest."""
  left, given = budget, {}
  order = sorted(sizes, key=lambda k: sizes[k])
  for n, name in enumerate(order):
    given[name] = min(left / (len(order) - n), most * sizes[name])
    left -= given[name]
  return given, left


@hypothesis.given(
  tokens=st.lists(st.integers(1, 10**12), min_size=1, max_size=6),
  temperature=st.floats(0.3, 100),
)
def test_temperature_gives_powers_of_sizes(tokens, temperature):
  sizes = {str(n): count for n, count in enumerate(tokens)}
  weight = {name: 1.0 + n for n, name in enumerate(sizes)}
  ((step, found),) = shares.tempered([(0, weight)], sizes, temperature)
  total = sum(tokens)
  assert step == 0
  assert found == {
    k: pytest.approx(weight[k] * (n / total) ** (1 / temperature), rel=1e-12)
    for k, n in sizes.items()
  }
  assert shares.tempered([(0, weight)], sizes, None) == [(0, weight)]


def test_a_temperature_that_leaves_no_share_is_refused():
  with pytest.raises(ValueError, match='1e-05 is too small'):
    shares.tempered([(0, {'a': 1.0, 'b': 1.0})], {'a': 10, 'b': 9}, 1e-5)


def test_temperatures_one_and_many():
  sizes = {'a': 100, 'b': 300}
  ((_, found),) = shares.tempered([(0, {'a': 1.0, 'b': 1.0})], sizes, 1.0)
  assert found == {'a': 0.25, 'b': 0.75}
  ((_, found),) = shares.tempered([(0, {'a': 1.0, 'b': 1.0})], sizes, 1e9)
  assert found['a'] == pytest.approx(found['b'])


@hypothesis.settings(deadline=None)
@hypothesis.given(
  sizes=st.lists(st.integers(2, 2000), min_size=1, max_size=6),
  epochs=st.floats(0.5, 30),
  steps=st.integers(1, 3000),
)
def test_equal_weights_are_shared_out_as_by_unimax(sizes, epochs, steps):
  names = {str(n): count for n, count in enumerate(sizes)}
  budget = steps * 32
  want, left = unimax(names, budget, epochs)
  weights = [(0, dict.fromkeys(names, 1.0))]

  def capped():
    return shares.capped(weights, names, epochs, batch_size=32, steps=steps)

  if left > budget * len(names) / P:
    with pytest.raises(ValueError, match='all sources reach'):
      capped()
    return
  if left:  # within what rounding takes
    return
  ((_, found),) = capped()
  total = sum(found.values())
  for name, count in want.items():
    slot = budget / P
    assert found[name] / total * budget == pytest.approx(
      count, abs=len(names) * slot + 1e-6 * budget
    )


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(data=st.data(), epochs=st.floats(1, 8))
def test_no_source_is_read_more_often_over_changes(data, epochs):
  sizes = {'a': 40, 'b': 300, 'c': 5000}
  share = st.fixed_dictionaries(
    {
      'a': st.sampled_from((0, 0.1, 3.0)),
      'b': st.floats(0.1, 5),
      'c': st.floats(0.5, 5),
    }
  )
  stretches = data.draw(
    st.lists(st.tuples(st.integers(1, 400), share), max_size=3)
  )
  weights = [(0, data.draw(share)), *sorted(dict(stretches).items())]
  try:
    found = shares.capped(weights, sizes, epochs, batch_size=16, steps=500)
  except ValueError as error:
    assert 'all sources reach' in str(error)
    return
  phases = mixture.make(
    [(step * 16, [x[k] for k in sizes]) for step, x in found], [0, 0, 0]
  )
  read = mixture.count(phases, 500 * 16)
  assert read.sum() == 500 * 16
  for count, size in zip(read, sizes.values(), strict=True):
    # The schedule is even to within some windows in each stretch.
    assert count <= epochs * size + 20 * len(found)
  for (_, given), (_, new) in zip(weights, found, strict=True):
    assert [k for k in given if not given[k]] == [k for k in new if not new[k]]


def test_a_bound_that_is_not_reached_changes_nothing():
  weights = [(0, {'a': 0.1, 'b': 0.7}), (5, {'a': 0.3, 'b': 0.3})]
  found = shares.capped(
    weights, {'a': 100, 'b': 100}, 2.0, batch_size=10, steps=10
  )
  assert found == weights
  # What lies behind the end of the run is not counted.
  late = [*weights, (10, {'a': 1.0, 'b': 0.0})]
  assert (
    shares.capped(late, {'a': 100, 'b': 100}, 2.0, batch_size=10, steps=10)
    == late
  )


def test_the_error_names_bounds_that_suffice():
  weights = [(0, {'a': 1.0, 'b': 9.0})]

  def capped(epochs):
    return shares.capped(
      weights, {'a': 100, 'b': 100}, epochs, batch_size=10, steps=70
    )

  with pytest.raises(ValueError) as error:
    capped(3.0)
  assert str(error.value) == (
    'data.max_epochs: all sources reach 3 in the 700 windows from step 0 on; '
    'give at least 3.5, or fewer steps'
  )
  ((_, found),) = capped(3.5)
  assert found == {'a': P / 2, 'b': P / 2}


def test_a_weight_that_is_too_small_is_refused_by_name():
  small = {'a': 1.0, 'tiny': 0.4 / P}
  with pytest.raises(ValueError) as error:
    shares.check([(0, small)], [(0, small)])
  assert str(error.value) == (
    'data.sources: tiny has a share of 6.1e-06 from step 0 on, too small to be '
    'drawn; give it 0, or at least 1/65536'
  )
  even = {'a': 1.0, 'tiny': 1.0}
  with pytest.raises(ValueError, match=r'data\.changes: tiny has .* step 7 on'):
    shares.check([(0, even), (7, even)], [(0, even), (7, small)])
  kept = {'a': 1.0, 'tiny': 1.01 / P, 'none': 0.0}
  shares.check([(0, kept)], [(0, kept)])
  assert mixture.quotas([*kept.values()]).tolist() == [P - 1, 1, 0]


# Streams.

SIZES = {'big': 900, 'mid': 90, 'small': 9}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('data')
  for name, count in SIZES.items():
    texts = [f'{name} {i} ' + 'word ' * (i % 7) for i in range(count)]
    writer.write(root / name, texts, BYTES)
  return root


@pytest.fixture
def make(root):
  def make(unit: float = 1.0, **changes) -> stream.Data:
    settings = {
      'sources': {n: {'path': str(root / n), 'weight': unit} for n in SIZES},
      'tokenizer': BYTES,
      'seed': 5,
      'batch_size': 8,
      'length': 32,
      'steps': 100,
    }
    return stream.make(**{**settings, **changes})

  return make


def windows(data: stream.Data) -> dict[str, int]:
  assert data.samples is not None
  return {name: cut.count for name, cut in data.samples.cuts.items()}


def test_a_stream_follows_temperature_and_caps(make):
  count = windows(make())
  plain = make().state(100)['counts']
  assert all(abs(n - 800 / 3) < 9 for n in plain.values())
  hot = make(temperature=2.0).state(100)['counts']
  root = {name: math.sqrt(n) for name, n in count.items()}
  for name, n in hot.items():
    assert n == pytest.approx(800 * root[name] / sum(root.values()), abs=10)
  capped = make(max_epochs=2.0).state(100)['counts']
  assert sum(capped.values()) == 800
  assert capped['small'] <= 2 * count['small'] + 1
  assert capped['small'] > 1.5 * count['small']
  both = make(temperature=2.0, max_epochs=1, steps=60).state(60)['counts']
  assert both['mid'] <= count['mid'] + 1 and both['small'] <= count['small'] + 1


# Batches of these streams. They change only if the shares or the order do.
GOLDEN = {
  'plain': '96ebbce5a8cc0d8f',
  'hot': '25533af10fecabcb',
  'capped': '8accd81883b5158a',
}


def test_golden_shares(make):
  have = {
    'plain': make(),
    'hot': make(temperature=3.3),
    'capped': make(temperature=3.3, max_epochs=1.5),
  }
  digests = {}
  for name, data in have.items():
    digest = hashlib.sha256()
    for step in (0, 1, 50, 99):
      digest.update(data.batch(step).targets.astype('<i4').tobytes())
    digests[name] = digest.hexdigest()[:16]
  assert digests == GOLDEN


@pytest.mark.parametrize(
  'weight', [1e308, 10**400, 1.1e100, 5e-324, 1e-101, math.nan, -1.0]
)
def test_weights_beyond_all_reason_are_refused(weight):
  sources = {x: {'weight': weight} for x in 'ab'}
  with pytest.raises(ValueError, match='numbers from 1e-100 to 1e100') as error:
    position.weights(['a', 'b'], sources, ())
  assert len(str(error.value)) <= 200


@pytest.mark.parametrize('unit', [2.0**332, 2.0**-332])
def test_weights_of_any_size_are_shares(make, unit):
  rules = ({}, {'temperature': 3.3}, {'temperature': 3.3, 'max_epochs': 1.5})
  for rule in rules:
    want, have = make(**rule), make(**rule, unit=unit)
    for step in (0, 99):
      np.testing.assert_array_equal(
        have.batch(step).tokens, want.batch(step).tokens
      )


def test_a_bound_that_nothing_reaches_changes_nothing(make):
  want, have = make(), make(max_epochs=1e308)
  np.testing.assert_array_equal(have.batch(50).tokens, want.batch(50).tokens)


def test_a_run_goes_on_with_its_shares_alone(make):
  settings = {'temperature': 2.0, 'max_epochs': 3.0}
  data = make(**settings)
  again = make(**settings, position=data.state(40))
  assert again.state(70) == data.state(70)
  np.testing.assert_array_equal(again.batch(60).tokens, data.batch(60).tokens)
  for other in (
    {'temperature': 3.0},
    {'temperature': None},
    {'max_epochs': 1.5},
    {'max_epochs': None},
    {'steps': 200},
  ):
    with pytest.raises(ValueError, match='weights before step 40 differ') as e:
      make(**{**settings, **other}, position=data.state(40))
    assert len(str(e.value)) <= 200


@pytest.mark.parametrize(
  ('changes', 'say'),
  [
    ({'temperature': 0.0}, r'data\.temperature: 0\.0 is not a positive'),
    ({'max_epochs': 0.0}, r'data\.max_epochs: 0\.0 is not a positive'),
    ({'max_epochs': 1.0, 'steps': None}, 'needs the number of steps'),
    ({'max_epochs': 0.1}, r'give at least [\d.]+, or fewer steps'),
    ({'max_epochs': 1.0, 'steps': 10**7}, 'all sources reach 1 in the'),
    ({'temperature': 0.2}, 'small has a share of .* too small to be drawn'),
  ],
)
def test_wrong_settings_are_one_line(make, changes, say):
  with pytest.raises(ValueError, match=say) as error:
    make(**changes)
  assert len(str(error.value)) <= 200
