"""Counted baselines judge as a run does, and pair with it."""

import pytest

from configs import base
from lm import config, log
from lm.evals import items
from tests import tasks_test
from tools import baselines


def planted(tmp_path, **changes):
  def read(name, count, seed):
    path = tasks_test.write_texts(tmp_path / name, count, seed)
    return {'fn': 'lm.data.records:texts', 'path': path}

  form = {'fn': 'lm.data.tasks:classify', 'classes': 2}
  c = base.get_config().unlock()
  c.data = {
    'fn': 'lm.data.tasks:make',
    'records': read('train', 120, 0),
    'form': form,
    'length': 64,
    'folds': 1,
    'held_out': None,
  }
  c.evals = {
    'test': {
      'fn': 'lm.evals.labels:classes',
      'records': read('test', 40, 1),
      'form': form,
      'batch_size': 8,
      'length': 64,
      **changes,
    }
  }
  return c.lock()


def test_baselines_find_words_that_decide(tmp_path):
  found = baselines.judge(planted(tmp_path), tmp_path / 'classic')
  accuracy = {row['baseline']: row['test/accuracy'] for row in found}
  # Words of one letter are words to both.
  assert accuracy['majority'] == 0.5
  assert accuracy['naive_bayes'] == 1.0 and accuracy['logistic'] > 0.9
  lines = [
    log.read(tmp_path / 'classic' / name / 'evals.jsonl')[0]
    for name in accuracy
  ]
  assert len({line['checkpoint'] for line in lines}) == 3
  assert len({line['task'] for line in lines}) == 1
  for row, line in zip(found, lines, strict=True):
    assert line['metrics']['test/macro_f1'] == row['test/macro_f1']
    folder = tmp_path / 'classic' / row['baseline']
    header, outcomes = items.read(items.find(folder)['test'])
    assert header['task'] == line['task'] and len(outcomes) == 40
    mean = sum(item['accuracy'] for item in outcomes) / 40
    assert mean == row['test/accuracy']


def test_a_fold_is_held_out_of_training(tmp_path):
  c = planted(tmp_path, folds=4, fold=1).unlock()
  c.data.folds, c.data.held_out = 4, 1
  train = baselines._part(c.data, 1, held=True)
  test = baselines._part(c.evals.test, 1, held=False)
  assert (len(train.records), len(test.records)) == (90, 10)
  assert not {r.id for r in train.records} & {
    f'texts/{n}' for n in range(1, 120, 4)
  }


def test_a_config_without_records_is_refused(tmp_path):
  with pytest.raises(config.ConfigError) as caught:
    baselines.judge(base.get_config(), tmp_path)
  assert str(caught.value).startswith('data.records, evals: baselines need')
