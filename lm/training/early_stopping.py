"""Early stopping: a run ends with the checkpoint that was judged best.

What was found is read from metrics.jsonl, so that a run that was killed goes on
counting where it was.

Reference: Prechelt 1998, Early Stopping - But When?, section 2: its UP, with
`patience` strips of `eval_every` steps, counted from the best.
"""

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
from typing import NamedTuple

from lm import config
from lm.reporting import metrics_log

Found = list[tuple[int, float]]  # steps, and what the metric was


class Verdict(NamedTuple):
  """What evaluations so far say.

  Attributes:
    best: step of the best one, the first of equals; None without a number.
    over: whether the run ends there.
  """

  best: int | None
  over: bool


def check(c: config.Config) -> None:
  """Checks the keys of early stopping.

  Raises:
    config.ConfigError: they do not fit together.
  """
  name = c.early.metric
  if name is None:
    return
  if not c.eval_every:
    raise config.ConfigError(
      f'early.metric: {name} needs evaluations in training: set eval_every'
    )
  if name.partition('/')[0] not in c.evals:
    raise config.ConfigError(
      f'early.metric: {name} is of no evaluator: begin with one of '
      f'{", ".join(c.evals) or "none"}, and a slash'
    )
  if c.early.patience < 1:
    raise config.ConfigError(f'early.patience: {c.early.patience} is below 1')


def history(c: config.Config, workdir: Path) -> Found:
  """Reads what the evaluations of a run have found."""
  name = c.early.metric
  records = metrics_log.read(workdir / 'metrics.jsonl') if name else []
  return [(r['step'], r[name]) for r in records if name in r]


def pick(
  c: config.Config, step: int, name: str, found: Mapping[str, float]
) -> Found:
  """Picks the metric from what the evaluator `name` found, if it is of it.

  Raises:
    config.ConfigError: it is, and has found no such thing.
  """
  evaluator, _, metric = (c.early.metric or '').partition('/')
  if evaluator != name:
    return []
  if metric not in found:
    raise config.ConfigError(
      f'early.metric: {name} finds no {metric}, but {", ".join(found)}'
    )
  return [(step, found[metric])]


def verdict(c: config.Config, found: Found) -> Verdict:
  """Judges a run by what was found, in the order of its steps."""
  sign = 1 if c.early.higher else -1
  best, most, waited = None, -math.inf, 0
  for step, number in found:
    if sign * number > most:  # never of nan
      best, most, waited = step, sign * number, 0
    elif best is not None:
      waited += 1
    if waited == c.early.patience:
      break
  return Verdict(best, waited == c.early.patience)


def end(c: config.Config, found: Found, steps: Sequence[int]) -> int | None:
  """Says with which step a run ends; None: it goes on, or that is not saved.

  Args:
    c, found: as of `verdict`.
    steps: that are saved.
  """
  best, over = verdict(c, found)
  over = over or (bool(found) and found[-1][0] == c.steps)
  return best if over and best in steps else None
