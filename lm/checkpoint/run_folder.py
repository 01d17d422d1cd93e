"""The folder of a run: what stands there under the names that lm uses."""

import os
from pathlib import Path

from lm import errors
from lm.runtime import regular_files

_FOLDERS = (
  'checkpoints',
  'items',
  'profile',
  'read_locks',
  'stalls',
  'tensorboard',
  'wandb',
)
_FILES = (
  'config.json',
  'config.json.part',
  'contamination.json',
  'evals.jsonl',
  'evals.lock',
  'lease',
  'lease.lock',
  'metrics.jsonl',
  'metrics.jsonl.part',
  'record.json',
  'writers.json',
  'writers.json.part',
)


def check(workdir: str | os.PathLike[str]) -> None:
  """Refuses a folder in which a name of ours is a link, a pipe or a device.

  Nothing outside of a run's folder is read, written or deleted, whoever made
  it, and no program waits at it for ever. The folder itself may be a link,
  because its user names it.

  Raises:
    errors.Storage: names the first of them.
  """
  workdir = Path(workdir)
  wanted = [(workdir / name, 'file') for name in _FILES]
  wanted += [(workdir / name, 'folder') for name in _FOLDERS]
  for place, inside in (('items', 'folder'), ('read_locks', 'file')):
    if regular_files.kind(workdir / place) == 'folder':
      wanted += [(path, inside) for path in sorted((workdir / place).iterdir())]
  for path, kind in wanted:
    if (found := regular_files.kind(path)) not in (kind, None):
      raise errors.Storage(
        f'{path}: is a {found} and no {kind}, which could lead out of the run '
        'or never end: remove it, or copy what it leads to'
      )
