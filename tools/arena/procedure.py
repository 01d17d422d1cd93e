"""Decides what is run next for a proposal, and what came of it.

A proposal goes through three stages, each with runs on seeds of its own:

  screening   one or a few runs, compared on validation data. It ends most
              proposals that change nothing. Its runs never count as evidence,
              and so it spends nothing of the board's level.
  test        run after run on the sealed split, until the evidence suffices or
              the stated effect has become unlikely. It has a share of the
              board's level, see `evidence.granted`.
  confirming  as many runs as the baseline has. They become the next baseline,
              which therefore is not one of lucky runs, and they must be better
              than the last one by a t-test at the level of the test, too: the
              test before looks at the order of losses, and a mean is what is
              claimed.

Why this bounds the chance that a board ever accepts a proposal which is no
better: baselines are shared by proposals, so that tests depend on each other,
and who makes proposals has seen their results and the baseline's. But the rules
of the n-th test against the k-th baseline are fixed before the board begins,
and its runs are new. If its proposal is no better, they are draws like those of
the baseline, whoever chose it and why. So over the runs of both, it accepts
with probability `granted(level, k, n)` at most. These sum up to the level, and
for this sum it does not matter how the tests depend on each other. That a
proposal becomes a baseline only if its confirming runs are good makes the tests
against it harder, and not easier.

All of this is computed from losses alone, for real boards and simulated ones.
"""

import functools
import math
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from tools.arena import evidence

# In standard errors: a true gain as large as stated is lost in screening with
# a probability of some 5 %, and in the test of 1 %.
_SCREEN_MARGIN = 2.0
_TEST_MARGIN = 2.5
_SCREEN_CUT = 1.88
_SIMULATED = 1000  # tests, for computing power


class Rules(NamedTuple):
  """Settings that a board cannot change after it began.

  Attributes:
    level: chance that the board ever accepts a proposal that is no better.
    power: chance that a stated effect must have of being found.
    baseline_runs: runs of the baseline.
    most_runs: runs of a test at most.
  """

  level: float = 0.05
  power: float = 0.8
  baseline_runs: int = 32
  most_runs: int = 32


DEFAULT = Rules()


class Losses(NamedTuple):
  """Losses of runs, in their order; inf for a run that was not finite.

  Attributes:
    valid: on validation data.
    sealed: on the sealed split.
  """

  valid: tuple[float, ...] = ()
  sealed: tuple[float, ...] = ()


NONE = Losses()


class Trial(NamedTuple):
  """The state of a proposal.

  Attributes:
    effect: the stated one, as a part of the baseline's mean loss.
    screening: losses of that stage on validation data.
    test: losses of that stage on the sealed split.
    confirming: losses of that stage on the sealed split.
  """

  effect: float
  screening: tuple[float, ...] = ()
  test: tuple[float, ...] = ()
  confirming: tuple[float, ...] = ()


class Decision(NamedTuple):
  """The outcome of a proposal.

  Attributes:
    is_accepted: whether it becomes the next baseline.
    stage: the one that decided.
    reason: in a few words.
  """

  is_accepted: bool
  stage: str
  reason: str


Stage = Literal['screening', 'test', 'confirming']


def action(
  rules: Rules, baseline: Losses, trial: Trial, level: float
) -> Stage | Decision:
  """Says in which stage a proposal needs its next run, or what is decided.

  Args:
    rules: of the board.
    baseline: all its losses.
    trial: the proposal's state.
    level: of its test, see `evidence.granted`.
  """
  if not trial.test:
    found = _screen(rules, baseline, trial)
    return 'test' if found is None else found
  sealed, count = _side(baseline.sealed), len(trial.test)
  found = evidence.log_evidence(sealed.losses_B, np.array(trial.test))
  if found < evidence.needed(level):
    gain = sealed.mean - math.fsum(trial.test) / count
    error = sealed.deviation * math.sqrt(1 / rules.baseline_runs + 1 / count)
    if gain + _TEST_MARGIN * error < trial.effect * sealed.mean:
      return Decision(False, 'test', 'the stated effect is unlikely')
    if count >= rules.most_runs:
      return Decision(False, 'test', 'too little evidence')
    return 'test'
  if len(trial.confirming) < rules.baseline_runs:
    return 'confirming'
  if _is_lower(sealed.losses_B, np.array(trial.confirming), level):
    return Decision(True, 'confirming', 'better, and confirmed by new runs')
  return Decision(False, 'confirming', 'new runs did not confirm it')


class _Side(NamedTuple):
  losses_B: np.ndarray
  mean: float
  deviation: float


@functools.lru_cache
def _side(losses: tuple[float, ...]) -> _Side:
  losses_B = np.array(losses)
  return _Side(losses_B, float(losses_B.mean()), float(losses_B.std(ddof=1)))


def _screen(
  rules: Rules, baseline: Losses, trial: Trial
) -> Stage | Decision | None:
  """Says what screening asks for; None if the proposal has passed it."""
  valid, count = _side(baseline.valid), len(trial.screening)
  if not count:
    return 'screening'
  effect = trial.effect * valid.mean
  last = screening_runs(rules, effect / valid.deviation)
  gain = valid.mean - math.fsum(trial.screening) / count
  error = valid.deviation * math.sqrt(1 / rules.baseline_runs + 1 / count)
  if gain + _SCREEN_MARGIN * error < effect or (
    count >= last and gain < effect / 2
  ):
    return Decision(False, 'screening', 'the stated effect is not in sight')
  return None if count >= last else 'screening'


def _is_lower(
  baseline_B: np.ndarray, proposal_P: np.ndarray, level: float
) -> np.ndarray:
  """Tests by Welch's test whether the mean is lower.

  Args:
    baseline_B: losses; axes before the last are of many tests.
    proposal_P: losses; one that is not finite is not lower.
    level: of the test.
  """
  is_finite = np.asarray(np.isfinite(proposal_P).all(-1))
  proposal_P = np.where(is_finite[..., None], proposal_P, 0.0)
  B, P = baseline_B.shape[-1], proposal_P.shape[-1]
  parts = baseline_B.var(-1, ddof=1) / B, proposal_P.var(-1, ddof=1) / P
  square = parts[0] + parts[1]
  freedom = square**2 / (parts[0] ** 2 / (B - 1) + parts[1] ** 2 / (P - 1))
  gain = baseline_B.mean(-1) - proposal_P.mean(-1)
  return is_finite & (gain > stats.t.isf(level, freedom) * np.sqrt(square))


def screening_runs(rules: Rules, effect: float) -> int:
  """Counts the runs of screening, after which half of the effect must be seen.

  Args:
    rules: of the board.
    effect: the stated one, in standard deviations of single runs.

  Returns:
    A number at which a true effect passes with 97 %, `most_runs` at most.
  """
  left = (effect / 2 / _SCREEN_CUT) ** 2 - 1 / rules.baseline_runs
  if left * rules.most_runs <= 1:
    return rules.most_runs
  return math.ceil(1 / left)


@functools.lru_cache(maxsize=256)
def power(rules: Rules, effect: float, level: float) -> tuple[float, int]:
  """Simulates how often, and how soon, a true effect is found.

  Losses are normal here, and the effect is exactly the stated one.

  Args:
    rules: of the board.
    effect: in standard deviations of single runs.
    level: of the test, see `evidence.granted`.

  Returns:
    The share of proposals that are accepted, and the number of runs, without
    those that confirm, within which `rules.power` of them are found;
    `most_runs` and those of screening if fewer are.
  """
  first = screening_runs(rules, effect)
  B, P = rules.baseline_runs, rules.most_runs
  all_N = evidence.draws(_SIMULATED, 3 * B + first + P)
  valid_B, sealed_B, confirming_B = np.split(all_N[:, : 3 * B], 3, -1)
  screening_P = all_N[:, 3 * B : 3 * B + first] - effect
  test_P = all_N[:, 3 * B + first :] - effect

  def is_hopeless(baseline_B, proposal_P, margin):
    error = baseline_B.std(-1, ddof=1) * math.sqrt(
      1 / B + 1 / proposal_P.shape[-1]
    )
    gain = baseline_B.mean(-1) - proposal_P.mean(-1)
    return gain + margin * error < effect

  alive = valid_B.mean(-1) - screening_P.mean(-1) >= effect / 2
  alive &= _is_lower(sealed_B, confirming_B - effect, level)
  for n in range(1, first + 1):
    alive &= ~is_hopeless(valid_B, screening_P[:, :n], _SCREEN_MARGIN)
  limit = evidence.needed(level)
  found = np.zeros(_SIMULATED, bool)
  runs = first + P
  for n in range(1, P + 1):
    seen = evidence.log_evidence(sealed_B, test_P[:, :n]) >= limit
    found |= alive & seen
    alive &= ~seen & ~is_hopeless(sealed_B, test_P[:, :n], _TEST_MARGIN)
    if found.mean() >= rules.power:
      runs = min(runs, first + n)
  return float(found.mean()), runs


def most_evidence(baseline_runs: int, test_runs: int) -> float:
  """Computes the logarithm of the most evidence that so many runs can give."""
  zeros_B, ones_P = np.ones(baseline_runs), np.zeros(test_runs)
  return float(evidence.log_evidence(zeros_B, ones_P))


def smallest_effect(rules: Rules, level: float) -> float | None:
  """Finds the smallest effect that has the power, in standard deviations."""
  low, high = 0, 120  # tenths of a deviation; a larger effect is found sooner
  while high - low > 1:
    middle = (low + high) // 2
    is_found = power(rules, middle / 10, level)[0] >= rules.power
    low, high = (low, middle) if is_found else (middle, high)
  return high / 10 if high < 120 else None
