"""An installed wheel goes the whole way in a folder that holds no checkout."""

import os
from pathlib import Path
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, pathlib
import lm
from lm.corpus import prepare

assert pathlib.Path.cwd() in pathlib.Path(lm.__file__).parents, lm.__file__
text = pathlib.Path('text.jsonl')
lines = [f'fox {n} jumps over {n * 7 % 13} lazy dogs' for n in range(400)]
text.write_text(''.join(json.dumps({'text': x}) + chr(10) for x in lines))
prepare.train_tokenizer(['text.jsonl'], 'words.model', vocab=300)
prepare.write_dataset(['text.jsonl'], 'data', 'words.model', split_valid=0.2)
c = lm.config.load(
  'configs/gpt/tiny.py',
  [
    ('steps', '2'), ('batch_size', '8'), ('optim.warmup', '1'),
    ('model.width', '32'), ('model.depth', '1'), ('model.length', '32'),
    ('data.length', '32'), ('evals.valid.length', '32'),
    ('tokenizer.path', 'words.model'),
    ('data.sources.train.path', 'data/train'),
    ('evals.valid.path', 'data/valid'),
  ],
)
lm.train.train(c, 'run')
records = lm.evaluate.evaluate('run')
assert records[-1]['metrics']['valid/loss_nats'] > 0
assert len(lm.sample.sample('run', 'fox', length=4)) == 1
from lm.reporting import plot
assert plot.report('run').exists()
print('done')
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
  """The wheel of this checkout."""
  folder = tmp_path_factory.mktemp('built')
  # Not in the checkout: setuptools leaves a folder `build` there.
  source = folder / 'source'
  for name in ('lm', 'configs'):
    shutil.copytree(
      ROOT / name,
      source / name,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  for name in ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source / name)
  command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps']
  subprocess.run(
    [*command, '--wheel-dir', str(folder), str(source)], check=True
  )
  (path,) = folder.glob('exactlm-*.whl')
  return path


@pytest.mark.slow
@pytest.mark.process
def test_a_wheel_holds_the_package_and_its_configs(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  assert {'lm/py.typed', 'lm/configs/base.py', 'lm/configs/gpt/tiny.py'} <= {
    *names
  }
  assert {
    *('lm/inference/serve.html', 'lm/reporting/charts.css'),
    'lm/reporting/charts.js',
  } <= {*names}
  tops = {x.split('/')[0] for x in names}
  assert tops == {'lm', next(x for x in tops if x.endswith('.dist-info'))}


@pytest.mark.slow
@pytest.mark.process
def test_the_whole_way_from_a_wheel(wheel, tmp_path):
  """An unpacked wheel, with the libraries that are here."""
  site = tmp_path / 'wheel'
  zipfile.ZipFile(wheel).extractall(site)
  go(sys.executable, tmp_path, PYTHONPATH=str(site))


@pytest.mark.slow
@pytest.mark.process
def test_the_whole_way_in_a_fresh_environment(wheel, tmp_path):
  """The wheel's own requirements are enough, on another Python."""
  current = sys.version_info[:2]
  other = '3.11' if current == (3, 12) else '3.12'
  homes = Path.home().glob(f'.pyenv/versions/{other}.*/bin/python')
  names = [*map(str, homes), f'python{other}']
  works = [x for x in names if shutil.which(x) and runs(x, '-c', '')]
  if not works:
    pytest.skip(f'needs Python {other}')
  assert runs(works[0], '-m', 'venv', str(tmp_path / 'env'))
  python = str(tmp_path / 'env/bin/python')
  assert runs(python, '-m', 'pip', 'install', '--quiet', str(wheel))
  go(python, tmp_path)


def runs(*command: str) -> bool:
  """Runs a command outside of the checkout, and says whether it ended well."""
  env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  return not subprocess.run(command, cwd='/', env=env).returncode


def go(python: str, folder: Path, **changes: str) -> None:
  """Goes the whole way in a folder."""
  env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | changes
  done = subprocess.run(
    [python, '-c', PROGRAM],
    cwd=folder,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == 'done'
