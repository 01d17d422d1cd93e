"""Successive halving: who goes on after a rung, decided by one rule.

At each rung, a step at which runs are compared, all runs that are left are
sorted by the metric at that step. The best floor(n * keep) of n go on, at least
one; equal ones go on in the order of their points, and those without a finite
metric come last. A rung is decided when all runs that are left have arrived at
it, and not before: so the decisions follow from the metrics alone, and not from
the order in which runs happened to be computed.

What is compared is a point without its seed: its runs stand and fall together,
by the mean of their metric. Otherwise the best of many seeds would win.

References: Jamieson and Talwalkar 2016, AISTATS, arXiv 1502.07943 (Figure 3);
  Li et al. 2018, JMLR 18(185), arXiv 1603.06560. Theirs keeps one in eta of all
  arms, which here is `keep` = 1 / eta, and rungs are given as steps.
"""

from collections.abc import Mapping, Sequence
import itertools
import math
from typing import NamedTuple

from lm import config
from lm.sweeping import points


class Standing(NamedTuple):
  """The state of a halving.

  Attributes:
    ended: the rung at which each arm that does not go on was ended, by arm.
    limit: the first rung that is not decided; None if all are.
  """

  ended: dict[int, int]
  limit: int | None


def parse(text: str) -> points.Halving:
  """Reads the flag: '100,300' or '100,300:0.25', the rungs and the share.

  Raises:
    config.ConfigError: it is something else.
  """
  steps, colon, keep = text.partition(':')
  try:
    rungs = tuple(int(x) for x in steps.split(','))
    found = points.Halving(rungs, float(keep) if colon else 0.5)
  except ValueError:
    raise config.ConfigError(
      f'--halving={text}: give steps, and a share to keep: 100,300:0.5'
    ) from None
  check(found)
  return found


def check(halving: points.Halving) -> None:
  """Checks rungs and share.

  Raises:
    config.ConfigError: they cannot be used.
  """
  if not isinstance(halving, points.Halving):
    raise config.ConfigError(
      f'halving: {halving!r}: give points.Halving((100, 300), 0.5)'
    )
  rungs, keep = halving
  if not isinstance(rungs, list | tuple) or not all(
    type(x) is int for x in rungs
  ):
    raise config.ConfigError(
      f'halving: rungs {rungs!r}: give a list of steps, such as (100, 300)'
    )
  ascending = all(a < b for a, b in itertools.pairwise(rungs))
  if not rungs or rungs[0] < 1 or not ascending:
    raise config.ConfigError(
      f'halving: rungs {",".join(map(str, rungs))}: give steps that rise'
    )
  if type(keep) is not float or not 0 < keep < 1:
    raise config.ConfigError(
      f'halving: keep {keep}: give a share between 0 and 1'
    )


def check_rungs(
  halving: points.Halving, name: str, c: config.Config, metric: str
) -> None:
  """Checks that a run has its metric at each rung.

  Args:
    halving: as checked.
    name: of the run.
    c: of the run.
    metric: that runs are compared by.

  Raises:
    config.ConfigError: it has not.
  """
  key = 'eval_every' if '/' in metric else 'log_every'
  for rung in halving.rungs:
    if rung >= c.steps:
      raise config.ConfigError(
        f'halving: rung {rung} is not before the last step of {name}, {c.steps}'
      )
    if not c[key] or rung % c[key]:
      raise config.ConfigError(
        f'halving: {metric} is not known at rung {rung} of {name}: give a '
        f'multiple of {key}, which is {c[key]}'
      )


def kept(values: Sequence[float], keep: float, higher: bool) -> list[int]:
  """Lists the arms that go on after a rung, in their order.

  Args:
    values: the metric of each arm.
    keep: share that goes on.
    higher: whether higher is better.
  """
  # A product such as 100 * 0.29 lies just below the whole number it means.
  count = max(1, math.floor(round(len(values) * keep, 9)))
  sign = -1.0 if higher else 1.0

  def place(n: int) -> tuple[bool, float, int]:
    finite = math.isfinite(values[n])
    return not finite, sign * values[n] if finite else 0.0, n

  return sorted(sorted(range(len(values)), key=place)[:count])


def standing(
  halving: points.Halving,
  measured: Sequence[Mapping[int, float]],
  higher: bool,
) -> Standing:
  """Decides all rungs that can be decided.

  Args:
    halving: rungs and share.
    measured: the metric of each arm by rung, as far as it has arrived.
    higher: whether higher is better.
  """
  left, ended = list(range(len(measured))), {}
  for rung in halving.rungs:
    if any(rung not in measured[n] for n in left):
      return Standing(ended, rung)
    values = [measured[n][rung] for n in left]
    on = [left[n] for n in kept(values, halving.keep, higher)]
    ended |= {n: rung for n in left if n not in on}
    left = on
  return Standing(ended, None)
