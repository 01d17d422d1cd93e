"""Stopping in good order: SIGTERM saves first, and never takes too long."""

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
  """A signal came inside `Stop.interrupting`. Nothing that catches all errors
  on the way may take it for one.
  """


class Stop:
  """Listens for SIGTERM and SIGINT while inside `with`.

  The first signal sets `requested`, which the training loop reads between
  steps. Python handlers wait while a compiler or a device runs, so a thread
  that is woken by the operating system holds the deadline: when the loop has
  not ended by then, or at the third signal, the process exits at once. Nothing
  is lost but the steps since the last save, and that save stays valid.

  Signals are only taken in the main thread; elsewhere (some notebooks) this
  does nothing.
  """

  def __init__(self, deadline_seconds: float = 25.0):
    """Takes the time from the first signal to the forced exit."""
    self.requested = False
    self._interrupts = False
    self._deadline_seconds = deadline_seconds
    self._over = threading.Event()
    self._old: dict[int, Any] = {}

  def __enter__(self) -> 'Stop':
    if threading.current_thread() is not threading.main_thread():
      return self
    self._read, self._write = socket.socketpair()
    # What the C-level handler writes to must never block.
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
    """Lets a signal end what is inside, which can be done again.

    Raises:
      Interrupted: where the signal came, as soon as a compiler or a device lets
        Python go on; or at once, if it has come already.
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
        self._read.settimeout(left)
        data = self._read.recv(16)
      except TimeoutError:
        break
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
        2, b'error: stopped without a save: the deadline or a third signal\n'
      )
      os._exit(EXIT_CODE)
