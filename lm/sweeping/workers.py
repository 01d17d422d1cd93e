"""Workers: processes that train the runs of a sweep on this machine.

A worker is `lm.sweeping.worker`, which trains one run after another. It ends
with the sweep, however that ends: a guard, which reads from a pipe of the
sweep, sends it SIGTERM when the sweep is gone, so that it saves its run and
leaves. Workers are sessions of their own, which Ctrl-C in a terminal does not
reach: the sweep tells them itself.
"""

from collections.abc import Sequence
import contextlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
from typing import Any, NamedTuple

from lm.runtime import signals

# Reads until nobody writes any more, which is when the sweep has ended.
_GUARD = 'read line; kill -TERM "$0"'
_LINE_BYTES = 1 << 12  # of a log, in which its last line is sought
# What a run ends with that would end the same way again.
_FINAL = (2, 4, 5, 6)
_LOCKED = 3


class Result(NamedTuple):
  """How a run has ended.

  Attributes:
    state: 'done'; 'stopped', with its state saved; 'failed', which would come
      again; 'crashed', which may not; or 'locked', by another process.
    error: the last line of its error.
  """

  state: str
  error: str = ''


class Worker:
  """A process that trains one run after another.

  Attributes:
    has_left: whether it has ended, as far as `poll` knows.
  """

  def __init__(self, log: Path):
    """Starts it.

    Args:
      log: takes what it prints.
    """
    self._log, self._received = log, b''
    self.has_left = False
    with log.open('ab') as out:
      self._start = out.tell()
      self._process = subprocess.Popen(
        [sys.executable, '-m', 'lm.sweeping.worker'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=out,
        start_new_session=True,
      )
    assert self._process.stdout is not None
    os.set_blocking(self._process.stdout.fileno(), False)
    self._guard = subprocess.Popen(
      ['/bin/sh', '-c', _GUARD, str(self._process.pid)],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      cwd='/',
      start_new_session=True,
    )

  def train(
    self, name: str, config: str, workdir: Path, command: Sequence[str]
  ) -> None:
    """Gives it a run, once `poll` has answered about the one before.

    Args:
      name: of the run.
      config: JSON.
      workdir: the folder of the run.
      command: the flags with which lm.train would do the same.
    """
    request = {
      'id': name,
      'config': config,
      'workdir': str(workdir),
      'command': list(command),
    }
    assert self._process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # `poll` finds that it has left
      self._process.stdin.write(json.dumps(request).encode() + b'\n')
      self._process.stdin.flush()

  def poll(self) -> Result | None:
    """Returns how the run has ended; None while it goes on."""
    answer = self._answer()
    if answer is not None and answer['state'] != 'stopped':
      return _result(answer)
    code = self._ended()  # a worker whose run was stopped leaves
    if code is None:
      return None
    if code in (130, signals.EXIT_CODE, -signal.SIGTERM):
      return Result('stopped')
    error = self._last_line().removeprefix('error: ')
    if code < 0:
      name = signal.Signals(-code).name
      return Result('crashed', f'ended by {name}: see logs/{self._log.name}')
    if code == 0:  # a function of the config may do that
      return Result('crashed', 'the process ended itself, with exit code 0')
    return Result('crashed', error or f'exit code {code}')

  def stop(self) -> None:
    """Asks it to save and end; a third time, to end at once."""
    self._process.send_signal(signal.SIGTERM)  # nothing, if it has left

  def close(self) -> None:
    """Ends it, where it has no run; waits until it has left."""
    if not self.has_left:
      assert self._process.stdin is not None
      with contextlib.suppress(BrokenPipeError):
        self._process.stdin.close()
      self.stop()
      self._process.wait()
      self._leave()

  def _answer(self) -> dict[str, Any] | None:
    """Reads a line of the worker, if a whole one has come."""
    assert self._process.stdout is not None
    with contextlib.suppress(BlockingIOError):
      self._received += os.read(self._process.stdout.fileno(), 1 << 16)
    line, end, rest = self._received.partition(b'\n')
    if not end:
      return None
    self._received = rest
    return json.loads(line)

  def _ended(self) -> int | None:
    code = self._process.poll()
    if code is not None:
      self._leave()
    return code

  def _leave(self) -> None:
    with self._guard:  # at once: another process may get the worker's number
      self._guard.kill()
    for pipe in (self._process.stdin, self._process.stdout):
      assert pipe is not None
      with contextlib.suppress(BrokenPipeError):
        pipe.close()
    self.has_left = True

  def _last_line(self) -> str:
    with self._log.open('rb') as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(self._start, size - _LINE_BYTES))
      lines = file.read().decode(errors='replace').split('\n')
    return next((x.strip() for x in reversed(lines) if x.strip()), '')


def _result(answer: dict[str, Any]) -> Result:
  code, error = answer['exit_code'], answer['error'] or ''
  if answer['state'] == 'done':
    return Result('done')
  if code == _LOCKED:
    return Result('locked', error)
  return Result('failed' if code in _FINAL else 'crashed', error)
