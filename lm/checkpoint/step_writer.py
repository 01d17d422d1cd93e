"""Writes one step of a run: arrays first, then its manifest, then its name.

A step is written into `tmp.save.STEP.TOKEN` and gets its name by one rename,
once everything in it is on disk and has been compared with what was in memory.
The token in the name is that of the lease, so that a writer that was stopped,
replaced and continued cannot touch what its successor writes.

Several processes write a step together, each its own shards, into a directory
that all of them see. Process 0 alone holds the lease, makes the directory and
renames it. What they write has the same content hash as what one process would
write of the same state.
"""

from collections.abc import Callable
import os
from pathlib import Path
import time
from typing import Any, TypeVar

import numpy as np

from lm import errors
from lm.checkpoint import (
  host_arrays,
  manifest,
  orbax_io,
  polling,
  read_locks,
  sharded_arrays,
)
from lm.checkpoint import (
  lease as lease_lib,
)
from lm.runtime import faults, process_group

T = TypeVar('T')


class StepWriter:
  """Copies states to host memory and writes them as steps, one by one."""

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    lease: lease_lib.Lease,
    group: process_group.ProcessGroup,
    deadline_seconds: float,
  ):
    """Prepares a writer.

    Args:
      workdir: of the run.
      lease: held by process 0; the other processes do not look at it.
      group: the processes that write together.
      deadline_seconds: how long the processes wait for each other.
    """
    self._workdir = workdir
    self._root = manifest.root(workdir)
    self._lease = lease
    self._group = group
    self._deadline_seconds = deadline_seconds
    self.files: dict[str, bytes] = {}  # by name: stored beside the arrays
    self._copies: dict[str, host_arrays.HostArray] = {}
    self._sharded: dict[str, sharded_arrays.ShardedArray] = {}

  def copy(self, state: Any) -> None:
    """Copies a state, or this process's shards of it, to host memory.

    Raises:
      ValueError: a leaf cannot be stored.
    """
    if self._group.count > 1:
      self._sharded = sharded_arrays.copy(state, self._sharded)
    else:
      self._copies = host_arrays.copy(state, self._copies)

  def write(self, step: int, meta: dict[str, Any], token: int) -> None:
    """Writes the state that was copied last, and commits it.

    Args:
      step: of the state.
      meta: JSON.
      token: of the lease.

    Raises:
      errors.Locked: another process has taken over.
      errors.NotFinite: the state holds nan or an infinite number.
      errors.Storage: what is on disk is not what was in memory, or another
        process has failed to write.
      OSError: the disk is full.
    """
    place = self._root / f'tmp.save.{step:08d}.{token}'
    try:
      if self._group.count > 1:
        self._write_sharded(place, step, meta)
      else:
        self._write_whole(place, step, meta)
    except BaseException:
      # Half a step must not fill a disk that may be full already.
      if self._group.leads:
        read_locks.delete(place)
      raise

  def _write_whole(self, place: Path, step: int, meta: dict[str, Any]) -> None:
    """Writes one step as the only process of a run."""
    for path, copy in self._copies.items():
      if not host_arrays.is_finite(copy.array):
        raise host_arrays.not_finite(path, step)
    self._make(place)
    # Orbax refuses arrays without elements; the manifest alone keeps them.
    arrays = {k: v.array for k, v in self._copies.items() if v.array.size}
    orbax_io.write(place / 'state', arrays)
    # Hashed in memory here, and on disk by `manifest.write`: a bit that flips
    # on the way between the two is found before the step counts.
    records = {k: v.record() for k, v in self._copies.items()}
    _inject_faults(step)
    content = manifest.write(place, step, records, meta)
    host_arrays.check_written(content)
    self._commit(place, step)

  def _make(self, place: Path) -> None:
    """Makes the directory of a step, and writes what is no array."""
    self._lease.check()
    place.mkdir()
    for name, content in self.files.items():
      (place / name).write_bytes(content)

  def _commit(self, place: Path, step: int) -> None:
    # The fence: a writer that was replaced while it wrote stops here. If it is
    # replaced between this check and the rename, the rename fails, because a
    # successor first deletes every directory that is called `tmp.`.
    self._lease.check()
    os.rename(place, manifest.directory(self._workdir, step))
    # From here on the step is there, also after a power cut.
    manifest.sync(self._root)

  def _write_sharded(
    self, place: Path, step: int, meta: dict[str, Any]
  ) -> None:
    """Writes one step together with the other processes, each its shards.

    Each process then reads some leaves back as a whole, with the shards of
    others. So the disk is verified, the work of hashing is shared, and no
    process ever holds more than one leaf.
    """
    stored = [k for k, v in self._sharded.items() if 0 not in v.shape]
    # Each round begins when all processes have finished the one before: nobody
    # writes into a directory that is not there, or reads half a file.
    self._round(step, 'begun', lambda: self._begin(place, stored))
    written = self._round(
      step, 'written', lambda: self._write_shards(place, step, stored)
    )
    _inject_faults(step)
    read = self._round(
      step, 'read back', lambda: self._read_back(place, stored)
    )
    self._round(
      step,
      'committed',
      lambda: self._commit_sharded(place, step, meta, written, read),
    )

  def _begin(self, place: Path, stored: list[str]) -> None:
    """Makes the directories of a step and of its leaves (process 0)."""
    if not self._group.leads:
      return
    self._make(place)
    # Orbax writes arrays of one element, whose shapes are then put right: so
    # the format stays orbax's without its barriers, which have no deadline.
    ones = {
      path: np.zeros((1,) * len(array.shape), host_arrays.dtype(array.dtype))
      for path, array in self._sharded.items()
      if path in stored
    }
    orbax_io.write(place / 'state', ones)
    for path in stored:
      sharded_arrays.write_header(_folder(place, path), self._sharded[path])

  def _write_shards(
    self, place: Path, step: int, stored: list[str]
  ) -> dict[str, str]:
    """Writes this process's shards; returns their sha256 in memory by file."""
    hashes = {}
    for path in stored:
      folder = _folder(place, path)
      if not all(
        map(host_arrays.is_finite, self._sharded[path].shards.values())
      ):
        raise host_arrays.not_finite(path, step)
      for name, sha256 in sharded_arrays.write(
        folder, self._sharded[path]
      ).items():
        hashes[f'state/{folder.name}/{name}'] = sha256
    return hashes

  def _read_back(self, place: Path, stored: list[str]) -> list[dict[str, Any]]:
    """Hashes this process's part of the leaves as they are on disk.

    Returns:
      The sha256 of whole leaves by path, and records of their files by name.
    """
    leaves, files = {}, {}
    # Every process sees the same list in the same order: they need not talk
    # about who reads what.
    for path in stored[self._group.index :: self._group.count]:
      folder = _folder(place, path)
      leaves[path], records = sharded_arrays.read_back(
        folder, self._sharded[path]
      )
      for name, record in records.items():
        files[f'state/{folder.name}/{name}'] = record
    return [leaves, files]

  def _commit_sharded(
    self,
    place: Path,
    step: int,
    meta: dict[str, Any],
    written: list[dict[str, str]] | None,
    read: list[list[dict[str, Any]]] | None,
  ) -> None:
    """Compares what all have written and read, and commits (process 0)."""
    if not self._group.leads:
      return
    assert written is not None and read is not None
    hashes = dict.fromkeys(self._sharded, host_arrays.EMPTY_SHA256)
    files: dict[str, dict[str, Any]] = {}
    for leaves, records in read:
      hashes |= leaves
      files |= records
    # `written` was hashed in memory and `read` on disk, often by another host.
    for name, sha256 in (pair for part in written for pair in part.items()):
      if files[name]['sha256'] != sha256:
        raise host_arrays.not_as_written(name, step)
    leaf_records = {
      path: {
        'shape': list(array.shape),
        'dtype': array.dtype,
        'sha256': hashes[path],
      }
      for path, array in self._sharded.items()
    }
    # A manifest lists what this host sees: it must see all files by now.
    if not polling.wait_until(lambda: files.keys() <= manifest.listing(place)):
      raise errors.Storage(
        f'{place}: does not show what other hosts have written there'
      )
    manifest.write(place, step, leaf_records, meta, files)
    self._commit(place, step)

  def _round(
    self, step: int, stage: str, work: Callable[[], T]
  ) -> list[T] | None:
    """Does a stage of a save on all processes, and ends it for all together.

    What fails on one process fails on all, before any of them goes on to the
    next stage.

    Returns:
      The results of all processes, on process 0; None on the others.

    Raises:
      errors.Storage: the work failed on another process.
      process_group.Lost: another process has ended, or does not answer.
    """
    result = failure = None
    try:
      result = work()
    except Exception as error:
      # Raised below: the others must hear of it first, or they would wait.
      failure = error
    text = failure and (errors.refusal(failure) or str(failure))
    key, seconds = f'step {step} {stage}', self._deadline_seconds
    answers = self._group.gather(key, [result, text], seconds)
    causes = [
      f'{self._group.name(process)}: {cause}'
      for process, (_, cause) in enumerate(answers or ())
      if cause
    ]
    # The others wait longer than process 0, which alone can say who is late.
    cause = self._group.share(f'{key} by all', causes[:1], seconds + 5)
    if failure is not None:
      raise failure
    if cause:
      raise errors.Storage(f'{self._root}: step {step} not saved: {cause[0]}')
    return None if answers is None else [result for result, _ in answers]


def _folder(place: Path, path: str) -> Path:
  """Returns where orbax puts a leaf."""
  return place / 'state' / path.replace('/', '.')


def _inject_faults(step: int) -> None:
  time.sleep(faults.seconds('slow_save'))
  faults.strike('stop_in_save', step)
  faults.strike('die_in_save', step)
