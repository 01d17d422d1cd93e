"""Rows, tables and what is shown while a sweep runs."""

import io
import json
import math

import pytest

from lm.reporting import metrics_log, swept
from lm.sweeping import admission, live, results
from tests import programs

LINES = [
  {'step': step, 'loss_nats': 10.0 - step / 10, 'grad_norm': 1.0}
  for step in range(1, 41)
]
EVALS = [
  {'step': step, 'valid/loss_nats': 9.0 - step / 10} for step in (20, 40)
]
ALL = sorted([*LINES, *EVALS], key=lambda line: line['step'])


def row(peak: float, seed: int, loss: float | None, **more) -> dict:
  found = {'name': f'{peak}/{seed}', 'optim.peak': peak, 'seed': seed}
  found |= {'state': 'done', 'step': 40, 'workdir': '', 'error': ''}
  return found | ({} if loss is None else {'loss_nats': loss}) | more


def test_training_losses_are_means_over_the_last_tenth():
  last = [line['loss_nats'] for line in LINES[-4:]]
  assert results.value(ALL, 'loss_nats') == pytest.approx(sum(last) / 4)
  assert results.value(ALL, 'loss_nats', 5) == LINES[4]['loss_nats']
  assert results.value(ALL, 'valid/loss_nats') == 5.0
  assert results.value(ALL, 'valid/loss_nats', 39) == 7.0
  assert results.value(ALL, 'valid/loss_nats', 19) is None
  assert results.metrics(ALL, 20).keys() == {'loss_nats', 'valid/loss_nats'}


def test_what_runs_are_compared_by(data):
  c = programs.make(data)
  assert results.metric(c) == ('loss_nats', False)
  c = programs.make(data, eval_every=4)
  assert results.metric(c) == ('valid/loss_nats', False)
  c = programs.make(
    data, eval_every=4, early__metric='valid/accuracy', early__higher=True
  )
  assert results.metric(c) == ('valid/accuracy', True)


def test_seeds_of_a_point_are_one_row_with_an_interval():
  rows = [row(0.1, s, x) for s, x in enumerate((3.0, 3.2, 3.4))]
  rows += [row(0.3, s, x) for s, x in enumerate((2.0, 2.2))]
  best, other = results.table(rows, ['optim.peak', 'seed'], 'loss_nats', False)
  assert (best['optim.peak'], best['runs']) == (0.3, 2)
  assert other['loss_nats'] == pytest.approx(3.2)
  # Student's t with two degrees of freedom, by a table: 4.303.
  half = 4.3027 * 0.2 / math.sqrt(3)
  assert other['loss_nats high'] - 3.2 == pytest.approx(half, rel=1e-4)
  assert 3.2 - other['loss_nats low'] == pytest.approx(half, rel=1e-4)
  assert [*best] == [
    'optim.peak', 'runs', 'state', 'step',
    'loss_nats', 'loss_nats low', 'loss_nats high',
  ]  # fmt: skip


def test_the_best_come_first_and_what_did_not_go_on_last():
  rows = [
    row(0.1, 0, 3.0),
    row(0.2, 0, 1.0, state='ended at 10', step=10),
    row(0.3, 0, 2.0),
    row(0.4, 0, None, state='failed', step=0),
    row(0.5, 0, 5.0, state='ended at 20', step=20),
    row(0.6, 0, math.nan),
    row(0.7, 0, 0.5, state='failed', step=9),
    row(0.8, 0, 0.7, state='unfinished', step=9),
    row(0.8, 1, 0.7),
  ]
  for higher, first in ((False, [0.3, 0.1]), (True, [0.1, 0.3])):
    found = results.table(rows, ['optim.peak'], 'loss_nats', higher)
    peaks = [x['optim.peak'] for x in found]
    # Metrics of a run that is not at its end say little.
    assert peaks[:2] == first and {*peaks[2:4]} == {0.7, 0.8}
    assert peaks[4:6] == [0.5, 0.2] and {*peaks[6:]} == {0.4, 0.6}


def test_columns_are_the_keys_that_differ():
  rows = [row(0.1, 0, 3.0, width=4), row(0.2, 0, 2.0, width=4)]
  swept_keys = ['optim.peak', 'width', 'seed']
  assert results.keys(rows, swept_keys) == ['optim.peak']
  assert results.keys(rows[:1], swept_keys) == swept_keys


def test_tables_are_written_in_three_ways():
  table = [{'a': 0.1, 'x|y': 'b|c', 'loss': math.nan}, {'a': 0.2, 'more': 1}]
  assert results.markdown(table) == (
    '| a | x\\|y | loss | more |\n'
    '| --- | --- | --- | --- |\n'
    '| 0.1 | b\\|c | nan |  |\n'
    '| 0.2 |  |  | 1 |\n'
  )
  assert results.comma_separated(table).splitlines() == [
    'a,x|y,loss,more', '0.1,b|c,nan,', '0.2,,,1'
  ]  # fmt: skip
  found = json.loads(results.to_json(table, [], 'loss'))
  assert found['table'][0]['loss'] == 'NaN' and found['metric'] == 'loss'


@pytest.mark.parametrize('values', [(1, 2.0, 300), ('a', 'b', None)])
def test_a_picture_of_a_sweep(tmp_path, values):
  rows = [
    {'k': x, 'w': w, 'loss': n + w, 'loss low': n, 'loss high': n + w + 1}
    for n, x in enumerate(values)
    for w in (1, 2)
  ]
  path = tmp_path / 'plot.png'
  assert swept.draw(path, [*rows, {'k': values[0], 'w': 3}], ['w', 'k'], 'loss')
  assert path.read_bytes().startswith(b'\x89PNG')
  assert not swept.draw(path, [{'k': 1, 'loss': math.nan}], ['k'], 'loss')
  assert not swept.draw(path, rows, [], 'loss')


def views(*states: str) -> list[live.View]:
  return [
    live.View(f'r{n}', state, 5, 10, 2.5, 70.0 if state == 'running' else None)
    for n, state in enumerate(states)
  ]


def test_plain_lines_tell_changes_alone():
  out = io.StringIO()
  table = live.Table(out)
  table.draw(views('running', 'waiting'))
  table.draw(views('running', 'waiting'))
  table.draw(views('done', 'failed'))
  assert out.getvalue().splitlines() == [
    'r0  running  step 5/10  loss 2.5000  ETA 0:01:10',
    'r0  done  step 5/10  loss 2.5000',
    'r1  failed  step 5/10  loss 2.5000',
  ]


class Closed(io.StringIO):
  def write(self, text: str) -> int:
    raise BrokenPipeError

  def flush(self) -> None:
    raise BrokenPipeError


def test_a_sweep_goes_on_when_nobody_reads():
  table = live.Table(Closed())
  table.say('a line')
  table.draw(views('running'))


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


def test_a_terminal_shows_one_table_that_fits(monkeypatch):
  monkeypatch.setenv('COLUMNS', '60')
  monkeypatch.setenv('LINES', '8')
  out = Terminal()
  table = live.Table(out)
  table.draw(views('running', 'waiting'))
  first = out.getvalue()
  assert first.splitlines()[-1] == '1 running, 1 waiting'
  table.draw(views('done', 'running'))
  again = out.getvalue()[len(first) :]
  assert again.startswith('\x1b[4F\x1b[J')  # up to where the first began
  table.draw(views(*['done'] * 20, 'running'))
  last = out.getvalue()[len(first) + len(again) :].removeprefix('\x1b[4F\x1b[J')
  lines = last.splitlines()
  assert len(lines) <= 7 and all(len(line) < 60 for line in lines)
  assert any(line.startswith('r20') for line in lines)
  assert lines[-1] == 'and 17 more: 20 done, 1 running'


def test_the_newest_line_of_a_file_that_grows(tmp_path):
  assert live.newest(tmp_path) is None
  path = tmp_path / 'metrics.jsonl'
  for line in [*LINES[:3], {'step': 3, 'valid/loss_nats': 1.0}]:
    metrics_log.append(path, line)
  with path.open('ab') as file:
    file.write(b'{"step": 4, "loss_na')
  assert live.newest(tmp_path) == (3, LINES[2]['loss_nats'])


def test_cores_and_memory_of_this_machine():
  assert admission.cores() >= 1
  assert admission.free_bytes() > 1 << 20


@pytest.mark.parametrize('tree', admission._LIMITS, ids=['v2', 'v1'])
@pytest.mark.parametrize('inner', ['', 'pods/mine'])
def test_a_container_has_what_its_limit_leaves(
  monkeypatch, tmp_path, tree, inner
):
  """A failure means that a sweep fills a container, or wastes most of it."""
  most, used, cache = admission._LIMITS[tree]
  own = tmp_path / 'cgroup'
  own.write_text(f'7:cpu:/elsewhere\n0:{tree}:/{inner}\n')
  monkeypatch.setattr(admission, '_OWN', own)
  monkeypatch.setattr(admission, '_GROUP', tmp_path)
  whole = admission.free_bytes()
  group = tmp_path / tree / inner
  group.mkdir(parents=True, exist_ok=True)
  (group / most).write_text('1000\n')
  (group / used).write_text('900\n')
  assert admission.free_bytes() == 100
  (group / 'memory.stat').write_text(f'anon 1\n{cache} 700\nslab 5\n')
  assert admission.free_bytes() == 800
  if inner:  # the groups around it have limits of their own
    (group.parent / most).write_text('950\n')
    (group.parent / used).write_text('900\n')
    assert admission.free_bytes() == 50
    (group.parent / most).write_text('max\n')
  (group / most).write_text('max\n')
  assert admission.free_bytes() > 1000 and whole > 1000


def test_a_container_has_the_cores_of_its_quota(monkeypatch, tmp_path):
  own = tmp_path / 'cgroup'
  own.write_text('0::/mine\n')
  monkeypatch.setattr(admission, '_OWN', own)
  monkeypatch.setattr(admission, '_GROUP', tmp_path)
  monkeypatch.setattr(admission.os, 'sched_getaffinity', lambda _: range(64))
  assert admission.cores() == 64
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'cpu.max').write_text('800000 100000\n')
  assert admission.cores() == 8
  (tmp_path / 'cpu.max').write_text('350000 100000\n')
  assert admission.cores() == 3
