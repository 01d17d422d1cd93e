"""Saving: what goes into a checkpoint of a run, and in which order."""

from lm import checkpoint, types
from lm.runtime import signals
from lm.training import metrics_logger, setup, starting, supervision


class Saver:
  """Saves the steps of a run, each once.

  Attributes:
    watch: is told of everything but steps that takes long.
  """

  def __init__(
    self,
    run: setup.Run,
    checkpointer: checkpoint.Checkpointer,
    logger: metrics_logger.MetricsLogger,
    watch: supervision.Supervisor,
  ):
    """Prepares it; nothing is saved yet."""
    self.watch = watch
    self._run, self._checkpointer, self._logger = run, checkpointer, logger
    self._saved = 0

  def begin(
    self, state: types.TrainState, source: starting.Source | None
  ) -> None:
    """Takes the state that the run starts with, and saves that of a branch."""
    step = int(state.step)
    if source is not None and source.step is not None:
      self.save(step, state)
    else:
      self._saved = step

  def save(self, step: int, state: types.TrainState) -> None:
    """Saves a state in the background; does nothing if its step is saved.

    Raises:
      errors.Failure: this save, or the one before it, has failed.
    """
    self.watch.begin('saving', step)  # which has a deadline of its own
    if step <= self._saved:
      return
    # Metrics first: a kill between the two would leave a hole in metrics.jsonl,
    # while lines that are ahead of the checkpoint are dropped on resuming.
    self._logger.flush()
    if self._run.private is not None:
      self._logger.now(step, 'privacy', self._run.spent(step))
    meta = self._run.meta(step, self._logger.state())
    if checkpoint.is_healthy(meta):
      self._checkpointer.healthy = step
    with self._logger.meter.losing('saving'):
      self._checkpointer.save(step, state, meta)
    self._saved = step

  def stopped(self) -> signals.Stopped:
    """Makes the error of a run that a signal has ended, and that is saved."""
    return signals.Stopped(
      f'{self._checkpointer.workdir}: by a signal at step {self._saved}, which '
      'is saved; the same command goes on from there'
    )
