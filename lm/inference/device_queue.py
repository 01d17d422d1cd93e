"""The device of a service: it works for one request at a time."""

from collections.abc import Iterator
import contextlib
import threading

from lm.inference import http_server


class DeviceQueue:
  """A short queue for the device."""

  def __init__(self, waiting: int):
    """Takes how many requests may wait."""
    self._waiting = waiting
    self._device = threading.Lock()  # held by the request that is worked on
    self._places = threading.BoundedSemaphore(1 + waiting)

  @contextlib.contextmanager
  def turn(self, exchange: http_server.Exchange) -> Iterator[None]:
    """Waits until it is this request's turn, and holds the device.

    Raises:
      http_server.Refused: too many wait already, or the time is over.
      http_server.ClientLeft: nobody waits for the answer any more.
    """
    if not self._places.acquire(blocking=False):
      raise http_server.Refused(
        f'{self._waiting} requests wait already: try again later', 429, 'busy'
      )
    try:
      while not self._device.acquire(timeout=0.1):
        exchange.check()  # the client may have left the queue
      try:
        yield
      finally:
        self._device.release()
    finally:
      self._places.release()
