"""Web archives become documents, and hostile ones stay within their bounds."""

import collections
import gzip
import io
import sys
import time
import tracemalloc
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import zstandard

from lm.data import documents, text_files, web_archives

PAGE = """<html><head><title>Title</title></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/b">Menu</a></li></ul></nav>
<main><h1>Head</h1><p>{}</p></main><footer>Imprint</footer></body></html>"""
BODY = 'The main text of a page, which is long enough to be one.'


def record(kind: str, uri: str, body: bytes, **more) -> bytes:
  """Makes a record; `more` replaces or adds headers."""
  headers = {
    'WARC-Type': kind,
    'WARC-Target-URI': uri,
    'WARC-Date': '2024-01-01T00:00:00Z',
    'WARC-Record-ID': '<urn:uuid:6f1a3d5e-0000-4000-8000-000000000001>',
    'Content-Type': 'text/plain'
    if kind == 'conversion'
    else 'application/http; msgtype=response',
    'Content-Length': len(body),
  }
  headers |= {key.replace('_', '-'): value for key, value in more.items()}
  lines = [f'{key}: {value}\r\n' for key, value in headers.items()]
  head = 'WARC/1.0\r\n' + ''.join(lines) + '\r\n'
  return head.encode() + body + b'\r\n\r\n'


def response(
  body: str | bytes,
  kind: str | None = 'text/html; charset=utf-8',
  status: str = '200 OK',
  uri: str = 'https://a.example/',
  **headers,
) -> bytes:
  body = body.encode() if isinstance(body, str) else body
  head = f'HTTP/1.1 {status}\r\n'
  for key, value in ({'Content-Type': kind} if kind else {}).items():
    head += f'{key}: {value}\r\n'
  for key, value in headers.items():
    head += f'{key.replace("_", "-")}: {value}\r\n'
  return record('response', uri, head.encode() + b'\r\n' + body)


@pytest.fixture
def read(tmp_path):
  """Makes `(archive, **settings) -> documents by place, counts`."""

  def read(data: bytes, name='a.warc', **how):
    (tmp_path / name).write_bytes(data)
    counts: collections.Counter[str] = collections.Counter()
    (file,) = documents.find(str(tmp_path / name))
    settings = documents.Settings(**how)
    found = dict(documents.records(file, settings, counts))
    assert all(text.encode() and text for text in found.values())
    return found, counts

  return read


def texts(found) -> list[str]:
  return list(found[0].values())


def test_responses_become_their_main_text(read):
  archive = (
    record('warcinfo', '', b'software: x')
    + record('request', 'https://a.example/', b'GET / HTTP/1.1\r\n\r\n')
    + response(PAGE.format(BODY))
    + response('not found', status='404 Not Found')
    + response(b'\x89PNG', 'image/png')
    + response('plain text\nof two lines', 'text/plain')
    + record(
      'resource', 'urn:x', b'<p>a resource</p>', Content_Type='text/html'
    )
    + record('metadata', 'urn:x', b'fetchTimeMs: 1')
  )
  found, counts = read(archive)
  assert found == {
    'record 3, https://a.example/': f'Head\n\n{BODY}',
    'record 6, https://a.example/': 'plain text\nof two lines',
    'record 7, urn:x': 'a resource',
  }
  assert counts == {
    'files': 1,
    'documents': 3,
    'bytes': sum(len(x) for x in found.values()),
    'requests and other records without a page, left out': 3,
    'responses whose status is not 2xx, left out': 1,
    'records that are neither HTML nor text, left out': 1,
  }
  whole = texts(read(archive, extract='all'))[0]
  assert BODY in whole and 'Menu' in whole and 'Imprint' in whole


@pytest.mark.parametrize('name', ('a.warc.wet.gz', 'a.wet', 'odd', 'a.txt.gz'))
def test_an_archive_is_known_by_its_content(read, name):
  pieces = [
    record('warcinfo', '', b'software: x'),
    record('conversion', 'https://a.example/', '你好\nworld'.encode()),
    record('conversion', 'https://b.example/', b'b\xffd'),
  ]
  for data in (
    b''.join(pieces),
    b''.join(map(gzip.compress, pieces)),  # as crawlers write them
    gzip.compress(b''.join(pieces)),
    zstandard.compress(b''.join(pieces)),
  ):
    if name.endswith('.gz') and data.startswith(b'WARC'):
      continue
    found, _ = read(data, name)
    assert found == {
      'record 2, https://a.example/': '你好\nworld',
      'record 3, https://b.example/': 'b\ufffdd',
    }
    assert texts(read(data, name, errors='skip')) == ['你好\nworld']
    with pytest.raises(
      ValueError, match=r'record 3, https.* is not Unicode'
    ) as e:
      read(data, name, errors='strict')
    assert len(str(e.value)) <= 200


@pytest.mark.parametrize(
  'data, kind',
  (
    (
      PAGE.format('你好，世界').encode('gb18030'),
      'text/html; charset="gb2312"',
    ),
    (PAGE.format('你好，世界').encode(), 'text/html; charset=iso-8859-1'),
    (PAGE.format('你好，世界').encode('utf-8-sig'), 'text/html'),
    (PAGE.format('你好，世界').encode('utf-16'), 'text/html'),
    (
      PAGE.format('你好，世界').encode('utf-16-le'),
      'text/html; charset=UTF-16LE',
    ),
    (
      b'<meta charset=big5>'
      + PAGE.format('\u4f60\u597d\uff0c\u4e16\u754c').encode('big5'),
      'text/html; charset=nonsense',
    ),
    (PAGE.format('你好，世界' * 20).encode('gb18030'), 'text/html'),
    (PAGE.format('你好，世界' * 20).encode('gb18030'), None),
    (PAGE.format('你好，世界').encode(), 'text/html; charset=rot13'),
    (PAGE.format('&#x4f60;好，世界').encode(), 'text/html; charset=utf-16'),
    (
      PAGE.format('&#20320;&#22909;&#65292;&#19990;&#30028;').encode(),
      'text/html; charset=utf-16',
    ),
  ),
)
def test_the_encoding_of_a_page(read, data, kind):
  (text,) = texts(read(response(data, kind)))
  assert '你好，世界' in text


def test_bad_bytes_of_a_page_meet_the_policy(read):
  data = response(
    PAGE.format('你好').encode('gb18030').replace(b'</p>', b'\xff</p>'),
    'text/html; charset=gbk',
  )
  (text,) = texts(read(data))
  assert '你好' in text
  assert read(data)[1]['not Unicode, replaced by U+FFFD'] == 1
  assert read(data, errors='skip')[1]['not Unicode, left out'] == 1
  with pytest.raises(ValueError, match=r'record 1, https.* is not Unicode'):
    read(data, errors='strict')


def chunked(data: bytes, size: int = 7) -> bytes:
  parts = [data[n : n + size] for n in range(0, len(data), size)]
  return b''.join(b'%x\r\n%b\r\n' % (len(x), x) for x in parts) + b'0\r\n\r\n'


def test_encodings_of_a_response_are_undone(read):
  body = PAGE.format(BODY).encode()
  raw = zlib.compressobj(wbits=-15)
  deflated = raw.compress(body) + raw.flush()
  for data, headers in (
    (chunked(body), {'Transfer_Encoding': 'chunked'}),
    (gzip.compress(body), {'Content_Encoding': 'gzip'}),
    (zlib.compress(body), {'Content_Encoding': 'deflate'}),
    (deflated, {'Content_Encoding': 'deflate'}),
    (zstandard.compress(body), {'Content_Encoding': 'zstd'}),
    (
      chunked(gzip.compress(body)),
      {'Transfer_Encoding': 'Chunked', 'Content_Encoding': 'gzip'},
    ),
    # Crawlers decode the content and keep the header.
    (body, {'Content_Encoding': 'gzip', 'Transfer_Encoding': 'chunked'}),
    (body, {'Content_Encoding': 'deflate, identity'}),
  ):
    for follower in (b'', response('last', 'text/plain')):
      found = texts(read(response(data, **headers) + follower))
      assert found == [f'Head\n\n{BODY}', 'last'][: 1 + bool(follower)]
  for data, headers in (
    (b'x', {'Content_Encoding': 'br'}),
    (gzip.compress(body)[:5], {'Content_Encoding': 'gzip'}),
  ):
    found, counts = read(
      response(data, **headers) + response('b', 'text/plain')
    )
    assert list(found.values()) == ['b']
    assert counts['records whose content cannot be unpacked, left out'] == 1


def test_a_damaged_archive_gives_what_comes_before(read):
  good, last = response(PAGE.format(BODY)), response('the last', 'text/plain')
  packed = [gzip.compress(good), gzip.compress(last)]
  broken = packed[1][:14] + b'\xff' * 5 + packed[1][19:]
  for data in (
    good + last[:-8],
    good + last[:-20],
    good + last[:150],
    good + last[:20],
    good + b'garbage\r\n' * 9 + last,
    good + record('response', 'u', b'', Content_Length=10**18) + last,
    good + record('response', 'u', b'', Content_Length='9' * 40) + last,
    good + record('response', 'u', b'', Content_Length=-5) + last,
    packed[0] + packed[1][:-20],
    packed[0] + broken,
    packed[0] + b'garbage',
  ):
    found, counts = read(data)
    assert list(found.values())[:1] == [f'Head\n\n{BODY}'], data
    assert counts['archives damaged or cut, rest left out'] == 1, data
    assert counts['documents'] == 1, data
    with pytest.raises(ValueError, match='damaged or cut at record') as e:
      read(data, errors='strict')
    assert '\n' not in str(e.value) and len(str(e.value)) <= 200


def test_what_is_no_archive_is_refused(read):
  with pytest.raises(ValueError, match=r'a\.warc: is no web archive; check it'):
    read(b'text')
  found, counts = read(b'WARC/1.0\r\nnothing')
  assert not found and counts['archives damaged or cut, rest left out'] == 1


def test_hostile_archives_stay_in_bounded_memory_and_time(read):
  zeros = b'\0' * (1 << 20)
  bomb = io.BytesIO()
  with gzip.GzipFile(fileobj=bomb, mode='wb') as file:
    for _ in range(32):
      file.write(zeros)
  last = response('last', 'text/plain')
  long = record('conversion', 'u', b'x' * (8 << 20))
  archives = {
    'a bomb': response(bomb.getvalue(), Content_Encoding='gzip') + last,
    'a long chunk': response(b'ffffffff\r\nx', Transfer_Encoding='chunked')
    + last,
    'a long size': response(b'1' * (4 << 20), Transfer_Encoding='chunked')
    + last,
    'small chunks': response(
      b'1\r\na\r\n' * (1 << 18), 'text/plain', Transfer_Encoding='chunked'
    )
    + last,
    'a long header': record('response', 'u', b'')[:-4] + b'x' * (9 << 20),
    'a long HTTP header': record(
      'response', 'u', b'HTTP/1.1 200 OK\r\nA: ' + b'x' * (4 << 20)
    )
    + last,
    'a packed archive': gzip.compress(record('response', 'u', zeros * 20)),
    'a long text': long + last,
  }
  for name, data in archives.items():
    packed = data if data.startswith(b'\x1f') else gzip.compress(data, 1)
    start = time.process_time()
    tracemalloc.start()
    found, _ = read(packed, max_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20, (name, peak)
    assert time.process_time() - start < 60, name
    if data.endswith(last):
      assert list(found.values())[-1] == 'last', name


@pytest.mark.parametrize(
  'html',
  (
    '<div>' * 100_000 + BODY,
    '<div><p>' * 100_000 + BODY,
    '<p ' + ' '.join(f'a{n}=1' for n in range(100_000)) + '>' + BODY,
    '<b><i><u><a><p>' * 20_000 + BODY,
    '<' * 500_000,
  ),
  ids=lambda x: x[:8],
)
def test_hostile_pages_are_extracted_in_time(html):
  start = time.process_time()
  text = web_archives.extract(html, 'main')
  assert BODY in text or html.startswith('<<')
  assert time.process_time() - start < 60  # 20 minutes without the bounds


@settings(deadline=None, max_examples=100)
@given(
  st.lists(
    st.one_of(
      st.text(st.characters(exclude_categories=('Cs',)), max_size=20),
      st.sampled_from(
        (
          '<div>',
          '</div>',
          '<p',
          '>',
          '<table><tr>',
          '<svg>',
          '<!--',
          '-->',
          '<script>',
          '&#x110000;',
          '&#xD800;',
          '&nbsp',
          '<template>',
          '\0',
          '<article class="main">',
          '<select><option>',
          '<pre>',
          '<li>',
          '"',
        )
      ),
    ),
    max_size=30,
  ),
  st.sampled_from(web_archives.EXTRACTS),
)
def test_any_page_gives_unicode(pieces, how):
  web_archives.extract(''.join(pieces), how).encode()


@settings(deadline=None, max_examples=100)
@given(
  st.binary(max_size=200),
  st.lists(
    st.tuples(st.integers(0, 1 << 20), st.binary(max_size=3)), max_size=5
  ),
  st.sampled_from(text_files.ERRORS),
)
def test_a_changed_archive_is_read_or_refused_in_one_line(
  tmp_path_factory, body, edits, errors
):
  data = bytearray(
    response(body, None)
    + response(PAGE.format(BODY), Content_Encoding='gzip')
    + record('conversion', 'u', body)
  )
  for place, change in edits:
    at = place % len(data)
    data[at : at + len(change)] = change
  file = tmp_path_factory.getbasetemp() / 'changed.warc'
  file.write_bytes(data)
  how = documents.Settings(errors=errors)
  try:
    for _, text in documents.records(str(file), how, collections.Counter()):
      assert text.encode()
  except ValueError as e:
    assert type(e) is ValueError
    assert '\n' not in str(e) and len(str(e)) <= 200


def test_a_missing_package_is_one_line(read, monkeypatch):
  monkeypatch.setitem(sys.modules, 'fastwarc', None)
  with pytest.raises(ValueError, match=r'a web archive needs fastwarc.*data'):
    read(response('x'))
