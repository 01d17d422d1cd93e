"""Reads batches ahead of their use, and reports a reader that hangs."""

from collections.abc import Generator
from concurrent import futures
import errno
import functools
import operator
import os
import threading

import grain

from lm import errors, types
from lm.data import stream
from lm.runtime import faults


class Stalled(errors.Storage):
  """No batch came in time.

  A thread that hangs in the file system cannot be stopped, and Python waits
  for it at exit: a program that wants to end now leaves by `os._exit`.

  Attributes:
    hangs: tells `config.main` so.
  """

  hangs = True


def batches(
  data: stream.Data,
  start: int,
  stop: int,
  *,
  threads: int = 2,
  prefetch: int = 4,
  host: int = 0,
  hosts: int = 1,
  deadline_seconds: float = 25.0,
) -> Generator[tuple[int, types.Batch], None, None]:
  """Reads steps [start, stop) ahead of their use.

  Args:
    data: what to read.
    start: first step.
    stop: the step after the last.
    threads: number of readers; 0: read only when a batch is asked for.
    prefetch: number of batches held ready in memory.
    host: number of this host, whose rows are read.
    hosts: number of all hosts.
    deadline_seconds: longest wait for one batch. With a minute, a run would
      not end within half a minute of the fault.

  Yields:
    (step, Batch), in order.

  Raises:
    ValueError: a shard is damaged.
    Stalled: a batch did not come within the deadline.
    errors.Storage: a reader has failed.
  """
  threads = min(threads, prefetch)
  dataset = grain.MapDataset.source(_Steps(data, start, stop, host, hosts))
  iterator = iter(
    dataset.to_iter_dataset(
      grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=prefetch if threads else 0
      )
    )
  )
  # grain waits for its readers without a deadline, so a thread of our own waits
  # for grain, and this one waits for that thread.
  waiter = futures.ThreadPoolExecutor(1, thread_name_prefix='lm-data')
  try:
    for step in range(start, stop):
      pending = waiter.submit(next, iterator)
      try:
        batch = pending.result(deadline_seconds)
      except TimeoutError as e:
        where = ', '.join(data.reading()[:2]) or 'no shard'
        raise Stalled(
          f'data: no batch for step {step} in {deadline_seconds:g} s, reading '
          f'{where}; check that storage'
        ) from e
      yield step, batch
  finally:
    # Without waiting: the thread may hang in the file system.
    waiter.shutdown(wait=False, cancel_futures=True)
    iterator.close()


class _Steps:
  """Gives grain random access to steps: one element is one whole batch."""

  def __init__(
    self, data: stream.Data, start: int, stop: int, host: int, hosts: int
  ):
    self._batch = functools.partial(data.batch, host=host, hosts=hosts)
    self._steps = range(start, stop)

  def __len__(self) -> int:
    return len(self._steps)

  def __getitem__(self, index: int) -> types.Batch:
    step = self._steps[operator.index(index)]
    try:
      if step in faults.at('fail_read'):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
      return self._batch(step)
    except OSError as error:
      name = threading.current_thread().name
      raise errors.Storage(
        f'data: reader {name} failed at step {step}: {errors.refusal(error)};'
        ' check that storage'
      ) from error
