"""Simulates boards whose proposals draw their losses from runs that are stored.

Not a program: the tests and experiments/2026-12-arena-nulls call it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tools.arena import evidence, procedure

# Draws a run: its losses on validation data and on the sealed split.
Draw = Callable[[], tuple[float, float]]


class Simulated(NamedTuple):
  """The outcome of a simulated board.

  Attributes:
    accepted: names, by number, of the proposals that were accepted.
    runs: of each proposal, without those that confirm.
    tests: how many proposals were tested on the sealed split.
  """

  accepted: list[int]
  runs: list[int]
  tests: int


def board(
  rules: procedure.Rules,
  draw: Draw,
  proposals: int,
  effect: float,
  *,
  gain: float = 0.0,
  tests: int = 0,
) -> Simulated:
  """Simulates a board by the rules that a real one has.

  Args:
    rules: of the board.
    draw: of a run of the baseline.
    proposals: how many are made.
    effect: that each states.
    gain: the true one of each, as a part of a run's loss. An accepted proposal
      ends the board.
    tests: done against its baseline before.
  """
  losses = procedure.Losses(
    *zip(*(draw() for _ in range(rules.baseline_runs)), strict=True)
  )
  runs = []
  for number in range(proposals):
    trial, is_tested = procedure.Trial(effect), False
    while True:
      level = evidence.granted(rules.level, 1, tests + 1)
      found = procedure.action(rules, losses, trial, level)
      if isinstance(found, procedure.Decision):
        break
      valid, sealed = (x * (1 - gain) for x in draw())
      is_tested |= found == 'test'
      value = valid if found == 'screening' else sealed
      trial = trial._replace(**{found: (*getattr(trial, found), value)})
    tests += is_tested
    runs.append(len(trial.screening) + len(trial.test))
    if found.is_accepted:
      return Simulated([number], runs, tests)
  return Simulated([], runs, tests)


def best_so_far(losses: Sequence[float]) -> tuple[int, float]:
  """Keeps each proposal that beats the best so far, by one run each.

  Args:
    losses: of the baseline, and of each proposal.

  Returns:
    How many proposals were kept, and by how much the best is lower than the
    mean of all.
  """
  best = np.minimum.accumulate(losses)
  wins = int((np.diff(best) < 0).sum())
  return wins, float(np.mean(losses) - best[-1])
