"""Near duplicates: MinHash proposes pairs of documents, and Jaccard decides.

A document is the set of its 5-grams of words (of characters, in Chinese). Two
documents are near duplicates if the Jaccard similarity of their sets reaches
the threshold. MinHash with 25 bands of 5 rows proposes pairs that share a band,
which a pair of similarity J does with probability 1 - (1 - J^5)^25: 0.99 at 0.7
and 0.17 at 0.37 (Broder 1997; Leskovec et al. 2020, Mining of Massive Datasets,
section 3.4). Every proposed pair is verified on the whole sets, so that no
document is dropped for a pair below the threshold. Of each band only the first
document is compared with the others.

A document is dropped only if an earlier one is verified. That one, its witness,
may have been dropped for a still earlier one; the audit counts such drops.
Peers (datatrove, NeMo Curator) drop all but one of each connected component
instead, where the ends of a chain may have nothing in common.
"""

from collections.abc import Mapping, Sequence
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lm import errors, splitmix
from lm.corpus import decisions, maps, parts, stages, texts

BANDS, BAND_ROWS = 25, 5
SHINGLE = 5  # words
_SEED = 42
_BASE = np.uint64(splitmix.STEP)


def make(threshold: float = 0.7) -> stages.Stage:
  """Makes the stage.

  Args:
    threshold: least Jaccard similarity of near duplicates, from 0.5 to 1; below
      that, 25 bands of 5 propose too few of the pairs.

  Raises:
    ValueError: the threshold is out of range.
    errors.Failure: a package is not installed.
  """
  if not 0.5 <= threshold <= 1:
    raise ValueError(f'threshold={threshold} must be from 0.5 to 1')
  _min_hash()

  def decide(tables: decisions.Tables, keys: str) -> str:
    return _decide(tables, keys, threshold)

  return stages.Stage(
    'near',
    2,
    {'threshold': threshold},
    schema=pa.schema([('band', pa.int64())]),
    keys=band_keys,
    decide=decide,
    packages=parts.versions('rensa'),
  )


def _min_hash() -> Any:
  try:
    return importlib.import_module('rensa').RMinHash
  except ModuleNotFoundError as e:
    raise errors.Failure(
      f'near duplicates need rensa, which is not installed: '
      f'{errors.install("data")}'
    ) from e


def shingles(words: np.ndarray) -> np.ndarray:
  """Hashes the 5-grams of words; fewer than five words are one.

  Args:
    words: uint64 [W], hashes of the words of a text; at least one.

  Returns:
    uint64 [max(1, W - 4)].
  """
  count = max(1, len(words) - SHINGLE + 1)
  result = words[:count].copy()
  for n in range(1, min(SHINGLE, len(words))):
    result *= _BASE
    result += words[n : n + count]
  return splitmix.mix(result)


def bands(hashed: Sequence[np.ndarray]) -> np.ndarray:
  """Makes the keys of the bands of documents.

  Args:
    hashed: uint64 [n] of each of D documents, see `shingles`.

  Returns:
    int64 [D, 25]; the number of the band is in the key.
  """
  ends = np.cumsum([0, *map(len, hashed)]).astype(np.uint64)
  matrix = _min_hash().digest_matrix_from_flat_token_hashes(
    np.concatenate(hashed), ends, BANDS * BAND_ROWS, _SEED
  )
  digests = np.asarray(matrix.to_rows(), np.uint64)
  digests = digests.reshape(-1, BANDS, BAND_ROWS)
  keys = np.zeros(digests.shape[:2], np.uint64)
  for row in range(BAND_ROWS):
    keys = splitmix.mix(keys + digests[:, :, row] + np.uint64(row))
  keys = splitmix.mix(keys + np.arange(BANDS, dtype=np.uint64))
  return (keys >> np.uint64(1)).astype(np.int64)


def band_keys(batch: pa.RecordBatch) -> pa.RecordBatch:
  """Makes the keys of a batch: 25 rows for each document that is kept."""
  rows, hashed = [], []
  for row, (text, reason) in enumerate(
    zip(
      batch.column('text').to_pylist(),
      batch.column('reason').to_pylist(),
      strict=True,
    )
  ):
    if not reason and len(words := texts.view(text).hashes):
      rows.append(row)
      hashed.append(shingles(words))
  keys = bands(hashed) if rows else np.zeros((0, BANDS), np.int64)
  return pa.RecordBatch.from_arrays(
    [
      pa.array(np.repeat(np.asarray(rows, np.int32), BANDS)),
      pa.array(keys.reshape(-1)),
    ],
    names=['row', 'band'],
  )


def _decide(tables: decisions.Tables, keys: str, threshold: float) -> str:
  """Finds pairs that share a band, and verifies them."""
  first = tables.query(
    'near_first',
    f'SELECT band, min(id) AS id FROM {keys} GROUP BY band HAVING count(*) > 1',
  )
  candidates = tables.query(
    'near_candidates',
    f'SELECT DISTINCT f.id AS a, k.id AS b FROM {keys} k '
    f'JOIN {first} f ON k.band = f.band WHERE f.id < k.id',
  )
  pairs = tables.read(candidates)
  a, b = (pairs.column(x).to_numpy() for x in ('a', 'b'))
  similarity = _verify(tables, a, b)
  verified = tables.add(
    'near_verified',
    pa.table({'a': a, 'b': b, 'similarity': similarity}).filter(
      pa.array(similarity >= threshold)
    ),
  )
  earliest = tables.query(
    'near_earliest', f'SELECT b, min(a) AS a FROM {verified} GROUP BY b'
  )
  return tables.query(
    'near_drops',
    f'SELECT v.b AS id, v.a AS witness, v.similarity AS value FROM {verified} '
    f'v JOIN {earliest} e ON v.a = e.a AND v.b = e.b',
  )


def _verify(
  tables: decisions.Tables, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
  """Computes the Jaccard similarity of pairs of documents.

  First the sets of all documents of a pair are written, part by part. Then the
  pairs are compared, by the part of their later document.

  Args:
    tables: of the build.
    a: int64 [P], ids of the earlier documents.
    b: int64 [P], ids of the later documents.

  Returns:
    float64 [P].
  """
  listed = tables.text_parts()
  firsts = np.asarray([first for first, _ in listed], np.int64)
  ids = np.unique(np.concatenate([a, b]))
  places = np.searchsorted(firsts, ids, 'right') - 1
  folders: dict[int, str] = {}
  for n in np.unique(places).tolist():
    rows = (ids[places == n] - firsts[n]).tolist()
    part = Path(listed[n][1]).parent.name
    folders[n] = tables.folder('near sets', SHINGLE, part, rows)
  tasks = [
    {
      'documents': listed[n][1],
      'rows': (ids[places == n] - firsts[n]).tolist(),
      'output': folder,
    }
    for n, folder in folders.items()
  ]
  for _ in tables.run(write_sets, tasks):
    pass
  later = np.searchsorted(firsts, b, 'right') - 1
  earlier = np.searchsorted(firsts, a, 'right') - 1
  result = np.zeros(len(a))
  groups = np.unique(later).tolist()
  tasks, chosen = [], []
  for n in groups:
    pairs = np.flatnonzero(later == n)
    used = np.unique(earlier[pairs]).tolist()
    task = {
      'later': folders[n],
      'rows': (b[pairs] - firsts[n]).tolist(),
      'earlier': [folders[m] for m in used],
      'sets': np.searchsorted(used, earlier[pairs]).tolist(),
      'earlier_rows': (a[pairs] - firsts[earlier[pairs]]).tolist(),
    }
    task['output'] = tables.folder('near pairs', 1, _without_place(task))
    tasks.append(task)
    chosen.append(pairs)
  for pairs, output in zip(chosen, tables.run(compare, tasks), strict=True):
    result[pairs] = np.load(Path(output) / 'similarity.npy')
  return result


def _without_place(task: Mapping[str, Any]) -> dict[str, Any]:
  """Describes a task by names of parts, wherever they lie."""
  return {
    **task,
    'later': Path(task['later']).name,
    'earlier': [Path(x).name for x in task['earlier']],
  }


def write_sets(task: Mapping[str, Any]) -> str:
  """Writes the sets of 5-grams of some documents of a part.

  Args:
    task: {'documents' (path of their table), 'rows', 'output' (folder)}.
  """

  def write(folder: Path) -> None:
    ends = [0]
    with (folder / 'hashes').open('wb') as out:
      for text in maps.text_rows(Path(task['documents']), task['rows']):
        hashes = np.unique(shingles(texts.Text(text).hashes))
        out.write(hashes.tobytes())
        ends.append(ends[-1] + len(hashes))
    np.save(folder / 'rows.npy', np.asarray(task['rows'], np.int64))
    np.save(folder / 'ends.npy', np.asarray(ends, np.int64))

  return str(parts.make(Path(task['output']), write))


class _Sets:
  """Reads sets that `write_sets` wrote, one at a time."""

  def __init__(self, folder: str):
    self._rows = np.load(Path(folder) / 'rows.npy')
    self._ends = np.load(Path(folder) / 'ends.npy')
    # Not memory-mapped: pages that were read would count as memory.
    self._file = (Path(folder) / 'hashes').open('rb', buffering=0)

  def read(self, row: int) -> np.ndarray:
    n = int(np.searchsorted(self._rows, row))
    begin, end = self._ends[n : n + 2].tolist()
    data = os.pread(self._file.fileno(), 8 * (end - begin), 8 * begin)
    return np.frombuffer(data, np.uint64)

  def __enter__(self) -> '_Sets':
    return self

  def __exit__(self, *unused: object) -> None:
    self._file.close()


def compare(task: Mapping[str, Any]) -> str:
  """Computes the similarity of the pairs whose later document is of a part.

  Args:
    task: {'later' (sets of that part), 'rows' (in it), 'earlier' (sets of other
      parts), 'sets' (which of these, for every pair), 'earlier_rows' (in it),
      'output' (folder)}.
  """

  def write(folder: Path) -> None:
    result = np.zeros(len(task['rows']))
    which = np.asarray(task['sets'], np.int64)
    with _Sets(task['later']) as later:
      # One part after another, so that few files are open.
      for n, place in enumerate(task['earlier']):
        with _Sets(place) as earlier:
          for pair in np.flatnonzero(which == n).tolist():
            row, other = task['rows'][pair], task['earlier_rows'][pair]
            result[pair] = jaccard(earlier.read(other), later.read(row))
    np.save(folder / 'similarity.npy', result)

  return str(parts.make(Path(task['output']), write))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
  """Computes the Jaccard similarity of two sets, as sorted arrays."""
  both = np.concatenate([a, b])
  both.sort(kind='stable')  # which merges what is sorted
  shared = np.count_nonzero(both[1:] == both[:-1])
  return shared / (len(a) + len(b) - shared)
