"""The one writer of a work directory: it saves, resumes and cleans up.

    with checkpointer.Checkpointer(workdir, keep=3) as saver:
      saver.preflight(like)
      state, meta = saver.restore(like, shardings) or (fresh(), {})
      ...
      saver.save(step, state, {'config': ..., 'data': ...})

The package's docstring explains the protocol. Here are its parts in the order
of a run: take the lease, clear away, resume, save in the background, delete
old steps, give the lease back. `step_writer` writes a step, `retention` deletes
steps, `step_reader` reads them.
"""

from collections.abc import Callable, Mapping
import functools
import json
import math
import os
from pathlib import Path
import threading
import time
from typing import Any

from lm import errors
from lm.checkpoint import (
  host_arrays,
  lease,
  manifest,
  polling,
  read_locks,
  retention,
  room,
  run_folder,
  step_reader,
  step_writer,
)
from lm.runtime import process_group, regular_files

# How long a process that fails waits for a save: all processes of a run are to
# end within half a minute.
_LAST_SAVE_SECONDS = 15.0


class Checkpointer:
  """The one writer of a work directory; use it in `with`.

  Attributes:
    workdir: of the run.
    leads: whether this process is the one that writes the folder's files.
    best: a step that is kept beside the newest; None for none.
    healthy: the step that a run would go back to, which is kept too.
  """

  best: int | None = None
  healthy: int | None = None

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    keep: int = 3,
    keep_every: int | None = None,
    group: process_group.ProcessGroup | None = None,
    deadline_seconds: float = 1800.0,
    grace_seconds: float = math.inf,
    beat_seconds: float = 10.0,
    stale_seconds: float = 60.0,
  ):
    """Prepares a writer; nothing is touched before `with`.

    Args:
      workdir: made if it is not there.
      keep: how many of the newest sound steps to keep, at least two.
      keep_every: steps divisible by this are kept for ever; None for none.
      group: the processes that save together, which all make the same calls;
        None for this one alone.
      deadline_seconds: how long one save may take before it is an error.
      grace_seconds: how long one may take when the run is stopped; a save that
        takes more than half of it costs one warning.
      beat_seconds: time between heartbeats, see `lease.Lease`.
      stale_seconds: age of a dead heartbeat, see `lease.Lease`.
    """
    self.workdir = Path(workdir)
    self._root = manifest.root(workdir)
    self._group = group or process_group.alone()
    self.leads = self._group.leads
    self._deadline_seconds = deadline_seconds
    self._grace_seconds = grace_seconds
    self._lease = lease.Lease(
      workdir, beat_seconds=beat_seconds, stale_seconds=stale_seconds
    )
    self._retention = retention.Retention(
      workdir, self._lease, keep, keep_every
    )
    self._writer = step_writer.StepWriter(
      workdir, self._lease, self._group, deadline_seconds
    )
    self._token = 0  # of the lease, which only process 0 holds
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None  # of the save in the background
    self._saving = 0  # its step
    self._bytes = 0  # of its state

  def __enter__(self) -> 'Checkpointer':
    """Takes the lease and clears away what a dead writer left unfinished.

    Raises:
      errors.Locked: another process trains here.
      errors.Storage: the directory cannot be written to, or is not the one
        that process 0 has.
    """
    if self._group.leads:
      self._take_lease()
    self._token = self._group.share('lease', self._lease.token, 300.0)
    if not self._group.leads:
      self._check_shared()
    return self

  def _take_lease(self) -> None:
    run_folder.check(self.workdir)
    try:
      self._root.mkdir(parents=True, exist_ok=True)
      # A disk that cannot be written to must be found before hours of work.
      probe = self._root / f'tmp.probe.{os.getpid()}'
      probe.write_bytes(b'?')
      probe.unlink()
      self._lease.__enter__()
    except OSError as error:
      raise errors.Storage(
        f'{self.workdir}: cannot be written to: {error.strerror}: make it'
        ' writable or use another workdir'
      ) from error
    try:
      # Only under the lease: before, a living writer may be at work in them.
      for name in manifest.leftovers(self.workdir):
        read_locks.delete(self._root / name)
      if strays := manifest.strays(self.workdir):
        manifest.warn(f'{self._root}: ignored, not steps: {", ".join(strays)}')
    except BaseException:
      self._lease.__exit__()
      raise

  def _check_shared(self) -> None:
    """Checks that this process sees the folder of process 0, by its lease."""
    if not polling.wait_until(lambda: lease.token(self.workdir) == self._token):
      raise errors.Storage(
        f'{self.workdir}: on {self._group.name(self._group.index)} this is not'
        ' the folder of process 0: use storage that all hosts share'
      )

  def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
    """Waits for the last save and gives the lease back."""
    try:
      if error is not None and self._group.count > 1 and self._thread:
        # The save may wait for a process that will never answer again.
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

  def check(self) -> None:
    """Makes sure that this process may still write into the run's folder.

    Raises:
      errors.Locked: another process has taken over.
    """
    if self._group.leads:
      self._lease.check()

  def store(self, name: str, content: bytes) -> None:
    """Writes a file of the run's folder, as a whole or not at all.

    Raises:
      errors.Locked: another process has taken over.
      errors.Storage: the disk is full or read only.
    """
    self._lease.check()
    part = self._root / f'tmp.{name}.{self._lease.token}'
    try:
      with regular_files.writing(self.workdir / name):
        part.write_bytes(content)
        self._lease.check()
        # If this process is replaced right here, its successor has deleted
        # `part` and nothing is renamed; see `StepWriter`.
        os.rename(part, self.workdir / name)
    except (OSError, errors.Storage):
      self._lease.check()
      raise
    finally:
      part.unlink(missing_ok=True)

  def preflight(self, like: Any) -> None:
    """Checks, before any work, that a checkpoint of `like` has room.

    Raises:
      errors.Storage: it has not.
    """
    if self._group.leads:
      room.check(self._root, host_arrays.nbytes(like), 'a checkpoint')

  def meta(self) -> Any | None:
    """Reads what was saved beside the newest sound step; None without steps.

    Raises:
      errors.Damaged: every step is damaged.
    """
    meta = None
    if self._group.leads and manifest.steps(self.workdir):
      meta = manifest.read_meta(self.workdir)
    return self._group.share('meta', meta, self._deadline_seconds)

  def enclose(self, files: Mapping[str, bytes]) -> None:
    """Adds files to every step that is saved from now on, by their names."""
    self._writer.files = dict(files)

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
    self.wait()  # one save at a time; and its error is not lost
    began = time.monotonic()
    try:
      meta = json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError) as error:
      raise ValueError(f'meta of step {step} is not JSON: {error}') from None
    self._bytes = host_arrays.nbytes(state)
    if self._group.leads:
      newest = max(manifest.candidates(self.workdir), default=-1)
      if step <= newest:
        raise ValueError(
          f'{self._root}: step {step} is not newer than step {newest}, which is'
          ' never overwritten: restore that one or use another workdir'
        )
      self._lease.check()
      room.check(self._root, self._bytes, f'step {step}')
    self._writer.copy(state)
    self._saving = step
    # A daemon, so that storage that hangs cannot keep the process alive.
    kept = {self.best, self.healthy}
    work = functools.partial(self._run, step, meta, began, kept)
    self._thread = threading.Thread(target=work, name='save', daemon=True)
    self._thread.start()

  def wait(self) -> None:
    """Blocks until what was saved is committed.

    Raises:
      errors.NotFinite: the state holds nan or an infinite number.
      errors.Storage: the save failed, or is not done at the deadline.
      errors.Locked: another process has taken over meanwhile.
    """
    if self._thread is not None:
      thread, self._thread = self._thread, None
      thread.join(self._deadline_seconds)
      if thread.is_alive():
        raise errors.Storage(
          f'{self._root}: saving step {self._saving} has not finished in'
          f' {self._deadline_seconds:g} s: storage does not answer; check it'
        )
    error, self._error = self._error, None
    if error is not None:
      raise error

  def restore(self, like: Any, shardings: Any) -> tuple[Any, Any] | None:
    """Restores the newest sound step.

    Newer steps that are damaged are set aside, so that their numbers can be
    saved again.

    Args:
      like: tree of shapes and dtypes, such as `jax.eval_shape` returns.
      shardings: tree of shardings with the structure of `like`, or one sharding
        for all leaves.

    Returns:
      The state and its meta; None if there is no step at all.

    Raises:
      errors.Damaged: every step is damaged.
      errors.Mismatch: paths, shapes or dtypes differ; nothing is ever cast.
    """
    if self._group.count > 1:
      return self._restore_together(like, shardings)
    if not manifest.candidates(self.workdir):
      return None
    step, state, meta = manifest.newest(
      self.workdir,
      lambda n: (n, *step_reader.load(self.workdir, n, like, shardings)),
    )
    self._retention.set_aside_newer(step)
    return state, meta

  def restore_where(
    self, suits: Callable[[dict[str, Any]], bool], like: Any, shardings: Any
  ) -> tuple[Any, Any] | None:
    """Restores the newest sound step whose meta suits; newer ones stay.

    Args:
      suits: tells by a step's meta whether to restore it.
      like, shardings: see `restore`.

    Returns:
      The state and its meta; None if no sound step suits.

    Raises:
      errors.Mismatch: see `restore`.
    """
    self.wait()
    step = None
    if self._group.leads:
      for n in reversed(manifest.steps(self.workdir)):
        try:
          if suits(manifest.read(self.workdir, n)['meta']):
            manifest.verify(self.workdir, n)
            step = n
            break
        except (errors.Damaged, errors.Gone) as error:
          manifest.warn(f'{error}; trying the step before it')
    return self._load_shared(step, like, shardings)

  def _restore_together(
    self, like: Any, shardings: Any
  ) -> tuple[Any, Any] | None:
    """Restores on all processes the step that process 0 has verified."""
    step = None
    if self._group.leads and manifest.candidates(self.workdir):
      content = manifest.newest(
        self.workdir, lambda n: manifest.verify(self.workdir, n)
      )
      step = content['step']
      self._retention.set_aside_newer(step)
    return self._load_shared(step, like, shardings)

  def _load_shared(
    self, step: int | None, like: Any, shardings: Any
  ) -> tuple[Any, Any] | None:
    """Restores on all processes the step that process 0 has verified."""
    step = self._group.share('restore', step, self._deadline_seconds)
    if step is None:
      return None
    # Process 0 has read every byte once; each process verifies again the chunks
    # that it reads.
    content = manifest.read(self.workdir, step)
    return step_reader.load(self.workdir, step, like, shardings, content)

  def end_at(self, step: int | None) -> None:
    """Deletes what is newer than a step, the run's last; None: it goes on.

    Raises:
      errors.Storage: a reader has locked a newer step for too long.
    """
    if step is None:
      return
    self.wait()
    if self._group.leads:
      self._retention.delete_newer(step)
    self._group.share('ended', step, self._deadline_seconds)

  def _run(
    self, step: int, meta: dict[str, Any], began: float, kept: set[int | None]
  ) -> None:
    """Saves in the background; what fails is raised by `wait`."""
    try:
      self._writer.write(step, meta, self._token)
      self._retention.mark_sound(step)
      self._warn_if_slow(step, time.monotonic() - began)
      try:
        if self._group.leads:
          self._retention.delete_old(kept)
      except (errors.Storage, OSError) as error:
        # The step is safe; if room runs out, the next save says so.
        manifest.warn(f'{self._root}: old steps cannot be deleted: {error}')
    except Exception as error:
      try:
        self._error = self._explain(error, step)
      except Exception as late:
        # Storage that has failed may fail again when it is asked why.
        error.add_note(f'and its cause was not found: {late}')
        self._error = error

  def _warn_if_slow(self, step: int, seconds: float) -> None:
    """Warns once, while there is time, that SIGTERM may lose steps."""
    if self._group.leads and seconds > self._grace_seconds / 2:
      manifest.warn(
        f'{self._root}: saving step {step} took {seconds:.1f} s, over half of'
        f' grace_seconds={self._grace_seconds:g}: a run that is stopped may not'
        ' save in time; set it to what the scheduler grants, less five'
      )
      self._grace_seconds = math.inf

  def _explain(self, error: Exception, step: int) -> Exception:
    """Says in one line why a step was not saved, unless it is a bug."""
    try:
      # A successor removes what we were writing: then that is the cause.
      if self._group.leads:
        self._lease.check()
    except errors.Locked as fenced:
      return fenced
    return room.explain(error, self._root, step, self._bytes)


def save(
  workdir: str | os.PathLike[str],
  step: int,
  state: Any,
  meta: dict[str, Any] | None = None,
  *,
  keep: int = 3,
) -> None:
  """Saves one step, and returns when it is committed.

  This is for notebooks and tools. A training loop keeps one `Checkpointer`
  open, which saves in the background and keeps other trainers away.

  Args:
    workdir: made if it is not there.
    step: newer than every step already there.
    state: tree of arrays. `restore_params` reads what is at `params` in it.
    meta: JSON, which `read_meta` returns.
    keep: how many of the newest sound steps to keep, at least two.

  Raises:
    ValueError: the step is not newer, or meta is not JSON.
    errors.NotFinite: the state holds nan or an infinite number.
    errors.Storage: the folder cannot be written to, or the disk is full.
    errors.Locked: another process trains here.
  """
  with Checkpointer(workdir, keep=keep) as saver:
    saver.save(step, state, meta or {})
