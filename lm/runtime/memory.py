"""Memory and threads of a process that computes on a CPU."""

import ctypes
from importlib import metadata, util
import os
from pathlib import Path
import re

# Names and numbers of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def prepare() -> bool:
  """Prepares a process to compute on a CPU; a program calls this first.

  Returns:
    The same as `keep_freed`.
  """
  give_threads()
  return keep_freed()


def give_threads() -> None:
  """Gives XLA enough threads for simulated devices that wait for each other.

  A device that waits for its peers blocks a thread, and XLA has one thread per
  core. On two cores, eight devices would wait for ever (seen with a ring of
  `ppermute`s in jax 0.10.2).
  """
  simulated = os.environ.get('JAX_NUM_CPU_DEVICES') or '0'
  flag = '--xla_force_host_platform_device_count='
  for word in os.environ.get('XLA_FLAGS', '').split():
    if word.startswith(flag):
      simulated = word.removeprefix(flag)
  if re.fullmatch('[0-9]+', simulated) and int(simulated) > 1:
    threads = max(4 * int(simulated), os.cpu_count() or 1)
    os.environ.setdefault('NPROC', str(threads))


def keep_freed() -> bool:
  """Lets malloc keep freed memory for the next request.

  A training step allocates the same hundreds of megabytes every time. By
  default glibc takes large blocks from the kernel and gives them back, so that
  the kernel zeroes every page again in each step; experiments/LOG.md has the
  cost. With this setting a process never shrinks below its peak, so it is only
  made where jax computes on nothing but the CPU.

  Call it early: threads that have started keep their settings.

  Returns:
    True if the setting was made: not with an accelerator, nor where the C
    library has no such setting (macOS).
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if not _only_cpu() or mallopt is None:
    return False
  settings = (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)
  return all(mallopt(*setting) for setting in settings)


def _only_cpu() -> bool:
  # Asking jax would open the devices, which starts threads.
  chosen = os.environ.get('JAX_PLATFORMS')
  if chosen:
    return chosen == 'cpu'
  plugins = [*map(util.find_spec, ('jax_plugins', 'libtpu'))]
  return not any(plugins) and not metadata.entry_points(group='jax_plugins')


def used() -> int | None:
  """Measures the bytes of memory that this process holds; None where unknown.

  Only Linux says so in a file.
  """
  try:
    pages = Path('/proc/self/statm').read_text().split()[1]
  except (OSError, IndexError):
    return None
  return int(pages) * os.sysconf('SC_PAGE_SIZE')
