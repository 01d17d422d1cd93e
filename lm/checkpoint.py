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
"""

import json
import logging
import os
from pathlib import Path
import shutil
import threading
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lm import errors, faults, lease, leaves, manifest, pins, tree

Locked, Damaged, Storage = errors.Locked, errors.Damaged, errors.Storage
Missing, Gone, Mismatch = errors.Missing, errors.Gone, errors.Mismatch
steps, verify = manifest.steps, manifest.verify
digest, read_meta = manifest.digest, manifest.read_meta
pin, holder = pins.pin, lease.holder

# What orbax has to say reaches the user as our one line.
logging.getLogger('absl').addFilter(
  lambda record: '/orbax/checkpoint/' not in record.pathname
)


class Checkpointer:
  """The one writer of a work directory; use it in `with`."""

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    keep: int = 3,
    keep_every: int | None = None,
    deadline_seconds: float = 1800.0,
    beat_seconds: float = 10.0,
    stale_seconds: float = 60.0,
  ):
    """Prepares a writer; nothing is touched before `with`.

    Args:
      workdir: made if it is not there.
      keep: the newest sound steps to keep; two are kept in any case.
      keep_every: steps divisible by this are kept for ever; None for none.
      deadline_seconds: how long one save may take before it is an error.
      beat_seconds: as of `lease.Lease`.
      stale_seconds: as of `lease.Lease`.
    """
    self._workdir = Path(workdir)
    self._root = manifest.root(workdir)
    self._keep = max(2, keep)
    self._keep_every = keep_every
    self._deadline_seconds = deadline_seconds
    self._lease = lease.Lease(
      workdir, beat_seconds=beat_seconds, stale_seconds=stale_seconds
    )
    self._thread: threading.Thread | None = None
    self._saving = 0
    self._error: BaseException | None = None
    self._sound: set[int] = set()  # steps this process wrote or verified
    self._copies: dict[str, leaves.Leaf] = {}

  def __enter__(self) -> 'Checkpointer':
    """Takes the lease and clears away what a dead writer left unfinished.

    Raises:
      errors.Locked: another process trains here.
      errors.Storage: the directory cannot be written to.
    """
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
        pins.delete(self._root / name)
      if strays := manifest.strays(self._workdir):
        manifest.warn(f'{self._root}: ignored, not steps: {", ".join(strays)}')
    except BaseException:
      self._lease.__exit__()
      raise
    return self

  def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
    """Waits for the last save and gives the lease back."""
    try:
      self.wait()
    except BaseException as late:
      if error is None:
        raise
      error.add_note(f'and the last save failed: {late}')
    finally:
      self._lease.__exit__()

  def preflight(self, like: Any) -> None:
    """Checks, before any work, that a checkpoint of `like` has room.

    Raises:
      errors.Storage: it has not.
    """
    self._check_room(leaves.nbytes(like), 'a checkpoint')

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
    newest = max(manifest.candidates(self._workdir), default=-1)
    if step <= newest:
      raise ValueError(
        f'{self._root}: step {step} is not newer than step {newest}, which is'
        ' never overwritten: restore that one or use another workdir'
      )
    self._lease.check()
    self._check_room(leaves.nbytes(state), f'step {step}')
    self._copies = leaves.copy(state, self._copies)
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
    if not manifest.candidates(self._workdir):
      return None
    step, state, meta = manifest.newest(
      self._workdir, lambda n: (n, *_load(self._workdir, n, like, shardings))
    )
    self._lease.check()
    for bad in manifest.candidates(self._workdir):
      if bad > step:
        aside = self._root / f'damaged.{bad:08d}.{self._lease.token}'
        os.rename(manifest.directory(self._workdir, bad), aside)
        manifest.warn(f'{aside}: set aside; remove it when you have seen it')
    self._sound.add(step)
    return state, meta

  def _run(self, step: int, meta: dict[str, Any]) -> None:
    try:
      self._write(step, meta)
      try:
        self._retain()
      except (Storage, OSError) as error:
        # The step is safe; if room runs out, the next save says so.
        manifest.warn(f'{self._root}: old steps cannot be deleted: {error}')
    except Exception as error:
      self._error = self._explain(error, step)

  def _write(self, step: int, meta: dict[str, Any]) -> None:
    """Writes one step under another name and commits it by a rename."""
    # The token keeps a stopped and replaced writer out of our directories.
    tmp = self._root / f'tmp.save.{step:08d}.{self._lease.token}'
    try:
      self._lease.check()
      tmp.mkdir()
      arrays = {k: v.array for k, v in self._copies.items() if v.array.size}
      with _orbax() as writer:
        args = ocp.args.PyTreeSave(leaves.nest(arrays))
        writer.save((tmp / 'state').absolute(), args=args)
      records = {k: v.record() for k, v in self._copies.items()}
      time.sleep(faults.seconds('slow_save'))
      faults.strike('stop_in_save', step)
      faults.strike('die_in_save', step)
      content = manifest.write(tmp, step, records, meta)
      leaves.check_written(content)
      self._lease.check()
      os.rename(tmp, manifest.directory(self._workdir, step))
      manifest.sync(self._root)
      self._sound.add(step)
    except BaseException:
      pins.delete(tmp)
      raise

  def _explain(self, error: Exception, step: int) -> Exception:
    """Says in one line why step was not saved, if it is not our fault."""
    try:
      # A successor removes what we were writing: then that is the cause.
      self._lease.check()
    except Locked as fenced:
      return fenced
    cause = errors.refusal(error)
    if cause is None:
      return error
    need = sum(leaf.array.nbytes for leaf in self._copies.values())
    explained = Storage(
      f'{self._root}: step {step} not saved: {cause} (needs {need} bytes,'
      f' {shutil.disk_usage(self._root).free} free); older steps are intact:'
      ' make room'
    )
    explained.__cause__ = error
    return explained

  def _retain(self) -> None:
    """Deletes what is neither among the newest sound steps, nor pinned."""
    sound = 0
    for step in reversed(manifest.steps(self._workdir)):
      if sound < self._keep:
        sound += self._is_sound(step)
      elif not (self._keep_every and step % self._keep_every == 0):
        self._lease.check()
        trash = self._root / f'tmp.delete.{step:08d}.{self._lease.token}'
        if pins.remove(self._workdir, step, trash):
          pins.delete(trash, step)

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

  Raises:
    errors.Missing: there is no checkpoint; errors.Gone: not this step.
    errors.Damaged: this step, or every step, is damaged.
  """
  return manifest.newest(workdir, lambda n: _load_params(workdir, n), step)


def _load(
  workdir: str | os.PathLike[str], step: int, like: Any, shardings: Any
) -> tuple[Any, Any]:
  """Verifies and restores one step."""
  content = manifest.verify(workdir, step)
  have, want = _specs(content), leaves.specs(like)
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
  args = {
    path: ocp.ArrayRestoreArgs(
      restore_type=jax.Array,
      sharding=where[path],
      global_shape=spec.shape,
      dtype=leaves.dtype(spec.dtype),
    )
    for path, spec in want.items()
  }
  found = _read(workdir, step, content['leaves'], args)
  restored = [
    leaves.cooked(jax.device_put(found[path], where[path]), leaf)
    for path, leaf in tree.paths(like)
  ]
  return jax.tree.unflatten(jax.tree.structure(like), restored), content['meta']


def _load_params(workdir: str | os.PathLike[str], step: int) -> dict[str, Any]:
  records = {
    path: record
    for path, record in manifest.verify(workdir, step)['leaves'].items()
    if path.startswith('params/')
  }
  if not records:
    raise Missing(
      f'{manifest.directory(workdir, step)}: has no params: use another run'
    )
  args = {k: ocp.RestoreArgs(restore_type=np.ndarray) for k in records}
  found = _read(workdir, step, records, args)
  return leaves.nest(found).get('params', {})


def _specs(content: dict[str, Any]) -> dict[str, leaves.Spec]:
  return {
    path: leaves.Spec(record['shape'], record['dtype'])
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
  try:
    # Orbax refuses arrays without elements.
    stored = {k: v for k, v in records.items() if 0 not in v['shape']}
    found = {
      k: np.empty(v['shape'], leaves.dtype(v['dtype']))
      for k, v in records.items()
      if k not in stored
    }
    leaves.check_files(place / 'state', stored)
    with _orbax() as reader:
      read = reader.restore(
        (place / 'state').absolute(),
        args=ocp.args.PyTreeRestore(
          item=leaves.nest(dict.fromkeys(stored, 0)),
          restore_args=leaves.nest({k: args[k] for k in stored}),
          partial_restore=True,
        ),
      )
  except errors.Failure:
    raise
  except Exception as error:  # whatever parsers make of strange bytes
    if not place.exists():
      raise Gone(
        f'{place}: deleted while it was read: use a newer step'
      ) from error
    raise Damaged(
      f'{place}: cannot be read: {error}; use another step'
    ) from error
  found.update(tree.paths(read))
  for path, leaf in found.items():
    whole = isinstance(leaf, np.ndarray) or leaf.is_fully_addressable
    if whole and leaves.sha256(np.asarray(leaf)) != records[path]['sha256']:
      raise Damaged(f'{place}: leaf {path}: sha256 differs; use another step')
  return found


def _orbax() -> ocp.Checkpointer:
  # Without copying: the arrays are our own already.
  registry = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
    (jax.Array, ocp.type_handlers.ArrayHandler()),
  )
  return ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(
      type_handler_registry=registry, use_ocdbt=False, use_compression=False
    )
  )
