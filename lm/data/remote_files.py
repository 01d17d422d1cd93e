"""Reads files at addresses, such as gs://bucket/file, through fsspec.

An address is a protocol, '://' and a path. Requests are repeated where the
package of the protocol does so, as gcsfs does for gs://.
"""

from collections.abc import Callable, Iterator
import contextlib
import io
import re
from typing import Any, BinaryIO, TypeVar

from lm import errors
from lm.data import names
from lm.runtime import logins

T = TypeVar('T')
_ADDRESS = re.compile(r'([a-zA-Z][a-zA-Z0-9+.-]+)://')


def is_address(path: str) -> bool:
  """Tells an address from a path on this machine."""
  return bool(_ADDRESS.match(path))


def matching(pattern: str, subject: str) -> list[str]:
  """Lists the addresses of the files that a pattern matches, sorted.

  Args:
    pattern: an address. One that names a file is itself and no pattern.
    subject: the first word of an error, such as 'input'.

  Raises:
    ValueError: see `opened`.
  """
  where = f'{subject} {names.short(pattern)}'

  def find() -> list[str]:
    system, path = _system(pattern, where)
    if system.isfile(path):
      return _addresses(system, [path], pattern)
    found = system.glob(path, detail=True)
    paths = [path for path, info in found.items() if info['type'] == 'file']
    return _addresses(system, paths, pattern)

  return _asked(find, where)


def inside(folder: str, subject: str) -> list[str] | None:
  """Lists the addresses of the files in a folder, at any depth, sorted.

  Args:
    folder: an address.
    subject: the first word of an error, such as 'input'.

  Returns:
    None: it is no folder.

  Raises:
    ValueError: see `opened`.
  """
  where = f'{subject} {names.short(folder)}'

  def find() -> list[str] | None:
    system, path = _system(folder, where)
    if not system.isdir(path):
      return None
    return _addresses(system, system.find(path), folder)

  return _asked(find, where)


@contextlib.contextmanager
def opened(address: str, subject: str) -> Iterator[BinaryIO]:
  """Opens a file, which is read in pieces as they are needed.

  Args:
    address: of the file.
    subject: the first word of an error, such as 'input'.

  Raises:
    ValueError: there is no such file, it cannot be read, or the package of its
      protocol is not installed. It comes while the file is read where that is
      what shows it.
  """
  where = f'{subject} {names.short(address)}'

  # The file system is kept for as long: an archive closes when it goes.
  system, path = _asked(lambda: _system(address, where), where)
  stored: Any = _File(_asked(lambda: system.open(path, 'rb'), where), where)
  with stored:
    yield stored


def _system(address: str, where: str) -> tuple[Any, str]:
  """Finds the file system of an address, and the path in it."""
  try:
    from fsspec import core
  except ModuleNotFoundError as e:
    raise ValueError(
      f'{where}: an address needs fsspec: {errors.install("gcs")}'
    ) from e
  try:
    return core.url_to_fs(address)
  except ImportError as e:
    how = errors.install('gcs') if address.startswith(('gs:', 'gcs:')) else e
    raise ValueError(
      f'{where}: needs a package: {logins.hidden(str(how))[:90]}'
    ) from e


def _addresses(system: Any, paths: list[str], address: str) -> list[str]:
  """Returns the addresses of paths in the file system of an address, sorted."""
  # zip://file::gs://archive is a file inside of another one.
  _, chain, outer = address.partition('::')
  return sorted(system.unstrip_protocol(path) + chain + outer for path in paths)


def _asked(call: Callable[[], T], where: str) -> T:
  """Makes a request, and turns what goes wrong into one line.

  Raises:
    ValueError: it failed.
  """
  try:
    return call()
  except FileNotFoundError as e:
    raise ValueError(f'{where}: no such file; check the address') from e
  except PermissionError as e:
    raise ValueError(f'{where}: no permission to read it; log in') from e
  except Exception as e:  # each protocol has errors of its own
    if type(e) is ValueError and str(e).startswith(where):
      raise
    why = logins.hidden(' '.join(str(e).split()))[:60] or type(e).__name__
    raise ValueError(
      f'{where}: cannot be read ({why}); check the address and the network'
    ) from e


class _File(io.RawIOBase):
  """Reads a remote file, with errors of one line."""

  def __init__(self, file: Any, where: str):
    self._file, self._where = file, where

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    data = self.read(len(buffer))
    buffer[: len(data)] = data
    return len(data)

  def read(self, size: int = -1) -> bytes:
    return _asked(lambda: self._file.read(size), self._where)

  def seek(self, offset: int, whence: int = 0) -> int:
    return _asked(lambda: self._file.seek(offset, whence), self._where)

  def tell(self) -> int:
    return self._file.tell()

  def close(self):
    if not self.closed:
      self._file.close()
    super().close()
