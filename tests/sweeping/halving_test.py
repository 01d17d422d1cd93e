"""Successive halving: its rule is a function of the metrics alone."""

import math

import hypothesis
from hypothesis import strategies as st
import pytest

from lm import config
from lm.sweeping import halving, points
from tests import programs

RUNGS = points.Halving((10, 20), 0.5)
metrics = st.floats(allow_nan=True, allow_infinity=True)


def test_the_best_half_goes_on():
  assert halving.kept([3.0, 1.0, 2.0, 4.0], 0.5, False) == [1, 2]
  assert halving.kept([3.0, 1.0, 2.0, 4.0], 0.5, True) == [0, 3]


def test_what_is_not_finite_goes_first_and_equals_by_their_order():
  values = [math.nan, 2.0, -math.inf, 2.0, math.inf]
  assert halving.kept(values, 0.2, False) == [1]
  assert halving.kept(values, 0.5, True) == [1, 3]


def test_the_count_is_rounded_down_to_at_least_one():
  assert [len(halving.kept([0.0] * n, 1 / 3, False)) for n in range(1, 10)] == [
    1, 1, 1, 1, 1, 2, 2, 2, 3
  ]  # fmt: skip
  assert len(halving.kept([0.0] * 100, 0.29, False)) == 29


@hypothesis.given(
  st.lists(st.tuples(metrics, metrics), min_size=1, max_size=9),
  st.sampled_from([0.25, 1 / 3, 0.5, 0.9]),
  st.booleans(),
)
def test_rungs_are_decided_when_all_have_arrived(values, keep, higher):
  rule = points.Halving((10, 20), keep)
  whole = [dict(zip(rule.rungs, x, strict=True)) for x in values]
  final = halving.standing(rule, whole, higher)
  assert final.limit is None
  first = {n: rung for n, rung in final.ended.items() if rung == 10}
  # As long as one has not arrived at the first rung, nothing is decided.
  for n in range(len(whole)):
    part = [{} if n == i else x for i, x in enumerate(whole)]
    assert halving.standing(rule, part, higher) == halving.Standing({}, 10)
  # What was ended needs not arrive at the second.
  part = [{10: x[10]} if n in first else x for n, x in enumerate(whole)]
  assert halving.standing(rule, part, higher) == final
  left = [n for n in range(len(whole)) if n not in first]
  part = [{10: x[10]} if n == left[-1] else x for n, x in enumerate(whole)]
  assert halving.standing(rule, part, higher) == halving.Standing(first, 20)


def test_the_flag():
  assert halving.parse('10,20') == RUNGS
  assert halving.parse('100:0.25') == points.Halving((100,), 0.25)


@pytest.mark.parametrize(
  ('text', 'error'),
  [
    ('ten', '--halving=ten: give steps, and a share to keep: 100,300:0.5'),
    ('', '--halving=: give steps, and a share to keep: 100,300:0.5'),
    ('20,10', 'halving: rungs 20,10: give steps that rise'),
    ('0,10', 'halving: rungs 0,10: give steps that rise'),
    ('10:1', 'halving: keep 1.0: give a share between 0 and 1'),
    ('10:nan', 'halving: keep nan: give a share between 0 and 1'),
  ],
)
def test_wrong_flags(text, error):
  with pytest.raises(config.ConfigError) as caught:
    halving.parse(text)
  assert str(caught.value) == error


def test_a_rung_must_have_the_metric(data):
  c = programs.make(data, log_every=5, eval_every=4)
  halving.check_rungs(RUNGS, 'a', c, 'loss_nats')
  with pytest.raises(
    config.ConfigError,
    match='not known at rung 10 of a: give a multiple of '
    'eval_every, which is 4',
  ):
    halving.check_rungs(RUNGS, 'a', c, 'valid/loss_nats')
  with pytest.raises(config.ConfigError, match='not before the last step of a'):
    halving.check_rungs(points.Halving((36,), 0.5), 'a', c, 'loss_nats')
