"""Parts: folders that are named by what they were made of.

The name of a part is a hash of its input, of the stages that made it, with
their versions and settings, and of nothing else. A part is made under another
name and renamed when it is whole, so that one which exists can be trusted: who
finds it there does not make it again, unless a file is missing or holds other
bytes than were written. Each build checks this once, before it uses the part.
"""

from collections.abc import Callable, Iterator
import contextlib
import hashlib
from importlib import metadata
import json
import os
from pathlib import Path
import re
import shutil
from typing import Any
import uuid
import zlib

import pyarrow as pa
import pyarrow.parquet as pq

DOCUMENTS = 'documents.parquet'
FACTS = 'facts.parquet'
COUNTS = 'counts.json'
ROW_BITS = 20  # of an id; the bits above them number the part
ROWS = 1 << ROW_BITS  # a part has fewer
BATCH_BYTES = 1 << 20  # of text in a record batch, or one longer document
_UNFINISHED = '.unfinished-'
_SUMS = 'sums.json'  # [bytes, CRC-32] of the part's files, by name
_NAME = re.compile('[0-9a-f]{32}')
# Fast to write and read: zstd's fastest level takes half as long again, and
# parts of four fifths the size.
_COMPRESSION = 'lz4'


def name(*identity: Any) -> str:
  """Names a part by what it is made of, which is plain JSON."""
  text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]


def versions(*packages: str) -> dict[str, str | None]:
  """Finds the versions of outside packages; None: it is not installed.

  Another version may give other results, so versions belong to the identity of
  each part that a package works on.
  """
  found: dict[str, str | None] = dict.fromkeys(packages)
  for package in packages:
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[package] = metadata.version(package)
  return found


def number(part: str) -> int:
  """Returns the number of a part in tables, 60 bits of its name."""
  return int(part[:15], 16)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
  """Gives a folder to write to, which becomes `folder` when all is well.

  If another process has made the same in the meantime, that one stays.

  Raises:
    OSError: a file cannot be written.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  part = folder.parent / f'{_UNFINISHED}{folder.name}-{uuid.uuid4().hex[:8]}'
  part.mkdir()
  try:
    yield part
    sums = {x.name: _sum(x) for x in sorted(part.iterdir())}
    write_json(part / _SUMS, sums)
    for file in part.iterdir():
      _sync(file)
    _sync(part)
    try:
      part.rename(folder)
    except OSError:
      if not folder.is_dir():
        raise
  finally:
    shutil.rmtree(part, ignore_errors=True)


def make(folder: Path, write: Callable[[Path], None]) -> Path:
  """Makes a part by `write(folder)`, unless it exists, and returns its path."""
  if not is_whole(folder):
    shutil.rmtree(folder, ignore_errors=True)
    with making(folder) as part:
      write(part)
  return folder


def is_whole(folder: Path) -> bool:
  """Tells whether a part exists with all that was written to it."""
  try:
    sums = json.loads((folder / _SUMS).read_text(encoding='utf-8'))
    return all(_sum(folder / x) == expected for x, expected in sums.items())
  except (OSError, ValueError):
    return False


def exists(folder: Path) -> bool:
  """Tells whether a part was made, without reading it."""
  return (folder / _SUMS).is_file()


def _sum(path: Path) -> list[int]:
  """Returns the bytes of a file and their CRC-32, as shards have it."""
  size = check = 0
  with path.open('rb', buffering=0) as file:
    while block := file.read(1 << 18):
      size, check = size + len(block), zlib.crc32(block, check)
  return [size, check]


def sweep(folder: Path, used: set[str] | None = None) -> None:
  """Removes what killed processes have left, and parts that nobody uses.

  Args:
    folder: of parts.
    used: names of the parts that stay; None: all that are whole.
  """
  if not folder.is_dir():
    return
  for path in folder.iterdir():
    is_left = path.name.startswith(_UNFINISHED)
    # The folder may hold what is no part, and somebody else's.
    is_part = bool(_NAME.fullmatch(path.name))
    if is_left or (is_part and used is not None and path.name not in used):
      shutil.rmtree(path)


def _sync(path: Path) -> None:
  """Makes a file, or the names in a folder, survive a power cut."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def write_json(path: Path, value: Any) -> None:
  """Writes JSON for programs and people; its keys stay in their order."""
  text = json.dumps(value, indent=1, ensure_ascii=False)
  path.write_text(f'{text}\n', encoding='utf-8')


class Writer:
  """Writes a table of Parquet, a row group for every batch."""

  def __init__(self, path: Path, schema: pa.Schema):
    # Numbers of keys and texts are all different: a dictionary of them is
    # larger than they are.
    few: Any = [
      x.name for x in schema if x.name in ('language', 'reason', 'part')
    ]
    self._file = pq.ParquetWriter(
      path, schema, use_dictionary=few, compression=_COMPRESSION
    )

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *unused: object) -> None:
    self._file.close()

  def add(self, batch: pa.RecordBatch) -> None:
    """Writes a batch, if it has rows."""
    if batch.num_rows:
      self._file.write_batch(batch)


def batches(
  path: Path, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
  """Reads a table of Parquet, a batch for every row group."""
  with pq.ParquetFile(path) as file:
    for group in range(file.num_row_groups):
      table = file.read_row_group(group, columns, use_threads=False)
      yield table.combine_chunks().to_batches()[0]
