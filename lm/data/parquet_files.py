"""Reads a column of text from Parquet, in bounded memory."""

from collections.abc import Iterator
import os
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from lm.data import columns

SUFFIX = '.parquet'
_MAGIC = b'PAR1'  # at the beginning and at the end
_ROWS = 256  # read together
_BUFFER = 1 << 20  # bytes read at once


def is_parquet(file: BinaryIO) -> bool:
  """Tells by its content if a file is Parquet; its position is kept."""
  start = file.read(4)
  is_whole = False
  if start == _MAGIC and file.seek(0, os.SEEK_END) >= 12:
    file.seek(-4, os.SEEK_END)
    is_whole = file.read(4) == _MAGIC
  file.seek(0)
  return is_whole


def rows(
  file: BinaryIO, field: str, where: str
) -> Iterator[tuple[str, bytes | None]]:
  """Reads a column of text.

  Args:
    file: of the table.
    field: of the column; 'a.b' is the field b of the structs in column a.
    where: the file is, for errors.

  Yields:
    Where the row is, for errors ('row 3'), and its bytes, of which Arrow does
    not check that they are Unicode; None for null.

  Raises:
    ValueError: the file is damaged or cannot be read, or there is no such
      column, or it is not of text.
  """
  try:
    with parquet.ParquetFile(
      file,
      # Without these two a whole row group is read at once.
      buffer_size=_BUFFER,
      pre_buffer=False,
      page_checksum_verification=True,
    ) as table:
      keys = columns.find(table.schema_arrow, field, where)
      number = 0
      for batch in table.iter_batches(_ROWS, columns=['.'.join(keys)]):
        # A struct has the one field that was asked for.
        column: Any = batch.column(0)
        for value in columns.values(column, keys):
          number += 1
          yield f'row {number}', value
  except (pa.ArrowException, UnicodeDecodeError) as e:  # or of a name in it
    why = ' '.join(str(e).split())[:60]
    raise ValueError(f'{where}: damaged ({why}); fetch it again') from e
  except OSError as e:
    why = e.strerror or ' '.join(str(e).split())[:60]
    raise ValueError(f'{where}: cannot be read ({why}); check it') from e
