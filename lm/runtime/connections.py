"""TCP connections between the processes of a run, which carry lines of JSON."""

import contextlib
import json
import socket
import threading
from typing import Any

LARGEST_BYTES = 1 << 28  # of a line: hashes of a million files


class Connections:
  """The connections of one process: process 0 has all, the others have one.

  Any thread may send; one thread receives.

  Attributes:
    sockets: by the number of the process at the other end.
  """

  def __init__(self, sockets: dict[int, socket.socket]):
    """Begins with connections that are open and admitted."""
    self.sockets = sockets
    # Two threads that send at once would mix their lines.
    self._sending = {peer: threading.Lock() for peer in sockets}
    self._received = {peer: bytearray() for peer in sockets}

  def send(self, peer: int, message: dict[str, Any]) -> None:
    """Sends a message; waits until the peer has room for it."""
    # A peer that is gone is noticed by who receives, not here.
    with contextlib.suppress(OSError), self._sending[peer]:
      self.sockets[peer].sendall(json.dumps(message).encode() + b'\n')

  def send_beat(self) -> None:
    """Sends an empty message to all peers, and waits for none of them."""
    for peer, connection in self.sockets.items():
      # A peer that does not read must not keep the beat from the others.
      if self._sending[peer].acquire(blocking=False):
        try:
          connection.send(b'{}\n', socket.MSG_DONTWAIT)
        except OSError:
          pass  # full or closed; receiving tells which
        finally:
          self._sending[peer].release()

  def send_last(self, message: dict[str, Any]) -> None:
    """Sends a last message to all peers; hardly waits for one that hangs."""
    line = json.dumps(message).encode() + b'\n'
    for peer, connection in self.sockets.items():
      if self._sending[peer].acquire(timeout=0.5):
        with contextlib.suppress(OSError):
          connection.send(line, socket.MSG_DONTWAIT)
        self._sending[peer].release()

  def receive(self, peer: int) -> list[dict[str, Any]] | None:
    """Receives what has come from a peer; None if it has closed.

    Call it when there is something to receive, or it waits.
    """
    buffer = self._received[peer]
    try:
      data = self.sockets[peer].recv(1 << 16)
    except OSError:
      return None
    if not data or len(buffer) > LARGEST_BYTES:
      return None
    *lines, rest = data.split(b'\n')
    messages = []
    for line in lines:
      messages.append(json.loads(bytes(buffer) + line))
      buffer.clear()
    buffer += rest  # the beginning of the next line
    return messages
