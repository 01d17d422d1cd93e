"""Rollback: a run goes back when too many updates in a row are dropped.

Such a run is stuck: its parameters, or the data that comes, give nothing that
is finite. It takes the state of its newest checkpoint from before that, and
goes on behind the batches that it was stuck at. Steps count on, so that the
batch of each step stays the same: the updates from the checkpoint to the fault
are left out of the run, as a dropped update is.

Reference: Chowdhery et al. 2022, arXiv 2204.02311, section 5.1, who left out
  200 to 500 batches by hand, from a checkpoint 100 steps before a spike.
"""

from collections.abc import Generator
import contextlib
import time

import jax

from lm import checkpoint, errors, types
from lm.checkpoint import manifest
from lm.runtime import faults
from lm.training import metrics_logger, profiling, saving, setup

_ADVICE = 'lower optim.peak or look at the data'


class Rollback:
  """Takes a run back to its newest healthy checkpoint."""

  def __init__(
    self,
    run: setup.Run,
    checkpointer: checkpoint.Checkpointer,
    logger: metrics_logger.MetricsLogger,
    saver: saving.Saver,
  ):
    """Tells the checkpointer which step to keep for this."""
    self._run, self._checkpointer = run, checkpointer
    self._logger, self._saver, self._counts = logger, saver, logger.dropped
    self._profile = profiling.Profile(
      run.config.profile, checkpointer, logger.flush, logger.say
    )
    self._next = 0
    for step in reversed(manifest.steps(checkpointer.workdir)):
      with contextlib.suppress(errors.Failure):
        meta = manifest.read_meta(checkpointer.workdir, step)
        if checkpoint.is_healthy(meta):
          checkpointer.healthy = step
          break

  def batches(
    self, start: int, stop: int
  ) -> Generator[tuple[int, types.Batch], None, None]:
    """Yields what `Run.batches` does; after `go_back`, from there on."""
    self._next = start
    watch = self._saver.watch
    watch.read(start + 1)
    while self._next < stop:
      with contextlib.closing(self._run.batches(self._next, stop)) as batches:
        for step, batch in self._logger.meter.waits(batches):
          self._next = step
          if seconds := faults.seconds('slow_host'):
            time.sleep(seconds)
          watch.begin_step(step, batch.tokens.shape)
          with self._profile.step(step):
            yield step, batch
          if self._next != step:
            break
          watch.read(step + 1)
    watch.begin('the end', stop)

  def checked(self, state: types.TrainState) -> types.TrainState:
    """Returns the state that a run ends with, if it has learnt anything.

    Raises:
      errors.NotFinite: not one update was applied.
    """
    step = int(state.step)
    if step == int(state.extra['skipped']):
      raise errors.NotFinite(
        f'step {step}: all updates were dropped, so that nothing was learnt; '
        f'{_ADVICE}'
      )
    return state

  def go_back(self, state: types.TrainState) -> types.TrainState:
    """Returns the state to go on with, at the step of the fault, and saves it.

    Args:
      state: of now; its memory is freed.

    Raises:
      errors.NotFinite: the run has gone back `max_rollbacks` times before, or
        there is no checkpoint to go back to.
      errors.Failure: the state cannot be saved.
    """
    fault = self._counts.too_many_at
    assert fault is not None, 'called without a fault'
    self._logger.flush()  # the update after the fault is not counted
    self._saver.watch.begin('going back', fault)
    program = self._run.program
    for leaf in jax.tree.leaves(state):
      leaf.delete()
    row = f'step {fault}: {self._counts.in_a_row} updates in a row were dropped'
    done, most = len(self._counts.left_out), self._run.config.max_rollbacks
    if done >= most:
      raise errors.NotFinite(
        f'{row}, after {done} rollbacks of max_rollbacks={most}; {_ADVICE}'
      )
    restored = self._checkpointer.restore_where(
      checkpoint.is_healthy, program.like, program.where
    )
    if restored is None:
      raise errors.NotFinite(
        f'{row}, and no checkpoint is from before them; {_ADVICE}'
      )
    state, meta = restored
    self._logger.meter.go_back(meta)
    start = int(state.step)
    skipped = state.extra['skipped'] + (fault - start)
    state = state._replace(
      step=state.step + (fault - start),
      extra={**state.extra, 'skipped': skipped},
    )
    self._counts.leave_out(start, fault)
    self._logger.say(
      f'step {fault}: went back to step {start}; the updates between them are '
      'left out'
    )
    self._logger.now(fault, 'rollback', {'to': start})
    self._saver.save(fault, state)
    self._next = fault
    return state
