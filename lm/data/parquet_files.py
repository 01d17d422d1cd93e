"""Reads a column of text from Parquet, in bounded memory."""

from collections.abc import Iterator
import os
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from lm.data import names

SUFFIX = '.parquet'
_MAGIC = b'PAR1'  # at the beginning and at the end
_ROWS = 256  # read together


def is_parquet(path: str) -> bool:
  """Tells by its content if a file is Parquet."""
  try:
    with open(path, 'rb') as file:
      if file.read(4) != _MAGIC or file.seek(0, os.SEEK_END) < 12:
        return False
      file.seek(-4, os.SEEK_END)
      return file.read() == _MAGIC
  except OSError:
    return False  # what is wrong is said by who reads it


def rows(path: str, field: str) -> Iterator[tuple[str, bytes | None]]:
  """Reads a column of text.

  Args:
    path: of the file.
    field: of the column; 'a.b' is the field b of the structs in column a.

  Yields:
    Where the row is, for errors ('row 3'), and its bytes, of which Arrow does
    not check that they are Unicode; None for null.

  Raises:
    ValueError: the file is damaged or cannot be read, or there is no such
      column, or it is not of text.
  """
  where = f'input {names.short(path)}'
  try:
    with parquet.ParquetFile(path, page_checksum_verification=True) as table:
      keys = _keys(table.schema_arrow, field, where)
      number = 0
      for batch in table.iter_batches(_ROWS, columns=['.'.join(keys)]):
        column: Any = batch.column(0)
        for _ in keys[1:]:
          (column,) = column.flatten()  # no other field was asked for
        if pa.types.is_dictionary(column.type):
          column = column.dictionary_decode()
        for value in column.cast(pa.large_binary()):
          number += 1
          yield f'row {number}', value.as_py()
  except (pa.ArrowException, UnicodeDecodeError) as e:  # or of a name in it
    why = ' '.join(str(e).split())[:60]
    raise ValueError(f'{where}: damaged ({why}); fetch it again') from e
  except OSError as e:
    why = e.strerror or ' '.join(str(e).split())[:60]
    raise ValueError(f'{where}: cannot be read ({why}); check it') from e


def _keys(schema: pa.Schema, field: str, where: str) -> list[str]:
  """Finds the names that lead to a column of text.

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
  values = kind.value_type if pa.types.is_dictionary(kind) else kind
  if not any(
    test(values)
    for test in (
      pa.types.is_string,
      pa.types.is_large_string,
      pa.types.is_string_view,
    )
  ):
    raise ValueError(
      f'{where}: column {names.short(".".join(keys))} is of type '
      f'{str(kind)[:40]} and not text (columns: {str(schema.names[:5])[:40]}); '
      'set field'
    )
  return keys
