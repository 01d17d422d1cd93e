"""Trains and evaluates the runs of a board, each in a process of its own."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
from pathlib import Path
import subprocess
import sys
import time
from typing import Any, NamedTuple

from lm import config, errors
from lm.config import untrusted
from lm.runtime import code_state
from tools import checkout

_MEASURE = Path(__file__).with_name('measure.py')
_MARK = 'answer: '  # begins the line of its answer
_NOT_FINITE = errors.NotFinite.exit_code
_LOCKED = errors.Locked.exit_code
_LOCKED_SECONDS = 90.0  # to wait for another process that has the run
_PAUSE_SECONDS = 2.0


class Failed(config.ConfigError):
  """The code of a proposal cannot be run."""


class Ended(errors.Failure):
  """A program that the arena has started ended early.

  Attributes:
    exit_code: that of the program.
  """

  def __init__(self, text: str, exit_code: int):
    super().__init__(text)
    self.exit_code = exit_code


class Code(NamedTuple):
  """The code that runs are made with.

  Attributes:
    lm: hash of the package.
    commit: of its repository; None if it is in none.
    patches: what differs from the commit, the earliest first.
  """

  lm: str
  commit: str | None
  patches: tuple[str, ...] = ()


def here() -> Code:
  """Describes the code of this process."""
  state = code_state.of_package()
  patches = (state.patch,) if state is not None and state.patch else ()
  commit = None if state is None else state.commit
  return Code(code_state.package_digest(), commit, patches)


@contextlib.contextmanager
def folder(code: Code, patches: Sequence[str] = ()) -> Iterator[Path | None]:
  """Yields the folder of a board's code; None if it is the code of here.

  Args:
    code: of the board.
    patches: that come on top.

  Raises:
    config.ConfigError: it cannot be had.
  """
  if not patches and code.lm == code_state.package_digest():
    yield None
    return
  with checkout.checkout(
    repository(code),
    code.commit or '',
    [x.encode('utf-8', 'surrogateescape') for x in (*code.patches, *patches)],
  ) as root:
    yield root


def repository(code: Code) -> str:
  """Finds the repository that has the commit of a board.

  Raises:
    config.ConfigError: there is none.
  """
  state = code_state.of_package()
  if state is None or code.commit is None:
    raise config.ConfigError(
      'patches, and boards of other code, need the repository of lm: run this '
      'in a checkout of it'
    )
  return state.root


def train(
  root: Path | None,
  config_file: Path,
  workdir: Path,
  trusted: Sequence[str],
) -> bool:
  """Trains a run, or goes on with it.

  What it prints goes to a file beside its folder.

  Args:
    root: of the code, see `folder`.
    config_file: JSON.
    workdir: of the run.
    trusted: words of --trust.

  Returns:
    Whether the run is finite.

  Raises:
    Failed: the config or code cannot be run.
    Ended: the run was stopped, or the machine failed.
  """
  log = workdir.with_name(f'{workdir.name}.log')
  command = [
    *(sys.executable, '-P', '-m', 'lm.train'),
    f'--config={config_file}',
    f'--workdir={workdir}',
  ]
  patience = time.monotonic() + _LOCKED_SECONDS
  while True:
    with log.open('ab') as output:
      code = checkout.run(
        command, _settings(root, trusted), stdout=output, stderr=output
      )
    # The trainer of an arena that was killed is still about to save and leave.
    if code != _LOCKED or time.monotonic() > patience:
      break
    time.sleep(_PAUSE_SECONDS)
  if code == _NOT_FINITE:
    return False
  if code:
    lines = log.read_text(errors='replace').strip().splitlines()
    text = f'{workdir}: {lines[-1].partition(": ")[2] if lines else code}'
    if code in (1, 2):
      raise Failed(text)
    raise Ended(text, code if code > 0 else 128 - code)
  return True


def ask(
  what: str,
  request: Mapping[str, Any],
  root: Path | None,
  trusted: Sequence[str],
) -> dict[str, Any]:
  """Asks a process that has the code of a board or proposal; see measure.py.

  Raises:
    Failed: it refuses, or its code fails.
    Ended: it ended by a signal.
  """
  done = subprocess.run(
    [sys.executable, '-P', str(_MEASURE), what],
    env=_settings(root, trusted),
    input=json.dumps(request),
    capture_output=True,
    text=True,
  )
  lines = done.stdout.splitlines()
  if done.returncode == 0 and lines and lines[-1].startswith(_MARK):
    return json.loads(lines[-1].removeprefix(_MARK))
  said = done.stderr.strip().splitlines()
  text = said[-1].removeprefix('error: ') if said else f'{what} failed'
  if done.returncode in (1, 2):
    raise Failed(text)
  code = done.returncode
  raise Ended(text, code if code > 0 else 128 - code)


def _settings(root: Path | None, trusted: Sequence[str]) -> dict[str, str]:
  """Makes the environment of a process that has a board's code."""
  settings = checkout.environment(root)
  words = [*settings.get(untrusted.VARIABLE, '').split(','), *trusted]
  if root is not None:
    words.append('lm')  # functions that a patch brings are in no list
  settings[untrusted.VARIABLE] = ','.join(x for x in dict.fromkeys(words) if x)
  return settings
