"""Runs a program and measures it with all processes that it starts.

It is a program itself, so that processes which outlive their parents are handed
to it and to nobody else (PR_SET_CHILD_SUBREAPER): their processor time counts
too. Linux only.

  python -m tools.bench.process_tree RESULT COMMAND [ARGUMENT ...]
"""

import ctypes
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from lm.runtime import temporary
from tools.bench import workers

_PR_SET_CHILD_SUBREAPER = 36
_PAUSE_SECONDS = 0.05  # between two samples of memory
_LEFT_SECONDS = 10.0  # that processes may outlive the program


class Measured(NamedTuple):
  """The cost of a program and all its processes.

  Attributes:
    wall_seconds: from its start to its end.
    cpu_seconds: of processors, in user mode and in the kernel.
    peak_bytes: the most memory at one time; a page that several processes
      share counts once (PSS).
    output: what it printed.
  """

  wall_seconds: float
  cpu_seconds: float
  peak_bytes: int
  output: str


def measure(command: list[str], environment: dict[str, str]) -> Measured:
  """Runs a program to its end, in the root of the repository.

  Args:
    command: the program and its arguments.
    environment: variables in addition to those of this process.

  Raises:
    workers.Failed: the program failed.
  """
  with temporary.folder('bench-') as folder:
    result = Path(folder, 'result.json')
    done = subprocess.run(
      [sys.executable, '-m', __name__, str(result), *command],
      capture_output=True,
      text=True,
      cwd=workers.ROOT,
      env={**os.environ, 'PYTHONPATH': str(workers.ROOT), **environment},
    )
    if done.returncode:
      last = (done.stderr or done.stdout).strip().splitlines()[-1:]
      raise workers.Failed(
        f'{" ".join(command[:3])} failed with {done.returncode}: '
        f'{"".join(last)[:160]}'
      )
    found = json.loads(result.read_text())
  return Measured(**found, output=done.stdout)


def descendants(pid: int) -> list[int]:
  """Lists the processes that a process has started, and theirs."""
  found: list[int] = []
  waiting = [pid]
  while waiting:
    try:
      tasks = list(Path(f'/proc/{waiting.pop()}/task').iterdir())
      children = [
        int(x)
        for task in tasks
        for x in (task / 'children').read_text().split()
      ]
    except OSError:  # it has ended
      continue
    found += children
    waiting += children
  return found


def memory(pid: int) -> int:
  """Returns the bytes of a process; shared pages by their share; 0 if it ended.

  A page that n processes share counts an n-th for each.
  """
  try:
    text = Path(f'/proc/{pid}/smaps_rollup').read_text()
  except OSError:
    return 0
  for line in text.splitlines():
    if line.startswith('Pss:'):
      return 1024 * int(line.split()[1])
  return 0


class _Sampler(threading.Thread):
  """Watches the memory of all processes below this one.

  Attributes:
    peak: in bytes.
  """

  def __init__(self):
    super().__init__(daemon=True)
    self.peak = 0
    self._over = threading.Event()

  def run(self) -> None:
    while not self._over.wait(_PAUSE_SECONDS):
      self.peak = max(self.peak, sum(map(memory, descendants(os.getpid()))))

  def stop(self) -> int:
    self._over.set()
    self.join()
    return self.peak


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""
  result, *command = argv
  if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
    raise OSError('this system cannot hand processes over to this one')
  sampler = _Sampler()
  sampler.start()
  start = time.perf_counter()
  program = os.posix_spawnp(command[0], command, os.environ)
  wall = cpu = 0.0
  code = 0
  deadline = float('inf')
  while True:
    try:
      pid, status, usage = os.wait4(-1, 0 if not wall else os.WNOHANG)
    except ChildProcessError:
      break  # all have ended
    if not pid:
      if time.perf_counter() > deadline:
        # They are this program's own: nobody else's are below it.
        for left in descendants(os.getpid()):
          os.kill(left, signal.SIGKILL)
      time.sleep(0.01)
      continue
    cpu += usage.ru_utime + usage.ru_stime
    if pid == program:
      wall = time.perf_counter() - start
      code = os.waitstatus_to_exitcode(status)
      deadline = time.perf_counter() + _LEFT_SECONDS
  peak = sampler.stop()
  Path(result).write_text(
    json.dumps({'wall_seconds': wall, 'cpu_seconds': cpu, 'peak_bytes': peak})
  )
  return code if code >= 0 else 128 - code


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
