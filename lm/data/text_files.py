"""Cuts text files into documents, long texts into pieces, and decodes them."""

import collections
from collections.abc import Iterator
import io

from lm.data import byte_files

# The last two are those of WikiText.
SUFFIXES = ('.txt', '.md', '.markdown', '.rst', '.tex', '.tokens', '.raw')
ERRORS = ('replace', 'skip', 'strict')
UNITS = ('file', 'line', 'paragraph')
_PLACE = 25  # characters that an error has room for
_CUT = 'pieces cut from long documents'


def units(
  stream: io.BufferedReader,
  unit: str,
  most: int,
  counts: collections.Counter[str],
) -> Iterator[tuple[str, bytes]]:
  """Cuts a text file into its units, and units that are too long in pieces.

  Args:
    stream: of UTF-8.
    unit: one of `UNITS`. A paragraph ends at an empty line.
    most: bytes of a document.
    counts: the number of cuts is added here.

  Yields:
    The place of a document, such as 'line 3', 'line 3, piece 2', 'piece 1', or
    '' for a whole file; and its bytes. A paragraph has the place of its first
    line.
  """
  parts: list[bytes] = []  # of the current document
  size = 0
  line, first = 1, 1  # numbers of the current line, and of where `parts` began
  piece = 0  # number of pieces that were cut from the current document

  def place(is_piece: bool) -> str:
    names = [f'line {first}'] if unit != 'file' else []
    return ', '.join(names + [f'piece {piece + 1}'] * is_piece)

  # A line can be as long as the file, so no more than the rest of a document is
  # read at once.
  while data := stream.readline(most - size):
    if not parts and not piece:
      first = line
    ends = data.endswith(b'\n')
    line += ends
    is_last = ends if unit == 'line' else not data.strip()
    if is_last and unit != 'file':
      if unit == 'line' and not parts and not piece:
        # Most lines; there are many.
        yield f'line {first}', data.rstrip(b'\r\n')
      elif unit == 'line':
        yield place(piece > 0), b''.join([*parts, data]).rstrip(b'\r\n')
      elif parts:
        yield place(piece > 0), b''.join(parts).strip(b'\r\n')
      parts, size, piece = [], 0, 0
      continue
    parts.append(data)
    size += len(data)
    if size >= most:
      whole = b''.join(parts)
      # What follows the cut, half a character perhaps, opens the next piece.
      end = cut(whole)
      counts[_CUT] += 1
      yield place(True), whole[:end]
      piece += 1
      parts, size = [whole[end:]] if whole[end:] else [], len(whole) - end
  # An empty file counts as one empty document.
  if parts or (not piece and unit == 'file'):
    rest = b''.join(parts)
    yield place(piece > 0), rest if unit == 'file' else rest.strip(b'\r\n')


def pieces(
  place: str, data: bytes, most: int, counts: collections.Counter[str]
) -> Iterator[tuple[str, bytes]]:
  """Cuts a text in pieces of at most `most` bytes, if it is longer.

  Args:
    place: of the text.
    data: in UTF-8.
    most: bytes of a piece.
    counts: the number of cuts is added here.

  Yields:
    The place of a piece, which is `place` if the text is short, and its bytes.
  """
  if len(data) <= most:
    yield place, data
    return
  piece = 1
  while len(data) > most:
    end = cut(data[:most])
    counts[_CUT] += 1
    yield f'{place}, piece {piece}', data[:end]
    data = data[end:]
    piece += 1
  yield f'{place}, piece {piece}', data


def cut(data: bytes) -> int:
  """Finds where to cut a text that is too long.

  That is after its last line, if that keeps half of the text, or else between
  two characters.
  """
  line = data.rfind(b'\n') + 1
  if line > len(data) // 2:
    return line
  # A character of UTF-8 has up to 4 bytes; all but its first are 10xxxxxx.
  for back in range(1, min(4, len(data) - 1)):
    if data[-back] & 0xC0 != 0x80:
      return len(data) - back if data[-back] >= 0xC0 else len(data)
  return len(data)


def decode(
  raw: bytes | str,
  errors: str,
  counts: collections.Counter[str],
  where: str,
  place: str,
) -> str | None:
  """Decodes a text.

  Args:
    raw: bytes of UTF-8, or a string that may have lone surrogates.
    errors: what to do if it is not Unicode, one of `ERRORS`.
    counts: of what happened.
    where: the file is, for the error.
    place: of the text in it.

  Returns:
    None: the text is not Unicode, and is left out.

  Raises:
    ValueError: it is not Unicode, and `errors` is 'strict'.
  """
  try:
    if isinstance(raw, bytes):
      return raw.decode()
    raw.encode()
    return raw
  except UnicodeError as e:
    if errors == 'strict':
      name = f'{where}: {place[:_PLACE]}' if place else where
      raise ValueError(
        f'{name} is not Unicode ({_cause(raw)}); mend it or set errors to '
        'replace'
      ) from e
    if errors == 'skip':
      counts['not Unicode, left out'] += 1
      return None
    counts['not Unicode, replaced by U+FFFD'] += 1
    if isinstance(raw, str):
      # The two halves of a surrogate pair become one character, if they stand
      # side by side.
      raw = raw.encode('utf-16-le', 'surrogatepass')
      return raw.decode('utf-16-le', 'replace')
    return raw.decode('utf-8', 'replace')


def _cause(raw: bytes | str) -> str:
  """Says what in a text is not Unicode."""
  try:
    data = (
      raw.encode('utf-8', 'surrogateescape') if isinstance(raw, str) else raw
    )
    data.decode()
  except UnicodeDecodeError as e:
    return byte_files.cause(e)
  except UnicodeEncodeError:
    pass
  return 'half of a surrogate pair'
