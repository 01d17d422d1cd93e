"""Pins: how a reader keeps a checkpoint from being deleted under it.

A pin is a file in `workdir/pins` that its owner holds under `flock`. Pinning
and deleting exclude each other through one more lock, held for an instant, so
a step is either pinned or already gone, never pinned and then gone.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import os
from pathlib import Path
import shutil
import socket
import time

from lm import errors
from lm.checkpoint import manifest
from lm.runtime import faults

_OLDEST_SECONDS = 3600.0  # a forgotten pin must not fill the disk for ever
_WAIT_SECONDS = 10.0


@contextlib.contextmanager
def pin(workdir: str | os.PathLike[str], step: int) -> Iterator[None]:
  """Keeps one step from being deleted while inside `with`, for an hour.

  Raises:
    errors.Gone: the step is not there (any more).
    errors.Storage: the work directory cannot be written to.
  """
  folder = Path(workdir) / 'pins'
  try:
    folder.mkdir(exist_ok=True)
    with _excluding(folder):
      manifest.read(workdir, step)
      name = f'{step:08d}.{os.getpid()}.{time.monotonic_ns()}'
      file = (folder / name).open('x')
      file.write(socket.gethostname())
      file.flush()
      with contextlib.suppress(OSError):  # without locks, age decides
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except FileNotFoundError:
    raise errors.Missing(
      f'{workdir}: no such work directory: check the path'
    ) from None
  except OSError as error:
    raise errors.Storage(
      f'{folder}: cannot pin step {step}: {error.strerror}: make it writable'
    ) from error
  try:
    yield
  finally:
    file.close()
    (folder / name).unlink(missing_ok=True)


def pinned(workdir: str | os.PathLike[str]) -> set[int]:
  """Returns the steps that a living reader has pinned within the hour."""
  folder = Path(workdir) / 'pins'
  found = set()
  for path in folder.glob('[0-9]*.*.*'):
    with contextlib.suppress(OSError, ValueError):
      if _held(path):
        found.add(int(path.name.split('.')[0]))
      else:
        path.unlink(missing_ok=True)
  return found


def remove(workdir: str | os.PathLike[str], step: int, to: Path) -> bool:
  """Moves a step away from readers, unless it is pinned.

  Args:
    workdir: of a run.
    step: the one to move.
    to: where, in the same file system; must not exist.

  Returns:
    False if the step is pinned, and still there.

  Raises:
    errors.Storage: a reader has held the lock for ten seconds.
  """
  folder = Path(workdir) / 'pins'
  folder.mkdir(exist_ok=True)
  with _excluding(folder):
    if step in pinned(workdir):
      return False
    os.rename(manifest.directory(workdir, step), to)
  return True


def delete(path: Path, step: int | None = None) -> None:
  """Deletes what lies under a name that is no step's (any more).

  Args:
    path: a file, a link or a directory.
    step: that it was, for fault injection.
  """
  if path.is_symlink() or path.is_file():
    path.unlink()
    return
  if step is not None:
    for file in sorted(path.rglob('*')):
      if file.is_file():
        time.sleep(faults.seconds('slow_delete'))
        file.unlink()
        faults.strike('die_in_delete', step)
  for _ in range(50):
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
      return
    time.sleep(0.1)  # a failed write may still have calls in flight
  manifest.warn(f'{path}: cannot be removed; do so by hand')


def _held(path: Path) -> bool:
  if time.time() - path.stat().st_mtime > _OLDEST_SECONDS:
    return False
  with path.open() as file:
    if file.read() != socket.gethostname():
      return True  # its lock may not reach us: age decides
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
      return True
  return False


@contextlib.contextmanager
def _excluding(folder: Path) -> Iterator[None]:
  deadline = time.monotonic() + _WAIT_SECONDS
  with (folder / '.lock').open('a') as file:
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        if time.monotonic() > deadline:
          raise errors.Storage(
            f'{folder / ".lock"}: held for {_WAIT_SECONDS:.0f} s by another'
            ' process: stop it'
          ) from None
        time.sleep(0.01)
      except OSError:
        break  # no locks on this file system
    yield
