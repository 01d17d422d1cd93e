"""Each checkpoint is evaluated once, whatever is killed or deleted then."""

import csv
import json
import math
from pathlib import Path
import shutil
import signal

import numpy as np
import pytest

from lm import checkpoint, config, errors, evaluate, train
from lm.checkpoint import manifest
from lm.evals import evaluators, items, records
from lm.evals.reports import table
from lm.reporting import metrics_log
from tests import programs
from tools import compare

EVALUATORS = ['pause', 'valid']
KEYS = ['loss_nats', 'perplexity', 'bits_per_byte', 'tokens']


@pytest.fixture(scope='module')
def evaluated(trained, tmp_path_factory):
  """A finished run with its evals.jsonl; do not change it."""
  workdir = tmp_path_factory.mktemp('evaluated') / 'run'
  shutil.copytree(trained, workdir)
  evaluate.evaluate(workdir)
  return workdir


def rows_of(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_a_line_a_checkpoint_and_evaluator(evaluated):
  lines = (evaluated / 'evals.jsonl').read_text().splitlines()
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
      'contamination',
      'metrics',
      'crc32',
    }
    assert line['checkpoint'] == checkpoint.digest(evaluated, line['step'])
  assert len({line['task'] for line in lines}) == 2
  stored = records.read(evaluated)
  assert [r['step'] for r in stored] == [6, 12, 18, 24, 30, 36]
  for record in stored:
    names = [f'valid/{key}' for key in KEYS] + ['pause/tables']
    assert sorted(record['metrics']) == sorted(names)
    assert all(type(x) in (int, float) for x in record['metrics'].values())
  metrics = [r['metrics'] for r in stored]
  nats = [m['valid/loss_nats'] for m in metrics]
  assert nats[-1] < nats[0] < math.log(259)
  for m in metrics:
    assert m['valid/perplexity'] == pytest.approx(
      math.exp(m['valid/loss_nats'])
    )
    # Documents end in a token that is no byte of the text.
    assert m['valid/bits_per_byte'] > m['valid/loss_nats'] / math.log(2)


def test_a_table_row_a_checkpoint(evaluated):
  rows = table.table(evaluate.evaluate(evaluated)).splitlines()
  head = rows[0].split()
  assert head[:2] == ['step', 'checkpoint'] and len(head) == len(set(head)) == 7
  assert [int(row.split()[0]) for row in rows[1:]] == [6, 12, 18, 24, 30, 36]
  assert rows[1].split()[1] == checkpoint.digest(evaluated, 6)[:8]
  assert max(map(len, rows)) <= 100


def test_evaluating_again_changes_nothing(evaluated):
  before = (evaluated / 'evals.jsonl').read_bytes()
  assert [r['step'] for r in evaluate.evaluate(evaluated, watch=True)][-1] == 36
  assert (evaluated / 'evals.jsonl').read_bytes() == before


def test_training_and_lm_evaluate_give_the_same_metrics(
  data, evaluated, trained, tmp_path
):
  workdir = programs.rewind(trained, tmp_path / 'run', 30)
  train.train(programs.on_eight(data, eval_every=36), workdir)
  (found,) = [
    r
    for r in metrics_log.read(workdir / 'metrics.jsonl')
    if r.keys() >= {'valid/loss_nats'}
  ]
  record = records.read(evaluated)[-1]
  assert found.pop('step') == 36 and found.keys() == {
    f'valid/{key}' for key in KEYS
  }
  for name, value in found.items():
    assert value == pytest.approx(record['metrics'][name], rel=1e-6)


def test_a_program_reads_its_results(alone, tmp_path, capsys):
  workdir = programs.rewind(alone, tmp_path / 'run', 6)
  evaluate.main([f'--workdir={workdir}', '--last', '--json'])
  out, err = capsys.readouterr()
  found = json.loads(out)
  assert found['notes'] == [] and found['errors'] == []
  (run,) = found['runs']
  assert run['workdir'] == str(workdir) and run['seed'] == 0
  (result,) = run['results']
  assert result['step'] == 6
  assert result == json.loads(json.dumps(records.read(workdir)[-1]))
  assert 'step 6' in err and 'valid/loss_nats' in result['metrics']


def test_killed_and_restarted_records_each_once(data, start, tmp_path):
  """Killed at any point, also in the middle of writing a line."""
  workdir = tmp_path / 'run'
  train.train(programs.on_eight(data, evals__pause__seconds=0.3), workdir)
  path = workdir / 'evals.jsonl'
  process = start('evaluate', [f'--workdir={workdir}'])
  process.wait_for(lambda: len(metrics_log.read(path)) >= 3)
  process.send(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  begun = len(metrics_log.read(path))
  assert 3 <= begun < 12
  with path.open('ab') as f:
    f.write(b'{"step": 36, "checkpoint": "')  # what a kill in a write leaves
  process = start('evaluate', [f'--workdir={workdir}'])
  assert process.wait() == 0, process.text()
  done = [(line['step'], line['evaluator']) for line in metrics_log.read(path)]
  assert done == [
    (step, name) for step in (6, 12, 18, 24, 30, 36) for name in EVALUATORS
  ]
  # those that were there are not computed again, and the table has all
  lines = process.text().splitlines()
  printed = [x.split()[1:3] for x in lines if x.startswith('step ')][:-1]
  assert [(int(step), name.split('/')[0]) for step, name in printed] == done[
    begun:
  ]
  last = records.read(workdir)[-1]['checkpoint']
  assert lines[-1].split()[:2] == ['36', last[:8]]


def test_two_processes_share_the_work(data, start, tmp_path):
  workdir = tmp_path / 'run'
  train.train(programs.on_eight(data, evals__pause__seconds=0.5), workdir)
  both = [start('evaluate', [f'--workdir={workdir}']) for _ in range(2)]
  for process in both:
    assert process.wait() == 0, process.text()
  lines = metrics_log.read(workdir / 'evals.jsonl')
  done = [(line['step'], line['evaluator']) for line in lines]
  assert len(done) == len(set(done)) == 12
  tables = []
  for process in both:
    text = process.text().splitlines()
    did = [x for x in text if x.startswith('step ') and '/' in x.split()[2]]
    assert 1 < len(did) < 12  # the head of the table is among them
    tables.append(text[-7:])
  assert tables[0] == tables[1]


def test_an_evaluator_that_is_added_later_evaluates_old_checkpoints(
  evaluated, tmp_path, capsys
):
  workdir = shutil.copytree(evaluated, tmp_path / 'run')
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
  evaluate.main([*arguments, '--last'])
  assert len(metrics_log.read(workdir / 'evals.jsonl')) == 12 + 1
  evaluate.main([*arguments, f'--csv={tmp_path / "all.csv"}'])
  assert len(metrics_log.read(workdir / 'evals.jsonl')) == 12 + 6
  found = records.read(workdir)
  assert all('more/tables' in record['metrics'] for record in found)
  rows = rows_of(tmp_path / 'all.csv')
  assert {(r['evaluator'], r['metric']) for r in rows} == {
    ('pause', 'tables'),
    ('more', 'tables'),
    *(('valid', key) for key in KEYS),
  }
  assert len(rows) == 6 * 6
  # Other settings are another task: evaluated again, and the later line counts.
  file.write_text(text.replace('0.0', '0.001'))
  evaluate.main([*arguments, '--last'])
  assert len(metrics_log.read(workdir / 'evals.jsonl')) == 12 + 6 + 1
  assert len(records.read(workdir)) == 6
  # Of several runs there is one table.
  other = shutil.copytree(workdir, tmp_path / 'other')
  evaluate.main([*arguments, f'--workdir={other}'])
  head, *rows = capsys.readouterr().out.splitlines()[-13:]
  assert head.split()[:4] == ['run', 'recipe', 'seed', 'step']
  assert [row.split()[0] for row in rows] == ['run'] * 6 + ['other'] * 6
  assert len({tuple(row.split()[1:3]) for row in rows}) == 1


@pytest.mark.slow
def test_watching_beside_a_trainer_that_deletes(data, start, tmp_path):
  """Starts before there is a folder, ends when training has ended."""
  workdir = tmp_path / 'run'
  watcher = start('evaluate', [f'--workdir={workdir}', '--watch'])
  trainer = start(
    'train',
    programs.flags(
      data, workdir, keep=1, save_every=2, evals__pause__seconds=0.2
    ),
  )
  assert trainer.wait() == 0, trainer.text()
  assert watcher.wait() == 0, watcher.text()
  assert 'Traceback' not in watcher.text()
  stored = records.read(workdir)
  steps = [r['step'] for r in stored]
  assert steps == sorted(set(steps)) and steps[-1] == 36
  assert set(steps) <= set(range(2, 37, 2))
  left = checkpoint.steps(workdir)
  # Two stay in any case, and a pinned one may have.
  assert left[-1] == 36 and 2 <= len(left) <= 3
  for record in stored:
    if record['step'] in left:
      assert record['checkpoint'] == checkpoint.digest(workdir, record['step'])
  # What was read beside the deleting is what is there.
  again = shutil.copytree(workdir, tmp_path / 'again')
  (again / 'evals.jsonl').unlink()
  for record in evaluate.evaluate(again):
    (same,) = [r for r in stored if r['step'] == record['step']] or [record]
    np.testing.assert_allclose(
      same['metrics']['valid/loss_nats'],
      record['metrics']['valid/loss_nats'],
      rtol=1e-5,
    )


def test_damaged_steps_are_left_out(evaluated, tmp_path, capsys):
  workdir = shutil.copytree(evaluated, tmp_path / 'run')
  (workdir / 'evals.jsonl').unlink()
  programs.damage(workdir, 12)
  programs.flip(manifest.directory(workdir, 18) / manifest.NAME)
  stored = evaluate.evaluate(workdir)
  assert [r['step'] for r in stored] == [6, 24, 30, 36]
  out = capsys.readouterr().out.splitlines()
  notes = [line for line in out if 'left out' in line]
  assert [line.split(':')[0] for line in notes] == ['step 12', 'step 18']
  for step in (6, 24, 30, 36):
    programs.damage(workdir, step)
  (workdir / 'evals.jsonl').unlink()
  with pytest.raises(errors.Damaged) as caught:
    evaluate.evaluate(workdir)
  assert caught.value.exit_code == 4
  assert str(caught.value) == (
    f'{workdir}: no sound checkpoint: see the lines above'
  )
  assert not (workdir / 'evals.jsonl').exists()


def test_a_run_without_checkpoints_is_an_error(tmp_path):
  with pytest.raises(errors.Missing) as caught:
    evaluate.evaluate(tmp_path / 'typo')
  assert str(caught.value) == (
    f'{tmp_path}/typo: no such folder: check --workdir'
  )
  assert caught.value.exit_code == 2
  with pytest.raises(errors.Missing, match='no checkpoint to evaluate: train'):
    evaluate.evaluate(tmp_path)
  # and watching in vain has an end
  with pytest.raises(errors.Missing, match='no checkpoint to evaluate: train'):
    evaluate.evaluate(
      tmp_path, watch=True, poll_seconds=0.01, patience_seconds=0.05
    )


def test_a_run_without_evaluators_is_an_error(data, trained, tmp_path):
  workdir = programs.rewind(trained, tmp_path / 'run', 30)
  c = programs.on_eight(data)
  with c.unlocked():
    c.evals = {}
  train.train(c.lock(), workdir)
  for step in checkpoint.steps(workdir)[:-1]:
    shutil.rmtree(manifest.directory(workdir, step))
  with pytest.raises(config.ConfigError, match='its config has no evals: add'):
    evaluate.evaluate(workdir)


def test_an_evaluator_that_cannot_be_used_costs_a_line_and_not_the_rest(
  data, trained, tmp_path, capsys
):
  workdir = programs.rewind(trained, tmp_path / 'run', 12)
  bad = {
    'missing': {
      'fn': 'lm.evals.choice:choice',
      'batch_size': 8,
      'length': 16,
      'task': {'fn': 'lm.evals.probes:piqa', 'path': str(tmp_path / 'none')},
    },
    'wrong': {
      'fn': 'lm.evals.likelihood:make',
      'path': str(data / 'valid'),
      'batch_size': 8,
      'length': 16,
      'chunks': 0,
    },
  }
  for _ in range(2):
    # What the user has named is an error in the end, and no reason to stop.
    with pytest.raises(config.ConfigError, match='evaluator missing'):
      evaluate.evaluate(workdir, evals=bad)
    lines = metrics_log.read(workdir / 'evals.jsonl')
    assert [x['evaluator'] for x in lines] == [*EVALUATORS] * 2
  found = evaluate.evaluate_runs([str(workdir)], evals=bad)
  assert len(found.notes) == 2 and len(found.errors) == 1
  said = [x for x in capsys.readouterr().err.splitlines() if 'left out' in x]
  assert [x.partition(' is left out: ')[0] for x in said] == [
    f'lm: {workdir}: evaluator missing',
    f'lm: {workdir}: evaluator wrong',
  ]
  with pytest.raises(config.ConfigError, match='no such file'):
    evaluate.evaluate(workdir, evals=dict.fromkeys(EVALUATORS, bad['missing']))


@pytest.mark.slow
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
      r for r in metrics_log.read(workdir / 'metrics.jsonl') if r['step'] == 36
    ]
    for step in checkpoint.steps(workdir)[:-1]:
      shutil.rmtree(manifest.directory(workdir, step))
    (record,) = evaluate.evaluate(workdir)
    assert record['metrics']['pairs/accuracy'] > 0.6
    assert last['pairs/accuracy'] == record['metrics']['pairs/accuracy']
    assert 'pairs/accuracy/order' not in table.table([record])
    (line,) = metrics_log.read(workdir / 'evals.jsonl')
    assert line['card']['name'] == 'blimp' and len(line['card']['sha256']) == 64
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


# --- several runs


@pytest.fixture(scope='module')
def ladder(data, trained, tmp_path_factory):
  """Two seeds of one recipe and a run of another; do not change them."""
  folder = tmp_path_factory.mktemp('ladder')
  shutil.copytree(trained, folder / 'base-0')
  train.train(programs.on_eight(data, seed=1), folder / 'base-1')
  shutil.copytree(trained, folder / 'early', ignore=_late)
  train.train(programs.on_eight(data, model__width=8), folder / 'thin')
  (folder / 'base-soon').mkdir()
  (folder / 'base-notes.txt').write_text('')
  return folder


@pytest.mark.slow
def test_runs_of_one_kind_share_their_evaluators(ladder, tmp_path, monkeypatch):
  folder = shutil.copytree(ladder, tmp_path / 'ladder')
  built, build = [], checkpoint.restore_run
  monkeypatch.setattr(
    checkpoint,
    'restore_run',
    lambda *args: built.append(args[0].name) or build(*args),
  )
  names = ('base-0', 'base-1', 'thin')
  evaluate.evaluate_runs([str(folder / name) for name in names], steps='last')
  assert built == ['base-0', 'thin']
  # And each has its own parameters.
  losses = {
    metrics_log.read(folder / name / 'evals.jsonl')[-1]['metrics'][
      'valid/loss_nats'
    ]
    for name in names
  }
  assert len(losses) == 3


def _late(folder, names):
  """Leaves the steps after the first two out."""
  late = [f'{step:08d}' for step in (18, 24, 30, 36)]
  return late if Path(folder).name == 'checkpoints' else []


def write_config(path, *lines):
  """Writes a config that adds the evaluator `extra` to those of the run."""
  path.write_text(
    '\n  '.join(
      [
        'from configs import base',
        '',
        'def get_config():',
        'c = base.get_config()',
        "fn = 'tests.tiny_config:pause'",
        "c.evals = {'extra': {'fn': fn, 'seconds': 0.2}}",
        *lines,
        'return c',
      ]
    ).replace('\n  \n  def', '\n\ndef')
  )
  return f'--config={path}'


def copied(ladder, to, *names):
  for name in names:
    shutil.copytree(ladder / name, to / name)
  return to


@pytest.mark.slow
def test_a_config_names_runs_steps_and_evaluators(ladder, tmp_path, capsys):
  folder = copied(ladder, tmp_path, 'base-0', 'base-1', 'base-soon', 'thin')
  file = write_config(
    tmp_path / 'all.py',
    f"c.evaluate.workdirs = ('{folder}/base-*', '{folder}/thin')",
    'c.evaluate.steps = (30, 36)',
  )
  csv_, html = tmp_path / 'all.csv', tmp_path / 'all.html'
  evaluate.main([file, f'--csv={csv_}', f'--html={html}'])
  out = capsys.readouterr().out
  assert f'{folder}/base-soon: left out: no checkpoint yet\n' in out
  for name in ('base-0', 'base-1', 'thin'):
    lines = metrics_log.read(folder / name / 'evals.jsonl')
    done = [(line['step'], line['evaluator']) for line in lines]
    assert sorted(done) == [
      (step, x) for step in (30, 36) for x in ('extra', *EVALUATORS)
    ]
  # The table: a row a checkpoint, then what the seeds of a recipe say.
  text = out[out.index('One metric a task') :]
  assert max(map(len, text.splitlines())) <= 100
  assert 'valid bits_per_byte' in text
  head, *rows = (row.split() for row in text.split('\n\n')[1].splitlines())
  assert head == ['run', 'recipe', 'seed', 'step', 'extra', 'pause', 'valid']
  base, thin = rows[0][1], rows[-1][1]
  assert base != thin
  front = [['base-0', base, '0'], ['base-1', base, '1']]
  assert [(row[:3], row[3]) for row in rows[:4]] == [
    (run, step) for run in front for step in ('30', '36')
  ]
  assert [' '.join(row[:6]) for row in rows[4:8]] == [
    f'{what} of 2 {base} - {step}'
    for step in (30, 36)
    for what in ('mean', 'SD')
  ]
  assert [row[:4] for row in rows[8:]] == [
    ['thin', thin, '0', step] for step in ('30', '36')
  ]
  # The same as CSV, with the whole keys.
  found = rows_of(csv_)
  assert len(found) == 3 * 2 * 6
  last = [
    row
    for row in found
    if (row['step'], row['metric']) == ('36', 'bits_per_byte')
  ]
  values = [float(row['value']) for row in last]
  assert [row['seeds'] for row in last] == ['2', '2', '1']
  for row in last[:2]:
    assert float(row['mean']) == pytest.approx(np.mean(values[:2]))
    assert float(row['sd']) == pytest.approx(np.std(values[:2], ddof=1))
    assert len(row['checkpoint']) == len(row['task']) == len(row['code']) == 64
  assert last[2]['sd'] == '' and float(last[2]['mean']) == values[2]
  # And the report, with the same names.
  text = html.read_text()
  assert base in text and 'base-soon: left out' in text
  # Nothing is left to do, and --workdir adds to the config.
  other = copied(ladder, tmp_path / 'more', 'early')
  capsys.readouterr()
  evaluate.main(
    [
      file,
      f'--workdir={other}/early',
      '--config.evaluate.steps=6',
      f'--config.evaluate.workdirs={folder}/base-?',
      '--config.evals.extra.seconds=0.1',
    ]
  )
  out = capsys.readouterr().out.splitlines()
  found = [x.split('  ')[:2] for x in out if x.startswith('/')]
  assert sorted(x for x in found if len(x) > 1) == [
    *([f'{folder}/base-{n}', 'step 6'] for n in (0, 1) for _ in range(3)),
    *([f'{other}/early', 'step 6'] for _ in range(3)),
  ]


def test_steps_are_all_or_the_last_or_those_named(ladder, tmp_path, capsys):
  folder = copied(ladder, tmp_path, 'base-0', 'base-1')
  assert [
    r['step'] for r in evaluate.evaluate(folder / 'base-0', steps='last')
  ] == [36]
  assert [
    r['step'] for r in evaluate.evaluate(folder / 'base-0', steps=[6, 18])
  ] == [
    6,
    18,
    36,
  ]
  assert capsys.readouterr().out.count('\n') == 3 * 2
  evaluate.evaluate(folder / 'base-0', steps=(6, 7))
  assert capsys.readouterr().out == (
    'step 7: left out: no such step; there now: 12, 18, 24, 30, 36\n'
  )
  with pytest.raises(errors.Damaged, match='no sound checkpoint: see the line'):
    evaluate.evaluate(folder / 'base-1', steps=(7,))


def test_a_run_that_fails_does_not_stop_the_others(ladder, start, tmp_path):
  folder = copied(ladder, tmp_path, 'base-0', 'early')
  for step in (6, 12):
    programs.damage(folder / 'early', step)
  html = tmp_path / 'all.html'
  process = start(
    'evaluate',
    [
      f'--workdir={folder}/early',
      f'--workdir={folder}/none',
      f'--workdir={folder}/base-0',
      f'--html={html}',
    ],
  )
  assert process.error(4) == (
    f'{folder}/early: no sound checkpoint: see the lines above'
  )
  assert len(metrics_log.read(folder / 'base-0' / 'evals.jsonl')) == 12
  text = html.read_text()
  for where in (process.text(), text):
    assert f'{folder}/early: left out: no sound checkpoint' in where
    assert f'{folder}/none: left out: no such folder: check' in where
    assert f'{folder}/early  step 12: left out: ' in where
    assert 'base-0' in where


def test_a_bug_in_one_run_is_raised_at_the_end(
  ladder, tmp_path, monkeypatch, capsys
):
  folder = copied(ladder, tmp_path, 'base-0', 'base-1')
  load = evaluators.Evaluators.load

  def fail(self, place, step):
    if place.name == 'base-0':
      raise ZeroDivisionError('a fault')
    return load(self, place, step)

  monkeypatch.setattr(evaluators.Evaluators, 'load', fail)
  with pytest.raises(ZeroDivisionError, match='a fault'):
    evaluate.main([f'--workdir={folder}/base-{n}' for n in (0, 1)])
  assert 'base-0: left out: ZeroDivisionError: a fault' in (
    capsys.readouterr().out
  )
  assert len(metrics_log.read(folder / 'base-1' / 'evals.jsonl')) == 12


def test_processes_share_several_runs_and_one_may_be_killed(
  ladder, start, tmp_path
):
  """Two processes do each evaluation once, though one of them is killed."""
  folder = copied(ladder, tmp_path, 'base-0', 'base-1')
  file = write_config(
    tmp_path / 'all.py', f"c.evaluate.workdirs = ('{folder}/base-*',)"
  )

  def lines():
    return [
      (name, line['step'], line['evaluator'])
      for name in ('base-0', 'base-1')
      for line in metrics_log.read(folder / name / 'evals.jsonl')
    ]

  first, second = (start('evaluate', [file]) for _ in range(2))
  first.wait_for(lambda: first.text().count('  step ') >= 2)
  first.send(signal.SIGKILL)
  assert first.wait() == -signal.SIGKILL
  third = start('evaluate', [file, f'--html={tmp_path}/all.html'])
  for process in (second, third):
    assert process.wait() == 0, process.text()
  found = lines()
  assert len(found) == len(set(found)) == 2 * 6 * 3
  # All have worked, and print the same table in the end.
  assert first.text().count('  step ') >= 2
  assert second.text().count('  step ') < 36
  tables = [
    process.text()[process.text().index('One metric a task') :]
    for process in (second, third)
  ]
  assert tables[0] == tables[1]
  assert (tmp_path / 'all.html').read_text().endswith('</html>\n')
  assert not list(tmp_path.glob('*.part'))


def test_a_run_that_is_named_twice_is_evaluated_once(ladder, tmp_path, capsys):
  folder = copied(ladder, tmp_path, 'base-0')
  (folder / 'base-link').symlink_to(folder / 'base-0')
  evaluate.main(
    [f'--workdir={folder}/base-*', f'--workdir={folder}/base-0/', '--last']
  )
  out = capsys.readouterr().out.splitlines()
  assert len(out) == 2 + 1 + 2 and out[3].split()[0] == 'step'
  # A name with marks in it, if it is there, is no pattern.
  marked = shutil.copytree(folder / 'base-0', folder / 'a[1]')
  evaluate.main([f'--workdir={marked}'])
  # Copies are not seeds.
  capsys.readouterr()
  evaluate.main([f'--workdir={folder}/base-0', f'--workdir={marked}', '--last'])
  assert 'mean' not in capsys.readouterr().out


def test_wrong_arguments_cost_one_line(ladder, tmp_path, capsys):
  def refused(*arguments, code=2):
    with pytest.raises((config.ConfigError, errors.Failure)) as caught:
      evaluate.main(list(arguments))
    text, found = config.error_line(caught.value) or ('', 1)
    assert found == code and len(text) <= 200 and '\n' not in text
    return text

  file = write_config(tmp_path / 'c.py')
  run = f'--workdir={ladder}/base-0'
  assert refused(file, '--config.evaluate.workdir=x') == (
    'unknown key evaluate.workdir; did you mean evaluate.workdirs?'
  )
  for steps in ('first', '(1,2.5)', '1.5'):
    assert "must be 'last' or an int from 0 to" in refused(
      file, run, f'--config.evaluate.steps={steps}'
    )
  other = write_config(tmp_path / 'd.py', 'c.evaluate.step = 3')
  assert refused(other, run) == (
    'unknown key evaluate.step; did you mean evaluate.steps?'
  )
  stored = json.loads((ladder / 'base-0' / 'config.json').read_text())
  stored['evaluate']['workdirs'] = 'runs/a'
  (tmp_path / 'c.json').write_text(json.dumps(stored))
  assert refused(f'--config={tmp_path}/c.json').endswith(
    "evaluate.workdirs: 'runs/a' must be a tuple, each a str"
  )
  assert refused(f'--workdir={ladder}/x-*').endswith(
    '/x-*: matches no folder: check the pattern'
  )
  assert refused(f'--workdir={ladder}/*-soon').endswith(
    '/base-soon: no checkpoint to evaluate: train first'
  )
  assert refused('--workdir=gs://bucket/x-*') == (
    'gs://bucket/x-*: patterns are of folders of this machine: name each run'
  )
  for flag in ('--csv', '--html'):
    assert refused(run, f'{flag}={tmp_path}/none/x').endswith(
      '/none: no such folder: make it'
    )
  for arguments, text in (
    ([], '--workdir: give one, or evaluate.workdirs of --config'),
    ([file], '--workdir: give one, or evaluate.workdirs of --config'),
    ([run, '--config.steps=3'], '--config.steps: --config is missing'),
    ([run, f'--workdir={ladder}/thin', '--watch'], '--watch: of one --workdir'),
  ):
    with pytest.raises(SystemExit) as caught:
      evaluate.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(text)
  assert not (ladder / 'base-0' / 'evals.jsonl').exists()


def test_a_table_of_many_tasks_is_cut_at_the_edge():
  metrics = {
    f'{name}/{key}': 0.123456
    for name in ('arc_easy', 'blimp', 'crows_pairs', 'lambada', 'piqa', 'sciq')
    for key in ('accuracy', 'accuracy_per_byte', 'brier')
  }
  front = {'recipe': 'ab' * 4, 'seed': 0, 'step': 120_000}
  rows = [{'run': f'base-{n}', **front, 'metrics': metrics} for n in range(2)]
  text = table.table(rows, {'blimp': 'brier'})
  assert max(map(len, text.splitlines())) <= 100
  legend, body = text.split('\n\n')
  assert 'arc_easy accuracy, blimp brier, crows_pairs acc' in legend
  assert len(body.splitlines()) == 3
  wide = [{**r, 'run': f'{r["run"]}-with-a-long-name-of-its-own'} for r in rows]
  first, second = table.table(wide).split('\n\n')[1:]
  assert second.splitlines()[1].startswith('base-0-with')
  assert first.split()[4:-1] and max(map(len, first.splitlines())) <= 100
