"""How a run starts: anew, from another run, or from its own checkpoint.

`init_from` takes another run's parameters. `branch_from` takes the whole state
of its step `branch_step`, and goes on from there with another end of the
schedule: the numbers are those of a run that had this schedule from the
beginning. So one long run at a constant rate, the trunk, gives a finished model
of many lengths, each for the price of its cooldown.

Reference: Hägele et al. 2024, arXiv 2405.18392, section 3.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from lm import checkpoint, config, optim, types
from lm.checkpoint import bucket_reader
from lm.optim import averages
from lm.runtime import process_group
from lm.training import program as program_lib
from lm.training import run_checks, setup

# What may differ from the trunk: the keys of the schedule, as long as rates
# were the same so far, and what has no meaning in a branch.
_SCHEDULE = (
  'schedule',
  'warmup',
  'final',
  'decay_fraction',
  'cooldown',
  'cooldown_power',
  'tail',
)
_FREE = ('steps', 'init_from', 'init_paths')


class Source(NamedTuple):
  """Another run that a new one starts from.

  Attributes:
    folder: of the other run.
    step: that the new run branches from; None takes the newest parameters.
    meta: what the checkpoint of that step says; {} without one.
  """

  folder: Path
  step: int | None = None
  meta: Mapping[str, Any] = MappingProxyType({})


def find(c: config.Config, folder: Path) -> Source | None:
  """Finds the run that a new run starts from, if it names one.

  Returns:
    None too for a run that has checkpoints of its own already.

  Raises:
    config.ConfigError: a branch cannot be one of that run.
    errors.Failure: it has no sound checkpoint. A typo must be an error here,
      before `folder` is made, and not a fresh start.
  """
  if checkpoint.steps(folder):
    return None
  if c.branch_from is not None:
    return _branch(c)
  if c.init_from is None:
    return None
  source = bucket_reader.local_folder(c.init_from)
  checkpoint.read_meta(source)
  return Source(source)


def meta(
  c: config.Config,
  checkpointer: checkpoint.Checkpointer,
  group: process_group.ProcessGroup,
  source: Source | None = None,
) -> Mapping[str, Any]:
  """Reads what the checkpoint says that a run goes on from; {} if it is new.

  It also checks that the folder is of this run or new, and changes nothing
  there.

  Args:
    c: filled.
    checkpointer: of the run's folder.
    group: the processes that train the run together.
    source: see `find`.

  Raises:
    config.ConfigError: the folder is of another run, or a process of this run
      has another config.
  """
  found = checkpointer.meta()
  if found is not None:
    run_checks.same_run(found, c, checkpointer.workdir)
  run_checks.same_everywhere(c, group)
  return found or (source.meta if source else {})


def restore_or_start(
  run: setup.Run,
  checkpointer: checkpoint.Checkpointer,
  source: Source | None = None,
) -> types.TrainState:
  """Restores a checkpoint of this run or of its trunk, or makes a new state.

  The training step is compiled meanwhile.

  Args:
    run: as assembled.
    checkpointer: of the run's folder.
    source: see `find`; `init_paths` of the config names which parameters of it
      a run takes that is no branch.

  Raises:
    config.ConfigError: the parameters of `source` do not fit the model.
    errors.Failure: all checkpoints are damaged, or one has no room.
  """
  program = run.program
  initial = {}
  if source is not None and source.step is None:
    initial = checkpoint.initial_params(
      source.folder, run.config.init_paths, program.like.params, run.tokenizer
    )
  folder = checkpointer.workdir
  checkpointer.enclose(checkpoint.enclosed(run.config, folder))
  checkpointer.preflight(program.like)
  with program_lib.compiling(program):
    state = restore(run, checkpointer)
    if state is not None:
      return state
    if source is not None and source.step is not None:
      like, where = program.like, program.where
      return checkpoint.restore(source.folder, like, where, source.step)[0]
    return program_lib.start(program, initial)


def restore(
  run: setup.Run, checkpointer: checkpoint.Checkpointer
) -> types.TrainState | None:
  """Restores the newest sound checkpoint of a run; None if it has none.

  Raises:
    errors.Failure: all its checkpoints are damaged.
  """
  like, where = run.program.like, run.program.where
  restored = checkpointer.restore(like, where)
  return None if restored is None else restored[0]


def _branch(c: config.Config) -> Source:
  """Finds the step that a run branches from, and checks that it may.

  Raises:
    config.ConfigError: it may not.
    errors.Failure: there is no such checkpoint, or it is damaged.
  """
  step = c.branch_step
  folder = bucket_reader.local_folder(c.branch_from, step)
  meta = checkpoint.read_meta(folder, step)
  run_checks.same_config(
    meta,
    c,
    folder,
    allow=(*_FREE, *(f'optim.{key}' for key in _SCHEDULE)),
    advice='branch from a run with this config',
  )
  if c.steps <= step:
    raise config.ConfigError(
      f'steps: {c.steps}, and the branch begins at step {step}: give more'
    )
  _check_past(c, config.flatten(config.from_json(meta['config'])), step)
  return Source(folder, step, meta)


def _check_past(c: config.Config, trunk: Mapping[str, Any], step: int) -> None:
  """Checks that a run would have done the same up to a step as its trunk.

  Args:
    c: of the run.
    trunk: its trunk's config, by key.
    step: that it branches from.

  Raises:
    config.ConfigError: its learning rates or its average are others.
  """
  _, model = checkpoint.tokenizer_and_model(c)
  name, own = f'branch_from={c.branch_from}', config.plain(c.optim)
  # Functions are those of the new config: that of the trunk is data.
  theirs = {key: trunk.get(f'optim.{key}', x) for key, x in own.items()}
  theirs = own | {key: theirs[key] for key in _SCHEDULE if key in own}
  rates, tails = [], []
  for spec, steps in ((theirs, trunk['steps']), (own, c.steps)):
    _, schedule = config.build(optim.fitted(spec, model), steps=steps)
    rates.append(np.asarray(jax.jit(jax.vmap(schedule))(np.arange(step))))
    if own.get('average') == 'tail':
      tails.append(min(averages.tail_start(steps, spec['tail']), step))
  before, now = rates
  for n in np.flatnonzero(before != now)[:1]:
    raise config.ConfigError(
      f'{name}: step {n} had the rate {before[n]:.4g}, and has {now[n]:.4g} by'
      f' this schedule: branch from step {n} or earlier, or cool'
      ' down later'
    )
  if len(set(tails)) > 1:
    raise config.ConfigError(
      f'{name}: the tail whose parameters are averaged begins at another step:'
      f' give optim.tail={c.steps - step} or less'
    )
