"""Checks of a sweep in a process of its own, and how many runs go at a time."""

from collections.abc import Sequence
import json
import os
from pathlib import Path
import re
import subprocess
import sys

from lm import config
from lm.sweeping import trials

_SHARE = 0.9  # of the memory that is free
_GROUP = Path('/sys/fs/cgroup')
# Files of a container's limit: their folder, the limit, what is used, and the
# part of it that the kernel gives up first. Version 2 of cgroups, and 1.
_LIMITS = (
  ('.', 'memory.max', 'memory.current', 'inactive_file'),
  (
    'memory',
    'memory.limit_in_bytes',
    'memory.usage_in_bytes',
    'total_inactive_file',
  ),
)


def check(chosen: Sequence[trials.Trial], jobs: int | None) -> int:
  """Builds what all trials describe, and says how many may run at a time.

  Args:
    chosen: of the sweep.
    jobs: how many the user allows; None: as many as cores and memory allow. On
      an accelerator that is one, because a run takes all of it.

  Returns:
    The number of runs at a time.

  Raises:
    config.ConfigError: one cannot be trained; it names the point and the key.
  """
  most = min(cores(), len(chosen))
  asked = {
    'configs': {x.name: config.to_json(x.config) for x in chosen},
    'measures': jobs is None and most > 1,
  }
  process = subprocess.run(
    [sys.executable, '-m', 'lm.sweeping.check'],
    input=json.dumps(asked),
    capture_output=True,
    text=True,
    check=False,
  )
  if process.returncode:
    lines = process.stderr.strip().splitlines() or ['no answer']
    raise config.ConfigError(
      f'the points cannot be checked: {lines[-1].removeprefix("error: ")}'
    )
  answer = json.loads(process.stdout)
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


def cores() -> int:
  """Counts the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    count = len(os.sched_getaffinity(0))
  else:
    count = os.cpu_count() or 1
  quota, _, period = _read(_GROUP / 'cpu.max').partition(' ')
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
  for folder, most, used, cache in _LIMITS:
    group = _GROUP / folder
    limit, taken = _read(group / most), _read(group / used)
    if limit.isdigit() and taken.isdigit():
      # What files were read lately counts as used, but is given up at need.
      found = re.search(rf'^{cache} (\d+)$', _read(group / 'memory.stat'), re.M)
      unneeded = int(found[1]) if found else 0
      free = min(free, int(limit) - int(taken) + unneeded)
  return max(0, free)


def _read(path: Path) -> str:
  """Reads a file of the kernel; '' where there is none."""
  try:
    return path.read_text().strip()
  except OSError:
    return ''
