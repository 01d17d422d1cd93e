"""Finds a column of text in an Arrow schema, and reads its values as bytes."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import compute

from lm.data import names

_ROWS = 256  # converted together
# A type of text -> the same bytes, not said to be Unicode, which Arrow does not
# check when it reads a file.
_BYTES = {
  pa.string(): pa.binary(),
  pa.large_string(): pa.large_binary(),
  pa.string_view(): pa.binary_view(),
}


def find(schema: pa.Schema, field: str, where: str) -> list[str]:
  """Finds the names that lead to a column of text.

  Args:
    schema: of a file.
    field: of the column; 'a.b' is the field b of the structs in column a,
      unless a column is named 'a.b'.
    where: the file is, for errors.

  Raises:
    ValueError: there is none of this name, or it is not of text.
  """
  missing = ValueError(
    f'{where}: no column {names.short(field)} of text '
    f'(columns: {str(schema.names[:5])[:60]}); set field'
  )
  keys: list[str] = []
  fields: Any = schema
  dot, rest = '.', field
  while dot:
    # The whole of it before its first part: a column may be named 'a.b'.
    key, dot, rest = (
      (rest, '', '')
      if fields.get_field_index(rest) >= 0
      else rest.partition('.')
    )
    at = fields.get_field_index(key)
    if at < 0:
      raise missing
    keys.append(key)
    kind = fields = fields.field(at).type
    if dot and not pa.types.is_struct(kind):
      raise missing
  if _plain(kind) not in _BYTES:
    raise ValueError(
      f'{where}: column {names.short(".".join(keys))} is of type '
      f'{str(kind)[:40]} and not text (columns: {str(schema.names[:5])[:40]}); '
      'set field'
    )
  return keys


def _plain(kind: pa.DataType) -> pa.DataType:
  """Returns the type of the values, however they are encoded."""
  while True:
    if isinstance(kind, pa.BaseExtensionType):
      kind = kind.storage_type
    elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
      kind = kind.value_type
    else:
      return kind


def values(column: Any, keys: list[str]) -> Iterator[bytes | None]:
  """Reads the values of a column, and checks that they lie within it.

  Args:
    column: an array of text, or of structs that lead to one.
    keys: see `find`; the first is the name of `column`.

  Raises:
    pyarrow.ArrowException: the array is damaged.
  """
  for key in keys[1:]:
    column.validate()
    at = column.type.get_field_index(key)
    column = column.flatten()[at]
  for part in _parts(column):
    for value in part.cast(pa.large_binary()):
      yield value.as_py()


def _parts(column: Any) -> Iterator[Any]:
  """Cuts an array of text into short arrays of bytes.

  Raises:
    pyarrow.ArrowException: it is damaged.
  """
  column.validate()
  starts = range(0, len(column), _ROWS)
  if isinstance(column.type, pa.BaseExtensionType):
    yield from _parts(column.storage)
  elif pa.types.is_dictionary(column.type):
    words = _whole(column.dictionary)
    column.indices.validate(full=True)
    for start in starts:
      # It checks that every index lies within the dictionary.
      yield words.take(column.indices.slice(start, _ROWS))
  elif pa.types.is_run_end_encoded(column.type):
    column.run_ends.validate(full=True)
    runs = pa.RunEndEncodedArray.from_arrays(
      column.run_ends, _whole(column.values)
    ).slice(column.offset, len(column))
    for start in starts:
      yield compute.call_function('run_end_decode', [runs.slice(start, _ROWS)])
  else:
    data = column.view(_BYTES[column.type])
    data.validate(full=True)
    for start in starts:
      yield data.slice(start, _ROWS)


def _whole(column: Any) -> Any:
  """Returns an array of text as one array of bytes."""
  parts = [part.cast(pa.large_binary()) for part in _parts(column)]
  return pa.concat_arrays(parts) if parts else pa.array([], pa.large_binary())
