"""An HTTP server for one machine, on which a client takes a bounded share.

A connection carries one request. Its head and body together must come within
READ_SECONDS, and the answer ends the connection. Only fixed paths are served.
All but public ones need a token. A page of another site cannot read it, since
no header allows that (CORS), and a name that was made to point to this machine
(DNS rebinding) is refused as an unknown Host.
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
from urllib import parse

from lm import errors

BODY_BYTES = 1 << 20  # larger than any prompt that a model here has room for
READ_SECONDS = 10.0  # to receive a whole request
WRITE_SECONDS = 10.0  # to wait for a client that does not read
# A client that still sends would lose an answer at once followed by a close.
LINGER_SECONDS = 1.0
CONNECTIONS = 64  # each has a thread; a new one replaces the slowest
GRACE_SECONDS = 5.0  # to finish answers when the server stops
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
    status: the HTTP status.
    code: a word that programs can check.
    headers: more headers of the answer.
  """

  def __init__(
    self,
    text: str,
    status: int = 400,
    code: str = 'bad_request',
    *headers: tuple[str, str],
  ):
    """Takes the line that the client gets."""
    super().__init__(text)
    self.status, self.code, self.headers = status, code, headers


class ClientLeft(Exception):
  """The client has closed the connection, or at least its side of it."""


class Route(NamedTuple):
  """How a path is answered.

  Attributes:
    method: 'GET', which also answers HEAD, or 'POST'.
    answer: is called with the exchange; if it raises Refused, that is the
      answer.
    public: whether it is answered without a token.
  """

  method: str
  answer: Callable[['Exchange'], None]
  public: bool = False

  @property
  def methods(self) -> tuple[str, ...]:
    """Lists all methods that are answered."""
    return ('GET', 'HEAD') if self.method == 'GET' else (self.method,)


class Server(socketserver.ThreadingTCPServer):
  """Listens, and answers each connection in a thread of its own.

  Attributes:
    routes: what is served, by path.
    address: to open in a browser.
    seconds: how long an answer may take.
    deadline: the `time.monotonic` at which all answers must end.
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
      OSError, OverflowError: the address or port cannot be used.
    """
    if ':' in host:
      self.address_family = socket.AF_INET6
    super().__init__((host, port), Exchange)
    name = f'[{host}]' if ':' in host else host
    self.address = f'http://{name}:{self.server_address[1]}/'
    self.routes, self.seconds, self.deadline = routes, seconds, float('inf')
    self._token, self._names = token.encode(), ('localhost', host.lower())
    self._lock = threading.Lock()
    # All connections, the oldest first, and whether they still send a request.
    self._receiving: dict[socket.socket, bool] = {}

  def is_own_name(self, host: str) -> bool:
    """Returns whether a Host header names this server.

    A numeric address is accepted: only a name can be made to point here.
    """
    match = re.fullmatch(r'(\[[0-9a-fA-F:.]+\]|[^\[\]:]+)(:[0-9]{1,5})?', host)
    if match is None:
      return False
    with contextlib.suppress(ValueError):
      return bool(ipaddress.ip_address(match[1].strip('[]')))
    return match[1].lower() in self._names

  def is_authorized(self, header: str) -> bool:
    """Returns whether an Authorization header has the token."""
    # In constant time: the time must not tell how much of it was right.
    header_bytes = header.encode('utf-8', 'replace')
    return hmac.compare_digest(header_bytes, b'Bearer ' + self._token)

  def received(self, connection: socket.socket) -> None:
    """Records that a connection has sent its whole request."""
    with self._lock:
      self._receiving[connection] = False

  def process_request(self, request: Any, client_address: Any) -> None:
    """Starts a thread; of too many, the one that sends slowest is cut off."""
    with self._lock:
      sending = (s for s, receives in self._receiving.items() if receives)
      slow = next(sending, None)  # the oldest
      full = len(self._receiving) >= CONNECTIONS
      if full and slow is not None:
        self._receiving[slow] = False
        _stop_reading(slow)
      if not full or slow is not None:
        self._receiving[request] = True
        try:
          super().process_request(request, client_address)
        except RuntimeError:  # the system starts no more threads
          del self._receiving[request]
          raise
        return
    self.shutdown_request(request)

  def process_request_thread(self, request: Any, client_address: Any) -> None:
    """Answers one connection."""
    try:
      super().process_request_thread(request, client_address)
    finally:
      with self._lock:
        del self._receiving[request]

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Prints a traceback, unless the client has left: that is no bug."""
    if not isinstance(sys.exc_info()[1], OSError):
      traceback.print_exc()

  def stop(self) -> None:
    """Stops listening, and waits until the answers in progress have ended."""
    self.shutdown()
    self.deadline = time.monotonic() + GRACE_SECONDS
    with self._lock:
      for connection, receives in self._receiving.items():
        if receives:
          _stop_reading(connection)
    # The others see the deadline before their next token. Only one that waits
    # for a compiler or a device does not.
    last = self.deadline + LINGER_SECONDS + 1
    while self._receiving and time.monotonic() < last:
      time.sleep(0.02)
    self.server_close()


class Exchange(server.BaseHTTPRequestHandler):
  """A request and its answer.

  Attributes:
    note: what the log adds to path, status and time.
  """

  protocol_version = default_request_version = 'HTTP/1.1'
  server_version, sys_version = 'lm', ''
  disable_nagle_algorithm = True  # a token is sent as soon as it is drawn
  server: Server  # is set by the base class; this tells the type checker

  def setup(self) -> None:
    """Starts the clock of the request."""
    super().setup()
    self.note, self._status, self._start = '', 0, time.monotonic()
    self.rfile.close()
    self.rfile = io.BufferedReader(
      _TimedReader(self.connection, self._start + READ_SECONDS)
    )

  def finish(self) -> None:
    """Logs the request, and reads what the client still sends.

    Without that, closing the connection could take the answer back.
    """
    if self._status:  # 0: no request came
      self._log()
    with contextlib.suppress(OSError):
      super().finish()
      self.connection.shutdown(socket.SHUT_WR)
      end = time.monotonic() + LINGER_SECONDS
      rest = _TimedReader(self.connection, end)
      for _ in range(2 * BODY_BYTES >> 16):
        rest.read(1 << 16)

  def log_message(self, format: str, *args: Any) -> None:
    """Does nothing: `finish` writes the line of the log."""

  def send_error(
    self, code: int, message: str | None = None, explain: str | None = None
  ) -> None:
    """Answers a request that the base class refuses."""
    if code == http.HTTPStatus.NOT_IMPLEMENTED:  # a method that it cannot call
      self._answer()
      return
    phrase = http.HTTPStatus(code).phrase
    self._refuse(Refused(message or phrase, code))

  def do_GET(self) -> None:
    """Answers a call of the base class."""
    self._answer()

  def do_HEAD(self) -> None:
    """Answers a call of the base class."""
    self._answer()

  def do_POST(self) -> None:
    """Answers a call of the base class."""
    self._answer()

  def body(self) -> bytes:
    """Reads the body of the request.

    Raises:
      Refused: its length is not given or too large, or it is late.
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
      content = self.rfile.read(size)
    except OSError:
      content = b''
    if len(content) < size:
      raise Refused(
        f'body: not whole within {READ_SECONDS:.0f} s', 408, 'too_slow'
      )
    self.server.received(self.connection)
    return content

  def check(self) -> None:
    """Checks that the answer is still worth the work.

    Raises:
      ClientLeft: nobody waits for the answer.
      Refused: the time for it is over.
    """
    now = time.monotonic()
    if now > self.server.deadline:
      raise Refused('the server stops', 503, 'stopping')
    if now > self._start + self.server.seconds:
      raise Refused(
        f'more than {self.server.seconds:g} s: ask for less', 504, 'deadline'
      )
    # A connection that is readable, and has no byte to read, is closed.
    poll = select.poll()
    poll.register(self.connection, select.POLLIN)
    if poll.poll(0) and not self.connection.recv(1, socket.MSG_PEEK):
      raise ClientLeft

  def json(self, value: Any, *more: tuple[str, str], status: int = 200) -> None:
    """Answers with a value as JSON, and with more headers."""
    body = json.dumps(value).encode()
    self.send(body, 'application/json', *more, status=status)

  def send(
    self, body: bytes, kind: str, *more: tuple[str, str], status: int = 200
  ) -> None:
    """Answers with bytes of a content type, and with more headers."""
    self._head(status, kind, ('Content-Length', str(len(body))), *more)
    if self.command != 'HEAD':
      self.wfile.write(body)

  def event(self, value: Any) -> None:
    """Answers with one more event; None ends the stream of events."""
    if not self._status:
      self._head(200, 'text/event-stream')
    data = '[DONE]' if value is None else json.dumps(value)
    self.wfile.write(f'data: {data}\n\n'.encode())

  def _answer(self) -> None:
    try:
      self._route().answer(self)
    except Refused as e:
      self._refuse(e)
    except (OSError, ClientLeft):
      self._status = self._status or 499  # nginx's number for it
      self.note += ', client left'
    except Exception:  # a bug: the client gets no traceback
      traceback.print_exc()
      self._refuse(
        Refused('internal error: see the log of the server', 500, 'internal')
      )

  def _log(self) -> None:
    path = self._path() if hasattr(self, 'path') else ''
    route = self.server.routes.get(path)
    # What is unknown is not logged: it may hold anything, even the token.
    method = self.command if route and self.command in route.methods else '-'
    known = f'{method} {path}' if route else '-'
    seconds = time.monotonic() - self._start
    sys.stderr.write(  # in one call: other threads write too
      f'{time.strftime("%F %T")} {known} {self._status} {seconds:.2f} s'
      f'{self.note}\n'
    )

  def _path(self) -> str:
    return parse.unquote(self.path.partition('?')[0])

  def _route(self) -> Route:
    hosts = self.headers.get_all('Host', [])
    if len(hosts) != 1 or not self.server.is_own_name(hosts[0].strip()):
      raise Refused('Host: must be a name of this server', 403, 'wrong_host')
    path = self._path()
    route = self.server.routes.get(path)
    if route is None:
      known = ', '.join(self.server.routes)
      raise Refused(f'no such path; there are {known}', 404, 'not_found')
    if self.command not in route.methods:
      allowed = ', '.join(route.methods)
      raise Refused(
        f'{path}: use {allowed}', 405, 'wrong_method', ('Allow', allowed)
      )
    header = self.headers.get('Authorization', '')
    if not route.public and not self.server.is_authorized(header):
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
      if self._status:  # the answer has begun, so the error is an event
        self.note += f', {error.code}'
        self.event(value)
      else:
        self.json(value, *error.headers, status=error.status)

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


class _TimedReader(io.RawIOBase):
  """Reads a socket until a point in time, however few bytes come at a time.

  The end of the data is an error here: without it the base class would take
  half a head for a whole one.
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


def _stop_reading(connection: socket.socket) -> None:
  with contextlib.suppress(OSError):  # it may have ended by itself
    connection.shutdown(socket.SHUT_RD)
