"""A run that trains in a local folder, with a copy in a bucket.

    with mirror.Mirror('gs://bucket/run') as copy:
      ...  # train into copy.folder, and call copy.check() now and then

A run writes to a folder as always, and a thread uploads what is finished: the
lines of its metrics first, then the steps. A machine that starts with nothing
brings down the newest sound step and goes on from there.

One process writes. A run of several processes needs a folder that all of them
see, such as a mounted bucket.
"""

import contextlib
import os
import threading
import time
from typing import Any

from lm import errors
from lm.checkpoint import bucket, bucket_lease, manifest, read_locks, retention

# Files that training writes.
_FILES = (
  'config.json',
  'contamination.json',
  'metrics.jsonl',
  'record.json',
  'writers.json',
)
_LOOK_SECONDS = 1.0


class Mirror:
  """Keeps the copy of a run's folder up to date while inside `with`.

  Attributes:
    folder: where to train.
  """

  def __init__(
    self,
    address: str | os.PathLike[str],
    *,
    keep: int = 3,
    keep_every: int | None = None,
    deadline_seconds: float = 600.0,
    beat_seconds: float = 10.0,
  ):
    """Prepares a mirror; no request is made before `with`.

    Args:
      address: of the folder in its bucket.
      keep: how many of the newest steps stay in the bucket, at least two.
      keep_every: steps divisible by this stay for ever; None for none.
      deadline_seconds: how long storage may fail before the run fails; also
        the deadline of each request.
      beat_seconds: time between two writes of the lease.
    """
    self._bucket = bucket.Bucket(address, deadline_seconds)
    self.folder = bucket.scratch_folder(self._bucket.address, 'run')
    self._keep, self._keep_every = max(2, keep), keep_every
    self._seconds, self._beat_seconds = deadline_seconds, beat_seconds
    self._lease = bucket_lease.BucketLease(
      self._bucket, 'lease.json', beat_seconds
    )
    self._uploaded: dict[str, Any] = {}  # by name: its version in the bucket
    self._error: Exception | None = None
    self._ending = threading.Event()
    self._beating, self._copying = (
      threading.Thread(target=work, name='mirror', daemon=True)
      for work in (self._beat, self._copy)
    )

  def __enter__(self) -> 'Mirror':
    """Takes the lease and brings down what a run needs to go on.

    Raises:
      errors.Locked: another process trains there.
      errors.Storage: the bucket cannot be reached or written to.
      errors.Damaged: it has steps, and none is sound.
    """
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.Storage(
        f'{self.folder}: cannot be made: {error.strerror}: set'
        f' {bucket.VARIABLE}'
      ) from error
    # Before anything is downloaded or cleared away: a living writer may be at
    # work there.
    self._lease.take()
    try:
      self._clear_unfinished()
      self._download()
    except BaseException:
      self._lease.release()
      raise
    self._beating.start()
    self._copying.start()
    return self

  def _clear_unfinished(self) -> None:
    """Deletes what a writer that was killed left, here and in the bucket."""
    for half in self.folder.glob('tmp.*'):
      read_locks.delete(half)
    for step in set(self._bucket.candidates()) - set(self._bucket.steps()):
      self._bucket.remove(f'checkpoints/{step:08d}')

  def _download(self) -> None:
    newest_here = max(manifest.steps(self.folder), default=-1)
    step = self._bucket.download_newest(self.folder)
    if step is None:
      if newest_here < 0:
        # A run that was killed before its first save has been started, too.
        self._download_files('record.json')
      return
    # A run that drops updates just now may have to go back.
    healthy = self._healthy(step)
    if healthy is not None and healthy not in manifest.steps(self.folder):
      with contextlib.suppress(errors.Gone, errors.Damaged):
        self._bucket.download_step(healthy, self.folder)
    self._uploaded[f'{step}'] = manifest.digest(self.folder, step)
    if step < newest_here:
      return  # this machine is ahead, and so are its metrics
    self._download_files(*_FILES)

  def _download_files(self, *names: str) -> None:
    for name in names:
      with contextlib.suppress(FileNotFoundError):
        # By a rename, so that a kill never leaves half of the metrics.
        self._bucket.download(name, self.folder / f'tmp.{name}')
        os.replace(self.folder / f'tmp.{name}', self.folder / name)

  def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
    """Uploads the rest and gives the lease back.

    Raises:
      errors.Storage: that was not finished at the deadline; the folder still
        has everything.
    """
    self._ending.set()
    self._copying.join(self._seconds)
    try:
      if self._error is not None or self._copying.is_alive():
        raise self._error or errors.Storage(
          f'{self._bucket.address}: not all is there after {self._seconds:g} '
          f's: {self.folder} has it; start the same command again'
        )
    except errors.Failure as late:
      if error is None:
        raise
      error.add_note(f'and the last copy failed: {late}')
    else:
      # Given back only if it is still ours, and at once: the next trainer need
      # not wait for the heartbeat to grow old.
      self._lease.release()

  def check(self) -> None:
    """Raises the error that has ended the copying, if there is one.

    Raises:
      errors.Locked: another process has taken over.
      errors.Storage: the bucket has not answered for too long.
    """
    if self._error is not None:
      raise self._error

  def _beat(self) -> None:
    while not self._ending.wait(self._beat_seconds):
      # The copying thread decides when storage has failed for too long.
      with contextlib.suppress(errors.Storage):
        try:
          self._lease.beat()
        except errors.Locked as error:
          self._error = error
          return

  def _copy(self) -> None:
    """Uploads what is new, until the run has ended and nothing is new."""
    failing_since = None
    while self._error is None:
      # Read before uploading: what is written before the end is uploaded too.
      ending = self._ending.is_set()
      try:
        self._upload_news()
        failing_since = None
        if ending:
          return
      except errors.Locked as error:
        self._error = error
        return
      except (errors.Failure, OSError) as error:
        now = time.monotonic()
        failing_since = failing_since or now
        if now - failing_since > self._seconds:
          self._error = errors.Storage(
            f'{self._bucket.address}: cannot be written to for '
            f'{self._seconds:g} s: {error}'
          )
          return
        time.sleep(_LOOK_SECONDS)
      self._ending.wait(_LOOK_SECONDS)

  def _upload_news(self) -> None:
    # Steps are listed before the metrics are read: the lines that belong to a
    # step are on disk before the step is, so that a step in the bucket never
    # lacks them.
    steps = manifest.steps(self.folder)
    for name in _FILES:
      with contextlib.suppress(FileNotFoundError):
        stat = os.stat(self.folder / name)
        version = stat.st_mtime_ns, stat.st_size, stat.st_ino
        if self._uploaded.get(name) != version:
          self._lease.check()
          self._bucket.upload(name, self.folder / name)
          self._uploaded[name] = version
    uploaded = (int(name) for name in self._uploaded if name.isdigit())
    newest = max(uploaded, default=-1)
    for step in steps:
      try:
        digest = manifest.digest(self.folder, step)
        # Not older ones: the bucket has deleted them, or never needed them.
        if step < newest or self._uploaded.get(f'{step}') == digest:
          continue
        self._lease.check()
        self._bucket.upload_step(self.folder, step, self._lease.check)
      except (errors.Gone, errors.Damaged) as error:
        manifest.warn(f'{error}; it is not copied')
        continue
      self._uploaded[f'{step}'] = digest
      self._delete_old()

  def _healthy(self, newest: int) -> int | None:
    """Finds the step in the bucket that a run at `newest` would go back to."""
    for step in reversed(self._bucket.steps()):
      if step > newest:
        continue
      with contextlib.suppress(errors.Gone, errors.Damaged):
        if retention.is_healthy(self._bucket.read_manifest(step)['meta']):
          return step
    return None

  def _delete_old(self) -> None:
    steps = self._bucket.steps()
    old = steps[: -self._keep]
    healthy = self._healthy(steps[-1]) if old else None
    for step in old:
      kept = self._keep_every and step % self._keep_every == 0
      if not kept and step != healthy:
        self._lease.check()
        self._bucket.remove_step(step)
