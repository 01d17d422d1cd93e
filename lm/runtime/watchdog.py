"""Ends a process whose work stands still, and says where it stands.

A training loop says by `begin` what it does now: a step, an evaluation, a save.
A step that takes many times its usual time, the median of the last ones, is
taken to be hung. Then the stacks of all threads are printed and stored, and the
process ends with exit code 10, so that whatever started it starts it again.

The watchdog is a thread, since the main thread of a run that hangs waits inside
of a device, a collective or a file system. It needs Python's lock now and then:
an extension that waits for ever without giving it back is not noticed.

Several processes that train together hang together, because each waits for the
slowest in the next collective. So process 0 asks all of them what they do, and
the run ends only if those that are furthest behind have taken too long. They
are named, and all processes print their stacks.

Seconds are counted while this process runs: neither a laptop that sleeps nor
SIGSTOP makes a step longer. What has a deadline of its own keeps it: batches
(`lm.data.prefetch`), saves (`lm.checkpoint`), processes that are silent
(`process_group`).
"""

import collections
import os
from pathlib import Path
import statistics
import sys
import threading
import time
from typing import Any, NamedTuple

from lm import config, errors
from lm.runtime import process_group, regular_files

FOLDER = 'stalls'  # of a run, where stacks are stored
_SAMPLES = 5  # that make a usual time
_RECENT = 100  # that it is the median of
_ANSWER_SECONDS = 5.0  # that the other processes have to say what they do
_WRITE_SECONDS = 2.0  # that stderr or storage has to take the stacks


class Hung(errors.Failure):
  """A step takes far longer than usual."""

  exit_code = 10


def check(factor: float, least_seconds: float, first_seconds: float) -> None:
  """Checks settings of a watchdog, see `Watchdog`.

  Raises:
    config.ConfigError: they would end each run at once.
  """
  if not (factor >= 0 and least_seconds > 0 and first_seconds > 0):
    raise config.ConfigError(
      f'watchdog: {factor=:g}, {least_seconds=:g}, {first_seconds=:g} end '
      'each run at once: give seconds above 0; factor=0 turns it off'
    )


class _Work(NamedTuple):
  """Describes what the main thread does.

  Attributes:
    number: counts the works; all processes do the same ones in the same order.
    name: for messages.
    step: that it belongs to.
    kind: by which usual times are kept; None: it has none.
    since: when it began, by `time.monotonic`.
  """

  number: int
  name: str
  step: int
  kind: str | None
  since: float


class Watchdog:
  """Watches the main thread while inside `with`."""

  def __init__(
    self,
    folder: Path,
    group: process_group.ProcessGroup,
    *,
    factor: float,
    least_seconds: float,
    first_seconds: float,
  ):
    """Prepares to watch.

    Args:
      folder: of the run.
      group: the processes that train it together.
      factor: times the usual seconds that something may take; 0: any.
      least_seconds: that it may take, however short it usually is.
      first_seconds: that it may take while its usual time is not known.
    """
    self._folder, self._group = folder, group
    self._factor, self._least_seconds = factor, least_seconds
    self._first_seconds = first_seconds
    self._seconds: dict[str, collections.deque[float]] = (
      collections.defaultdict(lambda: collections.deque(maxlen=_RECENT))
    )
    self._work: _Work | None = None
    # The work that the watching thread has seen, and its seconds until now.
    self._seen: tuple[_Work | None, float] = None, 0.0
    # Guards and announces what other processes have said.
    self._changed = threading.Condition()
    self._reports: dict[int, dict[str, Any]] = {}  # process 0: what all do
    self._decision = ''  # why all processes end
    self._over = False

  def __enter__(self) -> 'Watchdog':
    if self._factor:
      self._group.listen('watchdog', self._hear)
      threading.Thread(
        target=self._watch, name='lm-watchdog', daemon=True
      ).start()
    return self

  def __exit__(self, *unused: object) -> None:
    with self._changed:
      self._over = True
      self._changed.notify_all()

  def begin(self, name: str, step: int, kind: str | None = None) -> None:
    """Says what the main thread does from now on, until it says so again.

    Args:
      name: for messages, such as 'saving'.
      step: that it belongs to.
      kind: of what is alike and takes about the same time; None for what has no
        usual time.
    """
    now, old = time.monotonic(), self._work
    if old is not None and old.kind is not None:
      self._seconds[old.kind].append(now - old.since)
    number = 1 if old is None else old.number + 1
    self._work = _Work(number, name, step, kind, now)

  # The methods from here on are what other threads do.

  def _bounds(self, work: _Work) -> tuple[float | None, float]:
    """Returns the usual seconds of a work, if known, and the most of all."""
    # At once, since the main thread may go on and add to it.
    recent = list(self._seconds[work.kind]) if work.kind else []
    if len(recent) < _SAMPLES:
      return None, self._first_seconds
    usual = statistics.median(recent)
    return usual, max(self._least_seconds, self._factor * usual)

  def _watch(self) -> None:
    """Counts the seconds of each work, and ends the process after too many."""
    tick = min(1.0, max(self._least_seconds / 10, 0.01))
    last, asked = time.monotonic(), 0
    while not self._over:
      with self._changed:
        self._changed.wait(tick)
      now = time.monotonic()
      # A process that was stopped for an hour has not worked for an hour.
      passed, last = min(now - last, 2 * tick), now
      work, (seen, seconds) = self._work, self._seen
      if work is None or work is not seen or _is_in_debugger():
        self._seen, asked = (work, 0.0), 0
      else:
        self._seen = work, seconds + passed
        # What others wait for may be in order; then it asks again, but later.
        if seconds + passed > self._bounds(work)[1] * (asked + 1):
          asked += 1
          self._suspect()
      if self._group.leads and self._others_wait():
        self._suspect()
      if self._decision and not self._over:
        self._group.end(Hung(self._decision), self._dump)

  def _suspect(self) -> None:
    """Asks for a decision: process 0 makes it, by what all processes do."""
    if not self._group.leads:
      self._group.tell('watchdog', {'report': self._report()})
      return
    with self._changed:
      self._reports.clear()
    self._group.tell('watchdog', {'ask': True})
    with self._changed:
      self._changed.wait_for(
        lambda: len(self._reports) == self._group.count - 1, _ANSWER_SECONDS
      )
      reports = {0: self._report(), **self._reports}
      self._reports.clear()
    self._decision = self._judge(reports)
    if self._decision:
      self._group.tell('watchdog', {'decision': self._decision})

  def _judge(self, reports: dict[int, dict[str, Any]]) -> str:
    """Says in one line what hangs; '' if nothing does."""
    behind = min(x['number'] for x in reports.values())
    there = {i: x for i, x in reports.items() if x['number'] == behind}
    late = [x for x in there.values() if x['waited'] > x['most']]
    if not late:
      return ''  # the others wait for what has a deadline of its own
    found = max(late, key=lambda x: x['waited'])
    usual = found['usual']
    usually = '' if usual is None else f', usually {usual:.2g} s'
    where = ''
    if len(there) < self._group.count:
      where = f' on {self._group.name(min(there))}'
    elif self._group.count > 1:
      where = f' on all {self._group.count} processes'
    return (
      f'step {found["step"]}: {found["name"]} has taken {found["waited"]:.0f} s'
      f'{usually}{where}: see the stacks in {FOLDER}/, and start it again'
    )

  def _report(self) -> dict[str, Any]:
    work, (seen, seconds) = self._work, self._seen
    if work is None:
      return {'number': 0, 'waited': 0.0, 'most': 0.0}
    usual, most = self._bounds(work)
    return {
      'number': work.number,
      'name': work.name,
      'step': work.step,
      'waited': seconds if seen is work else 0.0,
      'usual': usual,
      'most': most,
    }

  def _others_wait(self) -> bool:
    with self._changed:
      return bool(self._reports)

  def _hear(self, process: int, message: dict[str, Any]) -> None:
    """Takes a message of another process, in the thread that receives it."""
    if 'ask' in message:
      self._group.tell('watchdog', {'report': self._report()})
    with self._changed:
      if 'report' in message:
        self._reports[process] = message['report']
      self._decision = message.get('decision', self._decision)
      self._changed.notify_all()

  def _dump(self) -> None:
    """Prints the stacks of all threads, and stores them."""
    # A pipe that nobody reads, or storage that hangs, must not hold this up.
    text = _stacks()
    for write in (_print, self._store):
      thread = threading.Thread(target=write, args=(text,), daemon=True)
      thread.start()
      thread.join(_WRITE_SECONDS)

  def _store(self, text: bytes) -> None:
    step = self._work.step if self._work else 0
    folder = self._folder / FOLDER
    path = folder / f'step-{step:08d}-process-{self._group.index}.txt'
    try:
      folder.mkdir(exist_ok=True)
      with regular_files.open_append(path) as file:
        file.write(text)
    except OSError as error:
      _print(f'{path}: cannot be written: {error}\n'.encode())


def _stacks() -> bytes:
  """Lists where all threads stand; needs no file, as the disk may be full."""
  names = {x.ident: x.name for x in threading.enumerate()}
  lines = []
  for thread, frame in sys._current_frames().items():
    lines.append(f'{names.get(thread, "unnamed")}: thread {thread:#018x}')
    place = frame
    while place is not None:
      code = place.f_code
      lines.append(
        f'  File "{code.co_filename}", line {place.f_lineno} in {code.co_name}'
      )
      place = place.f_back
  return '\n'.join([*lines, '']).encode(errors='backslashreplace')


def _print(text: bytes) -> None:
  while text:
    text = text[os.write(2, text) :]


def _is_in_debugger() -> bool:
  """Tells whether somebody looks at the main thread in a debugger.

  That is pdb and what is built on it, or debugpy of VS Code and PyCharm's.
  """
  frame = sys._current_frames().get(threading.main_thread().ident or 0)
  while frame is not None:
    if frame.f_globals.get('__name__') in ('bdb', 'pydevd'):
      return True
    frame = frame.f_back
  return False
