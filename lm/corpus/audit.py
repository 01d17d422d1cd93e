"""The audit of a build: what was read, changed, dropped and kept, and why.

It says nothing of times and machines, so that the same build gives the same
audit.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import heapq
from typing import Any

import numpy as np
import pyarrow as pa

from lm.corpus import index, maps, parts, personal, tables

NAME = 'audit.json'
_EXAMPLES = 10  # a reason
_EXCERPT = 300  # characters
# Masked before the excerpt is cut, since half of an address is not found. The
# longest key has less.
_MASKED = 50_000
_SUMS = (
  'count(*) AS documents, CAST(sum(f.bytes) AS BIGINT) AS bytes, '
  'CAST(sum(f.characters) AS BIGINT) AS characters'
)


def make(
  built: tables.Tables,
  pieces: Sequence[index.Piece],
  drops: index.Drops,
  tokens: Mapping[tuple[str, str], int],
) -> dict[str, Any]:
  """Counts everything by source.

  Args:
    built: tables of the build.
    pieces: its parts.
    drops: what stages have decided.
    tokens: written to each (dataset, source).

  Returns:
    JSON: {'sources': {name: {'documents', 'bytes', 'characters', 'kept' (the
    same), 'dropped' (the same by reason), 'languages', 'changes', 'counts',
    'lengths' (documents by reason, and by the power of two below their
    characters), 'tokens' (by dataset)}}, 'witnesses_dropped' (by reason),
    'examples' (by reason)}
  """
  _name_tables(built, pieces, drops)
  names = sorted({x.source for x in pieces})
  sources: dict[str, Any] = {name: empty() for name in names}
  _count_documents(built, sources)
  _count_changes(built, sources)
  for (dataset, source), count in tokens.items():
    sources[source]['tokens'][dataset] = count
  return {
    'sources': sources,
    'witnesses_dropped': _witnesses_dropped(drops),
    'examples': _examples(pieces, drops),
  }


def _count_documents(built: tables.Tables, sources: dict[str, Any]) -> None:
  """Counts documents by reason, by language and by length."""
  for source, reason, documents, size, characters in _rows(
    built,
    'audit_reasons',
    f'SELECT f.source AS source, f.reason AS reason, {_SUMS} '
    'FROM audited f GROUP BY f.source, f.reason',
  ):
    sums = {'documents': documents, 'bytes': size, 'characters': characters}
    about = sources[source]
    for key, value in sums.items():
      about[key] += value
    if reason:
      about['dropped'][reason] = sums
    else:
      about['kept'] = sums
  for source, language, documents, size in _rows(
    built,
    'audit_languages',
    'SELECT f.source AS source, f.language AS language, count(*) AS documents, '
    'CAST(sum(f.bytes) AS BIGINT) AS bytes FROM audited f '
    "WHERE f.reason = '' "
    'GROUP BY f.source, f.language',
  ):
    found = {'documents': documents, 'bytes': size}
    sources[source]['languages'][language or 'unknown'] = found
  for source, reason, power, documents in _rows(
    built,
    'audit_lengths',
    'SELECT f.source AS source, f.reason AS reason, '
    'CAST(floor(log2(greatest(f.characters, 1))) AS BIGINT) AS power, '
    'count(*) AS documents FROM audited f GROUP BY f.source, f.reason, '
    'CAST(floor(log2(greatest(f.characters, 1))) AS BIGINT)',
  ):
    lengths = sources[source]['lengths'].setdefault(reason or 'kept', {})
    lengths[str(2**power)] = documents


def _count_changes(built: tables.Tables, sources: dict[str, Any]) -> None:
  """Counts what was changed in texts, and what was seen and left."""
  for source, is_change, code, documents, count in _rows(
    built,
    'audit_changes',
    'SELECT p.source AS source, c.is_change AS is_change, c.code AS code, '
    'count(DISTINCT p.first + c.row) AS documents, '
    'CAST(sum(c.count) AS BIGINT) AS times '
    'FROM changes c JOIN parts p ON c.part = p.part '
    'GROUP BY p.source, c.is_change, c.code',
  ):
    found = {'documents': documents, 'times': count}
    sources[source]['changes' if is_change else 'counts'][code] = found


def empty() -> dict[str, Any]:
  """Returns the counts of a source without documents."""
  none = {'documents': 0, 'bytes': 0, 'characters': 0}
  names = ('dropped', 'languages', 'changes', 'counts', 'lengths', 'tokens')
  return {**none, 'kept': {**none}, **{x: {} for x in names}}


def _name_tables(
  built: tables.Tables, pieces: Sequence[index.Piece], drops: index.Drops
) -> None:
  """Names what the queries read."""
  built.files('facts', [x.folder / parts.FACTS for x in pieces])
  built.files('changes', [x.folder / maps.CHANGES for x in pieces])
  reasons = pa.array(drops.reasons, pa.string())
  dropped = built.add('dropped', pa.table({'id': drops.ids, 'reason': reasons}))
  facts = built.view(
    'facts_with_ids',
    'SELECT p.first + f.row AS id, p.source AS source, f.reason AS reason, '
    'f.language AS language, f.bytes AS bytes, f.characters AS characters '
    'FROM facts f JOIN parts p ON f.part = p.part',
  )
  built.view(
    'audited',
    'SELECT f.id AS id, f.source AS source, '
    'coalesce(d.reason, f.reason) AS reason, f.language AS language, '
    f'f.bytes AS bytes, f.characters AS characters FROM {facts} f '
    f'LEFT JOIN {dropped} d ON f.id = d.id',
  )


def _rows(
  built: tables.Tables, name: str, sql: str
) -> Iterator[tuple[Any, ...]]:
  """Reads the rows of a query, sorted.

  Sums must be cast: engines give them other types.
  """
  table = built.read(built.query(name, sql))
  yield from zip(*(x.to_pylist() for x in table.columns), strict=True)


def _witnesses_dropped(drops: index.Drops) -> dict[str, int]:
  """Counts the drops, by reason, whose witness was dropped too."""
  is_gone = np.isin(drops.witnesses, drops.ids)
  reasons, counts = np.unique(
    drops.reasons[is_gone].astype(str), return_counts=True
  )
  return dict(zip(reasons.tolist(), counts.tolist(), strict=True))


def _examples(
  pieces: Sequence[index.Piece], drops: index.Drops
) -> dict[str, list[dict[str, Any]]]:
  """Chooses documents of each reason by their hash; shows how they begin."""
  chosen: dict[str, list[tuple[int, int, float]]] = {}
  for piece in pieces:
    facts = index.facts(piece)
    reasons = np.asarray(facts.column('reason').to_pylist(), object)
    values = facts.column('value').to_numpy().copy()
    dropped = drops.of(piece)
    at = dropped.ids - piece.first
    reasons[at] = dropped.reasons
    values[at] = dropped.values
    draws = facts.column('draw').to_numpy()
    for row in np.flatnonzero(reasons.astype(bool)).tolist():
      heap = chosen.setdefault(reasons[row], [])
      # The smallest stay, and of equal ones the first.
      entry = (-int(draws[row]), -piece.first - row, float(values[row]))
      if len(heap) < _EXAMPLES:
        heapq.heappush(heap, entry)
      else:
        heapq.heappushpop(heap, entry)
  ids = {-x for heap in chosen.values() for _, x, _ in heap}
  witnesses = {x: w for x in ids if (w := _witness(drops, x)) is not None}
  excerpts = _excerpts(pieces, ids | {*witnesses.values()})

  def example(number: int, value: float) -> dict[str, Any]:
    result: dict[str, Any] = {
      'id': number,
      'source': pieces[number >> parts.ROW_BITS].source,
      'value': None if np.isnan(value) else value,
      'text': excerpts[number],
    }
    if number in witnesses:
      result['witness'] = witnesses[number]
      result['witness_text'] = excerpts[witnesses[number]]
    return result

  return {
    reason: [example(-x, value) for _, x, value in sorted(heap, reverse=True)]
    for reason, heap in sorted(chosen.items())
  }


def _witness(drops: index.Drops, number: int) -> int | None:
  """Returns the id of the document that another was dropped for."""
  at = int(np.searchsorted(drops.ids, number))
  if at == len(drops.ids) or drops.ids[at] != number:
    return None
  witness = int(drops.witnesses[at])
  return witness if witness >= 0 else None


def _excerpts(
  pieces: Sequence[index.Piece], ids: Iterable[int]
) -> dict[int, str]:
  """Reads how documents begin, with their personal data masked."""
  by_piece: dict[int, list[int]] = {}
  for number in sorted(ids):
    rows = by_piece.setdefault(number >> parts.ROW_BITS, [])
    rows.append(number % parts.ROWS)
  result = {}
  for n, rows in by_piece.items():
    # A piece's texts are read in one go: each of its row groups once.
    texts = maps.text_rows(pieces[n].folder / parts.DOCUMENTS, rows)
    for row, text in zip(rows, texts, strict=True):
      masked = personal.mask(text[:_MASKED])[:_EXCERPT]
      result[(n << parts.ROW_BITS) + row] = masked
  return result
