"""Provenance: which documents of a build hold a text, and what became of them.

Texts are read part by part, in threads and bounded memory; the index of all
documents is read in batches, column by column.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
import contextlib
import functools
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute, dataset, parquet

INDEX = 'documents.parquet'
_ROWS = 512  # texts that a thread has in memory at once
# What Python takes for white space; RE2's \s is less.
_SPACE = r'[\s\x0b\x1c-\x1f\x85\p{Z}]+'


class Record(NamedTuple):
  """A row of a build's documents.parquet; see `lm.corpus`."""

  id: int
  source: str
  file: str
  place: str
  part: str
  row: int
  reason: str
  witness: int | None
  value: float | None
  dataset: str
  number: int | None


class Query(NamedTuple):
  """A text to look for.

  Attributes:
    text: as given.
    loose: whether case does not count, nor how much and which white space is
      between two words.
  """

  text: str
  loose: bool = False

  def match(self, texts: pa.Array) -> pa.Array:
    """Tells which texts hold it."""
    # Stubs do not know the kernels as functions.
    if not self.loose:
      return compute.call_function(
        'match_substring', [texts], compute.MatchSubstringOptions(self.text)
      )
    pattern = _SPACE.join(_escaped(word) for word in self.text.split())
    return compute.call_function(
      'match_substring_regex',
      [texts],
      compute.MatchSubstringOptions(pattern, ignore_case=True),
    )

  def search(self, text: str) -> re.Match[str] | None:
    """Finds where a text holds it first."""
    return self._pattern.search(text)

  @property
  def _pattern(self) -> re.Pattern[str]:
    # `re` keeps compiled patterns.
    if not self.loose:
      return re.compile(re.escape(self.text))
    words = map(re.escape, self.text.split())
    return re.compile(r'\s+'.join(words), re.IGNORECASE)


class Found(NamedTuple):
  """The documents that hold a text.

  Attributes:
    records: the first of them, by id.
    reasons: how many there are, by reason; '' are those that were kept.
  """

  records: list[Record]
  reasons: dict[str, int]


def find(build: Path, query: Query, limit: int, threads: int = 2) -> Found:
  """Finds the documents of a build that hold a text.

  Args:
    build: its folder.
    query: what to look for.
    limit: how many records to return at most.
    threads: that read parts.

  Raises:
    ValueError: the folder is not that of a whole build.
  """
  names = _parts(build)
  with futures.ThreadPoolExecutor(threads) as pool:
    scan = functools.partial(_scan, build, query.match)
    found = zip(names, pool.map(scan, names), strict=True)
    hits = {name: rows for name, rows in found if len(rows)}
  reasons: collections.Counter[str] = collections.Counter()
  records: list[Record] = []
  if hits:
    filter_ = dataset.field('part').isin(list(hits))
    for batch in _read(build, filter_):
      batch = batch.filter(_is_hit(batch, hits))
      reasons.update(batch.column('reason').to_pylist())
      records += _records(batch.slice(0, limit - len(records)))
  return Found(records, dict(sorted(reasons.items())))


def by_id(build: Path, ids: Iterable[int]) -> dict[int, Record]:
  """Reads records by their ids.

  Raises:
    ValueError: the folder is not that of a whole build.
  """
  filter_ = dataset.field('id').isin(sorted(ids))
  return {x.id: x for batch in _read(build, filter_) for x in _records(batch)}


def by_number(
  build: Path, name: str, numbers: Iterable[int]
) -> dict[int, Record]:
  """Reads records by the numbers of documents in one dataset of the build.

  Raises:
    ValueError: the folder is not that of a whole build.
  """
  filter_ = (dataset.field('dataset') == name) & dataset.field('number').isin(
    sorted(numbers)
  )
  found = (x for batch in _read(build, filter_) for x in _records(batch))
  return {x.number: x for x in found if x.number is not None}


def text(build: Path, record: Record) -> str:
  """Reads the text of a document, as the stages of the build left it.

  Raises:
    ValueError: its part is missing or damaged.
  """
  with _one_line(build / 'parts' / record.part):
    file = parquet.ParquetFile(_part(build, record.part))
    row = record.row
    for group in range(file.num_row_groups):
      count = file.metadata.row_group(group).num_rows
      if row < count:
        texts = file.read_row_group(group, columns=['text']).column('text')
        return texts[row].as_py() or ''
      row -= count
  raise ValueError(
    f'{record.part}: has no row {record.row}: run the factory again'
  )


def datasets(build: Path) -> dict[str, Path]:
  """Lists the datasets of a build by their names, such as 'train/web'."""
  found = [*build.glob('*/manifest.json'), *build.glob('*/*/manifest.json')]
  folders = sorted(path.parent for path in found)
  return {x.relative_to(build).as_posix(): x for x in folders}


def _parts(build: Path) -> list[str]:
  """Lists the parts with the texts of a build, in the order of its ids."""
  names: dict[str, None] = {}
  for batch in _read(build, None, ['part']):
    names |= dict.fromkeys(batch.column('part').unique().to_pylist())
  return list(names)


def _scan(
  build: Path, match: Callable[[pa.Array], pa.Array], name: str
) -> np.ndarray:
  """Lists the rows of a part whose texts match: int64, ascending."""
  found, first = [np.zeros(0, np.int64)], 0
  with _one_line(build / 'parts' / name):
    file = parquet.ParquetFile(_part(build, name))
    for batch in file.iter_batches(_ROWS, columns=['text'], use_threads=False):
      hits = compute.fill_null(match(batch.column('text')), False)
      rows = np.flatnonzero(hits.to_numpy(zero_copy_only=False))
      found.append(first + rows)
      first += batch.num_rows
  return np.concatenate(found)


def _part(build: Path, name: str) -> Path:
  return build / 'parts' / name / INDEX


def _is_hit(batch: pa.RecordBatch, hits: Mapping[str, np.ndarray]) -> pa.Array:
  """Tells which rows of the index stand for rows that were found."""
  rows = batch.column('row').to_numpy()
  part = batch.column('part').to_numpy(zero_copy_only=False)
  found = np.zeros(len(rows), bool)
  for name in np.unique(part):
    found |= (part == name) & np.isin(rows, hits[name])
  return pa.array(found)


def _read(
  build: Path,
  filter_: dataset.Expression | None,
  columns: Iterable[str] = Record._fields,
) -> Iterator[pa.RecordBatch]:
  """Yields batches of the index, in the order of ids."""
  path = build / INDEX
  if not path.is_file():
    raise ValueError(
      f'{build}: holds no {INDEX}: give the folder that tools.factory wrote'
    )
  with _one_line(path):
    index = dataset.dataset(path, format='parquet')
    yield from index.to_batches(columns=list(columns), filter=filter_)


def _records(batch: pa.RecordBatch) -> list[Record]:
  return [Record(**row) for row in batch.to_pylist()]


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
  """Turns errors of files of a build into one line."""
  try:
    yield
  except (OSError, pa.ArrowException, KeyError) as error:
    raise ValueError(
      f'{path}: cannot be read ({type(error).__name__}); run the factory again'
    ) from error


def _escaped(word: str) -> str:
  """Quotes a word for RE2, which refuses some of Python's escapes."""
  return re.sub(r'([\\.+*?()|\[\]{}^$])', r'\\\1', word)
