"""Reads a column of text from Arrow IPC files and streams, and Feather.

`datasets.Dataset.save_to_disk` of Hugging Face writes streams of this format.
"""

from collections.abc import Iterator
import io
import mmap
from typing import Any, BinaryIO

import pyarrow as pa

from lm.data import columns

SUFFIXES = ('.arrow', '.feather', '.ipc')
_FILE = b'ARROW1'
# A stream begins with a marker and with the length of its schema.
_STREAM = b'\xff\xff\xff\xff'
_FEATHER_1 = b'FEA1'
_KEPT = 16 << 20  # bytes of text after which pages of a file are let go


def is_arrow(file: BinaryIO) -> bool:
  """Tells by its content if a file is Arrow; its position is kept."""
  start = file.read(8)
  file.seek(0)
  return start.startswith((_FILE, _STREAM, _FEATHER_1))


def rows(
  file: BinaryIO, field: str, where: str
) -> Iterator[tuple[str, bytes | None]]:
  """Reads a column of text.

  A local file is mapped into memory, a part at a time, since all of it may be
  one record batch. A batch that is compressed, or at an address, is held.

  Args:
    file: of the table.
    field: of the column; 'a.b' is the field b of the structs in column a.
    where: the file is, for errors.

  Yields:
    Where the row is ('row 3'), and its bytes, of which Arrow does not check
    that they are Unicode; None for null.

  Raises:
    ValueError: the file is damaged or cannot be read, or there is no such
      column, or it is not of text.
  """
  start = file.read(8)
  file.seek(0)
  if start.startswith(_FEATHER_1):
    raise ValueError(
      f'{where}: is of version 1 of Feather; write it as version 2'
    )
  try:
    pages = _mapped(file)
    source: Any = (
      file if pages is None else pa.BufferReader(pa.py_buffer(pages))
    )
    number = size = 0
    for column, keys in _batches(source, start.startswith(_FILE), field, where):
      for value in columns.values(column, keys):
        number += 1
        yield f'row {number}', value
        size += len(value or b'')
        if pages is not None and size > _KEPT:
          pages.madvise(mmap.MADV_DONTNEED)  # they are read again if needed
          size = 0
  except (pa.ArrowException, UnicodeDecodeError) as e:
    why = ' '.join(str(e).split())[:60]
    raise ValueError(f'{where}: damaged ({why}); fetch it again') from e
  except OSError as e:
    why = e.strerror or ' '.join(str(e).split())[:60]
    raise ValueError(f'{where}: cannot be read ({why}); check it') from e


def _mapped(file: BinaryIO) -> mmap.mmap | None:
  """Maps a local file into memory; None: it is no such file."""
  if not isinstance(file, io.BufferedReader):
    return None
  return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _batches(
  source: Any, is_file: bool, field: str, where: str
) -> Iterator[tuple[Any, list[str]]]:
  """Reads the column of each batch, and the names that lead to its text."""
  opened = pa.ipc.open_file if is_file else pa.ipc.open_stream
  schema = opened(source).schema
  keys = columns.find(schema, field, where)
  # Other columns are not unpacked.
  only = pa.ipc.IpcReadOptions(
    included_fields=[schema.get_field_index(keys[0])]
  )
  source.seek(0)
  reader: Any = opened(source, options=only)
  batches = (
    (reader.get_batch(n) for n in range(reader.num_record_batches))
    if is_file
    else reader
  )
  for batch in batches:
    yield batch.column(0), keys
