import math

import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers import positions

WIDTH, BASE, LENGTH = 16, 1e4, 256.0
KINDS = [
  {'kind': 'linear'},
  {'kind': 'ntk'},
  {'kind': 'llama3', 'length': LENGTH},
  {'kind': 'yarn', 'length': LENGTH},
]


def turned(given, places=(0, 1, 5, 300)):
  """Returns frequencies, as the angle at position 1, and the gain."""
  scaling = None if given is None else positions.make_scaling(**given)
  found = positions.rotation(jnp.array([places]), WIDTH, BASE, scaling)
  cos, sin = (np.asarray(x)[0, :, 0] for x in found)
  return np.arctan2(sin, cos)[1], np.hypot(cos, sin)


def by_hand(kind, factor):
  """The formulas as their papers and codes write them, in double."""
  d = WIDTH
  base = BASE * factor ** (d / (d - 2)) if kind == 'ntk' else BASE
  theta = base ** (-2 * np.arange(d // 2) / d)
  if kind == 'ntk':
    return theta, 1.0
  if kind == 'linear':
    return theta / factor, 1.0
  if kind == 'llama3':
    waves = 2 * math.pi / theta
    smooth = (LENGTH / waves - 1) / (4 - 1)
    middle = (1 - smooth) * theta / factor + smooth * theta
    slow = np.where(waves > LENGTH, theta / factor, middle)
    return np.where(waves < LENGTH / 4, theta, slow), 1.0

  def dimension(turns):
    return d * math.log(LENGTH / (turns * 2 * math.pi)) / (2 * math.log(BASE))

  low, high = math.floor(dimension(32)), math.ceil(dimension(1))
  ramp = np.clip((np.arange(d // 2) - low) / (high - low), 0, 1)
  return (
    theta / factor * ramp + theta * (1 - ramp),
    0.1 * math.log(factor) + 1,
  )


@pytest.mark.parametrize('given', KINDS, ids=lambda x: x['kind'])
def test_scaled_rotations_are_those_of_the_papers(given):
  got, gain = turned({'factor': 8.0, **given})
  want, gain_wanted = by_hand(given['kind'], 8.0)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(gain, gain_wanted, rtol=1e-6)
  plain, _ = turned(None)
  assert (got <= plain * (1 + 1e-6)).all() and got[-1] < plain[-1] / 7
  if given['kind'] != 'linear':
    assert got[0] == pytest.approx(plain[0])


@pytest.mark.parametrize('given', KINDS, ids=lambda x: x['kind'])
def test_a_factor_of_one_changes_nothing(given):
  scaling = positions.make_scaling(1.0, **given)
  places = jnp.arange(400)[None]
  plain = positions.rotation(places, WIDTH, BASE)
  same = positions.rotation(places, WIDTH, BASE, scaling)
  np.testing.assert_array_equal(plain.cos, same.cos)
  np.testing.assert_array_equal(plain.sin, same.sin)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'kind': 'yarn'}, 'must have a factor, and else only kind, length, low'),
    ({'factor': 2, 'base': 3}, 'must have a factor, and else only kind'),
    (
      {'factor': 2, 'kind': 'dynamic'},
      "kind='dynamic' is not one of linear, ntk, llama3, yarn",
    ),
    (
      {'factor': 2, 'kind': 'yarn'},
      "kind='yarn' and length=None: 'llama3' and 'yarn' have a length",
    ),
    ({'factor': 2, 'length': 4}, "kind='linear' and length=4"),
    (
      {'factor': 2, 'kind': 'llama3', 'length': 4, 'low': 5},
      'factor and length must be above 0, and low above 0 and below high',
    ),
    ({'factor': 0}, 'factor and length must be above 0'),
  ],
)
def test_a_scaling_that_cannot_be_is_one_line(given, message):
  with pytest.raises(ValueError) as caught:
    positions.rotary(scaling=given)
  assert message in str(caught.value) and len(str(caught.value)) <= 200
