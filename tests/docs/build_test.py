"""The documentation builds without a warning, from the code that is there.

A failure means a broken link or table, or a docstring that autodoc cannot show.
"""

import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.process
def test_the_documentation_builds(tmp_path):
  pytest.importorskip('sphinx')
  flags = ['-W', '--keep-going', '-q', '-b', 'html']
  trees, html = str(tmp_path / 'doctrees'), str(tmp_path / 'html')
  done = subprocess.run(
    [sys.executable, '-m', 'sphinx', *flags, '-d', trees, 'docs', html],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  text = (tmp_path / 'html' / 'api' / 'programs.html').read_text()
  assert 'lm.train.train' in text
