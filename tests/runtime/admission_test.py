"""Process 0 of a run admits its peers, whoever else knocks."""

import contextlib
import hmac
import socket
import threading

import pytest

from lm.runtime import admission

TOKEN = 'a-token-of-this-run'
HELLO = b'{"process": 1, "name": "b"}\n'


class Door:
  """Process 0 of three, which waits for the others in a thread."""

  def __init__(self):
    self.server = socket.create_server(('127.0.0.1', 0))
    self.address = self.server.getsockname()
    self.found: list = []
    self.thread = threading.Thread(target=self._admit, daemon=True)
    self.thread.start()

  def _admit(self) -> None:
    self.found.append(admission.admit(self.server, TOKEN, 3, 'a'))

  def knock(self, sent: bytes) -> socket.socket:
    client = socket.create_connection(self.address, 20)
    client.sendall(sent)
    return client

  def meet(self) -> None:
    """Lets the true peers come, and sees that all have met."""
    found = {}

    def join(process: int, name: str) -> None:
      found[process] = admission.join(
        [self.address[0]], self.address[1], TOKEN, process, name
      )

    threads = [
      threading.Thread(target=join, args=x) for x in ((1, 'b'), (2, 'c'))
    ]
    for thread in threads:
      thread.start()
    for thread in [*threads, self.thread]:
      thread.join(20)
      assert not thread.is_alive()
    (peers, names), *_ = self.found
    assert names == ['a', 'b', 'c'] and sorted(peers) == [1, 2]
    for process, (connection, heard) in found.items():
      assert heard == names
      peers[process].sendall(b'x')
      assert connection.recv(1) == b'x'
      connection.close()
      peers[process].close()

  def close(self) -> None:
    self.server.close()
    for peers, _ in self.found:
      for peer in peers.values():
        peer.close()


@pytest.fixture
def door():
  made = Door()
  yield made
  made.close()


@pytest.mark.parametrize(
  'sent',
  [
    b'\n',
    b'a-token-of-this-ruN\n' + HELLO,
    b'a-token\n' + HELLO,
    TOKEN.encode() + b' ' + HELLO,
    b'[' * 1000 + b'\n',  # which a JSON parser fails on
    b'{"token": "x", "process": 1e999}\n',
    b'\xff' * 100,
    b'GET / HTTP/1.1\r\nHost: here\r\n\r\n',
    TOKEN.encode() + b'\n' + b' ' * 2000,
    TOKEN.encode() + b'\n{"process": 3, "name": "b"}\n',
    TOKEN.encode() + b'\n{"process": 0, "name": "b"}\n',
    TOKEN.encode() + b'\n{"process": 1e999, "name": "b"}\n',
    TOKEN.encode() + b'\n[]\n',
    TOKEN.encode() + b'\nhello\n',
    TOKEN.encode() + b'\n' + HELLO + HELLO,
  ],
)
def test_a_stranger_is_dropped_at_once_and_stops_nobody(door, sent):
  with door.knock(sent) as client, contextlib.suppress(ConnectionResetError):
    assert client.recv(1) == b''
  door.meet()


def test_a_process_that_comes_twice_is_dropped(door):
  with door.knock(TOKEN.encode() + b'\n{"process": 2, "name": "c"}\n'):
    with door.knock(TOKEN.encode() + b'\n{"process": 2, "name": "d"}\n') as two:
      assert two.recv(1) == b''
    with door.knock(TOKEN.encode() + b'\n' + HELLO):
      door.thread.join(20)
  assert door.found[0][1] == ['a', 'b', 'c']


def test_the_silent_and_the_slow_keep_nobody_waiting(door):
  half = [door.knock(TOKEN.encode()[:4]) for _ in range(20)]
  silent = [door.knock(b'') for _ in range(admission.MOST_WAITING)]
  # the oldest have made room for the newest
  assert half[0].recv(1) == b''
  door.meet()
  for client in [*half, *silent]:
    client.close()


def test_a_slow_one_is_dropped_after_its_time(monkeypatch):
  monkeypatch.setattr(admission, 'READ_SECONDS', 0.3)
  door = Door()
  with door.knock(TOKEN.encode()) as client:
    assert client.recv(1) == b''
  door.meet()
  door.close()


def test_tokens_are_compared_in_constant_time(door, monkeypatch):
  compared = []

  def compare(a, b):
    compared.append((a, b))
    return a == b

  monkeypatch.setattr(hmac, 'compare_digest', compare)
  with door.knock(b'another-token-of-it\n' + HELLO) as client:
    assert client.recv(1) == b''
  assert compared[-1] == (b'another-token-of-it\n', f'{TOKEN}\n'.encode())
  door.meet()


def test_one_that_is_refused_says_so():
  door = Door()
  with pytest.raises(admission.Refused):
    admission.join(['127.0.0.1'], door.address[1], 'wrong' * 4, 1, 'b')
  door.meet()
  door.close()
  with pytest.raises(OSError):
    admission.join(['127.0.0.1'], door.address[1], TOKEN, 1, 'b')
