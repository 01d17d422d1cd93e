#!/usr/bin/env python3
"""The part that runs on a TPU VM: one run of lm.train, its log, its exit code.

tools/launch/tpu_vm.py sends it there with the rest of the tree and calls it
through ssh. Standard library only: it starts with the machine's own Python.

  worker.py install tpu     takes the tree it lies in; makes the environment
  worker.py start [--token ID] [--env NAME=VALUE] [--data] -- ARGUMENTS
                            in the background; --data: with what lies in data
  worker.py idle            refuses when a run is alive
  worker.py status          one line of JSON
  worker.py follow --start BYTES     prints the log until the run ends
  worker.py stop [--asked]  SIGTERM, and SIGKILL when that does not help

  ~/lm-launch/src   the tree        ~/lm-launch/run/lock   held by the run
  ~/lm-launch/venv  its Python      ~/lm-launch/run/pid    of lm.train
  ~/lm-launch/uv    makes venv      ~/lm-launch/run/log, code, token, stopped
  ~/lm-launch/data  from stage.py
  ~/lm-launch/secret  by which the processes of a run know each other

The lock is the kernel's, so it is free as soon as the run is dead, whatever
files it leaves. Exit codes: 0 done; 2 nothing is installed; 3 refused.
"""

import argparse
import contextlib
import fcntl
import json
import os
from pathlib import Path
import shutil
import signal
import socket
import subprocess
import sys
import time

HOME = Path(__file__).resolve().parents[3]
SOURCE = HOME / 'src'
PYTHON = HOME / 'venv' / 'bin' / 'python'
RUN = HOME / 'run'
SECRET = HOME / 'secret'
# libtpu's own; a process that was killed leaves it.
TPU_LOCK = Path('/tmp/libtpu_lockfile')


class Refused(Exception):
  """A line for the user, and the exit code."""

  def __init__(self, text: str, code: int = 3):
    super().__init__(text)
    self.code = code


def install(extra: str) -> None:
  """Puts the tree that this file lies in at `src` and installs it."""
  idle()
  sent = Path(__file__).resolve().parents[2]
  if sent != SOURCE:
    SECRET.unlink(missing_ok=True)
    if (sent / SECRET.name).exists():
      (sent / SECRET.name).chmod(0o600)
      (sent / SECRET.name).rename(SECRET)
    shutil.rmtree(SOURCE, ignore_errors=True)
    sent.rename(SOURCE)
  uv = HOME / 'uv' / 'bin' / 'uv'
  if not uv.exists():  # it brings a Python where the machine's is older
    _run(
      sys.executable, '-m', 'pip', 'install', '--quiet',
      f'--target={uv.parent.parent}', 'uv>=0.5,<1',
    )  # fmt: skip
  if not PYTHON.exists():
    _run(uv, 'venv', '--quiet', '--python=>=3.11,<3.14', PYTHON.parent.parent)
  _run(
    uv, 'pip', 'install', '--quiet', f'--python={PYTHON}', '--editable',
    f'{SOURCE}[{extra}]',
  )  # fmt: skip
  _say('installed')


def idle() -> None:
  """Refuses to go on while a run is alive."""
  if _live():
    raise Refused('a run is alive here: stop it first')


def start(arguments: 'list[str]', environment: 'list[str]', token: str) -> None:
  """Starts lm.train in the background, in a session of its own.

  A live run of the same token is this one, and its start was asked for twice.
  """
  if not PYTHON.exists():
    raise Refused('nothing is installed here: install first', 2)
  RUN.mkdir(exist_ok=True)
  fd = _take()
  if fd is None and token and _read('token') == token:
    _say(f'started already, pid {_read("pid")}')
    return
  if fd is None:
    raise Refused(f'a run is alive here, pid {_read("pid")}: stop it first')
  if _read('pid') and not _read('code'):
    _say(f'pid {_read("pid")} left its lock and is dead: taken over')
  _clear_tpu_lock()
  for name in ('pid', 'code', 'stopped'):
    (RUN / name).unlink(missing_ok=True)
  _write('token', token)
  secret = {'LM_SECRET': SECRET.read_text()} if SECRET.exists() else {}
  with (RUN / 'log').open('ab') as log:
    now = time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())
    log.write(f'== {now} UTC, {socket.gethostname()}\n'.encode())
    log.flush()
    subprocess.Popen(
      [sys.executable, __file__, 'supervise', str(fd), '--', *arguments],
      cwd=SOURCE,
      env={
        **os.environ,
        **secret,
        **dict(x.split('=', 1) for x in environment),
      },
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      pass_fds=[fd],
      start_new_session=True,
    )
  deadline = time.monotonic() + 20
  while not _read('pid'):
    if time.monotonic() > deadline:
      raise Refused('the run did not start: see its log', 1)
    time.sleep(0.01)
  _say(f'started, pid {_read("pid")}')


def supervise(fd: int, arguments: 'list[str]') -> None:
  """Runs lm.train and keeps its exit code; the lock is in both hands."""
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    # A machine that goes down signals all processes, lm.train as well. A
    # handler and not SIG_IGN, which lm.train would inherit.
    signal.signal(number, lambda *unused: None)
  process = subprocess.Popen(
    [str(PYTHON), '-u', '-m', 'lm.train', *arguments], pass_fds=[fd]
  )
  _write('pid', process.pid)
  code = process.wait()
  _write('code', code if code >= 0 else 128 - code)


def status() -> None:
  """Prints what there is, as JSON."""
  live, code = _live(), _read('code')
  state = 'died' if _read('pid') else 'none'
  state = 'running' if live else 'ended' if code else state
  lines = _tail(RUN / 'log')
  found = {
    'worker': socket.gethostname(),
    'state': state,
    'code': int(code) if code and not live else None,
    'asked': (RUN / 'stopped').exists(),
    'bytes': (RUN / 'log').stat().st_size if lines else 0,
    'last': lines[-1] if lines else '',
  }
  print(json.dumps(found), flush=True)


def follow(start: int) -> None:
  """Prints the log from a byte on, until the run has ended."""
  while True:
    live = _live()  # asked before reading: what comes later is then empty
    if (RUN / 'log').exists():
      with (RUN / 'log').open('rb') as log:
        log.seek(start)
        while chunk := log.read(1 << 16):
          start += len(chunk)
          sys.stdout.buffer.write(chunk)
      sys.stdout.buffer.flush()
    if not live:
      return
    time.sleep(0.2)


def stop(asked: bool, patience_seconds: float) -> None:
  """Ends the run, which saves first if it can; notes if a user asked."""
  if not _live():
    _say('nothing runs here')
    return
  if asked:
    (RUN / 'stopped').touch()
  for number in (signal.SIGTERM, signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
      os.kill(int(_read('pid')), number)
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
      if not _live():
        _say(f'stopped, exit code {_read("code")}')
        return
      time.sleep(0.05)
  raise Refused('the run does not end, even by SIGKILL: delete the machine', 1)


def _take(how: int = fcntl.LOCK_EX) -> 'int | None':
  """Takes the lock of a run, or says None: a run holds it."""
  fd = os.open(RUN / 'lock', os.O_RDWR | os.O_CREAT, 0o644)
  for _ in range(10):
    try:
      fcntl.flock(fd, how | fcntl.LOCK_NB)
      return fd
    except BlockingIOError:
      if how == fcntl.LOCK_SH:
        break
      time.sleep(0.02)  # somebody may only be looking
  os.close(fd)
  return None


def _live() -> bool:
  if not (RUN / 'lock').exists():
    return False
  fd = _take(fcntl.LOCK_SH)
  if fd is not None:
    os.close(fd)
  return fd is None


def _clear_tpu_lock() -> None:
  """Removes what a killed process left; libtpu may refuse to start over it."""
  try:
    with TPU_LOCK.open('r+') as file:
      fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except FileNotFoundError:
    return
  except BlockingIOError:
    raise Refused(
      f'{TPU_LOCK}: another process holds the TPU: end it'
    ) from None
  except PermissionError:
    raise Refused(
      f'{TPU_LOCK}: is of another user: remove it with sudo if nobody is '
      'using the TPU'
    ) from None
  TPU_LOCK.unlink()
  _say(f'{TPU_LOCK}: left by a dead process: removed')


def _run(*command: object) -> None:
  subprocess.run([str(x) for x in command], check=True)


def _read(name: str) -> str:
  try:
    return (RUN / name).read_text().strip()
  except FileNotFoundError:
    return ''


def _write(name: str, value: object) -> None:
  part = RUN / f'{name}.part'
  part.write_text(str(value))
  part.replace(RUN / name)  # never half of it


def _tail(path: Path) -> 'list[str]':
  if not path.exists():
    return []
  with path.open('rb') as file:
    file.seek(max(0, path.stat().st_size - 4096))
    lines = file.read().decode(errors='replace').split('\n')
  return [x.rpartition('\r')[2][-500:] for x in lines if x.strip()]


def _say(text: str) -> None:
  print(f'{socket.gethostname()}: {text}', flush=True)


def main(argv: 'list[str]') -> int:
  """Runs one command; returns the exit code."""
  own, dashes, rest = argv, [], []
  if '--' in argv:
    at = argv.index('--')
    own, dashes, rest = argv[:at], argv[at : at + 1], argv[at + 1 :]
  parser = argparse.ArgumentParser(prog='worker.py', allow_abbrev=False)
  parser.add_argument('command')
  parser.add_argument('word', nargs='?', default='')
  parser.add_argument('--env', action='append', default=[])
  parser.add_argument('--token', default='')
  parser.add_argument('--data', action='store_true')
  parser.add_argument('--start', type=int, default=0)
  parser.add_argument('--asked', action='store_true')
  parser.add_argument('--patience_seconds', type=float, default=60)
  flags = parser.parse_args(own)
  assert bool(dashes) == (flags.command in ('start', 'supervise'))
  try:
    if flags.command == 'install':
      install(flags.word)
    elif flags.command == 'start':
      rest += [f'--data={HOME / "data"}'] if flags.data else []
      start(rest, flags.env, flags.token)
    elif flags.command == 'supervise':
      supervise(int(flags.word), rest)
    elif flags.command == 'idle':
      idle()
    elif flags.command == 'follow':
      follow(flags.start)
    elif flags.command == 'stop':
      stop(flags.asked, flags.patience_seconds)
    else:
      assert flags.command == 'status'
      status()
  except Refused as error:
    print(
      f'error: {socket.gethostname()}: {error}', file=sys.stderr, flush=True
    )
    return error.code
  except subprocess.CalledProcessError as error:
    text = f'{Path(error.cmd[0]).name} ended with {error.returncode}'
    print(f'error: {socket.gethostname()}: {text}', file=sys.stderr, flush=True)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
