"""Evaluations while a run trains, and the end of the run that they decide."""

from collections.abc import Collection
import contextlib

from lm import checkpoint, types
from lm.evals import results
from lm.optim import averages
from lm.runtime import process_group, signals
from lm.training import early_stopping, metrics_logger, saving, setup, starting


class Evaluations:
  """Calls a run's evaluators and hands their metrics on."""

  def __init__(
    self,
    run: setup.Run,
    stopping: early_stopping.EarlyStopping,
    logger: metrics_logger.MetricsLogger,
    saver: saving.Saver,
    checkpointer: checkpoint.Checkpointer,
    *,
    group: process_group.ProcessGroup,
    stop: signals.Stop,
  ):
    """Prepares them.

    Args:
      run: whose evaluators these are.
      stopping: follows what they measure.
      logger: writes it down.
      saver: saves the best step, and the one that the run ends with.
      checkpointer: is told which step to keep as the best.
      group: the processes that train the run together.
      stop: whose signals may end an evaluation.
    """
    self._run, self._stopping, self._logger = run, stopping, logger
    self._saver, self._checkpointer = saver, checkpointer
    self._group, self._stop = group, stop
    checkpointer.best = stopping.decide().best

  def due(self, step: int) -> bool:
    """Says whether a step is evaluated."""
    every = self._run.config.eval_every if self._run.evals else 0
    return self._run.due(step, every)

  def finish(self, state: types.TrainState) -> bool:
    """Does what is missing of the evaluations of a checkpoint, after a kill.

    Returns:
      Whether the run is over: it has ended before, or ends by these.
    """
    step = int(state.step)
    if self._stopping.ended is not None:
      return True
    if not step or not self.due(step):
      return False
    done = self._group.share('known', self._logger.evaluators(step), 300.0)
    return self.evaluate(step, state, done).over

  def evaluate(
    self, step: int, state: types.TrainState, done: Collection[str] = ()
  ) -> early_stopping.Decision:
    """Evaluates a step, and saves it if it is the best one or the last.

    A signal ends an evaluation, which what resumes the run does again: its
    deadline is short, and an evaluation may be long.

    Args:
      step: whose state this is.
      state: on the devices.
      done: evaluators whose metrics are written down already.

    Returns:
      Whether the run is over: by early stopping, or because a signal came.
    """
    params = averages.of(state)
    try:
      for name, evaluator in self._run.evals.items():
        if name not in done:
          what = f'evaluating {name}'
          self._saver.watch.begin(what, step, what)
          # Of several processes, those that a signal does not reach would wait
          # for ever for the part of one that has left.
          alone = self._group.count == 1
          with (
            self._stop.interrupting() if alone else contextlib.nullcontext(),
            self._logger.meter.losing('evaluating'),
          ):
            metrics = results.metrics(evaluator(params))
          self._logger.now(step, name, metrics)
          self._stopping.add(step, name, metrics)
    except signals.Interrupted:
      decision = early_stopping.Decision(None, over=True)
    else:
      self._saver.watch.begin('what follows the evaluations', step)
      decision = self._stopping.decide()
      self._checkpointer.best = decision.best
    if decision.over or decision.best == step:
      self._saver.save(step, state)
    return decision

  def end(self, state: types.TrainState) -> types.TrainState:
    """Returns the state that a run ends with: the best one or the last.

    With early stopping, the checkpoints after the best one are removed.
    """
    best = self._stopping.end()
    if best is None:
      return state
    run = self._run
    self._saver.watch.begin('restoring the best step', best)
    self._logger.say(
      f'ends with step {best}, best by {run.config.early.metric}'
    )
    if best == int(state.step):
      return state
    self._checkpointer.end_at(best)
    restored = starting.restore(run, self._checkpointer)
    assert restored is not None, 'the best step is there, and sound'
    return restored
