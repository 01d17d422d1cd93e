"""Writes a run's metrics for TensorBoard: the door of tensorboardX."""

from collections.abc import Mapping
import importlib
import json
import time
from typing import Any

from lm.reporting import writers


class _TensorBoard:
  """Writes an event for each line, and has nothing left to write after it.

  The `SummaryWriter` of tensorboardX hands events to a thread, and its `flush`
  does not wait for them: a kill would lose the newest lines.
  """

  def __init__(self, events: Any):
    self._events = events
    self._event: Any = importlib.import_module('tensorboardX.proto.event_pb2')
    self._summary: Any = importlib.import_module('tensorboardX.summary')

  def write(self, step: int, values: Mapping[str, float]) -> None:
    summaries = [self._summary.scalar(name, x) for name, x in values.items()]
    self._add(step, summaries)

  def note(self, step: int, name: str, text: str) -> None:
    """Writes a text."""
    self._add(step, [self._summary.text(name, text)])

  def close(self) -> None:
    self._events.close()

  def _add(self, step: int, summaries: list[Any]) -> None:
    event = self._event.Event(wall_time=time.time(), step=step)
    for summary in summaries:
      event.summary.value.extend(summary.value)
    self._events.write_event(event)
    self._events.flush()


def make(about: writers.About) -> writers.Writer:
  """Writes to RUN/tensorboard; the config is a text there.

  Args:
    about: the run.
  """
  files: Any = importlib.import_module('tensorboardX.event_file_writer')
  folder = about.folder / 'tensorboard'
  folder.mkdir(exist_ok=True)
  # Two starts within a second would otherwise write the same file.
  events = files.EventsWriter(str(folder / 'events'), f'.{time.time_ns()}')
  writer = _TensorBoard(events)
  text = json.dumps(dict(about.config), indent=2, sort_keys=True)
  writer.note(about.step, 'config', f'```json\n{text}\n```')
  return writer
