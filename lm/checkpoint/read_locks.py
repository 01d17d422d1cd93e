"""Read locks: how a reader keeps a checkpoint from being deleted under it.

A read lock is a file in `workdir/read_locks` that the reader holds under
`flock`. Locking a step and deleting a step exclude each other by one more lock,
which is held for an instant. So a step is either locked or already gone; it is
never locked and gone afterwards.
"""

from collections.abc import Callable, Iterator
import contextlib
import fcntl
import os
from pathlib import Path
import shutil
import socket
import time

from lm import errors
from lm.checkpoint import manifest
from lm.runtime import faults, regular_files

_FOLDER = 'read_locks'
_OLDEST_SECONDS = 3600.0  # a forgotten lock must not fill the disk for ever
_WAIT_SECONDS = 10.0
_NAME_BYTES = 1024  # more than the name of a host has
_BEGAN = time.time(), time.monotonic()  # of this process


@contextlib.contextmanager
def read_lock(workdir: str | os.PathLike[str], step: int) -> Iterator[None]:
  """Keeps one step from being deleted while inside `with`, for an hour.

  Raises:
    errors.Gone: there is no such step (any more).
    errors.Missing: there is no such work directory.
    errors.Storage: the work directory cannot be written to.
  """
  folder = Path(workdir) / _FOLDER
  try:
    folder.mkdir(exist_ok=True)
    with _excluding(folder):
      # Under the lock: the step is there now, and no deletion can begin before
      # our file is there too.
      manifest.read(workdir, step)
      name = f'{step:08d}.{os.getpid()}.{time.monotonic_ns()}'
      file = (folder / name).open('x')
      file.write(socket.gethostname())
      file.flush()
      with contextlib.suppress(OSError):  # without `flock`, its age decides
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except FileNotFoundError:
    raise errors.Missing(
      f'{workdir}: no such work directory: check the path'
    ) from None
  except OSError as error:
    raise errors.Storage(
      f'{folder}: cannot lock step {step}: {error.strerror}: make it writable'
    ) from error
  try:
    yield
  finally:
    file.close()
    (folder / name).unlink(missing_ok=True)


def locked_steps(workdir: str | os.PathLike[str]) -> set[int]:
  """Returns the steps that a living reader has locked within the hour."""
  folder = Path(workdir) / _FOLDER
  steps = set()
  for path in folder.glob('[0-9]*.*.*'):
    with contextlib.suppress(OSError, ValueError):
      if _is_held(path):
        steps.add(int(path.name.split('.')[0]))
      else:
        path.unlink(missing_ok=True)
  return steps


def remove(
  workdir: str | os.PathLike[str],
  step: int,
  target: Path,
  check: Callable[[], None] = lambda: None,
) -> bool:
  """Moves a step out of the readers' sight, unless one has locked it.

  The step loses its name by one rename, before any of its files is deleted: no
  reader ever sees half a step.

  Args:
    workdir: of a run.
    step: the one to move.
    target: where to, in the same file system; must not exist.
    check: raises when this process may not write any more; called last, since
      the step's readers may have been waited for.

  Returns:
    False if the step is locked, and still there.

  Raises:
    errors.Storage: another process has held the lock for ten seconds.
  """
  folder = Path(workdir) / _FOLDER
  folder.mkdir(exist_ok=True)
  with _excluding(folder):
    if step in locked_steps(workdir):
      return False
    check()
    os.rename(manifest.directory(workdir, step), target)
  return True


def delete(path: Path, step: int | None = None) -> None:
  """Deletes a file, a link or a folder, if it is there.

  Args:
    path: must not have the name of a step any more.
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
    # A write that failed may still have calls in flight, which make files anew.
    time.sleep(0.1)
  manifest.warn(f'{path}: cannot be removed; do so by hand')


def _is_held(path: Path) -> bool:
  # By the clock as it is, and as it was when this process began: a jump of one
  # of them must not take the lock of a reader at work for a forgotten one.
  began, ticks = _BEGAN
  now = min(time.time(), began + time.monotonic() - ticks)
  if now - path.stat().st_mtime > _OLDEST_SECONDS:
    return False
  with regular_files.open_read(path) as file:
    if file.read(_NAME_BYTES) != socket.gethostname().encode():
      # Another host's `flock` may not reach this one; only age can tell.
      return True
    try:
      # Succeeds when the kernel has freed the lock because its holder died.
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
      return True
  return False


def _excluding(folder: Path) -> contextlib.AbstractContextManager[None]:
  """Lets one process at a time lock or remove a step."""
  lock = folder / '.lock'
  late = errors.Storage(
    f'{lock}: held for {_WAIT_SECONDS:.0f} s by another process: stop it'
  )
  return regular_files.exclusive(lock, _WAIT_SECONDS, late)
