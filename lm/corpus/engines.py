"""Engines: where the tasks of a build run, and who answers its queries.

Both engines give the same tables, and so the same shards, to the bit:
  duckdb   a pool of processes, and DuckDB inside of this one
  spark    the Spark API: a cluster by its address, or Sail on this machine

Tasks and results are plain JSON. What a task writes is a part, which each
machine of a cluster must see under the same path.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import process
import contextlib
import functools
import importlib
import json
import os
from pathlib import Path
import sys
from typing import Any, Protocol
import warnings

import pyarrow as pa
import pyarrow.parquet as pq

from lm import errors
from lm.corpus import parts
from lm.corpus import workers as workers_lib
from lm.data import names
from lm.runtime import code_state

Task = Mapping[str, Any]
# DuckDB keeps whole row groups in memory while it writes them.
_ROW_GROUP = 4096
KINDS = ('duckdb', 'spark')
_RESULTS = 'n int, result string, error string'  # of tasks, on Spark


class Engine(Protocol):
  """Runs tasks and queries."""

  def run(
    self,
    fn: Callable[[Any], Any],
    tasks: Sequence[Task],
    *,
    in_threads: bool = False,
  ) -> Iterator[tuple[int, Any]]:
    """Calls a function of a module for each task.

    Args:
      fn: the function. If a task has an 'output', it is a folder that
        `parts.make` makes, and where that is whole the call is cheap.
      tasks: its arguments.
      in_threads: whether threads of one process do as well, because the
        function leaves the interpreter to others, as hashing does.

    Yields:
      (number of the task, its result), in any order.
    """
    ...

  def query(
    self, sql: str, views: Mapping[str, str | Sequence[str]], folder: Path
  ) -> None:
    """Writes the result of a query as files of Parquet.

    Args:
      sql: the query.
      views: what it may name, in the order in which they may name each other:
        a query, or the files of a table.
      folder: for the files; there is at least one, even without rows.
    """
    ...


class WorkerDied(errors.Failure):
  """A process of the pool ended without a result."""

  exit_code = 7


@contextlib.contextmanager
def opened(
  kind: str, workers: int, spill: Path, memory_mb: int, address: str | None
) -> Iterator[Engine]:
  """Opens an engine.

  Args:
    kind: 'duckdb' or 'spark'.
    workers: processes that run tasks; 1 runs them in this process.
    spill: folder for what does not fit in memory.
    memory_mb: MiB that DuckDB may use.
    address: of a Spark cluster; None starts Sail in this process.

  Raises:
    ValueError: the engine is unknown, or a setting is out of range.
    errors.Failure: a package is not installed.
  """
  if kind not in KINDS:
    raise ValueError(f'engine={kind}: unknown; give duckdb or spark')
  if workers < 1:
    raise ValueError(f'workers={workers} must be 1 or more')
  if kind == 'spark':
    with _spark(workers, address) as session:
      yield Spark(session, workers)
    return
  with contextlib.ExitStack() as stack:
    pool = None
    if workers > 1:
      pool = stack.enter_context(workers_lib.pool(workers))
    yield Duck(pool, workers, spill, memory_mb)


class Duck:
  """A pool of processes and DuckDB."""

  def __init__(
    self,
    pool: process.ProcessPoolExecutor | None,
    workers: int,
    spill: Path,
    memory_mb: int,
  ):
    self._pool = pool
    self._workers = workers
    self._spill = spill
    self._memory_mb = memory_mb

  def run(
    self,
    fn: Callable[[Any], Any],
    tasks: Sequence[Task],
    *,
    in_threads: bool = False,
  ) -> Iterator[tuple[int, Any]]:
    if self._pool is None:
      for n, task in enumerate(tasks):
        yield n, fn(task)
      return
    # What is there already takes no worker, and these start with the first
    # task: a build of which little is new starts few of them or none.
    new: list[tuple[int, Task]] = []
    for n, task in enumerate(tasks):
      if _is_done(task):
        yield n, fn(task)
      else:
        new.append((n, task))
    if in_threads:
      with futures.ThreadPoolExecutor(self._workers) as threads:
        yield from self._run(threads, fn, new)
      return
    try:
      yield from self._run(self._pool, fn, new)
    except process.BrokenProcessPool as e:
      raise WorkerDied(
        'a worker was killed, perhaps because memory ran out: run the same '
        'again, with fewer workers; what is finished stays'
      ) from e

  def _run(
    self,
    pool: futures.Executor,
    fn: Callable[[Any], Any],
    numbered: Iterable[tuple[int, Task]],
  ) -> Iterator[tuple[int, Any]]:
    """Runs tasks, a few ahead of the workers, so that none waits.

    An error does not wait for the tasks of a long list.
    """
    ahead = 2 * self._workers
    waiting: dict[futures.Future[Any], int] = {}
    left = iter(numbered)
    try:
      while True:
        for n, task in left:
          waiting[pool.submit(fn, task)] = n
          if len(waiting) >= ahead:
            break
        if not waiting:
          return
        done, _ = futures.wait(waiting, return_when=futures.FIRST_COMPLETED)
        for future in done:
          yield waiting.pop(future), future.result()
    finally:
      for future in waiting:
        future.cancel()

  def query(
    self, sql: str, views: Mapping[str, str | Sequence[str]], folder: Path
  ) -> None:
    import duckdb  # workers, and builds without a new query, do without it

    with duckdb.connect() as db:
      # A setting for the folder is needed, or DuckDB does not spill at all.
      db.execute(f"SET temp_directory = '{_quoted(self._spill)}'")
      db.execute(f"SET memory_limit = '{self._memory_mb}MiB'")
      db.execute(f'SET threads = {self._workers}')
      db.execute('SET preserve_insertion_order = false')
      for name, view in views.items():
        body = view if isinstance(view, str) else _parquet(view)
        db.execute(f'CREATE VIEW {name} AS {body}')
      try:
        db.execute(
          f"COPY ({sql}) TO '{_quoted(folder / '0.parquet')}' "
          f'(FORMAT parquet, ROW_GROUP_SIZE {_ROW_GROUP})'
        )
      except duckdb.IOException as e:
        raise errors.Storage(
          f'{folder}: {_first_line(e)}: make room, or make it writable'
        ) from e
      except duckdb.OutOfMemoryException as e:
        raise errors.Failure(
          f'engine.memory_mb={self._memory_mb} is not enough, or the disk is '
          f'full: {_first_line(e)}; give more'
        ) from e


def _is_done(task: Task) -> bool:
  """Tells whether the part that a task makes is there; the task checks it."""
  return 'output' in task and parts.exists(Path(task['output']))


def _quoted(path: str | Path) -> str:
  return str(path).replace("'", "''")


def _parquet(files: Sequence[str]) -> str:
  listed = ', '.join(f"'{_quoted(file)}'" for file in files)
  return f'SELECT * FROM read_parquet([{listed}], hive_partitioning=false)'


@contextlib.contextmanager
def _spark(workers: int, address: str | None) -> Iterator[Any]:
  """Opens a session of Spark.

  Args:
    workers: of tasks, on this machine.
    address: 'spark://host:port' of a cluster, 'sc://host:port' of Spark
      Connect, 'local[2]'; None: Sail, inside of this process.

  Raises:
    errors.Failure: a package is missing, or the cluster does not answer.
  """
  try:
    sql = importlib.import_module('pyspark.sql')
    is_client = importlib.import_module('pyspark.util').is_remote_only()
  except ModuleNotFoundError as e:
    raise errors.Failure(
      f'engine=spark needs pyspark: {errors.install("data")}; for a cluster '
      'install pyspark itself'
    ) from e
  if is_client and not (address or 'sc://').startswith('sc://'):
    raise errors.Failure(
      f'{names.short(str(address))}: pyspark-client cannot reach it; install '
      'pyspark in its place, or give the sc:// address of Spark Connect'
    )
  # It says so of every new version, and again for every query.
  warnings.filterwarnings(
    'ignore', 'PySpark does not yet fully support pandas', FutureWarning
  )
  with contextlib.ExitStack() as stack:
    if address is None:
      address = stack.enter_context(_sail())
    try:
      session = _session(sql.SparkSession.builder, workers, address)
    except Exception as e:  # of Java, of its gateway, or of the connection
      raise errors.Failure(
        f'{names.short(address)}: no session of Spark: {_first_line(e)}; see '
        'that the cluster runs and that Java 17 or later is installed'
      ) from e
    stack.callback(session.stop)
    yield session


def _session(builder: Any, workers: int, address: str) -> Any:
  if address.startswith('sc://'):
    return builder.remote(address).getOrCreate()
  # Python of the same version, or what one sends the other cannot read.
  os.environ.setdefault('PYSPARK_PYTHON', sys.executable)
  # Where this package is, should the machines not have it installed.
  paths = [str(Path(__file__).parents[2]), os.environ.get('PYTHONPATH', '')]
  settings = {
    'spark.executorEnv.PYTHONPATH': os.pathsep.join(filter(None, paths)),
    'spark.log.level': 'ERROR',
    'spark.sql.shuffle.partitions': str(4 * workers),
    'spark.ui.enabled': 'false',
    'spark.ui.showConsoleProgress': 'false',
  }
  return (
    builder.master(address)
    .appName('lm.corpus')
    .config(map=settings)
    .getOrCreate()
  )


def _first_line(e: Exception) -> str:
  """Returns what an error says first; those of Java go on with their stack."""
  lines = str(e).strip().splitlines() or [type(e).__name__]
  return ' '.join(lines[:2])[:120] if lines[0].endswith(':') else lines[0][:120]


@contextlib.contextmanager
def _sail() -> Iterator[str]:
  """Starts Sail, a server of Spark Connect without Java; gives its address."""
  try:
    sail = importlib.import_module('pysail.spark')
  except ModuleNotFoundError as e:
    raise errors.Failure(
      f'engine=spark without an address needs pysail: {errors.install("data")}'
    ) from e
  # Its log is of no use to who builds a corpus. The variable is read once.
  os.environ.setdefault('RUST_LOG', 'off')
  server = sail.SparkConnectServer()
  server.start(background=True)
  try:
    _, port = server.listening_address
    yield f'sc://localhost:{port}'
  finally:
    server.stop()


class Spark:
  """The Spark API."""

  def __init__(self, session: Any, workers: int):
    self._session = session
    self._workers = workers

  def run(
    self,
    fn: Callable[[Any], Any],
    tasks: Sequence[Task],
    *,
    in_threads: bool = False,
  ) -> Iterator[tuple[int, Any]]:
    if not tasks:
      return
    rows = [(n, json.dumps(task)) for n, task in enumerate(tasks)]
    frame = self._session.createDataFrame(rows, 'n int, task string')
    # Each task by itself: they are minutes of work at most, and rows are few.
    # From one partition they are dealt in turn; a key would be hashed, and
    # several tasks would share a partition.
    frame = frame.coalesce(1).repartition(len(rows))
    name = f'{fn.__module__}:{fn.__qualname__}'
    code = code_state.package_digest()
    try:
      run = functools.partial(_run_tasks, name, os.getcwd(), code)
      results = frame.mapInArrow(run, _RESULTS).collect()
    except Exception as e:  # pyspark's own, or Java's
      raise _failed(e) from e
    for row in results:
      if row.error:
        kind, text = json.loads(row.error)
        raise ValueError(text) if kind == 'ValueError' else errors.Failure(text)
    yield from ((row.n, json.loads(row.result)) for row in results)

  def query(
    self, sql: str, views: Mapping[str, str | Sequence[str]], folder: Path
  ) -> None:
    for name, view in views.items():
      frame = (
        self._session.sql(view)
        if isinstance(view, str)
        else self._session.read.parquet(*map(os.path.abspath, view))
      )
      frame.createOrReplaceTempView(name)
    frame = self._session.sql(sql)
    try:
      frame.write.mode('append').parquet(os.path.abspath(folder))
    except Exception as e:  # pyspark's own, or Java's
      raise _failed(e) from e
    for file in folder.iterdir():
      if file.suffix != '.parquet':
        file.unlink()  # marks and checksums of Spark
    if not any(folder.iterdir()):
      pq.write_table(frame.limit(0).toArrow(), folder / '0.parquet')


def _failed(e: Exception) -> WorkerDied:
  return WorkerDied(
    f'Spark gave up: {_first_line(e)}; run the same again: what is finished '
    'stays'
  )


def _run_tasks(
  name: str, folder: str, code: str, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
  """Runs the tasks of a partition, on a worker of Spark.

  Args:
    name: of the function, 'module:function'.
    folder: from which relative paths of the tasks lead.
    code: of the main program, see `code_state.package_digest`. A worker may
      live from one build to the next, and have loaded what was there before.
    batches: of tasks, as `Spark.run` makes them.
  """
  os.chdir(folder)
  module, _, function = name.partition(':')
  fn = getattr(importlib.import_module(module), function)
  for batch in batches:
    results: list[str] = []
    wrong: list[str] = []
    for task in batch.column('task').to_pylist():
      # What a user can mend is no fault of the worker, to be tried again.
      try:
        if code != code_state.package_digest():
          raise errors.Failure(
            'a worker of Spark has other code of lm than this program; install '
            'the same on all machines, start the workers anew, and run it again'
          )
        results.append(json.dumps(fn(json.loads(task))))
        wrong.append('')
      except (ValueError, errors.Failure) as e:
        results.append('null')
        wrong.append(json.dumps([type(e).__name__, str(e)]))
    yield pa.RecordBatch.from_arrays(
      [batch.column('n'), pa.array(results), pa.array(wrong)],
      names=['n', 'result', 'error'],
    )
