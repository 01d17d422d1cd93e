"""The algebra of sweeps: pure, in a fixed order, and the same every time."""

import itertools
import math
import statistics

import hypothesis
from hypothesis import strategies as st
import pytest

from lm.sweeping import points

KEYS = ('a', 'b.c', 'd')


def parts(key: str) -> st.SearchStrategy[list[points.Point]]:
  """Parts of up to three points that set one key."""
  return st.lists(st.integers(0, 9), max_size=3).map(
    lambda values: points.values(key, values)
  )


@hypothesis.given(*map(parts, KEYS))
def test_products_are_associative_and_have_a_unit(a, b, c):
  whole = points.product(a, b, c)
  assert points.product(points.product(a, b), c) == whole
  assert points.product(a, points.product(b, c)) == whole
  assert points.product(points.product(), a) == points.product(a) == a
  assert len(whole) == len(a) * len(b) * len(c)
  # The last part changes fastest.
  assert whole == [x | y | z for x in a for y in b for z in c]


@hypothesis.given(parts('a'), parts('a'), parts('b'))
def test_products_distribute_over_chains(a, other, b):
  assert points.product(points.chain(a, other), b) == points.chain(
    points.product(a, b), points.product(other, b)
  )
  assert points.chain(a) == points.chain(a, []) == a


@hypothesis.given(st.lists(st.tuples(*[st.integers(0, 9)] * 3), max_size=4))
def test_zipped_parts_go_in_step(rows):
  a, b, c = (
    points.values(key, [row[n] for row in rows]) for n, key in enumerate(KEYS)
  )
  whole = points.zipped(a, b, c)
  assert whole == [dict(zip(KEYS, row, strict=True)) for row in rows]
  assert points.zipped(points.zipped(a, b), c) == whole


def test_parts_do_not_change_what_they_are_made_of():
  mine = [{'a': 1}]
  points.product(mine, points.seeds(2))[0]['a'] = 2
  points.chain(mine)[0]['a'] = 2
  points.sample(mine, 1)[0]['a'] = 2
  assert mine == [{'a': 1}]


def test_mistakes_are_lines():
  with pytest.raises(ValueError, match=r'^a: two parts of a sweep set it'):
    points.product([{'a': 1}], [{'a': 2}])
  with pytest.raises(ValueError, match=r'^zipped: the parts have 1, 2 points'):
    points.zipped([{'a': 1}], points.seeds(2))
  with pytest.raises(ValueError, match=r'^a: 2 to 1 is no range'):
    points.draw('a', 2, 1, 3)
  with pytest.raises(ValueError, match=r'^a: 0 has no logarithm'):
    points.log_range('a', 0, 1, 3)
  with pytest.raises(ValueError, match=r'^a: a range of 1 values'):
    points.log_range('a', 1, 2, 1)
  with pytest.raises(ValueError, match=r'^sample: 3 of 2 points'):
    points.sample(points.seeds(2), 3)
  with pytest.raises(ValueError, match=r'^simplex: keys a: give two or more'):
    points.simplex(('a',), 3)
  with pytest.raises(ValueError, match=r'^simplex: keys a, a: give two or m'):
    points.simplex(('a', 'a'), 3)


@hypothesis.given(st.floats(1e-6, 1e3), st.floats(1.5, 1e6), st.integers(2, 20))
def test_a_log_range_has_its_ends_and_even_ratios(low, ratio, count):
  high = low * ratio
  values = [x['a'] for x in points.log_range('a', low, high, count)]
  assert (values[0], values[-1], len(values)) == (low, high, count)
  steps = [math.log(y / x) for x, y in itertools.pairwise(values)]
  even = math.log(high / low) / (count - 1)
  assert all(math.isclose(step, even, abs_tol=2e-3) for step in steps)


def test_values_of_a_log_range_can_be_read_in_names():
  values = [x['a'] for x in points.log_range('a', 1e-3, 1e-1, 5)]
  assert values == [0.001, 0.003162, 0.01, 0.03162, 0.1]
  assert [x['a'] for x in points.log_range('a', 64, 512, 4)] == [
    64, 128, 256, 512
  ]  # fmt: skip


@hypothesis.given(
  st.integers(0, 30), st.integers(0, 30), st.integers(0, 99), st.booleans()
)
def test_draws_are_the_same_every_time_and_go_on(count, more, seed, log):
  few = points.draw('a', 1e-4, 1e-1, count, log=log, seed=seed)
  many = points.draw('a', 1e-4, 1e-1, count + more, log=log, seed=seed)
  assert many[:count] == few and len(many) == count + more
  assert all(1e-4 <= x['a'] <= 1e-1 for x in many)


def test_draws_of_one_seed_differ_between_keys_and_seeds():
  a = [x['a'] for x in points.draw('a', 0.0, 1.0, 8)]
  b = [x['b'] for x in points.draw('b', 0.0, 1.0, 8)]
  other = [x['a'] for x in points.draw('a', 0.0, 1.0, 8, seed=1)]
  assert len({*a, *b, *other}) == 24
  # They are a promise: a sweep that is started again has the same runs.
  assert a[:2] == [0.4292, 0.7671]


@hypothesis.given(st.integers(2, 6), st.integers(0, 20), st.integers(0, 20))
def test_shares_of_a_simplex_add_up_to_1_and_go_on(size, count, more):
  keys = [f'weight.{n}' for n in range(size)]
  few = points.simplex(keys, count)
  many = points.simplex(keys, count + more)
  assert many[:count] == few and len(many) == count + more
  for point in many:
    assert list(point) == keys and min(point.values()) >= 0
    assert math.isclose(sum(point.values()), 1, abs_tol=1e-4 * size)


def test_all_shares_of_a_simplex_are_equally_likely():
  found = points.simplex(['a', 'b', 'c'], 3000)
  for key in 'abc':
    values = [x[key] for x in found]
    # Mean and variance of a flat Dirichlet distribution over three parts.
    mean = statistics.fmean(values)
    assert math.isclose(mean, 1 / 3, abs_tol=0.02)
    assert math.isclose(statistics.variance(values), 1 / 18, rel_tol=0.1)
  # Exactly a quarter of the triangle has no share above one half.
  inner = sum(max(x.values()) <= 0.5 for x in found) / len(found)
  assert math.isclose(inner, 1 / 4, abs_tol=0.03)


def test_draws_from_a_simplex_are_a_promise():
  found = points.simplex(('a', 'b', 'c'), 1)
  assert found == [{'a': 0.4477, 'b': 0.0419, 'c': 0.5104}]
  assert points.simplex(('a', 'b', 'c'), 1, seed=1) != found


def test_draws_between_ints_are_ints():
  found = [x['a'] for x in points.draw('a', 1, 4, 50)]
  assert {type(x) for x in found} == {int} and set(found) == {1, 2, 3, 4}


@hypothesis.given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 9))
def test_a_larger_sample_keeps_the_smaller_one(a, b, seed):
  part = points.seeds(12)
  few, many = (
    points.sample(part, n, seed=seed) for n in (min(a, b), max(a, b))
  )
  assert [x for x in many if x in few] == few  # and the order of the part
  assert many == [x for x in part if x in many]
