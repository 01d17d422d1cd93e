"""Gives a stage that compares documents what it needs to decide."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import pyarrow as pa


class Tables(Protocol):
  """The tables of a build, for `Stage.decide` and for reports.

  `decide(tables, keys)` gets the name of the table of its keys: those of the
  documents that no earlier stage drops, with a column `id` (BIGINT) in the
  place of `part` and `row`. An earlier document has a smaller id. It returns
  the name of a table that it made, with the columns `id` (BIGINT, to be
  dropped), `witness` (BIGINT, id of an earlier document, or NULL), `value`
  (DOUBLE, or NULL) and, if it has several reasons, `reason` (STRING). A stage
  with `edit` returns a table of `id` and `place` (BIGINT) instead.
  """

  def query(self, name: str, sql: str) -> str:
    """Makes a table by a query, and returns its name.

    The query must be portable between DuckDB and Spark: no windows, no types of
    one of them, no reliance on an order of rows. Names that a stage gives its
    tables begin with the stage's name.
    """
    ...

  def add(self, name: str, table: pa.Table) -> str:
    """Makes a table of rows in memory, and returns its name."""
    ...

  def read(self, name: str) -> pa.Table:
    """Reads a table, sorted by all its columns from left to right."""
    ...

  def run(
    self, fn: Callable[[Any], Any], tasks: Sequence[Any]
  ) -> Iterable[Any]:
    """Calls a function of a module for each task, in other processes."""
    ...

  def folder(self, *identity: Any) -> str:
    """Returns a path for a task to make a folder at, see `parts.make`.

    Args:
      *identity: all that its content depends on, as plain JSON.
    """
    ...

  def text_parts(self) -> Sequence[tuple[int, str]]:
    """Lists (first id, path of documents.parquet) of the parts, ascending.

    The row r of a part has the id `first id + r`.
    """
    ...
