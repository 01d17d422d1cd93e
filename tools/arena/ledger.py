"""The ledger of a board: an append-only file whose lines are a chain of hashes.

  {"number": 3, "previous": "9f...", "time": ..., "event": "run", ...,
   "hash": "77..."}

`hash` is of the line without it, and `previous` that of the line before, so
that a line which was changed, dropped or put elsewhere is found. Whoever can
write the file can also make a new chain, or cut its end: note the newest hash
somewhere else to be safe from that.

A board's whole state is read from here. A line counts once it has its end, so a
kill leaves the line out or leaves it whole.
"""

from collections.abc import Iterator, Mapping
import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lm import config, errors
from lm.runtime import regular_files

NAME = 'ledger.jsonl'
START = '0' * 64  # what stands before the first line

Event = dict[str, Any]


def read(folder: Path) -> list[Event]:
  """Reads and verifies all lines.

  Raises:
    config.ConfigError: there is no ledger.
    errors.Damaged: a line is not what was written.
  """
  return list(_verified(folder / NAME, _whole_lines(folder / NAME)))


def head(events: list[Event]) -> str:
  """Gives the hash of the newest line, which stands for all of them."""
  return events[-1]['hash'] if events else START


def append(folder: Path, kind: str, content: Mapping[str, Any]) -> Event:
  """Adds a line; it is on the disk when this returns.

  Only the process that holds the lock of the board may call it.

  Args:
    folder: of the board.
    kind: the event's.
    content: what happened, as JSON.

  Returns:
    The line.
  """
  path = folder / NAME
  lines = _whole_lines(path) if path.exists() else []
  events = list(_verified(path, lines))
  event = {
    'number': len(events),
    'previous': head(events),
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'event': kind,
    **content,
  }
  event['hash'] = _hash(event)
  line = json.dumps(event, allow_nan=False) + '\n'
  with regular_files.writing(path), regular_files.open_append(path) as file:
    # A kill may have left the beginning of a line.
    file.truncate(sum(map(len, lines)))
    file.write(line.encode())
    file.flush()
    os.fsync(file.fileno())
  return event


def _whole_lines(path: Path) -> list[bytes]:
  try:
    with regular_files.open_read(path) as file:
      content = file.read()
  except FileNotFoundError as error:
    raise config.ConfigError(
      f'{path.parent}: is no board: make one by tools.arena new'
    ) from error
  lines = content.splitlines(keepends=True)
  return lines if content.endswith(b'\n') else lines[:-1]


def _verified(path: Path, lines: list[bytes]) -> Iterator[Event]:
  """Yields the events of lines, each compared with its hash and its place."""
  previous = START
  for number, line in enumerate(lines):
    try:
      event = json.loads(line)
      is_sound = (
        event['hash'] == _hash(event)
        and event['previous'] == previous
        and event['number'] == number
      )
    except (ValueError, TypeError, KeyError):
      is_sound = False
    if not is_sound:
      raise errors.Damaged(
        f'{path}:{number + 1}: was changed after it was written, or a line '
        'before it is gone: bring the ledger back from a copy'
      )
    previous = event['hash']
    yield event


def _hash(event: Mapping[str, Any]) -> str:
  content = {k: v for k, v in event.items() if k != 'hash'}
  text = json.dumps(content, sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()
