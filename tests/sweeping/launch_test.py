"""Runs of a sweep go through the launchers, one job each.

The launchers themselves are tested in tests/tools/launch_test.py. Here they are
the real ones, and sbatch is a stand-in that records what it is given.
"""

import json
import re
import sys

import pytest

from lm import checkpoint, config
from lm.sweeping import launch, trials
from tests import programs
from tools.launch import arguments

SBATCH = """#!{python} -IS
import sys
with open({calls!r}, 'a') as file:
  file.write(open(sys.argv[-1]).read() + '\\0')
print(17)
"""
FILE = f'{programs.ROOT}/tests/tiny_config.py'


def launcher(name: str, *own: str) -> launch.Launcher:
  return launch.Launcher(name, own, 'My Sweep', '/shared/runs')


@pytest.mark.parametrize(
  'name', ['base', 'peak=0.03_seed=1', 'a' * 100, '中文', 'A_b', 'a_b']
)
def test_names_of_jobs_are_those_that_all_launchers_take(name):
  job = launch.job('2026 sweep', name)
  arguments.name(job, 40)
  assert job != launch.job('2026 sweep', f'{name}x')
  assert job != launch.job('2026 Sweep', name)


def test_a_launcher_gets_its_flags_and_the_words_of_the_run():
  trial = trials.Trial('seed=1', {}, None, ('--config=a.py', '--config.seed=1'))
  words = launcher('gke', '--type=v5p-8', '--image=a/b').words(
    trial, dry_run=True
  )
  assert words == [
    '-m',
    'tools.launch.gke',
    f'--name={launch.job("My Sweep", "seed=1")}',
    '--type=v5p-8',
    '--image=a/b',
    '--dry_run',
    'apply',
    '--',
    '--config=a.py',
    '--config.seed=1',
    '--workdir=/shared/runs/seed=1',
  ]
  words = launcher('tpu_vm', 'run', '--zone=a').words(trial, dry_run=False)
  assert words[2:5] == [
    f'--name={launch.job("My Sweep", "seed=1")}',
    '--zone=a',
    'run',
  ]


@pytest.mark.parametrize(
  ('name', 'own', 'error'),
  [
    ('slrm', (), '--launch=slrm; did you mean slurm?'),
    (
      'slurm',
      ('--name=a',),
      '--name=a: lm.sweep gives each job its own: leave it out',
    ),
  ],
)
def test_wrong_launchers(name, own, error):
  with pytest.raises(config.ConfigError) as caught:
    launcher(name, *own)
  assert str(caught.value) == error


@pytest.mark.slow
@pytest.mark.process
def test_every_run_becomes_a_slurm_job(data, alone, start, tmp_path):
  calls = tmp_path / 'calls'
  (tmp_path / 'bin').mkdir()
  fake = tmp_path / 'bin' / 'sbatch'
  fake.write_text(SBATCH.format(python=sys.executable, calls=str(calls)))
  fake.chmod(0o755)
  settings = {
    'PATH': f'{tmp_path}/bin:/usr/bin:/bin',
    'XDG_STATE_HOME': str(tmp_path / 'state'),
  }
  workdir = tmp_path / 'a'
  words = [
    f'--config={FILE}:{data}',
    '--over=optim.peak=0.01,0.02',
    '--launch=slurm',
    f'--workdir={workdir}',
  ]
  own = ['--', '--gpus=1', '--time=1:00:00', f'--folder={tmp_path}/slurm']
  process = start(
    'sweep', [*words, '--', '--gpus=0', '--time=1:00:00'], settings=settings
  )
  assert process.error(2) == "--launch=slurm: --gpus='0': give 1 up"
  process = start('sweep', [*words, '--dry-run', *own], settings=settings)
  assert process.wait() == 0, process.text()
  assert process.text().count('sbatch --parsable') == 2
  assert not calls.exists() and not workdir.exists()
  # One of the two was trained already: only the other is handed over.
  (workdir / 'runs').mkdir(parents=True)
  (workdir / 'runs' / 'base').symlink_to(alone)
  process = start('sweep', [*words, *own], settings=settings)
  assert process.wait() == 0, process.text()
  (script,) = calls.read_text().split('\0')[:-1]
  assert re.search('^srun .* lm.train .*--config.optim.peak=0.02', script, re.M)
  assert f'--workdir={workdir}/runs/peak=0.02' in script
  rows = json.loads((workdir / 'table.json').read_text())['runs']
  assert [(row['name'], row['state']) for row in rows] == [
    ('base', 'done'),
    ('peak=0.02', 'waiting'),
  ]
  assert checkpoint.steps(alone)[-1] == rows[0]['step']
