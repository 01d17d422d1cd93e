"""Reads documents from the files of strangers, in bounded memory.

Text, JSON, tables, columnar files and web archives are read here for every
program, from this machine or from an address.
"""

import collections
from collections.abc import Iterator, Sequence
import hashlib
import io
import os
import re
from typing import Any, NamedTuple

from lm.data import (
  arrow_files,
  byte_files,
  folders,
  json_files,
  names,
  parquet_files,
  remote_files,
  standard_input,
  tables,
  text_files,
  web_archives,
)
from lm.runtime import logins

JSON = ('.jsonl', '.json', '.ndjson')
# How names end, packed or not. The last are known by their content too.
KINDS = (
  *text_files.SUFFIXES,
  *JSON,
  *tables.SUFFIXES,
  *web_archives.SUFFIXES,
  *arrow_files.SUFFIXES,
  parquet_files.SUFFIX,
)
# Those that an error names, which has room for a few.
_COMMON = ('.txt', '.jsonl', '.csv', '.tsv', '.warc', '.arrow', '.parquet')


class _Missing(NamedTuple):
  """Stands for a field that a record does not have; null is another thing."""

  fields: str  # that it has


class Settings(NamedTuple):
  """How files become documents.

  Attributes:
    unit: what is a document in a text file: the whole 'file', a 'line', or a
      'paragraph', which ends at an empty line.
    field: the field of the text in JSON, or its column in a table; 'a.b' is
      the field b of the object in field a, unless a field is named 'a.b'.
    errors: what to do with text that is not Unicode and lines that are not
      JSON: 'replace' bad bytes by U+FFFD and leave out lines, 'skip' the
      document, or 'strict', which stops with an error.
    max_bytes: a longer text is cut into documents of at most this size; a
      longer JSON line is left out. A longer element of a JSON array, or field
      of a table, is an error, because what follows it cannot be found. Of a
      page in a web archive, what follows is left out.
    extract: of an HTML page in a web archive, the 'main' text, without menus
      and the like, or 'all' that is seen.
  """

  unit: str = 'file'
  field: str = 'text'
  errors: str = 'replace'
  max_bytes: int = 16 << 20
  extract: str = 'main'


def find(
  patterns: str | Sequence[str],
  counts: collections.Counter[str] | None = None,
) -> list[str]:
  """Lists files, sorted, each once, however often and by what path it is named.

  Args:
    patterns: names of files, folders, whose files of a known kind are read at
      any depth, and glob patterns; each a path or an address such as
      gs://bucket/file. What names a file is not taken for a pattern. Of a
      folder at an address, only names say what kind a file is. '-' is standard
      input, see `standard_input.file`.
    counts: the number of files in folders that are of no known kind is added
      here.

  Raises:
    ValueError: a pattern matches nothing, a file is of an unknown kind, or see
      `folders.files`.
  """
  if isinstance(patterns, str):
    patterns = [patterns]
  found: set[str] = set()
  for pattern in patterns:
    if standard_input.is_named(pattern):
      pattern = standard_input.file(pattern)
    pattern = re.sub('^file://', '', pattern)
    files = folders.files(pattern)
    if files is not None:
      is_local = not remote_files.is_address(pattern)
      known = [file for file in files if _is_known(file, is_local)]
      if not known:
        raise ValueError(
          f'input {names.short(pattern)}: no file of a known kind in this '
          'folder; name its files by a pattern'
        )
      if counts is not None and len(known) < len(files):
        counts['files of another kind, left out'] += len(files) - len(known)
      found.update(known)
      continue
    if remote_files.is_address(pattern):
      files = remote_files.matching(pattern, 'input')
    else:
      files = byte_files.matching(pattern)
    if not files:
      raise ValueError(
        f'input {names.short(pattern)}: no such file; check the path, and '
        'quote a pattern'
      )
    for file in files:
      if not _is_known(file):
        raise ValueError(
          f'input {names.short(file)}: unknown kind; give one of '
          f'{", ".join(_COMMON)}'
        )
    found.update(files)
  # By its real path a file is the same under two names.
  real = {
    x if remote_files.is_address(x) else os.path.realpath(x): x
    for x in sorted(found)[::-1]
  }
  # Another login or token leaves the files in their order.
  return sorted(real.values(), key=lambda x: (logins.hidden(x), x))


def _is_known(file: str, may_open: bool = True) -> bool:
  """Tells if a file is of a known kind, by its name or else its content."""
  # Of many thousand files, few need to be opened.
  if byte_files.suffix(file) in KINDS or not may_open:
    return byte_files.suffix(file) in KINDS
  try:
    with byte_files.stored(file, 'input') as stored:
      if parquet_files.is_parquet(stored) or arrow_files.is_arrow(stored):
        return True
      stream = byte_files.as_unpacked(stored, file, 'input')
      return web_archives.is_archive(stream)
  except ValueError:
    return False


def packages(file: str) -> tuple[str, ...]:
  """Lists the outside packages that decide on what is read from a file."""
  try:
    with byte_files.unpacked(file, 'input') as stream:
      return web_archives.PACKAGES if web_archives.is_archive(stream) else ()
  except ValueError:
    return ()  # who reads the file says what is wrong with it


def read(
  files: Sequence[str],
  settings: Settings,
  counts: collections.Counter[str],
) -> Iterator[str]:
  """Reads documents in the order of `files`; empty ones are left out.

  Args:
    files: see `find`.
    settings: how files become documents.
    counts: see `records`.

  Raises:
    ValueError: see `records`; or there are no documents.
  """
  for file in files:
    for _, text in records(file, settings, counts):
      yield text
  if not counts['documents']:
    why = ', '.join(f'{n} {word}' for word, n in counts.items())
    raise ValueError(
      f'input: no documents ({why[:120]}); check it and the field'
    )


def records(
  file: str, settings: Settings, counts: collections.Counter[str]
) -> Iterator[tuple[str, str]]:
  """Reads the documents of one file and where they are; it may have none.

  Args:
    file: one of those that `find` lists.
    settings: how the file becomes documents.
    counts: numbers of files, documents and bytes, and of what was left out, are
      added here, under words for a report.

  Yields:
    The place of a document in the file, such as 'line 3', 'row 17' or 'row 17,
    piece 2', no two alike, or '' for the whole file; and its text, which is
    Unicode and not empty.

  Raises:
    ValueError: a setting is unknown or the file is damaged; with
      `errors='strict'` also for the first bad text or record.
  """
  _check(settings)
  counts['files'] += 1
  where = f'input {names.short(file)}'
  for place, raw in _raw(file, settings, counts):
    text = text_files.decode(raw, settings.errors, counts, where, place)
    if text:
      counts['documents'] += 1
      counts['bytes'] += len(text.encode())
      yield place, text
    elif text is not None:
      counts['empty, left out'] += 1


def digest(file: str) -> str:
  """Returns the sha256 of a file as it is stored, packed or not.

  Args:
    file: one of those that `find` lists. It is read in pieces.

  Raises:
    ValueError: it cannot be read.
  """
  sha256 = hashlib.sha256()
  with byte_files.stored(file, 'input') as stream:
    while data := stream.read(1 << 20):
      sha256.update(data)
  return sha256.hexdigest()


def _check(settings: Settings) -> None:
  """Checks settings.

  Raises:
    ValueError: one is unknown or out of range.
  """
  if (
    settings.unit not in text_files.UNITS
    or settings.errors not in text_files.ERRORS
  ):
    raise ValueError(
      f'unit={settings.unit!r} must be one of '
      f'{", ".join(text_files.UNITS)}, and errors={settings.errors!r} one of '
      f'{", ".join(text_files.ERRORS)}'
    )
  if settings.extract not in web_archives.EXTRACTS:
    raise ValueError(
      f'extract={settings.extract!r} must be one of '
      f'{", ".join(web_archives.EXTRACTS)}'
    )
  if settings.max_bytes < 1:
    raise ValueError(f'max_bytes={settings.max_bytes} must be positive')


def _raw(
  file: str, settings: Settings, counts: collections.Counter[str]
) -> Iterator[tuple[str, bytes | str]]:
  """Reads the texts of a file, which may not be Unicode yet.

  Yields:
    Where a text is, such as 'line 3' or '', and the text.
  """
  where = f'input {names.short(file)}'
  suffix, most = byte_files.suffix(file), settings.max_bytes
  with byte_files.stored(file, 'input') as stored:
    # What a file holds is known by its content where that says it.
    rows = None
    if parquet_files.is_parquet(stored):
      rows = parquet_files.rows(stored, settings.field, where)
    elif arrow_files.is_arrow(stored):
      rows = arrow_files.rows(stored, settings.field, where)
    elif suffix in (*arrow_files.SUFFIXES, parquet_files.SUFFIX):
      raise ValueError(
        f'{where}: damaged (no {suffix[1:]} in it); fetch it again'
      )
    if rows is not None:
      for place, value in rows:
        text = _text(value, file, place, settings, counts)
        if text is not None:
          yield from text_files.pieces(place, text, most, counts)
      return
    stream = byte_files.as_unpacked(stored, file, 'input')
    if web_archives.is_archive(stream):
      yield from _archive(stream, file, settings, counts)
      return
    if suffix in web_archives.SUFFIXES:
      raise ValueError(f'{where}: is no web archive; check it')
    stream = byte_files.as_text(stream, where)
    if suffix in text_files.SUFFIXES:
      yield from text_files.units(stream, settings.unit, most, counts)
      return
    if suffix in tables.SUFFIXES:
      found = _table(stream, file, settings)
    else:
      found = _json(stream, file, settings, counts)
    for place, value in found:
      text = _text(value, file, place, settings, counts)
      if text is not None:
        yield place, text


def _archive(
  stream: io.BufferedReader,
  file: str,
  settings: Settings,
  counts: collections.Counter[str],
) -> Iterator[tuple[str, bytes | str]]:
  """Reads where pages of a web archive are, and their texts."""
  where = f'input {names.short(file)}'
  most, is_strict = settings.max_bytes, settings.errors == 'strict'
  for page in web_archives.pages(stream, where, most, counts, is_strict):
    text = page.text
    if page.is_html:
      # Only Unicode can be parsed.
      text = text_files.decode(text, settings.errors, counts, where, page.place)
      if text is None:
        continue
      text = web_archives.extract(text, settings.extract)
    yield page.place, text


def _json(
  stream: io.BufferedReader,
  file: str,
  settings: Settings,
  counts: collections.Counter[str],
) -> Iterator[tuple[str, Any]]:
  """Reads where values of JSON are, and what is in their field."""
  where = f'input {names.short(file)}'
  # Bad bytes are kept as lone surrogates, which `text_files.decode` treats.
  values = json_files.values(
    stream, where, errors='surrogateescape', most=settings.max_bytes
  )
  for place, value, fault in values:
    if not fault:
      yield place, _look_up(value, settings.field)
    elif fault == json_files.TOO_LONG:
      counts['JSON lines too long, left out'] += 1
    elif settings.errors == 'strict':
      raise ValueError(
        f'{where}: {place} {fault}; mend it or set errors to skip'
      )
    else:
      counts['lines that are not JSON, left out'] += 1


def _table(
  stream: io.BufferedReader, file: str, settings: Settings
) -> Iterator[tuple[str, str | None]]:
  """Reads where rows of CSV or TSV are, and what is in their column."""
  where = f'input {names.short(file)}'
  delimiter = tables.SUFFIXES[byte_files.suffix(file)]
  for place, row in tables.rows(stream, where, delimiter, settings.max_bytes):
    if settings.field not in row:
      raise ValueError(
        f'{where}: no column {names.short(settings.field)} '
        f'(columns: {str([*row][:5])[:60]}); set field'
      )
    yield place, row[settings.field]


def _look_up(value: Any, field: str) -> Any:
  """Finds the field of a record, or of objects inside of it ('a.b').

  Returns:
    The value, a `_Missing` if there is no such field.
  """
  if isinstance(value, dict):
    if field in value:
      return value[field]
    outer, dot, inner = field.partition('.')
    if dot and outer in value:
      return _look_up(value[outer], inner)
  keys = sorted(value)[:5] if isinstance(value, dict) else 'none'
  return _Missing(str(keys)[:60])


def _text(
  value: Any,
  file: str,
  place: str,
  settings: Settings,
  counts: collections.Counter[str],
) -> Any:
  """Returns a value if it is a text; or else counts it and returns None.

  Raises:
    ValueError: it is none, and `settings.errors` is 'strict'.
  """
  if isinstance(value, str | bytes):
    return value
  if settings.errors == 'strict':
    where = f'input {names.short(file)}: {place}'
    field = names.short(settings.field)
    if isinstance(value, _Missing):
      raise ValueError(
        f'{where} has no text in field {field} (fields: {value.fields}); set '
        'field'
      )
    raise ValueError(
      f'{where}: {field} is {json_files.kind(value)}; mend it or set errors to '
      'skip'
    )
  if value is None or isinstance(value, _Missing):
    counts['records without the field, left out'] += 1
  else:
    counts['records whose field is no text, left out'] += 1
  return None
