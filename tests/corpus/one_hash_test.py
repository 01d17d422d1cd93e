"""All stages give the same bytes, on 6 MB with planted faults.

A failure means that a corpus depends on who made it and how often he was
stopped, and that its shards cannot be made again.
"""

import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from tests.corpus import build_test, planted_config
from tools.bench import workers

SOURCES = {'a': 3, 'b': 2, 'c': 1}
FILES = ('audit.json', 'contamination.json', 'documents.parquet')
MADE = ('parts', 'tables')


class Built(NamedTuple):
  """The sources and what was built of them by one process."""

  raw: Path
  output: Path


def start(
  raw: Path, output: Path, *flags: str, seed: int = 0
) -> subprocess.Popen[str]:
  """Starts the factory on all stages, with a seed for Python's hashes."""
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'tools.factory',
      f'--config={planted_config.__file__}:{raw}',
      f'--output={output}',
      *flags,
    ],
    env={
      **os.environ,
      'PYTHONPATH': str(workers.ROOT),
      'PYTHONHASHSEED': str(seed),
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(child: subprocess.Popen[str]) -> None:
  _, err = child.communicate(timeout=600)
  assert child.returncode == 0, err


def made(output: Path) -> set[str]:
  """Names the parts and tables that are whole."""
  return {
    x.name
    for name in MADE
    for x in output.glob(f'{name}/*')
    if not x.name.startswith('.')
  }


def check_same(output: Path, expected: Path) -> None:
  assert build_test.shard_bytes(output) == build_test.shard_bytes(expected)
  for name in FILES:
    given = [(x / name).read_bytes() for x in (output, expected)]
    assert given[0] == given[1], name


@pytest.fixture(scope='module')
def built(shared_data, tmp_path_factory) -> Built:
  pytest.importorskip('py3langid')
  folder = tmp_path_factory.mktemp('one-hash')
  raw = planted_config.write(folder, 6.0, SOURCES)
  finish(start(raw, folder / 'one', '--workers=1'))
  # All that is planted is found, or this would say little.
  found = {
    x['reason'].partition('.')[0] for x in build_test.rows(folder / 'one')
  }
  assert found >= {'', 'quality', 'exact', 'near', 'language'}
  audit = json.loads((folder / 'one/audit.json').read_text())['sources']
  assert all('contamination.passages' in x['changes'] for x in audit.values())
  assert len(made(folder / 'one')) > 60
  return Built(raw, folder / 'one')


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
  ('seed', 'flags'),
  [
    (1, ['--workers=2']),
    (2, ['--workers=5']),
    (3, ['--workers=2', '--engine=spark']),
  ],
)
def test_workers_engines_and_hash_seeds_change_nothing(
  built, tmp_path, seed, flags
):
  if '--engine=spark' in flags:
    pytest.importorskip('pysail')
  finish(start(built.raw, tmp_path / 'out', *flags, seed=seed))
  check_same(tmp_path / 'out', built.output)
  assert made(tmp_path / 'out') == made(built.output)


@pytest.mark.slow
@pytest.mark.process
def test_ten_kills_change_nothing(built, tmp_path):
  # Each attempt may add a share of the work before it is killed. A machine that
  # is quick ends before ten kills, and does the same in another folder.
  share = max(1, len(made(built.output)) // 30)
  kills = folders = 0
  while kills < 10:
    output, before = tmp_path / f'killed{folders}', kills
    while True:
      goal = len(made(output)) + share
      child = start(built.raw, output, '--workers=2', seed=kills)
      while child.poll() is None and (kills >= 10 or len(made(output)) < goal):
        time.sleep(0.001)
      if child.poll() is not None:
        break
      child.send_signal(signal.SIGKILL)
      child.communicate()
      kills += 1
    finish(child)
    assert kills > before
    check_same(output, built.output)
    assert not any(x.name[0] == '.' for x in output.rglob('*'))
    folders += 1


@pytest.mark.slow
@pytest.mark.process
def test_a_source_added_later_costs_its_own_share(built, tmp_path):
  raw = tmp_path / 'raw'
  for name in ('a', 'b'):
    shutil.copytree(built.raw / name, raw / name)
  shutil.copy(built.raw / 'words.txt', raw)
  tokenizer = f'--config.tokenizer_file={built.output}/tokenizer.model'
  grown, scratch = tmp_path / 'grown', tmp_path / 'scratch'
  finish(start(raw, grown, '--workers=2', tokenizer))
  before = made(grown)
  (file,) = (built.raw / 'c').iterdir()
  lines = file.read_text(encoding='utf-8').splitlines(keepends=True)
  (raw / 'c').mkdir()
  # A tenth of the documents.
  (raw / 'c/c.jsonl').write_text(''.join(lines[: len(lines) // 2]), 'utf-8')
  finish(start(raw, grown, '--workers=2', tokenizer))
  finish(start(raw, scratch, '--workers=2', tokenizer))
  check_same(grown, scratch)
  assert made(grown) == made(scratch)  # nothing stays of what is not needed
  # Parts are the work on texts; tables, on keys, are made anew.
  parts = {x.name for x in (scratch / 'parts').iterdir()}
  assert 0 < 4 * len(parts - before) <= len(parts)
