"""Our own configs are found from any folder, in a checkout and in a wheel."""

from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from lm import config
from lm.config import files
from tests import programs

LOAD = "from lm import config; print(config.load('configs/gpt/tiny.py').steps)"


def python(folder, path, code):
  """Runs code in a folder, where `path` has the package `lm`."""
  return subprocess.run(
    [sys.executable, '-c', code],
    cwd=folder,
    env={'PYTHONPATH': str(path), 'PYTHONDONTWRITEBYTECODE': '1'},
    capture_output=True,
    text=True,
    timeout=programs.PATIENCE_SECONDS,
  )


@pytest.fixture
def installed(tmp_path):
  """A folder with `lm` as a wheel installs it: configs lie in the package."""
  path = tmp_path / 'site-packages'
  cache = shutil.ignore_patterns('__pycache__')
  shutil.copytree(programs.ROOT / 'lm', path / 'lm', ignore=cache)
  shutil.copytree(
    programs.ROOT / 'configs', path / 'lm' / 'configs', ignore=cache
  )
  return path


@pytest.mark.process
def test_a_config_is_found_in_a_wheel(installed, tmp_path):
  (tmp_path / 'elsewhere').mkdir()
  done = python(tmp_path / 'elsewhere', installed, LOAD)
  assert done.returncode == 0, done.stderr
  want = config.load(f'{programs.ROOT}/configs/gpt/tiny.py').steps
  assert int(done.stdout) == want


@pytest.mark.process
def test_a_config_of_ones_own_imports_ours(installed, tmp_path):
  """Also from a folder that is called `configs` as well."""
  own = tmp_path / 'elsewhere' / 'configs'
  own.mkdir(parents=True)
  (own / 'sizes.py').write_text('STEPS = 7\n')
  (own / 'mine.py').write_text(
    'from configs import base, sizes\n\n\n'
    'def get_config():\n'
    '  c = base.get_config()\n'
    '  c.steps = sizes.STEPS\n'
    '  return c.lock()\n'
  )
  code = LOAD.replace('gpt/tiny', 'mine')
  done = python(own.parent, installed, code)
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) == 7


def test_a_config_is_found_from_another_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = files.find('configs/gpt/tiny.py')
  assert found == programs.ROOT / 'configs' / 'gpt' / 'tiny.py'
  assert config.load('configs/gpt/tiny.py').is_locked
  assert config.load('configs/gpt/gpt2.py:small').is_locked
  # What is not ours is looked for where it was said to be, and nowhere else.
  for name in ('configs/gpt/tinny.py', 'gpt/tiny.py', 'other/configs/base.py'):
    assert files.find(name) == Path(name)
  with pytest.raises(
    config.ConfigError, match=r'tinny\.py: no such file; did '
  ):
    config.load('configs/gpt/tinny.py')


def test_a_file_of_the_current_folder_comes_first(tmp_path, monkeypatch):
  (tmp_path / 'configs' / 'gpt').mkdir(parents=True)
  path = tmp_path / 'configs' / 'gpt' / 'tiny.py'
  path.write_text((programs.ROOT / 'configs' / 'gpt' / 'tiny.py').read_text())
  monkeypatch.chdir(tmp_path)
  assert files.find('configs/gpt/tiny.py') == Path('configs/gpt/tiny.py')
