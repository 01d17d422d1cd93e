"""The index of a build: where every document is, and what became of it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lm.corpus import encode, parts
from lm.runtime import logins

NAME = 'documents.parquet'
SCHEMA = pa.schema(
  [
    ('id', pa.int64()),
    ('source', pa.string()),
    ('file', pa.string()),
    ('place', pa.string()),  # in the file
    ('part', pa.string()),  # with the text
    ('row', pa.int32()),  # in the part
    ('reason', pa.string()),  # '' if kept
    ('witness', pa.int64()),  # id of the earlier document, or null
    ('value', pa.float64()),  # that broke the rule, or null
    ('dataset', pa.string()),  # '' if dropped
    ('number', pa.int64()),  # of the document in the dataset, or null
  ]
)


class Piece(NamedTuple):
  """A part of documents, from its source to its text.

  Attributes:
    source: its name.
    files: of the source that the part was read from.
    starts: (which of the files, its first row), ascending.
    path: of the table of documents, before any stage.
    part: number in tables.
    first: id of its first document.
    folder: with its text and keys, after the last pass.
  """

  source: str
  files: Sequence[str]
  starts: Sequence[tuple[int, int]]
  path: Path
  part: int
  first: int
  folder: Path


class Drops(NamedTuple):
  """Documents that stages have decided to drop, sorted by id.

  Attributes:
    ids: int64 [D].
    reasons: [D].
    witnesses: int64 [D], ids of earlier documents, or -1.
    values: float64 [D], or nan.
  """

  ids: np.ndarray
  reasons: np.ndarray
  witnesses: np.ndarray
  values: np.ndarray

  def of(self, piece: Piece) -> 'Drops':
    """Selects those of a part."""
    ends = np.searchsorted(self.ids, (piece.first, piece.first + parts.ROWS))
    return Drops(*(x[slice(*ends)] for x in self))


def facts(piece: Piece) -> pa.Table:
  """Reads the facts of a part, in the order of its documents."""
  return pa.Table.from_batches(parts.batches(piece.folder / parts.FACTS))


def kept(piece: Piece, drops: Drops) -> list[int]:
  """Lists the rows of a part that no stage drops."""
  reasons = facts(piece).column('reason').to_pylist()
  gone = set((drops.of(piece).ids - piece.first).tolist())
  return [n for n, x in enumerate(reasons) if not x and n not in gone]


def write(
  path: Path,
  pieces: Sequence[Piece],
  drops: Drops,
  encoded: Mapping[int, Path],
  datasets: Mapping[tuple[str, str], str],
) -> None:
  """Writes the index, whole or not at all.

  Args:
    path: of the file.
    pieces: parts of the build, in their order.
    drops: what stages have decided.
    encoded: folders of `encode.run`, by the first id of their part.
    datasets: names of datasets by (side of the split, source).
  """
  part = path.with_name(f'.{path.name}.unfinished')
  with parts.Writer(part, SCHEMA) as out:
    for batch in _batches(pieces, drops, encoded, datasets):
      out.add(batch)
  part.replace(path)


def _batches(
  pieces: Sequence[Piece],
  drops: Drops,
  encoded: Mapping[int, Path],
  datasets: Mapping[tuple[str, str], str],
) -> Iterator[pa.RecordBatch]:
  written = dict.fromkeys(datasets.values(), 0)
  for piece in pieces:
    about = facts(piece)
    count = len(about)
    rows = np.arange(count)
    reasons = np.asarray(about.column('reason').to_pylist(), object)
    values = about.column('value').to_numpy()
    witnesses = np.full(count, -1)
    dropped = drops.of(piece)
    at = dropped.ids - piece.first
    reasons[at] = dropped.reasons
    witnesses[at] = dropped.witnesses
    values = values.copy()
    values[at] = dropped.values
    names = np.full(count, '', object)
    numbers = np.full(count, -1)
    # The last side first: a document that is cut in two is listed by the side
    # that has its beginning.
    sides = [side for side, source in datasets if source == piece.source]
    for side in sides[::-1]:
      chosen = encode.rows(encoded[piece.first], side)
      name = datasets[side, piece.source]
      names[chosen] = name
      numbers[chosen] = written[name] + np.arange(len(chosen))
      written[name] += len(chosen)
    starts = np.asarray([start for _, start in piece.starts])
    files = [logins.hidden(piece.files[n]) for n, _ in piece.starts]
    which = np.searchsorted(starts, rows, 'right') - 1
    places = pa.Table.from_batches(
      parts.batches(piece.folder / parts.DOCUMENTS, ['place'])
    )
    yield pa.RecordBatch.from_arrays(
      [
        pa.array(piece.first + rows),
        pa.array([piece.source] * count),
        pa.array([files[n] for n in which]),
        places.column('place').combine_chunks(),
        pa.array([piece.folder.name] * count),
        pa.array(rows.astype(np.int32)),
        pa.array(reasons, pa.string()),
        pa.array(witnesses, mask=witnesses < 0),
        pa.array(values, mask=np.isnan(values)),
        pa.array(names, pa.string()),
        pa.array(numbers, mask=numbers < 0),
      ],
      schema=SCHEMA,
    )
