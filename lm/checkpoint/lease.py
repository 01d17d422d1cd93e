"""One writer per work directory: a lock, a heartbeat and a fence.

`workdir/lease` is a short JSON file. Its holder keeps it under `flock`, so that
the kernel frees it when the holder dies. It also touches the file every few
seconds, because other hosts may not see the lock: they judge by its age.

Whoever takes over puts a new file in its place. The old holder's file is then
no longer the one at that path. This is how a process that was stopped, replaced
and continued learns that it must write nothing more (`Lease.check`).

Nothing here imports JAX, so that a second trainer is refused before it starts.
"""

import contextlib
import fcntl
import json
import os
from pathlib import Path
import socket
import threading
import time
from typing import Any

from lm import errors

NAME = 'lease'
# The content is padded to one size and written in one call, so that a reader
# never sees half of it, nor the rest of a longer one.
_BYTES = 512


class Lease:
  """Holds a work directory while inside `with`.

  Attributes:
    token: increases by one with every holder the directory ever had.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    beat_seconds: float = 10.0,
    stale_seconds: float = 60.0,
  ):
    """Prepares a lease; nothing is touched before `with`.

    Both times are written into the lease: a holder is judged by its own.

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
    self._beat_seconds = beat_seconds
    self._stale_seconds = stale_seconds
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
    self._watch_stale()
    with _guard(self._path):
      self._take()
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
      mine = os.path.samestat(os.stat(self._path), os.fstat(self._fd))
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

  def _take(self) -> None:
    """Puts a new lease in place; runs under the guard."""
    old = _read(self._path)
    if old and _is_alive(self._path, old):
      raise errors.Locked(self._refusal(old))
    self.token = (old['token'] if old else 0) + 1
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
      # Locked before the rename: nobody sees the new lease without its lock.
      # Where the file system has no locks, the heartbeat alone protects.
      with contextlib.suppress(OSError):
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
      os.rename(fresh, self._path)
    except BaseException:
      self._close()
      fresh.unlink(missing_ok=True)
      raise

  def _watch_stale(self) -> None:
    """Gives a holder that looks stale time to prove that it is not."""
    old = _read(self._path)
    if not old or not old['pid'] or _is_alive(self._path, old):
      return
    seen = _mtime(self._path)
    deadline = time.monotonic() + 2.5 * old['beat_seconds']
    while time.monotonic() < deadline and not _is_dead(self._path, old):
      time.sleep(min(0.2, old['beat_seconds'] / 4))
      if _mtime(self._path) != seen:
        raise errors.Locked(self._refusal(old))

  def _refusal(self, old: dict[str, Any]) -> str:
    since = max(0.0, time.time() - old['started'])
    beat = max(0.0, _age(self._path))
    return (
      f'{self._path.parent}: locked by pid {old["pid"]} on {old["host"]} since'
      f' {since:.0f} s, heartbeat {beat:.0f} s ago: stop it or use another'
      ' workdir'
    )

  def _beat(self) -> None:
    while not self._stop.wait(self._beat_seconds):
      # On our own file, never on the path: it may be somebody else's by now.
      with contextlib.suppress(OSError):
        os.utime(self._fd)

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
  lease = _read(path)
  if not lease or not _is_alive(path, lease):
    return None
  age = max(0.0, _age(path))
  return {**lease, 'heartbeat': _mtime(path), 'age_seconds': age}


def token(workdir: str | os.PathLike[str]) -> int:
  """Returns the token of a work directory's last lease, 0 without any."""
  lease = _read(Path(workdir) / NAME)
  return lease['token'] if lease else 0


def _is_alive(path: Path, lease: dict[str, Any]) -> bool:
  if not lease['pid'] or _is_dead(path, lease):
    return False
  # A heartbeat from the far future says as little as one from the far past.
  return abs(_age(path)) < lease['stale_seconds']


def _is_dead(path: Path, lease: dict[str, Any]) -> bool:
  """Tells whether the kernel knows that the holder, on this host, is gone."""
  if lease.get('host') != socket.gethostname():
    return False
  try:
    with path.open('rb') as file:
      # A shared lock: two processes that only look do not take each other for
      # a holder.
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    return False  # no locks on this file system: judge by the heartbeat
  return True


def _read(path: Path) -> dict[str, Any] | None:
  """Reads a lease; None if there is none or it is not readable."""
  try:
    content = json.loads(path.read_bytes()[:_BYTES])
    return {
      'token': int(content['token']),
      'pid': content['pid'] and int(content['pid']),
      'host': str(content.get('host')),
      'started': float(content.get('started', 0)),
      'beat_seconds': float(content.get('beat_seconds', 10)),
      'stale_seconds': float(content.get('stale_seconds', 60)),
    }
  except (OSError, ValueError, LookupError, TypeError, AttributeError):
    return None


def _encode(content: dict[str, Any]) -> bytes:
  return json.dumps(content).encode().ljust(_BYTES - 1) + b'\n'


def _mtime(path: Path) -> float:
  try:
    return path.stat().st_mtime
  except FileNotFoundError:
    return 0.0


def _age(path: Path) -> float:
  return time.time() - _mtime(path)


@contextlib.contextmanager
def _guard(path: Path):
  """Lets one process at a time decide who holds the lease."""
  with path.with_name(f'{NAME}.lock').open('a') as file:
    for attempt in range(10):
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    yield
