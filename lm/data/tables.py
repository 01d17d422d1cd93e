"""Reads the rows of CSV and TSV, in bounded memory."""

from collections.abc import Iterator
import csv
import io

COMMA, TAB = ',', '\t'
SUFFIXES = {'.csv': COMMA, '.tsv': TAB}
_MOST = (1 << 31) - 1  # characters of a field that csv can be told


def rows(
  stream: io.BufferedReader,
  where: str,
  delimiter: str = COMMA,
  most: int = _MOST,
) -> Iterator[tuple[str, dict[str, str | None]]]:
  """Reads rows by the names of their columns, which the first row gives.

  Blank lines are skipped. A field between quotes may hold delimiters, ends of
  lines and quotes, which are written twice. Between tabs it may hold no ends of
  lines, and quotes that do not pair are a part of the text, as in most files
  with tabs.

  Lines end with LF or CRLF, or with CR alone if the first one does. In a file
  of the former, a CR alone is a part of a field between tabs, and an error
  outside of quotes between other delimiters.

  Args:
    stream: of UTF-8. Bytes that are not become lone surrogates, as by
      'surrogateescape'.
    where: it is from, for errors.
    delimiter: between fields.
    most: characters that a line or a field may have.

  Yields:
    Where the row is, for errors ('row 3 (line 5)'), and the row, whose value is
    None in a column that it does not reach.

  Raises:
    ValueError: a quote has no pair, a row has more fields than there are
      columns, a line or a field is too long, a line holds a CR that is not
      between quotes, or two columns have one name. The error names the row.
  """
  text = io.TextIOWrapper(stream, 'utf-8', 'surrogateescape', newline='')
  try:
    yield from _named(_split(text, where, delimiter, most), where)
  finally:
    # Or else `text` would close the stream, if a reader that gave up has not.
    if not stream.closed:
      text.detach()


def _named(
  lines: Iterator[tuple[int, list[str]]], where: str
) -> Iterator[tuple[str, dict[str, str | None]]]:
  """Names the fields of rows by the first row."""
  _, columns = next(lines, (1, []))
  if len(set(columns)) < len(columns):
    twice = next(x for x in columns if columns.count(x) > 1)
    raise ValueError(
      f'{where}: two columns are named {twice[:40]!r}; rename one'
    )
  for n, (line, fields) in enumerate(lines, 1):
    row = f'row {n} (line {line})'
    if len(fields) > len(columns):
      raise ValueError(
        f'{where}: {row} has {len(fields)} fields for {len(columns)} columns; '
        'quote a field that holds a delimiter'
      )
    missing = [None] * (len(columns) - len(fields))
    yield row, dict(zip(columns, [*fields, *missing], strict=True))


def _split(
  text: io.TextIOWrapper, where: str, delimiter: str, most: int
) -> Iterator[tuple[int, list[str]]]:
  """Splits lines into fields; yields the number of the first line, and them."""
  # A setting of the whole process, of 131,072 characters by default.
  csv.field_size_limit(min(most, _MOST))
  lines = _lines(text, most)
  if delimiter == TAB:
    reader = _Tabs(lines)
  else:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
  row, line = 0, 1
  while True:
    try:
      fields = next(reader, None)
    except csv.Error as e:
      why = 'a quote has no pair; write a quote inside of a field twice'
      if 'limit' in str(e):
        why = f'a field is longer than {most:,} characters; is a quote missing?'
      elif 'new-line' in str(e):
        why = 'holds a carriage return (CR); put quotes around that field'
      raise ValueError(f'{where}: row {row} (line {line}): {why}') from e
    if fields is None:
      return
    if any(x.strip() for x in fields[:1]) or len(fields) > 1:
      yield line, fields
      row += 1
    line = reader.line_num + 1


def _lines(text: io.TextIOWrapper, most: int) -> Iterator[str]:
  """Reads lines, which end with CR alone if the first one does.

  Raises:
    csv.Error: one is too long.
  """
  line, ends = '', None
  while piece := text.readline(min(most, _MOST) + 1):
    line += piece
    if len(line) > most:
      raise csv.Error('field limit')
    ends = ends or piece[-1]
    if piece[-1] == '\r' and ends == '\n':
      continue  # that CR ends no line here
    yield line
    line = ''
  if line:
    yield line


class _Tabs:
  """Splits lines at tabs, with the interface of `csv.reader`."""

  def __init__(self, lines: Iterator[str]):
    self._lines = lines
    self.line_num = 0

  def __iter__(self) -> Iterator[list[str]]:
    return self

  def __next__(self) -> list[str]:
    line = next(self._lines)
    self.line_num += 1
    line = line.removesuffix('\n').removesuffix('\r')
    return [_unquoted(field) for field in line.split(TAB)]


def _unquoted(field: str) -> str:
  """Removes the quotes around a field, if all quotes in it pair."""
  inner = field[1:-1]
  if len(field) < 2 or field[0] != '"' or field[-1] != '"':
    return field
  return field if '"' in inner.replace('""', '') else inner.replace('""', '"')
