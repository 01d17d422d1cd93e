"""Waiting for other hosts: for what they have written or let go of."""

from collections.abc import Callable
import time

# A network file system may hide a new file from other hosts for this long.
LONGEST_SECONDS = 60.0


def wait_until(condition: Callable[[], bool]) -> bool:
  """Waits until a condition holds; returns False if it takes too long."""
  deadline = time.monotonic() + LONGEST_SECONDS
  while not condition():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.1)
  return True
