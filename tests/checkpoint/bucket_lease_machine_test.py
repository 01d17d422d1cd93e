"""The lease in a bucket as a state machine: see `lease_machine_test`.

A failure means that two machines can write into one bucket, that one which was
replaced still writes, or that nobody can take the place of a dead one. A bucket
has no writes that depend on what is there, so machines stand still between
their requests and not within them.
"""

from typing import Any
from unittest import mock

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st
import pytest

from lm import errors
from lm.checkpoint import bucket_lease

HOSTS = ('a', 'b', 'c')
hosts = st.sampled_from(HOSTS)
NAME = 'lease.json'


class Shelf:
  """A bucket in memory."""

  address = 'gs://shelf/run'

  def __init__(self):
    self.objects: dict[str, bytes] = {}

  def read(self, name: str) -> bytes | None:
    return self.objects.get(name)

  def write(self, name: str, data: bytes) -> None:
    self.objects[name] = data


class Machines(stateful.RuleBasedStateMachine):
  """Up to three machines that train into one bucket."""

  def __init__(self):
    super().__init__()
    self.shelf: Any = Shelf()
    self.ticks, self.host = 0.0, ''
    self.leases: dict[str, bucket_lease.BucketLease] = {}
    self.beaten: dict[str, float] = {}
    self.stopped: set[str] = set()
    self.ids: set[str] = set()
    clock = mock.Mock(monotonic=lambda: self.ticks, sleep=self.sleep)
    self.patches = [
      mock.patch.object(bucket_lease, 'time', clock),
      mock.patch.object(bucket_lease.socket, 'gethostname', lambda: self.host),
    ]
    for patch in self.patches:
      patch.start()

  def teardown(self):
    for patch in self.patches:
      patch.stop()

  def sleep(self, seconds: float) -> None:
    """Lets time pass, in which the others give their heartbeats."""
    self.ticks += seconds
    host = self.host
    for name in list(self.leases):
      if (
        name not in self.stopped
        and self.ticks - self.beaten[name] >= bucket_lease.BEAT_SECONDS
      ):
        self.operate(name, 'beat')
        self.beaten[name] = self.ticks
    self.host = host

  def holders(self) -> list[str]:
    found = []
    for name, lease in self.leases.items():
      try:
        lease.check()
      except errors.Locked:
        continue
      found.append(name)
    return found

  def take(self, name: str) -> bool:
    self.host = name
    living = [x for x in self.holders() if x not in self.stopped]
    lease = bucket_lease.BucketLease(self.shelf, NAME)
    there = NAME in self.shelf.objects
    try:
      lease.take()
    except errors.Locked as error:
      assert error.exit_code == 3
      return False
    assert lease._id not in self.ids, 'an id has come again'
    self.ids.add(lease._id)
    assert not (living and there), (
      'a machine that gives heartbeats was replaced'
    )
    self.leases[name], self.beaten[name] = lease, self.ticks
    return True

  @stateful.rule(name=hosts)
  def start(self, name):
    if name not in self.leases:
      self.take(name)

  @stateful.rule(name=hosts, what=st.sampled_from(('beat', 'write', 'leave')))
  def operate(self, name, what):
    if name not in self.leases or name in self.stopped:
      return
    self.host = name
    lease, held = self.leases[name], name in self.holders()
    before = dict(self.shelf.objects)
    try:
      if what == 'leave':
        lease.release()
        del self.leases[name]
      elif what == 'beat':
        lease.beat()
      else:
        lease.check()
        self.shelf.write('step', lease._id.encode())
    except errors.Locked as error:
      assert error.exit_code == 3 and not held
      lease.release()  # so does a program that ends
      del self.leases[name]
    assert held or self.shelf.objects == before, (
      'a replaced machine has written'
    )

  @stateful.rule(name=hosts)
  def stop_or_wake(self, name):
    if name in self.leases:
      self.stopped ^= {name}

  @stateful.rule(name=hosts)
  def kill(self, name):
    self.leases.pop(name, None)
    self.stopped.discard(name)

  @stateful.rule(seconds=st.sampled_from((1.0, 9.0, 40.0)))
  def wait(self, seconds):
    self.sleep(seconds)

  @stateful.rule(bit=st.integers(0, 8 * 200 - 1))
  def flip(self, bit):
    content = bytearray(self.shelf.objects.get(NAME, b''))
    if bit // 8 < len(content):
      content[bit // 8] ^= 1 << bit % 8
      self.shelf.write(NAME, bytes(content))

  @stateful.rule()
  def delete(self):
    self.shelf.objects.pop(NAME, None)

  @stateful.rule(name=hosts)
  def take_the_place_of_the_dead(self, name):
    if name in self.leases or any(
      x not in self.stopped for x in self.holders()
    ):
      return
    assert self.take(name), 'nobody can take the place of a dead machine'

  @stateful.invariant()
  def one_holder(self):
    assert len(self.holders()) <= 1


TestMachines = Machines.TestCase
TestMachines.settings = hypothesis.settings(
  max_examples=200, stateful_step_count=30
)


@pytest.mark.parametrize('word', ['1e300', 'NaN', 'Infinity', '-1'])
def test_words_of_a_lease_lengthen_no_wait(monkeypatch, word):
  shelf: Any = Shelf()
  other = bucket_lease.BucketLease(shelf, NAME)
  other._beat_seconds = float(word)
  monkeypatch.setattr(bucket_lease.socket, 'gethostname', lambda: 'far')
  other._write(held=True)
  monkeypatch.undo()
  waited = [0.0]
  clock = mock.Mock(
    monotonic=lambda: waited[0],
    sleep=lambda seconds: waited.append(waited.pop() + seconds),
  )
  monkeypatch.setattr(bucket_lease, 'time', clock)
  bucket_lease.BucketLease(shelf, NAME).take()
  # A lease without sense is watched too, and no longer than any other.
  assert 25 <= waited[0] < 28
