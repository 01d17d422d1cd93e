"""Reads the values of JSON lines and JSON arrays, in bounded memory."""

import codecs
from collections.abc import Iterator
import io
import json
import re
from typing import Any, NamedTuple

from lm.data import byte_files

NOT_JSON, TOO_LONG = 'is not JSON', 'is too long'
_PIECE = 1 << 16  # bytes read at once
_SPACE = re.compile(r'[ \t\n\r]*')
_MOST = (1 << 62) - 1  # bytes of a value, if it is not said


class Value(NamedTuple):
  """A value of a file.

  Attributes:
    place: where it is, for errors: 'line 3' or 'element 3'.
    value: of JSON; None where there is a fault.
    fault: why a line has no value, `NOT_JSON` or `TOO_LONG`; or ''.
  """

  place: str
  value: Any
  fault: str = ''


def values(
  stream: io.BufferedReader,
  where: str,
  *,
  errors: str = 'strict',
  most: int = _MOST,
) -> Iterator[Value]:
  """Reads values one after another, each on a line of its own, or of an array.

  A file that begins with '[' and '{' is an array of objects, and its elements
  are read. Values may go over many lines there, and where '{' stands alone on
  the first line.

  Args:
    stream: of UTF-8.
    where: it is from, for errors.
    errors: 'strict', or how else to decode what is not UTF-8, see `codecs`.
    most: bytes that a line or a value may have.

  Raises:
    ValueError: a value that does not end with its line is not JSON or is too
      long, so that where the next one begins is unknown; or a byte is not
      UTF-8, and `errors` is 'strict'.
  """
  head = stream.peek(1).lstrip()
  # Lines may be arrays of something else, such as a text and its label.
  if head.startswith(b'[') and head[1:].lstrip()[:1] in (b'{', b']', b''):
    yield from _Values(stream, where, errors, most).array()
  elif head.partition(b'\n')[0].strip() == b'{':
    yield from _Values(stream, where, errors, most).all()
  else:
    yield from _lines(stream, where, errors, most)


def kind(value: Any) -> str:
  """Names the kind of a value, for errors."""
  if value is None:
    return 'null'
  if isinstance(value, bool):
    return 'true or false'
  names = {dict: 'an object', list: 'a list', str: 'a text'}
  return names.get(type(value), 'a number')


def _lines(
  stream: io.BufferedReader, where: str, errors: str, most: int
) -> Iterator[Value]:
  """Reads values that have a line each; blank lines are skipped."""
  number = 0
  while line := stream.readline(most):
    number += 1
    place = f'line {number}'
    if not line.endswith(b'\n') and len(line) == most:
      # The rest of the line must not be read as lines of its own.
      while line and not line.endswith(b'\n'):
        line = stream.readline(most)
      yield Value(place, None, TOO_LONG)
      continue
    if not line.strip():
      continue
    if errors == 'strict':
      text = byte_files.decoded(line, f'{where}: {place}')
    else:
      text = line.decode('utf-8', errors)
    try:
      yield Value(place, json.loads(text))
    except (ValueError, RecursionError):
      yield Value(place, None, NOT_JSON)


class _Values:
  """Reads values that may go over many lines."""

  def __init__(
    self, stream: io.BufferedReader, where: str, errors: str, most: int
  ):
    self._stream, self._where, self._most = stream, where, most
    self._decoder = codecs.getincrementaldecoder('utf-8')(errors)
    self._parse = json.JSONDecoder().raw_decode
    self._text, self._at = '', 0  # what was read, and how much of it was used
    self._ended = False

  def array(self) -> Iterator[Value]:
    """Reads the elements of an array."""
    self._next()
    self._at += 1  # its bracket
    number, mark = 0, ','
    if self._next() == ']':
      mark = ']'
      self._at += 1
    while mark == ',':
      number += 1
      place = f'element {number}'
      yield Value(place, self._value(place))
      mark = self._next()
      self._at += 1
    if mark != ']':
      raise ValueError(
        f'{self._where}: neither a comma nor a bracket follows element '
        f'{number}; is the file whole?'
      )
    if self._next():
      raise ValueError(
        f'{self._where}: more follows the array of {number} elements; give '
        'one value a line'
      )

  def all(self) -> Iterator[Value]:
    """Reads values up to the end."""
    number = 0
    while self._next():
      number += 1
      place = f'value {number}'
      yield Value(place, self._value(place))

  def _next(self) -> str:
    """Finds the next character that is no space; '' is the end."""
    while True:
      space = _SPACE.match(self._text, self._at)
      assert space  # it may be empty
      self._at = space.end()
      if self._at < len(self._text) or self._ended:
        return self._text[self._at : self._at + 1]
      self._read('what follows')

  def _value(self, place: str) -> Any:
    """Reads a value."""
    self._next()  # which skips spaces
    why = ''
    while True:
      try:
        value, end = self._parse(self._text, self._at)
        # The digits of a number may go on.
        if end < len(self._text) or self._ended:
          self._at = end
          return value
      except RecursionError:
        why = 'is not JSON'
      except ValueError:
        # It may be cut, and go on in what is not read yet.
        if self._ended:
          why = 'is not JSON, or the file is cut'
        elif len(self._text) - self._at > self._most:
          why = f'is not JSON or longer than {self._most:,} bytes'
      if why:
        raise ValueError(f'{self._where}: {place} {why}; mend it')
      self._read(place)

  def _read(self, place: str) -> None:
    """Reads as much again as there is, so that parsing again costs little."""
    rest = self._text[self._at :]
    data = self._stream.read(min(max(_PIECE, len(rest)), self._most))
    self._ended = not data
    try:
      text = self._decoder.decode(data, self._ended)
    except UnicodeDecodeError as e:
      raise byte_files.not_utf8(f'{self._where}: {place}', e) from e
    self._text, self._at = rest + text, 0
