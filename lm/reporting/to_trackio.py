"""Writes a run's metrics for trackio: the door of trackio."""

from collections.abc import Mapping
import importlib
from typing import Any

from lm.reporting import writers

_OWN = ('time',)  # trackio notes it itself, and keeps the name


class _Trackio:
  def __init__(self, run: Any):
    self._run = run

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log({k: v for k, v in values.items() if k not in _OWN}, step)

  def close(self) -> None:
    self._run.finish()


def make(about: writers.About) -> writers.Writer:
  """Writes to trackio's database on this machine, which TRACKIO_DIR names.

  TRACKIO_SPACE_ID or TRACKIO_SERVER_URL sends it elsewhere. The run is called
  NAME-ID, since trackio finds the run that goes on by its name.

  Args:
    about: the run.
  """
  trackio: Any = importlib.import_module('trackio')
  run = trackio.init(
    project=about.project,
    name=f'{about.name}-{about.id}',
    config=dict(about.config),
    resume='allow',
    embed=False,
    # They would be lines without a step.
    auto_log_gpu=False,
    auto_log_cpu=False,
  )
  # Its own note of the newest run, which it would end when another begins, and
  # once more when the program does.
  trackio.context_vars.current_run.set(None)
  return _Trackio(run)
