"""Flags become a sweep; whatever is wrong is one line and exit code 2."""

from pathlib import Path

import pytest

from lm.sweeping import points, request

TINY = '--config=configs/gpt/tiny.py'


def ask(*words: str) -> request.Request:
  return request.parse([TINY, *words], 'about')


def refusal(capsys, *words: str) -> str:
  with pytest.raises(SystemExit) as caught:
    request.parse(words, 'about')
  assert caught.value.code == 2
  line = capsys.readouterr().err.strip()
  assert line.startswith('error: ') and '\n' not in line and len(line) <= 207
  return line.removeprefix('error: ')


def test_flags_become_points():
  asked = ask('--over=optim.peak=1e-3,3e-3', '--seeds=2', '--config.steps=9')
  assert asked.sweep.points == points.product(
    points.values('optim.peak', ('1e-3', '3e-3')), points.seeds(2)
  )
  assert asked.base.config.steps == 9
  assert asked.workdir == Path('runs/sweep-tiny')
  assert asked.jobs is None and not asked.dry_run


def test_commas_in_brackets_part_no_values():
  asked = ask('--over=model.pattern=(main,main),(main,)', '--seeds=3,5')
  assert [x['model.pattern'] for x in asked.sweep.points[::2]] == [
    '(main,main)', '(main,)'
  ]  # fmt: skip
  assert [x['seed'] for x in asked.sweep.points[:2]] == [3, 5]


def test_a_config_file_brings_its_own_sweep(tmp_path):
  file = tmp_path / 'a.py'
  file.write_text(
    'from configs import base\n'
    'from lm.sweeping import points\n'
    'def get_config(): return base.get_config().lock()\n'
    'def sweep():\n'
    '  return points.Sweep(points.draw("optim.peak", 1e-3, 1e-1, 4),\n'
    '    metric="valid/loss_nats", halving=points.Halving((50,), 0.25))\n'
  )
  asked = request.parse([f'--config={file}', '--seeds=2'], '')
  assert len(asked.sweep.points) == 8
  assert asked.sweep.metric == 'valid/loss_nats'
  assert asked.sweep.halving == points.Halving((50,), 0.25)
  asked = request.parse(
    [f'--config={file}', '--halving=20', '--metric=loss_nats'], ''
  )
  assert asked.sweep.halving == points.Halving((20,), 0.5)
  assert asked.sweep.metric == 'loss_nats'


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    ("'',a", ['', 'a']),
    ('"a,b",c', ['a,b', 'c']),
    ("it's,b", ["it's", 'b']),
    ("('a,b',1),2", ["('a,b',1)", '2']),
  ],
)
def test_values_in_quotes(values, expected):
  found = request._over(f'name={values}')
  assert [point['name'] for point in found] == expected


@pytest.mark.parametrize(
  ('words', 'error'),
  [
    (
      [],
      'configs/gpt/tiny.py: nothing to sweep over: give --over, --seeds, or '
      'define sweep() there',
    ),
    (
      ['--over=optim.peak'],
      "--over=optim.peak: give KEY=V1,V2; quotes stand for an empty text: ''",
    ),
    (
      ['--over=optim.peak=1,,2'],
      '--over=optim.peak=1,,2: give KEY=V1,V2; quotes stand for an empty text: '
      "''",
    ),
    (
      ['--seeds=0'],
      '--seeds=0: give how many, such as 3, or which, such as 5,6,7',
    ),
    (
      ['--seeds=a,b'],
      '--seeds=a,b: give how many, such as 3, or which, such as 5,6,7',
    ),
    (
      ['--over=seed=1,2', '--seeds=2'],
      'seed: two parts of a sweep set it: leave one out',
    ),
    (
      ['--seeds=2', '--', '--gpus=8'],
      '--gpus=8: what follows -- is for a launcher: give --launch as well',
    ),
    (
      ['--seeds=2', '--higher'],
      '--higher: of which metric? give --metric as well',
    ),
    (['--seeds=2', '--runs=a'], '--runs=a: is of --launch: give both'),
    (
      ['--seeds=2', '--launch=slurm', '--jobs=3'],
      '--jobs=3: is of this machine, and --launch of others',
    ),
    (
      ['--seeds=2', '--launch=gke', '--halving=10'],
      'halving: is of runs on this machine, and --launch of others: leave one '
      'out',
    ),
    (
      ['--seeds=2', '--config.optim.peek=1'],
      'unknown key optim.peek; did you mean optim.peak?',
    ),
  ],
)
def test_wrong_flags(capsys, words, error):
  assert refusal(capsys, TINY, *words) == error


@pytest.mark.parametrize(
  ('body', 'error'),
  [
    ('return 3', 'sweep() must return a list of dicts, as lm.sweeping.points'),
    ('return points.values("seed", [1]) + [2]', 'sweep() must return a list'),
    ('return points.log_range("seed", 0, 1, 3)', 'seed: 0 has no logarithm'),
    ('return 1 / 0', 'ZeroDivisionError: division by zero'),
    (
      'return points.Sweep([], halving=points.Halving((2, 1)))',
      'halving: rungs 2,1: give steps that rise',
    ),
    (
      'return points.Sweep([], halving=points.Halving(5))',
      'halving: rungs 5: give a list of steps, such as (100, 300)',
    ),
    (
      'return points.Sweep([], halving=points.Halving((1.5,)))',
      'halving: rungs (1.5,): give a list of steps, such as (100, 300)',
    ),
    (
      'return points.Sweep([], halving=points.Halving((5,), "half"))',
      'halving: keep half: give a share between 0 and 1',
    ),
    (
      'return points.Sweep([], halving=(5,))',
      'halving: (5,): give points.Halving((100, 300), 0.5)',
    ),
  ],
)
def test_a_sweep_that_is_wrong(tmp_path, capsys, body, error):
  file = tmp_path / 'a.py'
  file.write_text(
    'from configs import base\n'
    'from lm.sweeping import points\n'
    'def get_config(): return base.get_config().lock()\n'
    f'def sweep(): {body}\n'
  )
  assert error in refusal(capsys, f'--config={file}')
