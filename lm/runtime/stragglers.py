"""Finds the process that makes the others wait.

Processes that train together take a step in the time of the slowest. Each of
them measures its *own time*: from the end of its wait for a step until it hands
the next one to the devices, with the wait for data. Every 20 steps it sends the
median to process 0, over the connections of the group. Process 0 compares: a
process is a straggler if its own time is longer than that of the others by a
fifth of a step and by 10 ms, twice in a row.

A device that is slower than the others is not found: all processes wait for it
in the same collective.
"""

import statistics
import threading
from typing import NamedTuple

from lm.runtime import process_group

STEPS = 20  # whose median counts
_SHARE = 0.2  # of a step
_LEAST_SECONDS = 0.01  # what a busy machine may take at any time
_MOST_WINDOWS = 8  # that wait for a process


class Straggler(NamedTuple):
  """The process that makes the others wait.

  Attributes:
    process: its number; None if it has recovered.
    step: the last of those that were measured.
    since: the first step at which it was slow.
    seconds: its own time of a step, beyond that of the others.
    share: of a step's time, that these seconds are.
  """

  process: int | None
  step: int
  since: int
  seconds: float
  share: float


class Stragglers:
  """Compares the own times of the processes of a run."""

  def __init__(self, group: process_group.ProcessGroup):
    """Begins to listen, on process 0."""
    self._group = group
    self._own: list[float] = []
    self._whole: list[float] = []
    self._guard = threading.Lock()
    # Process 0: by the last step of a window and process, its own time.
    self._windows: dict[int, dict[int, float]] = {}
    self._steps: dict[int, float] = {}  # the time of a step, by window
    self._slow: Straggler | None = None  # in the newest window
    self._named: int | None = None
    self._news: Straggler | None = None
    if group.leads and group.count > 1:
      group.listen('own time', self._hear)

  def add(self, step: int, own: float, whole: float) -> Straggler | None:
    """Adds the times of a step.

    Args:
      step: that begins.
      own: seconds from the wait for the step before to this one's beginning.
      whole: seconds from the beginning of the step before to that of this one.

    Returns:
      On process 0, what is new: a straggler, or that it has recovered.
    """
    if self._group.count == 1:
      return None
    self._own.append(own)
    self._whole.append(whole)
    if len(self._own) == STEPS:
      window = statistics.median(self._own), statistics.median(self._whole)
      self._own, self._whole = [], []
      if self._group.leads:
        with self._guard:
          self._steps[step] = window[1]
        self._hear(0, {'step': step, 'seconds': window[0]})
      else:
        self._group.tell('own time', {'step': step, 'seconds': window[0]})
    with self._guard:
      news, self._news = self._news, None
    return news

  def _hear(self, process: int, message: dict[str, float]) -> None:
    step = int(message['step'])
    with self._guard:
      window = self._windows.setdefault(step, {})
      window[process] = message['seconds']
      if len(window) == self._group.count:
        self._judge(step, window, self._steps[step])
        del self._windows[step], self._steps[step]
      for kept in (self._windows, self._steps):  # of a process that had none
        while len(kept) > _MOST_WINDOWS:
          del kept[min(kept)]

  def _judge(self, step: int, window: dict[int, float], whole: float) -> None:
    """Names who is slow in two windows in a row, or nobody any more."""
    slowest = max(window, key=lambda x: window[x])
    others = statistics.median(x for i, x in window.items() if i != slowest)
    seconds = window[slowest] - others
    before, self._slow = self._slow, None
    if seconds > max(_LEAST_SECONDS, _SHARE * whole):
      is_again = before is not None and before.process == slowest
      since = before.since if before and is_again else step - STEPS + 1
      self._slow = Straggler(slowest, step, since, seconds, seconds / whole)
      if is_again:
        self._named, self._news = slowest, self._slow
    elif self._named is not None and before is None:
      self._named = None
      self._news = Straggler(None, step, step, 0.0, 0.0)
