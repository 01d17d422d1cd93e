"""Keeps standard input in a file, so that it can be read like any other.

It can be read once, but a split reads its input twice, and what a file holds is
known by its beginning or its end.
"""

import atexit
import contextlib
import functools
import os
import re
import shutil
import sys
import tempfile

from lm.data import byte_files
from lm.runtime import temporary

NAME = '-'  # of standard input, or '-.csv' to say which kind it is
_JSON = re.compile(rb'\s*(\[\s*)?\{\s*["}\r\n]')


def is_named(pattern: str) -> bool:
  """Tells if a pattern means standard input."""
  return pattern == NAME or pattern.startswith(f'{NAME}.')


@functools.cache  # there is one, which can be read once
def file(name: str) -> str:
  """Copies standard input to a file, which goes with this process.

  Args:
    name: '-', or '-' and the ending of the kind that it is. Without one, what
      begins like an object of JSON is JSON, and other text is plain text.

  Returns:
    The path of the file, in the folder for temporary files.

  Raises:
    ValueError: the file cannot be written, or there is no standard input.
  """
  if sys.stdin is None:
    raise ValueError('input -: standard input is closed; give a file')
  try:
    kept = contextlib.ExitStack()
    atexit.register(kept.close)
    folder = kept.enter_context(temporary.folder('lm-stdin-'))
    copy = os.path.join(folder, 'stdin')
    with open(copy, 'xb') as output:
      shutil.copyfileobj(sys.stdin.buffer, output, 1 << 20)
    path = copy + (name[len(NAME) :] or _suffix(copy))
    os.rename(copy, path)
  except OSError as e:
    raise ValueError(
      f'input -: cannot be kept in {tempfile.gettempdir()[:60]} '
      f'({e.strerror}); set TMPDIR to a folder with room'
    ) from e
  return path


def _suffix(path: str) -> str:
  """Returns the ending of a kind of text, by how it begins."""
  try:
    with byte_files.opened(path, 'input') as stream:
      return '.jsonl' if _JSON.match(stream.peek(1)) else '.txt'
  except ValueError:  # no text; what it is its content says to who reads it
    return '.txt'
