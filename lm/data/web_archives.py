"""Reads the pages of web archives (WARC and WET), in bounded memory.

An archive is a crawler's file of records: requests, the responses of servers
(WARC), or the texts that somebody extracted from them (WET). The format is ISO
28500; Common Crawl publishes both kinds.
"""

import codecs
import collections
from collections.abc import Iterator
import io
import re
from typing import Any, NamedTuple
import zlib

from lm import errors
from lm.data import byte_files, text_files

SUFFIXES = ('.warc', '.wet')
EXTRACTS = ('main', 'all')
PACKAGES = ('fastwarc', 'resiliparse')
_MAGIC = b'WARC/'
# Pages that are longer are cut. Common Crawl cut all pages there for years, and
# the parser's time grows with the square of what a hostile page may hold.
_PAGE = 1 << 20
_HTML = ('text/html', 'application/xhtml+xml')
_TEXT = 'text/plain'
_URI = 1000  # characters of an address that a place keeps
# Text is found in linear time up to this depth, in quadratic time beyond it.
_DEPTH = 500
_TAG = re.compile(r'<([a-zA-Z][a-zA-Z0-9]*)[^<>]{65536,}>')
_ESCAPED = re.compile('[\udc80-\udcff]')  # bytes that could not be decoded
_BEYOND_ASCII = re.compile('[^\0-\x7f]')
# A declared encoding -> the one that browsers take for it.
_WIDER = {'gbk': 'gb18030'}
_MARKS = (
  (codecs.BOM_UTF8, 'utf-8'),
  (codecs.BOM_UTF16_LE, 'utf-16-le'),
  (codecs.BOM_UTF16_BE, 'utf-16-be'),
)
_CHUNK = re.compile(
  rb'(?:\r\n)?([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]{0,200})?\r\n'
)


class Page(NamedTuple):
  """A page of an archive.

  Attributes:
    place: 'record 3, https://...'; records are counted from 1.
    text: decoded, with lone surrogates in the place of bytes that could not be,
      as by 'surrogateescape'; or bytes, if they are UTF-8 by what is known.
    is_html: whether the text is HTML.
  """

  place: str
  text: str | bytes
  is_html: bool


def is_archive(stream: io.BufferedReader) -> bool:
  """Tells by its beginning if an unpacked stream is a web archive."""
  return stream.peek(len(_MAGIC)).startswith(_MAGIC)


def pages(
  stream: io.BufferedReader,
  where: str,
  most: int,
  counts: collections.Counter[str],
  strict: bool = False,
) -> Iterator[Page]:
  """Reads the pages of an archive.

  These are responses with a status of 2xx, and resources, that are HTML or
  plain text, and all conversions. A record that is cut is left out.

  Args:
    stream: of the archive, unpacked.
    where: it is from, for errors.
    most: bytes of a page, after which the rest is left out.
    counts: numbers of what was left out or cut are added here.
    strict: whether damage to the archive is an error; or else what follows it
      is left out, and that is counted.

  Raises:
    ValueError: the packages that this needs are not installed, or `strict` and
      the archive is damaged.
  """
  warc = _packages(where).warc
  source = _Source(stream)
  # FastWARC decodes bodies, too, but stops at the first that is damaged.
  archive = warc.ArchiveIterator(
    source, parse_http=False, stream_detect=False, fsspec_args=False
  )
  number, is_sound = 0, True
  while is_sound:
    try:
      record = next(archive, None)
      if record is None:
        break
      number += 1
      if record.headers.get('Content-Length') != str(record.content_length):
        is_sound = False
        continue
      body = _body(record, warc.WarcRecordType, most, counts)
      # What is left of a record must be passed over to know that it is whole.
      record.reader.consume()
    except OSError:  # is what FastWARC raises for all that it cannot read
      is_sound = False
      continue
    is_sound = record.reader.tell() == record.content_length
    if is_sound and body is not None:
      uri = record.headers.get_bytes(b'WARC-Target-URI') or b''
      name = uri.decode('utf-8', 'replace').strip('<> ')[:_URI]
      yield Page(f'record {number}, {name}', *body)
  if is_sound and source.fault is None:
    return
  if strict:
    raise ValueError(
      f'{where}: damaged or cut at record {number}; fetch it again or set '
      'errors to skip'
    )
  counts['archives damaged or cut, rest left out'] += 1


def extract(html: str, how: str) -> str:
  """Extracts the text of a page.

  A page whose elements are nested too deep for its main text to be found in
  time gives all of its text.

  Args:
    html: of the page, without lone surrogates.
    how: one of `EXTRACTS`: the 'main' text, without menus and the like, or
      'all' that is seen.
  """
  packages = _packages('input')
  # The parser compares each attribute with all that an element has.
  tree = packages.html.HTMLTree.parse(_TAG.sub(r'<\1>', html))
  is_main = how == 'main' and not (
    html.lower().count('<div') > _DEPTH and _depth(tree) > _DEPTH
  )
  return packages.html2text.extract_plain_text(tree, main_content=is_main)


class _Packages(NamedTuple):
  """The modules of optional packages that this file uses."""

  warc: Any
  encoding: Any
  html: Any
  html2text: Any


def _packages(where: str) -> _Packages:
  """Imports optional packages.

  Raises:
    ValueError: they are not installed.
  """
  try:
    from fastwarc import warc
    from resiliparse.extract import html2text
    from resiliparse.parse import encoding, html
  except ModuleNotFoundError as e:
    raise ValueError(
      f'{where}: a web archive needs {e.name}: {errors.install("data")}'
    ) from e
  return _Packages(warc, encoding, html, html2text)


def _depth(tree: Any) -> int:
  """Returns how deep elements are nested, or a bit more than `_DEPTH`."""
  node, depth, deepest = tree.document, 0, 0
  while node is not None and deepest <= _DEPTH:
    if node.first_child is not None:
      node, depth = node.first_child, depth + 1
      deepest = max(deepest, depth)
      continue
    while node is not None and node.next is None:
      node, depth = node.parent, depth - 1
    node = None if node is None else node.next
  return deepest


class _Source:
  """Gives a stream to FastWARC, for which its end is where it is damaged.

  Attributes:
    fault: the error that ended it, or None.
  """

  def __init__(self, stream: io.BufferedReader):
    self._stream, self._at = stream, 0
    self.fault: ValueError | None = None

  def read(self, size: int = -1) -> bytes:
    try:
      data = self._stream.read1(size)
    except ValueError as e:
      self.fault, data = e, b''
    self._at += len(data)
    return data

  def tell(self) -> int:
    return self._at

  def seek(self, offset: int, whence: int = 0) -> int:
    raise OSError(f'no seek to {offset}, {whence}')

  def close(self) -> None:
    pass  # is closed by who opened it


def _body(
  record: Any, types: Any, most: int, counts: collections.Counter[str]
) -> tuple[str | bytes, bool] | None:
  """Reads the text of a record, and whether it is HTML; None: it has none."""
  if record.record_type == types.conversion:
    data = record.reader.read(most + 1)
    if len(data) > most:
      counts['records too long, cut'] += 1
      data = data[: text_files.cut(data[:most])]
    return data, False
  if record.record_type == types.resource:
    kind, charset = _content_type(record.headers.get('Content-Type'))
    encodings = ()
  elif record.record_type == types.response and record.is_http:
    try:
      record.parse_http(auto_decode='none')
    except OSError:
      counts['responses with a damaged header, left out'] += 1
      return None
    headers = record.http_headers
    if not 200 <= (headers.status_code or 0) < 300:
      counts['responses whose status is not 2xx, left out'] += 1
      return None
    kind, charset = _content_type(headers.get('Content-Type'))
    encodings = (
      headers.get('Transfer-Encoding'),
      headers.get('Content-Encoding'),
    )
  else:
    counts['requests and other records without a page, left out'] += 1
    return None
  if kind and kind not in (*_HTML, _TEXT):
    counts['records that are neither HTML nor text, left out'] += 1
    return None
  most = min(most, _PAGE)
  data = record.reader.read(most + 1)
  try:
    data = _content(data, encodings, most + 1)
  except ValueError:
    counts['records whose content cannot be unpacked, left out'] += 1
    return None
  if not kind:
    kind = _guess(data)
    if not kind:
      counts['records that are neither HTML nor text, left out'] += 1
      return None
  if len(data) > most:
    counts['records too long, cut'] += 1
    data = data[:most]
  is_html = kind in _HTML
  return _decoded(data, charset, is_html), is_html


def _content_type(value: str | None) -> tuple[str, str]:
  """Splits a content type into the type and its charset, or ''."""
  kind, _, rest = (value or '').partition(';')
  charset = re.search(r'charset\s*=\s*["\']?([^\s"\';]+)', rest, re.IGNORECASE)
  return kind.strip().lower(), charset.group(1) if charset else ''


def _guess(data: bytes) -> str:
  """Guesses the type of a page that has none; '' is neither HTML nor text."""
  head = data[:1024].lstrip().lower()
  if re.match(rb'(<!--|<!doctype html|<html|<head|<body|<\?xml)', head):
    return _HTML[0]
  encoding = _packages('input').encoding
  kind = encoding.detect_mime(data[:4096])
  return kind if kind in (*_HTML, _TEXT) else ''


def _content(
  data: bytes, encodings: tuple[str | None, ...], most: int
) -> bytes:
  """Undoes the encodings of a response.

  Many crawlers store the content decoded and keep the headers. So content that
  is not encoded as its header says is taken as it is.

  Raises:
    ValueError: it is damaged, or in an encoding that is not known.
  """
  # They were applied from left to right, the transfer last.
  names = [
    name.strip().lower()
    for value in encodings
    for name in reversed((value or '').split(','))
  ]
  for name in names:
    if name == 'chunked':
      data = _joined(data)
    elif name in ('gzip', 'x-gzip', 'zstd'):
      data = byte_files.unpack(data, most)
    elif name == 'deflate':
      data = _inflated(data, most)
    elif name not in ('', 'identity'):
      raise ValueError(name)
  return data


def _joined(data: bytes) -> bytes:
  """Joins the chunks of a body, up to the first that is damaged."""
  joined = bytearray()
  at = 0
  while size := _CHUNK.match(data, at):
    begin = size.end()
    at = begin + int(size.group(1), 16) + 2
    if at == begin + 2:
      return bytes(joined)
    joined += data[begin : at - 2]
  return bytes(joined) if joined else data


def _inflated(data: bytes, most: int) -> bytes:
  """Undoes 'deflate', which servers send with and without zlib's frame."""
  for bits in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
    try:
      return zlib.decompressobj(bits).decompress(data, most)
    except zlib.error:
      continue
  return data


def _decoded(data: bytes, charset: str, is_html: bool) -> str | bytes:
  """Decodes a page by what its bytes, its header and its content say.

  Bytes beyond ASCII that are valid UTF-8 are UTF-8, whatever is declared: text
  in another encoding is not by chance. Of the other candidates the first wins
  that decodes at least half of what is beyond ASCII, since pages have a few bad
  bytes, but some declare an encoding that they are not in.
  """
  for mark, name in _MARKS:
    if data.startswith(mark):
      data, charset = data[len(mark) :], name
  for name in _candidates(data, charset, is_html):
    if name.startswith('utf-16') and b'\0' not in data:
      continue  # markup has zeros there; other bytes would become nonsense
    # A character that is cut at the end is left out.
    make = codecs.getincrementaldecoder(_WIDER.get(name, name))
    try:
      return make().decode(data)
    except UnicodeDecodeError:
      pass
    try:
      text = make('surrogateescape').decode(data)
    except UnicodeDecodeError:  # of a byte of ASCII, which cannot be escaped
      continue
    if 2 * len(_ESCAPED.findall(text)) <= len(_BEYOND_ASCII.findall(text)):
      return text
  return data


def _candidates(data: bytes, charset: str, is_html: bool) -> Iterator[str]:
  """Lists encodings that a page may be in, likely ones first."""
  if not data.isascii():
    yield 'utf-8'
  encoding = _packages('input').encoding
  declared = encoding.map_encoding_to_html5(charset, fallback_utf8=False)
  if declared:
    yield declared
  if is_html:
    yield encoding.detect_encoding(data, from_html_meta=True)
  yield encoding.detect_encoding(data)
