"""Sweeps through the program: run, killed, resumed, widened, halved, launched.

A failure means that a sweep loses work, does it twice, or that its table
depends on what happened on the way.
"""

import csv
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lm import checkpoint, config, errors, sweep
from lm.sweeping import folder as folder_lib
from lm.training import run_record
from tests import programs

FILE = f'{programs.ROOT}/tests/sweeping/swept_config.py'
NAMES = ['base', 'peak=0.03', 'peak=0.03_seed=1', 'seed=1']
pytestmark = pytest.mark.process


def flags(data: Path, workdir: Path, *words: str) -> list[str]:
  return [f'--config={FILE}:{data}', f'--workdir={workdir}', '--jobs=2', *words]


def table(workdir: Path) -> list[dict[str, str]]:
  with (workdir / 'table.csv').open() as file:
    return list(csv.DictReader(file))


def runs(workdir: Path) -> dict[str, dict]:
  """Reads the row of each run."""
  rows = json.loads((workdir / 'table.json').read_text())['runs']
  return {row['name']: row for row in rows}


def at_work(workdir: Path) -> set[int]:
  """Lists the processes that train runs of a sweep."""
  holders = [checkpoint.holder(x) for x in (workdir / 'runs').glob('*')]
  return {holder['pid'] for holder in holders if holder}


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory) -> tuple[Path, list[dict]]:
  """A sweep that nobody disturbed, by the function; do not change it."""
  workdir = tmp_path_factory.mktemp('sweep') / 'a'
  seen = []
  rows = sweep.sweep(
    f'{FILE}:{data}', workdir=workdir, jobs=2, show=seen.append
  )
  assert {len(views) for views in seen} == {4}
  assert max(sum(x.state == 'running' for x in views) for views in seen) == 2
  return workdir, rows


@pytest.mark.slow
def test_a_sweep_gives_a_row_for_each_run_and_a_table(finished):
  workdir, rows = finished
  assert sorted(row['name'] for row in rows) == NAMES
  for row in rows:
    assert row['state'] == 'done' and row['step'] == 24 and row['error'] == ''
    run = Path(row['workdir'])
    assert run == workdir / 'runs' / row['name']
    assert checkpoint.steps(run)[-1] == 24
    stored = config.from_json((run / 'config.json').read_text())
    assert (stored.optim.peak, stored.seed) == (row['optim.peak'], row['seed'])
    (started,) = run_record.read(run)['starts']
    assert started['command'][:3] == ['python', '-m', 'lm.train']
    assert started['command'][-1] == f'--workdir={run}'
    losses = dict(programs.losses(run))
    assert row['loss_nats'] == losses[24]  # the last tenth of twelve lines
  found = table(workdir)
  assert [*found[0]][:4] == ['optim.peak', 'runs', 'state', 'step']
  assert len(found) == 2 and {row['runs'] for row in found} == {'2'}
  name = 'valid/loss_nats'  # it is evaluated in training, so it decides
  assert float(found[0][name]) < float(found[1][name])
  for line in found:
    mine = [r[name] for r in rows if str(r['optim.peak']) == line['optim.peak']]
    assert float(line[name]) == pytest.approx(sum(mine) / 2, rel=1e-12)
    low, high = float(line[f'{name} low']), float(line[f'{name} high'])
    assert low < min(mine) and max(mine) < high
  assert (workdir / 'plot.png').stat().st_size > 1000
  assert all(name in (workdir / 'page.html').read_text() for name in NAMES)
  text = (workdir / 'table.md').read_text()
  assert text.startswith('| optim.peak | runs | state | step | valid/loss_nats')


@pytest.mark.slow
def test_kills_and_interrupts_change_nothing(data, finished, start, tmp_path):
  workdir = tmp_path / 'a'
  words = flags(data, workdir, '--config.data.seconds=0.1')
  metrics = workdir / 'runs' / 'base' / 'metrics.jsonl'
  # Ctrl-C: every run saves, and all processes end.
  process = start('sweep', words)
  process.wait_for(lambda: metrics.exists() and metrics.stat().st_size)
  process.send(signal.SIGINT)
  assert process.error(143).startswith(f'{workdir}: by a signal; 0 of 4 runs')
  assert not at_work(workdir) and checkpoint.steps(workdir / 'runs' / 'base')
  assert runs(workdir)['base']['state'] == 'unfinished'
  # kill -9: its workers notice, save and end.
  process = start('sweep', words)
  process.wait_for(lambda: at_work(workdir))
  left = at_work(workdir)
  process.send(signal.SIGKILL)
  process.wait()
  deadline = time.monotonic() + programs.PATIENCE_SECONDS
  while any(Path(f'/proc/{pid}').exists() for pid in left):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process = start('sweep', words)
  assert process.wait() == 0, process.text()
  for name in ('table.csv', 'table.md'):
    expected = (finished[0] / name).read_text()
    assert (workdir / name).read_text() == expected


@pytest.mark.slow
def test_what_is_done_is_skipped_and_points_can_be_added(
  data, finished, start, tmp_path
):
  workdir = tmp_path / 'a'
  shutil.copytree(finished[0], workdir)
  before = {x: x.stat().st_mtime_ns for x in workdir.glob('runs/*/config.json')}
  assert len(before) == 4
  process = start('sweep', flags(data, workdir))
  assert process.wait() == 0, process.text()
  assert 'running' not in process.text()
  file = tmp_path / 'wider.py'
  file.write_text(
    'from tests.sweeping import swept_config\n'
    'from lm.sweeping import points\n'
    'get_config = swept_config.get_config\n'
    'def sweep():\n'
    '  return points.values("optim.peak", (0.01, 0.02))\n'
  )
  words = [f'--config={file}:{data}', f'--workdir={workdir}', '--jobs=1']
  process = start('sweep', words, settings={'PYTHONPATH': str(programs.ROOT)})
  assert process.wait() == 0, process.text()
  assert '1 of 2 runs are left' in process.text()
  assert sorted(runs(workdir)) == sorted([*NAMES, 'peak=0.02'])
  assert {row['runs'] for row in table(workdir)} == {'1', '2'}
  after = {x: x.stat().st_mtime_ns for x in before}
  assert after == before
  process = start('sweep', flags(data, workdir, '--config.batch_size=8'))
  assert process.error(2) == (
    f'{workdir}: its sweep has another base config: batch_size: 4 -> 8: use '
    'another --workdir'
  )


@pytest.mark.slow
def test_a_sweep_ends_well_when_nobody_reads(data, finished, tmp_path):
  """A failure means that `| head` ends a sweep."""
  workdir = tmp_path / 'a'
  shutil.copytree(finished[0], workdir)
  reader, writer = os.pipe()
  os.close(reader)
  words = flags(data, workdir)
  process = subprocess.run(
    [sys.executable, '-m', 'lm.sweep', *words],
    cwd=programs.ROOT,
    stdout=writer,
    stderr=writer,
    check=False,
  )
  os.close(writer)
  assert process.returncode == 0


@pytest.mark.slow
def test_a_run_that_dies_is_tried_again_and_the_others_go_on(
  data, finished, start, tmp_path
):
  workdir = tmp_path / 'a'
  file = tmp_path / 'dying.py'
  file.write_text(
    'from tests.sweeping import swept_config\n'
    'get_config = swept_config.get_config\n'
    'def sweep():\n'
    f'  once = {{"data.dies_at": 13, "data.marker": "{tmp_path}/marker"}}\n'
    '  return [{"data.dies_at": 13}, once, {"optim.peak": 0.03}]\n'
  )
  words = [f'--config={file}:{data}', f'--workdir={workdir}', '--jobs=1']
  process = start('sweep', words, settings={'PYTHONPATH': str(programs.ROOT)})
  error = 'ended by SIGKILL: see logs/worker-2.log'
  assert process.error(7) == (
    f'1 of 3 runs failed, such as dies_at=13: {error}; the same command tries '
    'again'
  )
  found = runs(workdir)
  died, once, fine = found.values()
  assert (died['state'], died['error']) == ('failed', error)
  assert died['step'] <= 12  # batches are read ahead
  assert once['state'] == fine['state'] == 'done'
  calm = {row['name']: row for row in finished[1]}
  assert once['valid/loss_nats'] == calm['base']['valid/loss_nats']
  assert fine['valid/loss_nats'] == calm['peak=0.03']['valid/loss_nats']
  assert table(workdir)[-1]['state'] == 'failed'


@pytest.mark.slow
def test_halving_ends_runs_at_a_rung(data, finished, start, tmp_path):
  workdir = tmp_path / 'a'
  words = ['--halving=12:0.5', '--metric=valid/loss_nats']
  process = start('sweep', flags(data, workdir, *words))
  assert process.wait() == 0, process.text()
  best, other = table(workdir)
  assert (best['state'], best['step']) == ('done', '24')
  assert (other['state'], other['step']) == ('ended at 12', '12')
  calm = {row['name']: row for row in finished[1]}
  for name, row in runs(workdir).items():
    lines = programs.losses(finished[0] / 'runs' / name)
    assert row['loss_nats'] == dict(lines)[row['step']]
    if row['step'] == 24:
      assert row['valid/loss_nats'] == calm[name]['valid/loss_nats']
    # It can be gone on with by hand.
    assert checkpoint.steps(Path(row['workdir']))[-1] >= 12
  # Decided again, in another order, from the same metrics.
  before = (workdir / 'table.csv').read_text()
  process = start('sweep', flags(data, workdir, '--jobs=1', *words))
  assert process.wait() == 0, process.text()
  assert (workdir / 'table.csv').read_text() == before


def test_a_point_that_cannot_be_built_stops_all(data, tmp_path):
  over = [{'optim.peak': 0.03}, {'model.blocks.main.mixer.heads': 3}]
  with pytest.raises(config.ConfigError) as caught:
    sweep.sweep(f'{FILE}:{data}', over, workdir=tmp_path / 'a', jobs=1)
  assert str(caught.value).startswith(
    'point 2 (model.blocks.main.mixer.heads=3): '
  )
  assert not [*(tmp_path / 'a' / 'runs').iterdir()]


def test_a_second_sweep_is_kept_out(data, tmp_path):
  folder = folder_lib.Folder(tmp_path / 'a')
  line = f'^{folder.path}: another lm[.]sweep is at work there'
  with folder.locked(), pytest.raises(errors.Locked, match=line):
    sweep.sweep(f'{FILE}:{data}', [{'seed': 1}], workdir=folder.path)


@pytest.mark.slow
def test_a_signal_ends_the_checks_too(data, start, tmp_path):
  """A failure means that a process is left behind, or the exit code is -15."""
  process = start('sweep', flags(data, tmp_path / 'a'))
  process.wait_for(lambda: 'checking them' in process.text())
  process.send(signal.SIGTERM)
  assert process.error(143).startswith('by a signal, before the first run has')
