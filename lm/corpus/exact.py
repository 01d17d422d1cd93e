"""Exact duplicates: of documents, paragraphs and lines.

Texts are compared by their words, see `texts.Text.words`: so case, punctuation
and the places of line breaks do not count. The first document with a text stays
and the others are dropped. Of paragraphs and lines the first occurrence stays
and the others are cut from their documents, as in CCNet (Wenzek et al. 2020,
section 3.1) and Dolma (Soldaini et al. 2024, section 5.1), which keep none or
one at random.

Cuts come before later stages see the texts. So if a later stage drops the
document that has the first occurrence of a paragraph, no document has it any
more: put stages that drop documents before. A build warns of those behind.
"""

from collections.abc import Mapping
import hashlib
import re

import numpy as np
import pyarrow as pa

from lm.corpus import decisions, stages, texts

UNITS = ('document', 'paragraph', 'line')
_BREAK = re.compile(r'(\n[^\S\n]*\n\s*)')  # an empty line or several
_PLACES = 1 << 20  # paragraphs or lines of a document that are compared
_KEY = [('high', pa.int64()), ('low', pa.int64())]  # 128 bits


def make(unit: str = 'document', least_words: int = 0) -> stages.Stage:
  """Makes the stage.

  Args:
    unit: what is compared: 'document', 'paragraph' or 'line'.
    least_words: of a paragraph or line that is compared; shorter ones, such as
      headings, stay.

  Raises:
    ValueError: the unit is unknown.
  """
  if unit not in UNITS:
    raise ValueError(f'unit={unit!r} must be one of {", ".join(UNITS)}')
  is_whole = unit == 'document'
  name = 'exact' if is_whole else f'exact_{unit}'
  places = [] if is_whole else [('place', pa.int64())]

  def keys(batch: pa.RecordBatch) -> pa.RecordBatch:
    return _keys(batch, unit, least_words)

  def edit(batch: pa.RecordBatch, cuts: Mapping[int, list[int]]):
    return _edit(batch, unit, cuts)

  return stages.Stage(
    name,
    2,
    {'unit': unit, 'least_words': least_words},
    schema=pa.schema([*places, *_KEY]),
    keys=keys,
    decide=_decide_documents if is_whole else _decide_places(name),
    edit=None if is_whole else edit,
    loses=False,
  )


def _pieces(text: str, unit: str) -> list[str]:
  """Cuts a text into its units and, at odd places, what lies between them."""
  return re.split('(\n)' if unit == 'line' else _BREAK, text)


def _keys(batch: pa.RecordBatch, unit: str, least: int) -> pa.RecordBatch:
  """Hashes the words of the units of each document that is kept."""
  rows: list[int] = []
  places: list[int] = []
  digests: list[bytes] = []
  given = zip(
    batch.column('text').to_pylist(),
    batch.column('reason').to_pylist(),
    strict=True,
  )
  for row, (text, reason) in enumerate(given):
    if reason:
      continue
    if unit == 'document':
      views = [texts.view(text)]
    else:
      views = [texts.Text(x) for x in _pieces(text, unit)[::2][:_PLACES]]
    for place, view in enumerate(views):
      if unit == 'document':
        data = _content(view)
      elif len(view.words) >= max(least, 1):
        data = ' '.join(view.words).encode()
      else:
        continue
      digests.append(hashlib.blake2b(data, digest_size=16).digest())
      rows.append(row)
      places.append(place)
  halves = np.frombuffer(b''.join(digests), '<i8').reshape(-1, 2)
  columns = [pa.array(rows, pa.int32())]
  names = ['row', 'high', 'low']
  if unit != 'document':
    columns.append(pa.array(places, pa.int64()))
    names.insert(1, 'place')
  columns += [pa.array(halves[:, n].copy()) for n in (0, 1)]
  return pa.RecordBatch.from_arrays(columns, names=names)


def _content(view: texts.Text) -> bytes | memoryview:
  """Returns what documents are compared by."""
  if not len(view.hashes):  # no words: by what they have
    return view.text.encode()
  if len(view.text) > texts.BLOCK and view.lengths.max() > texts.BLOCK:
    return ' '.join(view.words).encode()
  # Rules and other keys need the hashes too; a list of words takes longer.
  return view.hashes.astype('<u8', copy=False).data


def _decide_documents(tables: decisions.Tables, keys: str) -> str:
  """Drops a document if an earlier one has its key."""
  # Not by windows: DuckDB keeps half a GB a thread for them (duckdb#7808).
  first = tables.query(
    'exact_first',
    f'SELECT high, low, min(id) AS id FROM {keys} GROUP BY high, low '
    'HAVING count(*) > 1',
  )
  return tables.query(
    'exact_drops',
    'SELECT k.id AS id, f.id AS witness, CAST(NULL AS DOUBLE) AS value '
    f'FROM {keys} k JOIN {first} f ON k.high = f.high AND k.low = f.low '
    'WHERE f.id < k.id',
  )


def _decide_places(name: str):
  """Makes the decision about paragraphs or lines."""

  def decide(tables: decisions.Tables, keys: str) -> str:
    at = f'id * {_PLACES} + place'  # orders all units of all documents
    first = tables.query(
      f'{name}_first',
      f'SELECT high, low, min({at}) AS place FROM {keys} GROUP BY high, low '
      'HAVING count(*) > 1',
    )
    return tables.query(
      f'{name}_cuts',
      f'SELECT k.id AS id, k.place AS place FROM {keys} k JOIN {first} f '
      'ON k.high = f.high AND k.low = f.low '
      f'WHERE f.place < k.id * {_PLACES} + k.place',
    )

  return decide


def _edit(
  batch: pa.RecordBatch, unit: str, cuts: Mapping[int, list[int]]
) -> pa.RecordBatch:
  """Cuts units from texts; what is left without words is dropped."""
  rows = stages.documents(batch)
  code = f'exact_{unit}.cut'
  for row, places in cuts.items():
    document = rows[row]
    pieces = _pieces(document.text, unit)
    cut = {2 * place for place in places}
    # With the break after it, so that no empty lines are left.
    cut |= {n + 1 for n in cut}
    text = ''.join(x for n, x in enumerate(pieces) if n not in cut)
    is_empty = not texts.Text(text).words
    rows[row] = document._replace(
      text=document.text if is_empty else text,
      reason=f'exact_{unit}.all' if is_empty else document.reason,
      changes=(*document.changes, (code, len(places))),
    )
  return stages.batch(batch.column('place'), rows)
