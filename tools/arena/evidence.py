"""Statistics: how much losses say that a proposal is better than a baseline.

Letters here: B losses of the baseline, P of the proposal, N of both, T bets.

Suppose that a proposal changes nothing, or makes things worse. Then its losses
and those of the baseline, each from a seed of its own, stand in any order with
equal probability. The evidence is a likelihood ratio of the order that was
seen: its probability if the proposal is better, over that if it is not. As long
as the proposal is not better, this ratio is a martingale with mean 1 while runs
are added. So the chance that it ever reaches 1 / a is at most a, however often
one looks and whenever one stops (Ville's inequality). Losses need not be normal
for this, and both sides may have outliers.

"Better" means in the bets that the lowest of N losses is more often one of the
proposal, by a factor (Lehmann's alternative): then the likelihood of an order
is that of a Cox model. A second bet reads the order from its other end: the
highest of N losses is more often one of the baseline. Each is averaged over
factors, and the smaller of the two counts. Therefore a proposal with more
spread and the same mean gains nothing from its lucky runs. Equal losses count
as if the baseline's were lower.

References: Ville 1939 (the inequality); Savage 1956, Ann. Math. Stat. 27(3)
(rank orders under Lehmann's alternatives); Ter Schure, Perez-Ortiz, Ly and
Grunwald 2020, arXiv 2011.06931 (the same ratio, in survival analysis); Ramdas
et al. 2023, arXiv 2210.01948 (a survey of such evidence).
"""

import functools
import math

import numpy as np
from scipy import special, stats

# Fixed for all boards: a bet that depended on a board's past would not be fair.
_FACTORS_T = 2.0 ** np.arange(1, 11)


def log_evidence(baseline_B: np.ndarray, proposal_P: np.ndarray) -> np.ndarray:
  """Measures the evidence that the proposal has lower losses.

  Args:
    baseline_B: losses of the baseline; axes before the last are of many tests.
    proposal_P: losses of the proposal; inf for a run that failed.

  Returns:
    The natural logarithm of the evidence: 0 is none, and log(1 / a) is reached
    with probability a at most if the proposal is not better.
  """
  losses_N = np.concatenate([baseline_B, proposal_P], -1)
  is_proposal_N = np.arange(losses_N.shape[-1]) >= baseline_B.shape[-1]
  # Stable: where losses are equal, those of the baseline stay first.
  order_N = np.argsort(losses_N, -1, kind='stable')
  sorted_N = is_proposal_N[order_N]
  count = losses_N.shape[-1]
  low = _mean_ratio(sorted_N[..., ::-1], count, inverse=False)
  high = _mean_ratio(sorted_N, count, inverse=True)
  return np.minimum(low, high)


def _mean_ratio(
  is_proposal_N: np.ndarray, count: int, *, inverse: bool
) -> np.ndarray:
  """Averages the likelihood ratio of an order over the factors.

  Args:
    is_proposal_N: whose each loss is; the first of the order stands last.
    count: N.
    inverse: whether the factor is of the baseline.
  """
  favoured_1N = (is_proposal_N ^ inverse)[..., None, :]
  weight_TN = np.where(favoured_1N, _FACTORS_T[:, None], 1.0)
  # Those that have not yet had their turn compete for each place.
  left_TN = np.cumsum(weight_TN, -1)
  log_T = (np.log(weight_TN) - np.log(left_TN)).sum(-1)
  log_T += math.lgamma(count + 1)
  return special.logsumexp(log_T, axis=-1) - math.log(len(_FACTORS_T))


def share(test: int) -> float:
  """Gives the part of a baseline's level that its n-th test may spend.

  The parts of infinitely many tests add up to 1: each is the step between two
  terms of 1 / log2(n + 1), which falls from 1 to 0. Parts of this series fall
  so slowly that the 30th test still has 0.002 and the 1000th 0.00001.

  Args:
    test: from 1.
  """
  assert test >= 1, 'tests are counted from 1'
  return 1 / math.log2(test + 1) - 1 / math.log2(test + 2)


def granted(level: float, baseline: int, test: int) -> float:
  """Gives the level of the n-th test against the k-th baseline of a board.

  Baselines have shares of their own: 1 / 2, 1 / 6, 1 / 12 and so on, which add
  up to 1. Otherwise one could replace a baseline whose runs were lucky, see
  how lucky those of the next one are, and make tests where they were not.

  Args:
    level: of the board.
    baseline: k, from 1.
    test: n, from 1.
  """
  assert baseline >= 1, 'baselines are counted from 1'
  return level * share(test) / (baseline * (baseline + 1))


def needed(level: float) -> float:
  """Gives the logarithm of the evidence at which a test accepts.

  Args:
    level: of the test, see `granted`.
  """
  return -math.log(level)


def bounds(
  baseline_B: np.ndarray, proposal_P: np.ndarray, log_needed: float
) -> tuple[float | None, float | None]:
  """Bounds the gain, by how much the proposal's losses are lower.

  A gain is left out if there were enough evidence against it: the proposal's
  losses, raised by that gain, would be too low or too high for those of an
  equal recipe. This takes the proposal to shift losses and not to spread them.

  Args:
    baseline_B: losses of the baseline.
    proposal_P: losses of the proposal.
    log_needed: see `needed`. With the probability that is left of the board's
      level, the lower bounds of all its tests hold; and so do the upper ones.

  Returns:
    The lower and the upper bound; None where these runs are too few for one.
  """
  steps = np.subtract.outer(baseline_B, proposal_P).ravel()
  steps = np.unique(steps[np.isfinite(steps)])

  def too_low(gain: float) -> bool:
    return bool(log_evidence(baseline_B, proposal_P + gain) >= log_needed)

  def too_high(gain: float) -> bool:
    return bool(log_evidence(proposal_P + gain, baseline_B) >= log_needed)

  # The order of losses changes only at the steps. One gain stands for all those
  # between two of them.
  middles = (steps[1:] + steps[:-1]) / 2
  gains = np.concatenate([[steps[0] - 1], middles, [steps[-1] + 1]])
  below = _count(gains, too_low)
  above = _count(gains[::-1], too_high)
  lower = float(steps[below - 1]) if below else None
  upper = float(steps[-above]) if above else None
  return lower, upper


def _count(gains: np.ndarray, is_left_out) -> int:
  """Counts the first gains that are left out; after them none is."""
  low, high = 0, len(gains)
  while low < high:
    middle = (low + high) // 2
    if is_left_out(gains[middle]):
      low = middle + 1
    else:
      high = middle
  return low


def interval(
  baseline_B: np.ndarray, proposal_P: np.ndarray, level: float = 0.05
) -> tuple[float, float, float]:
  """Estimates the gain by Student's t, with the deviation of both sides.

  It takes losses to be normal and counts neither how often one looked nor how
  many proposals there were.

  Returns:
    The gain, and the lower and upper end of its interval.
  """
  B, P = len(baseline_B), len(proposal_P)
  squares = float(baseline_B.var() * B + proposal_P.var() * P)
  gain = float(baseline_B.mean() - proposal_P.mean())
  error = math.sqrt(squares / (B + P - 2) * (1 / B + 1 / P))
  half = float(stats.t.isf(level / 2, B + P - 2)) * error
  return gain, gain - half, gain + half


@functools.lru_cache
def draws(count: int, runs: int, seed: int = 0) -> np.ndarray:
  """Draws normal losses for computing power, the same ones every time."""
  return np.random.default_rng(seed).normal(size=(count, runs))
