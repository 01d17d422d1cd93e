"""Waiting for other hosts and for storage, never without a deadline."""

from collections.abc import Callable
from concurrent import futures
import threading
import time
from typing import TypeVar

from lm import errors

T = TypeVar('T')

# A network file system may hide a new file from other hosts for this long.
LONGEST_SECONDS = 60.0
# Storage that is only slow gives a part of a file in less.
STALLED_SECONDS = 120.0
_reached: dict[int, str] = {}  # by thread: what it reads now


def wait_until(condition: Callable[[], bool]) -> bool:
  """Waits until a condition holds; returns False if it takes too long."""
  deadline = time.monotonic() + LONGEST_SECONDS
  while not condition():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.1)
  return True


def reached(what: object) -> None:
  """Says what a thread reads now, for the deadline of `watched`."""
  _reached[threading.get_ident()] = str(what)


def watched(work: Callable[[], T], where: object) -> T:
  """Returns what `work` returns, as long as it goes on reading.

  It runs in a thread, since a read that hangs in the kernel cannot be ended; it
  says by `reached` how far it is.

  Args:
    work: reads files.
    where: what it reads first.

  Raises:
    errors.Storage: nothing new was reached for too long.
  """
  answer: futures.Future[T] = futures.Future()

  def run():
    reached(where)
    try:
      answer.set_result(work())
    except BaseException as error:
      answer.set_exception(error)
    finally:
      _reached.pop(threading.get_ident(), None)

  # A daemon, so that it cannot keep the process alive.
  thread = threading.Thread(target=run, name='verify', daemon=True)
  thread.start()
  before, waits = '', 0
  while True:
    # In short waits that are counted: a process that was stopped for an hour
    # and goes on has not waited for an hour.
    thread.join(STALLED_SECONDS / 120)
    if answer.done():
      return answer.result()
    now = _reached.get(thread.ident or 0, '')
    before, waits = now, waits + 1 if now == before else 0
    if waits > 120:
      raise errors.Storage(
        f'{now.partition(" from byte ")[0]}: nothing was read for'
        f' {STALLED_SECONDS:g} s: storage does not answer; check it'
      )
