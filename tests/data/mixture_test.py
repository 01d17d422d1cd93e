"""The mixture: exact quotas, even spread, closed form."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from lm.data import mixture

P = mixture.PERIOD
WEIGHTS = st.lists(st.floats(0.01, 10), min_size=1, max_size=6)


@hypothesis.settings(max_examples=25)
@hypothesis.given(weights=WEIGHTS, start=st.integers(0, 3 * P))
def test_proportions_hold_over_periods_and_in_between(weights, start):
  schedule = mixture.make([(0, weights)], [0] * len(weights))
  share = np.asarray(weights) / np.sum(weights)
  quota = mixture.quotas(weights)
  assert quota.sum() == P and np.abs(quota - share * P).max() < 1
  dataset, _ = mixture.locate(schedule, start + np.arange(P))
  tally = np.bincount(dataset, minlength=len(weights))
  np.testing.assert_array_equal(tally, quota)
  for n in (10, 100, 1000, 30_000):
    part = np.bincount(dataset[:n], minlength=len(weights))
    # an interval of van der Corput's sequence strays by about log2(n)
    assert np.abs(part - share * n).max() <= 2 * np.log2(n) + 2


@hypothesis.settings(max_examples=25)
@hypothesis.given(
  changes=st.lists(
    st.tuples(st.integers(1, 40_000), st.tuples(*[st.floats(0.1, 1)] * 3)),
    max_size=3,
  ),
  before=st.tuples(*[st.integers(0, 10**6)] * 3),
)
def test_places_count_up_without_gap_over_changes(changes, before):
  phases, start = [(0, (1.0, 2.0, 0.0))], 0
  for step, weights in changes:
    start += step
    phases.append((start, weights))
  schedule = mixture.make(phases, before)
  samples = np.arange(start + 3000)
  dataset, place = mixture.locate(schedule, samples)
  for k in range(3):
    mine = place[dataset == k]
    np.testing.assert_array_equal(mine, before[k] + np.arange(len(mine)))
  for n in (0, 1, start, start + 2999):
    expected = before + np.bincount(dataset[:n], minlength=3)
    np.testing.assert_array_equal(mixture.count(schedule, n), expected)


def test_a_weight_of_zero_gives_nothing():
  schedule = mixture.make([(0, (0.0, 1.0))], [0, 0])
  dataset, place = mixture.locate(schedule, np.arange(1000))
  assert (dataset == 1).all() and place.tolist() == list(range(1000))


def test_far_samples_agree_with_counts():
  schedule = mixture.make([(0, (1, 2)), (10**12, (2, 1))], [0, 0])
  for sample in (10**9, 10**12 - 1, 10**12, 10**15):
    dataset, place = mixture.locate(schedule, np.asarray([sample]))
    assert place[0] == mixture.count(schedule, sample)[dataset[0]]


def test_equal_weights_take_turns():
  schedule = mixture.make([(0, (1, 1))], [0, 0])
  dataset, _ = mixture.locate(schedule, np.arange(8))
  assert dataset.tolist() == [0, 1] * 4


@pytest.mark.parametrize('weights', [(1, 1, 1), (1e-9, 1), (3, 1e9, 5, 7, 11)])
def test_quotas_share_out_the_whole_period(weights):
  assert mixture.quotas(weights).sum() == P


@hypothesis.settings(max_examples=25)
@hypothesis.given(
  changes=st.lists(
    st.tuples(
      st.integers(1, 2 * P),
      st.tuples(st.floats(0.1, 1), st.sampled_from((0.0, 0.5)), st.just(1.0)),
    ),
    max_size=3,
  ),
  before=st.tuples(*[st.integers(0, 10**6)] * 3),
  far=st.sampled_from((0, 10**12)),
)
def test_find_undoes_locate(changes, before, far):
  phases, start = [(0, (1.0, 2.0, 0.0))], 0
  for step, weights in changes:
    start += step
    phases.append((start, weights))
  schedule = mixture.make(phases, before)
  rng = np.random.default_rng(0)
  samples = np.concatenate(
    (
      rng.integers(0, start + 3 * P, 1000),
      [p.start for p in schedule],
      far + np.arange(10),
    )
  )
  dataset, place = mixture.locate(schedule, samples)
  for k in range(3):
    mine = dataset == k
    np.testing.assert_array_equal(
      mixture.find(schedule, k, place[mine]), samples[mine]
    )
