"""Stands for the server of W&B on this machine, for `wandb sync`.

It answers the few requests by which a run is made, resumed and filled, and
keeps the lines of history. It runs beside the real wandb, see loggers_peer.py.
"""

from collections.abc import Iterator
import contextlib
import gzip
import http.server
import json
import threading
from typing import Any


class Server(http.server.ThreadingHTTPServer):
  """Keeps the history of one run; use it in `with serving()`.

  Attributes:
    lines: of the run's history, as JSON.
  """

  def __init__(self):
    """Takes any free port of the loopback device."""
    super().__init__(('127.0.0.1', 0), _Handler)
    self.lines: list[str] = []

  @property
  def url(self) -> str:
    """The address for WANDB_BASE_URL."""
    return f'http://127.0.0.1:{self.server_port}'

  def answer(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Answers a request of GraphQL by its name."""
    project = {'id': 'p', 'name': 'p', 'entity': {'id': 'e', 'name': 'e'}}
    if name == 'UpsertBucket':
      bucket = {
        'id': 'r',
        'name': given['name'],
        'displayName': given['name'],
        'description': None,
        'config': '{}',
        'sweepName': None,
        'project': project,
        'historyLineCount': len(self.lines),
      }
      return {'upsertBucket': {'bucket': bucket, 'inserted': not self.lines}}
    if name == 'RunResumeStatus':
      bucket = {
        'name': given['name'],
        'displayName': given['name'],
        'summaryMetrics': '{}',
        'config': '{}',
        'wandbConfig': '{"t": 1}',
        'tags': [],
        'logLineCount': 0,
        'eventsLineCount': 0,
        'historyLineCount': len(self.lines),
        'historyTail': json.dumps(self.lines[-1:]),
        'eventsTail': '[]',
      }
      return {'model': {**project, 'bucket': bucket if self.lines else None}}
    if name == 'CreateRunFiles':
      files = [
        {'name': x, 'uploadUrl': f'{self.url}/{x}'} for x in given['files']
      ]
      made = {'runID': 'r', 'uploadHeaders': [], 'files': files}
      return {'createRunFiles': made}
    return {}

  def append(self, parts: dict[str, Any]) -> None:
    """Takes lines of files, each at its place."""
    part = parts.get('wandb-history.jsonl')
    if part is not None:
      self.lines[part['offset'] :] = part['content']


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  server: Server

  def log_message(self, *_):
    """Says nothing."""

  def _reply(self, value: dict[str, Any]) -> None:
    content = json.dumps(value).encode()
    self.send_response(200)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _body(self) -> bytes:
    content = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    if self.headers.get('Content-Encoding') == 'gzip':
      return gzip.decompress(content)
    return content

  def do_GET(self):
    """Answers with nothing."""
    self._reply({})

  def do_PUT(self):
    """Takes a file, and forgets it."""
    self._body()
    self._reply({})

  def do_POST(self):
    """Takes lines of files, or a request of GraphQL."""
    given = json.loads(self._body())
    if self.path.endswith('/file_stream'):
      self.server.append(given.get('files') or {})
      self._reply({})
      return
    name, variables = given.get('operationName'), given.get('variables')
    self._reply({'data': self.server.answer(name, variables or {})})


@contextlib.contextmanager
def serving() -> Iterator[Server]:
  """Yields a server that runs in a thread."""
  with Server() as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
