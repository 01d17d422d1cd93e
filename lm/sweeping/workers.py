"""Workers: processes that train the runs of a sweep on this machine.

A worker ends with the sweep, however that ends: a guard, which reads from a
pipe of the sweep, sends it SIGTERM when the sweep is gone, so that it saves its
run and leaves. Workers are sessions of their own, which Ctrl-C in a terminal
does not reach: the sweep tells them itself.
"""

from collections.abc import Sequence
import contextlib
import os
from pathlib import Path
import signal
import subprocess
import sys
from typing import NamedTuple

from lm.runtime import signals

# Reads until nobody writes any more, which is when the sweep has ended.
_GUARD = 'read line; kill -TERM "$0"'
_LINE_BYTES = 1 << 12  # of a log, in which its last line is sought
# What a run ends with that would end the same way again.
_FINAL = (2, 4, 5, 6)
_LOCKED = 3


class Result(NamedTuple):
  """How a worker's run has ended.

  Attributes:
    state: 'done'; 'stopped', with its state saved; 'failed', which would come
      again; 'crashed', which may not; or 'locked', by another process.
    error: the last line of its error.
  """

  state: str
  error: str = ''


class Worker:
  """A process that trains one run."""

  def __init__(self, words: Sequence[str], workdir: Path, log: Path):
    """Starts it.

    Args:
      words: the flags of lm.train that load the config.
      workdir: the folder of the run.
      log: takes what it prints.
    """
    self._log = log
    command = [sys.executable, '-m', 'lm.train', *words]
    with log.open('ab') as out:
      self._start = out.tell()
      self._process = subprocess.Popen(
        [*command, f'--workdir={workdir}'],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    self._guard = subprocess.Popen(
      ['/bin/sh', '-c', _GUARD, str(self._process.pid)],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      cwd='/',
      start_new_session=True,
    )

  def poll(self) -> Result | None:
    """Returns how the run has ended; None while it goes on."""
    if (
      os.waitid(  # left as it is: its guard must not outlive its number
        os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
      )
      is None
    ):
      return None
    with self._guard:
      self._guard.kill()
    return self._result(self._process.wait())

  def stop(self) -> None:
    """Asks it to save and end; a third time, to end at once."""
    with contextlib.suppress(ProcessLookupError):
      os.kill(self._process.pid, signal.SIGTERM)

  def kill(self) -> None:
    """Ends it at once."""
    self._process.kill()

  def _result(self, code: int) -> Result:
    if code == 0:
      return Result('done')
    # SIGTERM that comes before lm.train listens ends it with nothing to save.
    if code in (signals.EXIT_CODE, 130, -signal.SIGTERM):
      return Result('stopped')
    error = self._last_line().removeprefix('error: ')
    if code == _LOCKED:
      return Result('locked', error)
    if code in _FINAL:
      return Result('failed', error)
    if code < 0:
      name = signal.Signals(-code).name
      return Result('crashed', f'ended by {name}: see logs/{self._log.name}')
    return Result('crashed', error or f'exit code {code}')

  def _last_line(self) -> str:
    with self._log.open('rb') as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(self._start, size - _LINE_BYTES))
      lines = file.read().decode(errors='replace').split('\n')
    return next((x.strip() for x in reversed(lines) if x.strip()), '')
