"""Reads the files that records come from: text, JSON and tables."""

from collections.abc import Iterator, Sequence
import hashlib
import json
from typing import Any

from lm.data import byte_files, json_files, names, tables


def matching(pattern: str) -> list[str]:
  """Lists the files that a pattern matches, sorted; or else the path itself."""
  return byte_files.matching(pattern) or [pattern]


def text(path: str) -> str:
  """Reads a file of text, packed or not; see `byte_files`.

  Raises:
    ValueError: the file is missing, damaged or not text.
  """
  return byte_files.text(path, 'task')


def lines(path: str) -> list[str]:
  """Reads the lines of a file of text, without their ends.

  Lines end in a line feed, or in a carriage return and one. Nothing else ends a
  line, though `str.splitlines` thinks so: a sentence may hold U+2028.

  Raises:
    ValueError: see `text`.
  """
  found = [line.removesuffix('\r') for line in text(path).split('\n')]
  return found[:-1] if not found[-1] else found


def json_value(path: str, name: str) -> Any:
  """Reads a file that holds one JSON value.

  Args:
    path: of the file.
    name: of the data set that it should be from, for the error.

  Raises:
    ValueError: the file is missing, damaged or not JSON.
  """
  data = text(path)
  try:
    return json.loads(data)
  except (ValueError, RecursionError) as e:
    raise ValueError(
      f'task {names.short(path)}: not JSON; give a file of {name}'
    ) from e


def json_lines(path: str, limit: int | None = None) -> list[dict[str, Any]]:
  """Reads JSON lines from a file, or from all files that a pattern matches.

  A file that begins with '[' holds one JSON array, whose elements are read.

  Args:
    path: of the file, or a pattern.
    limit: number of lines to read; None reads all.

  Raises:
    ValueError: a file is missing or damaged, or a line is not a JSON object.
  """
  rows: list[dict[str, Any]] = []
  for file in matching(path):
    where = f'task {names.short(file)}'
    with byte_files.opened(file, 'task') as stream:
      for place, row, _ in json_files.values(stream, where):
        if len(rows) == limit:
          return rows
        if not isinstance(row, dict):
          raise ValueError(f'{where}: {place} is not a JSON object')
        rows.append(row)
  return rows


def table(
  path: str, name: str, delimiter: str | None = None
) -> Iterator[dict[str, Any]]:
  """Reads the rows of a table whose first line names the columns.

  See `tables.rows` for the rules of quotes. Blank lines are skipped.

  Args:
    path: of the file.
    name: of the data set that it should be from, for the error.
    delimiter: between fields; None: a tab if the name says .tsv, else a comma.

  Yields:
    The rows, of which there may be none. A column that a row does not reach is
      None.

  Raises:
    ValueError: the file is missing, damaged, not UTF-8 or not a table; the
      error names the row.
  """
  where = f'task {names.short(path)}'
  if delimiter is None:
    delimiter = tables.SUFFIXES.get(byte_files.suffix(path), tables.COMMA)
  with byte_files.opened(path, 'task') as stream:
    if not stream.peek(1):
      raise ValueError(f'{where}: is empty; give a table of {name}')
    for place, row in tables.rows(stream, where, delimiter):
      whole = ''.join([*row, *filter(None, row.values())])
      byte_files.decoded(
        whole.encode('utf-8', 'surrogateescape'), f'{where}: {place}'
      )
      yield row


def sha256_of(files: Sequence[str]) -> str:
  """Hashes the bytes of files, one after another, packed as they are."""
  sha256 = hashlib.sha256()
  for file in files:
    with byte_files.stored(file, 'task') as stream:
      while data := stream.read(1 << 20):
        sha256.update(data)
  return sha256.hexdigest()
