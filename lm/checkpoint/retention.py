"""Which steps of a run are kept, and how the others are deleted.

Deletion is never left to orbax, which empties a directory that still has the
name of a step. Here a step loses its name by one rename before its first file
is deleted, and not at all while a reader has locked it.
"""

from collections.abc import Collection, Mapping
import functools
import os
from typing import Any

from lm import errors
from lm.checkpoint import lease as lease_lib
from lm.checkpoint import manifest, polling, read_locks


def is_healthy(meta: Mapping[str, Any]) -> bool:
  """Tells by its meta whether a step was saved while no update was dropped."""
  return not meta.get('dropped', {}).get('in_a_row', 0)


class Retention:
  """Deletes old steps and sets damaged ones aside, on process 0 alone."""

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    lease: lease_lib.Lease,
    keep: int,
    keep_every: int | None,
  ):
    """Prepares it; nothing is deleted yet.

    Args:
      workdir: of the run.
      lease: which must be held while a method is called.
      keep: how many of the newest sound steps to keep, at least two.
      keep_every: steps divisible by this are kept for ever; None for none.
    """
    self._workdir = workdir
    self._root = manifest.root(workdir)
    self._lease = lease
    # Two at least: the newest may turn out to be damaged.
    self._keep = max(2, keep)
    self._keep_every = keep_every
    self._sound: set[int] = set()

  def mark_sound(self, step: int) -> None:
    """Notes that this process has written or verified a step."""
    self._sound.add(step)

  def delete_old(self, kept: Collection[int | None]) -> None:
    """Deletes what is neither new, nor kept for ever, nor locked by a reader.

    Args:
      kept: steps that are kept in any case.

    Raises:
      errors.Locked: another process has taken over.
      errors.Storage: a step cannot be deleted.
    """
    sound = 0
    for step in reversed(manifest.steps(self._workdir)):
      if sound < self._keep:
        sound += self._is_sound(step)
      elif step not in kept and not (
        self._keep_every and step % self._keep_every == 0
      ):
        self._delete(step)

  def delete_newer(self, step: int) -> None:
    """Deletes all steps that are newer than one.

    Raises:
      errors.Storage: a reader has locked one for too long.
    """
    # The newest goes first: after a kill, the same steps are left to delete.
    for newer in reversed(manifest.steps(self._workdir)):
      if newer > step and not polling.wait_until(
        functools.partial(self._delete, newer)
      ):
        raise errors.Storage(
          f'{self._root}: step {newer} is being read, and goes since step '
          f'{step} is better: start the same command again'
        )

  def set_aside_newer(self, step: int) -> None:
    """Renames what is newer than the step that a run resumes from.

    It is damaged, or the run would have resumed from it. Its number is free to
    be saved again, and its bytes stay for whoever wants to look at them.
    """
    for bad in manifest.candidates(self._workdir):
      if bad > step:
        self._lease.check()
        target = self._root / f'damaged.{bad:08d}.{self._lease.token}'
        os.rename(manifest.directory(self._workdir, bad), target)
        manifest.warn(f'{target}: set aside; remove it when you have seen it')
    self.mark_sound(step)

  def _delete(self, step: int) -> bool:
    """Deletes a step; returns False if a reader has locked it."""
    trash = self._root / f'tmp.delete.{step:08d}.{self._lease.token}'
    removed = read_locks.remove(self._workdir, step, trash, self._lease.check)
    if removed:
      read_locks.delete(trash, step)
    return removed

  def _is_sound(self, step: int) -> bool:
    # Each step is verified once by each process: steps of an earlier process
    # cost a read, and without it a damaged step could push the last sound one
    # out.
    if step not in self._sound:
      try:
        manifest.verify(self._workdir, step)
      except (errors.Damaged, errors.Gone) as error:
        manifest.warn(f'{error}; it is not counted among those to keep')
        return False
      self._sound.add(step)
    return True
