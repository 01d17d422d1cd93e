"""One writer at a time for a work directory in a bucket.

A bucket has no locks and no clock that all machines share. The lease is an
object that its holder writes anew every few seconds with a higher count. A
holder counts as gone when its object has not changed for two and a half beats,
or when this host knows that its process is dead. Of two processes that take the
lease at the same time, the one that wrote last has it: each reads the object
again after a moment, and the other sees that it has lost.
"""

import json
import os
import socket
import time
from typing import Any
import uuid

from lm import errors
from lm.checkpoint import bucket as bucket_lib

_SETTLE_SECONDS = 1.0  # between writing a lease and believing it


class BucketLease:
  """A lease that is kept as one object in a bucket."""

  def __init__(self, bucket: bucket_lib.Bucket, name: str, beat_seconds: float):
    """Prepares a lease; nothing is read or written yet.

    Args:
      bucket: the work directory.
      name: of the object.
      beat_seconds: how often the holder promises to call `write`.
    """
    self._bucket, self._name = bucket, name
    self._beat_seconds = beat_seconds
    self._id = uuid.uuid4().hex
    self._count = 0

  def take(self) -> None:
    """Takes the lease, if need be after watching the holder for a while.

    Raises:
      errors.Locked: another process holds it.
    """
    old = self._read()
    if old and old['held'] and not _is_dead(old):
      deadline = time.monotonic() + 2.5 * old['beat_seconds']
      while time.monotonic() < deadline:
        # Short steps show a living holder at its next beat, not at the end.
        time.sleep(min(1.0, old['beat_seconds'] / 4))
        now = self._read()
        if now and not now['held']:
          break
        if now != old:
          raise self._refusal(now or old)
    self.write()
    time.sleep(min(_SETTLE_SECONDS, self._beat_seconds))
    self.check()

  def write(self, *, held: bool = True) -> None:
    """Writes the lease: a heartbeat, or with `held=False` its end."""
    self._count += 1
    content = {
      'id': self._id,
      'count': self._count,
      'held': held,
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'beat_seconds': self._beat_seconds,
    }
    self._bucket.write(self._name, json.dumps(content).encode())

  def check(self) -> None:
    """Makes sure that this process still holds the lease.

    Raises:
      errors.Locked: another process has taken it.
    """
    now = self._read()
    if now is None or now['id'] != self._id:
      raise self._refusal(now)

  def _refusal(self, now: dict[str, Any] | None) -> errors.Locked:
    who = f'pid {now["pid"]} on {now["host"]}' if now else 'nobody'
    return errors.Locked(
      f'{self._bucket.address}/{self._name}: held by {who}: stop it or use '
      'another workdir'
    )

  def _read(self) -> dict[str, Any] | None:
    try:
      content = json.loads(self._bucket.read(self._name) or b'')
      return {
        'id': str(content['id']),
        'count': int(content['count']),
        'held': bool(content['held']),
        'host': str(content['host']),
        'pid': int(content['pid']),
        # A strange number must not make the next trainer wait for days.
        'beat_seconds': min(float(content['beat_seconds']), 600.0),
      }
    except (ValueError, LookupError, TypeError):
      return None


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
