"""Stops a run in good order: SIGTERM saves first, and never takes too long."""

from collections.abc import Iterator
import contextlib
import os
import signal
import socket
import threading
import time
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


class Stopped(RuntimeError):
  """Training was asked to stop, and has saved."""

  exit_code = EXIT_CODE


class Interrupted(BaseException):
  """A signal came inside `Stop.interrupting`.

  It is no `Exception`, so that code which catches all errors on the way lets it
  pass.
  """


class Stop:
  """Listens for SIGTERM and SIGINT while inside `with`.

  The first signal sets `requested`, which the training loop reads between
  steps. Python's handlers have to wait while a compiler or a device runs, so a
  thread that the operating system wakes keeps the deadline. When the loop has
  not ended by then, or at the third signal, the process exits at once. Only the
  steps since the last save are lost, and that save stays valid.

  Python delivers signals to the main thread alone. Elsewhere, as in some
  notebooks, this does nothing.

  Attributes:
    requested: True once a signal has come.
  """

  def __init__(self, deadline_seconds: float):
    """Prepares to listen.

    Args:
      deadline_seconds: from the first signal to the forced exit.
    """
    self.requested = False
    self._interrupts = False
    self._deadline_seconds = deadline_seconds
    self._over = threading.Event()
    self._old: dict[int, Any] = {}

  def __enter__(self) -> 'Stop':
    if threading.current_thread() is not threading.main_thread():
      return self
    self._read, self._write = socket.socketpair()
    # Python's handler in C writes the number of each signal to this socket, and
    # must never block.
    self._write.setblocking(False)
    self._old_fd = signal.set_wakeup_fd(
      self._write.fileno(), warn_on_full_buffer=False
    )
    for number in (signal.SIGTERM, signal.SIGINT):
      self._old[number] = signal.signal(number, self._handle)
    threading.Thread(target=self._watch, name='lm-stop', daemon=True).start()
    return self

  def __exit__(self, *unused: object) -> None:
    self._over.set()
    if self._old:
      signal.set_wakeup_fd(self._old_fd)
      for number, handler in self._old.items():
        signal.signal(number, handler)
      self._write.close()

  @contextlib.contextmanager
  def interrupting(self) -> Iterator[None]:
    """Lets a signal interrupt the body of `with`, which can be done again.

    Raises:
      Interrupted: a signal came, and compiler or device let Python go on; or it
        had come before.
    """
    self._interrupts = True
    try:
      if self.requested:
        raise Interrupted
      yield
    finally:
      self._interrupts = False

  def _handle(self, *unused: object) -> None:
    if self._interrupts:
      self.requested, self._interrupts = True, False
      raise Interrupted

  def _watch(self) -> None:
    signals = 0
    deadline = None
    while True:
      try:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
          break
        # The system takes no wait of years.
        self._read.settimeout(left and min(left, 3600.0))
        data = self._read.recv(16)
      except TimeoutError:
        continue  # which ends at the deadline
      if not data:  # closed by __exit__
        self._read.close()
        return
      hits = sum(n in (signal.SIGTERM, signal.SIGINT) for n in data)
      signals += hits
      if hits and deadline is None:
        self.requested = True
        deadline = time.monotonic() + self._deadline_seconds
      if signals >= 3:
        break
    if not self._over.is_set():
      os.write(
        2, b'stopped: without a save: the deadline or a third signal came\n'
      )
      os._exit(EXIT_CODE)
