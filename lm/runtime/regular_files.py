"""Files of a run's folder: plain files, which lead nowhere and end.

Whoever gives a run away may have put a link there, which leads out of the
folder, or a pipe or device, at which a program would wait for ever.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import io
import os
from pathlib import Path
import shutil
import stat
import time

from lm import errors

# A pipe without a partner then gives an error or the end, and does not block.
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK


def open_read(path: Path) -> io.BufferedReader:
  """Opens a plain file for reading.

  Raises:
    FileNotFoundError: there is none.
    OSError: it is something else, or cannot be read.
  """
  return os.fdopen(_opened(path, os.O_RDONLY), 'rb')


def read(path: Path) -> bytes:
  """Reads a file that its user has named, through links too.

  Raises:
    FileNotFoundError: there is none.
    OSError: it is a folder, a pipe or a device, or cannot be read.
  """
  with open_read(path.resolve()) as file:
    return file.read()


def open_append(path: Path) -> io.BufferedRandom:
  """Opens a plain file for reading, and for writing at its end; may make it.

  Raises:
    OSError: it is something else, or cannot be written.
  """
  fd = _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
  return os.fdopen(fd, 'rb+')


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
  """Turns what the system refuses while a file is written into one line.

  Raises:
    errors.Storage: with the path, the cause and the room that is left.
  """
  try:
    yield
  except FileNotFoundError:
    raise  # of another place, or a bug
  except OSError as error:
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    raise errors.Storage(
      f'{os.fspath(path)}: cannot be written: {error.strerror or error} ({free}'
      ' bytes free): make room, or make it writable'
    ) from error


@contextlib.contextmanager
def exclusive(path: Path, seconds: float, late: Exception) -> Iterator[None]:
  """Lets one process of this machine at a time into the body of `with`.

  Where the file system has no locks, all are let in.

  Args:
    path: of the file that is locked; may be made.
    seconds: how long to wait for another process.
    late: raised when that was not enough.
  """
  deadline = time.monotonic() + seconds
  with contextlib.ExitStack() as stack:
    while not _is_locked(stack.enter_context(open_append(path)), path):
      stack.close()
      if time.monotonic() > deadline:
        raise late from None
      time.sleep(0.01)
    yield


def _is_locked(file: io.BufferedRandom, path: Path) -> bool:
  """Locks a file; tells whether it could, and the path still leads to it."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    pass
  # The process that had the lock may have removed the file with its folder.
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False


def kind(path: Path) -> str | None:
  """Says what a name stands for: 'folder', 'file', 'link' or 'pipe or device'.

  None where there is nothing.
  """
  try:
    mode = path.lstat().st_mode
  except (FileNotFoundError, NotADirectoryError):
    return None
  if stat.S_ISLNK(mode):
    return 'link'
  if stat.S_ISDIR(mode):
    return 'folder'
  return 'file' if stat.S_ISREG(mode) else 'pipe or device'


def _opened(path: Path, flags: int) -> int:
  try:
    fd = os.open(path, flags | _FLAGS, 0o666)
  except OSError as error:
    if error.errno not in (errno.ELOOP, errno.ENXIO):
      raise
    raise _not_plain(path) from error
  if not stat.S_ISREG(os.fstat(fd).st_mode):
    os.close(fd)
    raise _not_plain(path)
  return fd


def _not_plain(path: Path) -> OSError:
  return OSError(
    errno.EINVAL, f'is no plain file but a {kind(path)}', str(path)
  )
