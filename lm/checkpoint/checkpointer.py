"""Checkpoints: saved in the background, verified byte by byte, one writer.

    with checkpoint.Checkpointer(workdir, keep=3) as saver:
      saver.preflight(like)
      state, meta = saver.restore(like, where) or (fresh(), {})
      ...
      saver.save(step, state, {'config': ..., 'data': ...})

Orbax writes and reads the arrays (nowhere else is it imported): plain zarr, a
directory per leaf, not compressed, so that a file's size bounds the memory it
can ask for. `manifest` says what makes a step whole, `lease` who may write,
`pins` what may be deleted. Deletion stays in our hands because orbax empties a
directory that still looks like the latest step.

Several processes save together, each its own parts (`chunks`), into a directory
that all of them see; process 0 alone holds the lease, commits and deletes. What
they write is what one process would, cut: the same hash for the same bits.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import json
import logging
import os
from pathlib import Path
import shutil
import threading
import time
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from lm import errors, tree
from lm.checkpoint import (
  host_arrays,
  lease,
  manifest,
  read_locks,
  sharded_arrays,
)
from lm.runtime import faults, processes

T = TypeVar('T')
# How long a process that fails waits for a save: all of a run are to end within
# half a minute.
_LAST_SAVE_SECONDS = 15.0
# How long a network file system may hide a new file from other hosts.
_UNSEEN_SECONDS = 60.0
_SCALES = 'extra/scales/'

Locked, Damaged, Storage = errors.Locked, errors.Damaged, errors.Storage
Missing, Gone, Mismatch = errors.Missing, errors.Gone, errors.Mismatch
steps, verify = manifest.steps, manifest.verify
digest, read_meta = manifest.digest, manifest.read_meta
pin, holder = read_locks.pin, lease.holder

# What orbax has to say reaches the user as our one line.
logging.getLogger('absl').addFilter(
  lambda record: '/orbax/checkpoint/' not in record.pathname
)


class Checkpointer:
  """The one writer of a work directory; use it in `with`.

  Attributes:
    best: a step that is kept beside the newest; None for none.
  """

  best: int | None = None

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    keep: int = 3,
    keep_every: int | None = None,
    group: processes.Group | None = None,
    deadline_seconds: float = 1800.0,
    beat_seconds: float = 10.0,
    stale_seconds: float = 60.0,
  ):
    """Prepares a writer; nothing is touched before `with`.

    Args:
      workdir: made if it is not there.
      keep: the newest sound steps to keep; two are kept in any case.
      keep_every: steps divisible by this are kept for ever; None for none.
      group: the processes that save together, which all make the same calls;
        None for this one alone.
      deadline_seconds: how long one save may take before it is an error.
      beat_seconds: as of `lease.Lease`.
      stale_seconds: as of `lease.Lease`.
    """
    self._workdir = Path(workdir)
    self._root = manifest.root(workdir)
    self._keep = max(2, keep)
    self._keep_every = keep_every
    self._group = group or processes.alone()
    self._deadline_seconds = deadline_seconds
    self._lease = lease.Lease(
      workdir, beat_seconds=beat_seconds, stale_seconds=stale_seconds
    )
    self._thread: threading.Thread | None = None
    self._saving = 0
    self._error: BaseException | None = None
    self._sound: set[int] = set()  # steps this process wrote or verified
    self._copies: dict[str, host_arrays.Leaf] = {}
    self._parts: dict[str, sharded_arrays.Parts] = {}
    self._bytes = 0
    self._token = 0  # of the lease

  def __enter__(self) -> 'Checkpointer':
    """Takes the lease and clears away what a dead writer left unfinished.

    Raises:
      errors.Locked: another process trains here.
      errors.Storage: the directory cannot be written to, or is not the one
        that process 0 has.
    """
    if self._group.leads:
      self._take()
    self._token = self._group.share('lease', self._lease.token, 300.0)
    if not self._group.leads:
      self._check_shared()
    return self

  def _take(self) -> None:
    try:
      self._root.mkdir(parents=True, exist_ok=True)
      probe = self._root / f'tmp.probe.{os.getpid()}'
      probe.write_bytes(b'?')
      probe.unlink()
      self._lease.__enter__()
    except OSError as error:
      raise Storage(
        f'{self._workdir}: cannot be written to: {error.strerror}: make it'
        ' writable or use another workdir'
      ) from error
    try:
      for name in manifest.leftovers(self._workdir):
        read_locks.delete(self._root / name)
      if strays := manifest.strays(self._workdir):
        manifest.warn(f'{self._root}: ignored, not steps: {", ".join(strays)}')
    except BaseException:
      self._lease.__exit__()
      raise

  def _check_shared(self) -> None:
    if not _soon(lambda: lease.token(self._workdir) == self._token):
      raise Storage(
        f'{self._workdir}: on {self._group.name(self._group.index)} this is not'
        ' the folder of process 0: use storage that all hosts share'
      )

  def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
    """Waits for the last save and gives the lease back."""
    try:
      if error is not None and self._group.count > 1 and self._thread:
        self._thread.join(_LAST_SAVE_SECONDS)
        if self._error is not None:
          raise self._error
      else:
        self.wait()
    except BaseException as late:
      if error is None:
        raise
      error.add_note(f'and the last save failed: {late}')
    finally:
      if self._group.leads:
        self._lease.__exit__()

  def preflight(self, like: Any) -> None:
    """Checks, before any work, that a checkpoint of `like` has room.

    Raises:
      errors.Storage: it has not.
    """
    if self._group.leads:
      self._check_room(host_arrays.nbytes(like), 'a checkpoint')

  def meta(self) -> Any | None:
    """Reads what was saved beside the newest sound step; None without steps.

    Raises:
      errors.Damaged: every step is damaged.
    """
    found = None
    if self._group.leads and steps(self._workdir):
      found = read_meta(self._workdir)
    return self._group.share('meta', found, self._deadline_seconds)

  def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
    """Copies a state to the host, and writes it in the background.

    The state may be donated as soon as this returns.

    Args:
      step: newer than every step already there.
      state: tree of arrays, `types.TrainState` or other.
      meta: JSON; its item `data` is the position in the data, which counts in
        the checkpoint's hash.

    Raises:
      ValueError: the step is not newer, or meta is not JSON.
      errors.Storage: the disk is full; or the save before this one failed.
      errors.Locked: another process has taken over.
    """
    self.wait()
    try:
      meta = json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError) as error:
      raise ValueError(f'meta of step {step} is not JSON: {error}') from None
    self._bytes = host_arrays.nbytes(state)
    if self._group.leads:
      newest = max(manifest.candidates(self._workdir), default=-1)
      if step <= newest:
        raise ValueError(
          f'{self._root}: step {step} is not newer than step {newest}, which is'
          ' never overwritten: restore that one or use another workdir'
        )
      self._lease.check()
      self._check_room(self._bytes, f'step {step}')
    if self._group.count > 1:
      self._parts = sharded_arrays.copy(state, self._parts)
    else:
      self._copies = host_arrays.copy(state, self._copies)
    self._saving = step
    self._thread = threading.Thread(
      target=self._run, args=(step, meta), name='save', daemon=True
    )
    self._thread.start()

  def wait(self) -> None:
    """Blocks until what was saved is committed.

    Raises:
      errors.Storage: it failed, or is not done at the deadline.
      errors.Locked: another process has taken over meanwhile.
    """
    if self._thread is not None:
      thread, self._thread = self._thread, None
      thread.join(self._deadline_seconds)
      if thread.is_alive():
        raise Storage(
          f'{self._root}: saving step {self._saving} has not finished in'
          f' {self._deadline_seconds:g} s: storage does not answer; check it'
        )
    error, self._error = self._error, None
    if error is not None:
      raise error

  def restore(self, like: Any, shardings: Any) -> tuple[Any, Any] | None:
    """Restores the newest sound step, None if there is no step at all.

    Newer steps that are damaged are set aside, so that their numbers can be
    saved again. Arguments and errors are as of `restore`.
    """
    if self._group.count > 1:
      return self._restore_parts(like, shardings)
    if not manifest.candidates(self._workdir):
      return None
    step, state, meta = manifest.newest(
      self._workdir, lambda n: (n, *_load(self._workdir, n, like, shardings))
    )
    self._set_aside(step)
    return state, meta

  def _restore_parts(self, like: Any, shardings: Any) -> tuple[Any, Any] | None:
    """Restores on all processes the step that process 0 has verified."""
    step = None
    if self._group.leads and manifest.candidates(self._workdir):
      content = manifest.newest(
        self._workdir, lambda n: verify(self._workdir, n)
      )
      step = content['step']
      self._set_aside(step)
    step = self._group.share('restore', step, self._deadline_seconds)
    if step is None:
      return None
    content = manifest.read(self._workdir, step)
    return _load(self._workdir, step, like, shardings, content)

  def _set_aside(self, step: int) -> None:
    """Moves what is newer than a restored step out of its way."""
    self._lease.check()
    for bad in manifest.candidates(self._workdir):
      if bad > step:
        aside = self._root / f'damaged.{bad:08d}.{self._lease.token}'
        os.rename(manifest.directory(self._workdir, bad), aside)
        manifest.warn(f'{aside}: set aside; remove it when you have seen it')
    self._sound.add(step)

  def _run(self, step: int, meta: dict[str, Any]) -> None:
    try:
      if self._group.count > 1:
        self._write_parts(step, meta)
      else:
        self._write(step, meta)
      try:
        if self._group.leads:
          self._retain()
      except (Storage, OSError) as error:
        # The step is safe; if room runs out, the next save says so.
        manifest.warn(f'{self._root}: old steps cannot be deleted: {error}')
    except Exception as error:
      self._error = self._explain(error, step)

  def _write(self, step: int, meta: dict[str, Any]) -> None:
    """Writes one step under another name and commits it by a rename."""
    tmp = self._place(step)
    try:
      self._lease.check()
      tmp.mkdir()
      arrays = {k: v.array for k, v in self._copies.items() if v.array.size}
      with _orbax() as writer:
        args = ocp.args.PyTreeSave(host_arrays.nest(arrays))
        writer.save((tmp / 'state').absolute(), args=args)
      records = {k: v.record() for k, v in self._copies.items()}
      time.sleep(faults.seconds('slow_save'))
      faults.strike('stop_in_save', step)
      faults.strike('die_in_save', step)
      content = manifest.write(tmp, step, records, meta)
      host_arrays.check_written(content)
      self._commit(tmp, step)
    except BaseException:
      read_locks.delete(tmp)
      raise

  def _place(self, step: int) -> Path:
    # The token keeps a stopped and replaced writer out of our directories.
    return self._root / f'tmp.save.{step:08d}.{self._token}'

  def _commit(self, tmp: Path, step: int) -> None:
    self._lease.check()
    os.rename(tmp, manifest.directory(self._workdir, step))
    manifest.sync(self._root)
    self._sound.add(step)

  def _write_parts(self, step: int, meta: dict[str, Any]) -> None:
    """Writes one step together with the other processes, each its parts.

    A process reads back leaves that it has not written alone, so that the disk
    is verified, hashing is shared, and no process holds more than a leaf.
    """
    tmp = self._place(step)
    folders = {
      path: tmp / 'state' / path.replace('/', '.') for path in self._parts
    }
    stored = [path for path, part in self._parts.items() if 0 not in part.shape]
    group = self._group

    def write() -> dict[str, str]:
      return {
        f'state/{folders[path].name}/{key}': sha256
        for path in stored
        for key, sha256 in sharded_arrays.write(
          folders[path], self._parts[path]
        ).items()
      }

    def read_back() -> list[dict[str, Any]]:
      whole, files = {}, {}
      for path in stored[group.index :: group.count]:
        whole[path], found = sharded_arrays.read_back(
          folders[path], self._parts[path]
        )
        for key, record in found.items():
          files[f'state/{folders[path].name}/{key}'] = record
      return [whole, files]

    try:
      self._round(f'step {step} begun', lambda: self._begin(tmp, stored))
      written = self._round(f'step {step} written', write)
      time.sleep(faults.seconds('slow_save'))
      faults.strike('stop_in_save', step)
      faults.strike('die_in_save', step)
      read = self._round(f'step {step} read back', read_back)
      self._round(
        f'step {step} committed',
        lambda: self._commit_parts(tmp, step, meta, written, read),
      )
    except BaseException:
      if group.leads:
        read_locks.delete(tmp)
      raise

  def _begin(self, tmp: Path, stored: list[str]) -> None:
    """Makes the directory of a step and of its leaves (process 0)."""
    if not self._group.leads:
      return
    self._lease.check()
    tmp.mkdir()
    ones = {
      path: np.zeros((1,) * len(part.shape), host_arrays.dtype(part.dtype))
      for path, part in self._parts.items()
      if path in stored
    }
    with _orbax() as writer:
      args = ocp.args.PyTreeSave(host_arrays.nest(ones))
      writer.save((tmp / 'state').absolute(), args=args)
    for path in stored:
      sharded_arrays.announce(
        tmp / 'state' / path.replace('/', '.'), self._parts[path]
      )

  def _commit_parts(self, tmp, step, meta, written, read) -> None:
    """Checks what all have written and commits it (process 0)."""
    if not self._group.leads:
      return
    hashes = dict.fromkeys(self._parts, host_arrays.NOTHING)
    files: dict[str, dict[str, Any]] = {}
    for whole, found in read:
      hashes |= whole
      files |= found
    for name, sha256 in (item for part in written for item in part.items()):
      if files[name]['sha256'] != sha256:
        raise host_arrays.not_as_written(name, step)
    records = {
      path: {
        'shape': list(part.shape),
        'dtype': part.dtype,
        'sha256': hashes[path],
      }
      for path, part in self._parts.items()
    }
    if not _soon(lambda: files.keys() <= manifest.listing(tmp)):
      raise Storage(f'{tmp}: does not show what other hosts have written there')
    manifest.write(tmp, step, records, meta, files)
    self._commit(tmp, step)

  def _round(self, key: str, work: Callable[[], T]) -> list[T] | None:
    """Does a piece of work on all processes: what fails on one, fails on all.

    Returns:
      What came of it on each process, for process 0; None for the others.

    Raises:
      errors.Storage: it failed on another process.
      processes.Lost: another process has ended, or does not answer.
    """
    value = failed = None
    try:
      value = work()
    except Exception as error:
      failed = error
    said = failed and (errors.refusal(failed) or str(failed))
    seconds = self._deadline_seconds
    found = self._group.gather(key, [value, said], seconds)
    causes = [
      f'{self._group.name(process)}: {cause}'
      for process, (_, cause) in enumerate(found or ())
      if cause
    ]
    cause = self._group.share(f'{key} by all', causes[:1], seconds + 5)
    if failed is not None:
      raise failed
    if cause:
      raise Storage(f'{self._root}: step {self._saving} not saved: {cause[0]}')
    return None if found is None else [value for value, _ in found]

  def _explain(self, error: Exception, step: int) -> Exception:
    """Says in one line why step was not saved, if it is not our fault."""
    try:
      # A successor removes what we were writing: then that is the cause.
      if self._group.leads:
        self._lease.check()
    except Locked as fenced:
      return fenced
    cause = errors.refusal(error)
    if cause is None:
      return error
    free = shutil.disk_usage(self._root).free
    explained = Storage(
      f'{self._root}: step {step} not saved: {cause} (needs {self._bytes}'
      f' bytes, {free} free); older steps are intact: make room'
    )
    explained.__cause__ = error
    return explained

  def _retain(self) -> None:
    """Deletes what is neither among the newest sound steps, nor pinned."""
    sound = 0
    for step in reversed(manifest.steps(self._workdir)):
      if sound < self._keep:
        sound += self._is_sound(step)
      elif step != self.best and not (
        self._keep_every and step % self._keep_every == 0
      ):
        self._delete(step)

  def _delete(self, step: int) -> bool:
    """Deletes a step, unless it is pinned: then it is still there."""
    self._lease.check()
    trash = self._root / f'tmp.delete.{step:08d}.{self._lease.token}'
    removed = read_locks.remove(self._workdir, step, trash)
    if removed:
      read_locks.delete(trash, step)
    return removed

  def end_at(self, step: int) -> None:
    """Deletes what is newer than a step, which is to be the run's last.

    Raises:
      errors.Storage: a reader holds one for too long.
    """
    self.wait()
    if self._group.leads:
      # The newest goes first: whenever this is cut short, the same is to do.
      for newer in reversed(manifest.steps(self._workdir)):
        if newer > step and not _soon(functools.partial(self._delete, newer)):
          raise Storage(
            f'{self._root}: step {newer} is being read, and goes since step '
            f'{step} is better: start the same command again'
          )
    self._group.share('ended', step, self._deadline_seconds)

  def _is_sound(self, step: int) -> bool:
    if step not in self._sound:
      try:
        manifest.verify(self._workdir, step)
      except (Damaged, Gone) as error:
        manifest.warn(f'{error}; it is not counted among those to keep')
        return False
      self._sound.add(step)
    return True

  def _check_room(self, need: int, what: str) -> None:
    # Manifest, metadata and the last block of each file come on top.
    need += need // 50 + (1 << 20)
    free = shutil.disk_usage(self._root).free
    if free < need:
      raise Storage(
        f'{self._root}: {what} needs {need} bytes and {free} are free: make'
        ' room, or lower keep, or use another workdir'
      )


def _soon(seen: Callable[[], bool]) -> bool:
  """Waits until something is to be seen in the file system."""
  deadline = time.monotonic() + _UNSEEN_SECONDS
  while not seen():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.1)
  return True


def restore(
  workdir: str | os.PathLike[str],
  like: Any,
  shardings: Any,
  step: int | None = None,
) -> tuple[Any, Any]:
  """Restores a state onto devices, any number of them.

  Every file is verified before it is parsed, every leaf after it was read.

  Args:
    workdir: of the run to restore from.
    like: tree of shapes and dtypes, as of `jax.eval_shape`.
    shardings: tree of shardings as `like`, or one for all leaves.
    step: None for the newest sound one; a number for this one only.

  Returns:
    The state and its meta.

  Raises:
    errors.Missing: there is no checkpoint; errors.Gone: not this step.
    errors.Damaged: this step, or every step, is damaged.
    errors.Mismatch: paths, shapes or dtypes differ; nothing is ever cast.
  """
  return manifest.newest(
    workdir, lambda n: _load(workdir, n, like, shardings), step
  )


def restore_params(
  workdir: str | os.PathLike[str], step: int | None = None
) -> dict[str, Any]:
  """Reads the parameters alone as nested dicts of numpy arrays.

  Needs no mesh and no model; the optimizer's state is verified but not read.
  What is stored in whole numbers, with scales in `extra/scales` below the same
  paths (`lm.layers.compress`), is multiplied by them.

  Raises:
    errors.Missing: there is no checkpoint; errors.Gone: not this step.
    errors.Damaged: this step, or every step, is damaged.
  """
  return manifest.newest(workdir, lambda n: _load_params(workdir, n), step)


def _load(
  workdir: str | os.PathLike[str],
  step: int,
  like: Any,
  shardings: Any,
  content: dict[str, Any] | None = None,
) -> tuple[Any, Any]:
  """Restores one step, and verifies it unless given the manifest of that."""
  content = content or manifest.verify(workdir, step)
  have, want = _specs(content), host_arrays.specs(like)
  if lines := tree.diff(have, want):
    raise Mismatch(
      f'{manifest.directory(workdir, step)}: {len(lines)} leaves differ from'
      f' this configuration: {"; ".join(lines[:3])}: use the config it was'
      ' saved with',
      lines,
    )
  if isinstance(shardings, jax.sharding.Sharding):
    where = dict.fromkeys(want, shardings)
  else:
    where = dict(tree.paths(shardings))
  assert want.keys() == where.keys(), sorted(want.keys() ^ where.keys())
  if all(place.is_fully_addressable for place in where.values()):
    found = _read_whole(workdir, step, content, want, where)
  else:
    found = _read_parts(workdir, step, content, where)
  restored = [
    host_arrays.cooked(found[path], leaf) for path, leaf in tree.paths(like)
  ]
  return jax.tree.unflatten(jax.tree.structure(like), restored), content['meta']


def _read_whole(workdir, step, content, want, where) -> dict[str, jax.Array]:
  """Reads the leaves of a verified step onto devices of this process."""
  args = {
    path: ocp.ArrayRestoreArgs(
      restore_type=jax.Array,
      sharding=where[path],
      global_shape=spec.shape,
      dtype=host_arrays.dtype(spec.dtype),
    )
    for path, spec in want.items()
  }
  found = _read(workdir, step, content['leaves'], args)
  return {path: jax.device_put(found[path], where[path]) for path in want}


def _read_parts(workdir, step, content, where) -> dict[str, jax.Array]:
  """Reads what lies on this process of the leaves of a step."""
  state = manifest.directory(workdir, step) / 'state'
  records = content['leaves']
  found = {}
  with _reading(state.parent):
    stored = {k: v for k, v in records.items() if 0 not in v['shape']}
    host_arrays.check_files(state, stored)
    for path, record in records.items():
      folder = state / path.replace('/', '.')

      def file(key: str, folder: Path = folder) -> dict[str, Any]:
        return content['files'][f'state/{folder.name}/{key}']

      found[path] = sharded_arrays.read(folder, record, file, where[path])
  return found


def _load_params(workdir: str | os.PathLike[str], step: int) -> dict[str, Any]:
  records = {
    path: record
    for path, record in manifest.verify(workdir, step)['leaves'].items()
    if path.startswith(('params/', _SCALES))
  }
  if not records:
    raise Missing(
      f'{manifest.directory(workdir, step)}: has no params: use another run'
    )
  args = {k: ocp.RestoreArgs(restore_type=np.ndarray) for k in records}
  found = _read(workdir, step, records, args)
  for path in [path for path in found if path.startswith(_SCALES)]:
    name, scale = f'params/{path.removeprefix(_SCALES)}', found[path]
    whole = found.get(name, np.empty(()))
    # Nothing grows by a scale that a stranger has written.
    if whole.ndim != scale.ndim or not all(
      n in (1, m) for n, m in zip(scale.shape, whole.shape, strict=True)
    ):
      raise Damaged(
        f'{manifest.directory(workdir, step)}: leaf {path}{scale.shape} does'
        f' not fit {name}{whole.shape}: not written by lm; use another step'
      )
    found[name] = whole * scale
  return host_arrays.nest(found).get('params', {})


def _specs(content: dict[str, Any]) -> dict[str, host_arrays.Spec]:
  return {
    path: host_arrays.Spec(record['shape'], record['dtype'])
    for path, record in content['leaves'].items()
  }


def _read(
  workdir: str | os.PathLike[str],
  step: int,
  records: dict[str, dict[str, Any]],
  args: dict[str, Any],
) -> dict[str, Any]:
  """Reads leaves of a verified step, by path, and checks their hashes."""
  place = manifest.directory(workdir, step)
  with _reading(place):
    # Orbax refuses arrays without elements.
    stored = {k: v for k, v in records.items() if 0 not in v['shape']}
    found = {
      k: np.empty(v['shape'], host_arrays.dtype(v['dtype']))
      for k, v in records.items()
      if k not in stored
    }
    host_arrays.check_files(place / 'state', stored)
    with _orbax() as reader:
      read = reader.restore(
        (place / 'state').absolute(),
        args=ocp.args.PyTreeRestore(
          item=host_arrays.nest(dict.fromkeys(stored, 0)),
          restore_args=host_arrays.nest({k: args[k] for k in stored}),
          partial_restore=True,
        ),
      )
  found.update(tree.paths(read))
  for path, leaf in found.items():
    whole = isinstance(leaf, np.ndarray) or leaf.is_fully_addressable
    if (
      whole and host_arrays.sha256(np.asarray(leaf)) != records[path]['sha256']
    ):
      raise Damaged(f'{place}: leaf {path}: sha256 differs; use another step')
  return found


@contextlib.contextmanager
def _reading(place: Path) -> Iterator[None]:
  """Says in one line what parsers make of strange bytes."""
  try:
    yield
  except errors.Failure:
    raise
  except Exception as error:
    if not place.exists():
      raise Gone(
        f'{place}: deleted while it was read: use a newer step'
      ) from error
    raise Damaged(
      f'{place}: cannot be read: {error}; use another step'
    ) from error


def _orbax() -> ocp.Checkpointer:
  # Without copying: the arrays are our own already.
  registry = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
    (jax.Array, ocp.type_handlers.ArrayHandler()),
  )
  alone = ocp.options.MultiprocessingOptions()
  if jax.process_count() > 1:
    # Orbax would wait for the other processes by itself, without a deadline.
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      primary_host=here,
      active_processes={here},
      barrier_sync_key_prefix=f'lm-{here}',
    )
  return ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(
      type_handler_registry=registry,
      use_ocdbt=False,
      use_compression=False,
      multiprocessing_options=alone,
    ),
    multiprocessing_options=alone,
  )
