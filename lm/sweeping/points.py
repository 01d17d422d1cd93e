"""Points of a sweep, and how they are combined.

A point is a dict of config keys and values, `{'optim.peak': 1e-3, 'seed': 0}`.
A part of a sweep is a list of points, and every function here returns one, so
that parts can be combined in any way. A list that is written by hand is a part
too. The function `sweep()` of a config file returns one:

    from lm.sweeping import points

    def sweep():
      return points.product(
        points.log_range('optim.peak', 1e-3, 1e-1, 5),
        points.zipped(
          points.values('model.width', (64, 128)),
          points.values('model.depth', (2, 4)),
        ),
        points.seeds(3),
      )

The functions are pure, and random points follow from a seed: the same call
gives the same points. Mistakes are ValueErrors of one line.
"""

from collections.abc import Iterable, Sequence
import itertools
import math
import random
from typing import Any, NamedTuple

Point = dict[str, Any]
SEED = 'seed'  # the key of a config that numbers repetitions of one point


class Halving(NamedTuple):
  """Describes successive halving, see `lm.sweeping.halving`.

  Attributes:
    rungs: steps at which runs are compared, ascending.
    keep: share of them that goes on after each rung.
  """

  rungs: tuple[int, ...]
  keep: float = 0.5


class Sweep(NamedTuple):
  """A sweep with more than its points, as `sweep()` may return it.

  Attributes:
    points: the points.
    metric: what runs are compared by, such as 'valid/loss_nats'; None: see
      `lm.sweeping.results.metric`.
    higher: whether higher is better.
    halving: ends hopeless runs early; None: all runs take all their steps.
  """

  points: Sequence[Point]
  metric: str | None = None
  higher: bool = False
  halving: Halving | None = None


def values(key: str, values: Iterable[Any]) -> list[Point]:
  """Gives a key each of these values, in their order."""
  return [{key: value} for value in values]


def product(*parts: Iterable[Point]) -> list[Point]:
  """Combines each point of a part with each point of the others.

  The last part changes fastest. Without a part there is one point, which
  changes nothing.

  Raises:
    ValueError: two parts set the same key.
  """
  return [_joined(chosen) for chosen in itertools.product(*parts)]


def zipped(*parts: Sequence[Point]) -> list[Point]:
  """Combines the first points of all parts, the second points, and so on.

  Raises:
    ValueError: the parts are not equally long, or set the same key.
  """
  if len(set(map(len, parts))) > 1:
    lengths = ', '.join(str(len(part)) for part in parts)
    raise ValueError(f'zipped: the parts have {lengths} points: give as many')
  return [_joined(chosen) for chosen in zip(*parts, strict=True)]


def chain(*parts: Iterable[Point]) -> list[Point]:
  """Lists the points of one part after those of another."""
  return [dict(point) for part in parts for point in part]


def seeds(which: int | Iterable[int], key: str = SEED) -> list[Point]:
  """Repeats with other seeds: this many, from 0 on, or these."""
  return values(key, range(which) if isinstance(which, int) else which)


def log_range(key: str, low: float, high: float, count: int) -> list[Point]:
  """Spaces values evenly by their logarithm, both ends included.

  Args:
    key: of the config.
    low: the first value, above 0.
    high: the last one. If both ends are ints, so are all values.
    count: number of values, at least 2.

  Raises:
    ValueError: there is no such range.
  """
  _check_ends(key, low, high, is_log=True)
  if count < 2:
    raise ValueError(f'{key}: a range of {count} values: give at least 2')
  inner = (
    _rounded(low * (high / low) ** (n / (count - 1)), low, high)
    for n in range(1, count - 1)
  )
  return values(key, (low, *inner, high))


def draw(
  key: str,
  low: float,
  high: float,
  count: int,
  *,
  log: bool = False,
  seed: int = 0,
) -> list[Point]:
  """Draws values at random between two ends.

  A larger `count` adds values after the same first ones. Different keys have
  different draws from the same seed.

  Args:
    key: of the config.
    low: the least value.
    high: the largest one. If both ends are ints, so are all values.
    count: number of values.
    log: draws evenly by the logarithm.
    seed: of the draw.

  Raises:
    ValueError: there is no such range.
  """
  _check_ends(key, low, high, is_log=log)
  # Python promises that these draws are the same in every version.
  source = random.Random(f'{seed} {key}')
  shares = [source.random() for _ in range(count)]
  if log:
    drawn = [low * (high / low) ** x for x in shares]
  elif _are_ints(low, high):
    drawn = [math.floor(low + (high - low + 1) * x) for x in shares]
  else:
    drawn = [low + (high - low) * x for x in shares]
  return values(key, (_rounded(x, low, high) for x in drawn))


def simplex(keys: Sequence[str], count: int, *, seed: int = 0) -> list[Point]:
  """Draws shares that add up to 1, such as the weights of sources.

  All mixtures are equally likely: the shares have a flat Dirichlet
  distribution. A larger `count` adds points after the same first ones. Shares
  are rounded to four decimals, so that a small one may be 0 and a sum differ
  from 1 by that much.

  Args:
    keys: of the config, one for each share; at least two.
    count: number of points.
    seed: of the draw.

  Raises:
    ValueError: there are fewer than two keys, or one stands twice.
  """
  if len(keys) < 2 or len(set(keys)) < len(keys):
    raise ValueError(
      f'simplex: keys {", ".join(keys) or "none"}: give two or more that differ'
    )
  source = random.Random(f'{seed} simplex {" ".join(keys)}')
  drawn: list[Point] = []
  for _ in range(count):
    # Exponential numbers divided by their sum are such shares. They are made by
    # hand since Python promises only random() to be the same in every version.
    parts = [-math.log1p(-source.random()) for _ in keys]
    shares = [round(x / math.fsum(parts), 4) for x in parts]
    drawn.append(dict(zip(keys, shares, strict=True)))
  return drawn


def sample(part: Sequence[Point], count: int, *, seed: int = 0) -> list[Point]:
  """Draws some points of a part, without repetition, in their order.

  A larger `count` keeps the points of a smaller one.

  Raises:
    ValueError: there are fewer.
  """
  if not 0 <= count <= len(part):
    raise ValueError(f'sample: {count} of {len(part)} points: give fewer')
  drawn = random.Random(f'{seed} sample')
  ranks = [drawn.random() for _ in part]
  chosen = sorted(range(len(part)), key=lambda n: ranks[n])[:count]
  return [dict(part[n]) for n in sorted(chosen)]


def _joined(chosen: Iterable[Point]) -> Point:
  point: Point = {}
  for other in chosen:
    for key in other:
      if key in point:
        raise ValueError(f'{key}: two parts of a sweep set it: leave one out')
    point |= other
  return point


def _check_ends(key: str, low: float, high: float, *, is_log: bool) -> None:
  if not (low < high and math.isfinite(high - low)):
    raise ValueError(f'{key}: {low} to {high} is no range: give low < high')
  if is_log and low <= 0:
    raise ValueError(f'{key}: {low} has no logarithm: begin above 0')


def _rounded(value: float, low: float, high: float) -> float:
  """Rounds to four digits, which names and tables can show, or to an int."""
  if _are_ints(low, high):
    return min(max(round(value), low), high)
  return min(max(float(f'{value:.4g}'), low), high)


def _are_ints(low: float, high: float) -> bool:
  return isinstance(low, int) and isinstance(high, int)
