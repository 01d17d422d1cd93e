"""Work directories in a bucket: a folder of this machine, and its copy there.

    with remote.Mirror('gs://bucket/run') as mirror:
      ...  # train into mirror.folder, and call mirror.check() now and then

A run writes to a folder, as ever, and a thread copies what is finished: lines
first, then steps, of each its manifest last; a step without one is not there.
A machine that starts with nothing brings down the newest sound step and goes on
from there. An object comes or goes as a whole, but there are no renames, no
locks and no clocks in a bucket: who may write is said by an object that its
holder writes anew every few seconds (`_Lease`).

Every request has a deadline. One process writes: several need a folder that all
of them see, such as a mounted bucket. Nowhere else is epath imported.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
import socket
import tempfile
import threading
import time
from typing import Any, TypeVar
import uuid

from lm import errors
from lm.checkpoint import manifest, read_locks
from lm.runtime import faults

T = TypeVar('T')
VARIABLE = 'LM_SCRATCH'  # where the folders lie; default ~/.cache/lm
_LINES = ('config.json', 'metrics.jsonl')  # what a trainer writes beside steps
_PARALLEL = 8
_LOOK_SECONDS = 1.0
_SETTLE_SECONDS = 1.0  # between writing a lease and believing it


def is_address(workdir: str | os.PathLike[str]) -> bool:
  """Tells a work directory in a bucket from a folder."""
  return bool(re.match('gs:/', str(workdir)))


class Bucket:
  """A work directory in a bucket: the requests that are made of it."""

  def __init__(self, address: str | os.PathLike[str], seconds: float = 600.0):
    """Names it; nothing is asked yet.

    Args:
      address: such as 'gs://bucket/run'; what `etils.epath` knows.
      seconds: deadline of a request; one moves a file at most.

    Raises:
      errors.Remote: what speaks to buckets is not installed.
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
      # A listing that is remembered hides what others have written since.
      fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
    from etils import epath

    self._root = epath.Path(self.address)

  def _ask(self, what: str, call: Callable[[], T]) -> T:
    """Makes a request, in a thread: none of them has a deadline of its own."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run():
      try:
        done.set_result(call())
      except BaseException as error:
        done.set_exception(error)

    threading.Thread(target=run, name='bucket', daemon=True).start()
    try:
      return done.result(self._seconds)
    except FileNotFoundError:
      raise
    except concurrent.futures.TimeoutError:
      raise errors.Storage(
        f'{self.address}/{what}: no answer in {self._seconds:g} s: check the '
        'network'
      ) from None
    except Exception as error:  # of any library beneath
      raise errors.Storage(
        f'{self.address}/{what}: {error or type(error).__name__}: check the '
        'address, the network and your rights'
      ) from error

  def read(self, name: str) -> bytes | None:
    """Reads an object, None if there is none."""
    try:
      return self._ask(name, (self._root / name).read_bytes)
    except FileNotFoundError:
      return None

  def write(self, name: str, data: bytes) -> None:
    """Writes an object, as a whole or not at all."""
    path = self._root / name

    def call():
      if is_address(self.address):
        path.write_bytes(data)
        return
      # A file can be read while it is being written; an object cannot.
      path.parent.mkdir(parents=True, exist_ok=True)
      part = path.with_name(f'{path.name}.{os.getpid()}.part')
      part.write_bytes(data)
      part.replace(path)

    self._ask(name, call)

  def up(self, name: str, file: Path) -> None:
    """Copies a file up."""
    path = self._root / name

    def call():
      if not is_address(self.address):
        path.parent.mkdir(parents=True, exist_ok=True)
      with file.open('rb') as source, path.open('wb') as sink:
        shutil.copyfileobj(source, sink, 1 << 24)
      if path.stat().length != file.stat().st_size:
        raise OSError('not as long as what was sent')

    self._ask(name, call)

  def down(self, name: str, file: Path) -> None:
    """Copies an object down.

    Raises:
      FileNotFoundError: there is none.
    """
    file.parent.mkdir(parents=True, exist_ok=True)

    def call():
      with (self._root / name).open('rb') as source, file.open('wb') as sink:
        shutil.copyfileobj(source, sink, 1 << 24)

    self._ask(name, call)

  def names(self, folder: str) -> list[str]:
    """Lists what is in a folder; nothing, if there is none."""
    path = self._root / folder
    try:
      return sorted(
        self._ask(folder, lambda: [child.name for child in path.iterdir()])
      )
    except FileNotFoundError:
      return []

  def remove(self, name: str) -> None:
    """Deletes an object, or a folder; it need not be there."""
    path = self._root / name
    with contextlib.suppress(FileNotFoundError):
      self._ask(name, lambda: path.rmtree() if path.is_dir() else path.unlink())

  def candidates(self) -> list[int]:
    """Lists the steps of which there is anything, oldest first."""
    names = self.names('checkpoints')
    return sorted(int(n) for n in names if re.fullmatch('[0-9]{8,18}', n))

  def steps(self) -> list[int]:
    """Lists the steps that are there as a whole, oldest first."""
    there = [f'checkpoints/{n:08d}/{manifest.NAME}' for n in self.candidates()]

    def exists(name: str) -> bool:
      return self._ask(name, (self._root / name).exists)

    with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
      found = list(pool.map(exists, there))
    return [
      int(name.split('/')[1])
      for name, yes in zip(there, found, strict=True)
      if yes
    ]

  def send(self, folder: Path, step: int, check: Callable[[], None]) -> None:
    """Copies a step up; `check` is called before it counts."""
    place = f'checkpoints/{step:08d}'
    self.remove(f'{place}/{manifest.NAME}')
    with read_locks.pin(folder, step):
      here = manifest.directory(folder, step)
      files = manifest.read(folder, step)['files']
      with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(lambda n: self.up(f'{place}/{n}', here / n), files))
      faults.strike('die_in_send', step)
      check()
      self.up(f'{place}/{manifest.NAME}', here / manifest.NAME)

  def about(self, step: int) -> dict[str, Any]:
    """Reads the manifest of a step.

    Raises:
      errors.Gone, errors.Damaged: as of `manifest.read`.
    """
    with tempfile.TemporaryDirectory() as folder:
      return self._about(step, Path(folder))

  def _about(self, step: int, folder: Path) -> dict[str, Any]:
    file = manifest.directory(folder, step) / manifest.NAME
    try:
      self.down(f'checkpoints/{step:08d}/{manifest.NAME}', file)
    except FileNotFoundError:
      raise errors.Gone(
        f'{self.address}/checkpoints/{step:08d}: no such step (any more)'
      ) from None
    return manifest.read(folder, step)

  def fetch(self, step: int, folder: Path) -> None:
    """Brings a step down into a work directory, whole and verified.

    Raises:
      errors.Gone: it is not there (any more).
      errors.Damaged: its bytes are not those that were written.
    """
    place = f'checkpoints/{step:08d}'
    half = folder / f'tmp.fetch.{os.getpid()}'
    shutil.rmtree(half, ignore_errors=True)
    try:
      files = self._about(step, half)['files']
      here = manifest.directory(half, step)
      try:
        with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
          list(pool.map(lambda n: self.down(f'{place}/{n}', here / n), files))
      except FileNotFoundError as error:
        if self.read(f'{place}/{manifest.NAME}') is None:
          raise errors.Gone(
            f'{self.address}/{place}: deleted while it was read'
          ) from error
        raise errors.Damaged(
          f'{self.address}/{place}: a file is missing; use another step'
        ) from error
      manifest.verify(half, step)
      manifest.root(folder).mkdir(parents=True, exist_ok=True)
      there = manifest.directory(folder, step)
      read_locks.delete(there)  # what is in the bucket is what counts
      os.rename(here, there)
    finally:
      shutil.rmtree(half, ignore_errors=True)

  def fetch_newest(self, folder: Path) -> int | None:
    """Brings the newest sound step down, unless it is here already.

    Returns:
      Its number, None if there are no steps.

    Raises:
      errors.Damaged: none of them is sound.
    """
    steps = self.steps()
    for step in reversed(steps):
      try:
        there = self.about(step)
        with contextlib.suppress(errors.Gone, errors.Damaged):
          if manifest.verify(folder, step)['sha256'] == there['sha256']:
            return step
        self.fetch(step, folder)
        return step
      except (errors.Gone, errors.Damaged) as error:
        manifest.warn(f'{error}; trying the step before it')
    if steps:
      raise errors.Damaged(
        f'{self.address}: no sound step left of {len(steps)}: bring back a '
        'copy, or remove them to start anew'
      )
    return None


class _Lease:
  """One writer at a time, by an object that its holder writes again and again.

  A holder that is gone is one whose object stays the same for two and a half
  beats; or whose process this host knows to be dead. Two that take it in the
  same second see, a second later, which of them wrote last.
  """

  def __init__(self, bucket: Bucket, name: str, beat_seconds: float):
    self._bucket, self._name, self._beat = bucket, name, beat_seconds
    self._id = uuid.uuid4().hex
    self._count = 0

  def take(self) -> None:
    """Takes it.

    Raises:
      errors.Locked: another process holds it.
    """
    old = self._read()
    if old and old['held'] and not _dead(old):
      # In steps, so that a holder that lives is seen to at its next beat.
      deadline = time.monotonic() + 2.5 * old['beat_seconds']
      while time.monotonic() < deadline:
        time.sleep(min(1.0, old['beat_seconds'] / 4))
        now = self._read()
        if now and not now['held']:
          break
        if now != old:
          raise self._refusal(now or old)
    self.write()
    time.sleep(min(_SETTLE_SECONDS, self._beat))
    self.check()

  def write(self, *, held: bool = True) -> None:
    self._count += 1
    content = {
      'id': self._id,
      'count': self._count,
      'held': held,
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'beat_seconds': self._beat,
    }
    self._bucket.write(self._name, json.dumps(content).encode())

  def check(self) -> None:
    """Makes sure that this process still holds it.

    Raises:
      errors.Locked: another has taken it.
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
      found = json.loads(self._bucket.read(self._name) or b'')
      return {
        'id': str(found['id']),
        'count': int(found['count']),
        'held': bool(found['held']),
        'host': str(found['host']),
        'pid': int(found['pid']),
        'beat_seconds': min(float(found['beat_seconds']), 600.0),
      }
    except (ValueError, LookupError, TypeError):
      return None


def _dead(holder: dict[str, Any]) -> bool:
  """Whether the holder was on this host and is gone."""
  if holder['host'] != socket.gethostname():
    return False
  try:
    os.kill(holder['pid'], 0)
  except ProcessLookupError:
    return True
  except OSError:
    return False
  return holder['pid'] == os.getpid()


def scratch(address: str, purpose: str) -> Path:
  """Returns this machine's folder for a work directory in a bucket."""
  short = re.sub('[^A-Za-z0-9]+', '-', address)[-60:].strip('-')
  digest = hashlib.sha256(address.encode()).hexdigest()[:8]
  top = os.environ.get(VARIABLE) or os.path.expanduser('~/.cache/lm')
  return Path(top) / f'{short}-{digest}-{purpose}'


class Mirror:
  """Keeps the copy of a run's folder while inside `with`.

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
    """Prepares it; nothing is asked or touched before `with`.

    Args:
      address: of the bucket and the folder in it.
      keep, keep_every: as of `checkpoint.Checkpointer`.
      deadline_seconds: how long storage may fail before the run does, and of
        each request.
      beat_seconds: between writes of the lease.
    """
    self._bucket = Bucket(address, deadline_seconds)
    self.folder = scratch(self._bucket.address, 'run')
    self._keep, self._keep_every = max(2, keep), keep_every
    self._seconds, self._beat_seconds = deadline_seconds, beat_seconds
    self._lease = _Lease(self._bucket, 'lease.json', beat_seconds)
    self._sent: dict[str, Any] = {}  # what the bucket has, as last seen here
    self._error: Exception | None = None
    self._ending = threading.Event()
    self._threads = [
      threading.Thread(target=work, name='mirror', daemon=True)
      for work in (self._beat, self._copy)
    ]

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
        f'{self.folder}: cannot be made: {error.strerror}: set {VARIABLE}'
      ) from error
    self._lease.take()
    try:
      for half in self.folder.glob('tmp.*'):
        read_locks.delete(half)
      for step in set(self._bucket.candidates()) - set(self._bucket.steps()):
        self._bucket.remove(f'checkpoints/{step:08d}')  # a dead writer's
      here = max(manifest.steps(self.folder), default=-1)
      step = self._bucket.fetch_newest(self.folder)
      if step is not None:
        self._sent[f'{step}'] = manifest.digest(self.folder, step)
        # Where this machine is ahead, its lines are.
        for name in _LINES if step >= here else ():
          with contextlib.suppress(FileNotFoundError):
            self._bucket.down(name, self.folder / f'tmp.{name}')
            os.replace(self.folder / f'tmp.{name}', self.folder / name)
    except BaseException:
      self._lease.write(held=False)
      raise
    for thread in self._threads:
      thread.start()
    return self

  def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
    """Copies what is left, and gives the lease back.

    Raises:
      errors.Storage: that was not done at the deadline; the folder has it.
    """
    self._ending.set()
    self._threads[1].join(self._seconds)
    try:
      if self._error is not None or self._threads[1].is_alive():
        raise self._error or errors.Storage(
          f'{self._bucket.address}: not all is there after {self._seconds:g} '
          f's: {self.folder} has it; start the same command again'
        )
    except errors.Failure as late:
      if error is None:
        raise
      error.add_note(f'and the last copy failed: {late}')
    else:
      with contextlib.suppress(errors.Failure):
        self._lease.check()
        self._lease.write(held=False)

  def check(self) -> None:
    """Raises what went wrong in the background.

    Raises:
      errors.Locked: another process has taken over.
      errors.Storage: the bucket has not answered for too long.
    """
    if self._error is not None:
      raise self._error

  def _beat(self) -> None:
    while not self._ending.wait(self._beat_seconds):
      # What storage makes of it is for the other thread to judge.
      with contextlib.suppress(errors.Storage):
        try:
          self._lease.check()
          self._lease.write()
        except errors.Locked as error:
          self._error = error
          return

  def _copy(self) -> None:
    """Copies what is new until nothing is and the run is over."""
    failing_since = None
    while self._error is None:
      last = self._ending.is_set()
      try:
        self._push()
        failing_since = None
        if last:
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

  def _push(self) -> None:
    # Steps are listed first: their lines are on disk by then, and go first.
    steps = manifest.steps(self.folder)
    for name in _LINES:
      with contextlib.suppress(FileNotFoundError):
        found = os.stat(self.folder / name)
        seen = found.st_mtime_ns, found.st_size, found.st_ino
        if self._sent.get(name) != seen:
          self._bucket.up(name, self.folder / name)
          self._sent[name] = seen
    newest = max((int(k) for k in self._sent if k.isdigit()), default=-1)
    for step in steps:
      try:
        digest = manifest.digest(self.folder, step)
        if step < newest or self._sent.get(f'{step}') == digest:
          continue
        self._bucket.send(self.folder, step, self._lease.check)
      except (errors.Gone, errors.Damaged) as error:
        manifest.warn(f'{error}; it is not copied')
        continue
      self._sent[f'{step}'] = digest
      self._retain()

  def _retain(self) -> None:
    old = self._bucket.steps()[: -self._keep]
    for step in old:
      if not (self._keep_every and step % self._keep_every == 0):
        # First of all what makes it a step.
        self._bucket.remove(f'checkpoints/{step:08d}/{manifest.NAME}')
        self._bucket.remove(f'checkpoints/{step:08d}')


class Reader:
  """Reads a run in a bucket, and writes evals.jsonl beside it.

  Attributes:
    folder: where to find what has been brought down.
  """

  def __init__(self, address: str | os.PathLike[str]):
    """Names it; nothing is asked yet."""
    self._bucket = Bucket(address)
    self.folder = scratch(self._bucket.address, 'read')
    self.steps, self.about = self._bucket.steps, self._bucket.about
    self._seen: bytes | None = None

  def newest(self, step: int | None = None) -> Path:
    """Brings a step down, by default the newest, and returns the folder.

    Raises:
      errors.Missing: there are no steps; errors.Gone: not this one.
      errors.Damaged: it, or every step, is damaged.
    """
    self.folder.mkdir(parents=True, exist_ok=True)
    if step is None:
      step = self._bucket.fetch_newest(self.folder)
    else:
      self._bucket.fetch(step, self.folder)
    if step is None:
      raise errors.Missing(
        f'{self._bucket.address}: no checkpoint there: check the address'
      )
    for old in manifest.candidates(self.folder):
      if old != step:
        self._drop(old)
    return self.folder

  def _drop(self, step: int) -> None:
    trash = self.folder / f'tmp.delete.{step}.{os.getpid()}'
    with contextlib.suppress(FileNotFoundError):  # another reader was quicker
      if read_locks.remove(self.folder, step, trash):
        read_locks.delete(trash)

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """Lets one process at a time write evals.jsonl, which is brought down.

    Raises:
      errors.Locked: another one does.
    """
    lease = _Lease(self._bucket, 'evals.lease.json', 10.0)
    lease.take()
    ending = threading.Event()

    def beat():
      while not ending.wait(10.0):
        with contextlib.suppress(errors.Storage):
          lease.write()

    thread = threading.Thread(target=beat, name='lease', daemon=True)
    thread.start()
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      known = self._bucket.read('evals.jsonl') or b''
      (self.folder / 'evals.jsonl').write_bytes(known)
      yield
    finally:
      ending.set()
      thread.join()
      lease.write(held=False)

  @contextlib.contextmanager
  def claim(self, cell: object) -> Iterator[bool]:
    """Yields True: nobody else is at work here, see `alone`."""
    del cell
    yield True

  @contextlib.contextmanager
  def hold(self, step: int) -> Iterator[None]:
    """Brings a step down for as long as it is needed."""
    self._bucket.fetch(step, self.folder)
    try:
      with read_locks.pin(self.folder, step):
        yield
    finally:
      self._drop(step)

  def publish(self, *files: Path) -> None:
    """Copies what was written below the folder up, and then evals.jsonl."""
    for file in (*files, self.folder / 'evals.jsonl'):
      self._bucket.up(file.relative_to(self.folder).as_posix(), file)

  def trained(self) -> bool:
    """Tells whether a trainer has shown itself since this was last asked."""
    before, self._seen = self._seen, self._bucket.read('lease.json')
    return self._seen != before


def here(workdir: str | os.PathLike[str], step: int | None = None) -> Path:
  """Returns a folder that has a run's newest step, or another one.

  Raises:
    errors.Failure: it is in a bucket, and cannot be brought down.
  """
  if is_address(workdir):
    return Reader(workdir).newest(step)
  return Path(workdir)
