"""The tool that kills runs and draws them: tools/killed_run.py."""

import sys

import pytest

from lm.reporting import metrics_log
from tools import killed_run

# Logs a step every tenth of a second until it is killed.
LOGS = (
  'import pathlib, sys, time\n'
  'from lm.reporting import metrics_log\n'
  'for step in range(1, int(sys.argv[2])):\n'
  '  metrics_log.append(pathlib.Path(sys.argv[1]), {"step": step})\n'
  '  time.sleep(0.1)\n'
)


@pytest.mark.process
def test_a_run_is_killed_once_it_has_logged_a_step(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  command = [sys.executable, '-c', LOGS, str(path)]
  assert killed_run.kill_at([*command, '10000'], tmp_path, 3) >= 3
  lines = path.read_text().splitlines()
  assert len(lines) < 9999
  with pytest.raises(RuntimeError, match='ended before step 50000'):
    killed_run.kill_at([*command, '2'], tmp_path, 50000)


def test_the_picture_shows_both_runs(tmp_path):
  for name in ('whole', 'killed'):
    (tmp_path / name).mkdir()
    for n in (1, 2, 3):
      record = {'step': n, 'loss_nats': 1 / n}
      metrics_log.append(tmp_path / name / 'metrics.jsonl', record)
  picture = tmp_path / 'images' / 'killed.png'
  killed_run.draw(
    tmp_path / 'whole', tmp_path / 'killed', [2], picture, 'the same bits'
  )
  assert picture.read_bytes().startswith(b'\x89PNG')
