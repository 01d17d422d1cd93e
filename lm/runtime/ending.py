"""Ends a process at once, with one line, whatever its threads are doing."""

import os
import threading
from typing import NoReturn

from lm import config

_PRINT_SECONDS = 2.0  # in which the line is read, or is lost


def exit_with(text: str, code: int) -> NoReturn:
  """Prints one line and ends, whatever other threads are waiting for."""
  line = f'{config.last_line(text, code)}\n'.encode()
  try:
    # A pipe that nobody reads must not hold this up.
    thread = threading.Thread(target=os.write, args=(2, line), daemon=True)
    thread.start()
    thread.join(_PRINT_SECONDS)
  finally:
    os._exit(code)
