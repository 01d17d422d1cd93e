"""Finds which documents hold which items of evaluation sets, by queries."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lm.corpus import (
  decisions,
  evaluation_items,
  item_grams,
  parts,
  passages,
  texts,
)
from lm.data import byte_files, documents

STAGE = 'contamination'  # its name, with which the names of its tables begin
FLAGGED = f'{STAGE}_flagged'  # documents and their items
COUNTED = f'{STAGE}_counted'  # probes that can be found, and their items
FILES, ITEMS = 'files.json', 'items.parquet'  # see `listed`
_VERSION = 3  # of what is listed of evaluation sets
SCHEMA = pa.schema([('gram', pa.int64())])
# A probe of fewer grams must be there as a whole.
_FEW = 4
# Grams of an item that is long enough to be no turn of phrase.
_LONG = 8


class Settings(NamedTuple):
  """Settings of the stage, see `contamination.make`."""

  sets: str  # as JSON, so that it can be a key
  coverage: float
  lengths: tuple[int, int]
  documents: int
  texts: int
  cut: passages.Cut | None

  def plain(self) -> dict[str, Any]:
    """Returns them as JSON."""
    return {**self._asdict(), 'cut': self.cut and self.cut._asdict()}


def settings_of(plain: dict[str, Any]) -> Settings:
  """Reads settings from JSON."""
  words, characters = plain['lengths']
  cut = plain['cut'] and passages.Cut(**plain['cut'])
  return Settings(**{**plain, 'lengths': (words, characters), 'cut': cut})


class Loaded(NamedTuple):
  """The evaluation sets and their grams.

  Attributes:
    files: (name of the set, file), in the order of the items' numbers.
    items: of all files, with their numbers from 0 on.
    reasons: code of each item's set.
    numbers: of each item in its set, from 0 on.
    probes: of all items, with the numbers of these.
    grams: of all probes.
    places: int64, the grams of each probe after those of the one before.
    ends: int64, where in `places` those of a probe have ended.
  """

  files: list[tuple[str, evaluation_items.File]]
  items: list[evaluation_items.Item]
  reasons: list[str]
  numbers: list[int]
  probes: list[item_grams.Probe]
  grams: item_grams.Grams
  places: np.ndarray
  ends: np.ndarray


@functools.lru_cache(maxsize=2)
def load(settings: Settings) -> Loaded:
  """Reads the evaluation sets, once a process.

  Raises:
    ValueError: a file cannot be used, or two sets name the same one.
  """
  files, items, probes = [], [], []
  reasons, numbers = [], []
  seen: dict[str, str] = {}
  for name, one in json.loads(settings.sets).items():
    found = evaluation_items.read(name, one)
    for file in found:
      if file.sha256 in seen:
        raise ValueError(
          f'sets.{name}: the same file as in sets.{seen[file.sha256]}; name '
          'it once'
        )
      seen[file.sha256] = name
      files.append((name, file))
    own = [item for file in found for item in file.items]
    probes += [
      probe._replace(item=probe.item + len(items))
      for probe in item_grams.probes(own, settings.lengths, settings.texts)
    ]
    items += own
    reasons += [f'{STAGE}.{name}'] * len(own)
    numbers += range(len(own))
  grams = item_grams.index(probes, settings.lengths)
  listed = [np.empty(0, np.int64), *(probe.grams for probe in probes)]
  return Loaded(
    files,
    items,
    reasons,
    numbers,
    probes,
    grams,
    np.concatenate(listed),
    np.cumsum([len(x) for x in listed[1:]], dtype=np.int64),
  )


def keys(settings: Settings, batch: pa.RecordBatch) -> pa.RecordBatch:
  """Draws the grams of evaluation items that occur in documents."""
  grams = load(settings).grams
  rows, found = [], []
  for row, (text, reason) in enumerate(
    zip(
      batch.column('text').to_pylist(),
      batch.column('reason').to_pylist(),
      strict=True,
    )
  ):
    if not reason:
      found.append(item_grams.find(text, grams))
      rows.append(np.full(len(found[-1]), row, np.int32))
  return pa.RecordBatch.from_arrays(
    [
      pa.array(np.concatenate([np.empty(0, np.int32), *rows])),
      pa.array(np.concatenate([np.empty(0, np.int64), *found])),
    ],
    schema=pa.schema([('row', pa.int32()), *SCHEMA]),
  )


def prepare(settings: Settings, tables: decisions.Tables, keys: str) -> None:
  """Finds the grams that do not count, and how many of each probe do.

  A probe that loses three quarters of its grams says too little of its item.

  Args:
    settings: of the stage.
    tables: of the build.
    keys: name of the table of grams by document.
  """
  folder = listed(settings, tables)
  for name in ('items', 'probes', 'grams'):
    tables.add(f'{STAGE}_{name}', pq.read_table(folder / f'{name}.parquet'))
  query = tables.query
  frequent = query(
    f'{STAGE}_frequent',
    f'SELECT gram, COUNT(*) AS documents FROM {keys} GROUP BY gram '
    f'HAVING COUNT(*) > {settings.documents}',
  )
  whole = query(
    f'{STAGE}_whole',
    'SELECT m.id AS id, m.probe AS probe FROM ('
    'SELECT k.id AS id, g.probe AS probe, COUNT(*) AS matched '
    f'FROM {keys} k JOIN {STAGE}_grams g ON k.gram = g.gram '
    'GROUP BY k.id, g.probe) m '
    f'JOIN {STAGE}_probes p ON m.probe = p.probe '
    f'WHERE p.size >= {_LONG} AND m.matched * 10 >= p.size * 9',
  )
  copied = query(
    f'{STAGE}_copied',
    'SELECT k.gram AS gram, COUNT(DISTINCT k.id) AS documents '
    f'FROM {whole} w JOIN {STAGE}_grams g ON w.probe = g.probe '
    f'JOIN {frequent} f ON g.gram = f.gram '
    f'JOIN {keys} k ON k.gram = g.gram AND k.id = w.id GROUP BY k.gram',
  )
  boilerplate = query(
    f'{STAGE}_boilerplate',
    f'SELECT f.gram AS gram FROM {frequent} f '
    f'LEFT JOIN {copied} c ON f.gram = c.gram '
    'WHERE c.gram IS NULL OR c.documents * 2 < f.documents',
  )
  query(
    COUNTED,
    'SELECT c.probe AS probe, c.item AS item, c.counted AS counted FROM ('
    'SELECT p.probe AS probe, p.item AS item, p.whole AS whole, '
    'p.size - COALESCE(b.lost, 0) AS counted '
    f'FROM {STAGE}_probes p LEFT JOIN (SELECT g.probe AS probe, '
    f'COUNT(*) AS lost FROM {STAGE}_grams g JOIN {boilerplate} b '
    'ON g.gram = b.gram GROUP BY g.probe) b ON p.probe = b.probe) c '
    'WHERE c.counted > 0 AND c.counted * 4 >= c.whole',
  )


def flag(
  settings: Settings, tables: decisions.Tables, keys: str, name: str
) -> str:
  """Finds which documents hold which items, once boilerplate is known.

  Args:
    settings: of the stage.
    tables: that `prepare` has prepared.
    keys: name of the table of grams by document.
    name: of the new table, with the columns `id` and `item`.
  """
  # In thousandths, because engines read 0.7 as different types.
  least = round(settings.coverage * 1000)
  matched = tables.query(
    f'{name}_matched',
    'SELECT k.id AS id, g.probe AS probe, COUNT(*) AS matched '
    f'FROM {keys} k JOIN {STAGE}_grams g ON k.gram = g.gram '
    f'LEFT JOIN {STAGE}_boilerplate b ON k.gram = b.gram '
    'WHERE b.gram IS NULL GROUP BY k.id, g.probe',
  )
  hits = tables.query(
    _probes_of(name),
    'SELECT m.id AS id, m.probe AS probe, c.item AS item '
    f'FROM {matched} m JOIN {COUNTED} c ON m.probe = c.probe '
    f'WHERE m.matched * 1000 >= c.counted * {least} '
    f'AND (m.matched >= {_FEW} OR m.matched >= c.counted)',
  )
  return tables.query(name, f'SELECT DISTINCT id, item FROM {hits}')


def places(tables: decisions.Tables, keys: str, name: str) -> str:
  """Lists the grams by which documents hold items, as `Loaded.places` has them.

  Args:
    tables: that `prepare` and `flag` have worked on.
    keys: name of the table of grams by document.
    name: that `flag` was given.
  """
  return tables.query(
    f'{name}_places',
    f'SELECT h.id AS id, g.place AS place FROM {_probes_of(name)} h '
    f'JOIN {STAGE}_grams g ON h.probe = g.probe '
    f'JOIN {keys} k ON k.id = h.id AND k.gram = g.gram '
    f'LEFT JOIN {STAGE}_boilerplate b ON g.gram = b.gram '
    'WHERE b.gram IS NULL',
  )


def _probes_of(name: str) -> str:
  return f'{name}_probes'


def described(settings: Settings) -> dict[str, Any]:
  """Describes the sets by the content of their files, wherever these lie."""
  return {
    name: {
      **{key: value for key, value in one.items() if key != 'path'},
      # A file is read by the end of its name.
      'files': [
        [documents.digest(path), byte_files.suffix(path)]
        for path in evaluation_items.paths(one)
      ],
    }
    for name, one in json.loads(settings.sets).items()
  }


def fresh(settings: Settings) -> Loaded:
  """Loads the sets, again if their files have changed since.

  A worker of Spark may live from one build to the next.
  """
  loaded = load(settings)
  if any(documents.digest(x.path) != x.sha256 for _, x in loaded.files):
    load.cache_clear()
    loaded = load(settings)
  return loaded


def identity(settings: Settings) -> list[Any]:
  """Describes all that the grams of evaluation sets depend on."""
  versions = [_VERSION, texts.VERSION, unicodedata.unidata_version]
  return [
    STAGE,
    *versions,
    described(settings),
    settings.lengths,
    settings.texts,
  ]


def listed(settings: Settings, tables: decisions.Tables) -> Path:
  """Lists the items of the sets, their probes and their grams, once.

  To read the sets takes a second for some thousand items, which a build with
  nothing new need not spend.

  Returns:
    A folder: items.parquet, probes.parquet, grams.parquet, and `FILES`: [[name
    of the set, sha256 of the file, number of its items], ...].
  """
  folder = Path(tables.folder(*identity(settings)))
  return parts.make(folder, lambda place: _list(load(settings), place))


def _list(loaded: Loaded, folder: Path) -> None:
  sizes = np.diff(loaded.ends, prepend=0)
  ids = np.arange(len(loaded.probes))
  items = pa.table(
    {
      'item': pa.array(range(len(loaded.items)), pa.int64()),
      'reason': pa.array(loaded.reasons, pa.string()),
      'number': pa.array(loaded.numbers, pa.float64()),
      'label': pa.array([x.id for x in loaded.items], pa.string()),
      'options': pa.array([len(x.options) for x in loaded.items], pa.int64()),
    }
  )
  probes = pa.table(
    {
      'probe': pa.array(ids, pa.int64()),
      'item': pa.array([x.item for x in loaded.probes], pa.int64()),
      'size': pa.array(sizes, pa.int64()),
      'whole': pa.array([x.all for x in loaded.probes], pa.int64()),
    }
  )
  grams = pa.table(
    {
      'place': pa.array(np.arange(len(loaded.places))),
      'gram': pa.array(loaded.places),
      'probe': pa.array(np.repeat(ids, sizes), pa.int64()),
    }
  )
  for name, table in (('items', items), ('probes', probes), ('grams', grams)):
    pq.write_table(table, folder / f'{name}.parquet')
  files = [[name, file.sha256, len(file.items)] for name, file in loaded.files]
  parts.write_json(folder / FILES, files)
