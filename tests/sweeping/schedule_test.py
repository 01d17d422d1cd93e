"""The loop of a sweep, with stand-ins for workers that step when looked at."""

from collections.abc import Iterator
import itertools
from pathlib import Path
import types
from typing import Any

import pytest

from lm.checkpoint import manifest
from lm.reporting import metrics_log
from lm.runtime import signals
from lm.sweeping import folder as folder_lib
from lm.sweeping import points, schedule, trials, workers

STEPS = 20


class Fake:
  """A worker that takes a step whenever it is looked at.

  Attributes:
    ends: how the starts of a run end, by its name; then 'done'.
    starts: the names of all runs that were started, in their order.
    most: runs that were at work at once.
  """

  ends: dict[str, Iterator[workers.Result | None]]
  starts: list[str]
  at_work: set[str]
  most: int

  def __init__(self, log: Path):
    self.has_left = self._stopped = False
    self._name, self._workdir = '', log

  def train(self, name, config, workdir, command) -> None:
    assert not self.has_left and config and command
    self._name, self._workdir = name, workdir
    self.starts.append(name)
    self.at_work.add(name)
    Fake.most = max(Fake.most, len(self.at_work))

  def poll(self) -> workers.Result | None:
    lines = metrics_log.read(self._workdir / 'metrics.jsonl')
    step = lines[-1]['step'] if lines else 0
    end = next(self.ends.get(self._name, iter(())), None)
    result = workers.Result('stopped') if self._stopped else end
    if result is None and step < STEPS:
      self._workdir.mkdir(parents=True, exist_ok=True)
      line = {'step': step + 1, 'loss_nats': loss(self._name, step + 1)}
      metrics_log.append(self._workdir / 'metrics.jsonl', line)
      return None
    self.at_work.discard(self._name)
    self.has_left = self._stopped or result is not None
    saved = manifest.directory(self._workdir, step) / manifest.NAME
    saved.parent.mkdir(parents=True, exist_ok=True)
    saved.touch()
    return result or workers.Result('done')

  def stop(self) -> None:
    self._stopped = True

  def close(self) -> None:
    self.has_left = True


def loss(name: str, step: int) -> float:
  """Gives a run its loss: the number in its name, and less with each step."""
  return float(name.partition('_')[0]) - step / 1000


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
  Fake.ends, Fake.starts, Fake.at_work, Fake.most = {}, [], set(), 0
  monkeypatch.setattr(workers, 'Worker', Fake)
  monkeypatch.setattr(schedule, '_PAUSE_SECONDS', 0.0)
  monkeypatch.setattr(schedule, '_DRAW_SECONDS', 0.0)


def make(folder: Path, *losses: float, seeds: int = 1) -> list[schedule.Run]:
  c: Any = types.SimpleNamespace(steps=STEPS, grace_seconds=1.0)
  chosen = [
    trials.Trial(f'{x}_{seed}', {'k': x, 'seed': seed}, c, ('--config=a.py',))
    for x in losses
    for seed in range(seeds)
  ]
  place = folder_lib.Folder(folder)
  outcomes = place.outcomes()
  return [schedule.Run(x, place, outcomes.get(x.name)) for x in chosen]


def go(
  folder: Path,
  runs: list[schedule.Run],
  jobs: int,
  halving: points.Halving | None = None,
  stop: bool = False,
) -> bool:
  place = folder_lib.Folder(folder)
  plan = schedule.Schedule(
    runs, place, jobs, metric='loss_nats', halving=halving
  )
  asked = signals.Stop(1.0)
  count = itertools.count()

  def show(views) -> None:
    assert len(views) == len(runs)
    asked.requested = stop and next(count) > 0

  with place.locked():
    return plan.run(asked, show)


@pytest.fixture(autouse=True)
def _json(monkeypatch):
  monkeypatch.setattr(schedule.config, 'to_json', lambda c: 'a config')


def test_as_many_run_as_are_allowed(tmp_path):
  runs = make(tmp_path, 3, 1, 2, 5)
  assert go(tmp_path, runs, 2)
  assert Fake.most == 2 and sorted(Fake.starts) == ['1_0', '2_0', '3_0', '5_0']
  assert {run.state for run in runs} == {'done'}
  runs = make(tmp_path, 3, 1, 2, 5, 4)
  assert go(tmp_path, runs, 2)
  assert Fake.starts[4:] == ['4_0']  # nothing is done twice


def test_a_crash_costs_one_more_start_and_then_the_run(tmp_path):
  crash = workers.Result('crashed', 'why')
  Fake.ends = {'1_0': iter([crash]), '2_0': iter([crash, crash])}
  runs = make(tmp_path, 1, 2, 3)
  assert go(tmp_path, runs, 1)
  assert Fake.starts == ['1_0', '1_0', '2_0', '2_0', '3_0']
  assert [run.state for run in runs] == ['done', 'failed', 'done']
  assert [run.error for run in runs] == ['', 'why', '']
  outcomes = folder_lib.Folder(tmp_path).outcomes()
  assert outcomes['2_0'] == folder_lib.Outcome('failed', 0, 'why')
  # The next command tries it again.
  assert go(tmp_path, make(tmp_path, 1, 2, 3), 1)
  assert Fake.starts[5:] == ['2_0']


def test_an_error_that_would_come_again_is_not_tried_again(tmp_path):
  Fake.ends = {'1_0': iter([workers.Result('failed', 'full disk')])}
  runs = make(tmp_path, 1, 2)
  assert go(tmp_path, runs, 1)
  assert Fake.starts == ['1_0', '2_0'] and runs[0].state == 'failed'


def test_a_run_that_is_locked_waits_for_its_trainer(tmp_path, monkeypatch):
  locked = workers.Result('locked', 'by 17')
  Fake.ends = {'1_0': iter([locked])}
  runs = make(tmp_path, 1, 2)
  clock = itertools.count()
  monkeypatch.setattr(schedule.time, 'monotonic', lambda: float(next(clock)))
  assert go(tmp_path, runs, 1)
  assert sorted(Fake.starts) == ['1_0', '1_0', '2_0']
  assert {run.state for run in runs} == {'done'}
  Fake.ends = {'3_0': itertools.repeat(locked)}
  runs = make(tmp_path, 3)
  assert go(tmp_path, runs, 1)
  assert (runs[0].state, runs[0].error) == ('failed', 'by 17')


def test_a_stop_lets_all_save_and_the_rest_is_done_later(tmp_path):
  runs = make(tmp_path, 1, 2, 3)
  assert not go(tmp_path, runs, 2, stop=True)
  assert not Fake.at_work and not any(run.is_over for run in runs)
  assert go(tmp_path, make(tmp_path, 1, 2, 3), 2)


@pytest.mark.parametrize('jobs', [1, 2, 3, 8])
def test_halving_ends_the_same_runs_with_any_number_of_jobs(tmp_path, jobs):
  halving = points.Halving((5, 10), 0.5)
  runs = make(tmp_path, 4, 1, 3, 2, seeds=2)
  assert go(tmp_path, runs, jobs, halving)
  ended = {run.trial.name: run.rung for run in runs}
  assert ended == {
    '4_0': 5, '4_1': 5, '3_0': 5, '3_1': 5,
    '2_0': 10, '2_1': 10, '1_0': None, '1_1': None,
  }  # fmt: skip
  assert {run.state for run in runs} == {'ended', 'done'}
  # Who is past a rung makes room: no run that was ended took all its steps.
  if jobs == 1:
    lines = metrics_log.read(tmp_path / 'runs' / '4_0' / 'metrics.jsonl')
    assert 5 <= lines[-1]['step'] < 10
  before = len(Fake.starts)
  again = make(tmp_path, 4, 1, 3, 2, seeds=2)
  assert go(tmp_path, again, jobs, halving)
  assert {run.trial.name: run.rung for run in again} == ended
  assert Fake.starts[before:] == [], Fake.starts


def test_a_run_that_fails_loses_at_the_next_rung(tmp_path):
  Fake.ends = {'1_0': iter([workers.Result('failed', 'why')])}
  runs = make(tmp_path, 1, 2, 3)
  assert go(tmp_path, runs, 1, points.Halving((5,), 0.5))
  assert [run.state for run in runs] == ['failed', 'done', 'ended']


def test_a_run_that_ends_before_a_rung_has_arrived_there(tmp_path):
  done = workers.Result('done')
  Fake.ends = {'1_0': itertools.chain([None] * 3, [done])}
  runs = make(tmp_path, 3, 2, 1, 4)
  assert go(tmp_path, runs, 2, points.Halving((5,), 0.5))
  assert [run.rung for run in runs] == [5, None, None, 5]
