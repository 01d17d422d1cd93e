"""Checks of a sweep in a process of its own, and how many runs go at a time."""

from collections.abc import Sequence
import json
import os
from pathlib import Path
import re
import subprocess
import sys
from typing import Any

from lm import config
from lm.runtime import signals
from lm.sweeping import trials

_LOOK_SECONDS = 0.2  # between two looks for a signal
_SHARE = 0.9  # of the memory that is free
_GROUP = Path('/sys/fs/cgroup')
_OWN = Path('/proc/self/cgroup')
# Of version 2 of cgroups, which has one tree, and of version 1, with one for
# each resource: files with the limit of memory, with what is used, and the
# name of that part of it which the kernel gives up first.
_LIMITS = {
  '': ('memory.max', 'memory.current', 'inactive_file'),
  'memory': (
    'memory.limit_in_bytes',
    'memory.usage_in_bytes',
    'total_inactive_file',
  ),
}


def check(
  chosen: Sequence[trials.Trial], jobs: int | None, stop: signals.Stop
) -> int:
  """Builds what all trials describe, and says how many may run at a time.

  Args:
    chosen: of the sweep.
    jobs: how many the user allows; None: as many as cores and memory allow. On
      an accelerator that is one, because a run takes all of it.
    stop: ends the checks, too.

  Returns:
    The number of runs at a time.

  Raises:
    config.ConfigError: one cannot be trained; it names the point and the key.
    signals.Stopped: SIGTERM or Ctrl-C came.
  """
  most = min(cores(), len(chosen))
  asked = {
    'configs': {x.name: config.to_json(x.config) for x in chosen},
    'measures': jobs is None and most > 1,
  }
  answer = _answer(json.dumps(asked), stop)
  if answer['error'] is not None:
    name, line = answer['error']
    n, trial = next(x for x in enumerate(chosen, 1) if x[1].name == name)
    raise config.ConfigError(f'point {n} ({trials.spell(trial.point)}): {line}')
  if jobs is not None:
    return jobs
  if answer['platform'] != 'cpu':
    return 1
  each = answer['memory_bytes']
  fitting = most if each is None else int(_SHARE * free_bytes()) // each
  return max(1, min(most, fitting))


def _answer(asked: str, stop: signals.Stop) -> Any:
  """Asks `lm.sweeping.check`.

  Raises:
    config.ConfigError: it failed.
    signals.Stopped: SIGTERM or Ctrl-C came.
  """
  command, pipe = [sys.executable, '-m', 'lm.sweeping.check'], subprocess.PIPE
  with subprocess.Popen(
    command, stdin=pipe, stdout=pipe, stderr=pipe, text=True
  ) as process:
    given: str | None = asked
    while True:
      try:
        out, errors = process.communicate(given, timeout=_LOOK_SECONDS)
        break
      except subprocess.TimeoutExpired:
        given = None  # it has been taken, and may not be given twice
        if stop.requested:
          process.kill()
  if stop.requested:
    raise signals.Stopped('by a signal, before the first run has started')
  if process.returncode:
    lines = errors.strip().splitlines() or ['no answer']
    raise config.ConfigError(
      f'the points cannot be checked: {lines[-1].removeprefix("error: ")}'
    )
  return json.loads(out)


def cores() -> int:
  """Counts the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    count = len(os.sched_getaffinity(0))
  else:
    count = os.cpu_count() or 1
  for group in _groups(''):
    quota, _, period = _read(group / 'cpu.max').partition(' ')
    if quota.isdigit() and period.isdigit():
      count = min(count, max(1, int(quota) // int(period)))
  return count


def free_bytes() -> int:
  """Measures the memory that new processes may take."""
  pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  free = pages
  for line in _read(Path('/proc/meminfo')).splitlines():
    name, _, value = line.partition(':')
    if name == 'MemAvailable':
      free = int(value.split()[0]) << 10  # kB
  for tree, (most, used, cache) in _LIMITS.items():
    for group in _groups(tree):
      limit, taken = _read(group / most), _read(group / used)
      if limit.isdigit() and taken.isdigit():
        # What files were read lately counts as used, but is given up at need.
        stat = _read(group / 'memory.stat')
        found = re.search(rf'^{cache} (\d+)$', stat, re.M)
        unneeded = int(found[1]) if found else 0
        free = min(free, int(limit) - int(taken) + unneeded)
  return max(0, free)


def _groups(tree: str) -> list[Path]:
  """Lists the control groups that this process is in, the innermost first.

  Args:
    tree: '' for version 2, or the resource of version 1.
  """
  top, path = _GROUP / tree, ''
  for line in _read(_OWN).splitlines():
    _, resource, found = line.split(':', 2)
    if resource == tree:
      path = found.strip('/')
  inner = top / path
  return [x for x in (inner, *inner.parents) if x == top or top in x.parents]


def _read(path: Path) -> str:
  """Reads a file of the kernel; '' where there is none."""
  try:
    return path.read_text().strip()
  except OSError:
    return ''
