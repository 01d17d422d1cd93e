"""The live table of a sweep: redrawn on a terminal, plain lines elsewhere."""

from collections.abc import Sequence
import contextlib
import json
import os
from pathlib import Path
import shutil
import sys
import time
from typing import Any, NamedTuple, TextIO

from lm.reporting import metrics_log
from lm.runtime import regular_files

_COLUMNS = ('run', 'state', 'step', 'loss', 'ETA', 'note')
_TAIL_BYTES = 1 << 14
# What is shown first if the terminal has too few rows.
_ORDER = ('running', 'stopping', 'failed', 'waiting')


class View(NamedTuple):
  """Describes a run in the live table.

  Attributes:
    name: of the run.
    state: in a word or two.
    step: the last one that is logged; None before.
    steps: how many the run takes.
    loss: the loss of that step, in nats a token.
    left_seconds: until it ends, if it runs and its speed is known.
    note: such as the error.
  """

  name: str
  state: str
  step: int | None
  steps: int
  loss: float | None
  left_seconds: float | None
  note: str = ''

  def row(self) -> dict[str, Any]:
    """Lays it out."""
    step = '' if self.step is None else f'{self.step}/{self.steps}'
    left = self.left_seconds
    return {
      'run': self.name,
      'state': self.state,
      'step': step,
      'loss': '' if self.loss is None else f'{self.loss:.4f}',
      'ETA': '' if left is None else duration(left),
      'note': self.note,
    }


def duration(seconds: float) -> str:
  """Spells seconds as h:mm:ss."""
  whole = round(seconds)
  return f'{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}'


class Table:
  """Shows all runs, every time that `draw` is called.

  On a terminal the table stays at its place. Elsewhere a run is a line, which
  is printed when its state changes and every `every_seconds`.
  """

  def __init__(self, stream: TextIO | None = None, every_seconds: float = 30.0):
    """Begins a table.

    Args:
      stream: to write to; None: stderr.
      every_seconds: between two lines of a run that goes on, if the stream is
        no terminal.
    """
    self._stream = sys.stderr if stream is None else stream
    self._live = self._stream.isatty()
    self._every_seconds = every_seconds
    self._height = 0  # rows of the table that stands on the terminal
    self._shown: dict[str, tuple[str, float]] = {}  # state and time, by run

  def draw(self, views: Sequence[View]) -> None:
    """Shows the present state of all runs."""
    if self._live:
      self._redraw(views)
    else:
      self._print(views)

  def say(self, line: str) -> None:
    """Prints a line of its own, above the table."""
    self._write(self._up() + line + '\n')

  def _write(self, text: str) -> None:
    # The runs go on when nobody reads any more, as after `| head` or where the
    # terminal was closed.
    with contextlib.suppress(OSError):
      self._stream.write(text)
      self._stream.flush()

  def _up(self) -> str:
    """Goes to the table's first row, and clears what follows."""
    rows, self._height = self._height, 0
    return f'\x1b[{rows}F\x1b[J' if rows else ''

  def _redraw(self, views: Sequence[View]) -> None:
    size = shutil.get_terminal_size()
    rows = [view.row() for view in views]
    most = max(1, size.lines - 4)
    left_out = ''
    if len(rows) > most:
      first = sorted(rows, key=_rank)[:most]
      rows = [row for row in rows if row in first]
      left_out = f'and {len(views) - most} more: '
    text = metrics_log.table(rows, _COLUMNS)
    lines = [*text.split('\n'), left_out + summary(views)]
    # The terminal would break a wider line, and the count of rows be wrong.
    lines = [line[: size.columns - 1] for line in lines]
    self._write(self._up() + '\n'.join(lines) + '\n')
    self._height = len(lines)

  def _print(self, views: Sequence[View]) -> None:
    now = time.monotonic()
    for view in views:
      state, printed = self._shown.get(view.name, ('waiting', now))
      is_late = now - printed >= self._every_seconds
      if view.state == state and not (view.state == 'running' and is_late):
        self._shown.setdefault(view.name, (state, printed))
        continue
      self._shown[view.name] = view.state, now
      row = view.row()
      words = [row['run'], row['state']]
      words += [f'step {row["step"]}'] if row['step'] else []
      words += [f'loss {row["loss"]}'] if row['loss'] else []
      words += [f'ETA {row["ETA"]}'] if row['ETA'] else []
      words += [row['note']] if row['note'] else []
      self._write('  '.join(words) + '\n')


def _rank(row: dict[str, Any]) -> int:
  state = row['state'].partition(' ')[0]
  return _ORDER.index(state) if state in _ORDER else len(_ORDER)


def summary(views: Sequence[View]) -> str:
  """Counts the runs by state."""
  counts: dict[str, int] = {}
  for view in views:
    state = view.state.partition(' ')[0]
    counts[state] = counts.get(state, 0) + 1
  return ', '.join(f'{n} {state}' for state, n in counts.items())


def newest(workdir: Path) -> tuple[int, float | None] | None:
  """Reads the step and the loss of a run's newest line, for people.

  Only the end of the file is read, and lines are not verified.
  """
  try:
    with regular_files.open_read(workdir / 'metrics.jsonl') as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(0, size - _TAIL_BYTES))
      tail = file.read().split(b'\n')
  except OSError:
    return None
  for line in reversed(tail):
    try:
      record = json.loads(line)
      if 'loss_nats' in record:
        return int(record['step']), float(record['loss_nats'])
    except (ValueError, TypeError, KeyError):
      continue  # the beginning of a line, or its end, is missing
  return None
