"""Saving: what goes into a checkpoint of a run, and in which order."""

from lm import checkpoint, types
from lm.training import metrics_logger, setup


class Saver:
  """Saves the steps of a run, each once."""

  def __init__(
    self,
    run: setup.Run,
    checkpointer: checkpoint.Checkpointer,
    logger: metrics_logger.MetricsLogger,
    start: int,
  ):
    """Takes the step that the run starts at, which is saved already."""
    self._run, self._checkpointer, self._logger = run, checkpointer, logger
    self._saved = start

  def save(self, step: int, state: types.TrainState) -> None:
    """Saves a state in the background; does nothing if its step is saved.

    Raises:
      errors.Failure: this save, or the one before it, has failed.
    """
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
