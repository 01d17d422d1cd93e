"""Starts the processes of one run: they meet, and become a process group.

    LM_DISTRIBUTED=auto                      what jax detects: TPU, SLURM, GKE
    LM_DISTRIBUTED=HOST:PORT,PROCESS,COUNT   by hand; HOST is that of process 0
    ...,SECONDS                              another silence, see `start`

jax moves arrays between processes, and the group (`process_group`) carries
everything else, over connections of its own. Process 0 admits a peer by a token
that all processes have received through jax, so that nobody else can join.
"""

from collections.abc import Iterator
import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import threading

import jax
from jax.experimental import multihost_utils
import numpy as np

from lm import config
from lm.runtime import connections, process_group

VARIABLE = 'LM_DISTRIBUTED'
_LOOPBACK = ('localhost', '127.0.0.1', '::1')
_HELLO_BYTES = 1 << 10


def start(
  spec: str | None = None, *, wait_seconds: float = 300.0
) -> process_group.ProcessGroup:
  """Meets the other processes of this run; call it before jax is used.

  Args:
    spec: a value of LM_DISTRIBUTED; None reads that environment variable, and
      '' stands for a process alone. Its last part SECONDS changes the silence
      after which a process counts as lost, which is 20 s by default.
    wait_seconds: how long to wait for all processes.

  Raises:
    config.ConfigError: the variable is malformed, or nothing was detected.
    process_group.Lost: the others did not come in time. Where jax does not
      return, the process ends instead, with the same line.
  """
  spec = os.environ.get(VARIABLE, '') if spec is None else spec
  if not spec:
    return process_group.alone()
  address, index, count, silence_seconds = _parse(spec)
  _delay_aborts()
  where = address or 'what jax detects'
  late = (
    f'{VARIABLE}={spec}: processes did not meet at {where} in'
    f' {wait_seconds:g} s: start them all, and check address and firewall'
  )
  # jax may wait in C++ code that no exception can leave: so a timer decides.
  with _deadline(wait_seconds, late):
    # jax would handle SIGTERM itself, which is the task of lm.runtime.signals.
    jax.config.update('jax_enable_preemption_service', False)
    try:
      jax.distributed.initialize(
        address or None,
        count,
        index,
        # Our own deadlines are shorter, and end the process with one line.
        initialization_timeout=round(wait_seconds) + 60,
        heartbeat_timeout_seconds=100,
        shutdown_timeout_seconds=15,
      )
    except (ValueError, RuntimeError) as error:
      raise config.ConfigError(
        f'{VARIABLE}={spec}: {error}: give HOST:PORT,PROCESS,COUNT'
      ) from error
    if jax.process_count() == 1:
      return process_group.alone()
    host = address.rpartition(':')[0]
    peers, names = _connect(host, wait_seconds)
  return process_group.ProcessGroup(
    jax.process_index(), peers, names, silence_seconds=silence_seconds
  )


def _parse(spec: str) -> tuple[str, int | None, int | None, float]:
  """Reads LM_DISTRIBUTED: address ('': detect), process, count, silence."""
  first, *rest = spec.split(',')
  numbers = [] if first == 'auto' else rest[:2]
  seconds = rest[len(numbers) :]
  try:
    index, count = map(int, numbers) if first != 'auto' else (None, None)
    silence_seconds = float(seconds.pop(0)) if seconds else 20.0
    if first != 'auto':
      host, _, port = first.rpartition(':')
      assert host and 0 < int(port) < 1 << 16
      assert index is not None and count is not None and 0 <= index < count
    assert not seconds and 1 <= silence_seconds <= 3600
  except (ValueError, AssertionError):
    raise config.ConfigError(
      f'{VARIABLE}={spec}: want auto or HOST:PORT,PROCESS,COUNT, and perhaps'
      ' ,SECONDS of silence from 1 to 3600'
    ) from None
  return '' if first == 'auto' else first, index, count, silence_seconds


def _connect(
  host: str, seconds: float
) -> tuple[dict[int, socket.socket], list[str]]:
  """Connects all processes with process 0, whose address jax broadcasts.

  Returns:
    The connections by process, and the names of all processes.
  """
  index, count = jax.process_index(), jax.process_count()
  if index:
    place = json.loads(_broadcast(''))
    peer = _dial(place['hosts'], place['port'], seconds)
    hello = {
      'token': place['token'],
      'process': index,
      'name': process_group.describe(index),
    }
    peer.sendall(json.dumps(hello).encode() + b'\n')
    return {0: peer}, json.loads(_line(peer, connections.LARGEST_BYTES))
  # A run on one machine opens no port to the network.
  local = host in _LOOPBACK
  # Whoever finds the port must not be able to join, or to stop the run.
  token = secrets.token_hex(16)
  with socket.create_server(('127.0.0.1' if local else '', 0)) as server:
    hosts = [host] if host else _own_addresses()
    port = server.getsockname()[1]
    _broadcast(json.dumps({'hosts': hosts, 'port': port, 'token': token}))
    peers: dict[int, socket.socket] = {}
    names = [process_group.describe(0)] + [''] * (count - 1)
    while len(peers) < count - 1:
      peer, _ = server.accept()
      try:
        peer.settimeout(5)  # a stranger who says nothing must not block us
        hello = json.loads(_line(peer, _HELLO_BYTES))
        known = secrets.compare_digest(hello['token'], token)
        process = int(hello['process'])
        assert known and 0 < process < count and process not in peers
        names[process] = str(hello['name'])
      except (OSError, ValueError, LookupError, TypeError, AssertionError):
        peer.close()  # a stranger, without our token
        continue
      peers[process] = peer
  for peer in peers.values():
    peer.settimeout(None)
    peer.sendall(json.dumps(names).encode() + b'\n')
  return peers, names


def _broadcast(text: str) -> str:
  """Sends the text of process 0 to all processes, through jax."""
  # jax broadcasts arrays of one shape: the text is padded to a fixed size.
  sent = np.frombuffer(text.encode().ljust(_HELLO_BYTES), np.uint8)
  received = multihost_utils.broadcast_one_to_all(sent)
  return np.asarray(received, np.uint8).tobytes().decode().rstrip()


def _dial(hosts: list[str], port: int, seconds: float) -> socket.socket:
  for host in hosts:
    with contextlib.suppress(OSError):
      peer = socket.create_connection((host, port), min(10.0, seconds))
      peer.settimeout(None)
      return peer
  raise process_group.Lost(
    f'process 0 cannot be reached at {", ".join(hosts)}, port {port}: let the'
    ' hosts of a run connect to each other at any port'
  )


def _line(peer: socket.socket, most_bytes: int) -> bytes:
  line = b''
  while not line.endswith(b'\n'):
    byte = peer.recv(1)  # one by one: what follows the line is the group's
    if not byte or len(line) > most_bytes:
      raise ValueError('no line')
    line += byte
  return line


def _own_addresses() -> list[str]:
  """Lists addresses by which other hosts may reach this one, best first."""
  addresses = []
  with (
    contextlib.suppress(OSError),
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
  ):
    probe.connect(('192.0.2.1', 9))  # sends nothing: only picks the interface
    addresses.append(probe.getsockname()[0])
  return [*addresses, socket.gethostname()]


@contextlib.contextmanager
def _deadline(seconds: float, text: str) -> Iterator[None]:
  """Ends the process with one line when the body of `with` takes too long."""
  timer = threading.Timer(
    seconds,
    process_group.exit_with,
    (str(process_group.Lost(text)), process_group.Lost.exit_code),
  )
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _delay_aborts() -> None:
  """Gives the group six seconds to say why before jax's client aborts.

  jax ends a process by SIGABRT in the moment that process 0 dies, before any
  Python code can run. So the C function `sleep` becomes the signal's handler:
  it is called with the number of the signal, waits for that many seconds (6),
  and returns to `abort`, which then ends the process.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
  libc.signal.restype = ctypes.c_void_p
  libc.signal(int(signal.SIGABRT), ctypes.cast(libc.sleep, ctypes.c_void_p))
