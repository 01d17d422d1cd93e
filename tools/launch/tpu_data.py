"""Prepared data of a run on a TPU VM slice: from a bucket or from here.

From a bucket each worker copies for itself. A folder of this machine is sent
file by file, and only files that a worker lacks.
"""

import contextlib
from pathlib import Path
import shlex

from lm.runtime import temporary
from tools.launch import commands, stage, tpu_workers

_FOLDER = 'lm-launch/data'  # below the home of a worker
_STAGE = 'cd lm-launch/src && ../venv/bin/python -m tools.launch.stage'
_TARGET = '../data'  # the same folder, from there
_SECONDS = 6 * 3600.0


def send(workers: tpu_workers.Workers, source: str) -> None:
  """Brings the data to all workers, as far as it is not there.

  Args:
    workers: where to.
    source: a folder of this machine, or gs://BUCKET/FOLDER.

  Raises:
    errors.Locked: a run is alive there, which reads its data.
    commands.Unreachable: it did not arrive.
  """
  workers.remote(f'{tpu_workers.SCRIPT} idle')
  if source.startswith('gs:'):
    words = shlex.join([source, _TARGET])
    workers.remote(f'{_STAGE} {words}', seconds=_SECONDS)
    return
  folder, dry_run = Path(source), workers.shell.dry_run
  with contextlib.ExitStack() as closing:
    place = '/tmp'
    if not dry_run:
      place = closing.enter_context(temporary.folder('lm-data-'))
    tar = f'{place}/lm-data.tar.gz'
    small = stage.small_files(folder)
    workers.shell.run(['tar', '-czf', tar, '-C', source, *small])
    workers.send(tar)
  workers.remote(f'mkdir -p {_FOLDER} && tar -xzf lm-data.tar.gz -C {_FOLDER}')
  names = _missing(workers)
  if dry_run:
    shards = stage.wanted(folder)
    names = [next(iter(shards))]
    print(f'# each of {len(shards)} files that a worker lacks, such as')
  for name in names:
    workers.send(str(folder / name), f'{_FOLDER}/{name}', _SECONDS)
  if names and (left := _missing(workers)):
    raise commands.Unreachable(
      f'{workers.name}: {len(left)} files of {source} did not arrive whole,'
      f' such as {left[0]}: run it again'
    )


def _missing(workers: tpu_workers.Workers) -> list[str]:
  """Asks all workers which files one of them lacks."""
  output = workers.remote(f'{_STAGE} --check {_TARGET}', seconds=_SECONDS)
  lines = output.splitlines()
  return sorted({x[8:] for x in lines if x.startswith('missing ')})
