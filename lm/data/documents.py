"""Documents from files: text, JSON lines and Parquet, in bounded memory."""

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
_PARQUET_ROWS = 256  # read together


class Settings(NamedTuple):
  """How files become documents.

  Attributes:
    unit: a document of a text file: the `file`, a `line`, or a `paragraph`
      (up to an empty line).
    field: where the text is, in JSON and Parquet.
    errors: what to do with text that is not Unicode and records that are not
      JSON: `replace` (by U+FFFD; records are left out), `skip` the document,
      or `strict`: stop.
    max_bytes: a longer text is cut into documents of at most this size; a
      longer JSON line is left out.
  """

  unit: str = 'file'
  field: str = 'text'
  errors: str = 'replace'
  max_bytes: int = 16 << 20


def find(patterns: Sequence[str]) -> list[str]:
  """Lists the files of glob patterns, sorted, each once.

  Raises:
    ValueError: a pattern matches nothing, or a file is of an unknown kind.
  """
  found: set[str] = set()
  for pattern in patterns:
    # A name is itself before it is a pattern: `a[1].txt` may exist.
    named = [pattern, *glob.glob(pattern, recursive=True)]
    files = [file for file in named if Path(file).is_file()]
    if not files:
      raise ValueError(
        f'input {names.short(pattern)}: no such file; check the path, and '
        'quote a pattern'
      )
    found.update(files)
  for file in sorted(found):
    if not file.endswith(KINDS):
      raise ValueError(
        f'input {names.short(file)}: unknown kind; give one of '
        f'{", ".join(KINDS)}'
      )
  return sorted(found)


def read(
  files: Sequence[str],
  settings: Settings,
  counts: collections.Counter[str],
) -> Iterator[str]:
  """Reads documents in the order of `files`; empty ones are left out.

  Args:
    files: see `find`.
    settings: how.
    counts: what happened is added here, under words for a report.

  Raises:
    ValueError: a file is damaged, or there are no documents; with
      `errors='strict'` also the first bad text or record.
  """
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
    raise ValueError(f'input: no documents ({why[:120]}); check it and --field')


def _raw(
  file: str, settings: Settings, counts: collections.Counter[str]
) -> Iterator[bytes | str]:
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
  """Cuts a text file into its units, and too long units into pieces."""
  parts: list[bytes] = []
  size = 0
  fresh = True  # an empty file is a document, to be counted as an empty one
  # A line can be as long as the file, so it is read in pieces; the last bytes
  # of a piece may be the first of a character, which then opens the next one.
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
      cut = _cut(whole)
      counts['pieces cut from long documents'] += 1
      yield whole[:cut]
      parts, size = [whole[cut:]] if whole[cut:] else [], len(whole) - cut
      fresh = False
  if parts or (fresh and settings.unit == 'file'):
    rest = b''.join(parts)
    yield rest if settings.unit == 'file' else rest.strip(b'\r\n')


def _cut(data: bytes) -> int:
  """Finds where to cut: after the last line if that keeps half, else between
  two characters."""
  line = data.rfind(b'\n') + 1
  if line > len(data) // 2:
    return line
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
  where = names.short(file)
  number = 0
  while line := stream.readline(settings.max_bytes):
    number += 1
    if not line.endswith(b'\n') and len(line) == settings.max_bytes:
      while line and not line.endswith(b'\n'):
        line = stream.readline(settings.max_bytes)
      counts['JSON lines too long, left out'] += 1
      continue
    if not line.strip():
      continue
    try:
      # Bad bytes are kept as lone surrogates, for `_decode` to judge.
      record = json.loads(line.decode('utf-8', 'surrogateescape'))
    except (ValueError, RecursionError) as e:
      if settings.errors == 'strict':
        raise ValueError(
          f'input {where}: line {number} is not JSON; mend it or give '
          '--errors=skip'
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
          'give --field'
        )
      counts['records without the field, left out'] += 1
      continue
    yield text


def _parquet(
  file: str, settings: Settings, counts: collections.Counter[str]
) -> Iterator[bytes]:
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
        f'(columns: {str(schema.names[:5])[:60]}); give --field'
      )
    for batch in table.iter_batches(_PARQUET_ROWS, columns=[settings.field]):
      column: Any = batch.column(0)
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
  """Gives Unicode text; None if it is none and is to be skipped."""
  try:
    if isinstance(raw, bytes):
      return raw.decode()
    raw.encode()
    return raw
  except UnicodeError as e:
    if settings.errors == 'strict':
      raise ValueError(
        f'input {where} is not Unicode (at {getattr(e, "start", 0)}); mend it '
        'or give --errors=replace'
      ) from e
    if settings.errors == 'skip':
      counts['not Unicode, left out'] += 1
      return None
    counts['not Unicode, replaced by U+FFFD'] += 1
    if isinstance(raw, str):
      # Halves of a pair that JSON spelled apart are one character again.
      raw = raw.encode('utf-16-le', 'surrogatepass')
      return raw.decode('utf-16-le', 'replace')
    return raw.decode('utf-8', 'replace')


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())[:60]
