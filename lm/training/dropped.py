"""Dropped updates: what a run counts of them, and keeps in its checkpoints."""

from collections.abc import Mapping
from typing import Any


class Dropped:
  """Counts the updates of a run that were dropped.

  Attributes:
    in_a_row: how many of the newest updates were dropped.
    left_out: `(step, step)` for each time that the run went back: the updates
      after the first step, up to the second, are not in its state.
    too_many_at: the step at which more were dropped in a row than the limit
      allows; None as long as there were not.
  """

  def __init__(self, limit: int, meta: Mapping[str, Any]):
    """Starts to count, or goes on where a checkpoint stands.

    Args:
      limit: how many updates in a row may be dropped.
      meta: of the checkpoint; {} without one.
    """
    kept = meta.get('dropped', {})
    self._limit = limit
    self.in_a_row: int = kept.get('in_a_row', 0)
    self.left_out = [(start, end) for start, end in kept.get('left_out', ())]
    self.too_many_at: int | None = None

  def add(self, step: int, is_dropped: bool) -> None:
    """Counts the update that led to `step`."""
    self.in_a_row = self.in_a_row + 1 if is_dropped else 0
    if self.in_a_row > self._limit:
      self.too_many_at = step

  def leave_out(self, start: int, end: int) -> None:
    """Notes that the updates after `start`, up to `end`, are left out."""
    self.left_out.append((start, end))
    self.in_a_row, self.too_many_at = 0, None

  def state(self) -> dict[str, Any]:
    """Returns the counts for a checkpoint's meta, as JSON."""
    left_out = [list(steps) for steps in self.left_out]
    return {'in_a_row': self.in_a_row, 'left_out': left_out}
