"""The first stage: files become parts of documents."""

from collections import Counter
from collections.abc import Iterator, Mapping
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from lm.corpus import parts, stages
from lm.data import documents

VERSION = 1


def digest(task: Mapping[str, Any]) -> dict[str, Any]:
  """Hashes a file: {'file'} -> {'digest'}."""
  return {'digest': documents.digest(task['file'])}


def identity(task: Mapping[str, Any]) -> str:
  """Names the part of a file, see `read`."""
  keys = ('source', 'digest', 'copy', 'settings')
  return parts.name('read', VERSION, *(task[key] for key in keys))


def read(task: Mapping[str, Any]) -> dict[str, Any]:
  """Reads a file into parts of `stages.DOCUMENTS`: 00000.parquet and so on.

  Args:
    task: {'file', 'source', 'digest', 'copy' (0 for the first file of the
      source with this digest), 'settings' (of `documents.Settings`), 'parts'
      (folder)}.

  Returns:
    {'name', 'pieces' (names of files), 'documents', 'bytes', 'counts' (what was
    read and left out)}

  Raises:
    ValueError: see `documents.read`.
  """
  folder = Path(task['parts']) / identity(task)

  def write(part: Path) -> None:
    settings = documents.Settings(**task['settings'])
    counts: Counter[str] = Counter()
    found = documents.records(task['file'], settings, counts)
    pieces: list[dict[str, Any]] = []
    for piece in _pieces(found):
      name = f'{len(pieces):05d}.parquet'
      with parts.Writer(part / name, stages.DOCUMENTS) as out:
        for batch in piece:
          out.add(batch)
      pieces.append({'name': name})
    parts.write_json(part / parts.COUNTS, {'pieces': pieces, 'counts': counts})

  parts.make(folder, write)
  found = json.loads((folder / parts.COUNTS).read_text(encoding='utf-8'))
  return {'name': folder.name, **found}


def _pieces(
  records: Iterator[tuple[str, str]],
) -> Iterator[Iterator[pa.RecordBatch]]:
  """Groups documents into pieces of batches; each has to be read to its end."""
  following = next(records, None)

  def piece() -> Iterator[pa.RecordBatch]:
    nonlocal following
    size = rows = 0
    while following and size < parts.PART_BYTES and rows < parts.ROWS - 1:
      places: list[str] = []
      texts: list[str] = []
      # Characters stand for bytes here: it is only about memory.
      weight = 0
      while following and weight < parts.BATCH_BYTES:
        if rows == parts.ROWS - 1:
          break
        place, text = following
        places.append(place)
        texts.append(text)
        weight += len(text) + 64  # what a row takes beside its text
        rows += 1
        following = next(records, None)
      size += weight
      yield stages.batch(pa.array(places), [stages.Document(x) for x in texts])

  while following:
    yield piece()
