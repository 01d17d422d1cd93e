"""The first stage: files become parts of documents."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import json
import os
from pathlib import Path
import sys
from typing import Any, NamedTuple

import pyarrow as pa

from lm.corpus import parts, personal, stages
from lm.data import byte_files, documents, names

VERSION = 1
_MOST_PARTS = 4  # that small files fill which are read together


class File(NamedTuple):
  """A file of a source.

  Attributes:
    path: of it.
    bytes: as it is stored.
    digest: its sha256.
    packages: that read it, see `documents.packages`.
  """

  path: str
  bytes: int
  digest: str
  packages: Sequence[str] = ()


def digest(task: Mapping[str, Any]) -> list[Any]:
  """Hashes a file: {'file'} -> a `File`, as a list."""
  path = task['file']
  size = os.path.getsize(path) if os.path.exists(path) else sys.maxsize
  return [path, size, documents.digest(path), documents.packages(path)]


def groups(files: Sequence[File], part_bytes: int) -> Iterator[list[File]]:
  """Groups files that are read together, so that small ones share parts.

  The hash of a file decides if a group ends with it. So a file more or less
  leaves most groups as they are.
  """
  group: list[File] = []
  size = 0
  for file in files:
    group.append(file)
    size += file.bytes
    draw = int(file.digest[:8], 16) / 2**32
    if draw < file.bytes / part_bytes or size >= _MOST_PARTS * part_bytes:
      yield group
      group, size = [], 0
  if group:
    yield group


def tasks(
  source: str,
  files: Sequence[File],
  settings: documents.Settings,
  part_bytes: int,
  folder: Path,
) -> list[dict[str, Any]]:
  """Lists the tasks that read a source, see `read`.

  Args:
    source: its name.
    files: of the source, in their order.
    settings: how they become documents.
    part_bytes: of text in a part, or one longer document.
    folder: for the parts.
  """
  listed = []
  seen: Counter[str] = Counter()
  for group in groups(files, part_bytes):
    # The suffix says how a file is read, see `documents.records`.
    content = [(x.digest, byte_files.suffix(x.path)) for x in group]
    identity = [
      'read',
      VERSION,
      source,
      content,
      settings._asdict(),
      part_bytes,
      parts.versions(*(name for x in group for name in x.packages)),
    ]
    # The same content twice is read twice: it is for later stages to drop.
    copy = seen[parts.name(identity)]
    seen[parts.name(identity)] += 1
    name = parts.name(*identity, *([copy] if copy else []))
    listed.append(
      {
        'files': [x.path for x in group],
        'digests': [x.digest for x in group],
        'settings': settings._asdict(),
        'part_bytes': part_bytes,
        'output': str(folder / name),
      }
    )
  return listed


def read(task: Mapping[str, Any]) -> dict[str, Any]:
  """Reads files into parts of `stages.DOCUMENTS`: 00000.parquet and so on.

  Args:
    task: {'files', 'digests' (sha256 of each), 'settings' (of
      `documents.Settings`), 'part_bytes', 'output' (folder)}.

  Returns:
    {'pieces': [{'name' (of a file), 'files': [[which of the files, first row of
    it], ...]}, ...], 'counts' (what was read and left out)}

  Raises:
    ValueError: a file has changed, or see `documents.records`.
  """
  output = Path(task['output'])

  def write(folder: Path) -> None:
    settings = documents.Settings(**task['settings'])
    counts: Counter[str] = Counter()
    found = (
      (n, place, text)
      for n, file in enumerate(task['files'])
      for place, text in documents.records(file, settings, counts)
    )
    pieces: list[dict[str, Any]] = []
    for piece in _pieces(found, task['part_bytes']):
      name = f'{len(pieces):05d}.parquet'
      files: dict[int, int] = {}
      first = 0
      with parts.Writer(folder / name, stages.DOCUMENTS) as out:
        for which, batch in piece:
          for row, n in enumerate(which):
            files.setdefault(n, first + row)
          first += len(which)
          out.add(batch)
      pieces.append({'name': name, 'files': [*files.items()]})
    # The part is named by what was there when the files were hashed.
    for file, expected in zip(task['files'], task['digests'], strict=True):
      if documents.digest(file) != expected:
        raise ValueError(
          f'input {names.short(file)}: was changed while it was read; run the '
          'same again'
        )
    about = {'pieces': pieces, 'counts': counts}
    parts.write_json(folder / parts.COUNTS, about)

  parts.make(output, write)
  return json.loads((output / parts.COUNTS).read_text(encoding='utf-8'))


def _pieces(
  records: Iterator[tuple[int, str, str]], part_bytes: int
) -> Iterator[Iterator[tuple[list[int], pa.RecordBatch]]]:
  """Groups records into pieces of batches; each has to be read to its end.

  Args:
    records: (which of the files, place in it, text).
    part_bytes: of text in a piece.

  Yields:
    A piece, which yields its batches, with the file of each row.
  """
  following = next(records, None)
  batch_bytes = min(parts.BATCH_BYTES, part_bytes)

  def piece() -> Iterator[tuple[list[int], pa.RecordBatch]]:
    nonlocal following
    size = rows = 0
    while following and size < part_bytes and rows < parts.ROWS - 1:
      batch: list[tuple[int, str, str]] = []
      weight = 0
      while (
        following
        and weight < batch_bytes
        and (rows + len(batch) < parts.ROWS - 1)
      ):
        batch.append(following)
        # Characters stand for bytes here, and 64 for what a row takes beside
        # its text: it is only about memory.
        weight += len(following[2]) + 64
        following = next(records, None)
      rows += len(batch)
      size += weight
      which, places, texts = map(list, zip(*batch, strict=True))
      yield (
        which,
        stages.batch(
          pa.array([_masked(x) for x in places], pa.string()),
          [stages.Document(x) for x in texts],
        ),
      )

  while following:
    yield piece()


def _masked(place: str) -> str:
  """Masks personal data in the address of a page; other places have none."""
  return personal.mask(place) if '://' in place else place
