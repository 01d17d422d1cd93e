"""HTTP for one machine, where whatever a client does takes a bounded share.

A connection carries one request: its head and body come within READ_SECONDS,
all of it counted together, and every answer ends it. Only fixed paths are
known; all but open ones want a token, which strangers cannot read: nothing
allows another site's page to (CORS), and a name that was made to point here
(DNS rebinding) is no known Host.
"""

from collections.abc import Callable, Mapping
import contextlib
import hmac
import http
from http import server
import io
import ipaddress
import json
import re
import select
import socket
import socketserver
import sys
import threading
import time
import traceback
from typing import Any, NamedTuple

from lm import errors

BODY_BYTES = 1 << 20  # above any prompt that a model here has room for
READ_SECONDS = 10.0  # for a request that is on its way already
WRITE_SECONDS = 10.0  # for a reader that stands still
LINGER_SECONDS = (
  1.0  # what a client still sends is read, or it loses the answer
)
CONNECTIONS = 64  # a thread each; a new one takes the place of the slowest
GRACE_SECONDS = 5.0  # for answers on their way when the server ends
_HEADERS = (
  ('Connection', 'close'),
  ('Cache-Control', 'no-store'),
  ('Cross-Origin-Resource-Policy', 'same-origin'),
  ('Referrer-Policy', 'no-referrer'),
  ('X-Content-Type-Options', 'nosniff'),
)


class Refused(errors.Failure):
  """A request that is answered with an error.

  Attributes:
    status: of HTTP.
    code: a word for programs.
  """

  def __init__(self, text: str, status: int = 400, code: str = 'bad_request'):
    """Takes the line for the client."""
    super().__init__(text)
    self.status, self.code = status, code


class Gone(Exception):
  """The client has closed the connection, or at least its side of it."""


class Route(NamedTuple):
  """What is done at a path.

  Attributes:
    method: 'GET' or 'POST'.
    answer: called with the exchange; a Refused that it raises is the answer.
    open: whether no token is asked for.
  """

  method: str
  answer: Callable[['Exchange'], None]
  open: bool = False


class Server(socketserver.ThreadingTCPServer):
  """Listens, and answers each connection in a thread.

  Attributes:
    routes: by path.
    address: for a browser.
    seconds: that an answer may take.
    ends: when all answers have to come to an end, of `time.monotonic`.
  """

  allow_reuse_address = True
  daemon_threads = True
  request_queue_size = CONNECTIONS

  def __init__(
    self,
    routes: Mapping[str, Route],
    *,
    token: str,
    host: str,
    port: int,
    seconds: float,
  ):
    """Binds a port; 0 takes a free one.

    Raises:
      OSError, OverflowError: it cannot be had.
    """
    if ':' in host:
      self.address_family = socket.AF_INET6
    super().__init__((host, port), Exchange)
    name = f'[{host}]' if ':' in host else host
    self.address = f'http://{name}:{self.server_address[1]}/'
    self.routes, self.seconds, self.ends = routes, seconds, float('inf')
    self._token, self._names = token.encode(), ('localhost', host.lower())
    self._guard = threading.Lock()
    # Whether a request is still to come, the oldest connection first.
    self._open: dict[socket.socket, bool] = {}

  def knows(self, host: str) -> bool:
    """Tells whether a Host is a name of this server.

    Only names can be made to point here: a number is always what it says.
    """
    found = re.fullmatch(r'(\[[0-9a-fA-F:.]+\]|[^\[\]:]+)(:[0-9]{1,5})?', host)
    if found is None:
      return False
    with contextlib.suppress(ValueError):
      return bool(ipaddress.ip_address(found[1].strip('[]')))
    return found[1].lower() in self._names

  def admits(self, authorization: str) -> bool:
    """Tells whether a header shows the token."""
    shown = authorization.encode('utf-8', 'replace')
    return hmac.compare_digest(shown, b'Bearer ' + self._token)

  def has_come(self, connection: socket.socket) -> None:
    """Notes that a request is whole."""
    with self._guard:
      self._open[connection] = False

  def process_request(self, request: Any, client_address: Any) -> None:
    """Starts a thread; among too many, who sends slowest is cut off."""
    with self._guard:
      slow = next((s for s, coming in self._open.items() if coming), None)
      full = len(self._open) >= CONNECTIONS
      if full and slow is not None:
        self._open[slow] = False
        _shut(slow)
      if not full or slow is not None:
        self._open[request] = True
        try:
          super().process_request(request, client_address)
        except RuntimeError:  # no thread can be had
          del self._open[request]
          raise
        return
    self.shutdown_request(request)

  def process_request_thread(self, request: Any, client_address: Any) -> None:
    """Answers one connection."""
    try:
      super().process_request_thread(request, client_address)
    finally:
      with self._guard:
        del self._open[request]

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Is silent where a client has left; else it is a bug of ours."""
    if not isinstance(sys.exc_info()[1], OSError):
      traceback.print_exc()

  def end(self) -> None:
    """Listens no more, and waits for the answers that are on their way."""
    self.shutdown()
    self.ends = time.monotonic() + GRACE_SECONDS
    with self._guard:
      for connection in (s for s, coming in self._open.items() if coming):
        _shut(connection)
    # They end themselves, but for what a compiler or a device holds up.
    while self._open and time.monotonic() < self.ends + LINGER_SECONDS + 1:
      time.sleep(0.02)
    self.server_close()


class Exchange(server.BaseHTTPRequestHandler):
  """A request and its answer.

  Attributes:
    note: what the log says of it beside path, status and time.
  """

  protocol_version = default_request_version = 'HTTP/1.1'
  server_version, sys_version = 'lm', ''
  disable_nagle_algorithm = True  # a token goes out when it comes
  server: Server  # what the base class sets, for a type checker

  def setup(self) -> None:
    """Begins to count the time."""
    super().setup()
    self.note, self._status, self._start = '', 0, time.monotonic()
    self.rfile.close()
    self.rfile = io.BufferedReader(
      _Reader(self.connection, self._start + READ_SECONDS)
    )

  def finish(self) -> None:
    """Reads what is left, or closing would take the answer back."""
    if self._status:  # else nothing came
      self._log()
    with contextlib.suppress(OSError):
      super().finish()
      self.connection.shutdown(socket.SHUT_WR)
      rest = _Reader(self.connection, time.monotonic() + LINGER_SECONDS)
      for _ in range(2 * BODY_BYTES >> 16):
        rest.read(1 << 16)

  def log_message(self, format: str, *args: Any) -> None:
    """Is silent: `finish` writes the line."""

  def send_error(
    self, code: int, message: str | None = None, explain: str | None = None
  ) -> None:
    """Answers what the base class refuses."""
    phrase = http.HTTPStatus(code).phrase
    self._refuse(Refused(message or phrase, code))

  def do_GET(self) -> None:
    """Answers a call of the base class."""
    self._answer()

  def do_POST(self) -> None:
    """Answers a call of the base class."""
    self._answer()

  def body(self) -> bytes:
    """Reads the body.

    Raises:
      Refused: its length is wrong, or it is not whole in time.
    """
    lengths = self.headers.get_all('Content-Length', [])
    if 'Transfer-Encoding' in self.headers or not lengths:
      raise Refused('Content-Length: needed', 411, 'no_length')
    if len(lengths) > 1 or not re.fullmatch('[0-9]{1,18}', lengths[0]):
      raise Refused('Content-Length: must be one whole number')
    size = int(lengths[0])
    if size > BODY_BYTES:
      raise Refused(
        f'body: more than {BODY_BYTES} bytes; shorten it', 413, 'too_large'
      )
    try:
      found = self.rfile.read(size)
    except OSError:
      found = b''
    if len(found) < size:
      raise Refused(
        f'body: not whole within {READ_SECONDS:.0f} s', 408, 'too_slow'
      )
    self.server.has_come(self.connection)
    return found

  def check(self) -> None:
    """Raises what ends an answer on its way.

    Raises:
      Gone: nobody waits for it.
      Refused: time is up.
    """
    now = time.monotonic()
    if now > self.server.ends:
      raise Refused('the server stops', 503, 'stopping')
    if now > self._start + self.server.seconds:
      raise Refused(
        f'more than {self.server.seconds:g} s: ask for less', 504, 'deadline'
      )
    # What is readable without a byte to read is closed.
    poll = select.poll()
    poll.register(self.connection, select.POLLIN)
    if poll.poll(0) and not self.connection.recv(1, socket.MSG_PEEK):
      raise Gone

  def json(self, value: Any, status: int = 200) -> None:
    """Answers with a value."""
    self.send(json.dumps(value).encode(), 'application/json', status=status)

  def send(
    self, body: bytes, kind: str, *more: tuple[str, str], status: int = 200
  ) -> None:
    """Answers with bytes of a content type, and more headers."""
    self._head(status, kind, ('Content-Length', str(len(body))), *more)
    self.wfile.write(body)

  def event(self, value: Any) -> None:
    """Answers with one more event; None says that it was the last."""
    if not self._status:
      self._head(200, 'text/event-stream')
    data = '[DONE]' if value is None else json.dumps(value)
    self.wfile.write(f'data: {data}\n\n'.encode())

  def _answer(self) -> None:
    try:
      self._route().answer(self)
    except Refused as e:
      self._refuse(e)
    except (OSError, Gone):
      self._status = self._status or 499  # as nginx calls it
      self.note += ', client left'
    except Exception:  # a bug: its traceback stays here
      traceback.print_exc()
      self._refuse(
        Refused('internal error: see the log of the server', 500, 'internal')
      )

  def _log(self) -> None:
    path = getattr(self, 'path', '').partition('?')[0]
    # A path may hold anything, such as the token.
    known = f'{self.command} {path}' if path in self.server.routes else '-'
    seconds = time.monotonic() - self._start
    sys.stderr.write(  # at once: other threads write too
      f'{time.strftime("%F %T")} {known} {self._status} {seconds:.2f} s'
      f'{self.note}\n'
    )

  def _route(self) -> Route:
    hosts = self.headers.get_all('Host', [])
    if len(hosts) != 1 or not self.server.knows(hosts[0].strip()):
      raise Refused('Host: must be a name of this server', 403, 'wrong_host')
    path = self.path.partition('?')[0]
    route = self.server.routes.get(path)
    if route is None:
      known = ', '.join(self.server.routes)
      raise Refused(f'no such path; there are {known}', 404, 'not_found')
    if self.command != route.method:
      raise Refused(f'{path}: use {route.method}', 405, 'wrong_method')
    shown = self.headers.get('Authorization', '')
    if not route.open and not self.server.admits(shown):
      raise Refused(
        'Authorization: must be "Bearer TOKEN" with the token of this server',
        401,
        'wrong_token',
      )
    return route

  def _refuse(self, error: Refused) -> None:
    kind = 'invalid_request_error' if error.status < 500 else 'server_error'
    value = {'error': {'message': str(error), 'type': kind, 'code': error.code}}
    with contextlib.suppress(OSError):
      if self._status:  # the answer has begun: an event is what can be said
        self.note += f', {error.code}'
        self.event(value)
      else:
        self.json(value, error.status)

  def _head(self, status: int, kind: str, *more: tuple[str, str]) -> None:
    self._status = status
    self.connection.settimeout(WRITE_SECONDS)
    self.send_response(status)
    for name, value in (('Content-Type', kind), *_HEADERS, *more):
      self.send_header(name, value)
    if status == 401:
      self.send_header('WWW-Authenticate', 'Bearer')
    if status == 429:
      self.send_header('Retry-After', '1')
    self.end_headers()


class _Reader(io.RawIOBase):
  """Reads a socket until a moment, however few bytes come at a time.

  An end is an error: the base class would take half a head for a whole one.
  """

  def __init__(self, connection: socket.socket, end: float):
    self._connection, self._end = connection, end

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    left = self._end - time.monotonic()
    if left <= 0:
      raise TimeoutError
    self._connection.settimeout(left)
    count = self._connection.recv_into(buffer)
    if not count:
      raise ConnectionAbortedError
    return count


def _shut(connection: socket.socket) -> None:
  with contextlib.suppress(OSError):  # it may have ended by itself
    connection.shutdown(socket.SHUT_RD)
