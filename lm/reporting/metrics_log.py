"""The log of a run's metrics: metrics.jsonl.

Everywhere in this file, `step` counts finished updates: a line of step 10 was
written after ten updates, and a run that resumes at step 10 keeps it.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import math
import os
from pathlib import Path
import re
from typing import Any, TypeVar
import unicodedata
import zlib

import jax

from lm import errors, metrics, types
from lm.checkpoint import manifest
from lm.runtime import regular_files

T = TypeVar('T')
_NOT_FINITE = ('NaN', 'Infinity', '-Infinity')
_LINE = re.compile(rb'(\{.*), "crc32": "([0-9a-f]{8})"\}\n')


def number(value: Any) -> int | float:
  """Turns a Python, numpy or jax scalar, or a Metric, into a number.

  A device array is waited for. A Metric of weight 0 has no value: nan.
  """
  if isinstance(value, types.Metric):
    return metrics.value(value)
  value = value.item() if hasattr(value, 'item') else value
  return value if isinstance(value, int) else float(value)


def _writable(value: Any) -> Any:
  """Turns a value into JSON; strings stand for the numbers that JSON lacks."""
  if isinstance(value, Mapping):
    return {k: _writable(v) for k, v in value.items()}
  if isinstance(value, list | tuple) and not isinstance(value, types.Metric):
    return [_writable(v) for v in value]
  if value is None or isinstance(value, str):
    return value
  value = number(value)
  if math.isfinite(value):
    return value
  return 'NaN' if math.isnan(value) else _NOT_FINITE[1 if value > 0 else 2]


def _readable(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _readable(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_readable(v) for v in value]
  return float(value) if value in _NOT_FINITE else value


def to_json(record: Mapping[str, Any]) -> str:
  """Writes a record as one line of JSON."""
  return json.dumps(_writable(record), allow_nan=False)


def append(
  path: Path,
  record: Mapping[str, Any],
  check: Callable[[], None] = lambda: None,
) -> None:
  """Appends one JSON object as a line, which survives a kill of the program.

  Its last field, `crc32`, is that of the line without this field.

  Args:
    path: of the file.
    record: what to write.
    check: raises when this process may not write any more.

  Raises:
    errors.Storage: the file is a link or a pipe, or cannot be written.
  """
  check()
  text = to_json(record)
  checksum = zlib.crc32(text.encode())
  line = f'{text[:-1]}, "crc32": "{checksum:08x}"}}\n'.encode()
  with (
    regular_files.writing(path),
    _open(path, regular_files.open_append) as f,
  ):
    if f.seek(0, os.SEEK_END):
      f.seek(-1, os.SEEK_END)
      if f.read(1) != b'\n':
        # The program was killed within the last line: keep this one apart.
        line = b'\n' + line
    # Again, now that the file is open: whoever takes over puts another file in
    # its place (`trim`), so that a line that is written late gets lost with the
    # old one.
    check()
    f.write(line)


def read(path: Path) -> list[dict[str, Any]]:
  """Reads the records of a .jsonl file, without a line that a kill has cut.

  A line without its checksum, or with a wrong one, is left out, and costs one
  warning for the file.

  Raises:
    errors.Storage: the file is a link or a pipe, or cannot be read.
  """
  records, bad = [], 0
  try:
    with _open(path, regular_files.open_read) as f:
      for line in f:
        record = _parse(line)
        if record is not None:
          records.append(record)
        elif line.endswith(b'\n'):
          bad += 1
  except FileNotFoundError:
    return []
  if bad:
    manifest.warn(f'{path}: lines without a right checksum are left out: {bad}')
  return records


def trim(
  path: Path, step: int, check: Callable[[], None] = lambda: None
) -> dict[str, Any]:
  """Drops the lines of later steps and the end that a kill has cut.

  Lines that cannot be read stay. The file is replaced by one rename, even if
  nothing is dropped: a kill meanwhile leaves all of it, and a process that was
  replaced as a writer, and has the file open, writes to nobody.

  Args:
    path: of the file, which may not be there.
    step: the last one whose lines stay.
    check: raises when this process may not write any more.

  Returns:
    Of each name in the lines that stay, the newest value.

  Raises:
    errors.Storage: the file is a link or a pipe, or cannot be read.
  """
  newest: dict[str, Any] = {}
  part = path.with_name(f'{path.name}.part')
  try:
    old = _open(path, regular_files.open_read)
  except FileNotFoundError:
    return newest
  with old, regular_files.writing(part), part.open('wb') as new:
    for line in old:
      record = _parse(line)
      if line.endswith(b'\n') and not (record and record['step'] > step):
        new.write(line)
        newest |= record or {}
    new.flush()
    os.fsync(new.fileno())
  check()
  try:
    part.replace(path)
  except FileNotFoundError:
    check()  # a successor has just done the same
    raise
  return newest


def _open(path: Path, how: Callable[[Path], T]) -> T:
  try:
    return how(path)
  except FileNotFoundError:
    raise
  except OSError as error:
    raise errors.Storage(
      f'{errors.refusal(error)}: put a plain file there'
    ) from error


def _parse(line: bytes) -> dict[str, Any] | None:
  """Reads a line; None if it is not one that `append` has written."""
  match = _LINE.fullmatch(line)
  if match is None or zlib.crc32(match[1] + b'}') != int(match[2], 16):
    return None
  try:
    record = json.loads(match[1] + b'}')
  except (ValueError, RecursionError):
    return None
  if not isinstance(record, dict) or type(record.get('step')) is not int:
    return None
  return _readable(record)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
  """Formats rows as aligned text: numbers to the right, words to the left.

  Floats get four significant digits; a missing value is '-'. Chinese
  characters count as two columns, as terminals draw them.
  """

  def text(value: Any) -> str:
    if value is None:
      return '-'
    return f'{value:.4g}' if isinstance(value, float) else str(value)

  def width(word: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(x) in 'WF') for x in word)

  lines = [list(columns)] + [[text(r.get(k)) for k in columns] for r in rows]
  widths = [max(width(line[i]) for line in lines) for i in range(len(columns))]
  right = [
    all(isinstance(r.get(k), int | float | None) for r in rows) for k in columns
  ]
  out = []
  for line in lines:
    cells = []
    for word, wide, number_ in zip(line, widths, right, strict=True):
      space = ' ' * (wide - width(word))
      cells.append(space + word if number_ else word + space)
    out.append('  '.join(cells).rstrip())
  return '\n'.join(out)


class Log:
  """Writes a run's metrics: one JSON object per step in metrics.jsonl.

  Only one process may write it.

  Attributes:
    newest: of each name in the lines of earlier attempts, the newest value.
  """

  def __init__(
    self,
    workdir: Path | str,
    start: int = 0,
    check: Callable[[], None] = lambda: None,
    also: Callable[[int, dict[str, Any]], None] = lambda *_: None,
  ):
    """Opens the log of a run that starts, or resumes, after `start` updates.

    Lines that an earlier attempt wrote after that step are dropped, so that the
    file reads as one run.

    Args:
      workdir: of the run; made if it is not there.
      start: the last step whose lines stay.
      check: raises when this process may not write any more; called before
        anything is written.
      also: called with the step and the numbers of each line that is written.
    """
    check()
    self._check, self._also = check, also
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    self._path = workdir / 'metrics.jsonl'
    self.newest = trim(self._path, start, check)
    self._pending: tuple[int, dict[str, Any]] | None = None

  def now(self, step: int, values: Mapping[str, Any]) -> dict[str, float]:
    """Writes one line and returns its numbers; waits for device arrays."""
    self.flush()  # lines stay in the order of their steps
    return self._write(step, values)

  def later(
    self, step: int, values: Mapping[str, Any]
  ) -> tuple[int, dict[str, float]] | None:
    """Keeps this step's metrics, and writes those of the call before.

    So the host only waits for a step that is over, while the device works on
    the next one.

    Returns:
      `(step, numbers)` that were written; None at the first call.
    """
    written = self.flush()
    self._pending = step, dict(values)
    return written

  def flush(self) -> tuple[int, dict[str, float]] | None:
    """Writes the metrics that `later` keeps, before a save and at the end."""
    pending, self._pending = self._pending, None
    return pending and (pending[0], self._write(*pending))

  def _write(self, step: int, values: Mapping[str, Any]) -> dict[str, float]:
    fetched = jax.device_get(dict(values))  # one transfer for all of them
    numbers = {name: number(value) for name, value in fetched.items()}
    append(self._path, {'step': int(step), **numbers}, self._check)
    self._also(int(step), numbers)
    return numbers

  def close(self) -> None:
    """Writes the metrics that are left."""
    self.flush()
