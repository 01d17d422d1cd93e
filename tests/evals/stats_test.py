"""Decisions are as often wrong as they say, and as often right as planned."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from lm.evals.reports import stats

reference: Any = scipy.stats

NULLS = 2000  # the share that is told at 5 % is then known to 0.5 %


def draws(*shape: int, seed: int = 1) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape)


def rejected(found: stats.Mean, truth: float = 0.0) -> tuple[float, float]:
  """The share of intervals that miss the truth, and of p-values below 5 %."""
  missed = (found.low > truth) | (found.high < truth)
  return float(missed.mean()), float((found.p <= 0.05).mean())


# --- means and paired differences


@pytest.mark.slow
@pytest.mark.parametrize(
  ('kind', 'least', 'most'),
  # Of answers some resamples have a mean of 0, which counts for both sides:
  # 20,000 nulls gave 4.4 %, and 4.8 % for losses.
  [('losses', 0.04, 0.06), ('answers', 0.034, 0.054)],
)
def test_five_in_a_hundred_equal_pairs_are_told_apart(kind, least, most):
  hard = draws(NULLS, 200)
  a, b = hard + draws(NULLS, 200, seed=2), hard + draws(NULLS, 200, seed=3)
  if kind == 'answers':
    a, b = (a > 0) * 1.0, (b > 0) * 1.0
  for share in rejected(stats.mean(b - a)):
    assert least <= share <= most
  # Not in pairs hardly any would be: both share what makes an item hard.
  apart = reference.ttest_ind(a, b, axis=1).pvalue
  assert (apart < 0.05).mean() < 0.03


def test_few_items_are_hardly_told_apart_more_often():
  for n, most in ((6, 0.067), (10, 0.06), (20, 0.055)):
    x = draws(4 * NULLS, n)
    for share in rejected(stats.mean(x, resamples=1999)):
      assert 0.04 <= share <= most
  drawn = np.random.default_rng(0).integers(10, size=(999, 10))
  means = draws(NULLS, 10)[:, drawn].mean(-1)
  low, high = np.quantile(means, [0.025, 0.975], axis=1)
  assert ((low > 0) | (high < 0)).mean() > 0.08  # what is mended here


def test_as_few_as_four_are_never_told_apart():
  found = stats.mean(np.array([1.0, 1.1, 0.9, 1.0]))
  assert found.p == pytest.approx(1 / 8)  # four coins agree as often


def test_an_interval_is_of_the_mean_and_agrees_with_its_p():
  x = draws(300) + 0.1
  found = stats.mean(x)
  assert found.value == pytest.approx(x.mean())
  error = x.std(ddof=1) / math.sqrt(300)
  reach = float(reference.t.isf(0.025, 299)) * error
  assert found.low == pytest.approx(x.mean() - reach, abs=0.05 * error)
  assert found.high == pytest.approx(x.mean() + reach, abs=0.05 * error)
  assert found.p == pytest.approx(reference.ttest_1samp(x, 0).pvalue, rel=0.2)
  edge = stats.mean(x, level=float(found.p))
  assert min(abs(edge.low), abs(edge.high)) < 0.02 * error
  assert stats.mean(x, level=0.01).low < found.low
  assert stats.mean(x) == found and stats.mean(x, seed=1) != found


def test_resamples_in_blocks_are_the_same(monkeypatch):
  x = draws(3, 40)
  whole = stats.mean(x, resamples=999)
  monkeypatch.setattr(stats, '_BLOCK', 4000)
  for one, other in zip(whole, stats.mean(x, resamples=999), strict=True):
    np.testing.assert_allclose(one, other)


def test_no_difference_at_all_is_no_surprise():
  found = stats.mean(np.zeros(50))
  assert tuple(found) == (0, 0, 0, 1)


# --- groups


def test_groups_of_equal_items_count_once():
  x = draws(40)
  names = [f'passage {i}' for i in range(40)]
  alone = stats.mean(x)
  five = np.repeat(x, 5)
  together = stats.mean(five, groups=np.repeat(names, 5).tolist())
  order = np.argsort(names)  # groups are drawn in the order of their names
  np.testing.assert_allclose(together, stats.mean(x[order]))
  blind = stats.mean(five)
  ratio = (together.high - together.low) / (blind.high - blind.low)
  assert ratio == pytest.approx(math.sqrt(5), rel=0.1)
  assert together.value == pytest.approx(alone.value)
  assert stats.standard_error(five, np.repeat(names, 5).tolist()) == (
    pytest.approx(x.std(ddof=1) / math.sqrt(40))
  )


@pytest.mark.slow
def test_groups_of_different_sizes_keep_the_rate():
  rng = np.random.default_rng(5)
  groups = np.repeat(np.arange(40), rng.integers(1, 10, size=40)).astype(str)
  _, place = np.unique(groups, return_inverse=True)
  x = draws(NULLS, 40)[:, place] + draws(NULLS, len(groups), seed=2)
  _, told = rejected(stats.mean(x, groups=groups.tolist()))
  assert 0.04 <= told <= 0.065
  assert rejected(stats.mean(x))[1] > 0.2  # and this is what they prevent


def test_the_error_of_groups_by_hand():
  # Sums 6, 1 and 5 of 3, 1 and 2 items: a mean of 2, from which they are off by
  # 0, -1 and 1; 2 * 3 / 2 over six items squared.
  x, groups = [1, 1, 1, 2, 4, 3], ['a', 'b', 'c', 'a', 'c', 'a']
  found = stats.standard_error(np.array(x), groups)
  assert found == pytest.approx(math.sqrt(3) / 6)


def test_the_order_of_items_does_not_matter():
  x, groups = draws(30), [str(i % 7) for i in range(30)]
  mixed = np.random.default_rng(0).permutation(30)
  np.testing.assert_allclose(
    stats.mean(x[mixed], groups=[groups[i] for i in mixed]),
    stats.mean(x, groups=groups),
  )


# --- answers


def test_mcnemar_by_hand():
  # Only A is right on 9, only B on 1: 2 (1 + 10) / 2^10.
  a = np.array([1] * 9 + [0] + [1] * 20 + [0] * 5)
  b = np.array([0] * 9 + [1] + [1] * 20 + [0] * 5)
  assert stats.mcnemar(a, b) == pytest.approx(22 / 1024)
  assert stats.mcnemar(b, a) == pytest.approx(22 / 1024)
  assert stats.mcnemar(a, a) == 1
  a[8], b[:5] = 0, 1  # 3 and 1: 2 (1 + 4) / 2^4
  assert stats.mcnemar(a, b) == pytest.approx(10 / 16)
  for only_a, only_b in ((0, 5), (7, 7), (12, 30)):
    a = np.repeat([1, 0], [only_a, only_b])
    want = reference.binomtest(only_a, only_a + only_b).pvalue
    assert stats.mcnemar(a, 1 - a) == pytest.approx(want)


def test_mcnemar_is_exact_and_so_a_bit_careful():
  rng = np.random.default_rng(3)
  hard = rng.random((NULLS, 500))
  a, b = (rng.random((2, NULLS, 500)) * 0.5 + hard * 0.5) < 0.6
  told = (stats.mcnemar(a, b) <= 0.05).mean()
  assert 0.03 <= told <= 0.06


def test_wilson_by_hand():
  z = 1.959964
  assert stats.proportion(0, 10) == pytest.approx(
    (0, z**2 / (10 + z**2)), abs=1e-6
  )
  middle = (7 + z**2 / 2) / (10 + z**2)
  half = z / (10 + z**2) * math.sqrt(10 * 0.7 * 0.3 + z**2 / 4)
  assert stats.proportion(7, 10) == pytest.approx(
    (middle - half, middle + half)
  )


# --- many tasks


def test_holm_by_hand():
  found = stats.holm([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
  np.testing.assert_allclose(stats.holm([0.6, 0.7]), [1, 1])
  assert stats.holm([]).shape == (0,)


def test_ten_tasks_together_are_wrong_in_five_of_a_hundred_tables():
  p = reference.ttest_1samp(draws(NULLS, 10, 30), 0, axis=-1).pvalue
  assert (p.min(-1) <= 0.05).mean() > 0.35
  told = (stats.holm(p) <= 0.05).any(-1).mean()
  assert 0.04 <= told <= 0.06
  # With one true difference that is always found, nine are left.
  p[:, 4] = 1e-9
  others = np.delete(stats.holm(p), 4, axis=-1)
  assert 0.04 <= (others <= 0.05).any(-1).mean() <= 0.06


# --- how many would tell


def test_needed_is_what_tables_of_power_say():
  # Cohen 1988, tables 2.4.1, for a power of 0.8 at 5 %: 64 and 26 a side.
  assert stats.needed(0.5, 1, sides=2) == 64
  assert stats.needed(0.8, 1, sides=2) == 26
  assert stats.needed(0.5, 1) == 34
  # Miller 2024: (1.960 + 0.842)^2 s^2 / d^2
  assert stats.needed(0.01, 0.5) == pytest.approx(7.849 * 2500, rel=1e-3)
  assert stats.needed(5.0, 0.0) == 2 and stats.needed(-0.5, 1) == 34


def test_needed_grows_with_what_is_asked_of_it():
  def grows(values):
    return all(x <= y for x, y in itertools.pairwise(values))

  assert grows([stats.needed(1 / d, 1) for d in np.linspace(0.2, 60, 300)])
  assert grows([stats.needed(0.2, s) for s in np.linspace(0.01, 7, 300)])
  assert grows([stats.needed(0.2, 1, level=1 / x) for x in range(2, 300)])
  assert grows([stats.needed(0.2, 1, power=x / 100) for x in range(50, 99)])


@pytest.mark.parametrize('effect', [0.7, 0.3, 0.2])
def test_needed_items_find_it_in_four_of_five(effect):
  n = stats.needed(effect, 1)
  _, found = rejected(stats.mean(draws(NULLS, n) + effect, resamples=1999))
  assert 0.77 <= found <= 0.83
  _, found = rejected(stats.mean(draws(NULLS, n // 2) + effect, resamples=1999))
  assert found < 0.6


def test_needed_answers_find_it_in_four_of_five():
  """McNemar's test needs hardly more than the formula says."""
  only_a, only_b = 0.06, 0.10
  d = only_b - only_a
  n = stats.needed(d, math.sqrt(only_a + only_b - d**2), level=0.01)
  draw = np.random.default_rng(4).random((500, n))
  a, b = draw < only_a, draw > 1 - only_b
  found = (stats.mcnemar(a, b) <= 0.01).mean()
  assert 0.75 <= found <= 0.84


# --- seeds


def recipes(
  seeds: int, items: int, rng: np.random.Generator, *, rise=0.0, by_seed=0.2
) -> list[np.ndarray]:
  """Outcomes [K, N] of two sides: a run, an item, a side's item and noise."""
  shared = rng.normal(size=items)
  return [
    shared
    + rng.normal(0, 0.3, items)
    + rng.normal(side * rise, by_seed, (seeds, 1))
    + rng.normal(0, 0.5, (seeds, items))
    for side in (0, 1)
  ]


def test_seeds_and_items_are_min_f():
  a, b = recipes(3, 40, np.random.default_rng(0), rise=0.3)
  b = np.concatenate([b, b[:1] + 0.1])
  f1 = reference.ttest_ind(b.mean(1), a.mean(1), equal_var=False)
  f2 = reference.ttest_rel(b.mean(0), a.mean(0)).statistic ** 2
  f, freedom = f1.statistic**2, f1.df
  least = f * f2 / (f + f2)
  n2 = (f + f2) ** 2 / (f**2 / 39 + f2**2 / freedom)
  found = stats.difference(a, b)
  assert found.p == pytest.approx(reference.f.sf(least, 1, n2))
  assert found.value == pytest.approx(b.mean() - a.mean())
  assert found.value / math.sqrt(found.items + found.seeds) == pytest.approx(
    math.sqrt(least)
  )
  edge = stats.difference(a, b, level=found.p)
  assert min(abs(edge.low), abs(edge.high)) < 1e-9


@pytest.mark.parametrize(
  ('seeds', 'most'),
  [(2, 0.07), (3, 0.055), (5, 0.055)],  # 200,000 nulls: 6.0, 4.6 and 4.6 %
)
def test_the_same_recipe_is_rarely_told_from_itself(seeds, most):
  rng = np.random.default_rng(seeds)
  p, lone = [], []
  for _ in range(NULLS):
    a, b = recipes(seeds, 50, rng)
    p.append(stats.difference(a, b).p)
    lone.append(reference.ttest_rel(a.mean(0), b.mean(0)).pvalue)
  assert 0.01 <= np.mean(np.array(p) <= 0.05) <= most
  assert np.mean(np.array(lone) <= 0.05) > 0.2  # without a thought of seeds


def test_one_run_a_side_is_a_test_over_items():
  a, b = recipes(1, 200, np.random.default_rng(0), rise=0.1)
  found = stats.difference(a, b)
  want = stats.mean(b[0] - a[0])
  assert found[:4] == pytest.approx(tuple(want)) and found.seeds == 0
  a, b = a > 0, b > 0.1
  found = stats.difference(a * 1.0, b * 1.0)
  assert found.p == pytest.approx(float(stats.mcnemar(a[0], b[0])))
  # In groups answers are not independent, which McNemar's takes them to be.
  groups = [str(i // 10) for i in range(200)]
  grouped = stats.difference(a * 1.0, b * 1.0, groups=groups)
  want = stats.mean(b[0] * 1.0 - a[0], groups=groups)
  assert grouped[:4] == pytest.approx(tuple(want))


def test_runs_that_always_agree_have_an_answer():
  zeros, ones = np.zeros((2, 30)), np.ones((2, 30))
  assert stats.difference(zeros, zeros).p == 1
  assert stats.difference(zeros, ones).p < 1e-6
  assert stats.difference(zeros[:, :2], ones[:, :2]).p == 0.5


def test_one_run_against_several_is_refused():
  with pytest.raises(ValueError) as caught:
    stats.difference(np.zeros((1, 5)), np.zeros((3, 5)))
  assert str(caught.value) == (
    '1 against 3 runs: give each side one, or two and more'
  )


def test_more_seeds_would_tell():
  """The numbers of `more` show a difference in about four of five tables."""
  by_seed, rise = 0.05, 0.12
  found = stats.Difference(rise, 0, 0, 1, 0.02**2, 2 * by_seed**2 / 3)
  need = stats.more(found, items=1000, runs=3)
  assert need.keys() == {'seeds'}
  rng = np.random.default_rng(1)
  p = []
  for _ in range(400):
    a, b = recipes(3 + need['seeds'], 1000, rng, rise=rise, by_seed=by_seed)
    p.append(stats.difference(a, b).p)
  assert 0.72 <= np.mean(np.array(p) <= 0.05) <= 0.9


def test_more_items_where_seeds_would_not_do():
  few_items = stats.Difference(0.1, 0, 0, 1, 0.1**2, 0.02**2)
  need = stats.more(few_items, items=50, runs=3)
  # 0.1 / 2.80 may be the error of all: what seeds leave of it is 0.0296
  assert need == {
    'items': pytest.approx(50 * (0.1 / 0.0296) ** 2 - 50, rel=0.02)
  }
  neither = stats.Difference(0.1, 0, 0, 1, 0.1**2, 0.1**2)
  need = stats.more(neither, items=50, runs=3)
  times = 2 * 7.849
  assert need == {
    'seeds': math.ceil((times - 1) * 3),
    'items': math.ceil((times - 1) * 50),
  }
  alone = stats.Difference(0.1, 0, 0, 1, 0.1**2, 0)
  assert stats.more(alone, items=50, runs=1) == {
    'items': stats.needed(0.1, 0.1 * math.sqrt(50)) - 50
  }
  assert stats.more(alone._replace(value=0.0), items=50, runs=1) == {}
