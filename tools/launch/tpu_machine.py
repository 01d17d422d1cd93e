"""A TPU VM slice and the run on it, through gcloud.

The slice is a queued resource. worker.py is the part of each method that runs
on the machines themselves; it comes there with `install`.
"""

import argparse
from collections.abc import Sequence
import contextlib
from pathlib import Path
import secrets
import shlex
import subprocess
import sys
import time
from typing import Any

from lm import config
from lm.runtime import temporary
from tools.launch import arguments, commands, slices, tpu_data, tpu_workers

_SHOWN_BYTES = 1 << 16  # of an older log, before what is new
_MISSING = 'NOT_FOUND'
# Minutes, about, that workers may go on when the first one has ended.
_LATE = 10


class Machine:
  """A slice, and the run on it."""

  def __init__(
    self,
    flags: argparse.Namespace,
    slice_: slices.Slice,
    training: arguments.Training | None,
  ):
    """Takes checked flags; nothing is asked before a method is called."""
    self.shell = commands.Shell(
      dry_run=flags.dry_run, pause_seconds=flags.poll_seconds
    )
    self._workers = tpu_workers.Workers(flags, self.shell)
    self._name = flags.name
    self._flags = flags
    self._slice = slice_
    self._training = training
    self._commit = flags.commit or 'HEAD'
    self._shown: int | None = None  # bytes of the log
    self._deadline = time.monotonic() + 3600 * flags.hours

  # The queued resource.

  def create(self) -> None:
    """Asks for the slice; one that is there already is taken."""
    words = self._workers.gcloud(
      'queued-resources',
      'create',
      self._name,
      f'--node-id={self._name}',
      f'--accelerator-type={self._slice.type}',
      f'--runtime-version={self._flags.runtime or self._slice.runtime}',
      # With no launcher left that waits, it must not come and cost for ever.
      f'--valid-until-duration={3600 * self._flags.queue_hours:.0f}s',
      *(['--spot'] if self._flags.spot else []),
      *self._flags.create_flag,
    )
    result = self.shell.ask(words)
    if result.code and 'ALREADY_EXISTS' in result.error:
      commands.say(f'{self._name}: exists already: {self.state()}')
    elif result.code:
      raise commands.failure(words, result)

  def wait(self) -> None:
    """Waits until the slice is there.

    Raises:
      commands.Unreachable: it will not come, or the deadline passed.
    """
    seconds = 3600 * self._flags.queue_hours
    comment = f'until it is ACTIVE, at most {commands.duration(seconds)}'
    told = ''

    def look() -> str | None:
      nonlocal told
      state = self.state(comment)
      if state != told and not self.shell.dry_run:
        commands.say(f'{self._name}: {state}')
      told = state
      if state.split()[0] in ('FAILED', 'SUSPENDED', 'SUSPENDING', _MISSING):
        raise commands.Unreachable(
          f'{self._name}: {state}: it will not come: delete it, then create it'
        )
      return state if state == 'ACTIVE' else None

    self.shell.wait(
      f'{self._name}: the slice did not come',
      look,
      seconds=seconds,
      fix='wait again, or delete it',
    )

  def state(self, comment: str = '') -> str:
    """Asks for the state: gcloud's word, and why of FAILED; or NOT_FOUND."""
    words = self._workers.gcloud(
      'queued-resources', 'describe', self._name, '--format=json'
    )
    result = self.shell.ask(words, comment=comment)
    if self.shell.dry_run:
      return 'ACTIVE'
    if result.code and _MISSING in result.error:
      return _MISSING
    if result.code:
      raise commands.failure(words, result)
    found = commands.load_json(result.output, commands.title(words))
    state = found.get('state') or {}
    why = (state.get('failedData') or {}).get('error') or {}
    return f'{state.get("state", "UNKNOWN")} {why.get("message", "")}'.strip()

  def delete(self) -> None:
    """Gives the slice back; one that is gone already is fine."""
    words = self._workers.gcloud(
      'queued-resources', 'delete', self._name, '--force'
    )
    result = self.shell.ask(words, seconds=1800)
    if result.code and _MISSING not in result.error:
      raise commands.failure(words, result)

  # The workers.

  def pin(self) -> None:
    """Settles which commit is sent, now and after every preemption.

    Raises:
      config.ConfigError: files differ from it, or it lacks the config.
    """
    if self.shell.dry_run:
      return
    self._commit = _git('rev-parse', '--verify', f'{self._commit}^{{commit}}')
    if self._flags.commit is None:
      changed = _git('status', '--porcelain', '--untracked-files=no')
      if changed:
        raise config.ConfigError(
          f'{len(changed.splitlines())} files differ from HEAD, which is what '
          'is sent: commit them, or say --commit=HEAD'
        )
    if self._training is not None:
      _git('cat-file', '-e', f'{self._commit}:{self._training.sent()}')
    commands.say(f'{self._name}: commit {self._commit[:12]}')

  def install(self) -> None:
    """Sends the commit to all workers and installs it there.

    Raises:
      errors.Locked: a run is alive there.
      commands.Unreachable: it could not be sent or installed.
    """
    with contextlib.ExitStack() as closing:
      folder = '/tmp'
      if not self.shell.dry_run:
        folder = closing.enter_context(temporary.folder('lm-launch-'))
      tree = f'{folder}/lm-launch.tar.gz'
      words = ['git', 'archive', '--format=tar.gz', f'--output={tree}']
      if self._slice.hosts > 1:
        path = Path(folder) / 'secret'
        self.shell.write(path, arguments.secret(self.shell))
        words.append(f'--add-file={path}')
      self.shell.run([*words, self._commit])
      self._workers.send(tree)
    lines = (
      'chmod 600 lm-launch.tar.gz',
      'rm -rf lm-launch/src.part',
      'mkdir -p lm-launch/src.part',
      'tar -xzf lm-launch.tar.gz -C lm-launch/src.part',
      'python3 lm-launch/src.part/tools/launch/worker.py install tpu',
      *self._flags.setup,
    )
    self._workers.remote(' && '.join(lines), seconds=1800)

  def run(self) -> None:
    """Starts lm.train on all workers, where its data is by then.

    Raises:
      errors.Locked: a run is alive there.
      commands.Unreachable: they do not answer.
    """
    assert self._training is not None
    if self._flags.data:
      tpu_data.send(self._workers, self._flags.data)
    env = arguments.environment(self._flags.env, self._slice.hosts)
    # One token a start, so that ssh may try again what it did not see succeed.
    token = 'TOKEN' if self.shell.dry_run else secrets.token_hex(4)
    words = ['--token', token, *(x for pair in env for x in ('--env', pair))]
    words += ['--data'] if self._flags.data else []
    words += ['--', *self._training.words]
    self._workers.remote(f'{tpu_workers.SCRIPT} start {shlex.join(words)}')

  def stop(self, asked: bool = True) -> None:
    """Ends the run on all workers, which saves first.

    Args:
      asked: by the user, so that resume does not start it again.
    """
    self._workers.remote(
      f'{tpu_workers.SCRIPT} stop{" --asked" if asked else ""}'
    )

  def statuses(self) -> list[dict[str, Any]] | None:
    """Asks all workers about the run; None if not all of them answer."""
    hosts = self._slice.hosts
    try:
      result = self.shell.ask(
        self._workers.ssh(f'{tpu_workers.SCRIPT} status'), seconds=300
      )
    except commands.Unreachable:
      return None
    if self.shell.dry_run:
      return [{'state': 'running', 'bytes': 0}] * hosts
    if result.code and 'No such file' in result.error:
      nothing = {'worker': '', 'state': 'none', 'code': None, 'asked': False}
      return [{**nothing, 'bytes': 0, 'last': ''}] * hosts
    lines = [x for x in result.output.splitlines() if x.startswith('{')]
    if result.code or len(lines) != hosts:
      return None
    return [commands.load_json(x, 'worker.py status') for x in lines]

  def logs(self) -> list[dict[str, Any]] | None:
    """Prints the log of worker 0 until the run ends on all.

    Returns:
      The statuses of all workers; None if the slice is not active any more.

    Raises:
      commands.Unreachable: the deadline passed.
    """
    late = 0
    while time.monotonic() < self._deadline:
      found = self.statuses()
      if found is None:
        state = self._state_or_unknown()
        if state not in ('ACTIVE', 'UNKNOWN'):
          return None
        commands.say(f'{self._name}: {state}, but does not answer: looks again')
        self.shell.rest()
        continue
      if all(x['state'] == 'none' for x in found):
        return found
      ended = self._follow(found)
      if self.shell.dry_run or not any(x['state'] == 'running' for x in found):
        return found
      late = late + 1 if ended else 0
      if late > 1:  # the first may only have ended a moment before the others
        self.shell.rest()
      if late > _LATE:
        commands.say(f'{self._name}: stops the workers that go on without 0')
        self.stop(asked=False)
    raise commands.Unreachable(
      f'{self._name}: the run has not ended within '
      f'{commands.duration(3600 * self._flags.hours)} and goes on: see logs'
    )

  def finish(self) -> int:
    """Follows a run, brings it back until it ends, returns its exit code.

    Raises:
      commands.Unreachable: that was needed too often, or took too long.
    """
    self._deadline = time.monotonic() + 3600 * self._flags.hours
    for start in range(1, self._flags.restarts + 2):
      found = self.logs()
      if self.shell.dry_run:
        print(f'# when it is preempted, at most {self._flags.restarts} times:')
        self.revive([])
        return 0
      asked = any(x['asked'] for x in found or [])
      code = None if found is None else self.code(found)
      if code is not None:
        # At a restart, the lease of the run before may not have run out.
        refused = code == commands.REFUSED and start == 1
        if asked or refused or code in (0, *commands.FINAL):
          return code
      self.shell.rest()  # a machine that goes down ends its processes first
      state = self._state_or_unknown()
      if state == 'ACTIVE' and code is not None and commands.raised(code):
        return code
      if start <= self._flags.restarts:
        commands.say(
          f'{self._name}: {state}: start {start + 1} of at most '
          f'{self._flags.restarts + 1}'
        )
        try:
          self.revive(found or [])
        except commands.Unreachable as error:
          commands.say(f'{error}')  # preempted again: costs a start
    raise commands.Unreachable(
      f'{self._name}: started {self._flags.restarts + 1} times and not done: '
      'see its log; resume goes on'
    )

  def revive(self, found: Sequence[dict[str, Any]]) -> None:
    """Brings slice and run back; a slice that is active is kept.

    Raises:
      commands.Unreachable: it did not come, or failed again.
    """

    def look() -> str | None:
      state = self._state_or_unknown()
      busy = state in ('SUSPENDING', 'DELETING', 'UNKNOWN')
      return None if busy else state

    left = max(1.0, self._deadline - time.monotonic())
    state = self.shell.wait(
      f'{self._name}: no clear state', look, seconds=left, fix='resume later'
    )
    if state != 'ACTIVE' or self.shell.dry_run:
      self.delete()
      self.create()
      self.wait()
      self._shown = 0
      self.install()
    elif all(x['state'] == 'none' for x in found):
      self.install()
    else:
      self.stop(asked=False)  # what one process left of the others
    self.run()

  def code(self, found: Sequence[dict[str, Any]]) -> int | None:
    """Chooses the run's exit code; None if a worker has none."""
    for x in found:
      if x['code'] != 0 and x['state'] != 'none':
        commands.say(f'{x["worker"]}: {x["state"]} {x["code"]}: {x["last"]}')
    if any(x['code'] is None for x in found):
      return None
    return commands.outcome(x['code'] for x in found)

  def _follow(self, found: Sequence[dict[str, Any]]) -> bool:
    """Prints what is new in worker 0's log; whether its run has ended."""

    def sink(chunk: bytes) -> None:
      assert self._shown is not None
      self._shown += len(chunk)
      sys.stdout.buffer.write(chunk)
      sys.stdout.buffer.flush()

    if self._shown is None:  # any worker's size will do
      self._shown = max(0, min(x['bytes'] for x in found) - _SHOWN_BYTES)
    result = self.shell.stream(
      self._workers.ssh(
        f'{tpu_workers.SCRIPT} follow --start {self._shown}', worker='0'
      ),
      sink,
      seconds=max(1.0, self._deadline - time.monotonic()),
      comment='until the run ends',
    )
    if result.code:
      commands.say(f'{self._name}: {commands.reason(result)}')
    return result.code == 0

  def _state_or_unknown(self) -> str:
    """Asks for the state; UNKNOWN while nobody answers, as without network."""
    try:
      return self.state().split()[0]
    except commands.Unreachable as error:
      commands.say(f'{error}')
      return 'UNKNOWN'


def _git(*words: str) -> str:
  result = subprocess.run(['git', *words], capture_output=True, text=True)
  if result.returncode:
    error = result.stderr.strip() or f'exit code {result.returncode}'
    raise config.ConfigError(
      f'git {" ".join(words)[:90]}: {error[:70]}: commit what is to run'
    )
  return result.stdout.strip()
