"""A build of the factory: from the sources of a config to datasets.

  from lm import config
  from lm.corpus import build

  c = config.load('configs/data/english.py', required=())
  result = build.run(c, 'data/english', workers=2)

The same config and the same bytes of sources give the same bytes of shards,
with any number of workers, on any engine, after any number of kills. A build
goes on by what its folder holds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import contextlib
import functools
from pathlib import Path
import shutil
import sys
import time
from typing import Any, NamedTuple

import pyarrow as pa

from lm import config, errors, types
from lm.corpus import (
  audit,
  audit_page,
  checks,
  encode,
  engines,
  index,
  item_matches,
  maps,
  parts,
  passes,
  progress,
  reading,
  stages,
  tables,
  write,
)
from lm.data import documents
from lm.data import manifest as manifests
from lm.runtime import logins, regular_files

_LOCK = 'lock'
_SPILL = '.spill'  # what does not fit in memory


class Result(NamedTuple):
  """Describes a build that is done.

  Attributes:
    output: its folder.
    datasets: manifests by name: 'train', 'valid', or 'train/web' and so on.
    tokenizer: of the datasets.
    counts: of files, documents and bytes that were read, and of what could not
      be read as a document.
    seconds: that the build took.
  """

  output: Path
  datasets: Mapping[str, manifests.Manifest]
  tokenizer: types.Tokenizer
  counts: Mapping[str, int]
  seconds: float


def run(
  c: config.Config,
  output: str | Path,
  *,
  workers: int = 1,
  engine: str = 'duckdb',
  address: str | None = None,
  say: progress.Say | None = None,
  target: write.Target | None = None,
) -> Result:
  """Runs a build.

  Args:
    c: a config, see configs/data/base.py.
    output: folder of the build.
    workers: processes; 1 works in this process alone.
    engine: 'duckdb' or 'spark'.
    address: of a Spark cluster, see `engines.opened`.
    say: shows the progress; None: nothing is shown.
    target: for the datasets, where they are not for the folder of the build.
      That is removed then when they are written, or if its input is refused.

  Raises:
    ValueError: the config or its input is bad.
    errors.Locked: another process works in this folder.
    errors.Failure: a package is missing, or a worker died.
    errors.Storage: the output cannot be made.
    OSError: a file in it cannot be written.
  """
  start = time.monotonic()
  if not 0 <= c.split_valid < 1:
    raise ValueError(
      f'split_valid={c.split_valid} must be from 0 on and below 1'
    )
  if c.shard_tokens < 1:
    raise ValueError(f'shard_tokens={c.shard_tokens} must be positive')
  root = Path(output)
  is_work = target is not None
  if target is None:
    about = {'sources': sorted(c.sources), 'stages': [*c.order]}
    about['split_valid'] = c.split_valid
    target = write.Target(root, about, replaces=True)
  try:
    root.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise errors.Storage(
      f'{root}: cannot be made: {e.strerror}; name another folder'
    ) from e
  busy = errors.Locked(
    f'{root}: another process builds here; wait for it, or end it'
  )
  with contextlib.ExitStack() as stack:
    stack.enter_context(regular_files.exclusive(root / _LOCK, 0.0, busy))
    _sweep(root)
    if is_work:
      stack.push(functools.partial(_remove, root, (root / 'parts').exists()))
    opened = stack.enter_context(
      engines.opened(
        engine, workers, root / _SPILL, c.engine.memory_mb, address
      )
    )
    result = Build(c, root, target, opened, say).run()
  return result._replace(seconds=time.monotonic() - start)


def _sweep(root: Path, used: set[str] | None = None) -> None:
  """Removes what killed builds left, and parts that the last build needs not.

  Args:
    root: folder of the build.
    used: names of the parts and tables that stay; None: all.
  """
  for name in ('parts', 'tables'):
    parts.sweep(root / name, used)
  for side in encode.SIDES:
    # Datasets that were being written, see `writer.assemble`.
    for pattern in (f'.{side}.????????', f'{side}/.*.????????'):
      for path in root.glob(pattern):
        shutil.rmtree(path)
  shutil.rmtree(root / _SPILL, ignore_errors=True)


def _remove(
  root: Path, goes_on: bool, kind: type[BaseException] | None, *unused: object
) -> None:
  """Removes the folder of a build while its lock is held, unless it goes on.

  Args:
    root: the folder.
    goes_on: whether there were parts in it before.
    kind: of the error that ends the build; None: it is done.
  """
  if kind is not None and (goes_on or not issubclass(kind, ValueError)):
    return
  for path in root.iterdir():
    if path.is_dir():
      shutil.rmtree(path)
    elif path.name != _LOCK:
      path.unlink()
  (root / _LOCK).unlink()
  with contextlib.suppress(OSError):  # another process may have begun here
    root.rmdir()


class Build:
  """The steps of a build, in their order."""

  def __init__(
    self,
    c: config.Config,
    root: Path,
    target: write.Target,
    engine: engines.Engine,
    say: progress.Say | None = None,
  ):
    self._c = c
    self._root = root
    self._target = target
    self._engine = engine
    self._steps = progress.Steps(say)
    self._tables = tables.Tables(root, engine)
    self._counts: dict[str, Counter[str]] = {}
    self._used: set[str] = set()
    checks.check_names(c)
    specs = [config.plain(c.stages[name]) for name in c.order]
    maps.forget_stages()
    self._stages = [maps.stage(spec) for spec in specs]
    self._specs = [maps.identified(spec) for spec in specs]
    self._skipped = {
      name: tuple(source.get('skip', ())) for name, source in c.sources.items()
    }
    passes.check(self._stages, c.order, self._skipped)
    for line in passes.losses(self._stages, c.order):
      print(f'warning: {line}', file=sys.stderr, flush=True)

  def run(self) -> Result:
    """Runs all steps."""
    pieces = self._read()
    drops: list[pa.Table] = []
    edit = None
    reports: dict[str, Any] = {}
    for group in passes.plan(self._stages):
      pieces = self._map(pieces, group, edit)
      self._name_tables(pieces, group)
      edit = None
      for n in group:
        stage = self._stages[n]
        if not stage.decide or not any(self._works_on(n, x) for x in pieces):
          continue
        found = self._decide(stage, drops)
        if stage.edit:
          edit = (n, found)
        else:
          drops.append(found)
        if stage.report and self._has_seen_all(n, pieces):
          with self._steps.one(f'{stage.name}: report'):
            reports[stage.name] = stage.report(self._tables)
    if edit:  # the last stage cuts places from texts
      pieces = self._map(pieces, [], edit)
      self._name_tables(pieces, [])
    return self._finish(pieces, passes.merged(drops), reports)

  def _read(self) -> list[index.Piece]:
    """Reads all sources."""
    pieces: list[index.Piece] = []
    sources = self._c.sources
    for name in sorted(sources, key=lambda x: (sources[x].rank, x)):
      source = sources[name]
      counts: Counter[str] = Counter()
      settings = documents.Settings(
        **{x: source[x] for x in documents.Settings._fields if x in source}
      )
      found = documents.find(source.inputs, counts)
      checks.check_files(name, found)
      made = self._parts.resolve()
      if any(made in Path(x).resolve().parents for x in found):
        raise ValueError(
          f'sources.{name}.inputs: the folder of the build is in them; write '
          'to another'
        )
      hashed = self._steps.run(
        f'{name}: hash',
        self._engine.run(
          reading.digest, [{'file': x} for x in found], in_threads=True
        ),
        len(found),
      )
      tasks = reading.tasks(
        name,
        [reading.File(*x) for x in hashed],
        settings,
        self._c.engine.part_bytes,
        self._parts,
      )
      results = self._steps.run(
        f'{name}: read', self._engine.run(reading.read, tasks), len(tasks)
      )
      for task, result in zip(tasks, results, strict=True):
        counts.update(result['counts'])
        folder = Path(task['output'])
        self._used.add(folder.name)
        for piece in result['pieces']:
          pieces.append(
            index.Piece(
              name,
              task['files'],
              piece['files'],
              folder / piece['name'],
              parts.number(parts.name('piece', folder.name, piece['name'])),
              len(pieces) << parts.ROW_BITS,
              folder,
            )
          )
      self._counts[name] = counts
    if not pieces:
      raise ValueError(checks.nothing_read(self._counts))
    if len({x.part for x in pieces}) < len(pieces):
      raise ValueError('two parts have one number; rename a source')
    return pieces

  @property
  def _parts(self) -> Path:
    return self._root / 'parts'

  def _map(
    self,
    pieces: Sequence[index.Piece],
    group: Sequence[int],
    edit: tuple[int, pa.Table] | None,
  ) -> list[index.Piece]:
    """Runs stages over all parts, after an edit.

    A part without work for them that the edit leaves alone stays as it is.
    """
    tasks, done = [], []
    for piece in pieces:
      specs = [self._specs[n] for n in group if self._works_on(n, piece)]
      cuts = edit and (self._specs[edit[0]], edit[1])
      task = passes.task(piece, specs, cuts, self._parts)
      if not edit or specs or task['edit']['rows']:
        piece = piece._replace(folder=Path(task['output']))
        tasks.append(task)
      self._used.add(piece.folder.name)
      done.append(piece)
    names = [self._c.order[n] for n in group]
    if edit:
      names.insert(0, f'{self._c.order[edit[0]]}: cut')
    if tasks:
      self._steps.run(
        ', '.join(names) or 'store',
        self._engine.run(maps.run, tasks),
        len(tasks),
      )
    return done

  def _name_tables(
    self, pieces: Sequence[index.Piece], group: Sequence[int]
  ) -> None:
    """Names the tables of keys that a pass has written."""
    numbers = pa.table(
      {
        'part': pa.array([x.part for x in pieces], pa.int64()),
        'first': pa.array([x.first for x in pieces], pa.int64()),
        'source': [x.source for x in pieces],
      }
    )
    self._tables.add('parts', numbers)
    self._tables.set_text_parts(
      [(x.first, str(x.folder / parts.DOCUMENTS)) for x in pieces]
    )
    for n in group:
      name = self._stages[n].name
      files = [
        x.folder / f'{name}.parquet' for x in pieces if self._works_on(n, x)
      ]
      if self._stages[n].keys and files:
        self._tables.files(f'{name}_of_parts', files)

  def _works_on(self, n: int, piece: index.Piece) -> bool:
    """Tells whether a stage works on a part: its source may skip it."""
    return self._c.order[n] not in self._skipped[piece.source]

  def _has_seen_all(self, n: int, pieces: Sequence[index.Piece]) -> bool:
    """Tells whether a stage has seen all training text.

    What it reports, such as that no evaluation item is in the data, would not
    hold for a source that skips it.
    """
    return all(
      self._works_on(n, x) or self._c.sources[x.source].get('side') == 'valid'
      for x in pieces
    )

  def _decide(self, stage: stages.Stage, drops: Sequence[pa.Table]) -> pa.Table:
    """Lets a stage decide on the documents that no earlier one drops."""
    assert stage.schema is not None and stage.decide is not None
    columns = ', '.join(f'k.{x}' for x in stage.schema.names)
    sql = (
      f'SELECT p.first + k.row AS id, {columns} FROM {stage.name}_of_parts k '
      'JOIN parts p ON k.part = p.part'
    )
    gone = passes.merged(drops).ids
    if len(gone):
      dropped = self._tables.add(
        f'{stage.name}_dropped_before', pa.table({'id': gone})
      )
      view = self._tables.view(f'{stage.name}_all', sql)
      kept = ', '.join(f'k.{x}' for x in ('id', *stage.schema.names))
      sql = (
        f'SELECT {kept} FROM {view} k LEFT JOIN {dropped} d ON k.id = d.id '
        'WHERE d.id IS NULL'
      )
    keys = self._tables.view(f'{stage.name}_keys', sql)
    with self._steps.one(f'{stage.name}: decide'):
      name = stage.decide(self._tables, keys)
    found = self._tables.read(name)
    if 'reason' not in found.column_names and not stage.edit:
      reason = pa.array([stage.name] * len(found), pa.string())
      found = found.append_column('reason', reason)
    return found

  def _finish(
    self,
    pieces: Sequence[index.Piece],
    drops: index.Drops,
    reports: Mapping[str, Any],
  ) -> Result:
    """Writes datasets, index and audit, and removes what is not needed."""
    # That of an earlier build does not hold for the datasets of this one.
    (self._root / f'{item_matches.STAGE}.json').unlink(missing_ok=True)
    writer = write.Writer(
      self._c,
      self._root,
      self._target,
      self._engine,
      self._steps,
      pieces,
      drops,
    )
    datasets = writer.run()
    if self._target.folder == self._root:
      with self._steps.one('audit: write'):
        self._audit(pieces, drops, writer.tokens)
    for name, report in reports.items():
      parts.write_json(self._root / f'{name}.json', report)
    total: Counter[str] = Counter()
    for counts in self._counts.values():
      total.update(counts)
    _sweep(self._root, self._used | self._tables.used | writer.used)
    return Result(self._root, datasets, writer.tokenizer, total, 0.0)

  def _audit(
    self,
    pieces: Sequence[index.Piece],
    drops: index.Drops,
    tokens: Mapping[tuple[str, str], int],
  ) -> None:
    """Writes what was read, dropped and changed."""
    found = audit.make(self._tables, pieces, drops, tokens)
    # Of some sources there may be no document.
    of_all = {x: found['sources'].get(x, audit.empty()) for x in self._counts}
    found['sources'] = dict(sorted(of_all.items()))
    c = config.fill(self._c).unlock()
    c.update(logins.hidden(config.plain(c)))
    for name, about in found['sources'].items():
      about['read'] = dict(self._counts[name])
      for key in ('licence', 'about'):
        about[key] = c.sources[name].get(key, '')
    config.store(c.lock(), self._root / 'config.json')
    parts.write_json(self._root / audit.NAME, found)
    audit_page.write(self._root, found, self._root.name)
