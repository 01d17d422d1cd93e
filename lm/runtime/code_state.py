"""The code that a program runs: its commit, and what differs from that.

Small text files that git does not track count too, since a new config file is
rarely committed before its first run. Nothing is written, neither to the
repository nor to the index.
"""

from collections.abc import Iterator
import functools
import hashlib
import os
from pathlib import Path
import re
import subprocess
from typing import Any, NamedTuple

_LM = Path(__file__).resolve().parent.parent
_MOST_FILES = 100  # untracked ones that go into a patch
_MOST_BYTES = 256 << 10  # of such a file
_MOST_PATCH = 4 << 20  # bytes
_SECONDS = 60  # that git may take, which may check out a whole commit
# Of files that are not tracked, others may hold anything, such as passwords.
_KINDS = re.compile(
  r'(?!.*(^|/)\.)(?i:(?!.*(key|secret|token|credential|passw))'
  r'.*\.(py|ipynb|json|toml|ya?ml|cfg|ini|md|txt|sh))'
)
# No setting of the user changes what a patch looks like.
_DIFF = (
  'diff',
  '--binary',
  '--no-ext-diff',
  '--no-textconv',
  '--no-color',
  '--unified=3',
  '--src-prefix=a/',
  '--dst-prefix=b/',
  '--submodule=short',
)


class CodeState(NamedTuple):
  """The state of a git repository.

  Attributes:
    root: its folder.
    commit: that is checked out.
    patch: what differs from the commit, as `git apply` takes it; '' if nothing.
    left_out: why something is not in the patch: untracked files that are too
      large or too many, or a patch that is.
  """

  root: str
  commit: str
  patch: str
  left_out: tuple[str, ...]

  @property
  def digest(self) -> str | None:
    """The hash that names the patch; None without one."""
    if not self.patch:
      return None
    data = self.patch.encode('utf-8', 'surrogateescape')
    return hashlib.sha256(data).hexdigest()

  def to_json(self) -> dict[str, Any]:
    """Describes the state without the text of its patch."""
    return {
      'root': self.root,
      'commit': self.commit,
      'patch': self.digest,
      'left_out': list(self.left_out),
    }


def of(folder: Path, without: Path | None = None) -> CodeState | None:
  """Finds the state of the repository that a folder lies in.

  Args:
    folder: any folder of it.
    without: a folder that does not count, such as that of the run.

  Returns:
    None if there is no repository or no commit, or git is missing. A repository
    of a whole home folder counts as none.
  """
  try:
    root = Path(git(folder, 'rev-parse', '--show-toplevel').strip())
    commit = git(root, 'rev-parse', '--verify', 'HEAD').strip()
  except (OSError, subprocess.SubprocessError):
    return None
  if Path.home().is_relative_to(root):
    return None
  left_out: list[str] = []
  where = ['--', '.']
  if without is not None and without.resolve().is_relative_to(root):
    name = without.resolve().relative_to(root).as_posix()
    where.append(f':(exclude,literal,top){name}')
  try:
    patch = git(root, *_DIFF, 'HEAD', *where)
    left_out += re.findall(r'(?m)^\+Subproject commit (\w+-dirty)$', patch)
    patch += ''.join(_untracked(root, where, left_out))
  except (OSError, subprocess.SubprocessError) as error:
    patch = ''
    left_out.append(f'what git cannot tell: {error}'.strip()[:200])
  if len(patch) > _MOST_PATCH:
    left_out.append(f'the patch, which has {len(patch):,} characters')
    patch = ''
  return CodeState(str(root), commit, patch, tuple(left_out))


def of_package(without: Path | None = None) -> CodeState | None:
  """Finds the state of the repository of this package; None if it is in none.

  An installed package may lie inside of a repository that does not have it.
  """
  try:
    git(_LM, 'ls-files', '--error-unmatch', '__init__.py')
  except (OSError, subprocess.SubprocessError):
    return None
  return of(_LM, without)


@functools.cache  # what was imported does not change
def package_digest() -> str:
  """Hashes the sources of this package, wherever it is installed."""
  result = hashlib.sha256()
  for path in sorted(_LM.rglob('*.py')):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    result.update(f'{digest} {path.relative_to(_LM).as_posix()}\n'.encode())
  return result.hexdigest()


def _untracked(
  root: Path, where: list[str], left_out: list[str]
) -> Iterator[str]:
  """Yields patches that add the files which git neither tracks nor ignores."""
  listed = git(root, 'ls-files', '--others', '--exclude-standard', '-z', *where)
  names = [name for name in listed.split('\0') if name]
  for number, name in enumerate(sorted(names)):
    path = root / name
    if number == _MOST_FILES:
      left_out.append(f'{len(names) - number} more files that are not tracked')
      return
    if (
      not _KINDS.fullmatch(name)
      or path.is_symlink()
      or not path.is_file()
      or path.stat().st_size > _MOST_BYTES
    ):
      left_out.append(name)
    else:
      yield git(root, *_DIFF, '--no-index', '--', os.devnull, name, code=1)


def git(
  folder: Path, *words: str, code: int = 0, given: bytes | None = None
) -> str:
  """Runs git in a folder and returns what it prints.

  Args:
    folder: where.
    *words: a command of git.
    code: an exit code that is no error, beside 0.
    given: what git reads.

  Raises:
    OSError: git is not there.
    subprocess.SubprocessError: it fails, with its message, or does not end.
  """
  # A lock on the index would disturb somebody who commits at this moment.
  environment = {**os.environ, 'GIT_OPTIONAL_LOCKS': '0', 'LC_ALL': 'C'}
  done = subprocess.run(
    ['git', '-c', 'core.quotePath=false', *words],
    cwd=folder,
    env=environment,
    input=given,
    stdin=subprocess.DEVNULL if given is None else None,
    capture_output=True,
    timeout=_SECONDS,
  )
  if done.returncode not in (0, code):
    raise subprocess.SubprocessError(done.stderr.decode(errors='replace'))
  # Bytes of other encodings, in text files, come back as they were.
  return done.stdout.decode('utf-8', 'surrogateescape')
