"""A temporary folder goes with its process, however it ends."""

from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from lm.runtime import temporary


def test_a_folder_is_there_and_then_it_is_not(tmp_path):
  with temporary.folder('x-', tmp_path) as place:
    assert Path(place).parent == tmp_path
    Path(place, 'file').touch()
  assert not any(tmp_path.iterdir())
  with pytest.raises(ZeroDivisionError), temporary.folder('x-', tmp_path):
    raise ZeroDivisionError
  assert not any(tmp_path.iterdir())


def test_it_may_have_been_renamed(tmp_path):
  with temporary.folder('x-', tmp_path) as place:
    Path(place, 'file').touch()
    Path(place).rename(tmp_path / 'kept')
  assert [x.name for x in tmp_path.rglob('*')] == ['kept', 'file']


def start(code: str) -> subprocess.Popen[bytes]:
  return subprocess.Popen(
    [
      sys.executable,
      '-uc',
      f'import os\nfrom lm.runtime import temporary\n{code}',
    ],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    cwd=Path(__file__).resolve().parents[2],
  )


@pytest.mark.process
def test_a_process_that_was_forked_does_not_delay_the_end(tmp_path):
  child = start(
    f"""with temporary.folder('x-', {str(tmp_path)!r}):
  if not os.fork():
    input()
    os._exit(0)
print('removed')
"""
  )
  assert child.stdout and child.stdin
  assert child.stdout.readline() == b'removed\n' and not any(tmp_path.iterdir())
  child.stdin.write(b'\n')
  child.communicate()


@pytest.mark.process
@pytest.mark.parametrize('number', (signal.SIGTERM, signal.SIGKILL))
def test_a_process_that_is_killed_leaves_no_folder(tmp_path, number):
  child = start(
    f"""with temporary.folder('a b-', {str(tmp_path)!r}):
  print('made')
  input()
"""
  )
  assert child.stdout and child.stdout.readline() and any(tmp_path.iterdir())
  child.send_signal(number)
  child.communicate()
  deadline = time.monotonic() + 60.0
  while any(tmp_path.iterdir()):
    assert time.monotonic() < deadline
    time.sleep(0.01)
