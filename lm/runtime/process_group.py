"""The processes of one run: they agree on things and watch each other.

`processes.start` makes a group. Each process has one TCP connection to process
0, which carries lines of JSON, and every tenth of a silence (20 s) an empty one
that says "I am alive". All processes then learn of a failure soon:

- a process that has died: at once, since its connection closes;
- a process that has raised an error: at once, since it says so;
- a process that stands still or is cut off: after one silence.

They end with one line that names the process. jax alone would notice after 100
seconds or never, and would end by an abort.

Agreement goes through process 0. `gather` brings a value of each process to it,
`share` sends its value to all, `stop` is a vote that nobody waits for.
"""

import collections
from collections.abc import Callable
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from lm import config, errors
from lm.runtime import connections, ending, signals

# How long a process may take to end by itself after another's failure.
GRACE_SECONDS = 2.0
# How long a process that fails waits to hear whether another failed before it.
_BLAME_SECONDS = 1.0


class Lost(errors.Failure):
  """Another process of this run has failed, or could not be met."""

  exit_code = 7


class ProcessGroup:
  """The processes of one run, as one of them sees them.

  Attributes:
    index: of this process; process 0 leads: it alone writes whatever is not an
      array.
    count: of all processes.
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
    """Begins to watch the other processes.

    Args:
      index: of this process.
      peers: connections by process: process 0 has all, the others have one.
      names: of all processes, for messages.
      silence_seconds: after which a process counts as lost.
      patience_seconds: how far behind the others a process may fall in `stop`.
    """
    self.index, self.count = index, len(names)
    self._names = names
    self._silence_seconds = silence_seconds
    self._patience_seconds = patience_seconds
    self._connections = connections.Connections(peers)
    # Guards and announces what the watching thread has received.
    self._changed = threading.Condition()
    # Process 0: the values that have come, by key and process.
    self._parts: dict[str, dict[int, Any]] = {}
    # Process 0: the votes that are not complete, and when each began.
    self._votes: dict[str, float] = {}
    # The values that process 0 has shared, by key.
    self._answers: dict[str, Any] = {}
    self._listeners: dict[str, Callable[[int, Any], None]] = {}  # by kind
    self._lost = ''  # the failure that the run ends with
    self._ending = threading.Lock()  # held by the thread that ends the process
    self._closed = threading.Event()
    self._uses = collections.Counter[str]()
    self._last_vote = ''
    self._tick = time.monotonic()  # when the watching thread last ran
    if peers:
      threading.Thread(
        target=self._watch, name='lm-processes', daemon=True
      ).start()

  @property
  def leads(self) -> bool:
    """Tells whether this is process 0."""
    return self.index == 0

  def name(self, process: int) -> str:
    """Returns the name of a process for a message."""
    return self._names[process]

  def gather(self, key: str, value: Any, seconds: float) -> list[Any] | None:
    """Sends a value to process 0, which waits for those of all processes.

    Args:
      key: names the occasion. The same key may be used again, by all processes
        in the same order.
      value: JSON, of this process.
      seconds: how long process 0 waits.

    Returns:
      The values in the order of the processes, on process 0; None on the other
      processes, which do not wait.

    Raises:
      Lost: a process has failed, or did not come in time.
    """
    key = self._numbered(key)
    if not self.leads:
      self._connections.send(0, {'part': key, 'value': value})
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
    """Returns process 0's value on all processes.

    Args:
      key: names the occasion, as in `gather`.
      value: JSON; that of process 0 counts.
      seconds: how long the others wait for process 0.

    Raises:
      Lost: a process has failed, or process 0 did not come in time.
    """
    key = self._numbered(f'word of {key}')
    if self.leads:
      self._send_answer(key, value)
      return value
    return self._answer(key, seconds)

  def stop(self, flag: bool) -> bool:
    """Votes before each step on whether to stop, at the same step for all.

    With several processes, the result is that of the vote at the call before
    this one. It has arrived by then, so that no step waits for the slowest
    process.

    Args:
      flag: whether this process wants to stop.

    Returns:
      Whether any process wanted to.

    Raises:
      Lost: a process has failed, or is too far behind.
    """
    if self.count == 1:
      return flag
    self.check()
    last, self._last_vote = self._last_vote, self._numbered('step')
    self._vote(self._last_vote, flag)
    return bool(last) and self._answer(last, self._patience_seconds)

  def meet(self, key: str, seconds: float) -> None:
    """Waits until all processes are here.

    Raises:
      Lost: a process has failed, or did not come in time.
    """
    if self.count > 1:
      self.gather(key, None, seconds)
      # The others wait longer than process 0, which alone can say who is late.
      self.share(f'{key} over', None, seconds + 5)

  def tell(self, kind: str, value: Any) -> None:
    """Sends JSON to process 0; process 0 sends it to all the others."""
    for peer in self._connections.sockets:
      self._connections.send(peer, {kind: value})

  def listen(self, kind: str, hear: Callable[[int, Any], None]) -> None:
    """Calls `hear(process, value)` in another thread for what is told."""
    self._listeners[kind] = hear

  def check(self) -> None:
    """Makes sure that this process may write: that it was not left behind.

    Raises:
      Lost: another process has failed, or this one stood still for so long that
        the others have given it up.
    """
    if self.count > 1:
      with self._changed:
        self._check_lost()
      if frozen := self._frozen():
        raise Lost(frozen)

  def close(self, seconds: float = 1800.0) -> None:
    """Ends the group in peace, once all processes have called this.

    Raises:
      Lost: a process has failed.
    """
    if self.count > 1:
      self._vote('end', False)
      self._answer('end', seconds)
      self._closed.set()

  def leave(self, error: BaseException) -> NoReturn:
    """Ends this process because of an error, after telling the others."""
    line = config.error_line(error)
    if line is None and self.count > 1:
      # jax raises errors of its own for a lost peer; the watch soon knows.
      with self._changed:
        self._changed.wait_for(lambda: self._lost, _BLAME_SECONDS)
        if self._lost:
          line = str(Lost(self._lost)), Lost.exit_code
    text, code = line or (f'{type(error).__name__}: {error}', 1)
    self._connections.send_last(
      {'failed': f'{self.name(self.index)} failed: {text}'}
    )
    self._ending.acquire()  # never released: one line is enough
    if line is None:
      traceback.print_exception(error)
      sys.stderr.flush()
    sys.stdout.flush()
    ending.exit_with(text, code)

  def __enter__(self) -> 'ProcessGroup':
    return self

  def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
    """Ends the group: in peace, or naming what failed.

    After a failure this does not return. Python would wait at exit for threads
    that hang, and jax for processes that are gone.
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

  # The methods from here to `_frozen` are what the watching thread does.

  def _watch(self) -> None:
    try:
      self._watch_peers()
    except Exception as error:
      # Otherwise nobody would watch any more, in silence.
      self.end(Lost(f'{self.name(self.index)} cannot watch: {error!r}'))

  def _watch_peers(self) -> None:
    sockets = self._connections.sockets
    heard = dict.fromkeys(sockets, time.monotonic())
    beat_seconds = self._silence_seconds / 10
    beaten = 0.0
    with selectors.DefaultSelector() as selector:
      for peer, connection in sockets.items():
        selector.register(connection, selectors.EVENT_READ, peer)
      while not self._closed.is_set():
        if frozen := self._frozen():
          self.end(Lost(frozen))
        self._tick = now = time.monotonic()
        if now - beaten > beat_seconds:
          beaten = now
          self._connections.send_beat()
        for event, _ in selector.select(beat_seconds / 4):
          peer = event.data
          heard[peer] = time.monotonic()
          messages = self._connections.receive(peer)
          for message in messages or ():
            self._handle(peer, message)
          if messages is None:
            selector.unregister(event.fileobj)
            if not self._closed.is_set():
              self._lose(
                f'{self.name(peer)} ended without a word: see its output'
              )
        for peer, last in heard.items():
          if time.monotonic() - last > self._silence_seconds:
            # The peer may have spoken while it was this process that slept.
            if frozen := self._frozen():
              self.end(Lost(frozen))
            self._lose(
              f'{self.name(peer)} has been silent for'
              f' {self._silence_seconds:g} s: stopped, hung or cut off'
            )
        self._answer_votes()

  def _handle(self, peer: int, message: dict[str, Any]) -> None:
    """Notes one message of a peer; an empty one is its heartbeat."""
    with self._changed:
      if 'part' in message:
        key = message['part']
        self._parts.setdefault(key, {})[peer] = message['value']
        if message.get('vote'):
          self._votes.setdefault(key, time.monotonic())
      elif 'answer' in message:
        self._note_answer(message['answer'], message['value'])
      self._changed.notify_all()
    if 'failed' in message:
      self._lose(message['failed'])
    for kind in self._listeners.keys() & message.keys():
      self._listeners[kind](peer, message[kind])

  def _answer_votes(self) -> None:
    """Answers the votes that are complete (process 0)."""
    with self._changed:
      done = [k for k in self._votes if len(self._parts[k]) == self.count]
      flags = {key: any(self._parts.pop(key).values()) for key in done}
      late = ''
      for key in done:
        del self._votes[key]
      for key, since in self._votes.items():
        # A process may wait at the end for as long as the others need.
        if key != 'end' and time.monotonic() - since > self._patience_seconds:
          late = self._late(self._parts[key], key, self._patience_seconds)
    for key, flag in flags.items():
      self._send_answer(key, flag)
      with self._changed:
        self._note_answer(key, flag)
        self._changed.notify_all()
    if late:
      self._lose(late)

  def _note_answer(self, key: str, value: Any) -> None:
    self._answers[key] = value
    if key == 'end':
      # Here, or the watch could take a peer's closed connection for a death.
      self._closed.set()

  def _lose(self, text: str) -> None:
    """Notes why the run fails, tells the others, and ends this process soon.

    The main thread may be anywhere, such as inside a compiler. If it comes by
    and raises `Lost`, it ends the process itself.
    """
    if self._lost or self._closed.is_set():
      return
    with self._changed:
      self._lost = text
      self._changed.notify_all()
    soon = threading.Timer(GRACE_SECONDS, self.end, (Lost(text),))
    soon.daemon = True
    soon.start()
    self._connections.send_last({'failed': text})

  def end(
    self, error: errors.Failure, last: Callable[[], None] = lambda: None
  ) -> NoReturn:
    """Ends this process with the line of an error, after a last deed."""
    self._closed.set()  # the others may end at any moment, which is no news
    last()
    if not self._ending.acquire(timeout=GRACE_SECONDS):
      os._exit(error.exit_code)  # the main thread hangs while it ends
    ending.exit_with(str(error), error.exit_code)

  def _frozen(self) -> str:
    """Returns a message if this process stood still for too long, else ''.

    The other processes count the silence from the last beat that they have
    heard, which may be older than our last tick: so less than a whole silence
    is too long.
    """
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
    """Numbers the uses of a key, so that a late message meets its own one."""
    with self._changed:
      self._uses[key] += 1
      return f'{key} {self._uses[key]}'

  def _check_lost(self) -> None:
    if self._lost:
      raise Lost(self._lost)

  def _vote(self, key: str, flag: bool) -> None:
    if not self.leads:
      self._connections.send(0, {'part': key, 'value': flag, 'vote': True})
      return
    with self._changed:
      self._parts.setdefault(key, {})[0] = flag
      self._votes.setdefault(key, time.monotonic())
    self._answer_votes()

  def _send_answer(self, key: str, value: Any) -> None:
    for peer in self._connections.sockets:
      self._connections.send(peer, {'answer': key, 'value': value})

  def _answer(self, key: str, seconds: float) -> Any:
    """Waits for the value that process 0 shares."""
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


def alone() -> ProcessGroup:
  """Makes the group of a process that trains by itself, and never waits."""
  return ProcessGroup(0, {}, [describe(0)])


def describe(index: int) -> str:
  """Returns the name of this process: its index, pid and host."""
  return f'process {index} (pid {os.getpid()} on {socket.gethostname()[:40]})'
