"""Early stopping: a run ends with the checkpoint that evaluated best.

Measurements are read back from metrics.jsonl, so that a run that was killed
counts on from where it was.

Reference: Prechelt 1998, Early Stopping - But When?, section 2: its UP, with
`patience` strips of `eval_every` steps, counted from the best.
"""

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
from typing import NamedTuple

from lm import checkpoint, config
from lm.reporting import metrics_log
from lm.runtime import process_group

History = list[tuple[int, float]]  # (step, value of `early.metric`), in order


class Decision(NamedTuple):
  """The decision that the evaluations so far lead to.

  Attributes:
    best: step of the best one, the first of equals; None without a number.
    over: whether the run ends here.
  """

  best: int | None
  over: bool


class EarlyStopping:
  """Follows the evaluations of a run, and decides when it ends.

  Attributes:
    ended: the step that the run has ended with; None while it goes on.
  """

  def __init__(
    self, c: config.Config, folder: Path, group: process_group.ProcessGroup
  ) -> None:
    """Reads the history of a run; all processes get that of process 0."""
    self._config, self._folder, self._group = c, folder, group
    history = read(c, folder)
    ended = end(c, history, checkpoint.steps(folder))
    self._history: History
    self._history, self.ended = group.share('early', (history, ended), 300.0)

  def resume_at(self, step: int) -> int:
    """Forgets what was measured after the step that is resumed.

    Returns:
      The last step whose measurements stay. They go beyond `step` only when
      the run is over: what led to its end is kept.
    """
    last = step if self.ended is None else self._history[-1][0]
    self._history = [(n, x) for n, x in self._history if n <= last]
    return last

  def add(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
    """Adds the metrics that the evaluator `name` measured at a step.

    Raises:
      config.ConfigError: `early.metric` is one of this evaluator, which does
        not measure it.
    """
    evaluator, _, metric = (self._config.early.metric or '').partition('/')
    if evaluator != name:
      return
    if metric not in metrics:
      raise config.ConfigError(
        f'early.metric: {name} finds no {metric}, but {", ".join(metrics)}'
      )
    self._history.append((step, metrics[metric]))

  def decide(self) -> Decision:
    """Decides by all that was measured so far."""
    return decide(self._config, self._history)

  def end(self) -> int | None:
    """Returns the step to end with, the same on all processes; see `end`."""
    steps = checkpoint.steps(self._folder)
    best = end(self._config, self._history, steps)
    return self._group.share('best', best, 300.0)


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


def read(c: config.Config, folder: Path) -> History:
  """Reads the values of `early.metric` from a run's metrics.jsonl."""
  name = c.early.metric
  records = metrics_log.read(folder / 'metrics.jsonl') if name else []
  return [(r['step'], r[name]) for r in records if name in r]


def decide(c: config.Config, history: History) -> Decision:
  """Decides whether a run is over, and which of its steps is best.

  It is over after `early.patience` evaluations in a row without a better one.
  """
  sign = 1 if c.early.higher else -1
  best, highest, waited = None, -math.inf, 0
  for step, number in history:
    if sign * number > highest:  # never true of nan
      best, highest, waited = step, sign * number, 0
    elif best is not None:
      waited += 1
    if waited == c.early.patience:
      break
  return Decision(best, waited == c.early.patience)


def end(c: config.Config, history: History, steps: Sequence[int]) -> int | None:
  """Returns the step that a run ends with.

  Args:
    c: the config of the run.
    history: of `early.metric`.
    steps: those that are saved.

  Returns:
    The best step; None while the run goes on, or if that step is not saved.
  """
  best, over = decide(c, history)
  over = over or (bool(history) and history[-1][0] == c.steps)
  return best if over and best in steps else None
