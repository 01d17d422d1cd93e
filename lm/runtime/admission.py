"""Admits the processes of a run to process 0, and nobody else.

A process sends the token of the run, a line feed, and a line of JSON with its
number and its name. Process 0 compares the token before it reads on, and drops
whoever has another one, sends more, or is slow. None of these can stop the
group or keep it from meeting.
"""

import contextlib
import hmac
import json
import selectors
import socket
import time
from typing import NamedTuple

from lm.runtime import connections

HELLO_BYTES = 1 << 10  # of the line after the token
READ_SECONDS = 5.0  # to receive token and line
MOST_WAITING = 64  # a new connection replaces the oldest one without a token


class Refused(Exception):
  """Process 0 has closed the connection instead of answering."""


class _Visitor(NamedTuple):
  """A connection that is not admitted yet."""

  received: bytearray
  deadline: float


def admit(
  server: socket.socket, token: str, count: int, name: str
) -> tuple[dict[int, socket.socket], list[str]]:
  """Waits until all other processes of the run have come.

  Args:
    server: listens.
    token: of the run; at most 1024 characters of ASCII.
    count: of all processes.
    name: of this process, which is process 0.

  Returns:
    The connections by process, and the names of all processes, which the others
    have been sent as well.
  """
  peers: dict[int, socket.socket] = {}
  names = [name] + [''] * (count - 1)
  server.setblocking(False)
  with selectors.DefaultSelector() as selector:
    selector.register(server, selectors.EVENT_READ)
    waiting: dict[socket.socket, _Visitor] = {}

    def drop(visitor: socket.socket) -> None:
      del waiting[visitor]
      selector.unregister(visitor)
      visitor.close()

    while len(peers) < count - 1:
      for key, _ in selector.select(0.2):
        found = key.fileobj
        assert isinstance(found, socket.socket)
        if found is server:
          with contextlib.suppress(OSError):  # it may have left already
            made, _ = server.accept()
            made.setblocking(False)
            waiting[made] = _Visitor(
              bytearray(), time.monotonic() + READ_SECONDS
            )
            selector.register(made, selectors.EVENT_READ)
          if len(waiting) > MOST_WAITING:
            drop(next(iter(waiting)))
          continue
        if found not in waiting:  # dropped since the selector has seen it
          continue
        try:
          hello = _read(found, waiting[found].received, token)
          if hello is None:
            continue
          process, title = hello
          if not 0 < process < count or process in peers:
            raise ValueError(process)
        except (OSError, ValueError):
          drop(found)
          continue
        peers[process], names[process] = found, title
        del waiting[found]
        selector.unregister(found)
      now = time.monotonic()
      for visitor in [v for v, x in waiting.items() if x.deadline < now]:
        drop(visitor)
    for visitor in list(waiting):
      drop(visitor)
  for peer in peers.values():
    peer.settimeout(None)
    with contextlib.suppress(OSError):  # the group notices who has gone
      peer.sendall(json.dumps(names).encode() + b'\n')
  return peers, names


def _read(
  visitor: socket.socket, received: bytearray, token: str
) -> tuple[int, str] | None:
  """Reads what has come; returns number and name, or None if more must come.

  Raises:
    OSError, ValueError: it is no process of this run.
  """
  password = token.encode() + b'\n'
  most_bytes = len(password) + HELLO_BYTES
  data = visitor.recv(most_bytes + 1 - len(received))
  received += data
  begin = bytes(received[: len(password)])
  # In constant time: the time must not tell how much of it was right.
  known = hmac.compare_digest(begin, password)
  if not data or len(received) > most_bytes:
    raise ValueError('left, or sends too much')
  if not known and (len(begin) == len(password) or b'\n' in begin):
    raise ValueError('another token')
  line = received[len(password) :]
  if not known or not line.endswith(b'\n'):
    return None
  hello = json.loads(line)
  match hello:
    case {'process': int(process), 'name': str(name)}:
      return process, name
  raise ValueError('no hello')


def join(
  hosts: list[str], port: int, token: str, process: int, name: str
) -> tuple[socket.socket, list[str]]:
  """Connects this process with process 0.

  Args:
    hosts: addresses of process 0, of which one is enough.
    port: of process 0.
    token: of the run.
    process: the number of this one.
    name: of this one.

  Returns:
    The connection, and the names of all processes.

  Raises:
    OSError: no address answers.
    Refused: process 0 has another token.
  """
  peer = _dial(hosts, port)
  hello = json.dumps({'process': process, 'name': name})
  try:
    peer.sendall(f'{token}\n{hello}\n'.encode())
    return peer, json.loads(_line(peer))
  except (OSError, ValueError) as error:
    peer.close()
    raise Refused(str(error)) from error


def _dial(hosts: list[str], port: int) -> socket.socket:
  failure = OSError('no address')
  for host in hosts:
    try:
      peer = socket.create_connection((host, port), 10.0)
      peer.settimeout(None)
      return peer
    except OSError as error:
      failure = error
  raise failure


def _line(peer: socket.socket) -> bytes:
  line = b''
  while not line.endswith(b'\n'):
    byte = peer.recv(1)  # one by one: what follows the line is the group's
    if not byte or len(line) > connections.LARGEST_BYTES:
      raise ValueError('no line')
    line += byte
  return line
