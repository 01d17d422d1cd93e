"""Passes over parts: consecutive stages work on a part in one go."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import functools
import hashlib
import inspect
import json
from pathlib import Path
import sys
import types
from typing import Any, NamedTuple
import unicodedata
import weakref

import numpy as np
import pyarrow as pa
from pyarrow import compute
import pyarrow.parquet as pq

from lm import config, errors
from lm.corpus import parts, stages, texts
from lm.data import documents

VERSION = 1
# What the audit and the split need to know of each document.
FACTS = pa.schema(
  [
    ('part', pa.int64()),
    ('row', pa.int32()),
    ('reason', pa.string()),
    ('value', pa.float64()),
    ('language', pa.string()),
    ('bytes', pa.int64()),  # of UTF-8
    ('characters', pa.int64()),
    ('draw', pa.int64()),  # 63 bits of a hash of the text
  ]
)
CHANGES = 'changes.parquet'
CHANGES_SCHEMA = pa.schema(
  [
    ('part', pa.int64()),
    ('row', pa.int32()),
    ('is_change', pa.bool_()),  # or else a count of what was left as it is
    ('code', pa.string()),
    ('count', pa.int64()),
  ]
)


class Spec(NamedTuple):
  """A stage of a build, as tasks name it.

  Attributes:
    spec: from which processes build it.
    identity: names all that its results depend on beside its input.
  """

  spec: Mapping[str, Any]
  identity: str


class _Built(NamedTuple):
  stage: stages.Stage
  identity: str


@functools.lru_cache(maxsize=64)
def _built(spec: str) -> _Built:
  tree = json.loads(spec)
  built = config.build(tree)
  return _Built(built, parts.name(*_identity(built), *_own_code(tree)))


def stage(spec: Mapping[str, Any]) -> stages.Stage:
  """Builds a stage from its spec, once in a process."""
  return _built(json.dumps(spec, sort_keys=True)).stage


def identified(spec: Mapping[str, Any]) -> Spec:
  """Finds the identity that a stage has in this process."""
  return Spec(spec, _built(json.dumps(spec, sort_keys=True)).identity)


def _expected(given: Sequence[Any]) -> stages.Stage:
  """Builds a stage of a task, which has to be as in the main program.

  A worker of Spark may live from one build to the next.

  Args:
    given: a `Spec`, which may have been JSON.

  Raises:
    errors.Failure: its code, a package or a file of it is another one here.
  """
  spec, identity = given
  if identified(spec).identity != identity:
    forget_stages()  # a file of it may have changed since
  if identified(spec).identity != identity:
    raise errors.Failure(
      f'stage {stage(spec).name}: a worker has other code, packages or files '
      'of it than this program; start the workers anew and run it again'
    )
  return stage(spec)


def forget_stages() -> None:
  """Lets stages be built again, because files that they read may change."""
  _built.cache_clear()


def _identity(built: stages.Stage) -> list[Any]:
  """Describes all that a stage's results depend on beside its input."""
  data = [documents.digest(file) for file in built.data]
  # Which characters are letters, and in which form, comes with Python.
  unicode = unicodedata.unidata_version
  about = [built.name, built.version, built.settings, data]
  return [*about, texts.VERSION, unicode, built.packages]


# Of modules, as they were when a stage first used them.
_CODE: weakref.WeakKeyDictionary[types.ModuleType, str] = (
  weakref.WeakKeyDictionary()
)


def _own_code(spec: Any) -> list[str]:
  """Lists the sha256 of the functions' files outside of `lm` in a spec.

  A function of `lm` belongs to a stage whose version is raised with it. Who
  writes a rule changes it and builds again, and must not see old results.
  """
  if isinstance(spec, Mapping):
    inside = [x for value in spec.values() for x in _own_code(value)]
    fn = spec.get('fn')
    if not isinstance(fn, str) or fn.startswith('lm.'):
      return inside
    found = config.resolve(fn)
    module = inspect.getmodule(found) or sys.modules[fn.partition(':')[0]]
    file = getattr(module, '__file__', None)
    if file is None:
      return inside
    # A process that goes on has the code which it has loaded.
    if module not in _CODE:
      _CODE[module] = documents.digest(file)
    return [*inside, _CODE[module]]
  if isinstance(spec, list | tuple):
    return [x for value in spec for x in _own_code(value)]
  return []


def run(task: Mapping[str, Any]) -> dict[str, Any]:
  """Runs consecutive stages over a part.

  Args:
    task: {'input' (path of a table of documents), 'part' (number in tables),
      'stages' (of `Spec`), 'edit' (None, or {'stage' (a `Spec`), 'rows',
      'places'} of what a stage decided to cut), 'output' (folder)}.

  Returns:
    {'documents', 'bytes', 'reasons'}
  """
  output = Path(task['output'])
  parts.make(output, lambda folder: _write(task, folder))
  return json.loads((output / parts.COUNTS).read_text(encoding='utf-8'))


def _write(task: Mapping[str, Any], folder: Path) -> None:
  built = [_expected(x) for x in task['stages']]
  edit = task['edit']
  with contextlib.ExitStack() as files:

    def table(name: str, schema: pa.Schema) -> parts.Writer:
      return files.enter_context(parts.Writer(folder / name, schema))

    out = table(parts.DOCUMENTS, stages.DOCUMENTS)
    facts = table(parts.FACTS, FACTS)
    changes = table(CHANGES, CHANGES_SCHEMA)
    keys = {
      x.name: table(f'{x.name}.parquet', key_schema(x)) for x in built if x.keys
    }
    reasons: Counter[str] = Counter()
    first = size = 0
    for batch in parts.batches(Path(task['input'])):
      was_kept = compute.call_function('equal', [batch.column('reason'), ''])
      if edit:
        cuts = _cuts(edit, first, batch.num_rows)
        apply = _expected(edit['stage']).edit
        assert apply is not None
        batch = apply(batch, cuts)
      for x in built:
        if x.map:
          batch = x.map(batch)
        if x.keys:
          found = x.keys(batch)
          keys[x.name].add(_addressed(found, task['part'], first))
      out.add(batch)
      rows = _facts(batch, task['part'], first)
      facts.add(rows)
      changes.add(_changes(batch, task['part'], first))
      # Earlier passes have shown what they dropped.
      reasons.update(batch.column('reason').filter(was_kept).to_pylist())
      size += int(rows.column('bytes').to_numpy().sum())
      first += batch.num_rows
      texts.view.cache_clear()
  counts = {'documents': first, 'bytes': size, 'reasons': reasons}
  parts.write_json(folder / parts.COUNTS, counts)


def key_schema(x: stages.Stage) -> pa.Schema:
  """Returns the columns of a stage's table of keys in a part."""
  assert x.schema is not None
  return pa.schema([('part', pa.int64()), ('row', pa.int32()), *x.schema])


def _cuts(
  edit: Mapping[str, Any], first: int, count: int
) -> dict[int, list[int]]:
  """Selects what an edit cuts in a batch: places by row of the batch."""
  rows = np.asarray(edit['rows'], np.int64)
  begin, end = np.searchsorted(rows, (first, first + count))
  cuts: dict[int, list[int]] = {}
  for row, place in zip(
    rows[begin:end].tolist(), edit['places'][begin:end], strict=True
  ):
    cuts.setdefault(row - first, []).append(place)
  return cuts


def _addressed(batch: pa.RecordBatch, part: int, first: int) -> pa.RecordBatch:
  """Puts the part's number into keys, and the row in it for that in a batch."""
  rows = batch.column('row').to_numpy() + first
  columns = [
    pa.array(np.full(len(rows), part, np.int64)),
    pa.array(rows.astype(np.int32)),
    *batch.columns[1:],
  ]
  return pa.RecordBatch.from_arrays(
    columns, names=['part', 'row', *batch.schema.names[1:]]
  )


def draw(text: str) -> int:
  """Hashes a text to 63 bits, which decide on its side of a split."""
  # Salted: a corpus that was already split by a bare hash can be split again.
  digest = hashlib.sha256(b'valid\0' + text.encode()).digest()
  return int.from_bytes(digest[:8], 'big') >> 1


def _facts(batch: pa.RecordBatch, part: int, first: int) -> pa.RecordBatch:
  text = batch.column('text')
  count = batch.num_rows
  return pa.RecordBatch.from_arrays(
    [
      pa.array(np.full(count, part, np.int64)),
      pa.array(np.arange(first, first + count, dtype=np.int32)),
      batch.column('reason'),
      batch.column('value'),
      batch.column('language'),
      # Stubs do not know the kernels as functions.
      compute.call_function('binary_length', [text]).cast(pa.int64()),
      compute.call_function('utf8_length', [text]).cast(pa.int64()),
      pa.array([draw(x) for x in text.to_pylist()], pa.int64()),
    ],
    schema=FACTS,
  )


def _changes(batch: pa.RecordBatch, part: int, first: int) -> pa.RecordBatch:
  rows = [
    (part, first + n, is_change, x['code'], x['count'])
    for is_change, name in ((True, 'changes'), (False, 'counts'))
    if len(batch.column(name).flatten())  # most batches have none
    for n, found in enumerate(batch.column(name).to_pylist())
    for x in found
  ]
  columns: Sequence[Sequence[Any]] = [*zip(*rows, strict=True)] or [[]] * 5
  return pa.RecordBatch.from_arrays(
    [pa.array(x, f.type) for x, f in zip(columns, CHANGES_SCHEMA, strict=True)],
    schema=CHANGES_SCHEMA,
  )


def text_rows(path: Path, rows: Sequence[int]) -> Iterator[str]:
  """Reads the texts of some rows of a part, ascending."""
  wanted = np.asarray(rows, np.int64)
  with pq.ParquetFile(path) as file:
    first = 0
    for group in range(file.num_row_groups):
      last = first + file.metadata.row_group(group).num_rows
      begin, end = np.searchsorted(wanted, (first, last))
      if begin < end:
        table = file.read_row_group(group, ['text'], use_threads=False)
        chosen = table.column('text').take(pa.array(wanted[begin:end] - first))
        yield from chosen.to_pylist()
      first = last
