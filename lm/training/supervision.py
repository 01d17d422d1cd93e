"""Watches how a run gets on: steps that hang, processes that are slow."""

from pathlib import Path
import time

from lm import checkpoint, config
from lm.runtime import process_group, stragglers, watchdog
from lm.training import metrics_logger


class Supervisor:
  """Tells a watchdog what the training loop does; use it in `with`.

  The start of the run is watched until the loop says by `begin` what it begins.
  In a row of `waited`, `read` and `begin_step`, what lies between two steps is
  the own time of this process.

  Attributes:
    logger: is told which process is slow; set it before the first step.
  """

  logger: metrics_logger.MetricsLogger

  def __init__(
    self,
    c: config.Config,
    folder: Path,
    group: process_group.ProcessGroup,
  ):
    """Prepares to watch.

    Args:
      c: of the run.
      folder: of the run, where stacks are stored.
      group: the processes that train it together.
    """
    self._watchdog = watchdog.Watchdog(folder, group, **c.watchdog)
    self._stragglers = stragglers.Stragglers(group)
    self._group, self._folder = group, folder
    self._named: int | None = None
    self._step_began: float | None = None
    self._waited: float | None = None  # when the wait for a step has ended

  def __enter__(self) -> 'Supervisor':
    self._watchdog.__enter__()
    # It has no usual time: a large program may compile for an hour.
    newest = max(checkpoint.steps(self._folder), default=0)
    self.begin('starting the run', newest)
    return self

  def __exit__(self, *unused: object) -> None:
    self._watchdog.__exit__()

  def begin_step(self, step: int, shape: tuple[int, ...]) -> None:
    """Says that a step begins, on a batch of a shape.

    Steps of one shape take about the same time. The first of them compiles.
    """
    now = time.monotonic()
    if self._step_began is not None and self._waited is not None:
      slow = self._stragglers.add(
        step, now - self._waited, now - self._step_began
      )
      if slow is not None:
        self._tell(slow, step - 1)
    self._step_began, self._waited = now, None
    self._watchdog.begin('the step', step, f'step {shape}')

  def waited(self, step: int) -> None:
    """Says that the wait for a step is over, and the process goes on alone."""
    self._waited = time.monotonic()
    self._watchdog.begin('what follows the step', step)

  def read(self, step: int) -> None:
    """Says that a batch is waited for; `lm.data.prefetch` has a deadline."""
    self._watchdog.begin('reading its batch', step)

  def begin(self, name: str, step: int, kind: str | None = None) -> None:
    """Says that something else begins; see `watchdog.Watchdog.begin`."""
    self._waited = None
    self._watchdog.begin(name, step, kind)

  def _tell(self, slow: stragglers.Straggler, done: int) -> None:
    """Writes down which process makes the others wait, after `done` updates.

    Not at the step that was measured: what others have measured comes later,
    and lines of the log stay in the order of their steps.
    """
    if slow.process is None:
      self.logger.say(f'step {slow.step}: no process makes others wait now')
      self._named = None
      return
    if slow.process != self._named:
      self._named = slow.process
      self.logger.say(
        f'step {slow.step}: {self._group.name(slow.process)} makes the others '
        f'wait since step {slow.since}: its own part of a step is '
        f'{slow.seconds:.2g} s longer than theirs, {slow.share:.0%} of the step'
      )
    values = {
      'process': slow.process,
      'seconds': slow.seconds,
      'share': slow.share,
      'since': slow.since,
    }
    self.logger.now(done, 'straggler', values)
