"""The tables of a build: keys of parts, and results of queries on them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import hashlib
from pathlib import Path
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lm.corpus import engines, parts


class Tables:
  """Tables by name; see `decisions.Tables`.

  A result of a query is a part: its name is a hash of the query and of all that
  it reads, so that it is not computed again.
  """

  def __init__(self, root: Path, engine: engines.Engine):
    """Opens the tables of a build.

    Args:
      root: folder of the build.
      engine: that runs queries and tasks.
    """
    self._root = root
    self._engine = engine
    self._views: dict[str, str | Sequence[str]] = {}
    self._identities: dict[str, str] = {}
    self._texts: list[tuple[int, str]] = []
    self.used: set[str] = set()  # names of the results that this build needs

  def files(self, name: str, paths: Sequence[Path]) -> str:
    """Names a table that consists of files of parts."""
    self._views[name] = [str(path) for path in paths]
    listed = [f'{path.parent.name}/{path.name}' for path in paths]
    self._identities[name] = parts.name('files', listed)
    return name

  def view(self, name: str, sql: str) -> str:
    """Names a query, which is computed each time it is read."""
    self._views[name] = sql
    self._identities[name] = parts.name('view', sql, self._named_in(sql))
    return name

  def query(self, name: str, sql: str) -> str:
    """Makes a table by a query, and returns its name."""
    identity = parts.name('query', sql, self._named_in(sql))
    return self._made(
      name, identity, lambda x: self._engine.query(sql, self._views, x)
    )

  def add(self, name: str, table: pa.Table) -> str:
    """Makes a table of rows in memory, and returns its name."""
    table = table.combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as out:
      out.write_table(table)
    digest = hashlib.sha256(sink.getvalue()).hexdigest()
    identity = parts.name('rows', digest)
    return self._made(
      name, identity, lambda x: pq.write_table(table, x / '0.parquet')
    )

  def _made(
    self, name: str, identity: str, write: Callable[[Path], None]
  ) -> str:
    folder = parts.make(self._root / 'tables' / identity, write)
    self.used.add(identity)
    self._identities[name] = identity
    self._views[name] = sorted(str(x) for x in folder.glob('*.parquet'))
    return name

  def _named_in(self, sql: str) -> Mapping[str, str]:
    """Lists the identities of the tables that a query names."""
    words = sorted(self._views.keys() & set(re.findall(r'\w+', sql)))
    return {word: self._identities[word] for word in words}

  def read(self, name: str) -> pa.Table:
    """Reads a table, sorted by all its columns from left to right."""
    files = self._views[name]
    assert not isinstance(files, str), f'{name} is a view'
    table = pa.concat_tables(
      [pq.ParquetFile(file).read() for file in files],
      promote_options='permissive',
    )
    return table.sort_by([(x, 'ascending') for x in table.column_names])

  def run(
    self, fn: Callable[[Any], Any], tasks: Sequence[Any]
  ) -> Iterator[Any]:
    """Calls a function for each task; gives the results in their order."""
    results = dict(self._engine.run(fn, tasks))
    return iter([results[n] for n in range(len(tasks))])

  def folder(self, *identity: Any) -> str:
    """Returns the path of a part, for a task to make, see `parts.make`."""
    name = parts.name(*identity)
    self.used.add(name)
    return str(self._root / 'tables' / name)

  def text_parts(self) -> Sequence[tuple[int, str]]:
    """Lists (first id, path of documents.parquet) of the parts."""
    return self._texts

  def set_text_parts(self, listed: Sequence[tuple[int, str]]) -> None:
    """Sets where the texts are; the first id of every part and its path."""
    self._texts = [*listed]
