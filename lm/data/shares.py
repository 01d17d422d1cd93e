"""Shares of sources: what temperature and a cap on epochs make of weights.

All is computed once, before the first step: what comes out are weights by step
again, so that a mixture stays a function of the step.
"""

from collections.abc import Mapping
import decimal
import math
from typing import NamedTuple

from lm.data import mixture, names, shards
from lm.data.samples import Weights

_DIGITS = 30  # of powers, which are then rounded to floats


class Rule(NamedTuple):
  """Settings that turn weights into shares.

  Attributes:
    temperature: see `tempered`.
    max_epochs: see `capped`.
    steps: of the whole run, which `max_epochs` needs.
  """

  temperature: float | None
  max_epochs: float | None
  steps: int | None


def make(
  given: Weights,
  opened: Mapping[str, shards.Shards],
  identity: Mapping[str, int],
  rule: Rule,
) -> Weights:
  """Makes the weights that the sources of a run are drawn by.

  Args:
    given: weights of every source from a step on, as the user gave them.
    opened: the sources.
    identity: batch size and window of the run.
    rule: that turns them into shares.

  Raises:
    ValueError: a setting is out of range, the sources do not suffice, or one
      would never be drawn.
  """
  tokens = {name: source.manifest.tokens for name, source in opened.items()}
  found = capped(
    tempered(given, tokens, rule.temperature),
    {name: -(-count // identity['window']) for name, count in tokens.items()},
    rule.max_epochs,
    batch_size=identity['batch_size'],
    steps=rule.steps,
  )
  check(given, found)
  return found


def tempered(
  weights: Weights, tokens: Mapping[str, int], temperature: float | None
) -> Weights:
  """Multiplies weights by tokens^(1 / temperature).

  So sources of weight 1 are read in proportion to their size at temperature 1,
  and ever more evenly above it. Below 1 the large ones get more than that.

  Args:
    weights: of every source from a step on.
    tokens: of each source.
    temperature: T; None leaves the weights as they are.

  Raises:
    ValueError: the temperature is not a positive number.

  Reference: Conneau et al. 2020, arXiv 1911.02116, section 3.1, and Xue et al.
  2021, arXiv 2010.11934, section 3.2, whose alpha is 1 / T.
  """
  if temperature is None:
    return weights
  if not (temperature > 0 and math.isfinite(temperature)):
    raise ValueError(
      f'data.temperature: {temperature} is not a positive number; 1 reads '
      'sources in proportion to their tokens'
    )
  total = sum(tokens.values())
  # Powers of floats differ in their last bit between machines, and a run could
  # not move from one to the other. Decimals are computed in whole numbers.
  with decimal.localcontext(prec=_DIGITS):
    exponent = 1 / decimal.Decimal(temperature)
    scale = {
      name: float((decimal.Decimal(n) / total) ** exponent)
      for name, n in tokens.items()
    }
  result = [
    (step, {name: value * scale[name] for name, value in share.items()})
    for step, share in weights
  ]
  if not all(any(share.values()) for _, share in result):
    raise ValueError(
      f'data.temperature: {temperature} is too small: all shares are 0; give a '
      'larger one'
    )
  return result


def capped(
  weights: Weights,
  windows: Mapping[str, int],
  max_epochs: float | None,
  *,
  batch_size: int,
  steps: int | None,
) -> Weights:
  """Bounds the epochs of each source in a run, and shares out what exceeds.

  A source that would be read more often gives the rest to the others, in
  proportion to their weights, until all of them reach the bound. Where weights
  change, each stretch of steps has the part of the bound that it would have of
  the source without one.

  Args:
    weights: of every source from a step on.
    windows: of each source in an epoch.
    max_epochs: the bound; None: there is none.
    batch_size: windows a step.
    steps: of the whole run.

  Raises:
    ValueError: the sources do not suffice, or a setting is out of range.

  Reference: Chung et al. 2023, arXiv 2304.09151, algorithm 1, for weights that
  are all equal.
  """
  if max_epochs is None:
    return weights
  if not (max_epochs > 0 and math.isfinite(max_epochs)):
    raise ValueError(f'data.max_epochs: {max_epochs} is not a positive number')
  if steps is None:
    raise ValueError('data.max_epochs: needs the number of steps of the run')
  ends = [min(step, steps) for step, _ in weights[1:]] + [steps]
  counts = [  # of the samples of each stretch
    max(0, end - step) * batch_size
    for (step, _), end in zip(weights, ends, strict=True)
  ]
  planned = [
    {k: n * w / math.fsum(share.values()) for k, w in share.items()}
    for (_, share), n in zip(weights, counts, strict=True)
  ]
  whole = {k: math.fsum(part[k] for part in planned) for k in windows}
  result = []
  for (step, share), n, part in zip(weights, counts, planned, strict=True):
    if n:  # others lie behind the end
      most = {
        k: max_epochs * windows[k] * x / whole[k] if x else 0.0
        for k, x in part.items()
      }
      share = _filled(share, {k: x / n for k, x in most.items()})
      if share is None:
        least = max_epochs * n / math.fsum(most.values())
        raise ValueError(
          f'data.max_epochs: all sources reach {max_epochs:g} in the {n} '
          f'windows from step {step} on; give at least '
          f'{math.ceil(least * 100) / 100:g}, or fewer steps'
        )
    result.append((step, share))
  return result


def _filled(
  weights: Mapping[str, float], most: Mapping[str, float]
) -> Mapping[str, float] | None:
  """Bounds the shares of sources, and gives what exceeds to the others.

  Args:
    weights: by source.
    most: the largest share of each.

  Returns:
    Weights in slots of a period; None if all sources reach their bounds.
  """
  period = mixture.PERIOD
  # Whole slots, rounded down, so that no bound is exceeded by rounding.
  slots = {k: math.floor(min(most[k], 1.0) * period) for k in weights}
  free = {k: w for k, w in weights.items() if w}
  left, full = period, {}
  while free:
    total = math.fsum(free.values())
    over = [k for k, w in free.items() if left * (w / total) > slots[k]]
    if not over:
      break
    full |= {k: slots[k] for k in over}
    left = period - sum(full.values())
    free = {k: w for k, w in free.items() if k not in full}
  if not full:
    return weights
  # Bounds that suffice exactly may lack the slots that rounding took.
  if not free and left > len(full):
    return None
  total = math.fsum(free.values())
  rest = {k: left * (w / total) for k, w in free.items()}
  return {k: float(full.get(k, rest.get(k, 0.0))) for k in weights}


def check(given: Weights, found: Weights) -> None:
  """Refuses a source with a weight that is too small to be drawn.

  Args:
    given: weights as the user gave them.
    found: what was made of them.

  Raises:
    ValueError: naming the first such source.
  """
  for n, ((step, wanted), (_, share)) in enumerate(
    zip(given, found, strict=True)
  ):
    total = math.fsum(share.values())
    quotas = mixture.quotas([*share.values()])
    for (name, weight), quota in zip(share.items(), quotas, strict=True):
      if wanted[name] and not quota:
        raise ValueError(
          f'data.{"changes" if n else "sources"}: {names.short(name)} has a '
          f'share of {weight / total:.3g} from step {step} on, too small to be '
          f'drawn; give it 0, or at least 1/{mixture.PERIOD}'
        )
