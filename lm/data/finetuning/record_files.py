"""Reads the files that records come from: text and JSON, packed or not."""

from collections.abc import Sequence
import glob
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any
import zlib

from lm.data import names


def matching(pattern: str) -> list[str]:
  """Lists the files that a pattern matches, sorted; or else the path itself."""
  return sorted(glob.glob(pattern)) or [pattern]


def text(path: str) -> str:
  """Reads a file of UTF-8, unpacked by gzip where its name ends in '.gz'.

  Raises:
    ValueError: the file is missing, damaged or not text.
  """
  try:
    data = Path(path).read_bytes()
    return (gzip.decompress(data) if path.endswith('.gz') else data).decode()
  except (EOFError, OSError, UnicodeDecodeError, zlib.error) as e:
    why = 'no such file' if isinstance(e, FileNotFoundError) else 'unreadable'
    raise ValueError(f'task {names.short(path)}: {why}; check the path') from e


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
  except ValueError as e:
    raise ValueError(
      f'task {names.short(path)}: not JSON; give a file of {name}'
    ) from e


def json_lines(path: str, limit: int | None = None) -> list[dict[str, Any]]:
  """Reads JSON lines from a file, or from all files that a pattern matches.

  Args:
    path: of the file, or a pattern.
    limit: number of lines to read; None reads all.

  Raises:
    ValueError: a file is missing or damaged, or a line is not a JSON object.
  """
  rows = []
  for file in matching(path):
    # Not `splitlines`: a string of JSON may hold U+2028 and other line ends.
    for n, line in enumerate(text(file).split('\n')):
      if len(rows) == limit:
        return rows
      if not line.strip():
        continue
      try:
        rows.append(dict(json.loads(line)))
      except (ValueError, TypeError) as e:
        raise ValueError(
          f'task {names.short(file)}: line {n + 1} is not a JSON object'
        ) from e
  return rows


def sha256_of(files: Sequence[str]) -> str:
  """Hashes the bytes of files, one after another, packed as they are."""
  sha256 = hashlib.sha256()
  for file in files:
    sha256.update(Path(file).read_bytes())
  return sha256.hexdigest()
