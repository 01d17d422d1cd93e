"""The lines of a run say how its time was spent, also over restarts."""

import itertools
import time

import pytest

from lm import checkpoint, train
from lm.planning import flops, hardware
from lm.reporting import metrics_log
from lm.training import run_meter
from tests import programs
from tools import compare_runs


def lines(workdir):
  found = metrics_log.read(workdir / 'metrics.jsonl')
  return [x for x in found if 'goodput' in x]


def spent(line):
  return {kind: line[f'{kind}_seconds'] for kind in run_meter.KINDS}


def test_lost_seconds_are_told_apart(data, tmp_path, one_device):
  c = programs.make(
    data,
    steps=12,
    eval_every=6,
    evals__pause__seconds=0.5,
    data__seconds=0.05,
    threads=0,
  )
  train.train(c, tmp_path / 'run')
  found = lines(tmp_path / 'run')
  last = found[-1]
  assert spent(found[0])['evaluating'] == spent(found[0])['saving'] == 0
  assert spent(found[0])['starting'] > 0
  # Once before the last line: step 12 is evaluated after its line.
  assert spent(last)['evaluating'] >= 0.5
  assert spent(last)['saving'] > 0
  # Of eleven batches that are read after the start; a few may have come while
  # an update was still computed.
  assert spent(last)['waiting'] >= 0.3
  assert spent(last)['starting'] == spent(found[0])['starting']
  useful = last['goodput'] * last['seconds']
  assert 0 < useful + sum(spent(last).values()) <= last['seconds'] + 0.01
  for one, other in itertools.pairwise(found):
    assert one['time'] < other['time'] and one['seconds'] < other['seconds']


def test_seconds_count_on_over_restarts(data, tmp_path, one_device):
  c = programs.make(data, steps=12)
  train.train(c, tmp_path / 'run')
  again = programs.rewind(tmp_path / 'run', tmp_path / 'again', 6)
  before = lines(again)
  began = before[0]['time'] - before[0]['seconds']
  time.sleep(1.1)
  train.train(c, again)
  after = lines(again)
  assert [x['step'] for x in after] == [*range(1, 13)]
  assert after[6]['time'] - after[6]['seconds'] == pytest.approx(began, abs=1)
  assert spent(after[6])['starting'] > spent(after[5])['starting']
  # The steps after the sixth were undone, and count for nothing.
  kept = after[5]['goodput'] * after[5]['seconds']
  useful = after[6]['goodput'] * after[6]['seconds']
  assert kept < useful
  undone = before[-1]['goodput'] * before[-1]['seconds'] - kept
  whole = useful + sum(spent(after[6]).values()) + undone
  assert whole + 1 < after[6]['seconds']


def test_a_restart_counts_on_from_the_checkpoint(data, tmp_path, one_device):
  """Its seconds are in no line: none was written before it."""
  changes = {'steps': 12, 'log_every': 12, 'data__seconds': 0.2, 'threads': 0}
  train.train(programs.make(data, **changes), tmp_path / 'run')
  again = programs.rewind(tmp_path / 'run', tmp_path / 'again', 6)
  train.train(programs.make(data, **changes), again)
  kept, end = (checkpoint.read_meta(again, n)['seconds'] for n in (6, 12))
  # Of six batches each, the first of which is read before the start is over.
  assert kept['waiting'] > 0.3 and end['waiting'] > kept['waiting'] + 0.3
  assert all(end[kind] >= kept[kind] for kind in kept)


def test_what_a_rollback_has_undone_is_not_useful(
  data, tmp_path, one_device, monkeypatch
):
  # The updates after step 12 are left out, up to step 18.
  monkeypatch.setenv('FAULT', 'nan_grad@14-18,slow_host@0.1')
  train.train(programs.make(data, steps=24, max_skipped=3), tmp_path / 'run')
  useful = {
    x['step']: x['goodput'] * x['seconds'] for x in lines(tmp_path / 'run')
  }
  assert useful[17] - useful[12] > 0.5
  saved = [
    checkpoint.read_meta(tmp_path / 'run', n)['seconds'] for n in (12, 18)
  ]
  assert 0 <= saved[1]['useful'] - saved[0]['useful'] < 0.5


def test_arithmetic_and_memory(data, tmp_path, one_device, monkeypatch):
  chip = hardware.CHIPS[0]._replace(name='cpu', kind='cpu', flops=1e12)
  monkeypatch.setattr(hardware, 'CHIPS', (chip,))
  train.train(programs.make(data, steps=4, optim__warmup=1), tmp_path / 'run')
  for line in lines(tmp_path / 'run'):
    per_token = line['flops'] / line['tokens']
    # Of 7,712 parameters, of which positions are not multiplied.
    assert 6 * 7_000 < per_token < 8 * 7_712
    assert line['flops_per_second'] == pytest.approx(
      per_token * line['tokens_per_second']
    )
    assert line['mfu'] == pytest.approx(
      flops.mfu(line['tokens_per_second'], per_token, 1e12)
    )
    assert 50e6 < line['host_memory_bytes'] < 500e9


def test_a_chip_without_a_data_sheet_has_no_mfu(data, tmp_path, one_device):
  train.train(programs.make(data, steps=4, optim__warmup=1), tmp_path / 'run')
  for line in lines(tmp_path / 'run'):
    assert 'mfu' not in line and 'flops_per_second' in line
    assert not any(name.startswith('device_') for name in line)


def test_each_group_has_its_learning_rate(data, tmp_path, one_device):
  c = programs.make(data, steps=6)
  with c.unlocked():
    c.optim = {
      'fn': 'lm.optim.optimizers:make',
      'rule': {'fn': 'lm.optim.rules:muon', 'adam_peak': 0.004},
      'peak': 0.01,
      'warmup': 2,
    }
  train.train(c, tmp_path / 'run')
  for line in lines(tmp_path / 'run'):
    assert line['learning_rate_adam'] == pytest.approx(
      0.4 * line['learning_rate']
    )


def test_runs_that_differ_in_time_alone_are_the_same(
  data, tmp_path, one_device
):
  for name in ('a', 'b'):
    c = programs.make(data, steps=6, log__norms_every=3)
    train.train(c, tmp_path / name)
  a, b = (lines(tmp_path / name)[-1] for name in ('a', 'b'))
  assert a['time'] != b['time']
  steps, difference = compare_runs.metrics(tmp_path / 'a', tmp_path / 'b')
  assert steps == 6 and difference is None
