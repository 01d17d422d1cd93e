"""One writer at a time for a work directory in a bucket.

A bucket has no locks and no clock that all machines share. The lease is an
object that its holder writes anew every few seconds with a higher count. A
holder counts as gone when its object has not changed for two and a half beats,
or when this host knows that its process is dead. An object that cannot be read
may have a living holder too, and is watched as long. Of two processes that take
the lease at the same time, the one that wrote last has it: each reads the
object again after a moment, and the other sees that it has lost.

Each holder has a random id, which no other holder ever had. A holder that finds
another id, or an object that it cannot read, writes nothing more: not even its
own end.
"""

import contextlib
import hashlib
import json
import os
import socket
import time
from typing import Any
import uuid

from lm import errors
from lm.checkpoint import bucket as bucket_lib

BEAT_SECONDS = 10.0
_SETTLE_SECONDS = 1.0  # between writing a lease and believing it


class BucketLease:
  """A lease that is kept as one object in a bucket."""

  def __init__(
    self,
    bucket: bucket_lib.Bucket,
    name: str,
    beat_seconds: float = BEAT_SECONDS,
  ):
    """Prepares a lease; nothing is read or written yet.

    Args:
      bucket: the work directory.
      name: of the object.
      beat_seconds: how often the holder promises to call `beat`; more than the
        default counts as the default, since nobody waits longer for it.
    """
    self._bucket, self._name = bucket, name
    self._beat_seconds = min(beat_seconds, BEAT_SECONDS)
    self._id = uuid.uuid4().hex
    self._count = 0

  def take(self) -> None:
    """Takes the lease, if need be after watching the holder for a while.

    Raises:
      errors.Locked: another process holds it.
    """
    raw = self._raw()
    old = _parse(raw)
    # What cannot be read is no reason to believe that nobody is there.
    if raw and (old is None or (old['held'] and not _is_dead(old))):
      beat = old['beat_seconds'] if old else self._beat_seconds
      deadline = time.monotonic() + 2.5 * beat
      while time.monotonic() < deadline:
        # Short steps show a living holder at its next beat, not at the end.
        time.sleep(min(1.0, beat / 4))
        now = self._raw()
        if now == raw:
          continue
        holder = _parse(now)
        if not now or (holder and not holder['held']):
          break
        raise self._refusal(holder)
    self._write(held=True)
    time.sleep(min(_SETTLE_SECONDS, self._beat_seconds))
    self.check()

  def beat(self) -> None:
    """Gives a heartbeat.

    Raises:
      errors.Locked: another process has taken the lease; nothing is written.
    """
    self.check()
    self._write(held=True)

  def release(self) -> None:
    """Gives the lease back, if this process still has it."""
    with contextlib.suppress(errors.Failure):
      self.check()
      self._write(held=False)

  def _write(self, *, held: bool) -> None:
    self._count += 1
    content = {
      'id': self._id,
      'count': self._count,
      'held': held,
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'beat_seconds': self._beat_seconds,
    }
    content['sha256'] = _checksum(content)
    self._bucket.write(self._name, json.dumps(content).encode())

  def check(self) -> None:
    """Makes sure that this process still holds the lease.

    Raises:
      errors.Locked: another process has taken it.
    """
    now = _parse(self._raw())
    if now is None:
      raise errors.Locked(
        f'{self._bucket.address}/{self._name}: is gone or cannot be read: this '
        'process writes nothing more; restart it'
      )
    if now['id'] != self._id:
      raise self._refusal(now)

  def _refusal(self, now: dict[str, Any] | None) -> errors.Locked:
    who = 'a process whose lease cannot be read'
    if now:
      who = f'pid {now["pid"]} on {now["host"]}'
    return errors.Locked(
      f'{self._bucket.address}/{self._name}: held by {who}: stop it or use '
      'another workdir'
    )

  def _raw(self) -> bytes:
    return self._bucket.read(self._name) or b''


def _parse(raw: bytes) -> dict[str, Any] | None:
  """Reads a lease; None if there is none or it cannot be read."""
  try:
    content = json.loads(raw)
    # One of an older version has none. A bit that flips in the name of this
    # field has left the others as they were.
    checksum = content.pop('sha256', None)
    lease = {
      'id': str(content['id']),
      'count': int(content['count']),
      'held': bool(content['held']),
      'host': str(content['host']),
      'pid': int(content['pid']),
      'beat_seconds': min(float(content['beat_seconds']), BEAT_SECONDS),
    }
  except (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
  ):
    return None
  is_sane = checksum in (None, _checksum(content)) and lease['beat_seconds'] > 0
  return lease if is_sane else None


def _checksum(content: dict[str, Any]) -> str:
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_dead(holder: dict[str, Any]) -> bool:
  """Tells whether the holder ran on this host and has ended."""
  if holder['host'] != socket.gethostname():
    return False
  try:
    os.kill(holder['pid'], 0)  # sends nothing; fails if there is no process
  except ProcessLookupError:
    return True
  except OSError:
    return False
  # Ours is a pid that a dead holder had before: a container that was started
  # again has the name and the pids of the one before it.
  return holder['pid'] == os.getpid()
