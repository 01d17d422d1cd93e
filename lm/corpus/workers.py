"""The processes of a build's pool, and what they do without."""

from collections.abc import Iterator
from concurrent.futures import process
import contextlib
from importlib import abc
import multiprocessing
from multiprocessing import connection
import os
import signal
import sys
import threading
from typing import Any

import pyarrow as pa


@contextlib.contextmanager
def pool(workers: int) -> Iterator[process.ProcessPoolExecutor]:
  """Starts processes that end with this one, however it ends."""
  context = multiprocessing.get_context('forkserver')
  # Loaded once, and shared by all workers: what the main program loads, which
  # they load too.
  context.set_forkserver_preload(['lm.corpus.build'])
  executor = process.ProcessPoolExecutor(
    workers, context, initializer=_initialize
  )
  try:
    yield executor
    executor.shutdown()
  except BaseException:
    for worker in [*(executor._processes or {}).values()]:
      worker.kill()  # parts are whole or not there
    # Not waited for, its thread may be at its end when Python is, too, which
    # then prints a traceback.
    executor.shutdown(cancel_futures=True)
    raise


def without_pandas() -> None:
  """Keeps pyarrow from loading pandas, which it does with its first array.

  That takes 30 MB and a quarter of a second in each process, and the factory
  has no use for it. Who imports pandas later can convert tables as ever.
  """
  if 'pandas' in sys.modules:
    return
  hidden = _Hidden()
  sys.meta_path.insert(0, hidden)
  try:
    pa.array([0])
  finally:
    sys.meta_path.remove(hidden)


class _Hidden(abc.MetaPathFinder):
  """Lets imports of pandas fail as if it were not installed."""

  def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
    if fullname == 'pandas':
      raise ModuleNotFoundError(fullname, name=fullname)


def _initialize() -> None:
  """Prepares a worker."""
  without_pandas()
  # Arrow's own allocators keep what is free, a fifth of a worker's memory.
  pa.set_memory_pool(pa.system_memory_pool())
  # Ctrl-C goes to the whole group of processes; the main one ends the others.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None
  sentinel = parent.sentinel

  def watch() -> None:
    connection.wait([sentinel])
    os._exit(1)  # nobody waits for a result any more

  threading.Thread(target=watch, daemon=True).start()
