"""Runs are paired item by item, and told apart only where they differ."""

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lm import config, errors, train
from lm import evaluate as evaluate_lib
from lm.evals import items
from lm.evals.reports import comparison
from tests import programs
from tools import compare

TASK, OTHER, CODE = 'a' * 64, 'b' * 64, 'c' * 64


def header(evaluator='blimp', step=36, checkpoint='0', task=TASK, code=CODE):
  return {
    'evaluator': evaluator,
    'step': step,
    'checkpoint': (checkpoint * 64)[:64],
    'task': task,
    'code': code,
  }


def write_items(workdir, outcomes, **about):
  """Writes the items of a run; outcomes are columns by name."""
  names = [f'blimp/{i}' for i in range(len(next(iter(outcomes.values()))))]
  rows = zip(*outcomes.values(), strict=True)
  return items.write(
    workdir,
    header(**about),
    [
      {'id': name, **dict(zip(outcomes, row, strict=True))}
      for name, row in zip(names, rows, strict=True)
    ],
  )


def rows(report) -> dict[str, dict]:
  return {f'{r["task"]}/{r["metric"]}': r for r in report['rows']}


def refused(code, *arguments) -> str:
  with pytest.raises((config.ConfigError, errors.Failure)) as caught:
    compare.main(list(map(str, arguments)))
  text, found = config.error_line(caught.value) or ('', 1)
  assert found == code and len(text) <= 200 and '\n' not in text
  return text


# --- items on disk


def test_items_come_back_as_they_were(tmp_path):
  given = [
    {'id': '甲', 'accuracy': 1, 'margin_nats': -0.25, 'group': 'adjunct'},
    {'id': 'b', 'accuracy': 0, 'margin_nats': None, 'group': 'island'},
  ]
  path = items.write(tmp_path, header(), given)
  assert path == tmp_path / 'items' / 'blimp' / '00000036.000000000000.jsonl.gz'
  assert items.read(path) == (header(), given)
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  numbers = [{'id': 'b', 'x': np.float64(0.5), 'y': np.int32(3), 'z': np.True_}]
  path = items.write(tmp_path, header(), numbers)
  assert items.read(path)[1] == [{'id': 'b', 'x': 0.5, 'y': 3, 'z': True}]


def test_equal_items_are_equal_bytes(tmp_path):
  one = write_items(tmp_path / 'a', {'accuracy': [0, 1, 1]})
  other = write_items(tmp_path / 'b', {'accuracy': [0, 1, 1]})
  assert one.read_bytes() == other.read_bytes()
  assert one.read_bytes()[3:8] == bytes(5)  # of gzip: no name and no time
  assert write_items(tmp_path / 'b', {'accuracy': [1, 1, 1]}).read_bytes() != (
    one.read_bytes()
  )


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
  path = write_items(tmp_path, {'accuracy': [0, 1]})
  before = path.read_bytes()

  def full(file):
    raise OSError(28, 'No space left on device')

  with (
    monkeypatch.context() as patch,
    pytest.raises(errors.Storage, match='No space'),
  ):
    patch.setattr(os, 'fsync', full)
    write_items(tmp_path, {'accuracy': [1, 1]})
  with pytest.raises(ValueError, match='not JSON compliant'):
    write_items(tmp_path, {'accuracy': [0, float('nan')]})
  with pytest.raises(AssertionError, match='an id is there twice'):
    items.write(tmp_path, header(), [{'id': 'x'}, {'id': 'x'}])
  with pytest.raises(config.ConfigError) as caught:
    items.write(tmp_path, header(evaluator='../up'), [])
  assert str(caught.value) == (
    'evals.../up: a folder cannot have this name: use letters and _'
  )
  assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_the_newest_step_is_found(tmp_path):
  assert items.find(tmp_path) == {}
  early = write_items(tmp_path, {'x': [1]}, step=9)
  late = write_items(tmp_path, {'x': [1]}, step=36)
  only = write_items(tmp_path, {'x': [1]}, step=9, evaluator='lambada')
  late.with_name(late.name + '.12.part').touch()
  assert items.find(tmp_path) == {'blimp': late, 'lambada': only}
  assert items.find(tmp_path, 9) == {'blimp': early, 'lambada': only}
  assert items.find(tmp_path, 10) == {}
  again = write_items(tmp_path, {'x': [1]}, step=36, checkpoint='f')
  for seconds, path in enumerate((again, late)):
    os.utime(path, (seconds, seconds))
  assert items.find(tmp_path)['blimp'] == late
  os.utime(again, (9, 9))
  assert items.find(tmp_path)['blimp'] == again


def test_damaged_and_foreign_files_are_one_line(tmp_path):
  path = write_items(tmp_path, {'accuracy': [0, 1]})
  good = path.read_bytes()

  def says(what: str) -> None:
    with pytest.raises(errors.Damaged) as caught:
      items.read(path)
    assert caught.value.exit_code == 4
    assert str(caught.value).endswith(
      f'{path.name}: no sound file of items: {what}: delete it, evaluate again'
    )

  bytes_ = 'its bytes are not those that were written'
  for place in range(10, len(good), 7):
    programs.flip(path, place)
    says(bytes_)
    path.write_bytes(good)
  for content in (good[:-5], b'', b'plain text'):
    path.write_bytes(content)
    says(bytes_ if content else 'its header is not that of this name')
  head = json.dumps(header()).encode()
  for lines, what in (
    ([head, b'{"id": "x", "y": NaN}'], bytes_),
    ([head, b'[]'], 'a line is no object'),
    ([head, b'{"y": 1}'], 'an item has no id'),
    ([head, b'{"id": "x"}', b'{"id": "x"}'], 'an id is there twice'),
    (
      [head, b'{"id": "x", "y": [1]}'],
      'y of x is no number, string or null',
    ),
    ([b'{"id": "x"}'], 'its header is not that of this name'),
  ):
    path.write_bytes(gzip.compress(b'\n'.join(lines)))
    says(what)
  for wrong in ({'step': '36'}, {'task': 'short'}, {'evaluator': 'other'}):
    path.write_bytes(gzip.compress(json.dumps(header() | wrong).encode()))
    says('its header is not that of this name')
  moved = path.with_name('00000037.000000000000.jsonl.gz')
  moved.write_bytes(good)
  path = moved
  says('its header is not that of this name')
  with pytest.raises(errors.Missing, match='no such file: evaluate the step'):
    items.read(tmp_path / 'none')
  with pytest.raises(errors.Storage, match='is no plain file but a folder'):
    items.read(tmp_path)


@pytest.mark.process
def test_items_are_read_without_jax():
  code = (
    'import sys\n'
    'from lm.evals import items\n'
    'from lm.evals.reports import stats\n'
    'sys.exit("jax" in sys.modules)'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=programs.ROOT)
  assert done.returncode == 0


# --- two runs


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """Runs a and b: b answers better, has a lower loss and other lengths."""
  folder = tmp_path_factory.mktemp('pair')
  n = np.arange(200)
  shared = {'group': [f'g{i // 4}' for i in n]}
  write_items(
    folder / 'a',
    {
      'accuracy': (n % 10 < 6) * 1,
      'margin': np.sin(n),
      'loss_nats': 3 + np.sin(n),
      'stereotype': (n % 10 < 6) * 1,
    },
  )
  write_items(
    folder / 'b',
    {
      'accuracy': (n % 10 < 8) * 1,
      'margin': np.sin(n) + 0.3 * np.cos(5 * n) + 0.01,
      'loss_nats': 2.9 + np.sin(n) + 0.2 * np.cos(3 * n),
      'stereotype': (n % 10 < 8) * 1,
    },
    checkpoint='1',
  )
  for name, rise in (('a', 0.0), ('b', 0.05)):
    write_items(
      folder / name,
      {'score': np.sin(n // 4) + rise * np.cos(n // 4), **shared},
      evaluator='passages',
    )
  return folder


def test_a_table_with_decisions(pair, capsys, monkeypatch):
  monkeypatch.chdir(pair)
  compare.main(['a', 'b'])
  assert capsys.readouterr().out == GOLDEN


GOLDEN = """\
A: a, step 36
B: b, step 36

task      metric       n         A         B       B - A  interval                    p  decision
blimp     accuracy   200       0.6       0.8         0.2  0.145 to 0.26       7.276e-12  B is better
blimp     margin     200   0.00453   0.01403    0.009498  -0.021 to 0.0401            1  not distinguishable: about 4,600 more items would tell
blimp     loss_nats  200     3.005     2.906      -0.099  -0.119 to -0.0795   0.0008075  B is better
passages  score      200  0.003265  0.003042  -0.0002226  -0.0103 to 0.00987          1  not distinguishable: about 980,000 more items would tell
"""  # noqa: E501


def test_decisions_follow_the_names(pair):
  a, b = [str(pair / 'a')], [str(pair / 'b')]
  there = rows(compare.compare(a, b))
  back = rows(compare.compare(b, a))
  names = ('accuracy', 'loss_nats', 'margin')
  assert [there[f'blimp/{n}']['decision'] for n in names] == [
    'B is better',
    'B is better',
    back['blimp/margin']['decision'],
  ]
  assert [back[f'blimp/{n}']['decision'] for n in names[:2]] == [
    'B is worse'
  ] * 2
  assert 'blimp/stereotype' not in there
  named = compare.compare(a, b, metrics=['stereotype', 'loss_nats'])
  assert {k: r['decision'] for k, r in rows(named).items()} == {
    'blimp/loss_nats': 'B is better',
    'blimp/stereotype': 'differs',
  }
  for lower in ('nats', 'x_loss', 'error', 'word_error'):
    assert comparison.lower_is_better(lower)
  for higher in ('errors', 'loss_ratio', 'accuracy', 'nats_per'):
    assert not comparison.lower_is_better(higher)


def test_a_run_does_not_differ_from_itself(pair):
  report = compare.compare([str(pair / 'a')], [str(pair / 'a')])
  assert len(report['rows']) == 4
  for row in report['rows']:
    assert row['decision'] == 'not distinguishable: no difference was seen'
    assert (row['difference'], row['p']) == (0, 1)


def test_json_is_the_report(pair, capsys, tmp_path):
  a, b = str(pair / 'a'), str(pair / 'b')
  file = tmp_path / 'rows.csv'
  compare.main([a, b, '--json', '--csv', str(file)])
  report = json.loads(capsys.readouterr().out)
  assert report == compare.compare([a], [b])
  assert report['b'] == [{'workdir': b, 'steps': [36]}]
  with file.open(newline='') as f:
    found = list(csv.DictReader(f))
  assert len(found) == len(report['rows'])
  for line, row in zip(found, report['rows'], strict=True):
    assert line.keys() == row.keys()
    assert float(line['difference']) == row['difference']
    assert (line['task'], line['decision']) == (row['task'], row['decision'])
  text = refused(5, a, b, '--csv', tmp_path / 'no' / 'x.csv')
  assert text.endswith('No such file or directory: give another file')


def test_groups_count_as_one(pair):
  row = rows(compare.compare([str(pair / 'a')], [str(pair / 'b')]))
  assert row['passages/score']['groups'] == 50
  assert row['blimp/accuracy']['groups'] is None


def test_groups_of_items_make_more_necessary(tmp_path):
  n = np.arange(200)
  score = {'a': np.zeros(200), 'b': np.sin(7 * (n // 4)) + 0.15}
  p = {}
  for label in ('group', 'category'):
    for name, values in score.items():
      write_items(
        tmp_path / label / name,
        {'score': values, label: [f'g{i // 4}' for i in n]},
      )
    report = compare.compare(
      [str(tmp_path / label / 'a')], [str(tmp_path / label / 'b')]
    )
    p[label] = report['rows'][0]['p']
  assert p['category'] < 0.01 < 0.05 < p['group']


def test_items_without_a_value_are_left_out_of_their_outcome(tmp_path):
  n = np.arange(60)
  some = [None if i % 3 == 0 else float(i) for i in n]
  write_items(tmp_path / 'a', {'x': n, 'y': n * 1.0, 'z': [1] + [None] * 59})
  write_items(tmp_path / 'b', {'x': n + 1, 'y': some, 'z': [1] + [None] * 59})
  report = compare.compare([str(tmp_path / 'a')], [str(tmp_path / 'b')])
  found = rows(report)
  assert (found['blimp/x']['n'], found['blimp/y']['n']) == (60, 40)
  assert found['blimp/y']['difference'] == 0
  assert report['notes'] == [
    'blimp/z: left out: fewer than two items or groups'
  ]


def test_a_single_document_is_nothing_to_compare(tmp_path):
  for name in ('a', 'b'):
    write_items(tmp_path / name, {'nats': [1.0], 'tokens': [5]})
  assert refused(2, tmp_path / 'a', tmp_path / 'b') == (
    'nothing to compare: blimp/nats: left out: fewer than two items or groups'
  )


def test_other_versions_of_tasks_and_code_are_noted(tmp_path):
  for name, code in (('a', CODE), ('b', OTHER)):
    write_items(tmp_path / name, {'x': [1, 2, 4]}, code=code)
  write_items(tmp_path / 'b', {'x': [1, 2, 4]}, evaluator='lambada')
  report = compare.compare([str(tmp_path / 'a')], [str(tmp_path / 'b')])
  assert report['notes'] == [
    'left out, as only one side has them: lambada',
    'blimp: evaluated by different versions of its code',
  ]
  assert compare.table(report).endswith('\n'.join(report['notes']))


# --- seeds


def evaluate(folder, name, seed: int, *, rise=0.0, tasks=3, seeds=5) -> str:
  """Simulates runs of one recipe: seeds move its answers as a whole."""
  rng = np.random.default_rng(seed)
  hard = np.random.default_rng(0).normal(size=(tasks, 400))
  runs = []
  for k in range(seeds):
    for task in range(tasks):
      skill = rng.normal(rise, 0.25)
      right = hard[task] + rng.normal(0, 0.7, 400) < skill
      write_items(
        folder / f'{name}{k}',
        {'accuracy': right * 1},
        evaluator=f'task{task}',
        checkpoint='0123456789'[k],
      )
    runs.append(str(folder / f'{name}{k}'))
  return ','.join(runs)


@pytest.mark.slow
def test_seeds_of_one_recipe_are_never_told_apart(tmp_path):
  alone = []
  for repeat in range(5):
    folder = tmp_path / str(repeat)
    a = evaluate(folder, 'a', 2 * repeat).split(',')
    b = evaluate(folder, 'b', 2 * repeat + 1).split(',')
    for row in compare.compare(a, b)['rows']:
      assert row['decision'].startswith('not distinguishable: about'), row
      assert row['decision'].endswith(('seeds would tell', 'items would tell'))
    alone += compare.compare(a[:1], b[:1])['rows']
  # Lone runs do differ, without one recipe being better.
  assert sum(row['decision'].startswith('B is') for row in alone) >= 4


def test_a_better_recipe_is_told_by_five_seeds(tmp_path, capsys):
  a, b = evaluate(tmp_path, 'a', 0), evaluate(tmp_path, 'b', 1, rise=0.8)
  compare.main([a, b])
  out = capsys.readouterr().out.splitlines()
  assert [line[:2] for line in out[:10]] == ['A:'] * 5 + ['B:'] * 5
  assert sum(line.endswith('B is better') for line in out) == 3


def fold(workdir, n, outcomes, checkpoint='0'):
  """Writes the items of a run for the n-th fold."""
  items.write(
    workdir,
    header(task=f'{n}' * 64, checkpoint=checkpoint),
    [{'id': f'{n}-{i}', 'accuracy': x} for i, x in enumerate(outcomes)],
  )
  return str(workdir)


def test_folds_are_one_run(tmp_path):
  def side(name, *folds, begin=0):
    return [
      fold(tmp_path / f'{name}{n}', n, x, checkpoint=f'{begin + n}')
      for n, x in enumerate(folds)
    ]

  a = side('a', [0, 1, 1, 0], [0, 0, 1])
  b = side('b', [1, 1, 1, 0], [1, 1, 1], begin=2)
  whole = [tmp_path / 'wa', tmp_path / 'wb']
  write_items(whole[0], {'accuracy': [0, 1, 1, 0, 0, 0, 1]})
  write_items(whole[1], {'accuracy': [1, 1, 1, 0, 1, 1, 1]})
  want = compare.compare([str(whole[0])], [str(whole[1])])['rows']
  # In any order: each fold finds its own.
  for folds in (b, b[::-1]):
    assert compare.compare(a, folds)['rows'] == want
  again = side('c', [1, 1, 1, 0], [1, 0, 0], begin=4)
  found = compare.compare(
    [*a, *again], [*b, *side('d', *[[1] * 4, [1] * 3], begin=6)]
  )
  assert found['rows'][0]['runs'] == 2 and found['rows'][0]['n'] == 7
  text = refused(2, ','.join([*a, again[0]]), ','.join(b))
  assert text == 'blimp: 1 to 2 runs per fold: give each as many'
  text = refused(2, ','.join(a), b[0])
  assert text.startswith('blimp: another task in ')
  text = refused(2, ','.join([*a, *again]), ','.join(b))
  assert text == '2 against 1 runs: give each side one, or two and more'


# --- refusals


def test_items_that_are_not_the_same_are_refused(tmp_path):
  a, b = tmp_path / 'a', tmp_path / 'b'
  write_items(a, {'accuracy': [0, 1, 1, 0]})
  path = write_items(b, {'accuracy': [0, 1, 1, 0]}, task=OTHER)
  text = refused(2, a, b)
  assert text.startswith('blimp: another task in ')
  assert text.endswith('b (bbbbbbbbbbbb): evaluate both with one')
  path.unlink()
  items.write(
    b, header(), [{'id': f'blimp/{i}', 'accuracy': 1} for i in (0, 2, 9)]
  )
  text = refused(2, a, b)
  assert text.startswith('blimp: items are missing (1 and 2): ')
  assert text.endswith('b: evaluate both with one task')
  # Two tasks a side that share items are no folds.
  both = [f'{tmp_path / x}1,{tmp_path / x}2' for x in 'cd']
  for n, name in enumerate(['c1', 'c2', 'd1', 'd2']):
    task = (TASK, OTHER)[n % 2]
    write_items(
      tmp_path / name, {'accuracy': [0, 1]}, task=task, checkpoint=f'{n}'
    )
  text = refused(2, *both)
  assert text.startswith('blimp: another task in ')
  assert text.endswith('with blimp/0 in both: evaluate both with one')
  items.write(b, header(), [{'id': 'blimp/2', 'accuracy': 1}])
  assert 'items are missing (0 and 3): ' in refused(2, a, b)
  assert 'items are missing (3 and 0): ' in refused(2, b, a)


def test_what_cannot_be_compared_is_one_line(tmp_path, pair):
  a, b = pair / 'a', pair / 'b'
  assert refused(2, a, tmp_path / 'typo').endswith(
    'typo: no such folder: check the path'
  )
  assert refused(2, a, tmp_path).endswith(
    ': no items: run python -m lm.evaluate on it'
  )
  assert refused(2, a, b, '--step', 7).endswith(
    ': no items of step 7: run python -m lm.evaluate on it'
  )
  assert 'not a folder of this machine' in refused(2, a, 'gs://bucket/run')
  assert refused(2, a, b, '--metric', 'acuracy') == (
    '--metric: no outcome acuracy in common; did you mean accuracy?'
  )
  assert (
    refused(2, a, b, '--level', 1) == '--level: 1.0 must be between 0 and 1'
  )
  three = [
    write_items(tmp_path / n, {'x': [1, 2]}, checkpoint=n) for n in '012'
  ]
  one, two, other = (path.parents[2] for path in three)
  assert refused(2, one, f'{two},{other}') == (
    '1 against 2 runs: give each side one, or two and more'
  )
  write_items(tmp_path / 'c', {'x': [1, 2]}, evaluator='other')
  assert refused(2, a, tmp_path / 'c').endswith(
    'no evaluator in common: evaluate both with the same evals'
  )
  write_items(tmp_path / 'd', {'stereotype': [1, 2]}, evaluator='other')
  write_items(tmp_path / 'e', {'stereotype': [1, 2]}, evaluator='other')
  assert refused(2, tmp_path / 'd', tmp_path / 'e') == (
    'nothing to compare: name outcomes with --metric; known: stereotype'
  )


def test_seeds_that_are_none_are_refused(tmp_path):
  for name, step, checkpoint in (('a', 9, '0'), ('b', 9, '0'), ('c', 12, '1')):
    write_items(
      tmp_path / name, {'x': [1, 2, 3]}, step=step, checkpoint=checkpoint
    )
  a, b, c = (tmp_path / name for name in 'abc')
  text = refused(2, f'{a},{b}', f'{a},{c}')
  assert text.startswith('blimp: ')
  assert text.endswith('are the same checkpoint: give runs of different seeds')
  text = refused(2, f'{a},{c}', f'{a},{c}')
  assert ' is at step 9, ' in text and text.endswith(
    ' at 12: compare at one step'
  )


@pytest.mark.process
def test_damage_ends_the_program_with_its_code(pair, tmp_path):
  run = shutil.copytree(pair / 'b', tmp_path / 'b')
  programs.flip(items.find(run)['blimp'])
  done = subprocess.run(
    [sys.executable, '-m', 'tools.compare', pair / 'a', run],
    cwd=programs.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 4 and not done.stdout
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
  assert 'no sound file of items' in done.stderr


@pytest.mark.slow
def test_seeds_of_two_recipes_get_a_verdict_by_likelihood(
  data, tmp_path, one_device, capsys
):
  """Documents are the items, so the usual evaluator is enough."""
  del one_device
  sides = {'low': 1e-5, 'high': 1e-2}
  names = {side: [] for side in sides}
  for side, peak in sides.items():
    for seed in range(3):
      workdir = tmp_path / f'{side}{seed}'
      settings = {'seed': seed, 'optim__peak': peak, 'optim__warmup': 0}
      train.train(
        programs.make(data, steps=12, save_every=12, **settings), workdir
      )
      evaluate_lib.evaluate(workdir)
      names[side].append(str(workdir))
  capsys.readouterr()
  compare.main([','.join(names['low']), ','.join(names['high']), '--json'])
  report = json.loads(capsys.readouterr().out)
  row = rows(report)['valid/nats']
  assert row['n'] == 6 and row['runs'] == 3  # documents, seeds
  assert row['decision'] == 'B is better' and row['difference'] < 0
  # The mean document is that of the run's own metric.
  (one,) = evaluate_lib.evaluate(names['high'][0])
  found = items.find(tmp_path / 'high0')
  _, documents = items.read(found['valid'])
  nats = sum(x['nats'] for x in documents)
  tokens = sum(x['tokens'] for x in documents)
  assert tokens == one['metrics']['valid/tokens']
  assert nats / tokens == pytest.approx(one['metrics']['valid/loss_nats'])
