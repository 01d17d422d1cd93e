"""Reads the files of evaluation sets; an error names the file and the set."""

from collections.abc import Iterator, Sequence
import contextlib
from typing import Any

from lm.data import names
from lm.data.finetuning import fields, record_files


@contextlib.contextmanager
def checked(path: str, name: str) -> Iterator[None]:
  """Turns what goes wrong with a file into one line that names it.

  Args:
    path: of the file.
    name: of the set that it should be of.

  Raises:
    ValueError: the code inside met something that is not in its place.
  """
  try:
    yield
  except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
    if str(e).startswith('task '):  # it names the file already
      raise
    raise ValueError(
      f'task {names.short(path)}: not a file of {name} ({cause(e)}); give one '
      'of that set'
    ) from e


def cause(error: Exception) -> str:
  """Says what is wrong with a row; most exceptions need their class for it."""
  if isinstance(error, fields.FieldError):
    return str(error)
  return f'{type(error).__name__}: {error}'


def table(path: str, delimiter: str = '\t') -> list[dict[str, str]]:
  """Reads the rows of a table whose first line names the columns.

  Raises:
    ValueError: the file is missing or damaged, or a row ends early.
  """
  rows = list(record_files.table(path, 'a table', delimiter))
  for n, row in enumerate(rows, 1):
    if None in row.values():
      missing = next(key for key, value in row.items() if value is None)
      raise ValueError(f'row {n} has no {names.short(missing)}')
  return rows


def check_not_empty(rows: Sequence[Any]) -> None:
  """Checks that a file has rows.

  Raises:
    ValueError: it has none.
  """
  if not rows:
    raise ValueError('it is empty')
