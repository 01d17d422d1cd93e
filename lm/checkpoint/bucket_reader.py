"""Reads a run that lies in a bucket, and writes its evaluations beside it.

A reader brings one step at a time down into a folder of this machine. It takes
no part in the lease of the trainer; evals.jsonl has a lease of its own.
"""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import threading

from lm import errors
from lm.checkpoint import bucket, bucket_lease, manifest, read_locks


class Reader:
  """Reads a run in a bucket, and writes evals.jsonl beside it.

  Attributes:
    folder: where to find what has been brought down.
    steps: lists the steps in the bucket, oldest first.
    read_manifest: reads the manifest of one of them.
  """

  def __init__(self, address: str | os.PathLike[str]):
    """Prepares a reader; no request is made yet."""
    self._bucket = bucket.Bucket(address)
    self.folder = bucket.scratch_folder(self._bucket.address, 'read')
    self.steps = self._bucket.steps
    self.read_manifest = self._bucket.read_manifest
    self._last_lease: bytes | None = None
    self._evals_lease = bucket_lease.BucketLease(
      self._bucket, 'evals.lease.json'
    )

  def download(self, step: int | None = None) -> Path:
    """Brings a step down, by default the newest, and returns the folder.

    Raises:
      errors.Missing: there are no steps.
      errors.Gone: there is no step of this number.
      errors.Damaged: this step, or every step, is damaged.
    """
    self.folder.mkdir(parents=True, exist_ok=True)
    if step is None:
      step = self._bucket.download_newest(self.folder)
    else:
      self._bucket.download_step(step, self.folder)
    if step is None:
      raise errors.Missing(
        f'{self._bucket.address}: no checkpoint there: check the address'
      )
    for old in manifest.candidates(self.folder):
      if old != step:
        self._delete(old)
    self._download_certificate()
    return self.folder

  def _download_certificate(self) -> None:
    """Brings down what says which evaluation items its data had, if any."""
    if certificate := self._bucket.read('contamination.json'):
      (self.folder / 'contamination.json').write_bytes(certificate)

  def _delete(self, step: int) -> None:
    trash = self.folder / f'tmp.delete.{step}.{os.getpid()}'
    with contextlib.suppress(FileNotFoundError):  # another reader was quicker
      if read_locks.remove(self.folder, step, trash):
        read_locks.delete(trash)

  @contextlib.contextmanager
  def lock_evals(self) -> Iterator[None]:
    """Brings evals.jsonl down and keeps other processes from writing it.

    Raises:
      errors.Locked: another process writes it.
    """
    lease = self._evals_lease
    lease.take()
    ending = threading.Event()

    def beat():
      while not ending.wait(bucket_lease.BEAT_SECONDS):
        try:
          with contextlib.suppress(errors.Storage):
            lease.beat()
        except errors.Locked:
          return  # `publish` says so

    thread = threading.Thread(target=beat, name='lease', daemon=True)
    thread.start()
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      known = self._bucket.read('evals.jsonl') or b''
      (self.folder / 'evals.jsonl').write_bytes(known)
      self._download_certificate()
      yield
    finally:
      ending.set()
      thread.join()
      lease.release()

  @contextlib.contextmanager
  def claim(self, key: object) -> Iterator[bool]:
    """Claims one evaluation; always yields True.

    In a folder, several processes share the evaluations between them. Here
    `lock_evals` has already kept all others away.
    """
    del key
    yield True

  @contextlib.contextmanager
  def read_lock(self, step: int) -> Iterator[None]:
    """Brings a step down, and deletes it when it is no longer needed."""
    self._bucket.download_step(step, self.folder)
    try:
      with read_locks.read_lock(self.folder, step):
        yield
    finally:
      self._delete(step)

  def publish(self, *files: Path) -> None:
    """Uploads files that were written below the folder, then evals.jsonl.

    Raises:
      errors.Locked: another process evaluates the run now.
    """
    for file in (*files, self.folder / 'evals.jsonl'):
      self._evals_lease.check()
      self._bucket.upload(file.relative_to(self.folder).as_posix(), file)

  def is_training(self) -> bool:
    """Tells whether a trainer has written its lease since the last call."""
    before, self._last_lease = self._last_lease, self._bucket.read('lease.json')
    return self._last_lease != before


def local_folder(
  workdir: str | os.PathLike[str], step: int | None = None
) -> Path:
  """Returns a folder of this machine that has a run's step.

  Args:
    workdir: a folder, which is returned as it is, or an address in a bucket.
    step: None for the newest one.

  Raises:
    errors.Failure: it is in a bucket, and cannot be brought down.
  """
  if bucket.is_address(workdir):
    return Reader(workdir).download(step)
  return Path(workdir)
