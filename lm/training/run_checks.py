"""Checks before a run trains: its config, its folder and its processes."""

from pathlib import Path
from typing import Any

import jax

from lm import checkpoint, config
from lm.checkpoint import bucket
from lm.reporting import writers
from lm.runtime import process_group, processes, watchdog
from lm.training import early_stopping, profiling


def trainable(
  c: config.Config, workdir: str | Path, group: process_group.ProcessGroup
) -> None:
  """Checks that a config describes a run that can be trained in a folder.

  Args:
    c: filled.
    workdir: a folder, or the address of one in a bucket.
    group: the processes that train it together.

  Raises:
    config.ConfigError: it does not.
  """
  if c.fit is not None:
    raise config.ConfigError(
      f'fit: {c.fit.fn} counts and has no gradients: use lm.fit'
    )
  _check_start(c)
  if c.init_paths and c.init_from is None:
    raise config.ConfigError(
      f'init_paths: {c.init_paths} without init_from: say of which run'
    )
  if c.grace_seconds == 0:
    raise config.ConfigError(
      'grace_seconds: 0 leaves no time to save: give what the scheduler grants'
      ' after SIGTERM, less five'
    )
  early_stopping.check(c)
  profiling.check(c)
  watchdog.check(**c.watchdog)
  if group.leads:
    writers.check(c)
  if not bucket.is_address(workdir):
    return
  if group.count > 1:
    raise config.ConfigError(
      f'{workdir}: {group.count} processes need a folder that all of them see: '
      'mount the bucket (gcsfuse) and give its path'
    )
  if c.early.metric is not None:
    raise config.ConfigError(
      f'early.metric: {workdir} keeps the newest steps alone, not the best: '
      'mount the bucket (gcsfuse) and give its path'
    )


def same_run(meta: dict[str, Any], c: config.Config, folder: Path) -> None:
  """Checks that a folder's newest checkpoint can be resumed with a config.

  Args:
    meta: of the checkpoint.
    c: filled.
    folder: of the run.

  Raises:
    config.ConfigError: it was made with another config, or is further on.
  """
  same_config(meta, c, folder)
  if meta['data']['step'] > c.steps:
    raise config.ConfigError(
      f'steps: {c.steps}, but {folder} is at step {meta["data"]["step"]}'
      ' already; give more or use another --workdir'
    )


def same_config(
  meta: dict[str, Any],
  c: config.Config,
  folder: Path,
  *,
  allow: tuple[str, ...] = (),
  advice: str = 'use another --workdir',
) -> None:
  """Checks that a checkpoint was made with a config.

  Args:
    meta, c, folder: see `same_run`.
    allow: keys that may differ, beside those that may in a run that goes on.
    advice: what to do if another key differs.

  Raises:
    config.ConfigError: it was made with another config.
  """
  # Where files lie is free: what is in them is compared by its fingerprint.
  paths = [key for key in config.flatten(c) if key.endswith('.path')]
  allow = (*allow, *checkpoint.CHANGEABLE_KEYS, *paths)
  checkpoint.check_same_config(meta, c, folder, allow, advice)


def _check_start(c: config.Config) -> None:
  """Checks the keys of a run that branches from another one.

  Raises:
    config.ConfigError: they do not fit together.
  """
  if c.branch_from is None:
    if c.branch_step is not None:
      raise config.ConfigError(
        f'branch_step: {c.branch_step} without branch_from: say of which run'
      )
    return
  if c.branch_step is None:
    raise config.ConfigError(
      f'branch_step: say from which step of {c.branch_from} to branch'
    )
  if c.init_from is not None:
    raise config.ConfigError(
      f'init_from: {c.init_from}, but a branch has all from'
      f' branch_from={c.branch_from}: remove one'
    )
  if c.privacy is not None:
    raise config.ConfigError(
      'branch_from: two branches of a private run would draw the same noise, '
      'which the measured privacy does not allow: train anew'
    )


def same_everywhere(
  c: config.Config, group: process_group.ProcessGroup
) -> None:
  """Checks that all processes of a run were started with the same config.

  Raises:
    config.ConfigError: they were not, or jax knows another number of them.
    process_group.Lost: one of them has failed.
  """
  if jax.process_count() != group.count:
    raise config.ConfigError(
      f'jax runs {jax.process_count()} processes: set {processes.VARIABLE} for'
      ' each of them, or give train() their group'
    )
  lead = config.from_json(group.share('config', config.to_json(c), 300.0))
  if lines := config.diff(lead, c):
    raise config.ConfigError(
      f'{group.name(group.index)} has another config than process 0:'
      f' {"; ".join(lines)}: start all with the same'
    )
