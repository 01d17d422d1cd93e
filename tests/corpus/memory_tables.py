"""The tables of a build in memory, for tests of stages that decide."""

import json
from pathlib import Path
import shutil
import tempfile
import weakref

import duckdb
import pyarrow as pa

from lm.corpus import parts


class Tables:
  """The tables of a build, in the memory of DuckDB."""

  def __init__(self):
    self.database = duckdb.connect()
    self._folder = Path(tempfile.mkdtemp())
    weakref.finalize(self, shutil.rmtree, self._folder)

  def query(self, name: str, sql: str) -> str:
    self.database.execute(f'CREATE OR REPLACE TABLE {name} AS {sql}')
    return name

  def add(self, name: str, table: pa.Table) -> str:
    self.database.register('given', table)
    self.query(name, 'SELECT * FROM given')
    self.database.unregister('given')
    return name

  def read(self, name: str) -> pa.Table:
    return self.database.sql(f'FROM {name} ORDER BY ALL').to_arrow_table()

  def run(self, fn, tasks):
    # As another machine gets and gives them, in another order.
    texts = map(json.dumps, reversed(tasks))
    return [json.loads(json.dumps(fn(json.loads(text)))) for text in texts]

  def folder(self, *identity: object) -> str:
    return str(self._folder / parts.name(*identity))

  def text_parts(self):
    return ()
