"""The notebooks are those of their sources, and run where no checkout is.

A failure means that a notebook shows what the code does not do any more: change
its source, then run python -m tools.notebooks NAME.
"""

import json
import re

import pytest

from lm import config
from tools import notebooks, repository

pytest.importorskip('jupytext')
pytest.importorskip('nbclient')
NAMES = [path.stem for path in notebooks.sources()]
MOST_BYTES = 300_000


def stored(name: str) -> dict:
  path = (notebooks.FOLDER / name).with_suffix('.ipynb')
  return json.loads(path.read_text(encoding='utf-8'))


def test_notebooks_have_the_cells_of_their_sources():
  assert [*notebooks.stale()] == [], 'run python -m tools.notebooks'


def test_a_changed_source_is_noticed(tmp_path, monkeypatch):
  name = NAMES[0]
  for suffix in ('.py', '.ipynb'):
    path = (notebooks.FOLDER / name).with_suffix(suffix)
    (tmp_path / path.name).write_bytes(path.read_bytes())
  monkeypatch.setattr(notebooks, 'FOLDER', tmp_path)
  notebooks.main(['--check'])
  with (tmp_path / f'{name}.py').open('a') as file:
    file.write('\n# %% [markdown]\n# More of it.\n')
  with pytest.raises(config.ConfigError, match='has other cells'):
    notebooks.main(['--check'])
  outputs = (tmp_path / f'{name}.ipynb').read_text().count('"output_type"')
  notebooks.main(['--text'])  # it was not run, and keeps what it has shown
  notebooks.main(['--check'])
  shown = (tmp_path / f'{name}.ipynb').read_text()
  assert shown.count('"output_type"') == outputs and 'More of it.' in shown
  with (tmp_path / f'{name}.py').open('a') as file:
    file.write('\n# %%\nprint(1)\n')
  with pytest.raises(config.ConfigError, match='its code has changed'):
    notebooks.main(['--text'])
  with pytest.raises(config.ConfigError, match='has other cells'):
    notebooks.main(['--check'])
  with pytest.raises(config.ConfigError, match='nothing: no such notebook'):
    notebooks.main(['nothing'])


@pytest.mark.parametrize('name', NAMES)
def test_outputs_are_small_and_name_no_machine(name):
  path = (notebooks.FOLDER / name).with_suffix('.ipynb')
  assert path.stat().st_size < MOST_BYTES
  cells = [x for x in stored(name)['cells'] if x['cell_type'] == 'code']
  shown = json.dumps([x['outputs'] for x in cells], ensure_ascii=False)
  assert not re.search(r'Traceback|Warning: |/tmp/|/home/|/root/', shown)
  assert [x['execution_count'] for x in cells] == [*range(1, len(cells) + 1)]


@pytest.mark.parametrize('name', NAMES)
def test_the_first_cell_installs_from_our_repository(name):
  first = next(x for x in stored(name)['cells'] if x['cell_type'] == 'code')
  assert repository.address() in ''.join(first['source'])
  page = (notebooks.FOLDER / 'README.md').read_text(encoding='utf-8')
  path = f'experiments/notebooks/{name}.ipynb'
  assert all(address in page for address in repository.badge(path))


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_runs_outside_of_the_checkout(name, tmp_path, monkeypatch):
  # As a user has it: the tests' own settings make programs slow, and others.
  for setting in ('XLA_FLAGS', 'LM_TRUST', 'NPROC'):
    monkeypatch.delenv(setting, raising=False)
  source = (notebooks.FOLDER / name).with_suffix('.py')
  made = notebooks.execute(source, tmp_path, {'QUICK': '1'})
  cells = [x for x in made.cells if x.cell_type == 'code']
  assert all(x.execution_count for x in cells)
  pictures = [
    y for x in cells for y in x.outputs if 'image/png' in y.get('data', {})
  ]
  assert pictures


@pytest.mark.slow
@pytest.mark.process
def test_a_cell_that_warns_or_fails_is_refused(tmp_path):
  source = tmp_path / 'bad.py'
  for word, code in (
    ('UserWarning', 'import warnings\nwarnings.warn("old", UserWarning)'),
    ('ZeroDivisionError', '1 / 0'),
  ):
    source.write_text(f'# %%\n{code}\n')
    (tmp_path / word).mkdir()
    with pytest.raises(notebooks.Failed, match=word):
      notebooks.execute(source, tmp_path / word)
