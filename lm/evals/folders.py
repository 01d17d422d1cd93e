"""Where a run lies that is evaluated, and who evaluates which part of it."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
from functools import partial
import hashlib
from pathlib import Path
from typing import Any, Protocol

from lm import checkpoint, errors
from lm.checkpoint import bucket, bucket_reader, manifest, run_folder
from lm.evals import records


class RunFolder(Protocol):
  """A run's checkpoints, on this machine or in a bucket.

  Attributes:
    folder: where evals.jsonl and items/ are written on this machine.
    steps: lists the steps of the checkpoints, in ascending order.
    read_manifest: reads the manifest of a step.
    read_lock: keeps a step from being deleted, and has its files in `folder`,
      while the context is open.
  """

  folder: Path

  def steps(self) -> list[int]: ...

  def read_manifest(self, step: int) -> Mapping[str, Any]: ...

  def read_lock(self, step: int) -> contextlib.AbstractContextManager[None]: ...

  def is_training(self) -> bool:
    """Tells whether a trainer is at work on the run."""
    ...

  def publish(self, *files: Path) -> None:
    """Makes files, and evals.jsonl, visible where the run lies."""
    ...

  def lock_evals(self) -> contextlib.AbstractContextManager[None]:
    """Opens the folder for writing."""
    ...

  def claim(
    self, key: records.EvaluationKey, /
  ) -> contextlib.AbstractContextManager[bool]:
    """Yields whether the evaluation is left to this process."""
    ...


class LocalFolder:
  """A work directory of this machine, which several processes may evaluate."""

  def __init__(self, folder: Path):
    """Names the folder; nothing is read yet."""
    self.folder = folder
    self.steps = partial(checkpoint.steps, folder)
    self.read_manifest = partial(manifest.read, folder)
    self.read_lock = partial(checkpoint.read_lock, folder)

  def is_training(self) -> bool:
    """Tells whether a trainer is at work on the run."""
    return checkpoint.holder(self.folder) is not None

  def publish(self, *files: Path) -> None:
    """Does nothing: the files lie where they belong."""

  @contextlib.contextmanager
  def lock_evals(self) -> Iterator[None]:
    """Opens the folder; others may be at work here too, see `claim`.

    Raises:
      errors.Missing: there is no such folder.
      errors.Remote: it is an address of a bucket.
    """
    manifest.root(self.folder)  # refuses an address
    if not self.folder.is_dir():
      raise errors.Missing(f'{self.folder}: no such folder: check --workdir')
    run_folder.check(self.folder)
    with (self.folder / 'evals.lock').open('a') as self._lock:
      yield

  @contextlib.contextmanager
  def claim(self, key: Sequence[str]) -> Iterator[bool]:
    """Keeps other processes from an evaluation; yields whether it is ours.

    The claim is a lock on one byte of a file, at a place that the key gives.
    The kernel takes the lock back when its process dies, however it dies.
    """
    digest = hashlib.sha256('/'.join(key).encode()).digest()
    byte = int.from_bytes(digest[:4])
    try:
      fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
      yield False
      return
    try:
      yield True
    finally:
      fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, byte)


def find(workdir: str | Path) -> RunFolder:
  """Gives the folder of a run, on this machine or in a bucket."""
  if bucket.is_address(workdir):
    return bucket_reader.Reader(workdir)
  return LocalFolder(Path(workdir))
