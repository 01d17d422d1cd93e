"""Reads documents from text, JSON lines and Parquet, in bounded memory."""

import collections
from collections.abc import Iterator, Sequence
import contextlib
import glob
import gzip
import json
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
import zlib

import pyarrow as pa
from pyarrow import parquet

from lm.data import names

KINDS = ('.txt', '.txt.gz', '.jsonl', '.jsonl.gz', '.parquet')
UNITS = ('file', 'line', 'paragraph')
ERRORS = ('replace', 'skip', 'strict')
_PARQUET_ROWS = 256  # read together


class Settings(NamedTuple):
  """How files become documents.

  Attributes:
    unit: what is a document in a text file: the whole 'file', a 'line', or a
      'paragraph', which ends at an empty line.
    field: the field of the text in JSON, or its column in Parquet.
    errors: what to do with text that is not Unicode and lines that are not
      JSON: 'replace' bad bytes by U+FFFD and leave out lines, 'skip' the
      document, or 'strict', which stops with an error.
    max_bytes: a longer text is cut into documents of at most this size; a
      longer JSON line is left out.
  """

  unit: str = 'file'
  field: str = 'text'
  errors: str = 'replace'
  max_bytes: int = 16 << 20


def find(patterns: str | Sequence[str]) -> list[str]:
  """Lists the files that glob patterns match, sorted, each once.

  Raises:
    ValueError: a pattern matches nothing, or a file is of an unknown kind.
  """
  if isinstance(patterns, str):
    patterns = [patterns]
  result: set[str] = set()
  for pattern in patterns:
    # A name is itself before it is a pattern: `a[1].txt` may exist.
    named = [pattern, *glob.glob(pattern, recursive=True)]
    files = [file for file in named if Path(file).is_file()]
    if not files:
      raise ValueError(
        f'input {names.short(pattern)}: no such file; check the path, and '
        'quote a pattern'
      )
    result.update(files)
  for file in sorted(result):
    if not file.endswith(KINDS):
      raise ValueError(
        f'input {names.short(file)}: unknown kind; give one of '
        f'{", ".join(KINDS)}'
      )
  return sorted(result)


def read(
  files: Sequence[str],
  settings: Settings,
  counts: collections.Counter[str],
) -> Iterator[str]:
  """Reads documents in the order of `files`; empty ones are left out.

  Args:
    files: see `find`.
    settings: how files become documents.
    counts: numbers of files, documents and bytes, and of what was left out, are
      added here, under words for a report.

  Raises:
    ValueError: a setting is unknown, a file is damaged, or there are no
      documents; with `errors='strict'` also for the first bad text or record.
  """
  _check(settings)
  for file in files:
    counts['files'] += 1
    where = names.short(file)
    try:
      for n, raw in enumerate(_raw(file, settings, counts)):
        text = _decode(raw, settings, counts, f'{where}: document {n}')
        if text:
          counts['documents'] += 1
          counts['bytes'] += len(text.encode())
          yield text
        elif text is not None:
          counts['empty, left out'] += 1
    except (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowException) as e:
      raise ValueError(
        f'input {where}: damaged ({_line(e)}); fetch it again'
      ) from e
    except OSError as e:
      raise ValueError(
        f'input {where}: cannot be read ({e.strerror or _line(e)}); check it'
      ) from e
  if not counts['documents']:
    why = ', '.join(f'{n} {word}' for word, n in counts.items())
    raise ValueError(
      f'input: no documents ({why[:120]}); check it and the field'
    )


def _check(settings: Settings) -> None:
  """Checks settings.

  Raises:
    ValueError: one is unknown or out of range.
  """
  if settings.unit not in UNITS or settings.errors not in ERRORS:
    raise ValueError(
      f'unit={settings.unit!r} must be one of {", ".join(UNITS)}, and errors='
      f'{settings.errors!r} one of {", ".join(ERRORS)}'
    )
  if settings.max_bytes < 1:
    raise ValueError(f'max_bytes={settings.max_bytes} must be positive')


def _raw(
  file: str, settings: Settings, counts: collections.Counter[str]
) -> Iterator[bytes | str]:
  """Reads the texts of a file, which may not be Unicode yet."""
  if file.endswith('.parquet'):
    yield from _parquet(file, settings, counts)
    return
  with contextlib.ExitStack() as stack:
    stream: BinaryIO = stack.enter_context(open(file, 'rb'))
    if file.endswith('.gz'):
      stream = cast(
        BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=stream))
      )
    if file.endswith(('.jsonl', '.jsonl.gz')):
      yield from _json_lines(stream, file, settings, counts)
    else:
      yield from _texts(stream, settings, counts)


def _texts(
  stream: BinaryIO, settings: Settings, counts: collections.Counter[str]
) -> Iterator[bytes]:
  """Cuts a text file into its units, and units that are too long in pieces."""
  parts: list[bytes] = []  # of the current document
  size = 0
  is_whole = True  # so that an empty file counts as one empty document
  # A line can be as long as the file, so no more than the rest of a document is
  # read at once.
  while data := stream.readline(settings.max_bytes - size):
    ends = data.endswith(b'\n')
    if settings.unit == 'line':
      if ends:
        yield b''.join([*parts, data]).rstrip(b'\r\n')
        parts, size = [], 0
        continue
    elif settings.unit == 'paragraph' and not data.strip():
      if parts:
        yield b''.join(parts).strip(b'\r\n')
      parts, size = [], 0
      continue
    parts.append(data)
    size += len(data)
    if size >= settings.max_bytes:
      whole = b''.join(parts)
      # What follows the cut, half a character perhaps, opens the next document.
      cut = _cut(whole)
      counts['pieces cut from long documents'] += 1
      yield whole[:cut]
      parts, size = [whole[cut:]] if whole[cut:] else [], len(whole) - cut
      is_whole = False
  if parts or (is_whole and settings.unit == 'file'):
    rest = b''.join(parts)
    yield rest if settings.unit == 'file' else rest.strip(b'\r\n')


def _cut(data: bytes) -> int:
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


def _json_lines(
  stream: BinaryIO,
  file: str,
  settings: Settings,
  counts: collections.Counter[str],
) -> Iterator[bytes | str]:
  """Reads the texts of JSON lines."""
  where = names.short(file)
  number = 0
  while line := stream.readline(settings.max_bytes):
    number += 1
    if not line.endswith(b'\n') and len(line) == settings.max_bytes:
      # The rest of the line must not be read as lines of its own.
      while line and not line.endswith(b'\n'):
        line = stream.readline(settings.max_bytes)
      counts['JSON lines too long, left out'] += 1
      continue
    if not line.strip():
      continue
    try:
      # Bad bytes are kept as lone surrogates, which `_decode` treats.
      record = json.loads(line.decode('utf-8', 'surrogateescape'))
    except (ValueError, RecursionError) as e:
      if settings.errors == 'strict':
        raise ValueError(
          f'input {where}: line {number} is not JSON; mend it or set errors '
          'to skip'
        ) from e
      counts['lines that are not JSON, left out'] += 1
      continue
    text = record.get(settings.field) if isinstance(record, dict) else None
    if not isinstance(text, str):
      if settings.errors == 'strict':
        keys = sorted(record)[:5] if isinstance(record, dict) else 'none'
        raise ValueError(
          f'input {where}: line {number} has no text in field '
          f'{names.short(settings.field)} (fields: {str(keys)[:60]}); '
          'set field'
        )
      counts['records without the field, left out'] += 1
      continue
    yield text


def _parquet(
  file: str, settings: Settings, counts: collections.Counter[str]
) -> Iterator[bytes]:
  """Reads the texts of a column of Parquet."""
  where = names.short(file)
  with parquet.ParquetFile(file) as table:
    schema = table.schema_arrow
    at = schema.get_field_index(settings.field)
    kind = schema.field(at).type if at >= 0 else None
    if kind is None or not any(
      test(kind)
      for test in (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
      )
    ):
      raise ValueError(
        f'input {where}: no column {names.short(settings.field)} of text '
        f'(columns: {str(schema.names[:5])[:60]}); set field'
      )
    for batch in table.iter_batches(_PARQUET_ROWS, columns=[settings.field]):
      column: Any = batch.column(0)
      # As bytes: Arrow does not check that a string is Unicode.
      for value in column.cast(pa.large_binary()):
        data = value.as_py()
        if data is None:
          counts['records without the field, left out'] += 1
          continue
        while len(data) > settings.max_bytes:
          cut = _cut(data[: settings.max_bytes])
          counts['pieces cut from long documents'] += 1
          yield data[:cut]
          data = data[cut:]
        yield data


def _decode(
  raw: bytes | str,
  settings: Settings,
  counts: collections.Counter[str],
  where: str,
) -> str | None:
  """Decodes a text.

  Args:
    raw: bytes of UTF-8, or a string that may have lone surrogates.
    settings: what to do if it is not Unicode.
    counts: of what happened.
    where: the text is, for the error.

  Returns:
    None: the text is not Unicode, and is left out.

  Raises:
    ValueError: it is not Unicode, and `settings.errors` is 'strict'.
  """
  try:
    if isinstance(raw, bytes):
      return raw.decode()
    raw.encode()
    return raw
  except UnicodeError as e:
    if settings.errors == 'strict':
      raise ValueError(
        f'input {where} is not Unicode (at {getattr(e, "start", 0)}); mend it '
        'or set errors to replace'
      ) from e
    if settings.errors == 'skip':
      counts['not Unicode, left out'] += 1
      return None
    counts['not Unicode, replaced by U+FFFD'] += 1
    if isinstance(raw, str):
      # The two halves of a surrogate pair become one character, if they stand
      # side by side.
      raw = raw.encode('utf-16-le', 'surrogatepass')
      return raw.decode('utf-16-le', 'replace')
    return raw.decode('utf-8', 'replace')


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())[:60]
