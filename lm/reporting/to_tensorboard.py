"""Writes a run's metrics for TensorBoard: the door of tensorboardX."""

from collections.abc import Mapping
import importlib
import json
from typing import Any

from lm.reporting import writers


class _TensorBoard:
  def __init__(self, board: Any):
    self._board = board

  def write(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    # At once: a process that is replaced must have nothing left to write.
    self._board.flush()

  def close(self) -> None:
    self._board.close()


def make(about: writers.About) -> writers.Writer:
  """Writes to RUN/tensorboard; the config is a text there.

  Args:
    about: the run.
  """
  package: Any = importlib.import_module('tensorboardX')
  board = package.SummaryWriter(str(about.folder / 'tensorboard'))
  text = json.dumps(dict(about.config), indent=2, sort_keys=True, default=str)
  board.add_text('config', f'```json\n{text}\n```', about.step)
  board.flush()
  return _TensorBoard(board)
