"""Temporary folders that go with their process, however it ends.

A handler of signals would not do: Python runs it when a call of another library
returns, after minutes perhaps, and SIGKILL has none.
"""

from collections.abc import Iterator
import contextlib
import os
import shutil
import subprocess
import tempfile

# Reads until nobody writes any more, which is when this process has ended.
_WATCH = 'read line; rm -rf -- "$0"'


@contextlib.contextmanager
def folder(
  prefix: str, parent: str | os.PathLike[str] | None = None
) -> Iterator[str]:
  """Makes a folder, which is removed in the end, also if this process dies.

  Only a kill in the moment before its watcher starts leaves it, still empty.

  Args:
    prefix: of its name.
    parent: folder that it is in; None: that for temporary files.

  Raises:
    OSError: it cannot be made.
  """
  place = os.path.abspath(tempfile.mkdtemp(prefix=prefix, dir=parent))
  with contextlib.ExitStack() as stack:
    stack.callback(shutil.rmtree, place, ignore_errors=True)
    watcher = subprocess.Popen(
      ['/bin/sh', '-c', _WATCH, place],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      cwd='/',
      start_new_session=True,  # a signal to the group of this process misses it
    )
    # What it reads from, a process that this one has forked may hold open.
    stack.enter_context(watcher)
    stack.callback(watcher.kill)
    yield place
