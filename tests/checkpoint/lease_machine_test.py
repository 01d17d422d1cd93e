"""The lease as a state machine: trainers die, stop and wake at every step.

A failure means that two processes can write into one run, that a process which
was replaced still writes, or that nobody can take the place of a dead one. The
trainers share this process, with a clock of their own; files and locks are
real. What happens to others in the middle of an operation happens right after
one of its checks, which is the worst moment.
"""

from collections.abc import Callable
import itertools
from pathlib import Path
import shutil
import tempfile
from typing import Any
from unittest import mock

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st
import pytest

from lm import checkpoint, errors
from lm.checkpoint import lease, manifest, orbax_io, read_locks
from lm.reporting import metrics_log

YEAR = 365 * 86400.0
NAMES = ('a', 'b', 'c')
places = st.integers(0, 2)
# What others do, or what befalls the folder, while a trainer stands still.
EVENTS = ('replace', 'replace', 'save', 'jump', 'flip', 'delete', 'die')
# At which check of an operation what happens, if anything does.
interruptions = st.none() | st.tuples(
  st.integers(0, 2),
  st.lists(st.sampled_from(EVENTS), min_size=1, max_size=3),
)


class Died(Exception):
  """Ends an operation of a trainer that was killed in the middle of it."""


class Clock:
  """Stands in for the module `time`; sleeping lets the others live on."""

  def __init__(self):
    self.now, self.ticks = 1e9, 0.0
    self.passed: Callable[[], None] = lambda: None

  def time(self) -> float:
    return self.now

  def monotonic(self) -> float:
    return self.ticks

  def sleep(self, seconds: float) -> None:
    self.now += seconds
    self.ticks += seconds
    self.passed()


class Trainer:
  """One process that trains."""

  def __init__(self, workdir: Path, ticks: float):
    self.saver = checkpoint.Checkpointer(workdir, keep=2)
    self.saver.__enter__()
    self.lease = self.saver._lease
    self.beaten = ticks
    self.stopped = self.dead = False
    newest = max(checkpoint.steps(workdir), default=0)
    self.log = metrics_log.Log(workdir, newest, self.saver.check)

  def beat(self, ticks: float) -> None:
    if not self.stopped and ticks - self.beaten >= lease.BEAT_SECONDS:
      self.lease._touch()
      self.beaten = ticks

  def holds(self) -> bool:
    try:
      CHECK(self.lease)
    except errors.Locked:
      return False
    return True

  def die(self) -> None:
    """Does what the kernel does for a process that it has killed."""
    self.dead = True
    self.lease._stop.set()
    self.lease._close()

  def leave(self, error: BaseException | None = None) -> None:
    self.dead = True
    self.saver.__exit__(type(error), error, None)


CHECK, DELETE, REMOVE = lease.Lease.check, read_locks.delete, read_locks.remove


class Trainers(stateful.RuleBasedStateMachine):
  """Up to three trainers of one folder."""

  def __init__(self):
    super().__init__()
    self.workdir = Path(tempfile.mkdtemp()) / 'run'
    self.clock = Clock()
    self.clock.passed = self._beat
    self.trainers: dict[str, Trainer] = {}
    self.tokens: list[int] = []
    self.old: bytes | None = None  # of the lease of an earlier holder
    # By trainer: at which of its checks what happens.
    self.pending: tuple[Trainer, list[int], list[str]] | None = None
    self.after: dict[str, bytes] | None = None  # the folder after that
    self.locks = self.rewound = self.deleting = False
    self.patches = [
      mock.patch.object(lease, 'time', self.clock),
      mock.patch.object(lease.Lease, 'check', lambda x: self._check(x)),
      mock.patch.object(orbax_io, 'write', lambda place, _: place.mkdir()),
      mock.patch.object(read_locks, 'delete', self._delete),
      mock.patch.object(read_locks, 'remove', self._remove),
    ]
    for patch in self.patches:
      patch.start()

  @stateful.initialize(locks=st.booleans())
  def begin(self, locks):
    """Chooses a file system with locks, or one without."""
    self.locks = locks
    if not locks:
      patch = mock.patch.object(lease.fcntl, 'flock', side_effect=OSError)
      self.patches.append(patch)
      # `read_locks` asks the same module; it has its own tests.
      patch.start()

  def teardown(self):
    for trainer in self.trainers.values():
      if not trainer.dead:
        trainer.die()
    for patch in reversed(self.patches):
      patch.stop()
    shutil.rmtree(self.workdir.parent)

  # --- what the production code is made to meet

  def _beat(self):
    for trainer in self.trainers.values():
      if not trainer.dead:
        trainer.beat(self.clock.ticks)

  def _check(self, held):
    """Checks the lease of a trainer, and then strikes."""
    if self.pending and self.pending[0].dead:
      raise Died  # its clean-up asks too, and a dead process does not clean up
    CHECK(held)
    if self.pending is None or self.pending[0].lease is not held:
      return
    # From this check to the rename of an old step a few instructions are left,
    # and nothing that a file system offers could close this gap.
    if self.deleting:
      return
    trainer, counts, events = self.pending
    counts[0] -= 1
    if counts[0] >= 0:
      return
    self.pending = None
    trainer.stopped = True
    for event in events:
      if event == 'die':
        trainer.die()
        break
      self._happen(event)
    self._end_if_replaced(trainer)
    self.pending = trainer, [1000], []
    trainer.stopped = False
    if trainer.dead:
      raise Died

  def _end_if_replaced(self, trainer):
    # Where the lease was only deleted, nobody has cleared away what a trainer
    # is about to commit, and nobody is harmed by it.
    if not trainer.dead and self.tokens[-1] != trainer.lease.token:
      self.after = self._files()

  def _delete(self, path, step=None):
    if not (self.pending and self.pending[0].dead):
      DELETE(path, step)

  def _remove(self, *arguments):
    self.deleting = True
    try:
      return REMOVE(*arguments)
    finally:
      self.deleting = False

  # --- what happens

  def _files(self) -> dict[str, bytes]:
    # An empty file says nothing: a line is appended to one that is there.
    return {
      str(path.relative_to(self.workdir)): content
      for path in self.workdir.rglob('*')
      if path.is_file() and (content := path.read_bytes())
    }

  def _happen(self, event: str) -> None:
    if event == 'jump':
      self.clock.now += YEAR
    elif event == 'flip':
      self.flip(17)
    elif event == 'delete':
      self.delete()
    elif event == 'replace':
      self.clock.sleep(100.0)
      if name := self._free():
        self._start(name)
    else:
      for trainer in self.trainers.values():
        if not trainer.dead and not trainer.stopped:
          self._operate(trainer, 'save', None)
          return

  def _start(self, name: str) -> bool:
    """Starts a trainer; returns whether it was let in."""
    path = self.workdir / lease.NAME
    content = path.read_bytes() if path.exists() else None
    living = [x for x in self.trainers.values() if not x.dead and x.holds()]
    has_sealed = self.locks and living and content and lease._read(path) is None
    try:
      self.trainers[name] = Trainer(self.workdir, self.clock.ticks)
    except errors.Locked as error:
      assert error.exit_code == 3
      return False
    token = self.trainers[name].lease.token
    assert token > max(self.tokens, default=0), 'a token has come again'
    self.tokens.append(token)
    assert not has_sealed, 'an unreadable lease was taken from its owner'
    # Without locks nothing is left to tell, where the words are those of a
    # lease that was given back.
    for trainer in living:
      assert trainer.stopped or (self.rewound and not self.locks), (
        'a trainer that gives heartbeats was replaced'
      )
    self.old, self.rewound = content or self.old, False
    return True

  def _operate(self, trainer: Trainer, what: str, interruption: Any) -> None:
    """Lets a trainer do something, and ends it if it is told that it is out."""
    outer = self.pending, self.after
    checks, events = interruption or (1000, [])
    self.pending, self.after = (trainer, [checks], list(events)), None
    if not trainer.holds():
      self.after = self._files()
    step = max(manifest.candidates(self.workdir), default=0) + 1
    error = None
    try:
      if what == 'save':
        trainer.saver.save(step, {}, {'token': trainer.lease.token})
        trainer.saver.wait()
        assert manifest.read_meta(self.workdir, step) == {
          'token': trainer.lease.token
        }
      elif what == 'line':
        trainer.log.now(step, {'token': trainer.lease.token})
      elif what == 'config':
        content = f'of {trainer.lease.token}'.encode()
        trainer.saver.store('config.json', content)
      else:
        trainer.leave()
    except Died:
      pass
    except errors.Locked as locked:
      assert locked.exit_code == 3
      error = locked
    finally:
      (self.pending, _), after = outer, self.after
      self.after = outer[1]
    if after is not None:
      assert self._files() == after, 'a replaced trainer has written'
      assert error or trainer.dead or what != 'save'
    if error:
      trainer.leave(error)
      if after is not None:
        assert self._files() == after, 'its end has written'

  # --- rules

  def _living(self, name: str) -> Trainer | None:
    trainer = self.trainers.get(name)
    return None if trainer is None or trainer.dead else trainer

  def _all(self) -> list[Trainer]:
    return [x for x in self.trainers.values() if not x.dead]

  def _free(self) -> str | None:
    return next((n for n in NAMES if not self._living(n)), None)

  @stateful.precondition(lambda self: self._free())
  @stateful.rule()
  def start(self):
    self._start(self._free() or '')

  @stateful.precondition(lambda self: not all(x.stopped for x in self._all()))
  @stateful.rule(
    which=places,
    what=st.sampled_from(('save', 'line', 'config', 'leave')),
    interruption=interruptions,
  )
  def operate(self, which, what, interruption):
    ready = [x for x in self._all() if not x.stopped]
    self._operate(ready[which % len(ready)], what, interruption)

  @stateful.precondition(lambda self: self._all())
  @stateful.rule(which=places)
  def stop_or_wake(self, which):
    trainer = self._all()[which % len(self._all())]
    trainer.stopped = not trainer.stopped

  @stateful.precondition(lambda self: self._all())
  @stateful.rule(which=places)
  def kill(self, which):
    self._all()[which % len(self._all())].die()

  @stateful.rule(seconds=st.sampled_from((1.0, 10.0, 30.0)))
  def wait(self, seconds):
    self.clock.sleep(seconds)

  @stateful.rule(seconds=st.sampled_from((-YEAR, -3600.0, 90.0, YEAR)))
  def jump(self, seconds):
    self.clock.now += seconds

  def _rewrite(self, change: Callable[[bytes], bytes]) -> None:
    """Changes the lease's bytes, and neither its inode nor its time."""
    path = self.workdir / lease.NAME
    if path.exists():
      about = path.stat()
      with path.open('rb+') as file:
        content = change(file.read())
        file.seek(0)
        file.write(content)
      lease.os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))

  @stateful.rule(bit=st.integers(0, 8 * 300 - 1))
  def flip(self, bit):
    def change(content: bytes) -> bytes:
      found = bytearray(content)
      found[bit // 8] ^= 1 << bit % 8
      return bytes(found)

    self._rewrite(change)

  @stateful.rule()
  def rewind(self):
    if self.old is not None:
      self._rewrite(lambda _: self.old or b'')
      self.rewound = True

  @stateful.rule()
  def delete(self):
    (self.workdir / lease.NAME).unlink(missing_ok=True)

  @stateful.rule()
  def take_the_place_of_the_dead(self):
    """A place is free in the end, but for a stopped owner that has a lock."""
    if any(not x.dead and x.holds() for x in self.trainers.values()):
      return
    name = self._free()
    if name is None:
      return
    self.clock.sleep(100.0)
    assert self._start(name), 'nobody can take the place of a dead trainer'

  # --- what always holds

  @stateful.invariant()
  def one_writer(self):
    holders = [x for x in self.trainers.values() if not x.dead and x.holds()]
    assert len(holders) <= 1

  @stateful.invariant()
  def whole_steps(self):
    for step in manifest.candidates(self.workdir):
      assert manifest.verify(self.workdir, step)['step'] == step
      assert manifest.read_meta(self.workdir, step)['token'] in self.tokens


TestTrainers = Trainers.TestCase
TestTrainers.settings = hypothesis.settings(
  max_examples=60, stateful_step_count=25
)


@pytest.mark.slow
@pytest.mark.parametrize('locks', (True, False))
@pytest.mark.parametrize('what', ('save', 'line', 'config', 'leave'))
def test_every_operation_interrupted_at_every_check(what, locks):
  for first, second in itertools.product(EVENTS[1:], ('', 'replace', 'save')):
    for check in range(3 if what == 'save' else 2):
      machine = Trainers()
      try:
        machine.begin(locks)
        machine.start()
        trainer = machine.trainers['a']
        for each in ('config', 'line', 'save'):
          machine._operate(trainer, each, None)
        events = [first, second] if second else [first]
        machine._operate(trainer, what, (check, events))
        machine.take_the_place_of_the_dead()
        for other in machine._all():
          machine._operate(other, 'save', None)
        machine.one_writer()
        machine.whole_steps()
      finally:
        machine.teardown()
