"""Judging checkpoints: each once, never wrong, whatever happens meanwhile."""

import json
import math
import shutil
import signal

import numpy as np
import pytest

from lm import checkpoint, config, errors, log, manifest, sweep, train
from lm.evals import items
from tests import programs
from tools import compare

EVALUATORS = ['pause', 'valid']
KEYS = ['loss_nats', 'perplexity', 'bits_per_byte', 'tokens']


@pytest.fixture(scope='module')
def judged(trained, tmp_path_factory):
  """A finished run with its evals.jsonl; do not change it."""
  workdir = tmp_path_factory.mktemp('judged') / 'run'
  shutil.copytree(trained, workdir)
  sweep.sweep(workdir)
  return workdir


def test_a_line_a_checkpoint_and_evaluator(judged):
  lines = (judged / 'evals.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  assert [(line['step'], line['evaluator']) for line in lines] == [
    (step, name) for step in (6, 12, 18, 24, 30, 36) for name in EVALUATORS
  ]
  for line in lines:
    assert line.keys() == {
      'step',
      'checkpoint',
      'evaluator',
      'task',
      'code',
      'metrics',
    }
    assert line['checkpoint'] == checkpoint.digest(judged, line['step'])
  assert len({line['task'] for line in lines}) == 2
  records = sweep.records(judged)
  assert [r['step'] for r in records] == [6, 12, 18, 24, 30, 36]
  for record in records:
    names = [f'valid/{key}' for key in KEYS] + ['pause/tables']
    assert sorted(record['metrics']) == sorted(names)
    assert all(type(x) in (int, float) for x in record['metrics'].values())
  found = [r['metrics'] for r in records]
  nats = [m['valid/loss_nats'] for m in found]
  assert nats[-1] < nats[0] < math.log(259)
  for m in found:
    assert m['valid/perplexity'] == pytest.approx(
      math.exp(m['valid/loss_nats'])
    )
    # Documents end in a token that is no byte of the text.
    assert m['valid/bits_per_byte'] > m['valid/loss_nats'] / math.log(2)


def test_a_table_row_a_checkpoint(judged):
  rows = sweep.table(sweep.sweep(judged)).splitlines()
  head = rows[0].split()
  assert head[:2] == ['step', 'checkpoint'] and len(head) == len(set(head)) == 7
  assert [int(row.split()[0]) for row in rows[1:]] == [6, 12, 18, 24, 30, 36]
  assert rows[1].split()[1] == checkpoint.digest(judged, 6)[:12]


def test_judging_again_changes_nothing(judged):
  before = (judged / 'evals.jsonl').read_bytes()
  assert [r['step'] for r in sweep.sweep(judged, watch=True)][-1] == 36
  assert (judged / 'evals.jsonl').read_bytes() == before


def test_training_finds_what_sweeping_finds(data, judged, trained, tmp_path):
  workdir = programs.rewind(trained, tmp_path / 'run', 30)
  train.train(programs.on_eight(data, eval_every=36), workdir)
  (found,) = [
    r
    for r in log.read(workdir / 'metrics.jsonl')
    if r.keys() >= {'valid/loss_nats'}
  ]
  record = sweep.records(judged)[-1]
  assert found.pop('step') == 36 and found.keys() == {
    f'valid/{key}' for key in KEYS
  }
  for name, value in found.items():
    assert value == pytest.approx(record['metrics'][name], rel=1e-6)


def test_killed_and_restarted_records_each_once(data, start, tmp_path):
  """Killed at any point, also in the middle of writing a line."""
  workdir = tmp_path / 'run'
  train.train(programs.on_eight(data, evals__pause__seconds=0.3), workdir)
  path = workdir / 'evals.jsonl'
  process = start('sweep', [f'--workdir={workdir}'])
  process.wait_for(lambda: len(log.read(path)) >= 3)
  process.send(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  begun = len(log.read(path))
  assert 3 <= begun < 12
  with path.open('ab') as f:
    f.write(b'{"step": 36, "checkpoint": "')  # what a kill in a write leaves
  process = start('sweep', [f'--workdir={workdir}'])
  assert process.wait() == 0, process.text()
  cells = [(line['step'], line['evaluator']) for line in log.read(path)]
  assert cells == [
    (step, name) for step in (6, 12, 18, 24, 30, 36) for name in EVALUATORS
  ]
  # those that were there are not computed again, and the table has all
  lines = process.text().splitlines()
  told = [x.split()[1:3] for x in lines if x.startswith('step ')][:-1]
  assert [(int(step), name.split('/')[0]) for step, name in told] == cells[
    begun:
  ]
  last = sweep.records(workdir)[-1]['checkpoint']
  assert lines[-1].split()[:2] == ['36', last[:12]]


def test_two_processes_share_the_work(data, start, tmp_path):
  workdir = tmp_path / 'run'
  train.train(programs.on_eight(data, evals__pause__seconds=0.5), workdir)
  both = [start('sweep', [f'--workdir={workdir}']) for _ in range(2)]
  for process in both:
    assert process.wait() == 0, process.text()
  lines = log.read(workdir / 'evals.jsonl')
  cells = [(line['step'], line['evaluator']) for line in lines]
  assert len(cells) == len(set(cells)) == 12
  tables = []
  for process in both:
    text = process.text().splitlines()
    did = [x for x in text if x.startswith('step ') and '/' in x.split()[2]]
    assert 1 < len(did) < 12  # the head of the table is among them
    tables.append(text[-7:])
  assert tables[0] == tables[1]


def test_what_is_added_later_judges_what_is_there(judged, tmp_path, capsys):
  workdir = shutil.copytree(judged, tmp_path / 'run')
  file = tmp_path / 'more.py'
  text = """
from configs import base
def get_config():
  c = base.get_config()
  c.evals = {'more': {'fn': 'tests.tiny_config:pause', 'seconds': 0.0}}
  return c
"""
  file.write_text(text)
  arguments = [f'--workdir={workdir}', f'--config={file}']
  sweep.main([*arguments, '--last'])
  assert len(log.read(workdir / 'evals.jsonl')) == 12 + 1
  sweep.main([*arguments, f'--csv={tmp_path / "all.csv"}'])
  assert len(log.read(workdir / 'evals.jsonl')) == 12 + 6
  found = sweep.records(workdir)
  assert all('more/tables' in record['metrics'] for record in found)
  head, *rows = (tmp_path / 'all.csv').read_text().splitlines()
  assert 'more/tables' in head.split(',') and len(rows) == 6
  # Other settings are another task: judged again, and the later line counts.
  file.write_text(text.replace('0.0', '0.001'))
  sweep.main([*arguments, '--last'])
  assert len(log.read(workdir / 'evals.jsonl')) == 12 + 6 + 1
  assert len(sweep.records(workdir)) == 6
  # Of several runs there is one table.
  other = shutil.copytree(workdir, tmp_path / 'other')
  sweep.main([*arguments, f'--workdir={other}'])
  head, *rows = capsys.readouterr().out.splitlines()[-13:]
  assert head.split()[:3] == ['run', 'step', 'checkpoint']
  assert [row.split()[0] for row in rows] == [str(workdir)] * 6 + [
    str(other)
  ] * 6


def test_watching_beside_a_trainer_that_deletes(data, start, tmp_path):
  """Starts before there is a folder, ends when training has ended."""
  workdir = tmp_path / 'run'
  watcher = start('sweep', [f'--workdir={workdir}', '--watch'])
  trainer = start(
    'train',
    programs.flags(
      data, workdir, keep=1, save_every=2, evals__pause__seconds=0.2
    ),
  )
  assert trainer.wait() == 0, trainer.text()
  assert watcher.wait() == 0, watcher.text()
  assert 'Traceback' not in watcher.text()
  records = sweep.records(workdir)
  steps = [r['step'] for r in records]
  assert steps == sorted(set(steps)) and steps[-1] == 36
  assert set(steps) <= set(range(2, 37, 2))
  left = checkpoint.steps(workdir)
  # Two stay in any case, and a pinned one may have.
  assert left[-1] == 36 and 2 <= len(left) <= 3
  for record in records:
    if record['step'] in left:
      assert record['checkpoint'] == checkpoint.digest(workdir, record['step'])
  # What was read beside the deleting is what is there.
  again = shutil.copytree(workdir, tmp_path / 'again')
  (again / 'evals.jsonl').unlink()
  for record in sweep.sweep(again):
    (same,) = [r for r in records if r['step'] == record['step']] or [record]
    np.testing.assert_allclose(
      same['metrics']['valid/loss_nats'],
      record['metrics']['valid/loss_nats'],
      rtol=1e-5,
    )


def test_damaged_steps_are_left_out(judged, tmp_path, capsys):
  workdir = shutil.copytree(judged, tmp_path / 'run')
  (workdir / 'evals.jsonl').unlink()
  programs.damage(workdir, 12)
  programs.flip(manifest.directory(workdir, 18) / manifest.NAME)
  records = sweep.sweep(workdir)
  assert [r['step'] for r in records] == [6, 24, 30, 36]
  out = capsys.readouterr().out.splitlines()
  told = [line for line in out if 'left out' in line]
  assert [line.split(':')[0] for line in told] == ['step 12', 'step 18']
  for step in (6, 24, 30, 36):
    programs.damage(workdir, step)
  (workdir / 'evals.jsonl').unlink()
  with pytest.raises(errors.Damaged) as caught:
    sweep.sweep(workdir)
  assert caught.value.exit_code == 4
  assert str(caught.value) == (
    f'{workdir}: no sound checkpoint: see the lines above'
  )
  assert not (workdir / 'evals.jsonl').exists()


def test_nothing_to_judge_is_an_error(tmp_path):
  with pytest.raises(errors.Missing) as caught:
    sweep.sweep(tmp_path / 'typo')
  assert str(caught.value) == (
    f'{tmp_path}/typo: no such folder: check --workdir'
  )
  assert caught.value.exit_code == 2
  with pytest.raises(errors.Missing, match='no checkpoint to judge: train'):
    sweep.sweep(tmp_path)
  # and watching in vain has an end
  with pytest.raises(errors.Missing, match='no checkpoint to judge: train'):
    sweep.sweep(tmp_path, watch=True, poll_seconds=0.01, patience_seconds=0.05)


def test_a_run_without_evaluators_is_an_error(data, trained, tmp_path):
  workdir = programs.rewind(trained, tmp_path / 'run', 30)
  c = programs.on_eight(data)
  with c.unlocked():
    c.evals = {}
  train.train(c.lock(), workdir)
  for step in checkpoint.steps(workdir)[:-1]:
    shutil.rmtree(manifest.directory(workdir, step))
  with pytest.raises(config.ConfigError, match='its config has no evals: add'):
    sweep.sweep(workdir)


def test_items_lie_beside_the_line_and_two_runs_can_be_compared(
  data, tmp_path, capsys
):
  pairs = [
    {
      'UID': 'order',
      'pairID': f'{n}',
      'field': 'syntax',
      'term': 'order',
      'sentence_good': programs.TEXT[n : n + 20],
      'sentence_bad': 'QZJ%' * 5,
    }
    for n in range(0, 90, 3)
  ]
  file = tmp_path / 'pairs.jsonl'
  file.write_text('\n'.join(map(json.dumps, pairs)))
  for seed in (0, 1):
    c = programs.on_eight(data, seed=seed, evals__pause__seconds=0)
    with c.unlocked():
      c.evals = {
        'pairs': {
          'fn': 'lm.evals.choice:pairs',
          'task': {'fn': 'lm.evals.probes:blimp', 'path': str(file)},
          'batch_size': 8,
          'length': 16,
        }
      }
      # One that is read in training, too.
      c.eval_every = 36
    workdir = tmp_path / f'run{seed}'
    train.train(c.lock(), workdir)
    (_, last) = [
      r for r in log.read(workdir / 'metrics.jsonl') if r['step'] == 36
    ]
    for step in checkpoint.steps(workdir)[:-1]:
      shutil.rmtree(manifest.directory(workdir, step))
    (record,) = sweep.sweep(workdir)
    assert record['metrics']['pairs/accuracy'] > 0.6
    assert last['pairs/accuracy'] == record['metrics']['pairs/accuracy']
    assert 'pairs/accuracy/order' not in sweep.table([record])
    header, rows = items.read(items.find(workdir)['pairs'])
    assert header['checkpoint'] == record['checkpoint']
    assert [row['id'] for row in rows] == [
      f'blimp/order/{n}' for n in range(0, 90, 3)
    ]
    mean = np.mean([row['accuracy'] for row in rows])
    assert mean == record['metrics']['pairs/accuracy']
  capsys.readouterr()
  compare.main([f'{tmp_path}/run0', f'{tmp_path}/run1'])
  said = capsys.readouterr().out
  assert 'pairs  accuracy  30' in said and 'not distinguishable' in said
