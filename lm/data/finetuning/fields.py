"""Fields of rows that come from files, each of the type that a record needs.

What a file of a user holds is never changed into another type: null is no text,
1.0 is no label, and a place that is not there is not counted from the end. Each
function raises `FieldError`, which says what is wrong; `records.collect` adds
the file and the number of the record.

A field of an object is named by its key, and one of an object inside it by both
keys, as in 'data.text'. A field of a list is named by its number, from 0 on.
"""

from collections.abc import Mapping
import json
from typing import Any

from lm.data import names

# Words that stand for yes and no where a file has no booleans.
_TRUTHS = {
  'yes': True, 'true': True, '1': True,
  'no': False, 'false': False, '0': False,
}  # fmt: skip
Key = str | int


class FieldError(ValueError):
  """A field is missing, or of another type than the record needs."""


def present(row: Any, key: Key) -> bool:
  """Tells whether a row has a field that is not null."""
  try:
    return value(row, key) is not None
  except FieldError:
    return False


def value(row: Any, key: Key) -> Any:
  """Returns a field of any type.

  Raises:
    FieldError: the row has no such field.
  """
  if isinstance(key, int):
    if not isinstance(row, list | tuple):
      raise FieldError(f'{_shown(row)} stands where a list belongs')
    if not 0 <= key < len(row):
      raise FieldError(f'it has {len(row)} fields, and no field {key}')
    return row[key]
  if not isinstance(row, Mapping):
    raise FieldError(f'{_shown(row)} stands where an object belongs')
  if key in row:
    return row[key]
  first, _, rest = key.partition('.')
  if rest and isinstance(row.get(first), Mapping):
    return value(row[first], rest)
  have = names.short(', '.join(map(str, row))) or 'none'
  raise FieldError(f'{key} is missing; its fields: {have}')


def text(row: Any, key: Key, default: str | None = None) -> str:
  """Returns a text.

  Args:
    row: object or list.
    key: of the field.
    default: stands for a field that is missing or null; None: it is an error.

  Raises:
    FieldError: the field holds something else.
  """
  if default is not None and not present(row, key):
    return default
  return _checked_text(value(row, key), key)


def texts(row: Any, key: Key) -> tuple[str, ...]:
  """Returns a text, or the texts of a list, which may not be empty.

  Raises:
    FieldError: the field holds something else.
  """
  found = value(row, key)
  if not isinstance(found, list):
    return (_checked_text(found, key),)
  if not found:
    raise FieldError(f'{key} is an empty list, and a text belongs there')
  return tuple(_checked_text(x, key) for x in found)


def label(row: Any, key: Key) -> str:
  """Returns a class or the name of a record: a text, or a whole number.

  1.0 and true are refused, because another file may write 1 for the same class,
  and they would become two.

  Raises:
    FieldError: the field holds something else, or nothing.
  """
  found = value(row, key)
  if type(found) is int:
    return str(found)
  if not isinstance(found, str):
    raise FieldError(
      f'{key} is {_shown(found)}, and a text or a whole number belongs there'
    )
  if not found.strip():
    raise FieldError(f'{key} is empty, and a label belongs there')
  return _checked_text(found, key)


def integer(row: Any, key: Key) -> int:
  """Returns a whole number.

  Raises:
    FieldError: the field holds something else.
  """
  found = value(row, key)
  if type(found) is not int:
    raise FieldError(
      f'{key} is {_shown(found)}, and a whole number belongs there'
    )
  return found


def truth(row: Any, key: Key) -> bool:
  """Returns a boolean, which may be written 'yes', 'true', 1, 'no', 'false', 0.

  Raises:
    FieldError: the field holds something else.
  """
  found = value(row, key)
  if isinstance(found, bool):
    return found
  word = str(found).strip().lower() if type(found) in (int, str) else ''
  if word not in _TRUTHS:
    raise FieldError(
      f'{key} is {_shown(found)}, and true or false belongs there'
    )
  return _TRUTHS[word]


def entries(row: Any, key: Key) -> list[Any]:
  """Returns a list.

  Raises:
    FieldError: the field holds something else.
  """
  found = value(row, key)
  if not isinstance(found, list):
    raise FieldError(f'{key} is {_shown(found)}, and a list belongs there')
  return found


def _checked_text(found: Any, key: Key) -> str:
  if not isinstance(found, str):
    raise FieldError(f'{key} is {_shown(found)}, and a text belongs there')
  try:
    # JSON can write half of a pair of surrogates, which no tokenizer encodes.
    found.encode()
  except UnicodeEncodeError:
    raise FieldError(f'{key} has half a character (a lone surrogate)') from None
  return found


def _shown(found: Any) -> str:
  """Names what stands in a wrong place."""
  if isinstance(found, str):
    return repr(names.short(found))
  if isinstance(found, Mapping):
    return 'an object'
  if isinstance(found, list | tuple):
    return 'a list'
  return json.dumps(found)
