"""The factory gives the same bytes on a cluster of Spark.

A failure means that a corpus made on a cluster cannot be made again elsewhere.
"""

import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from lm import config, errors
from lm.corpus import build, engines
from tests.corpus import build_test, planted_config
from tools import spark_cluster
from tools.bench import process_tree


def python_workers(pids: tuple[int, ...]) -> list[int]:
  """Lists the processes of Python in which a cluster runs tasks."""
  found = []
  for pid in (y for x in pids for y in process_tree.descendants(x)):
    try:
      words = Path(f'/proc/{pid}/cmdline').read_bytes()
      above = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
      parent = Path(f'/proc/{above[1]}/cmdline').read_bytes()
    except OSError:
      continue  # it has ended
    # They are forked from a process of Python that runs none itself.
    if b'pyspark' in words and words == parent:
      found.append(pid)
  return found


@pytest.mark.slow
@pytest.mark.process
def test_a_cluster_of_spark_gives_the_same_bytes(
  shared_data, tmp_path, monkeypatch
):
  if lack := spark_cluster.missing():
    pytest.skip(lack)
  planted_config.write(tmp_path, 3.0, {'a': 2, 'b': 2}, rows=200)
  monkeypatch.chdir(tmp_path)  # so that relative paths are tried, too
  place = f'{planted_config.__file__}:raw'
  build.run(config.load(place, required=()), 'duckdb')
  with spark_cluster.running(tmp_path) as cluster:
    child = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'tools.factory',
        f'--config={place}',
        '--output=cluster',
        '--workers=2',
        '--engine=spark',
        f'--spark={cluster.address}',
      ],
      env={**os.environ, **cluster.environment},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    killed: list[int] = []
    # A part that is not finished is one that a worker is at.
    while child.poll() is None and not killed:
      if any(Path('cluster/parts').glob('.unfinished-*')):
        for pid in python_workers(cluster.pids):
          os.kill(pid, signal.SIGKILL)
          killed.append(pid)
      time.sleep(0.01)
    _, err = child.communicate()
    assert child.returncode == 0 and killed, err
    assert ' INFO ' not in err and 'exact: decide 1/1' in err
  assert build_test.shard_bytes(Path('cluster')) == build_test.shard_bytes(
    Path('duckdb')
  )
  listed = build_test.rows('cluster')
  assert listed == build_test.rows('duckdb') and len(listed) == 800
  for name in ('audit.json', 'contamination.json', 'documents.parquet'):
    given = [Path(x, name).read_bytes() for x in ('cluster', 'duckdb')]
    assert given[0] == given[1], name
  for n in range(len(cluster.pids)):
    assert any(tmp_path.glob(f'worker-{n}/app-*/*')), 'no executor ran there'
  for pid in cluster.pids:
    assert not Path(f'/proc/{pid}').exists()


def test_what_pyspark_client_cannot_do_is_one_line(tmp_path):
  util = pytest.importorskip('pyspark.util')
  if not util.is_remote_only():
    pytest.skip('pyspark itself is installed')
  with (
    pytest.raises(
      errors.Failure, match='spark://a:7077: pyspark-client cannot'
    ),
    engines.opened('spark', 1, tmp_path, 256, 'spark://a:7077'),
  ):
    pass


@pytest.mark.process
def test_an_error_of_a_task_is_one_line_on_spark(tmp_path, monkeypatch):
  pytest.importorskip('pysail')
  monkeypatch.chdir(tmp_path)
  Path('raw').mkdir()
  Path('raw/a.jsonl').write_text('{"text": "good"}\n{"text": bad}\n')
  Path('config.py').write_text(
    'from configs.data import base\n'
    'def get_config():\n'
    '  c = base.get_config()\n'
    "  c.sources = {'a': base.source('raw', errors='strict')}\n"
    '  return c.lock()\n'
  )
  child = build_test.start(
    tmp_path / 'raw', 'out', '--engine=spark', '--config=config.py'
  )
  _, err = child.communicate(timeout=300)
  assert child.returncode == 2
  assert 'a.jsonl' in err.splitlines()[-1] and 'line 2' in err.splitlines()[-1]
  assert 'Traceback' not in err and ' INFO ' not in err
