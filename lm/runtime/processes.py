"""Several processes as one run: they meet, agree and watch each other.

    LM_DISTRIBUTED=auto                      what jax detects: TPU, SLURM, GKE
    LM_DISTRIBUTED=HOST:PORT,PROCESS,COUNT   by hand; HOST is that of process 0
    ...,SECONDS                              another silence, see `start`

jax moves arrays between processes and everything else goes through here: one
TCP connection from each process to process 0, lines of JSON, each peer admitted
by a token that it has got through jax. Everybody says ten times a silence that
it lives, so a process that has died (its connection closes), stands still or is
cut off (silence) or has raised (it says why) is known at once or after one
silence to all others, which then end and name it. jax alone notices after 100 s
or never, and ends by an abort.
"""

import collections
from collections.abc import Iterator
import contextlib
import ctypes
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np

from lm import config, errors
from lm.runtime import signals

VARIABLE = 'LM_DISTRIBUTED'
_LOOPBACK = ('localhost', '127.0.0.1', '::1')
_HELLO_BYTES = 1 << 10
_LARGEST_BYTES = 1 << 28  # hashes of a million files
# How long a process that heard of another's failure may take to end by a line
# of its own, and how long one that fails waits to hear whether it is the first.
_GRACE_SECONDS = 2.0
_BLAME_SECONDS = 1.0


class Lost(errors.Failure):
  """Another process of this run has failed, or could not be met."""

  exit_code = 7


class Group:
  """The processes of one run, as one of them sees them.

  Attributes:
    index: of this process; process 0 leads: it alone writes what is not an
      array.
    count: of all.
  """

  def __init__(
    self,
    index: int,
    peers: dict[int, socket.socket],
    names: list[str],
    *,
    silence_seconds: float = 20.0,
    patience_seconds: float = 600.0,
  ):
    """Begins to watch.

    Args:
      index: of this process.
      peers: connections by process: process 0 has all, the others have one.
      names: of all processes, for messages.
      silence_seconds: after which a process counts as lost.
      patience_seconds: how far behind the others one may fall in `stop`.
    """
    self.index, self.count = index, len(names)
    self._names = names
    self._silence_seconds = silence_seconds
    self._patience_seconds = patience_seconds
    self._peers = peers
    self._sending = {peer: threading.Lock() for peer in peers}
    self._changed = threading.Condition()
    self._parts: dict[str, dict[int, Any]] = {}  # process 0: what came, by key
    self._votes: dict[str, float] = {}  # process 0: since when they are open
    self._answers: dict[str, Any] = {}
    self._lost = ''  # what the run fails of
    self._ending = threading.Lock()
    self._closed = threading.Event()
    self._uses = collections.Counter[str]()
    self._last = ''  # step that was voted on
    self._tick = time.monotonic()
    if peers:
      threading.Thread(
        target=self._watch, name='lm-processes', daemon=True
      ).start()

  @property
  def leads(self) -> bool:
    """Whether this is process 0."""
    return self.index == 0

  def name(self, process: int) -> str:
    """Says which process that is, for a message."""
    return self._names[process]

  def gather(self, key: str, value: Any, seconds: float) -> list[Any] | None:
    """Gives JSON to process 0, which waits for that of all, in order.

    Args:
      key: what for; where it comes again, all come in the same order.
      value: JSON of this process.
      seconds: that process 0 waits.

    Returns:
      The values of all on process 0, at once None elsewhere.

    Raises:
      Lost: a process has failed, or did not come in time.
    """
    key = self._numbered(key)
    if not self.leads:
      self._send(0, {'part': key, 'value': value})
      return None
    with self._changed:
      parts = self._parts.setdefault(key, {})
      parts[0] = value
      self._changed.wait_for(
        lambda: len(parts) == self.count or self._lost, seconds
      )
      self._check_lost()
      if len(parts) < self.count:
        raise Lost(self._late(parts, key, seconds))
      del self._parts[key]
    return [parts[process] for process in range(self.count)]

  def share(self, key: str, value: Any, seconds: float) -> Any:
    """Gives all processes JSON of process 0; other values are not looked at.

    Raises:
      Lost: a process has failed, or process 0 did not come in time.
    """
    key = self._numbered(f'word of {key}')
    if self.leads:
      for peer in self._peers:
        self._send(peer, {'answer': key, 'value': value})
      return value
    return self._answer(key, seconds)

  def stop(self, flag: bool) -> bool:
    """Whether to stop after this step: True for all processes at the same one.

    A call before each step. With several processes it says whether anyone had
    a flag at the call before this one, so that nobody waits for the slowest.

    Raises:
      Lost: a process has failed, or is too far behind.
    """
    if self.count == 1:
      return flag
    self.check()
    last, self._last = self._last, self._numbered('step')
    self._vote(self._last, flag)
    return bool(last) and self._answer(last, self._patience_seconds)

  def meet(self, key: str, seconds: float) -> None:
    """Waits until all processes are here.

    Raises:
      Lost: a process has failed, or did not come in time.
    """
    if self.count > 1:
      self.gather(key, None, seconds)
      self.share(f'{key} over', None, seconds + 5)  # process 0 can say who

  def check(self) -> None:
    """Makes sure that this process may write: that it was not left behind.

    Raises:
      Lost: another process has failed, or this one stood still for so long
        that the others have given it up.
    """
    if self.count > 1:
      with self._changed:
        self._check_lost()
      if frozen := self._frozen():
        raise Lost(frozen)

  def close(self, seconds: float = 1800.0) -> None:
    """Ends in peace, when all do.

    Raises:
      Lost: a process has failed.
    """
    if self.count > 1:
      self._vote('end', False)
      self._answer('end', seconds)
      self._closed.set()

  def leave(self, error: BaseException) -> NoReturn:
    """Ends this process because of an error, after telling the others."""
    told = config.told(error)
    if told is None and self.count > 1:
      # That a peer is gone reaches jax as an error of its own: look for whom.
      with self._changed:
        self._changed.wait_for(lambda: self._lost, _BLAME_SECONDS)
        if self._lost:
          told = str(Lost(self._lost)), Lost.exit_code
    text, code = told or (f'{type(error).__name__}: {error}', 1)
    self._tell(f'{self.name(self.index)} failed: {text}')
    self._ending.acquire()  # for ever: one line is enough
    if told is None:
      traceback.print_exception(error)
      sys.stderr.flush()
    sys.stdout.flush()
    _end(text, code)

  def __enter__(self) -> 'Group':
    return self

  def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
    """Ends with the others: in peace, or naming what failed.

    Does not return then: Python would wait at exit for threads that hang, and
    jax for processes that are gone.
    """
    if self.count == 1:
      return
    if error is None or isinstance(error, signals.Stopped):
      try:
        self.close()
        return
      except Lost as lost:
        error = lost
    self.leave(error)

  # What follows runs in the watching thread, but for what sends and waits.

  def _watch(self) -> None:
    try:
      self._watch_peers()
    except Exception as error:  # nobody would watch any more, in silence
      self._end_now(f'{self.name(self.index)} cannot watch: {error!r}')

  def _watch_peers(self) -> None:
    heard = dict.fromkeys(self._peers, time.monotonic())
    buffers = {peer: bytearray() for peer in self._peers}
    beat_seconds = self._silence_seconds / 10
    beaten = 0.0
    with selectors.DefaultSelector() as selector:
      for peer, connection in self._peers.items():
        selector.register(connection, selectors.EVENT_READ, peer)
      while not self._closed.is_set():
        if frozen := self._frozen():
          self._end_now(frozen)
        self._tick = now = time.monotonic()
        if now - beaten > beat_seconds:
          beaten = now
          self._beat()
        for event, _ in selector.select(beat_seconds / 4):
          peer = event.data
          heard[peer] = time.monotonic()
          if not self._read(peer, buffers[peer]):
            selector.unregister(event.fileobj)
            if not self._closed.is_set():
              self._lose(
                f'{self.name(peer)} ended without a word: see its output'
              )
        for peer, last in heard.items():
          if time.monotonic() - last > self._silence_seconds:
            if frozen := self._frozen():  # it is we who were not there
              self._end_now(frozen)
            self._lose(
              f'{self.name(peer)} has been silent for'
              f' {self._silence_seconds:g} s: stopped, hung or cut off'
            )
        self._judge_votes()

  def _read(self, peer: int, buffer: bytearray) -> bool:
    """Takes in what a peer sent; False when it has closed."""
    try:
      data = self._peers[peer].recv(1 << 16)
    except OSError:
      return False
    if not data or len(buffer) > _LARGEST_BYTES:
      return False
    *lines, rest = data.split(b'\n')
    for line in lines:
      message = json.loads(bytes(buffer) + line)
      buffer.clear()
      self._take(peer, message)
    buffer += rest
    return True

  def _take(self, peer: int, message: dict[str, Any]) -> None:
    with self._changed:
      if 'part' in message:
        key = message['part']
        self._parts.setdefault(key, {})[peer] = message['value']
        if message.get('vote'):
          self._votes.setdefault(key, time.monotonic())
      elif 'answer' in message:
        self._settle(message['answer'], message['value'])
      self._changed.notify_all()
    if 'failed' in message:
      self._lose(message['failed'])

  def _judge_votes(self) -> None:
    """Answers the votes that are complete (process 0)."""
    with self._changed:
      done = [k for k in self._votes if len(self._parts[k]) == self.count]
      flags = {key: any(self._parts.pop(key).values()) for key in done}
      late = ''
      for key in done:
        del self._votes[key]
      for key, since in self._votes.items():
        if key != 'end' and time.monotonic() - since > self._patience_seconds:
          late = self._late(self._parts[key], key, self._patience_seconds)
    for key, flag in flags.items():
      for peer in self._peers:
        self._send(peer, {'answer': key, 'value': flag})
      with self._changed:
        self._settle(key, flag)
        self._changed.notify_all()
    if late:
      self._lose(late)

  def _settle(self, key: str, value: Any) -> None:
    self._answers[key] = value
    if key == 'end':  # here, before the connection can be seen to close
      self._closed.set()

  def _beat(self) -> None:
    for peer, connection in self._peers.items():
      # One who does not read must not keep this from the others.
      if self._sending[peer].acquire(blocking=False):
        try:
          connection.send(b'{}\n', socket.MSG_DONTWAIT)
        except OSError:
          pass  # full, or closed: reading says which
        finally:
          self._sending[peer].release()

  def _lose(self, text: str) -> None:
    """Notes why the run fails, tells it on, and sees to it that this ends."""
    if self._lost or self._closed.is_set():
      return
    with self._changed:
      self._lost = text
      self._changed.notify_all()
    threading.Thread(target=self._end_soon, daemon=True).start()
    self._tell(text)

  def _end_soon(self) -> None:
    time.sleep(_GRACE_SECONDS)
    self._end_now(self._lost)

  def _end_now(self, text: str) -> NoReturn:
    if not self._ending.acquire(timeout=_GRACE_SECONDS):
      os._exit(Lost.exit_code)  # the main thread hangs in its last words
    _end(str(Lost(text)), Lost.exit_code)

  def _frozen(self) -> str:
    """Says so if this process stood still until others gave it up."""
    # They count from its last beat that they have heard.
    seconds = time.monotonic() - self._tick
    if self._closed.is_set() or seconds < 0.75 * self._silence_seconds:
      return ''
    return (
      f'{self.name(self.index)}, this one, stood still for {seconds:.0f} s and'
      ' the others have gone on or ended without it: start the run again'
    )

  def _late(self, parts: dict[int, Any], key: str, seconds: float) -> str:
    missing = [i for i in range(self.count) if i not in parts]
    return (
      f'{self.name(missing[0])} has not come to "{key}" in {seconds:g} s:'
      ' hung in its storage or data: look there'
    )

  def _numbered(self, key: str) -> str:
    with self._changed:
      self._uses[key] += 1
      return f'{key} {self._uses[key]}'

  def _check_lost(self) -> None:
    if self._lost:
      raise Lost(self._lost)

  def _vote(self, key: str, flag: bool) -> None:
    if not self.leads:
      self._send(0, {'part': key, 'value': flag, 'vote': True})
      return
    with self._changed:
      self._parts.setdefault(key, {})[0] = flag
      self._votes.setdefault(key, time.monotonic())
    self._judge_votes()

  def _answer(self, key: str, seconds: float) -> Any:
    with self._changed:
      self._changed.wait_for(
        lambda: key in self._answers or self._lost, seconds
      )
      if key in self._answers:
        return self._answers.pop(key)
      self._check_lost()
    raise Lost(
      f'{self.name(0)} has not answered "{key}" in {seconds:g} s: hung in its'
      ' storage or data: look there'
    )

  def _tell(self, text: str) -> None:
    """Sends everybody why the run fails, waiting for nobody who is stuck."""
    message = json.dumps({'failed': text}).encode() + b'\n'
    for peer, connection in self._peers.items():
      if self._sending[peer].acquire(timeout=0.5):
        with contextlib.suppress(OSError):
          connection.send(message, socket.MSG_DONTWAIT)
        self._sending[peer].release()

  def _send(self, peer: int, message: dict[str, Any]) -> None:
    # A peer that is gone is for the watch to find.
    with contextlib.suppress(OSError), self._sending[peer]:
      self._peers[peer].sendall(json.dumps(message).encode() + b'\n')


def alone() -> Group:
  """Makes the group of a process that trains by itself, and never waits."""
  return Group(0, {}, [_me(0)])


def start(spec: str | None = None, *, wait_seconds: float = 300.0) -> Group:
  """Meets the other processes of this run; call it before jax is used.

  Args:
    spec: as the environment variable LM_DISTRIBUTED, which None reads; ''
      is a process alone. A last part SECONDS changes the silence after which
      a process counts as lost, 20.
    wait_seconds: for all processes to come.

  Raises:
    config.ConfigError: the variable is malformed, or nothing was detected.
    Lost: the others did not come in time; the process may have ended instead,
      by the same line, where jax cannot be called back.
  """
  spec = os.environ.get(VARIABLE, '') if spec is None else spec
  if not spec:
    return alone()
  address, index, count, silence_seconds = _parse(spec)
  _delay_aborts()
  where = address or 'what jax detects'
  late = (
    f'{VARIABLE}={spec}: processes did not meet at {where} in'
    f' {wait_seconds:g} s: start them all, and check address and firewall'
  )
  with _deadline(wait_seconds, late):
    jax.config.update(
      'jax_enable_preemption_service', False
    )  # lm.runtime.signals's job
    try:
      jax.distributed.initialize(
        address or None,
        count,
        index,
        # Ours end first, with a line.
        initialization_timeout=round(wait_seconds) + 60,
        heartbeat_timeout_seconds=100,
        shutdown_timeout_seconds=15,
      )
    except (ValueError, RuntimeError) as error:
      raise config.ConfigError(
        f'{VARIABLE}={spec}: {error}: give HOST:PORT,PROCESS,COUNT'
      ) from error
    if jax.process_count() == 1:
      return alone()
    host = address.rpartition(':')[0]
    peers, names = _connect(host, wait_seconds)
  return Group(
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
  """Connects all processes with process 0, whose address jax tells them."""
  index, count = jax.process_index(), jax.process_count()
  if index:
    place = json.loads(_broadcast(''))
    peer = _dial(place['hosts'], place['port'], seconds)
    hello = {'token': place['token'], 'process': index, 'name': _me(index)}
    peer.sendall(json.dumps(hello).encode() + b'\n')
    return {0: peer}, json.loads(_line(peer, _LARGEST_BYTES))
  local = host in _LOOPBACK
  token = secrets.token_hex(16)
  with socket.create_server(('127.0.0.1' if local else '', 0)) as server:
    hosts = [host] if host else _own_addresses()
    port = server.getsockname()[1]
    _broadcast(json.dumps({'hosts': hosts, 'port': port, 'token': token}))
    peers: dict[int, socket.socket] = {}
    names = [_me(0)] + [''] * (count - 1)
    while len(peers) < count - 1:
      peer, _ = server.accept()
      try:
        peer.settimeout(5)
        hello = json.loads(_line(peer, _HELLO_BYTES))
        known = secrets.compare_digest(hello['token'], token)
        process = int(hello['process'])
        assert known and 0 < process < count and process not in peers
        names[process] = str(hello['name'])
      except (OSError, ValueError, LookupError, TypeError, AssertionError):
        peer.close()  # a stranger
        continue
      peers[process] = peer
  for peer in peers.values():
    peer.settimeout(None)
    peer.sendall(json.dumps(names).encode() + b'\n')
  return peers, names


def _broadcast(text: str) -> str:
  """Gives all processes the text of process 0, by way of jax."""
  sent = np.frombuffer(text.encode().ljust(_HELLO_BYTES), np.uint8)
  got = multihost_utils.broadcast_one_to_all(sent)
  return np.asarray(got, np.uint8).tobytes().decode().rstrip()


def _dial(hosts: list[str], port: int, seconds: float) -> socket.socket:
  for host in hosts:
    with contextlib.suppress(OSError):
      peer = socket.create_connection((host, port), min(10.0, seconds))
      peer.settimeout(None)
      return peer
  raise Lost(
    f'process 0 cannot be reached at {", ".join(hosts)}, port {port}: let the'
    ' hosts of a run connect to each other at any port'
  )


def _line(peer: socket.socket, most_bytes: int) -> bytes:
  line = b''
  while not line.endswith(b'\n'):
    byte = peer.recv(1)  # what follows the line is for the watch
    if not byte or len(line) > most_bytes:
      raise ValueError('no line')
    line += byte
  return line


def _own_addresses() -> list[str]:
  """Lists what other hosts may know this one by, the likeliest first."""
  found = []
  with (
    contextlib.suppress(OSError),
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
  ):
    probe.connect(('192.0.2.1', 9))  # sends nothing: only picks the interface
    found.append(probe.getsockname()[0])
  return [*found, socket.gethostname()]


def _me(index: int) -> str:
  return f'process {index} (pid {os.getpid()} on {socket.gethostname()[:40]})'


@contextlib.contextmanager
def _deadline(seconds: float, text: str) -> Iterator[None]:
  """Ends the process by a line when what is inside `with` takes too long."""
  timer = threading.Timer(seconds, _end, (str(Lost(text)), Lost.exit_code))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _delay_aborts() -> None:
  """Gives the watch six seconds to say why before jax's client aborts.

  jax ends a process by SIGABRT in the moment that process 0 dies, before any
  Python has run. `sleep` is a handler that may run anywhere, waits for the
  number of the signal in seconds, and returns to `abort`, which then ends it.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
  libc.signal.restype = ctypes.c_void_p
  libc.signal(int(signal.SIGABRT), ctypes.cast(libc.sleep, ctypes.c_void_p))


def _end(text: str, code: int) -> NoReturn:
  """Prints one line and is gone, whatever other threads are waiting for."""
  os.write(2, f'error: {text}\n'.encode())
  os._exit(code)
