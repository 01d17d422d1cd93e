"""Training: config -> mesh -> data -> model -> state -> loop.

  python -m lm.train --config=configs/gpt/tiny.py --workdir=runs/a

Fine-tuning is training with `init_from`; `init_paths` takes parts of that run.
With `branch_from` a run goes on from a step of another run, see
lm.training.starting.

Resuming is starting the same command again. A run's folder:

  config.json     the whole config, defaults of functions included
  checkpoints/    one folder a step, see lm.checkpoint
  metrics.jsonl   training metrics, one line every `log_every` steps
  record.json     what the run was started from, see lm.training.run_record
  evals.jsonl     results of lm.evaluate

Several processes can train one run together, see lm.runtime.processes.
"""

import sys

from lm import config

# Checked here, before the imports below take their seconds: a typo is answered
# at once, and before any device is opened.
_ARGS = (
  config.parse(sys.argv[1:], __doc__ or '') if __name__ == '__main__' else None
)

import contextlib
from pathlib import Path

from lm import checkpoint, types
from lm.runtime import (
  compilation_cache,
  devices,
  memory,
  process_group,
  processes,
  signals,
)
from lm.training import (
  early_stopping,
  evaluations,
  metrics_logger,
  rollback,
  saving,
  setup,
  starting,
  supervision,
)


def train(
  c: config.Config,
  workdir: str | Path,
  group: process_group.ProcessGroup | None = None,
  asked: config.Asked | None = None,
) -> types.TrainState:
  """Trains, or goes on training, until `c.steps` updates are saved.

  With `c.early.metric` the run ends earlier, and with its best checkpoint.

  Args:
    c: a config with the keys of `configs/base.py`.
    workdir: the run's folder, made when missing; a run found there is resumed.
      For gs://BUCKET/FOLDER see `lm.checkpoint.mirror`.
    group: the processes that train it together; None for this one alone.
    asked: what the program was asked for, for the run's record.

  Returns:
    The final state, which is also the last checkpoint.

  Raises:
    config.ConfigError: the config cannot be used, or is not of this run.
    errors.Failure: workdir is locked, storage or checkpoints are bad.
    errors.NotFinite: too many updates were dropped, or a state is not finite.
    process_group.Lost: another process has failed.
    signals.Stopped: SIGTERM or Ctrl-C came, to any process; the state is saved.
  """
  group = group or process_group.alone()
  c = setup.prepare(c, workdir, group)
  with contextlib.ExitStack() as context:
    enter = context.enter_context
    folder, check_copy = enter(setup.local_folder(c, workdir))
    source = starting.find(c, folder)
    stop = enter(signals.Stop(c.grace_seconds))
    checkpointer = enter(setup.checkpointer(c, folder, group))
    watch = enter(supervision.Supervisor(c, folder, group))
    meta = starting.meta(c, checkpointer, group, source)
    run = setup.assemble_in(c, folder, meta)
    files = setup.files(c, folder, source and source.folder, meta)
    stopping = early_stopping.EarlyStopping(c, folder, group)
    checkpointer.end_at(stopping.ended)
    state = starting.restore_or_start(run, checkpointer, source)
    start = int(state.step)
    last = stopping.resume_at(start)
    if group.leads:
      setup.store(files, checkpointer, c, run.data.state(start), asked)
    logger = enter(metrics_logger.MetricsLogger(run, checkpointer, meta, last))
    logger.say(f'{folder}: step {start} of {c.steps}, {run.summary()}')
    watch.logger = logger
    saver = saving.Saver(run, checkpointer, logger, watch)
    saver.begin(state, source)
    evals = evaluations.Evaluations(
      run, stopping, logger, saver, checkpointer, group=group, stop=stop
    )
    back = rollback.Rollback(run, checkpointer, logger, saver)
    stop_at = start if evals.finish(state) else c.steps
    batches = enter(contextlib.closing(back.batches(start, stop_at)))
    for step, batch in batches:
      state, metrics = run.update(state, batch)
      check_copy()
      group.check()  # a process that stood still may not even write metrics
      stopped = group.stop(stop.requested)
      is_saved = stopped or run.due(step, c.save_every)
      # A step behind, but for a state that is used: the device never waits.
      logger.later(step, metrics, now=is_saved or evals.due(step))
      watch.waited(step)
      if logger.dropped.too_many_at:
        state = back.go_back(state)
        if int(state.step) < step:
          continue
      if is_saved:
        saver.save(step, state)
      # After a signal, what resumes the run evaluates this step.
      if stopped or (evals.due(step) and evals.evaluate(step, state).over):
        break
    checkpointer.wait()
    if group.stop(stop.requested):
      raise saver.stopped()
    state = back.checked(evals.end(state))
    if group.leads:
      checkpoint.verify(folder, int(state.step))
  return state


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  c, workdir = _ARGS or config.parse(argv, __doc__ or '')
  memory.prepare()
  compilation_cache.prepare()
  with processes.start() as group:
    if group.leads:
      devices.announce()
    train(c, workdir, group, config.asked())


if __name__ == '__main__':
  config.main(main)
