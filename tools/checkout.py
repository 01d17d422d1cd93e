"""Runs programs in the code of another commit, with patches.

Not a program: tools.rerun and tools.arena call it.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
from pathlib import Path
import signal
import subprocess
from typing import Any

from lm import config
from lm.runtime import code_state, temporary


@contextlib.contextmanager
def checkout(
  repository: str | Path, commit: str, patches: Sequence[bytes] = ()
) -> Iterator[Path]:
  """Yields a folder with the code of a commit, and removes it afterwards.

  Args:
    repository: any folder of it.
    commit: that is checked out.
    patches: applied in their order.

  Raises:
    config.ConfigError: there is no such commit, or a patch does not apply.
  """
  with temporary.folder('lm-checkout-') as folder:
    root = Path(folder) / 'code'
    git(repository, 'worktree', 'add', '--detach', str(root), commit)
    try:
      for patch in patches:
        git(root, 'apply', '--whitespace=nowarn', '-', given=patch)
      yield root
    finally:
      git(repository, 'worktree', 'remove', '-f', '-f', str(root))


def git(folder: str | Path, *words: str, given: bytes | None = None) -> str:
  """Runs git in a folder and returns what it prints.

  Raises:
    config.ConfigError: it fails.
  """
  try:
    return code_state.git(Path(folder), *words, given=given)
  except (OSError, subprocess.SubprocessError) as error:
    lines = str(error).strip().splitlines()
    raise config.ConfigError(
      f'git {" ".join(words[:2])}: {lines[-1] if lines else "it failed"}'
    ) from error


def environment(root: Path | None) -> dict[str, str]:
  """Makes the environment in which Python finds the code of a folder first.

  Start Python with -P there, or the current folder would come before it.

  Args:
    root: of the code; None for the code that is found here.
  """
  paths = [*([root] if root else []), os.environ.get('PYTHONPATH'), os.getcwd()]
  return {
    **os.environ,
    'PYTHONPATH': os.pathsep.join(str(x) for x in paths if x),
  }


def run(command: Sequence[str], settings: Mapping[str, str], **how: Any) -> int:
  """Runs a program, which saves when it is asked to end; returns its code.

  Args:
    command: its words.
    settings: its environment.
    **how: more for `subprocess.Popen`, such as where its output goes.
  """
  child = subprocess.Popen(command, env=settings, **how)
  before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
  try:
    while True:
      try:
        return child.wait()
      except KeyboardInterrupt:
        continue  # the terminal has sent it to the child, too
  finally:
    signal.signal(signal.SIGTERM, before)
