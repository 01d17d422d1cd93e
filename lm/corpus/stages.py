"""Stages of the data factory: what one is, and how functions become one.

A stage is a value that a config names, such as
`{'fn': 'lm.corpus.language:make', 'keep': ('en', 'zh')}`. There are two kinds.
A stage that works on each text alone has a `map`, a pure function of record
batches. A stage that compares texts has `keys`, a pure function which draws a
table of keys from the texts, and `decide`, which finds by queries on these
tables what to drop. Text itself never enters a query.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import operator
from typing import Any, NamedTuple

import pyarrow as pa

from lm.corpus import decisions

_COUNTS = pa.list_(pa.struct([('code', pa.string()), ('count', pa.int64())]))

# A row is a document. It keeps its row when it is dropped.
DOCUMENTS = pa.schema(
  [
    ('place', pa.string()),  # in its file, such as 'line 3'
    ('text', pa.string()),
    ('language', pa.string()),  # ISO 639-1, such as 'en'; '' while unknown
    ('reason', pa.string()),  # code of the rule that drops it; '' keeps it
    ('value', pa.float64()),  # that broke the rule
    ('changes', _COUNTS),  # of the text, by code
    ('counts', _COUNTS),  # of other things seen, by code
  ]
)


class Document(NamedTuple):
  """A document, while a stage works on it.

  Attributes:
    text: of the document.
    language: its ISO 639-1 code, or '' while it is unknown.
    reason: code of the rule that drops it, or '' to keep it.
    value: that broke the rule.
    changes: (code, count) of what was changed in the text.
    counts: (code, count) of what was seen and left.
  """

  text: str
  language: str = ''
  reason: str = ''
  value: float | None = None
  changes: tuple[tuple[str, int], ...] = ()
  counts: tuple[tuple[str, int], ...] = ()


class Stage(NamedTuple):
  """A stage of the factory.

  Attributes:
    name: first part of its reason codes, such as 'quality'.
    version: is raised when its results change.
    settings: that decide on its results, as plain JSON.
    map: record batch of `DOCUMENTS` -> the same rows, changed.
    schema: of the table of keys, beside `part` and `row`.
    keys: record batch of `DOCUMENTS` -> record batch of `row` (int32, row of
      the given batch) and the columns of `schema`; dropped rows have none.
    decide: see `lm.corpus.decisions`; None where there is nothing to decide.
    edit: (batch, places to cut by row of the batch) -> batch. Its stage decides
      on places inside of documents, and later stages see the texts without.
    data: files that decide on its results, beside the settings.
    packages: versions of the outside packages that decide on them, by name; see
      `parts.versions`.
    loses: whether it may drop a document whose text no other one has.
    report: of the tables, once all is decided: plain JSON that the build writes
      as NAME.json; None where there is nothing to write.
  """

  name: str
  version: int
  settings: Mapping[str, Any]
  map: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None
  schema: pa.Schema | None = None
  keys: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None
  decide: Callable[..., str] | None = None
  edit: (
    Callable[[pa.RecordBatch, Mapping[int, list[int]]], pa.RecordBatch] | None
  ) = None
  data: tuple[str, ...] = ()
  packages: Mapping[str, str | None] = {}
  loses: bool = True
  report: Callable[[decisions.Tables], Mapping[str, Any]] | None = None


def documents(batch: pa.RecordBatch) -> list[Document]:
  """Lists the documents of a record batch."""
  columns = [_values(batch.column(name)) for name in Document._fields]
  return [*map(Document._make, zip(*columns, strict=True))]


def _values(column: pa.Array) -> list[Any]:
  """Lists the values of a column as those of a document's field."""
  if column.type != _COUNTS:
    return column.to_pylist()
  if not len(column.flatten()):
    return [()] * len(column)
  return [
    tuple((x['code'], x['count']) for x in found)
    for found in column.to_pylist()
  ]


def batch(places: pa.Array, rows: Sequence[Document]) -> pa.RecordBatch:
  """Makes a record batch of documents.

  Args:
    places: column 'place' of the batch.
    rows: its documents.
  """

  columns = [_column(name, [*x]) for name, x in _by_field(rows)]
  return pa.RecordBatch.from_arrays([places, *columns], schema=DOCUMENTS)


def _by_field(rows: Sequence[Document]) -> Iterator[tuple[str, Sequence[Any]]]:
  """Lists the values of documents by field."""
  values = zip(*rows, strict=True) if rows else ((),) * len(Document._fields)
  yield from zip(Document._fields, values, strict=True)


def _column(name: str, values: Sequence[Any]) -> pa.Array:
  """Makes a column of `DOCUMENTS` of a field's values."""
  kind = DOCUMENTS.field(name).type
  if kind == _COUNTS:
    values = [
      [{'code': code, 'count': count} for code, count in items]
      for items in values
    ]
  return pa.array(values, kind)


def each(
  fn: Callable[[Document], Document],
) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
  """Makes a map of a function of one document; dropped ones are passed over."""

  def run(given: pa.RecordBatch) -> pa.RecordBatch:
    before = documents(given)
    after = [x if x.reason else fn(x) for x in before]
    columns = [given.column('place')]
    for (name, old), (_, new) in zip(
      _by_field(before), _by_field(after), strict=True
    ):
      # Most stages change few fields; a column is kept where all its values
      # are the very same objects.
      is_same = all(map(operator.is_, old, new))
      columns.append(given.column(name) if is_same else _column(name, new))
    return pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS)

  return run
