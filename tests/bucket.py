"""A stand-in for Google Cloud Storage: what gcsfs uses of its JSON API.

Reference: https://cloud.google.com/storage/docs/json_api/v1/objects. Objects
are in memory; one appears when all of it has come, as there.
"""

from collections.abc import Iterator
import contextlib
import http.server
import json
import sys
import threading
from typing import Any
import urllib.parse


class Server(http.server.ThreadingHTTPServer):
  """Serves buckets of any name on loopback.

  Attributes:
    objects: content by `bucket/name`.
    log: the requests that changed something, in order, each as
      `METHOD bucket/name`.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.objects: dict[str, bytes] = {}
    self.log: list[str] = []
    self.uploads: dict[str, tuple[str, bytearray]] = {}

  def handle_error(self, request, client_address):
    if not isinstance(sys.exception(), ConnectionError):  # gcsfs hangs up
      super().handle_error(request, client_address)

  def settings(self) -> dict[str, str]:
    """Environment in which gcsfs comes here."""
    return {
      'STORAGE_EMULATOR_HOST': f'http://127.0.0.1:{self.server_port}',
      'FSSPEC_GCS_TOKEN': 'anon',
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    }

  def put(self, name: str, data: bytes) -> None:
    self.objects[name] = data
    self.log.append(f'PUT {name}')


@contextlib.contextmanager
def serve() -> Iterator[Server]:
  """Runs a server while inside `with`."""
  with Server() as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  server: Server

  def log_message(self, format, *args):
    pass

  def _where(self) -> tuple[str, str, str, dict[str, str]]:
    """Splits a path: the kind of request, bucket, object and query."""
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    kind, _, rest = url.path.partition('/b/')
    bucket, _, name = rest.partition('/o')
    return kind, bucket, urllib.parse.unquote(name.strip('/')), query

  def _body(self) -> bytes:
    return self.rfile.read(int(self.headers.get('Content-Length', 0)))

  def _answer(self, code: int, content: Any = b'', **headers: str) -> None:
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
      headers['Content-Type'] = 'application/json'
    self.send_response(code)
    for key, value in headers.items():
      self.send_header(key.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _about(self, name: str) -> dict[str, Any]:
    bucket, _, rest = name.partition('/')
    return {
      'kind': 'storage#object',
      'bucket': bucket,
      'name': rest,
      'size': str(len(self.server.objects[name])),
      'generation': '1',
      'timeCreated': '2026-01-01T00:00:00.000Z',
      'updated': '2026-01-01T00:00:00.000Z',
    }

  def do_GET(self):
    kind, bucket, name, query = self._where()
    full = f'{bucket}/{name}'
    if not name:
      self._list(bucket, query)
    elif full not in self.server.objects:
      self._answer(404, {'error': {'code': 404, 'message': f'no {full}'}})
    elif 'download' in kind or query.get('alt') == 'media':
      content = self.server.objects[full]
      if span := self.headers.get('Range'):
        first, last = span.removeprefix('bytes=').split('-')
        content = content[int(first) : int(last or len(content)) + 1]
      self._answer(206 if span else 200, content)
    else:
      self._answer(200, self._about(full))

  def _list(self, bucket: str, query: dict[str, str]) -> None:
    prefix, cut = query.get('prefix', ''), query.get('delimiter')
    items, folders = [], set()
    for full in sorted(self.server.objects):
      name = full.removeprefix(f'{bucket}/')
      if name == full or not name.startswith(prefix):
        continue
      head, found, _ = name[len(prefix) :].partition(cut or '\0')
      if found:
        folders.add(f'{prefix}{head}{cut}')
      else:
        items.append(self._about(full))
    self._answer(200, {'items': items, 'prefixes': sorted(folders)})

  def do_DELETE(self):
    _, bucket, name, _ = self._where()
    gone = self.server.objects.pop(f'{bucket}/{name}', None)
    self.server.log.append(f'DELETE {bucket}/{name}')
    self._answer(404 if gone is None else 204)

  def do_POST(self):
    if self.path.startswith('/resume/'):
      self._resume()
      return
    _, bucket, _, query = self._where()
    assert query['uploadType'] == 'resumable', self.path
    key = f'{len(self.server.uploads)}'
    self.server.uploads[key] = f'{bucket}/{query["name"]}', bytearray()
    self._body()
    host = self.server.settings()['STORAGE_EMULATOR_HOST']
    self._answer(200, {}, Location=f'{host}/resume/{key}')

  def _resume(self) -> None:
    full, content = self.server.uploads[self.path.rpartition('/')[2]]
    content += self._body()
    total = self.headers['Content-Range'].rpartition('/')[2]
    if total == '*':
      self._answer(308, Range=f'bytes=0-{len(content) - 1}')
    else:
      self.server.put(full, bytes(content))
      self._answer(200, self._about(full))
