"""What a checkpoint on disk is, and whether its bytes are still right.

A work directory holds

    checkpoints/00000120/MANIFEST.json    step, meta, leaves, files, sha256
    checkpoints/00000120/state/...        the arrays, as orbax wrote them
    checkpoints/tmp.save.00000130.7/      being written, by lease holder 7
    checkpoints/tmp.delete.00000100.7/    being deleted
    checkpoints/damaged.00000110/         set aside after a fallback

A step gets its eight-digit name by one rename, when all of it is on disk, and
loses it by one rename, before any of it is deleted: whatever has such a name
is whole. The manifest lists every file with its size and sha256, and protects
itself with one more. Everything here is standard library: readers need no JAX.

Checkpoints of strangers are data. Nothing outside a step's own directory is
followed or read, and nothing is unpickled.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import hashlib
import json
import os
from pathlib import Path, PurePosixPath
import re
import stat
import sys
import types
from typing import Any, TypeVar

from lm import errors

NAME = 'MANIFEST.json'
_LARGEST_BYTES = 1 << 26  # a manifest of 100,000 leaves has 25 MB
_FIELDS = {'format', 'step', 'meta', 'leaves', 'files', 'checkpoint', 'sha256'}
_FORMAT = 1

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
  """Lists the committed steps, oldest first; never one half there."""
  return [
    step
    for step in candidates(workdir)
    if (directory(workdir, step) / NAME).is_file()
  ]


def strays(workdir: str | os.PathLike[str]) -> list[str]:
  """Lists names among the checkpoints that do not belong there."""
  known = {f'{step:08d}' for step in candidates(workdir)}
  known.update(leftovers(workdir))
  return sorted(
    name
    for name in _names(workdir)
    if name not in known and not name.startswith('damaged.')
  )


def leftovers(workdir: str | os.PathLike[str]) -> list[str]:
  """Lists names of what a writer that was killed left unfinished."""
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
  """Hashes and syncs all files under `place` and writes its manifest.

  Args:
    place: a directory that nobody writes to any more.
    step: the step it will be known by.
    leaves: `{path: {'shape': [...], 'dtype': str, 'sha256': str}}`.
    meta: JSON; its item `data` says where in the data the step stands.
    known: records of files that are synced and were hashed on disk already.

  Returns:
    The manifest. Its `checkpoint` is one hash over step, data position and
    leaves: equal for equal bits, whatever the time, mesh or host.
  """
  files = {
    name: known.get(name)
    or {'bytes': path.stat().st_size, 'sha256': _sha256(path, sync=True)}
    for name, path in sorted(_walk(place))
  }
  content = {
    'format': _FORMAT,
    'step': step,
    'meta': meta,
    'leaves': leaves,
    'files': files,
    'checkpoint': content_hash(step, leaves, meta),
  }
  content['sha256'] = hashlib.sha256(_encode(content)).hexdigest()
  fresh = place / f'{NAME}.tmp'
  with fresh.open('wb') as file:
    file.write(_encode(content))
    file.flush()
    os.fsync(file.fileno())
  os.rename(fresh, place / NAME)
  for folder in {place, *(path.parent for _, path in _walk(place))}:
    sync(folder)
  return content


def listing(place: Path) -> set[str]:
  """Names all files of a step, relative to its directory."""
  return {name for name, _ in _walk(place)}


def content_hash(step: int, leaves: dict[str, Any], meta: Any) -> str:
  """Hashes what training continues from: step, data position and leaves."""
  data = meta.get('data') if isinstance(meta, dict) else None
  return hashlib.sha256(
    _encode({'step': step, 'data': data, 'leaves': leaves})
  ).hexdigest()


def read(workdir: str | os.PathLike[str], step: int) -> dict[str, Any]:
  """Reads one step's manifest; says nothing yet about the arrays' bytes.

  Raises:
    errors.Gone: there is no such step (any more).
    errors.Damaged: the manifest is missing, changed or not ours.
  """
  place = directory(workdir, step)
  path = place / NAME
  try:
    if place.is_symlink():
      raise errors.Damaged(f'{place}: is a symlink, which is not followed')
    with _open(path) as file:
      text = file.read(_LARGEST_BYTES + 1)
  except FileNotFoundError:
    _check_there(workdir, step)
    raise errors.Damaged(
      f'{path}: missing: not a whole checkpoint of lm; use another step'
    ) from None
  except OSError as error:
    _check_there(workdir, step)
    raise errors.Damaged(f'{path}: {error.strerror}') from error
  cause = _wrong(text, step)
  if cause:
    raise errors.Damaged(f'{path}: {cause}; use another step')
  return json.loads(text)


def verify(workdir: str | os.PathLike[str], step: int) -> dict[str, Any]:
  """Checks every byte of one step against its manifest, and returns that.

  Reads all of it: 0.6 s per GB and core.

  Raises:
    errors.Gone: there is no such step (any more).
    errors.Damaged: a file is missing, extra, truncated or changed.
  """
  content = read(workdir, step)
  listed = content['files']
  place = directory(workdir, step)
  try:
    found = dict(_walk(place))
    found.pop(NAME, None)
    for name in sorted(listed.keys() | found.keys()):
      cause = _wrong_file(name, found.get(name), listed.get(name))
      if cause:
        raise errors.Damaged(f'{place / name}: {cause}; use another step')
  except errors.Damaged:
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
    step: of which nothing but the manifest is read; None verifies, and takes
      the newest sound step, which is the one that will be restored.

  Raises:
    errors.Missing: there is no checkpoint; errors.Gone: not this step.
    errors.Damaged: this step, or every step, is damaged.
  """
  if step is not None:
    return read(workdir, step)['meta']
  return newest(workdir, lambda n: verify(workdir, n))['meta']


def digest(workdir: str | os.PathLike[str], step: int) -> str:
  """Returns the hash that is equal for equal states; see `write`.

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

  A damaged step costs one line on stderr, and the one before it is tried.

  Args:
    workdir: of a run.
    use: called with steps from new to old; raises `Damaged` for a bad one.
    step: this one only, without falling back.

  Raises:
    errors.Missing: there is no checkpoint here.
    errors.Damaged: all are damaged; never a silent start from nothing.
  """
  if step is not None:
    return use(step)
  bad: dict[int, str] = {}
  while left := [n for n in candidates(workdir) if n not in bad]:
    try:
      return use(left[-1])
    except errors.Gone:
      continue  # its owner deletes old steps while we look: look again
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
  """Prints one line on stderr, the first time it is asked to."""
  print(f'lm: {" ".join(text.split())}', file=sys.stderr, flush=True)


def sync(folder: Path) -> None:
  """Makes the names in a directory survive a power cut."""
  fd = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def _names(workdir: str | os.PathLike[str]) -> list[str]:
  try:
    return os.listdir(root(workdir))
  except (FileNotFoundError, NotADirectoryError):
    return []
  except OSError as error:
    raise errors.Storage(
      f'{root(workdir)}: cannot be listed: {error.strerror}: check the path'
    ) from error


def _is_step(name: str) -> bool:
  return bool(re.fullmatch('[0-9]{8,18}', name)) and f'{int(name):08d}' == name


def _check_there(workdir: str | os.PathLike[str], step: int) -> None:
  """Raises `Gone` if the step's directory is not there."""
  if not os.path.lexists(directory(workdir, step)):
    have = ', '.join(map(str, candidates(workdir)[-5:])) or 'none'
    raise errors.Gone(
      f'{directory(workdir, step)}: no such step: never saved, or deleted since'
      f' to make room; there now: {have}'
    ) from None


def _walk(place: Path, prefix: str = '') -> Iterator[tuple[str, Path]]:
  """Yields `(relative name, path)` of what is not a directory."""
  with os.scandir(place) as entries:
    for entry in sorted(entries, key=lambda e: e.name):
      if entry.is_dir(follow_symlinks=False):
        yield from _walk(Path(entry.path), f'{prefix}{entry.name}/')
      else:
        yield prefix + entry.name, Path(entry.path)


def _open(path: Path) -> Any:
  """Opens a regular file for reading; a link or a pipe is an error."""
  fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
  file = os.fdopen(fd, 'rb')
  if not stat.S_ISREG(os.fstat(fd).st_mode):
    file.close()
    raise OSError(0, 'not a regular file')
  return file


def _sha256(path: Path, *, sync: bool = False) -> str:
  with _open(path) as file:
    if sync:
      os.fsync(file.fileno())
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _encode(content: dict[str, Any]) -> bytes:
  return json.dumps(content, sort_keys=True, indent=1).encode() + b'\n'


def _wrong(text: bytes, step: int) -> str:
  """Says what is wrong with a manifest, '' for nothing."""
  if len(text) > _LARGEST_BYTES:
    return f'larger than {_LARGEST_BYTES} bytes'
  try:
    content = json.loads(text)
    if not isinstance(content, dict) or content.keys() != _FIELDS:
      return 'not a manifest of lm'
    rest = {k: v for k, v in content.items() if k != 'sha256'}
    # Byte for byte, so that no flip hides in what a parser forgives.
    if _encode(content) != text:
      return 'changed (not in the form in which lm writes it)'
    if content['sha256'] != hashlib.sha256(_encode(rest)).hexdigest():
      return 'changed (its own sha256 differs)'
    if content['format'] != _FORMAT:
      return f'format {content["format"]}, this lm reads {_FORMAT}'
    if content['step'] != step:
      return f'says step {content["step"]}: the directory was renamed'
    return _wrong_content(content)
  except (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
  ) as error:
    return f'unreadable ({type(error).__name__})'


def _wrong_content(content: dict[str, Any]) -> str:
  for name, record in content['files'].items():
    parts = PurePosixPath(name).parts
    if (
      not parts or '/'.join(parts) != name or parts[0] == '/' or '..' in parts
    ) or '\0' in name:
      return f'unsafe file name {name[:40]!r}'
    if not _natural(record['bytes']) or not isinstance(record['sha256'], str):
      return f'bad record of file {name[:40]!r}'
  for path, record in content['leaves'].items():
    if any(part in ('', '.', '..') for part in path.split('/')) or '\0' in path:
      return f'unsafe leaf name {path[:40]!r}'
    if (
      not isinstance(record['shape'], list)
      or not all(_natural(size) for size in record['shape'])
      or not all(isinstance(record[key], str) for key in ('dtype', 'sha256'))
    ):
      return f'bad record of leaf {path[:40]!r}'
  hashed = content_hash(content['step'], content['leaves'], content['meta'])
  return '' if hashed == content['checkpoint'] else 'content hash differs'


def _natural(value: Any) -> bool:
  return type(value) is int and 0 <= value < 1 << 62


def _wrong_file(
  name: str, path: Path | None, record: dict[str, Any] | None
) -> str:
  """Says what is wrong with one file, '' for nothing."""
  if record is None:
    return 'extra file, not in the manifest'
  if path is None:
    return 'missing'
  if path.is_symlink():
    return 'is a symlink, which is not followed'
  size = path.stat().st_size
  if size != record['bytes']:
    kind = 'truncated' if size < record['bytes'] else 'grown'
    return f'{kind}: {size} bytes, expected {record["bytes"]}'
  if _sha256(path) != record['sha256']:
    return 'sha256 differs from the manifest: bits have changed'
  return ''
