"""The loop of a sweep: which runs are at work, and what comes of them.

A run that crashes is started once more, from its last checkpoint. Then it is
failed, and the others go on.
"""

from collections.abc import Callable, Sequence
import time

from lm.runtime import signals
from lm.sweeping import folder as folder_lib
from lm.sweeping import halving as halving_lib
from lm.sweeping import live, points, results, trials, workers

_TRIES = 2  # starts of a run that crashes
_PAUSE_SECONDS = 0.1  # between two looks at workers and files
_DRAW_SECONDS = 0.5
_LOCKED_SECONDS = 90.0  # to wait for the trainer of an earlier sweep to leave


class Run:
  """A run of a sweep and its state.

  Attributes:
    trial: what it computes.
    state: 'waiting', 'running', 'stopping', 'done', 'failed' or 'ended'.
    error: the last line of its error.
    rung: at which it was ended; None if it was not.
    worker: that trains it.
  """

  def __init__(
    self,
    trial: trials.Trial,
    folder: folder_lib.Folder,
    outcome: folder_lib.Outcome | None = None,
  ):
    """Takes up a run where its outcome says that it stands."""
    self.trial, self.workdir = trial, folder.run(trial.name)
    self.state, self.error = 'waiting', ''
    self.rung: int | None = None
    self.worker: workers.Worker | None = None
    if outcome is not None and outcome.state == 'done':
      self.state = 'done'
    self.tries = 0
    self.not_before = 0.0  # of time.monotonic
    self.locked_since: float | None = None
    self._speed: tuple[float, int] | None = None

  @property
  def is_over(self) -> bool:
    """Tells whether it needs no worker any more."""
    return self.state in ('done', 'failed', 'ended')

  def start(self, log: folder_lib.Folder) -> None:
    """Starts a worker."""
    self.worker = workers.Worker(
      self.trial.words, self.workdir, log.log(self.trial.name)
    )
    self.state, self._speed = 'running', None

  def stop(self) -> None:
    """Lets its worker save and end."""
    if self.worker is not None and self.state != 'stopping':
      self.worker.stop()
      self.state = 'stopping'

  def view(self) -> live.View:
    """Describes it for the live table."""
    newest = live.newest(self.workdir)
    step, loss = newest or (None, None)
    left, now = None, time.monotonic()
    if self.state == 'running' and step is not None:
      since, first = self._speed or (now, step)
      self._speed = since, first
      if step > first:
        left = (self.trial.config.steps - step) * (now - since) / (step - first)
    state = f'ended at {self.rung}' if self.state == 'ended' else self.state
    return live.View(
      self.trial.name,
      state,
      step,
      self.trial.config.steps,
      loss,
      left,
      self.error,
    )


class Schedule:
  """Runs the trials of a sweep, several at a time."""

  def __init__(
    self,
    runs: Sequence[Run],
    folder: folder_lib.Folder,
    jobs: int,
    *,
    metric: str,
    higher: bool = False,
    halving: points.Halving | None = None,
  ):
    """Prepares to run them.

    Args:
      runs: in the order in which they are started.
      folder: of the sweep, locked.
      jobs: how many run at a time.
      metric: that halving compares them by.
      higher: whether higher is better.
      halving: ends hopeless ones.
    """
    self.runs, self._folder, self._jobs = runs, folder, jobs
    self._metric, self._higher, self._halving = metric, higher, halving
    arms: dict[str, list[Run]] = {}
    for run in runs:
      arm = {k: v for k, v in run.trial.point.items() if k != points.SEED}
      arms.setdefault(repr(sorted(arm.items())), []).append(run)
    self._arms = [*arms.values()]
    self._arrived: dict[tuple[str, int], float] = {}  # by run and rung
    self._limit: int | None = None

  def run(
    self, stop: signals.Stop, show: Callable[[list[live.View]], None]
  ) -> bool:
    """Runs all of them.

    Args:
      stop: ends the sweep, after every run has saved.
      show: is given the state of all runs, again and again.

    Returns:
      Whether all are over; otherwise `stop` was requested.
    """
    drawn = 0.0
    try:
      while True:
        changed = self._collect()
        if stop.requested:
          for run in self.runs:
            run.stop()
        else:
          self._decide()
          self._start()
        if changed or time.monotonic() - drawn >= _DRAW_SECONDS:
          show([run.view() for run in self.runs])
          drawn = time.monotonic()
        at_work = any(run.worker is not None for run in self.runs)
        if not at_work and (stop.requested or not self._waiting()):
          return all(run.is_over for run in self.runs)
        time.sleep(_PAUSE_SECONDS)
    finally:
      for run in self.runs:  # after a bug: nothing is left at work
        if run.worker is not None:
          run.worker.stop()

  def _collect(self) -> bool:
    """Notes which workers have ended; tells whether any has."""
    changed = False
    for run in self.runs:
      result = run.worker.poll() if run.worker is not None else None
      if result is None:
        continue
      changed, run.worker = True, None
      if run.state != 'ended':
        self._end(run, result)
    return changed

  def _end(self, run: Run, result: workers.Result) -> None:
    """Decides what comes after a worker."""
    run.state, now = 'waiting', time.monotonic()
    if result.state == 'done':
      run.state, run.error = 'done', ''
      self._folder.note(run.trial.name, 'done')
      return
    if result.state == 'stopped':
      return
    run.error = result.error
    if result.state == 'locked':
      # A worker of a sweep that was killed is still about to save.
      run.locked_since = run.locked_since or now
      run.not_before = now + 2.0
      if now - run.locked_since < _LOCKED_SECONDS:
        return
    elif result.state == 'crashed':
      run.tries += 1
      if run.tries < _TRIES:
        return
    run.state = 'failed'
    self._folder.note(run.trial.name, 'failed', run.error)

  def _waiting(self) -> list[Run]:
    """Lists the runs that a worker could take up."""
    return [
      run
      for run in self.runs
      if run.state == 'waiting'
      and (self._limit is None or not self._has_arrived(run, self._limit))
    ]

  def _start(self) -> None:
    """Gives free places to the runs that wait."""
    now = time.monotonic()
    waiting = [run for run in self._waiting() if run.not_before <= now]
    at_work = sum(run.worker is not None for run in self.runs)
    if waiting and at_work >= self._jobs and self._limit is not None:
      # A run that is past the rung makes room for those that are not.
      for run in self.runs:
        if run.state == 'running' and self._has_arrived(run, self._limit):
          run.stop()
    for run in waiting[: max(0, self._jobs - at_work)]:
      run.start(self._folder)

  def _decide(self) -> None:
    """Ends the runs that do not go on after a rung."""
    if self._halving is None:
      return
    measured = [
      {
        rung: _mean([self._arrived[x.trial.name, rung] for x in arm])
        for rung in self._halving.rungs
        if all(self._has_arrived(run, rung) for run in arm)
      }
      for arm in self._arms
    ]
    found = halving_lib.standing(self._halving, measured, self._higher)
    self._limit = found.limit
    for n, rung in found.ended.items():
      for run in self._arms[n]:
        if run.state not in ('failed', 'ended'):
          run.state, run.rung = 'ended', rung
          if run.worker is not None:
            run.worker.stop()

  def _has_arrived(self, run: Run, rung: int) -> bool:
    """Tells whether a run has its metric at a rung; one that failed has nan."""
    place = run.trial.name, rung
    if place in self._arrived:
      return True
    newest = live.newest(run.workdir)
    if run.state == 'failed':
      self._arrived[place] = float('nan')
    elif newest is not None and newest[0] >= rung:
      lines = results.lines(run.workdir)
      if run.state == 'done' or any(
        line['step'] >= rung and self._metric in line for line in lines
      ):
        value = results.value(lines, self._metric, rung)
        self._arrived[place] = float('nan') if value is None else value
    return place in self._arrived


def _mean(values: Sequence[float]) -> float:
  """Averages the metric of an arm over its seeds."""
  return sum(values) / len(values)
