"""The comparison of factories measures whole trees of processes."""

import sys

import pytest

from tools.bench import corpus, peers, process_tree, workers

pytestmark = pytest.mark.process

# A program whose child takes memory and time, and outlives it.
TREE = """
import subprocess, sys, time
work = '''
import time
kept = bytearray(b"1" * 60_000_000)
while time.process_time() < 0.4:
  pass
time.sleep(0.3)
'''
subprocess.Popen([sys.executable, '-c', work])
print('started')
"""


def test_processes_that_outlive_their_parent_count():
  found = process_tree.measure([sys.executable, '-c', TREE], {})
  assert found.output == 'started\n'
  assert found.cpu_seconds >= 0.4
  assert 60_000_000 < found.peak_bytes < 400_000_000
  assert found.wall_seconds > 0


def test_variables_reach_the_program():
  code = 'import os; print(os.environ["A_SETTING"])'
  command = [sys.executable, '-c', code]
  assert process_tree.measure(command, {'A_SETTING': 'x'}).output == 'x\n'


def test_a_program_that_fails():
  with pytest.raises(workers.Failed, match='failed with 3: Sorry'):
    process_tree.measure(
      [sys.executable, '-c', 'print("Sorry"); raise SystemExit(3)'], {}
    )


def test_memory_of_a_process_that_ended_is_none():
  assert process_tree.memory(2**22 + 1) == 0
  assert process_tree.descendants(2**22 + 1) == []


def report(name: str, seconds: float) -> corpus.Run:
  return corpus.Run(
    process_tree.Measured(seconds, 2 * seconds, 2**20, ''),
    {
      'steps': [
        {'name': 'rules', 'wall_seconds': seconds},
        {
          'name': 'audit',
          'wall_seconds': seconds / 2,
          'cpu_seconds': seconds / 4,
        },
      ],
      'apart': ['audit'] if name == 'a' else [],
      'documents': 7,
      'version': f'{name} 1',
    },
  )


def test_a_table_of_medians_and_ratios_by_round():
  text = corpus.table(
    {
      'a': [report('a', x) for x in (1.0, 2.0, 4.0)],
      'b': [report('b', x) for x in (3.0, 8.0, 8.0)],
    },
    10,
  )
  assert '| a (a 1) | 4.0 | 2.0 | 5.0 | 1 | 7 |' in text
  assert '| b (b 1) | 16.0 | 8.0 | 1.2 | 1 | 7 |' in text
  assert 'b takes 3.00, 4.00, 2.00 times the processor time of a' in text
  # Without the audit of one second of two, and of half a second of four.
  assert (
    'b takes 3.43, 4.57, 2.29 times the processor time of a and 6.00, 8.00, '
    '4.00 times its wall time for the core'
  ) in text
  assert '| rules | 8.00 |  |' in text


@pytest.mark.slow
@pytest.mark.parametrize('side', corpus.NAMES)
def test_each_side_runs(shared_data, capsys, side):
  if side != 'ours' and not peers.installed(corpus.FOLDER, corpus.REQUIREMENTS):
    pytest.skip('datatrove is not installed: python -m tools.bench.corpus')
  flags = ['--megabytes=1', '--rounds=1', '--workers=2', f'--only={side}']
  assert corpus.main(flags) == 0
  printed = capsys.readouterr().out
  assert f'| {side} (' in printed
  assert f'| step of {side} | wall s |' in printed
