"""A work directory in a bucket: the requests that can be made of it.

An object in a bucket appears or disappears as a whole, but a bucket has no
renames, no locks and no clocks. A step is therefore uploaded file by file with
its manifest last, and deleted with its manifest first: a step without a
manifest does not count. `bucket_lease` decides who may write, `mirror` copies a
run up while it trains, and `bucket_reader` brings steps down for a reader.

Every request has a deadline. Nowhere else is epath imported.
"""

from collections.abc import Callable
import concurrent.futures
import contextlib
import hashlib
import os
from pathlib import Path
import re
import shutil
import tempfile
import threading
from typing import Any, TypeVar

from lm import errors
from lm.checkpoint import manifest, read_locks
from lm.runtime import faults

T = TypeVar('T')
VARIABLE = 'LM_SCRATCH'  # where the local copies lie; default ~/.cache/lm
_PARALLEL = 8


def is_address(workdir: str | os.PathLike[str]) -> bool:
  """Tells a work directory in a bucket from a folder."""
  # One slash is enough: `Path` makes gs:/bucket of gs://bucket.
  return bool(re.match('gs:/', str(workdir)))


def scratch_folder(address: str, purpose: str) -> Path:
  """Returns this machine's folder for the copy of a work directory."""
  # Two addresses may end alike; the hash keeps their folders apart.
  short = re.sub('[^A-Za-z0-9]+', '-', address)[-60:].strip('-')
  digest = hashlib.sha256(address.encode()).hexdigest()[:8]
  top = os.environ.get(VARIABLE) or os.path.expanduser('~/.cache/lm')
  return Path(top) / f'{short}-{digest}-{purpose}'


class Bucket:
  """A work directory in a bucket."""

  def __init__(self, address: str | os.PathLike[str], seconds: float = 600.0):
    """Prepares requests; none is made yet.

    Args:
      address: such as 'gs://bucket/run', or another path that `etils.epath`
        understands. A plain folder works too, for tests.
      seconds: deadline of one request, which moves one file at most.

    Raises:
      errors.Remote: gcsfs is not installed.
    """
    self.address = re.sub('^gs:/+', 'gs://', str(address)).rstrip('/')
    self._seconds = seconds
    if is_address(address):
      try:
        import fsspec.config
        import gcsfs  # noqa: F401
      except ImportError as error:
        raise errors.Remote(
          f'{self.address}: needs gcsfs: {errors.install("gcs")}'
        ) from error
      # A cached listing hides what other processes have written since.
      fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
    from etils import epath

    self._root = epath.Path(self.address)

  def _request(self, name: str, call: Callable[[], T]) -> T:
    """Makes a request that concerns `name`, and gives up at the deadline.

    Raises:
      FileNotFoundError: there is no such object.
      errors.Storage: the request failed, or was not answered in time.
    """
    # The libraries below have no deadline of their own, so that each request
    # runs in a thread that can be abandoned.
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run():
      try:
        answer.set_result(call())
      except BaseException as error:
        answer.set_exception(error)

    threading.Thread(target=run, name='bucket', daemon=True).start()
    try:
      return answer.result(self._seconds)
    except FileNotFoundError:
      raise
    except concurrent.futures.TimeoutError:
      raise errors.Storage(
        f'{self.address}/{name}: no answer in {self._seconds:g} s: check the '
        'network'
      ) from None
    except Exception as error:  # each library has errors of its own
      raise errors.Storage(
        f'{self.address}/{name}: {error or type(error).__name__}: check the '
        'address, the network and your rights'
      ) from error

  def read(self, name: str) -> bytes | None:
    """Reads an object; None if there is none."""
    try:
      return self._request(name, (self._root / name).read_bytes)
    except FileNotFoundError:
      return None

  def write(self, name: str, data: bytes) -> None:
    """Writes an object, as a whole or not at all."""
    path = self._root / name

    def call():
      if is_address(self.address):
        path.write_bytes(data)
        return
      # Unlike an object, a file can be read while it is being written.
      path.parent.mkdir(parents=True, exist_ok=True)
      part = path.with_name(f'{path.name}.{os.getpid()}.part')
      part.write_bytes(data)
      part.replace(path)

    self._request(name, call)

  def upload(self, name: str, file: Path) -> None:
    """Copies a file into the bucket."""
    path = self._root / name

    def call():
      if not is_address(self.address):
        path.parent.mkdir(parents=True, exist_ok=True)
      with file.open('rb') as source, path.open('wb') as sink:
        shutil.copyfileobj(source, sink, 1 << 24)
      if path.stat().length != file.stat().st_size:
        raise OSError('not as long as what was sent')

    self._request(name, call)

  def download(self, name: str, file: Path) -> None:
    """Copies an object to a file.

    Raises:
      FileNotFoundError: there is no such object.
    """
    file.parent.mkdir(parents=True, exist_ok=True)

    def call():
      with (self._root / name).open('rb') as source, file.open('wb') as sink:
        shutil.copyfileobj(source, sink, 1 << 24)

    self._request(name, call)

  def names(self, folder: str) -> list[str]:
    """Lists the names in a folder; nothing if there is no such folder."""
    path = self._root / folder
    try:
      return sorted(
        self._request(folder, lambda: [child.name for child in path.iterdir()])
      )
    except FileNotFoundError:
      return []

  def remove(self, name: str) -> None:
    """Deletes an object or a folder, if it is there."""
    path = self._root / name
    with contextlib.suppress(FileNotFoundError):
      self._request(
        name, lambda: path.rmtree() if path.is_dir() else path.unlink()
      )

  def candidates(self) -> list[int]:
    """Lists the steps of which there is any file, oldest first."""
    names = self.names('checkpoints')
    return sorted(int(n) for n in names if re.fullmatch('[0-9]{8,18}', n))

  def steps(self) -> list[int]:
    """Lists the steps that are complete, oldest first."""
    candidates = self.candidates()

    def is_complete(step: int) -> bool:
      name = f'checkpoints/{step:08d}/{manifest.NAME}'
      return self._request(name, (self._root / name).exists)

    with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
      complete = list(pool.map(is_complete, candidates))
    return [step for step, yes in zip(candidates, complete, strict=True) if yes]

  def upload_step(
    self, workdir: Path, step: int, check: Callable[[], None]
  ) -> None:
    """Copies a step of a work directory into the bucket.

    Args:
      workdir: a folder of this machine.
      step: one of its steps.
      check: raises when this process may not write any more; called when all
        files but the manifest are there.
    """
    folder = f'checkpoints/{step:08d}'
    # A step of this number that was damaged may be there. It must not count
    # while its files are replaced.
    self.remove(f'{folder}/{manifest.NAME}')
    with read_locks.read_lock(workdir, step):
      local = manifest.directory(workdir, step)
      files = manifest.read(workdir, step)['files']
      with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(lambda n: self.upload(f'{folder}/{n}', local / n), files))
      faults.strike('die_in_send', step)
      check()
      self.upload(f'{folder}/{manifest.NAME}', local / manifest.NAME)

  def remove_step(self, step: int) -> None:
    """Deletes a step, and first the manifest that makes it count."""
    self.remove(f'checkpoints/{step:08d}/{manifest.NAME}')
    self.remove(f'checkpoints/{step:08d}')

  def read_manifest(self, step: int) -> dict[str, Any]:
    """Reads the manifest of a step.

    Raises:
      errors.Gone: there is no such step (any more).
      errors.Damaged: the manifest is changed or not ours.
    """
    with tempfile.TemporaryDirectory() as folder:
      return self._download_manifest(step, Path(folder))

  def _download_manifest(self, step: int, workdir: Path) -> dict[str, Any]:
    file = manifest.directory(workdir, step) / manifest.NAME
    try:
      self.download(f'checkpoints/{step:08d}/{manifest.NAME}', file)
    except FileNotFoundError:
      raise errors.Gone(
        f'{self.address}/checkpoints/{step:08d}: no such step (any more)'
      ) from None
    return manifest.read(workdir, step)

  def download_step(self, step: int, workdir: Path) -> None:
    """Brings a step into a work directory of this machine, and verifies it.

    Raises:
      errors.Gone: there is no such step (any more).
      errors.Damaged: its bytes are not those that were written.
    """
    # The step gets its name by a rename, as in a save: a process that is killed
    # here leaves a `tmp.` folder and never half a step.
    half = workdir / f'tmp.fetch.{os.getpid()}'
    shutil.rmtree(half, ignore_errors=True)
    try:
      self._download_files(step, half)
      manifest.verify(half, step)
      manifest.root(workdir).mkdir(parents=True, exist_ok=True)
      target = manifest.directory(workdir, step)
      read_locks.delete(
        target
      )  # the bucket's step replaces one of this machine
      os.rename(manifest.directory(half, step), target)
    finally:
      shutil.rmtree(half, ignore_errors=True)

  def _download_files(self, step: int, workdir: Path) -> None:
    folder = f'checkpoints/{step:08d}'
    files = self._download_manifest(step, workdir)['files']
    local = manifest.directory(workdir, step)
    try:
      with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
        list(
          pool.map(lambda n: self.download(f'{folder}/{n}', local / n), files)
        )
    except FileNotFoundError as error:
      # The manifest is deleted first: without it, a trainer has deleted the
      # step; with it, the step has lost a file.
      if self.read(f'{folder}/{manifest.NAME}') is None:
        raise errors.Gone(
          f'{self.address}/{folder}: deleted while it was read'
        ) from error
      raise errors.Damaged(
        f'{self.address}/{folder}: a file is missing; use another step'
      ) from error

  def download_newest(self, workdir: Path) -> int | None:
    """Brings the newest sound step down, unless the work directory has it.

    Returns:
      Its number; None if the bucket has no steps.

    Raises:
      errors.Damaged: no step is sound.
    """
    steps = self.steps()
    for step in reversed(steps):
      try:
        remote = self.read_manifest(step)
        with contextlib.suppress(errors.Gone, errors.Damaged):
          if manifest.verify(workdir, step)['sha256'] == remote['sha256']:
            return step
        self.download_step(step, workdir)
        return step
      except (errors.Gone, errors.Damaged) as error:
        manifest.warn(f'{error}; trying the step before it')
    if steps:
      raise errors.Damaged(
        f'{self.address}: no sound step left of {len(steps)}: bring back a '
        'copy, or remove them to start anew'
      )
    return None
