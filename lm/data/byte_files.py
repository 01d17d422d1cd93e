"""Opens files of strangers as UTF-8, in bounded memory.

What a file holds is known by its first bytes, because names are often wrong:
whether it is packed by gzip, bzip2, xz or zstandard, and in which encoding a
mark of byte order says that it is. A file that is no text is refused.
"""

import bz2
import codecs
from collections.abc import Callable, Iterator
import contextlib
import glob
import gzip
import io
import itertools
import lzma
import os
from pathlib import Path
import re
import stat
from typing import Any, BinaryIO
import zlib

import zstandard

from lm.data import names, remote_files

PACKED = ('.gz', '.bz2', '.xz', '.zst')  # how names of packed files end
_PIECE = 1 << 16  # bytes read or unpacked at once, and looked at to judge

# UTF-32 first, because its mark begins with that of UTF-16.
_MARKS = (
  (codecs.BOM_UTF32_LE, 'utf-32-le'),
  (codecs.BOM_UTF32_BE, 'utf-32-be'),
  (codecs.BOM_UTF16_LE, 'utf-16-le'),
  (codecs.BOM_UTF16_BE, 'utf-16-be'),
  (codecs.BOM_UTF8, 'utf-8'),
)
_GZIP = b'\x1f\x8b\x08'
# What no text begins with. All else is judged by the share of its bytes.
_OTHERS = (
  (b'PK\x03\x04', 'a zip archive'),
  (b'%PDF-', 'PDF'),
  (b'7z\xbc\xaf\x27\x1c', 'a 7z archive'),
  (b'Rar!\x1a\x07', 'a rar archive'),
  (b'\x04\x22\x4d\x18', 'packed by lz4'),
  (b'\x1f\x9d', 'packed by compress'),
  (b'SQLite format 3\0', 'a database of SQLite'),
)
# A share of bytes that are no text, above which a file is in another encoding
# or binary. Text in Latin letters of ISO 8859 has some 5 %, other scripts in
# other encodings and random bytes have more than half.
_MOST_BAD = 0.3
_FEW_BAD = 8  # so many say nothing about a short text
_BAD = ''.join({'\ufffd', *map(chr, range(32))} - {*'\b\t\n\v\f\r\x1b'})


def matching(pattern: str) -> list[str]:
  """Lists the files that a pattern matches, sorted.

  A path of a file is itself and no pattern: `a[1].txt` may exist beside
  `a1.txt`.
  """
  if Path(pattern).is_file():
    return [pattern]
  return sorted(
    file for file in glob.glob(pattern, recursive=True) if Path(file).is_file()
  )


def suffix(path: str) -> str:
  """Returns the suffix of what is packed: '.txt' for 'a.TXT.gz'."""
  if remote_files.is_address(path):
    path = path.partition('::')[0]  # a file inside of what follows
    if path.startswith('http'):
      path = re.split('[?#]', path, maxsplit=1)[0]
  name, last = os.path.splitext(path.lower())
  return os.path.splitext(name)[1] if last in PACKED else last


@contextlib.contextmanager
def stored(path: str, subject: str) -> Iterator[BinaryIO]:
  """Opens a file for its bytes as they are stored.

  Args:
    path: of the file, or its address, see `remote_files`.
    subject: the first word of an error, such as 'input'.

  Raises:
    ValueError: there is no such file, or it cannot be read.
  """
  if remote_files.is_address(path):
    with remote_files.opened(path, subject) as file:
      yield file
    return
  where = f'{subject} {names.short(path)}'
  with contextlib.ExitStack() as stack:
    try:
      # To open a pipe would wait for its writer.
      is_file = stat.S_ISREG(os.stat(path).st_mode)
      file = stack.enter_context(open(path, 'rb')) if is_file else None
    except FileNotFoundError as e:
      raise ValueError(f'{where}: no such file; check the path') from e
    except OSError as e:
      raise _unreadable(where, e) from e
    except ValueError as e:  # a NUL or a lone surrogate, which no path has
      raise ValueError(f'{where}: is no path ({e}); check it') from e
    if file is None:
      raise ValueError(f'{where}: is no file; check the path')
    yield file


@contextlib.contextmanager
def unpacked(path: str, subject: str) -> Iterator[io.BufferedReader]:
  """Opens a file as a stream of its bytes, unpacked if it is packed.

  Args:
    path: of the file.
    subject: the first word of an error, such as 'input'.

  Raises:
    ValueError: there is no such file, it cannot be read or is damaged. It comes
      while the stream is read where that is what shows it.
  """
  with stored(path, subject) as file:
    yield as_unpacked(file, path, subject)


def as_unpacked(file: BinaryIO, path: str, subject: str) -> io.BufferedReader:
  """Makes a stream of unpacked bytes of a file that is open.

  Args:
    file: see `stored`.
    path: of the file.
    subject: the first word of an error, such as 'input'.

  Raises:
    ValueError: see `unpacked`.
  """
  where = f'{subject} {names.short(path)}'
  return _buffered(_checked(_unpacked(file, path), where))


@contextlib.contextmanager
def opened(path: str, subject: str) -> Iterator[io.BufferedReader]:
  """Opens a file as a stream of UTF-8, see `as_text`.

  Args:
    path: of the file.
    subject: the first word of an error, such as 'input'.

  Raises:
    ValueError: see `unpacked` and `as_text`.
  """
  with unpacked(path, subject) as stream:
    yield as_text(stream, f'{subject} {names.short(path)}')


def as_text(stream: io.BufferedReader, where: str) -> io.BufferedReader:
  """Makes a stream of UTF-8, without a mark of byte order, of one of bytes.

  Bytes that are not UTF-8 are given as they are: to replace or to refuse them
  is for who reads.

  Args:
    stream: of the bytes of a text.
    where: it is from, for errors.

  Raises:
    ValueError: it is no text. It comes while the new stream is read.
  """
  pieces = iter(lambda: stream.read1(_PIECE), b'')
  return _buffered(_utf8(pieces, where))


def unpack(data: bytes, most: int) -> bytes:
  """Unpacks bytes by what they begin with; others are returned as they are.

  Args:
    data: packed by gzip, bzip2, xz or zstandard, or not.
    most: bytes of the result, after which the rest is left out. So is what
      follows damage.

  Raises:
    ValueError: they are damaged at their beginning.
  """
  pieces: list[bytes] = []
  size = 0
  try:
    for piece in _checked(_unpacked(io.BytesIO(data), ''), 'input'):
      pieces.append(piece)
      size += len(piece)
      if size >= most:
        break
  except ValueError:
    if not size:
      raise
  return b''.join(pieces)[:most]


def text(path: str, subject: str) -> str:
  """Reads a file of text.

  Args:
    path: of the file.
    subject: the first word of an error, such as 'task'.

  Raises:
    ValueError: see `opened`; or a byte is not UTF-8.
  """
  with opened(path, subject) as stream:
    data = stream.read()
  try:
    return data.decode()
  except UnicodeDecodeError as e:
    line = data.count(b'\n', 0, e.start) + 1
    raise not_utf8(f'{subject} {names.short(path)}: line {line}', e) from e


def decoded(data: bytes, where: str) -> str:
  """Decodes UTF-8, or raises ValueError with the byte that is not."""
  try:
    return data.decode()
  except UnicodeDecodeError as e:
    raise not_utf8(where, e) from e


def not_utf8(where: str, error: UnicodeDecodeError) -> ValueError:
  """Makes the error of a byte that is not UTF-8."""
  return ValueError(f'{where}: {cause(error)}; convert the file to UTF-8')


def cause(error: UnicodeDecodeError) -> str:
  """Names a byte that is not UTF-8, and an encoding that it may be from."""
  byte, guess = error.object[error.start], _guess(error.object)
  return f'byte 0x{byte:02x} is not UTF-8 ({guess}?)'


def _guess(data: bytes) -> str:
  """Guesses the encoding of bytes that are not UTF-8."""
  high = sum(byte >= 0x80 for byte in data[:_PIECE])
  # Letters with accents among those of ASCII, or another script.
  if high < _MOST_BAD * len(data[:_PIECE]):
    return 'latin1'
  return 'gb18030, shift_jis or another'


def _buffered(pieces: Iterator[bytes]) -> io.BufferedReader:
  """Makes a buffered stream of pieces of bytes."""
  stream: Any = _Stream(pieces)
  return io.BufferedReader(stream, _PIECE)


class _Stream(io.RawIOBase):
  """Makes a stream of pieces of bytes."""

  def __init__(self, pieces: Iterator[bytes]):
    self._pieces = pieces
    self._rest = memoryview(b'')

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while not self._rest:
      piece = next(self._pieces, None)
      if piece is None:
        return 0
      self._rest = memoryview(piece)
    size = min(len(buffer), len(self._rest))
    buffer[:size] = self._rest[:size]
    self._rest = self._rest[size:]
    return size


def _checked(pieces: Iterator[bytes], where: str) -> Iterator[bytes]:
  """Turns what is wrong with a file into one line."""
  try:
    yield from pieces
  except OSError as e:
    if e.errno is not None:
      raise _unreadable(where, e) from e
    raise _damaged(where, e) from e  # bz2 and gzip raise these without errno
  except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as e:
    if isinstance(e, zstandard.ZstdError) and 'memory' in str(e):
      raise ValueError(
        f'{where}: its window is too long for zstandard or for this memory; '
        'pack it again without --long'
      ) from e
    raise _damaged(where, e) from e


def _damaged(where: str, error: Exception) -> ValueError:
  why = ' '.join(str(error).split())[:60]
  return ValueError(f'{where}: damaged ({why}); fetch it again')


def _unreadable(where: str, error: OSError) -> ValueError:
  return ValueError(f'{where}: cannot be read ({error.strerror}); check it')


def _unpacked(file: BinaryIO, path: str) -> Iterator[bytes]:
  """Reads the content of a file in pieces, of every member if it is packed.

  Raises:
    EOFError: a member ends early.
    OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError: one is damaged, or
      is followed by something else.
  """
  head = file.read(16)
  file.seek(0)
  if head.startswith(_GZIP):
    stream = gzip.GzipFile(fileobj=file)
    # `read` would lose what comes before damage.
    yield from iter(lambda: stream.read1(_PIECE), b'')
  elif head.startswith(b'\xfd7zXZ\0'):
    yield from _members(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ))
  # A block, or the end of an empty file, follows the level.
  elif head[:3] == b'BZh' and head[4:10] in (b'1AY&SY', b'\x17rE8P\x90'):
    yield from _members(file, bz2.BZ2Decompressor)
  elif head[:4] == b'\x28\xb5\x2f\xfd' or (
    head[1:4] == b'\x2a\x4d\x18' and head[0] >> 4 == 5  # a frame to skip
  ):
    yield from _members(file, _Zstandard)
  elif head and path.lower().endswith(PACKED):
    raise EOFError(f'named {Path(path).suffix}, but not packed')
  else:
    yield from iter(lambda: file.read(_PIECE), b'')


def _members(file: BinaryIO, make: Callable[[], Any]) -> Iterator[bytes]:
  """Unpacks members one after another, in bounded memory.

  Unlike bz2.open and lzma.open, it refuses what follows a member and is none.
  """
  data = file.read(_PIECE)
  while data:
    member = make()
    while not member.eof:
      if member.needs_input and not data:
        data = file.read(_PIECE)
        if not data:
          raise EOFError('it ends early')
      yield member.decompress(data, _PIECE)
      data = b''
    data = member.unused_data.lstrip(b'\0')  # padding, which xz allows
    while not data and (more := file.read(_PIECE)):
      data = more.lstrip(b'\0')


class _Zstandard:
  """Unpacks a frame, with the interface of `lzma.LZMADecompressor`."""

  # It unpacks all that it is given, and 4 bytes may become 128 KiB.
  _AT_ONCE = 512
  # The longest window that zstd writes, by --long=31. Memory is taken as the
  # content fills it: a short file that says so takes no more.
  _WINDOW = 1 << 31

  def __init__(self):
    unpacker = zstandard.ZstdDecompressor(max_window_size=self._WINDOW)
    self._frame = unpacker.decompressobj()
    self._rest = b''

  @property
  def eof(self) -> bool:
    return self._frame.eof

  @property
  def needs_input(self) -> bool:
    return not self._rest

  @property
  def unused_data(self) -> bytes:
    return self._frame.unused_data + self._rest

  def decompress(self, data: bytes, max_length: int) -> bytes:
    del max_length  # is bounded by the input
    data = self._rest + data
    self._rest = data[self._AT_ONCE :]
    return self._frame.decompress(data[: self._AT_ONCE])


def _utf8(pieces: Iterator[bytes], where: str) -> Iterator[bytes]:
  """Changes the encoding that a mark of byte order names to UTF-8.

  Raises:
    ValueError: the content is no text, or not in that encoding.
  """
  head = b''
  for piece in pieces:
    head += piece
    if len(head) >= _PIECE:
      break
  encoding = 'utf-8'
  for mark, name in _MARKS:
    if head.startswith(mark):
      head, encoding = head[len(mark) :], name
      break
  _check_text(head, head.decode(encoding, 'replace'), where)
  pieces = itertools.chain([head], pieces)
  if encoding == 'utf-8':
    yield from pieces
    return
  # A half of a pair that stands alone becomes bytes that are not UTF-8, so that
  # it is met by the same rule as they.
  decoder = codecs.getincrementaldecoder(encoding)('surrogatepass')
  try:
    for piece in pieces:
      yield decoder.decode(piece).encode('utf-8', 'surrogatepass')
    decoder.decode(b'', True)
  except UnicodeDecodeError as e:
    raise _damaged(where, e) from e


def _check_text(head: bytes, first: str, where: str) -> None:
  """Checks that the beginning of a file is text.

  Args:
    head: its bytes.
    first: them decoded, by 'replace'.
    where: the file is, for the error.

  Raises:
    ValueError: it is none.
  """
  for magic, name in _OTHERS:
    if head.startswith(magic):
      raise ValueError(f'{where}: is {name} and no text; unpack or convert it')
  bad = sum(first.count(c) for c in _BAD)
  if bad > max(_FEW_BAD, _MOST_BAD * len(first)):
    raise ValueError(
      f'{where}: is no text in UTF-8, but binary or in another encoding; '
      'convert it to UTF-8'
    )
