"""Compiled programs are kept on disk, so that no program is compiled twice.

jax has such a cache and leaves it off. `prepare` turns it on in the user's
cache folder, and does what jax leaves to its user:

- The folder depends on the processor. jax's key does not, and a home folder may
  be shared by machines of which one lacks the other's instructions.
- The cache is bounded. jax's own bound takes a lock for every program that is
  read, and fails when a kill has left an entry without its time.
- An entry that a kill has cut short is removed. jax would find it damaged at
  every start, and never replace it.
"""

import fcntl
import hashlib
import os
from pathlib import Path
import platform
import time
from typing import Any
import zlib

import jax
import zstandard

MOST_BYTES = 4 * 1024**3
_SUFFIX = '-cache'  # of jax's entries
_STAMP = '.checked'  # its time: entries before it are whole
_SLACK_SECONDS = 2.0  # clocks of a shared disk may differ


def prepare(most_bytes: int = MOST_BYTES) -> Path | None:
  """Turns jax's cache of compiled programs on, unless it is on or unwanted.

  Set `JAX_COMPILATION_CACHE_DIR` to use a folder of your own, which is left as
  it is, and `JAX_ENABLE_COMPILATION_CACHE=false` to have none.

  Args:
    most_bytes: the least recently written entries are removed until the cache
      is no larger.

  Returns:
    The folder, or None where nothing was turned on: the user chose, or the
    folder cannot be written.
  """
  settings: Any = jax.config  # whose attributes no type names
  if settings.jax_compilation_cache_dir is not None:
    return None
  if not settings.jax_enable_compilation_cache:
    return None
  place = folder()
  try:
    place.mkdir(parents=True, exist_ok=True)
    tidy(place, most_bytes)
  except OSError:  # a home folder that is full or read-only costs time alone
    return None
  jax.config.update('jax_compilation_cache_dir', str(place))
  # Small programs too: an evaluation or a sample runs many of them.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  return place


def folder() -> Path:
  """Returns the folder of this machine's kind of processor."""
  home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
  kind = f'{jax.__version__} {platform.machine()} {_features()}'
  name = hashlib.sha256(kind.encode()).hexdigest()[:12]
  return Path(home) / 'lm' / 'compiled' / name


def _features() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  return next((x for x in lines if x.startswith(('flags', 'Features'))), '')


def tidy(place: Path, most_bytes: int) -> None:
  """Removes entries that are cut short, and the oldest of too many.

  One process does so at a time; others go on without waiting. A process that
  reads an entry just before it is removed has it, and one that comes after
  compiles.

  Raises:
    OSError: the folder cannot be read or written.
  """
  stamp = place / _STAMP
  with stamp.open('a') as held:
    try:
      fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      return
    since = stamp.stat().st_mtime if stamp.stat().st_size else 0.0
    now = time.time()
    entries = []
    for path in place.glob(f'*{_SUFFIX}'):
      try:
        about = path.stat()
        if about.st_mtime > since - _SLACK_SECONDS and not _whole(path):
          path.unlink()
          continue
      except FileNotFoundError:
        continue  # another process removed it
      entries.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
      if total <= most_bytes:
        break
      path.unlink(missing_ok=True)
      total -= size
    stamp.write_text('entries before the time of this file are whole\n')
    os.utime(stamp, (now, now))


def _whole(path: Path) -> bool:
  """Tells whether an entry ends where its compression says."""
  data = path.read_bytes()
  # jax packs by zstandard where that is installed, and by zlib elsewhere.
  is_zlib = data[:1] == b'\x78'
  unpack: Any = zlib if is_zlib else zstandard.ZstdDecompressor()
  member = unpack.decompressobj()
  try:
    member.decompress(data)
  except (zlib.error, zstandard.ZstdError):
    return False
  return member.eof
