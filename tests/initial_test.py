"""Initial values: addressed by seed, path and place, distributed as said."""

import numpy as np
import pytest

from lm import initial

SHAPE = (6, 40, 8)
SPREAD = initial.Normal(0.02)


def layer(n):
  return initial.Parameter(f'layers_{n}/attention/q', SHAPE[1:], SPREAD)


@pytest.mark.parametrize(
  'parameter',
  [
    initial.Parameter('q', SHAPE, SPREAD),
    initial.Parameter('q', SHAPE, initial.Uniform(-1, 3, np.exp)),
    initial.Parameter('q', SHAPE, initial.Constant(2)),
    initial.Stacked(tuple(layer(n) for n in range(6))),
    initial.Given(np.arange(6 * 40 * 8, dtype=np.float32).reshape(SHAPE)),
  ],
  ids=lambda x: type(getattr(x, 'distribution', x)).__name__,
)
def test_a_part_is_the_same_part_of_the_whole(parameter):
  whole = parameter.draw(3)
  assert whole.dtype == parameter.dtype == np.float32
  assert whole.shape == parameter.shape == SHAPE
  for part in (
    (slice(2, 4), slice(None), slice(None)),
    (slice(None), slice(10, 20), slice(4, 8)),
    (slice(0, 1), slice(39, 40), slice(7, 8)),
  ):
    np.testing.assert_array_equal(parameter.draw(3, part), whole[part])


def test_a_scalar_is_drawn():
  assert initial.Parameter('scale', (), SPREAD).draw(0).shape == ()


def test_a_stack_holds_what_its_layers_draw():
  stack = initial.Stacked((layer(0), layer(1))).draw(5)
  np.testing.assert_array_equal(stack[1], layer(1).draw(5))


def test_seed_and_path_matter():
  def values(seed, path):
    return initial.Parameter(path, (64,), SPREAD).draw(seed)

  one = values(0, 'a/q')
  for other in (values(1, 'a/q'), values(0, 'a/k')):
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


def test_normal_values_are_normal():
  x = initial.Normal(2.0).draw(3, (500, 1000), None).astype(np.float64) / 2
  n = x.size
  assert abs(x.mean()) < 5 / n**0.5
  assert abs(x.var() - 1) < 5 * (2 / n) ** 0.5
  assert abs((x**3).mean()) < 5 * (15 / n) ** 0.5
  assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
  for below, share in ((-2.0, 0.02275), (0.0, 0.5), (1.0, 0.84134)):
    assert (
      abs((x < below).mean() - share) < 5 * (share * (1 - share) / n) ** 0.5
    )
  # neighbours in every direction are independent
  for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[:, 7:], x[:, :-7])):
    assert abs((a * b).mean()) < 5 / n**0.5


def test_uniform_values_are_uniform():
  x = initial.Uniform(-1.0, 3.0).draw(3, (100_000,), None)
  assert x.min() >= -1 and x.max() < 3
  counts, _ = np.histogram(x, 20, (-1, 3))
  assert ((counts - 5000) ** 2 / 5000).sum() < 50  # chi squared, 19 degrees


def test_values_stay_as_they_were():
  # A run that starts from a seed starts with these: a change here is a change
  # of every figure that was measured.
  np.testing.assert_allclose(
    initial.Parameter('embed/table', (2, 2), SPREAD).draw(0),
    EXPECTED,
    rtol=1e-6,
  )


EXPECTED = [[-0.0115158, 0.01468064], [-0.007634716, -0.0056000953]]
