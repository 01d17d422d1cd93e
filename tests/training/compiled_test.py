"""Runs that differ in numbers alone share one compiled program."""

import contextlib
import os

import jax
import numpy as np
import pytest

from lm import train
from lm.training import compiled
from tests import programs

pytestmark = pytest.mark.usefixtures('one_device')

COMPILED = '/jax/core/compile/backend_compile_duration'


@contextlib.contextmanager
def counting():
  """Yields a list that grows by one for each program that is compiled."""
  found = []

  def listen(event, seconds, **unused):
    if event == COMPILED:
      found.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def trained(folder, workdir, **changes):
  """Trains; returns the bytes of the parameters at the end."""
  settings = {'steps': 3, 'eval_every': 3, 'optim__warmup': 2} | changes
  state = train.train(programs.make(folder, **settings), workdir)
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(state.params)]


def point(n):
  """Returns the n-th point of a sweep of what may differ."""
  return {'seed': n, 'optim__peak': 1e-3 * (n + 1), 'steps': 5 + n % 2}


@pytest.mark.parametrize(
  'points', [2, pytest.param(10, marks=pytest.mark.slow)]
)
def test_the_points_of_a_sweep_compile_once(data, tmp_path, points):
  with counting() as found:
    trained(data, tmp_path / '0', **point(0))
    first = len(found)
    assert first, 'nothing is counted'
    hashes = [
      trained(data, tmp_path / f'{n}', **point(n)) for n in range(1, points)
    ]
    assert len(found) == first, 'a point compiled again'
    # Without what stays from run to run, the same point compiles.
    compiled.forget()
    again = trained(data, tmp_path / 'again', **point(points - 1))
    assert len(found) > first
  assert again == hashes[-1]
  assert len({b''.join(x) for x in hashes}) == points - 1


@pytest.mark.parametrize(
  'change',
  [
    {'optim__decay': 0.0},
    *(
      pytest.param(change, marks=pytest.mark.slow)
      for change in (
        {'model__width': 8},
        {'loss__z_weight': 0.1},
        {'batch_size': 2},
        {'microbatches': 2},
        {'numerics': 'deterministic', 'logical_shards': 4},
      )
    ),
  ],
  ids=str,
)
def test_what_changes_the_computation_compiles_again(data, tmp_path, change):
  """A failure means that a run was trained with the program of another."""
  plain = trained(data, tmp_path / 'plain')
  other = trained(data, tmp_path / 'other', **change)
  compiled.forget()
  assert trained(data, tmp_path / 'again', **change) == other != plain


def test_few_programs_stay():
  made = [compiled.once(object, n) for n in range(compiled.MOST + 1)]
  assert compiled.once(object, compiled.MOST) is made[-1]
  assert compiled.once(object, 1) is made[1]
  assert compiled.once(object, 0) is not made[0], 'the oldest stays'
  assert compiled.once(object, 2) is not made[2], 'not the oldest went'
  assert compiled.once(object, []) is not compiled.once(object, [])


def test_equal_specs_describe_one_thing(tmp_path):
  spec = {'fn': 'lm.loss:make', 'z_weight': 0.1}
  first, second = object(), object()
  assert compiled.same(spec, first) is first
  assert compiled.same(dict(spec), second) is first
  assert compiled.same(spec, second, 'another vocabulary') is second
  assert compiled.same(spec | {'z_weight': 0.2}, second) is second
  # What a file holds may be another thing by now.
  named = spec | {'teacher': str(tmp_path)}
  assert compiled.same(named, first) is first
  assert compiled.same(named, second) is second


def test_code_that_is_loaded_again_describes_another_thing(monkeypatch):
  """A failure means that a notebook trains a model that was edited since."""
  spec, first, second = {'fn': 'lm.loss:make'}, object(), object()
  assert compiled.same(spec, first) is first
  with monkeypatch.context() as patch:
    patch.setattr('lm.loss.make', lambda **unused: None)
    assert compiled.same(spec, second) is second
  assert compiled.same(spec, second) is first


def test_a_fault_is_no_part_of_the_next_run(data, tmp_path, monkeypatch):
  plain = trained(data, tmp_path / 'plain')
  monkeypatch.setitem(os.environ, 'FAULT', 'flip_bit@1')
  assert trained(data, tmp_path / 'faulty') != plain
  monkeypatch.delitem(os.environ, 'FAULT')
  assert trained(data, tmp_path / 'again') == plain
