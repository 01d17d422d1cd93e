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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import itertools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lm.corpus import (
  decisions,
  evaluation_items,
  item_grams,
  item_matches,
  parts,
  perturbations,
  reading,
)
from lm.data import byte_files, documents
from lm.runtime import logins

_VERSION = 1  # of how items are put into texts and sought there
FOUND = 'found.json'  # in the folders of tasks that search
_HOSTS = 50  # texts into which items are put
_LONGEST_HOST = 4_000  # characters
_LONGEST_CLEAN = 20_000  # characters; a longer text counts as several
_Z = 1.959964  # 95 % of a normal distribution


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
  found = _listed(settings, tables)
  flagged = Counter(_column(tables, item_matches.FLAGGED, 'item'))
  checked = {*_column(tables, item_matches.COUNTED, 'item')}
  long_enough = {*_column(tables, f'{item_matches.STAGE}_probes', 'item')}
  common = long_enough - checked
  paths = documents.find(clean) if clean else []
  recall = _recall(settings, tables, checked, sample, paths)
  files, first = {}, 0
  for n, file in enumerate(found.files):
    numbers = range(first, first + file.items)
    first += file.items
    files[file.sha256] = {
      'set': file.set,
      'file': '/'.join(Path(logins.hidden(file.path)).parts[-2:]),
      'items': len(numbers),
      'unchecked': {
        'too_short': sum(i not in long_enough for i in numbers),
        'boilerplate': sum(i in common for i in numbers),
      },
      'flagged': {found.labels[i]: flagged[i] for i in numbers if i in flagged},
      'recall': recall[n],
    }
  return {
    'version': 1,
    'settings': {
      key: value for key, value in settings.plain().items() if key != 'sets'
    },
    'files': files,
    'false_positives': _false_positives(settings, tables, paths),
  }


class _File(NamedTuple):
  """A file of a set, its hash and the number of its items."""

  set: str
  path: str
  sha256: str
  items: int


class _Listed(NamedTuple):
  """Lists the files and items of evaluation sets.

  Attributes:
    files: in the order of the items' numbers.
    labels: ids of the items, by their numbers.
    options: how many each item has.
  """

  files: list[_File]
  labels: list[str]
  options: list[int]


def _listed(
  settings: item_matches.Settings, tables: decisions.Tables
) -> _Listed:
  folder = item_matches.listed(settings, tables)
  text = (folder / item_matches.FILES).read_text(encoding='utf-8')
  paths = [
    path
    for one in json.loads(settings.sets).values()
    for path in evaluation_items.paths(one)
  ]
  files = [
    _File(name, path, sha256, count)
    for path, (name, sha256, count) in zip(paths, json.loads(text), strict=True)
  ]
  items = f'{item_matches.STAGE}_items'
  labels = _column(tables, items, 'label')
  return _Listed(files, labels, _column(tables, items, 'options'))


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
  listed = _listed(settings, tables)
  hosts = _hosts(clean, tables)
  identity = item_matches.identity(settings)
  tasks, first, texts = [], 0, 0
  for file in listed.files:
    own = [i for i in range(first, first + file.items) if i in checked]
    first += file.items
    rng = np.random.default_rng(int(file.sha256[:16], 16))
    drawn = sorted(rng.choice(own, min(sample, len(own)), False).tolist())
    items = {
      name: [i for i in drawn if perturbations.applies(name, listed.options[i])]
      for name in perturbations.PERTURBATIONS
    }
    task = _task(settings, texts, items=items, hosts=hosts)
    task['output'] = tables.folder(
      'injected', _VERSION, identity, texts, items, hosts
    )
    tasks.append(task)
    texts += sum(map(len, items.values()))
  pairs = {
    (row['id'], row['item'])
    for row in _flagged(settings, tables, 'injected', tables.run(inject, tasks))
  }
  result = []
  for task in tasks:
    ids = itertools.count(task['first'])
    hits = {
      name: sum((next(ids), i) in pairs for i in items)
      for name, items in task['items'].items()
    }
    result.append(
      {
        name: share(hits[name], len(items))
        for name, items in task['items'].items()
        if items
      }
    )
  return result


def _false_positives(
  settings: item_matches.Settings,
  tables: decisions.Tables,
  clean: Sequence[str],
) -> dict[str, Any] | None:
  """Measures how many clean documents are said to hold an item, by file."""
  if not clean:
    return None
  identity = item_matches.identity(settings)
  tasks = []
  for n, path in enumerate(clean):
    content = [documents.digest(path), byte_files.suffix(path)]
    task = _task(settings, 0, file=n, path=path)
    task['output'] = tables.folder(
      'searched', _VERSION, reading.VERSION, identity, content
    )
    tasks.append(task)
  # Results may come in any order.
  found = sorted(tables.run(search, tasks), key=lambda x: x['file'])
  counts = [x['count'] for x in found]
  firsts = [0, *itertools.accumulate(counts)]
  for one, first in zip(found, firsts, strict=False):
    one['ids'] = [first + i for i in one['ids']]
  ids = {row['id'] for row in _flagged(settings, tables, 'clean', found)}
  return {
    name: share(sum(first <= i < first + count for i in ids), count)
    for name, first, count in zip(_short(clean), firsts, counts, strict=False)
  }


def _short(paths: Sequence[str]) -> list[str]:
  """Names files by the ends of their paths, with as many folders as differ."""
  parted = [Path(logins.hidden(path)).parts for path in paths]
  for n in range(2, max(map(len, parted)) + 1):
    names = ['/'.join(x[-n:]) for x in parted]
    if len({*names}) == len(names):
      return names
  return [str(Path(*x)) for x in parted]


def inject(task: Mapping[str, Any]) -> dict[str, Any]:
  """Finds the grams of perturbed items in other texts, in some process."""

  def find() -> dict[str, Any]:
    loaded = item_matches.fresh(item_matches.settings_of(task['settings']))
    rng = np.random.default_rng(task['first'])
    texts = (
      perturbations.inject(name, loaded.items[i], task['hosts'], rng)
      for name, items in task['items'].items()
      for i in items
    )
    return _find(loaded.grams, texts, task['first'])

  return _once(task['output'], find)


def search(task: Mapping[str, Any]) -> dict[str, Any]:
  """Finds the grams of all items in a clean file, in some process."""

  def find() -> dict[str, Any]:
    loaded = item_matches.fresh(item_matches.settings_of(task['settings']))
    return _find(loaded.grams, _clean_texts(task['path']), task['first'])

  return {'file': task['file'], **_once(task['output'], find)}


def _once(output: str, find: Callable[[], Any]) -> Any:
  """Finds something, unless it was found and written before."""

  def write(folder: Path) -> None:
    (folder / FOUND).write_text(json.dumps(find()), encoding='utf-8')

  folder = parts.make(Path(output), write)
  return json.loads((folder / FOUND).read_text(encoding='utf-8'))


def _task(
  settings: item_matches.Settings, first: int, **more: Any
) -> dict[str, Any]:
  """Makes a task, which another machine may get as JSON."""
  return {'settings': settings.plain(), 'first': first, **more}


def _flagged(
  settings: item_matches.Settings,
  tables: decisions.Tables,
  name: str,
  found: Iterable[Mapping[str, Any]],
) -> list[dict[str, int]]:
  """Decides which texts hold which items, from what was found in them."""
  # In one order, or the table would depend on that of the tasks.
  ordered = sorted(found, key=lambda x: x['ids'][:1])
  keys = tables.add(
    f'{item_matches.STAGE}_{name}',
    pa.table(
      {
        'id': pa.array([i for x in ordered for i in x['ids']], pa.int64()),
        'gram': pa.array([i for x in ordered for i in x['grams']], pa.int64()),
      }
    ),
  )
  table = item_matches.flag(
    settings, tables, keys, f'{item_matches.STAGE}_in_{name}'
  )
  return tables.read(table).to_pylist()


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


def _find(
  grams: item_grams.Grams, texts: Iterable[str], first: int
) -> dict[str, Any]:
  """Finds grams in texts, whose numbers begin at `first`."""
  ids, found, count = [], [], 0
  for count, text in enumerate(texts, 1):
    own = item_grams.find(text, grams).tolist()
    ids += [first + count - 1] * len(own)
    found += own
  return {'count': count, 'ids': ids, 'grams': found}


def _column(tables: decisions.Tables, name: str, column: str) -> list[Any]:
  return tables.read(name).column(column).to_pylist()
