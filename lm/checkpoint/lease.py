"""One writer per work directory: a lock, a heartbeat and a fence.

`workdir/lease` is a short JSON file with a checksum. Its holder keeps it under
`flock`, so that the kernel frees it when the holder dies. It also touches the
file every few seconds, because other hosts may not see the lock: they judge by
its age. The words in the file only help. A file whose lock is held has a living
owner, even if a bit in it has flipped; and nobody waits longer for a heartbeat
because of a number in it.

Whoever takes over puts a new file in its place. The old holder's file is then
no longer the one at that path. This is how a process that was stopped, replaced
and continued learns that it must write nothing more (`Lease.check`).

Every holder has a token, which no other holder of the directory ever had. The
length of `lease.lock` counts the tokens too, and so do the names that writers
leave in `checkpoints`, in case that the lease is deleted or damaged.
"""

from collections.abc import Iterator
import contextlib
import enum
import fcntl
import hashlib
import json
import math
import os
from pathlib import Path
import re
import socket
import threading
import time
from typing import Any

from lm import errors
from lm.runtime import regular_files

NAME = 'lease'
BEAT_SECONDS, STALE_SECONDS = 10.0, 60.0  # what a lease may say at most
# The content is padded to one size and written in one call, so that a reader
# never sees half of it, nor the rest of a longer one.
_BYTES = 512
# A run is never taken over this often. The bound keeps a number in a file of
# somebody else from making a name or a file that is too long.
_MOST_TOKENS = 10**9
_WITH_TOKEN = re.compile(r'(?:tmp\.(?:save|delete)|damaged)\.\d+\.(\d{1,8})')


class _State(enum.Enum):
  """Names the states of a holder, as a lease file shows them."""

  FREE = 'there is no holder, or it is dead'
  HELD = 'the holder lives'
  SILENT = 'the holder is dead, or stands still, or its heartbeat is late'


class Lease:
  """Holds a work directory while inside `with`.

  Attributes:
    token: increases by one with every holder the directory ever had.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    beat_seconds: float = BEAT_SECONDS,
    stale_seconds: float = STALE_SECONDS,
  ):
    """Prepares a lease; nothing is touched before `with`.

    Both times are written into the lease: a holder is judged by its own, as far
    as they are not longer than the defaults. Longer ones count as the defaults.

    Args:
      workdir: an existing directory.
      beat_seconds: time between heartbeats.
      stale_seconds: age of a heartbeat that lets another process take over,
        where the kernel cannot say that the holder is dead. The other process
        first watches for two and a half beats, since the clock may have jumped
        while the holder lives.
    """
    self.token = 0
    self._path = Path(workdir) / NAME
    self._beat_seconds = min(beat_seconds, BEAT_SECONDS)
    self._stale_seconds = min(stale_seconds, STALE_SECONDS)
    self._fd = -1
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=self._beat, name='lease-heartbeat', daemon=True
    )

  def __enter__(self) -> 'Lease':
    """Takes the lease.

    Raises:
      errors.Locked: another process holds it, or is just taking it.
    """
    watched = self._watch()
    with _guard(self._path) as counter:
      self._take(watched, counter)
    # A forked child would share the lock and keep it after our death.
    os.register_at_fork(after_in_child=self._close)
    self._thread.start()
    return self

  def __exit__(self, *unused: object) -> None:
    """Gives the lease back; the file stays, with its token."""
    self._stop.set()
    self._thread.join()
    # Written to our own file: if we were replaced, nobody reads it any more.
    with contextlib.suppress(OSError):
      os.pwrite(self._fd, _encode({'token': self.token, 'pid': None}), 0)
    self._close()

  def check(self) -> None:
    """Makes sure that this process is still the holder.

    Raises:
      errors.Locked: another process has taken over, or the lease was removed.
    """
    # A successor has put its file at the path; ours is open but has no name.
    try:
      mine = os.path.samestat(os.lstat(self._path), os.fstat(self._fd))
    except FileNotFoundError:
      raise errors.Locked(
        f'{self._path}: the lease was removed while this process held it: it'
        ' writes nothing more; restart it'
      ) from None
    if not mine:
      now = _read(self._path) or {}
      raise errors.Locked(
        f'{self._path}: pid {now.get("pid")} on {now.get("host")} has taken'
        ' over; this process writes nothing more: stop it'
      )

  def _take(self, watched: tuple[int, float], counter: int) -> None:
    """Puts a new lease in place; runs under the guard.

    Args:
      watched: `_stamp` of the lease when this process last looked at it.
      counter: descriptor of the file whose length counts the tokens.
    """
    state, old = _look(self._path)
    if state is _State.HELD or (
      # Another process may have taken it over since this one looked.
      state is _State.SILENT and _stamp(self._path) != watched
    ):
      raise errors.Locked(self._refusal(old))
    self.token = 1 + max(
      old['token'] if old else 0,
      min(os.fstat(counter).st_size, _MOST_TOKENS),
      _left_token(self._path.parent),
    )
    # Counted before it is used, so that a kill in between only leaves it out.
    os.ftruncate(counter, self.token)
    os.fsync(counter)
    fresh = self._path.with_name(f'{NAME}.{os.getpid()}.{self.token}')
    self._fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
      content = {
        'token': self.token,
        'pid': os.getpid(),
        'host': socket.gethostname(),
        'started': time.time(),
        'beat_seconds': self._beat_seconds,
        'stale_seconds': self._stale_seconds,
      }
      os.pwrite(self._fd, _encode(content), 0)
      os.fsync(self._fd)
      self._touch()  # by the clock of this host, like every later heartbeat
      # Locked before the rename: nobody sees the new lease without its lock.
      # Where the file system has no locks, the heartbeat alone protects.
      with contextlib.suppress(OSError):
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
      os.rename(fresh, self._path)
    except BaseException:
      self._close()
      fresh.unlink(missing_ok=True)
      raise

  def _watch(self) -> tuple[int, float]:
    """Gives a holder that is silent time to prove that it lives.

    Returns:
      `_stamp` of the lease, which did not change all the while.
    """
    stamp = _stamp(self._path)
    state, old = _look(self._path)
    beat = old['beat_seconds'] if old else self._beat_seconds
    deadline = time.monotonic() + 2.5 * beat
    while state is _State.SILENT and time.monotonic() < deadline:
      time.sleep(min(0.2, beat / 4))
      state, old = _look(self._path)
      if state is not _State.FREE and _stamp(self._path) != stamp:
        raise errors.Locked(self._refusal(old))
    return stamp

  def _refusal(self, old: dict[str, Any] | None) -> str:
    beat = max(0.0, _age(self._path))
    if old is None:
      return (
        f'{self._path.parent}: locked by a process whose lease cannot be read,'
        f' heartbeat {beat:.0f} s ago: stop it or use another workdir'
      )
    since = max(0.0, time.time() - old['started'])
    return (
      f'{self._path.parent}: locked by pid {old["pid"]} on {old["host"]} since'
      f' {since:.0f} s, heartbeat {beat:.0f} s ago: stop it or use another'
      ' workdir'
    )

  def _beat(self) -> None:
    while not self._stop.wait(self._beat_seconds):
      self._touch()

  def _touch(self) -> None:
    """Gives one heartbeat."""
    now = time.time()
    # On our own file, never on the path: it may be somebody else's by now.
    with contextlib.suppress(OSError):
      os.utime(self._fd, (now, now))

  def _close(self) -> None:
    fd, self._fd = self._fd, -1
    if fd >= 0:
      os.close(fd)


def holder(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Describes who is training into a work directory; None for nobody.

  Returns:
    `pid`, `host`, `token`, `started` and `heartbeat` (seconds since the epoch)
    and `age_seconds` of the heartbeat, never negative.
  """
  path = Path(workdir) / NAME
  state, lease = _look(path)
  if state is not _State.HELD:
    return None
  lease = lease or {'pid': None, 'host': None, 'token': 0, 'started': 0.0}
  age = max(0.0, _age(path))
  return {**lease, 'heartbeat': _stamp(path)[1], 'age_seconds': age}


def token(workdir: str | os.PathLike[str]) -> int:
  """Returns the token of a work directory's last lease, 0 without any."""
  lease = _read(Path(workdir) / NAME)
  return lease['token'] if lease else 0


def _look(path: Path) -> tuple[_State, dict[str, Any] | None]:
  """Judges a lease; returns its content too, None if it cannot be read."""
  is_locked = _is_locked(path)
  lease = _read(path)
  if not os.path.lexists(path):
    return _State.FREE, None
  if lease is None or lease['pid'] is None:
    # A lock says more than any words: they may be damaged, or of a file that
    # was brought back from a copy.
    if is_locked:
      return _State.HELD, lease
    return _State.FREE if lease else _State.SILENT, lease
  if is_locked is False and lease['host'] == socket.gethostname():
    return _State.FREE, lease  # the kernel knows that the holder is gone
  # A heartbeat from the far future says as little as one from the far past.
  is_young = abs(_age(path)) < lease['stale_seconds']
  return _State.HELD if is_young else _State.SILENT, lease


def _is_locked(path: Path) -> bool | None:
  """Tells whether a process holds the lock; None if that cannot be known."""
  try:
    with regular_files.open_read(path) as file:
      # A shared lock: two processes that only look do not take each other for
      # a holder.
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    return None  # no file, or no locks on this file system
  return False


def _read(path: Path) -> dict[str, Any] | None:
  """Reads a lease; None if there is none or it is not readable."""
  try:
    with regular_files.open_read(path) as file:
      content = json.loads(file.read(_BYTES))
    # One of an older version has none. A bit that flips in the name of this
    # field has left the others as they were.
    checksum = content.pop('sha256', None)
    lease = {
      'token': int(content['token']),
      'pid': content['pid'] and int(content['pid']),
      'host': str(content.get('host')),
      'started': float(content.get('started', 0)),
      'beat_seconds': min(
        float(content.get('beat_seconds', BEAT_SECONDS)), BEAT_SECONDS
      ),
      'stale_seconds': min(
        float(content.get('stale_seconds', STALE_SECONDS)), STALE_SECONDS
      ),
    }
    is_sane = (
      checksum in (None, _checksum(content))
      and 0 < lease['token'] < _MOST_TOKENS
      and math.isfinite(lease['started'])
      and lease['beat_seconds'] > 0
      and lease['stale_seconds'] > 0
    )
  except (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
  ):
    return None
  return lease if is_sane else None


def _encode(content: dict[str, Any]) -> bytes:
  content = {**content, 'sha256': _checksum(content)}
  return json.dumps(content).encode().ljust(_BYTES - 1) + b'\n'


def _checksum(content: dict[str, Any]) -> str:
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _left_token(workdir: Path) -> int:
  """Returns the highest token in the names that writers have left, or 0."""
  try:
    names = os.listdir(workdir / 'checkpoints')
  except OSError:
    return 0
  return max(
    (int(m[1]) for m in map(_WITH_TOKEN.fullmatch, names) if m), default=0
  )


def _stamp(path: Path) -> tuple[int, float]:
  """Returns what a heartbeat or a takeover changes: inode and time."""
  try:
    stat = os.lstat(path)
  except FileNotFoundError:
    return 0, 0.0
  return stat.st_ino, stat.st_mtime


def _age(path: Path) -> float:
  return time.time() - _stamp(path)[1]


@contextlib.contextmanager
def _guard(path: Path) -> Iterator[int]:
  """Lets one process at a time decide who holds the lease.

  Yields:
    The descriptor of the file whose length counts the tokens.
  """
  # Neither a link nor a pipe: the one would be followed, the other waits.
  flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
  fd = os.open(path.with_name(f'{NAME}.lock'), flags, 0o644)
  try:
    for attempt in range(10):
      try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        if attempt == 9:
          raise errors.Locked(
            f'{path.parent}: another process is just taking the lease:'
            ' try again or use another workdir'
          ) from None
        time.sleep(0.1)
      except OSError:
        break  # this file system has no locks
    yield fd
  finally:
    os.close(fd)
