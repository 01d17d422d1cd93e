"""Brings prepared data to a disk of this machine, and checks every byte.

  python -m tools.launch.stage gs://bucket/web /tmp/web    copies it
  python -m tools.launch.stage --check /tmp/web            lists what is missing

The launchers run this on every host of a run. The data is a folder with a
tokenizer and the datasets train, valid and perhaps test, or one for each source
in these, as tools.prepare_data and tools.factory write them; it lies in a
bucket, or where this machine sees it. Files whose sha256 is that of their
manifest are kept, so that a copy that was interrupted goes on. The manifest of
a dataset is written last: half a copy is no dataset.
"""

import argparse
from collections.abc import Iterator, Sequence
import concurrent.futures
import contextlib
import hashlib
import os
from pathlib import Path
import re
import shutil
import stat
import tempfile

from lm import config, errors
from lm.data import manifest as manifests
from lm.runtime import regular_files

SPLITS = ('train', 'valid', 'test')
# What goes with the datasets: their tokenizer, and a certificate.
_BESIDE = re.compile(r'tokenizer[-\w.]*|contamination\.json')
_SUFFIXES = (manifests.TOKENS, manifests.OFFSETS)
_FILE_SECONDS = 3600.0  # to copy one file; a shard has about 1 GB
_LOCK_SECONDS = 7200.0  # to wait for another process that copies to there
_PARALLEL = 8
_ROOT = 0  # the user


def datasets(folder: Path) -> list[str]:
  """Lists the datasets in a folder: 'train', or 'train/web' and others."""
  return sorted(
    str(path.parent.relative_to(folder))
    for split in SPLITS
    for pattern in ('', '*/')
    for path in folder.glob(f'{split}/{pattern}{manifests.NAME}')
  )


def wanted(folder: Path) -> dict[str, manifests.File]:
  """Lists the files of all datasets in a folder, by name, from their manifests.

  Raises:
    ValueError: a manifest is damaged, or there are no training data.
  """
  found = {}
  names = datasets(folder)
  if not any(f'{x}/'.startswith('train/') for x in names):
    names.insert(0, 'train')  # whose error says what is missing
  for name in names:
    for shard in manifests.load(folder / name).shards:
      for suffix, file in shard.files.items():
        found[f'{name}/{shard.name}{suffix}'] = file
  return found


def small_files(folder: Path) -> list[str]:
  """Lists the files that are no shards: manifests, and what goes with them."""
  names = [x.name for x in folder.iterdir() if _BESIDE.fullmatch(x.name)]
  names += [f'{name}/{manifests.NAME}' for name in datasets(folder)]
  return sorted(names)


def missing(folder: Path, files: dict[str, manifests.File]) -> list[str]:
  """Lists the files that are not in a folder, or not as their manifest says."""

  def is_there(name: str) -> bool:
    path, file = folder / name, files[name]
    try:
      return path.stat().st_size == file.bytes and _sha256(path) == file.sha256
    except FileNotFoundError:
      return False

  with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
    there = list(pool.map(is_there, files))
  return [x for x, yes in zip(files, there, strict=True) if not yes]


def clear(folder: Path, files: dict[str, manifests.File]) -> None:
  """Deletes shards of other data, which a dataset must not have."""
  for split in SPLITS:
    place = folder / split
    inner = [x for x in sorted(place.glob('*')) if x.is_dir()]
    for dataset in (*inner, place):
      for path in sorted(dataset.glob('*')):
        name = str(path.relative_to(folder))
        if path.suffix in _SUFFIXES and name not in files:
          path.unlink()
      with contextlib.suppress(OSError):  # of a dataset that there still is
        dataset.rmdir()


def copy(source: str, target: Path) -> str:
  """Copies what is missing.

  Args:
    source: a folder, or gs://BUCKET/FOLDER.
    target: is made; what it has of other data goes.

  Returns:
    A line that says what was done.

  Raises:
    config.ConfigError: the source has no training data.
    errors.Damaged: a manifest or another file of the source is damaged.
    errors.Locked: another process copies to there, for hours.
    errors.Storage: the source does not answer, or the disk is too small.
  """
  # jax comes with it, which the launchers do without.
  from lm.checkpoint import bucket

  origin = bucket.Bucket(source, _FILE_SECONDS)
  target.mkdir(parents=True, exist_ok=True)
  _check_owner(target)
  with (
    _alone(target),
    tempfile.TemporaryDirectory(prefix='.stage.', dir=target) as folder,
  ):
    part = Path(folder)
    tops = [x for x in origin.names('') if _BESIDE.fullmatch(x)]
    for split in SPLITS:
      inner = [f'{split}/{x}' for x in origin.names(split)]
      whole = f'{split}/{manifests.NAME}'
      tops += (
        [whole] if whole in inner else [f'{x}/{manifests.NAME}' for x in inner]
      )
    for name in tops:
      content = origin.read(name)
      if content is not None:
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_bytes(content)
    if not (part / 'train').exists():
      raise config.ConfigError(
        f'{source}: has no train/{manifests.NAME}: give a folder that'
        ' tools.prepare_data --split-valid wrote'
      )
    try:
      files = wanted(part)
    except ValueError as error:
      raise errors.Damaged(f'{source}: {error}') from error
    _forget_other(target, part)
    clear(target, files)
    left = missing(target, files)
    size = sum(files[name].bytes for name in left)
    free = shutil.disk_usage(target).free
    if size > free:
      raise errors.Storage(
        f'{target}: {size / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are'
        ' free: make room, or choose another disk'
      )

    def bring(name: str) -> None:
      _bring(origin, name, files[name], part)
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      os.replace(part / name, target / name)

    with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
      list(pool.map(bring, left))
    for name in small_files(part):
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      os.replace(part / name, target / name)
  kept = len(files) - len(left)
  return (
    f'{target}: {len(left)} files copied ({size / 1e9:.3g} GB), {kept} were '
    'there'
  )


def _check_owner(target: Path) -> None:
  """Refuses a folder that another user has made first, in one like /tmp.

  Raises:
    config.ConfigError: another user could change what lies there.
  """
  for folder in (target.absolute(), target.absolute().parent):
    everybodys = folder.parent.stat().st_mode & stat.S_ISVTX
    if everybodys and folder.lstat().st_uid not in (_ROOT, os.getuid()):
      raise config.ConfigError(
        f'{folder}: belongs to another user: choose another folder'
      )


def _forget_other(target: Path, part: Path) -> None:
  """Removes what says of other data what they are.

  A dataset has no manifest until it is whole, and other data no certificate.
  """
  for name in small_files(target):
    old, new = target / name, part / name
    if not new.exists() or old.read_bytes() != new.read_bytes():
      old.unlink()


def _bring(origin, name: str, file: manifests.File, part: Path) -> None:
  """Copies a file to the same name below `part`, and checks it."""
  path = part / name
  for left in (1, 0):  # what was damaged on its way comes whole the next time
    try:
      origin.download(name, path)
    except FileNotFoundError:
      raise errors.Damaged(
        f'{origin.address}/{name}: is missing, and its manifest names it: bring'
        ' it back, or prepare the data again'
      ) from None
    if _sha256(path) == file.sha256:
      return
    if not left:
      raise errors.Damaged(
        f'{origin.address}/{name}: its sha256 is not that of its manifest:'
        ' bring it back, or prepare the data again'
      )


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
  """Lets one process of this machine at a time copy to a folder."""
  late = errors.Locked(
    f'{target}: another process copies data to there: end it'
  )
  with regular_files.exclusive(target / '.lock', _LOCK_SECONDS, late):
    # What a process that was killed has left.
    for left in target.glob('.stage.*'):
      shutil.rmtree(left, ignore_errors=True)
    yield


def _sha256(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def main(argv: Sequence[str]) -> int:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.launch.stage',
    description=__doc__,
    epilog=config.exit_code_help('tools.launch.stage'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--check',
    action='store_true',
    help='delete shards of other data, list what is missing',
  )
  parser.add_argument('source', nargs='?', default='')
  parser.add_argument('target')
  flags = parser.parse_args(argv)
  target = Path(flags.target)
  if flags.check == bool(flags.source):
    raise config.ConfigError('give SOURCE TARGET, or --check TARGET')
  if not flags.check:
    print(copy(flags.source, target), flush=True)
    return 0
  with config.user_errors():
    files = wanted(target)
  clear(target, files)
  for name in missing(target, files):
    print(f'missing {name}')
  return 0


if __name__ == '__main__':
  config.main(main)
