"""The steps in a work directory, and their manifests.

A work directory holds

    checkpoints/00000120/MANIFEST.json    step, meta, leaves, files, sha256
    checkpoints/00000120/state/...        the arrays, as orbax wrote them
    checkpoints/tmp.save.00000130.7/      being written, by lease holder 7
    checkpoints/tmp.delete.00000100.7/    being deleted
    checkpoints/damaged.00000110.7/       set aside after a fallback

A step gets its eight-digit name by one rename, when all of it is on disk, and
loses it by one rename, before any of it is deleted. So whatever has such a name
is whole. The manifest lists every file with its size and sha256, and protects
itself with one more.

Checkpoints of strangers are data. Nothing outside a step's own directory is
followed or read, and nothing is unpickled.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import json
import os
from pathlib import Path
import re
import sys
import time
import types
from typing import Any, TypeVar

from lm import errors
from lm.checkpoint import host_arrays, manifest_format, polling
from lm.runtime import faults, regular_files

NAME = 'MANIFEST.json'

T = TypeVar('T')


def root(workdir: str | os.PathLike[str]) -> Path:
  """Returns the directory that holds a run's checkpoints.

  Raises:
    errors.Remote: the work directory is an address, such as gs://bucket/run, or
      has a backslash somewhere in its path.
  """
  if re.match('[A-Za-z][A-Za-z0-9+.-]+:/', str(workdir)):
    raise errors.Remote(
      f'{workdir}: not a folder of this machine: give one, and copy it up, or'
      ' mount the bucket'
    )
  if '\\' in str(Path(workdir).absolute()):
    raise errors.Remote(
      f'{workdir}: has a backslash, which the library that stores arrays takes'
      ' for a slash: give another folder'
    )
  return Path(workdir) / 'checkpoints'


def directory(workdir: str | os.PathLike[str], step: int) -> Path:
  """Returns where one step lies."""
  return root(workdir) / f'{step:08d}'


def candidates(workdir: str | os.PathLike[str]) -> list[int]:
  """Lists the steps that have a directory, sound or not, oldest first."""
  return sorted(
    int(name)
    for name in _names(workdir)
    if _is_step(name) and (root(workdir) / name).is_dir()
  )


def steps(workdir: str | os.PathLike[str]) -> list[int]:
  """Lists the committed steps, oldest first; never half a step."""
  return [
    step
    for step in candidates(workdir)
    if (directory(workdir, step) / NAME).is_file()
  ]


def strays(workdir: str | os.PathLike[str]) -> list[str]:
  """Lists names among the checkpoints that lm has not given."""
  known = {f'{step:08d}' for step in candidates(workdir)}
  known.update(leftovers(workdir))
  return sorted(
    name
    for name in _names(workdir)
    if name not in known and not name.startswith('damaged.')
  )


def leftovers(workdir: str | os.PathLike[str]) -> list[str]:
  """Lists names of what a writer that was killed left unfinished."""
  # Orbax makes temporary directories of its own beside ours.
  return sorted(
    name
    for name in _names(workdir)
    if name.startswith('tmp.') or '.orbax-checkpoint-tmp' in name
  )


def write(
  place: Path,
  step: int,
  leaves: dict[str, dict[str, Any]],
  meta: Any,
  known: Mapping[str, dict[str, Any]] = types.MappingProxyType({}),
) -> dict[str, Any]:
  """Hashes and syncs all files of a step, and writes its manifest.

  Args:
    place: the step's directory, to which nobody writes any more.
    step: the number that the directory will be called.
    leaves: `{path: {'shape': [...], 'dtype': str, 'sha256': str}}`.
    meta: JSON; its item `data` is the position in the data.
    known: records of files that are synced, and hashed as they are on disk.

  Returns:
    The manifest. Its item `checkpoint` is one hash of step, data position and
    leaves: it is equal for equal bits, whatever the time, the mesh or the host.
  """
  # From disk, not from memory, so that a reader's first verification cannot be
  # the first time that anybody looks at these bytes.
  files = {
    name: known.get(name)
    or {
      'bytes': path.stat().st_size,
      'sha256': manifest_format.file_hash(path, sync=True),
    }
    for name, path in sorted(_walk(place))
  }
  content = {
    'format': manifest_format.VERSION,
    'step': step,
    'meta': meta,
    'leaves': leaves,
    'files': files,
    'checkpoint': manifest_format.content_hash(step, leaves, meta),
  }
  content['sha256'] = manifest_format.own_hash(content)
  # A directory without a manifest is no step: so it comes last, as a whole.
  fresh = place / f'{NAME}.tmp'
  with fresh.open('wb') as file:
    # The very bytes that were hashed: a reader compares them one by one.
    file.write(manifest_format.encode(content))
    file.flush()
    os.fsync(file.fileno())
  os.rename(fresh, place / NAME)
  # The names in a directory are data of the directory, and need a sync too.
  for folder in {place, *(path.parent for _, path in _walk(place))}:
    sync(folder)
  return content


def listing(place: Path) -> set[str]:
  """Names all files of a step, relative to its directory."""
  return {name for name, _ in _walk(place)}


def read(workdir: str | os.PathLike[str], step: int) -> dict[str, Any]:
  """Reads one step's manifest, and does not look at its other files.

  Raises:
    errors.Gone: there is no such step (any more).
    errors.Damaged: the manifest is missing, changed or not ours.
  """
  place = directory(workdir, step)
  path = place / NAME
  _check_no_link(workdir)
  try:
    if place.is_symlink():
      raise errors.Damaged(f'{place}: is a symlink, which is not followed')
    # One byte more than allowed tells a file that is too large.
    with regular_files.open_read(path) as file:
      text = file.read(manifest_format.LARGEST_BYTES + 1)
  except FileNotFoundError:
    # Either the whole step is gone, or it has lost its manifest.
    _check_there(workdir, step)
    raise errors.Damaged(
      f'{path}: missing: not a whole checkpoint of lm; use another step'
    ) from None
  except OSError as error:
    _check_there(workdir, step)
    raise errors.Damaged(f'{path}: {error.strerror}') from error
  cause = manifest_format.manifest_error(text, step)
  if cause:
    raise errors.Damaged(f'{path}: {cause}; use another step')
  return json.loads(text)


def verify(workdir: str | os.PathLike[str], step: int) -> dict[str, Any]:
  """Checks every byte of one step against its manifest, and returns that.

  A step whose bytes are right but whose numbers are not finite is not sound
  either: nothing can be trained or sampled from it.

  Reads all of it: 0.6 s per GB and core.

  Raises:
    errors.Gone: there is no such step (any more).
    errors.Damaged: a file is missing, extra, truncated or changed, or holds nan
      or an infinite number.
    errors.Storage: storage does not answer.
  """
  return polling.watched(
    lambda: _verify(workdir, step), directory(workdir, step)
  )


def _verify(workdir: str | os.PathLike[str], step: int) -> dict[str, Any]:
  content = read(workdir, step)
  listed = content['files']
  place = directory(workdir, step)
  try:
    files = dict(_walk(place))
    files.pop(NAME, None)
    # Both ways: a file that is not listed is refused like one that is missing.
    for name in sorted(listed.keys() | files.keys()):
      polling.reached(place / name)
      time.sleep(faults.seconds('slow_read'))
      cause = manifest_format.file_error(files.get(name), listed.get(name))
      if cause:
        raise errors.Damaged(f'{place / name}: {cause}; use another step')
    _check_finite(place, content)
  except errors.Damaged:
    # A step that is deleted meanwhile seems to lose files: that is no damage.
    _check_there(workdir, step)
    raise
  except OSError as error:
    _check_there(workdir, step)
    raise errors.Damaged(f'{place}: {error}; use another step') from error
  return content


def read_meta(
  workdir: str | os.PathLike[str], step: int | None = None
) -> dict[str, Any]:
  """Reads what was saved beside the arrays, such as the configuration.

  Args:
    workdir: of a run.
    step: whose manifest is read, without verifying its files. None verifies,
      and reads that of the newest sound step: the one that will be restored.

  Raises:
    errors.Missing: there is no checkpoint; errors.Gone: not this step.
    errors.Damaged: this step, or every step, is damaged.
  """
  if step is not None:
    return read(workdir, step)['meta']
  return newest(workdir, lambda n: verify(workdir, n))['meta']


def digest(workdir: str | os.PathLike[str], step: int) -> str:
  """Returns a step's content hash, which is equal for equal states.

  See `write`.

  Raises:
    errors.Gone: there is no such step (any more).
    errors.Damaged: its manifest is damaged.
  """
  return read(workdir, step)['checkpoint']


def newest(
  workdir: str | os.PathLike[str],
  use: Callable[[int], T],
  step: int | None = None,
) -> T:
  """Returns `use(step)` for the newest step for which it works.

  For each damaged step it prints one line on stderr, and tries the step before.

  Args:
    workdir: of a run.
    use: called with steps from new to old; raises `Damaged` for a bad one.
    step: uses this one only; None for the newest.

  Raises:
    errors.Missing: there is no checkpoint here.
    errors.Damaged: all are damaged; never a silent start from nothing.
  """
  if step is not None:
    return use(step)
  bad: dict[int, str] = {}
  # Listed again each time: a trainer saves and deletes steps meanwhile.
  while left := [n for n in candidates(workdir) if n not in bad]:
    try:
      return use(left[-1])
    except errors.Gone:
      continue
    except errors.Damaged as error:
      bad[left[-1]] = str(error)
      warn(f'{error}; trying the step before it')
  if not bad:
    raise errors.Missing(
      f'{root(workdir)}: no checkpoint here: check the path (--workdir,'
      ' init_from)'
    )
  causes = '; '.join(bad.values()).replace(f'{root(workdir)}/', '')
  raise errors.Damaged(
    f'{root(workdir)}: no sound step left: {", ".join(map(str, bad))} are'
    f' damaged ({causes}): bring back a copy, or remove them to start anew'
  )


@functools.lru_cache(maxsize=1000)
def warn(text: str) -> None:
  """Prints one line on stderr, unless it has printed the same line before."""
  print(f'lm: {" ".join(text.split())}', file=sys.stderr, flush=True)


def sync(folder: Path) -> None:
  """Makes the names in a directory survive a power cut."""
  fd = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def _names(workdir: str | os.PathLike[str]) -> list[str]:
  _check_no_link(workdir)
  try:
    return os.listdir(root(workdir))
  except (FileNotFoundError, NotADirectoryError):
    return []  # no run yet; anything else must not look like an empty run
  except OSError as error:
    raise errors.Storage(
      f'{root(workdir)}: cannot be listed: {error.strerror}: check the path'
    ) from error


def _check_finite(place: Path, content: dict[str, Any]) -> None:
  """Checks the numbers of a step, whose files are those of its manifest."""
  dtypes = {}
  for path, record in content['leaves'].items():
    try:
      host_arrays.dtype(record['dtype'])
    except TypeError as error:
      raise errors.Damaged(
        f'{place}: leaf {path}: {error}; use another step'
      ) from None
    dtypes[path.replace('/', '.')] = record['dtype']
  for name in content['files']:
    folder, _, chunk = name.removeprefix('state/').rpartition('/')
    # The header of an array, '.zarray', is the only other file beside chunks.
    if folder not in dtypes or chunk.startswith('.'):
      continue
    cause = host_arrays.file_error(place / name, dtypes[folder])
    if cause:
      raise errors.Damaged(f'{place / name}: {cause}; use another step')


def _is_step(name: str) -> bool:
  # '0000000000000009' would be step 9 twice: only the one form that lm writes.
  return bool(re.fullmatch('[0-9]{8,18}', name)) and f'{int(name):08d}' == name


def _check_no_link(workdir: str | os.PathLike[str]) -> None:
  if root(workdir).is_symlink():
    raise errors.Storage(
      f'{root(workdir)}: is a link, which could lead out of the run: put the '
      'folder there that it leads to'
    )


def _check_there(workdir: str | os.PathLike[str], step: int) -> None:
  """Raises `Gone` if the step's directory is not there."""
  if not os.path.lexists(directory(workdir, step)):
    have = ', '.join(map(str, candidates(workdir)[-5:])) or 'none'
    raise errors.Gone(
      f'{directory(workdir, step)}: no such step: never saved, or deleted since'
      f' to make room; there now: {have}'
    ) from None


def _walk(place: Path, prefix: str = '') -> Iterator[tuple[str, Path]]:
  """Yields `(relative name, path)` of everything that is not a directory."""
  with os.scandir(place) as entries:
    for entry in sorted(entries, key=lambda e: e.name):
      # A link to a directory is listed as a file, and refused as one.
      if entry.is_dir(follow_symlinks=False):
        yield from _walk(Path(entry.path), f'{prefix}{entry.name}/')
      else:
        yield prefix + entry.name, Path(entry.path)
