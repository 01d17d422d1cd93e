"""Certifies how free a corpus is of evaluation items: contamination.json.

  {"version": 1, "settings": {...},
   "files": {SHA256: {"set": "arc_easy", "file": "arc_easy/test.jsonl",
     "items": 2376, "unchecked": {"too_short": 27, "boilerplate": 0},
     "flagged": {"arc_easy/Mercury_417466": 3},
     "recall": {"verbatim": {"found": 199, "of": 200, "share": 0.995,
                             "interval": [0.97, 0.999]}, ...}}},
   "false_positives": {"web_demo/c4_demo.jsonl": {"found": 0, "of": 300, ...}}}

A file of an evaluation set is known by the hash of its bytes. `flagged` are the
items that documents held, with the number of these documents, which the corpus
no longer has. `unchecked` items can be found by no means of the stage: they are
too short, or what they say is said in many other places. Recall is that of the
other items: a sample of the set's own, perturbed, put into other text and
sought by the queries that searched the corpus. Intervals are Wilson's at 95 %.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lm.corpus import decisions, item_grams, item_matches, perturbations
from lm.data import documents

_HOSTS = 200  # texts into which items are put
_LONGEST_HOST = 4_000  # characters
_LONGEST_CLEAN = 20_000  # characters; a longer text counts as several
_Z = 1.959964  # 95 % of a normal distribution
_Found = tuple[np.ndarray, np.ndarray]  # number of a text, gram


class _Injection(NamedTuple):
  """Items of a file that are sought in other text.

  Attributes:
    file: number of the file.
    name: of the perturbation.
    items: their numbers.
    first: number of the first text.
  """

  file: int
  name: str
  items: list[int]
  first: int


def report(
  settings: item_matches.Settings,
  clean: Sequence[str],
  sample: int,
  tables: decisions.Tables,
) -> Mapping[str, Any]:
  """Makes the certificate after `contamination.decide`.

  Args:
    settings: of the stage.
    clean: see `contamination.make`.
    sample: see `contamination.make`.
    tables: of the build.

  Raises:
    ValueError: a file cannot be used.
  """
  loaded = item_matches.load(settings)
  flagged = Counter(_column(tables, item_matches.FLAGGED, 'item'))
  checked = {*_column(tables, item_matches.COUNTED, 'item')}
  long_enough = {probe.item for probe in loaded.probes}
  common = long_enough - checked
  paths = documents.find(clean) if clean else []
  recall = _recall(settings, tables, checked, sample, paths)
  files, first = {}, 0
  for n, (name, file) in enumerate(loaded.files):
    numbers = range(first, first + len(file.items))
    first += len(file.items)
    files[file.sha256] = {
      'set': name,
      'file': '/'.join(Path(file.path).parts[-2:]),
      'items': len(numbers),
      'unchecked': {
        'too_short': sum(i not in long_enough for i in numbers),
        'boilerplate': sum(i in common for i in numbers),
      },
      'flagged': {
        loaded.items[i].id: flagged[i] for i in numbers if i in flagged
      },
      'recall': recall[n],
    }
  return {
    'version': 1,
    'settings': {
      key: value for key, value in settings._asdict().items() if key != 'sets'
    },
    'files': files,
    'false_positives': _false_positives(settings, tables, paths),
  }


def share(found: int, total: int) -> dict[str, Any]:
  """Describes a share with its interval.

  Reference: Wilson 1927, JASA 22(158).
  """
  p, square = found / total, _Z**2 / total
  middle = (p + square / 2) / (1 + square)
  half = math.sqrt(square * (p * (1 - p) + square / 4)) / (1 + square)
  return {
    'found': found,
    'of': total,
    'share': round(p, 6),
    'interval': [
      round(max(middle - half, 0.0), 6),
      round(min(middle + half, 1.0), 6),
    ],
  }


def _recall(
  settings: item_matches.Settings,
  tables: decisions.Tables,
  checked: set[int],
  sample: int,
  clean: Sequence[str],
) -> list[dict[str, Any]]:
  """Measures the recall of each file by perturbation."""
  loaded = item_matches.load(settings)
  hosts = _hosts(clean, tables)
  tasks, first, texts = [], 0, 0
  for n, (_, file) in enumerate(loaded.files):
    own = [i for i in range(first, first + len(file.items)) if i in checked]
    first += len(file.items)
    rng = np.random.default_rng(int(file.sha256[:16], 16))
    drawn = sorted(rng.choice(own, min(sample, len(own)), False).tolist())
    for name in perturbations.PERTURBATIONS:
      items = [i for i in drawn if perturbations.applies(name, loaded.items[i])]
      if items:
        tasks.append(_Injection(n, name, items, texts))
        texts += len(items)
  grams = tables.add(
    f'{item_matches.STAGE}_injected',
    _table(tables.run(_injected, [(settings, task, hosts) for task in tasks])),
  )
  found = tables.read(
    item_matches.flag(settings, tables, grams, f'{item_matches.STAGE}_recalled')
  )
  pairs = {(row['id'], row['item']) for row in found.to_pylist()}
  result: list[dict[str, Any]] = [{} for _ in loaded.files]
  for task in tasks:
    hits = sum((task.first + n, i) in pairs for n, i in enumerate(task.items))
    result[task.file][task.name] = share(hits, len(task.items))
  return result


def _injected(
  task: tuple[item_matches.Settings, _Injection, Sequence[str]],
) -> _Found:
  """Finds the grams of perturbed items in their texts."""
  settings, injection, hosts = task
  loaded = item_matches.load(settings)
  rng = np.random.default_rng(injection.first)
  return _find(
    loaded.grams,
    (
      perturbations.inject(injection.name, loaded.items[i], hosts, rng)
      for i in injection.items
    ),
    injection.first,
  )


def _false_positives(
  settings: item_matches.Settings,
  tables: decisions.Tables,
  clean: Sequence[str],
) -> dict[str, Any] | None:
  """Measures how many clean documents are said to hold an item, by file."""
  if not clean:
    return None
  # Results come in any order.
  by_path = dict(tables.run(_count, clean))
  counts = [by_path[path] for path in clean]
  firsts = np.cumsum([0, *counts]).tolist()
  grams = tables.add(
    f'{item_matches.STAGE}_clean',
    _table(
      tables.run(
        _clean,
        [(settings, x, n) for x, n in zip(clean, firsts, strict=False)],
      )
    ),
  )
  found = tables.read(
    item_matches.flag(settings, tables, grams, f'{item_matches.STAGE}_alarms')
  )
  ids = np.unique(np.array(found.column('id').to_pylist(), np.int64))
  places = np.searchsorted(firsts, ids, 'right') - 1
  return {
    '/'.join(Path(path).parts[-2:]): share(int((places == n).sum()), count)
    for n, (path, count) in enumerate(zip(clean, counts, strict=True))
  }


def _count(path: str) -> tuple[str, int]:
  return path, sum(1 for _ in _clean_texts(path))


def _clean(task: tuple[item_matches.Settings, str, int]) -> _Found:
  """Finds the grams of all items in a clean file."""
  settings, path, first = task
  return _find(item_matches.load(settings).grams, _clean_texts(path), first)


def _clean_texts(path: str) -> Iterator[str]:
  """Yields the texts of a file, a long one in parts."""
  for text in documents.read([path], documents.Settings(), Counter()):
    for start in range(0, len(text), _LONGEST_CLEAN):
      yield text[start : start + _LONGEST_CLEAN]


def _hosts(clean: Sequence[str], tables: decisions.Tables) -> list[str]:
  """Takes texts from clean files, or else from the corpus."""
  hosts: list[str] = []
  each = _HOSTS // max(len(clean), 1) + 1
  for path in clean:
    texts = itertools.islice(_clean_texts(path), each)
    hosts += [text[:_LONGEST_HOST] for text in texts]
  for _, path in tables.text_parts():
    if len(hosts) >= _HOSTS:
      break
    for batch in pq.ParquetFile(path).iter_batches(_HOSTS, columns=['text']):
      hosts += [x[:_LONGEST_HOST] for x in batch.column('text').to_pylist()]
      if len(hosts) >= _HOSTS:
        break
  return hosts[:_HOSTS] or ['']


def _find(grams: item_grams.Grams, texts: Iterable[str], first: int) -> _Found:
  """Finds grams in texts, whose numbers begin at `first`."""
  found = [item_grams.find(text, grams) for text in texts]
  ids = np.repeat(np.arange(first, first + len(found)), [*map(len, found)])
  return ids, np.concatenate([np.empty(0, np.int64), *found])


def _table(found: Iterable[_Found]) -> pa.Table:
  """Joins what was found into a table of keys, in the order of the texts."""
  parts = sorted(found, key=lambda x: x[0][0] if len(x[0]) else -1)
  return pa.table(
    {
      name: pa.array(
        np.concatenate([np.empty(0, np.int64), *(x[n] for x in parts)]),
        pa.int64(),
      )
      for n, name in enumerate(('id', 'gram'))
    }
  )


def _column(tables: decisions.Tables, name: str, column: str) -> list[int]:
  return tables.read(name).column(column).to_pylist()
