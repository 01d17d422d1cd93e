"""Checkpoints: saved in the background, verified byte by byte, one writer.

    checkpoint.save(workdir, 100, {'params': params})      # in a notebook
    params = checkpoint.restore_params(workdir)            # anywhere

    with checkpoint.Checkpointer(workdir) as saver:        # in a training loop
      state, meta = saver.restore(like, shardings) or (fresh(), {})
      ...
      saver.save(step, state, meta)

The promise: a process may be killed at any instant, on any host, and what was
committed stays readable and right. This is the protocol that keeps it.

**What is on disk.** A work directory looks like this:

    workdir/lease                           who may write
    workdir/read_locks/                     which steps are being read
    workdir/checkpoints/00000120/           a committed step
      MANIFEST.json                         step, meta, leaves, files, hashes
      state/...                             the arrays, as plain zarr
    workdir/checkpoints/tmp.save.00000130.7/     being written under token 7
    workdir/checkpoints/tmp.delete.00000100.7/   being deleted under token 7
    workdir/checkpoints/damaged.00000110.7/      set aside under token 7

A directory whose name is a number of eight digits is a whole step. It gets this
name by one rename after its last byte is on disk, and loses it by one rename
before its first file is deleted.

**How a step is written.** (1) The training loop waits until the state is copied
to host memory; it may then donate the state and go on. A thread does the rest.
(2) The lease is checked, and `tmp.save.STEP.TOKEN` is made. (3) The arrays are
written there. (4) Every file is synced and hashed as it is on disk, and the
manifest, which lists these hashes and protects itself with one more, is written
last. (5) The hashes of the files are compared with the hashes of the arrays in
memory. (6) The lease is checked again, the directory is renamed to its number,
and its parent is synced. (7) Steps that are too old are deleted.

**What a kill leaves.** Before (6), a directory whose name begins with `tmp.`,
which no reader looks at and which the next writer removes; the run goes on from
the step before. After (6), the step. During a deletion, a `tmp.delete.`
directory, which the next writer removes. Nothing has to be repaired by hand.

**Who may write: the lease and its fence.** The lease is a file that its holder
keeps under `flock`, which the kernel frees when the holder dies, and touches
every few seconds, as a heartbeat. A second trainer is refused while the holder
lives. The holder counts as dead when the kernel has freed its lock, which only
the same host can see, or when its heartbeat is a minute old and stays the same
for two and a half beats more: then it is on another host or stands still. A
lease that cannot be read has a living owner if it is locked, and is watched for
two and a half beats if it is not. What a lease says never lengthens a wait.

Whoever takes over puts a new file in place of the old, with a token that is one
higher. A process that was stopped, replaced and continued finds at its next
check that the file at the path is no longer its own. This is the fence: it
writes nothing more: no step, no line of metrics, no config. The lease is
checked before every step, before every line, before every rename and before
every deletion. The token is part of every temporary name, so that the old
writer and the new one never touch the same directory. It never comes again,
even if the lease is deleted: the length of `lease.lock` and the names in
`checkpoints` count it too. A process that stops between a check and the write
that follows writes into a file that its successor has replaced or deleted; only
the rename that begins a deletion has no such second line.

**Who may read: everybody.** Readers take no lease. They verify every file
against the manifest before any of it is parsed. Without a lock, a step may
vanish while it is read, which is the error `errors.Gone`; wrong bytes are never
returned. A read lock keeps a step from being deleted for up to an hour. Locking
and deleting exclude each other, so a step is either locked or already gone.

**Damage.** A step that does not fit its manifest costs one line on stderr, and
the step before it is used. A trainer that resumes renames the damaged one to
`damaged.`, so that its number is free again. If no step is sound, that is an
error, and never a silent start from nothing.

**Several processes** write one step together, each its own shards of the
arrays, into a directory that all of them see. Process 0 alone holds the lease,
makes the directory, commits and deletes. All processes agree after every stage:
what fails on one fails on all. Before the commit, each reads back and hashes
some of the arrays, so that the disk is verified and the work is shared. The
content hash of a step is the same for the same bits, however many processes,
devices or hosts have written them.

**Buckets** have no renames and no locks. A run trains in a local folder, and a
thread uploads each step with its manifest last; see `mirror`, `bucket` and
`bucket_lease`.
"""

from lm.checkpoint.checkpointer import Checkpointer, save
from lm.checkpoint.lease import holder
from lm.checkpoint.manifest import digest, read_meta, steps, verify
from lm.checkpoint.read_locks import read_lock
from lm.checkpoint.retention import is_healthy
from lm.checkpoint.run import (
  CHANGEABLE_KEYS,
  RestoredRun,
  check_same_config,
  checked_tokenizer,
  enclosed,
  initial_params,
  restore_run,
  tokenizer_and_model,
  tokenizer_path,
)
from lm.checkpoint.step_reader import restore, restore_params

__all__ = [
  'CHANGEABLE_KEYS',
  'Checkpointer',
  'RestoredRun',
  'check_same_config',
  'checked_tokenizer',
  'digest',
  'enclosed',
  'holder',
  'initial_params',
  'is_healthy',
  'read_lock',
  'read_meta',
  'restore',
  'restore_params',
  'restore_run',
  'save',
  'steps',
  'tokenizer_and_model',
  'tokenizer_path',
  'verify',
]
