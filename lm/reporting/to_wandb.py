"""Writes a run's metrics for Weights & Biases: the door of wandb."""

from collections.abc import Mapping
import importlib
import os
from typing import Any

from lm.reporting import writers


class _Wandb:
  def __init__(self, run: Any):
    self._run = run

  def write(self, step: int, values: Mapping[str, float]) -> None:
    # As a value beside the others: W&B's own step takes one line only, and
    # there may be several, such as those of two evaluators.
    self._run.log({'step': step, **values})

  def close(self) -> None:
    self._run.finish()


def make(about: writers.About) -> writers.Writer:
  """Writes to RUN/wandb, or to a server if WANDB_MODE=online says so.

  A run that is started again goes on with the W&B run of the same id.

  Args:
    about: the run.
  """
  wandb: Any = importlib.import_module('wandb')
  mode = os.environ.get('WANDB_MODE', 'offline')
  run = wandb.init(
    project=about.project,
    name=about.name,
    id=about.id,
    dir=str(about.folder),
    config=dict(about.config),
    mode=mode,
    # Offline there is no server to ask for the run that goes on: `wandb sync`
    # joins the parts, by their id.
    resume=None if mode == 'offline' else 'allow',
    reinit='create_new',  # a notebook may train several runs at once
    settings=wandb.Settings(console='off', silent=True),
  )
  run.define_metric('step')
  run.define_metric('*', step_metric='step')
  return _Wandb(run)
