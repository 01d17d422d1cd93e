"""Writes a run's metrics for trackio: the door of trackio."""

from collections.abc import Mapping
import importlib
import os
from typing import Any

from lm.reporting import writers

_OWN = ('time',)  # trackio notes it itself, and keeps the name


class _Trackio:
  def __init__(self, run: Any, seen: writers.Seen | None):
    self._run, self.seen = run, seen

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
  name = f'{about.name}-{about.id}'
  seen = _seen(about.project, name)
  run = trackio.init(
    project=about.project,
    name=name,
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
  return _Trackio(run, seen)


def _seen(project: str, name: str) -> writers.Seen | None:
  """Reads the last line of a run from the database; None if a server has it.

  A thread of trackio brings lines there, so that a kill loses the newest.
  """
  if any(os.environ.get(f'TRACKIO_{x}') for x in ('SPACE_ID', 'SERVER_URL')):
    return None
  storage: Any = importlib.import_module('trackio.sqlite_storage')
  rows = storage.SQLiteStorage.get_logs(project, name)
  last = max((row['step'] for row in rows), default=-1)
  names = {key for row in rows if row['step'] == last for key in row}
  return last, sorted({*names, *_OWN} - {'step', 'timestamp'})
