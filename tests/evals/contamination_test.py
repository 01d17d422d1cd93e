"""A score says how much of its evaluation set the run has seen."""

import json
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from lm import config, evaluate, sharding, train, types
from lm.corpus import contamination as stage_lib
from lm.corpus import evaluation_items, stages
from lm.data import writer
from lm.data.tokenizers import utf8_bytes
from lm.evals import contamination, context, fairness, items, probes, results
from lm.reporting import metrics_log
from lm.training import certificates
from tests import programs
from tests.corpus import memory_tables

SHARED = {  # those of configs/evaluate/english.py
  'arc_easy': 'evals/arc_easy/test.jsonl',
  'blimp': 'evals/blimp/blimp.jsonl.gz',
  'lambada_openai': 'evals/lambada_openai/lambada_test.jsonl.gz',
  'piqa': 'evals/piqa/valid.jsonl.gz',
  'sciq': 'evals/sciq/valid.jsonl.gz',
}


def write_quiz(folder):
  """Writes forty questions that share no n-gram."""
  rows = [
    {
      'id': n,
      'question': ' '.join(f'{word}{n}' for word in 'abcdefghijkl'),
      'choices': ['yes', 'no'],
      'gold': n % 2,
    }
    for n in range(40)
  ]
  path = folder / 'quiz.jsonl'
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  return path, [row['question'] for row in rows]


def certify(path, texts, reader='arc_easy'):
  """Makes the certificate of a corpus of these texts."""
  stage = stage_lib.make(
    sets={'quiz': {'path': str(path), 'reader': reader}}, sample=2
  )
  rows = [stages.Document(text) for text in texts]
  assert stage.keys and stage.decide and stage.report
  keys = stage.keys(stages.batch(pa.array([''] * len(rows)), rows))
  tables = memory_tables.Tables()
  ids = keys.column('row').cast(pa.int64())
  found = {'gram': keys.column('gram'), 'id': ids}
  stage.decide(tables, tables.add('keys', pa.table(found)))
  return dict(stage.report(tables))


def spec(path):
  return {
    'quiz': {
      'fn': 'lm.evals.choice:choice',
      'task': {'fn': 'lm.evals.probes:arc_easy', 'path': str(path)},
      'batch_size': 8,
      'length': 16,
    }
  }


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of a few steps on data of which three questions are known."""
  folder = tmp_path_factory.mktemp('contaminated')
  programs.write_data(folder)
  path, questions = write_quiz(folder)
  certificate = certify(path, [*questions[3:6], 'something else'])
  (folder / 'contamination.json').write_text(json.dumps(certificate))
  c = programs.on_eight(folder, steps=4, save_every=4)
  train.train(c, folder / 'run')
  return folder, path


def test_a_line_has_the_score_on_the_items_that_were_not_found(run, capsys):
  folder, path = run
  workdir = folder / 'run'
  page = folder / 'page.html'
  assert certificates.read(workdir) == {
    'train': json.loads((folder / 'contamination.json').read_text())
  }
  config_file = folder / 'quiz_config.py'
  config_file.write_text(
    'from configs import base\n'
    'def get_config():\n'
    '  c = base.get_config()\n'
    f'  c.evals = {spec(path)!r}\n'
    '  return c\n'
  )
  evaluate.main(
    [f'--workdir={workdir}', f'--config={config_file}', f'--html={page}']
  )
  by_name = {
    line['evaluator']: line['contamination']
    for line in metrics_log.read(workdir / 'evals.jsonl')
  }
  found = by_name.pop('quiz')
  assert set(by_name.values()) == {'unknown'}
  assert (found['items'], found['flagged'], found['unchecked']) == (40, 3, 0)
  _, rows = items.read(items.find(workdir)['quiz'])
  ids = {f'arc_easy/{n}' for n in range(40)} - {
    f'arc_easy/{n}' for n in (3, 4, 5)
  }
  right = [row['accuracy'] for row in rows if row['id'] in ids]
  assert len(right) == 37
  value, low, high = found['clean']['accuracy']
  assert value == pytest.approx(np.mean(right))
  assert 0 <= low <= value <= high <= 1
  nats = [row['brier'] for row in rows if row['id'] in ids]
  assert found['clean']['brier'][0] == pytest.approx(np.mean(nats))
  assert 'calibration_error' not in found['clean']
  text = (
    f'quiz: contamination: 3 of 40 items; accuracy without them {value:.4g} '
    f'({low:.4g} to {high:.4g})'
  )
  printed = capsys.readouterr().out.splitlines()
  assert text in printed
  assert 'contamination: unknown: pause, valid' in printed
  assert text in page.read_text()


def test_it_is_unknown_without_a_certificate_of_every_source(tmp_path):
  path, questions = write_quiz(tmp_path)
  certificate = certify(path, questions[:1])
  card = probes.arc_easy(path=str(path)).card._asdict()
  rows = [{'id': f'arc_easy/{n}', 'accuracy': n % 2} for n in range(40)]
  result = results.Result({'accuracy': 0.5}, rows, card)

  def state(sources, result: Any = result) -> Any:
    text = json.dumps({'sources': sources})
    (tmp_path / 'contamination.json').write_text(text)
    return contamination.state(tmp_path, result)

  assert contamination.state(tmp_path, result) == 'unknown'
  found = state({'a': certificate})
  assert found['flagged'] == 1
  assert found['clean']['accuracy'][0] == pytest.approx(20 / 39)
  assert state({'a': certificate, 'b': certificate}) == found
  assert state({'a': certificate, 'b': None}) == 'unknown'
  assert state({}) == 'unknown'
  other = {**card, 'sha256': '0' * 64}
  assert state({'a': certificate}, result._replace(card=other)) == 'unknown'
  assert state({'a': certificate}, result._replace(card=None)) == 'unknown'
  assert state({'a': certificate}, {'accuracy': 0.5}) == 'unknown'
  # Another reader calls the items by other names.
  renamed = certify(path, questions[:1], 'gsm8k')
  assert state({'a': renamed}) == 'unknown'
  few = result._replace(items=result.items[:3])  # of an evaluator with a limit
  assert state({'a': renamed}, few) == 'unknown'
  (tmp_path / 'contamination.json').write_text('{"sources": 3}')
  assert contamination.state(tmp_path, result) == 'unknown'


def test_a_line_of_others_that_is_malformed_counts_as_unknown():
  for found in ({'items': 3}, 7, None, ['x']):
    assert contamination.brief(found, 'accuracy') == 'unknown'


def test_data_without_a_certificate_leave_the_run_without(trained):
  assert not (trained / 'contamination.json').exists()


def test_a_damaged_certificate_is_an_error_before_training(tmp_path):
  programs.write_data(tmp_path)
  c = programs.on_eight(tmp_path, steps=4)
  path = tmp_path / 'train' / 'contamination.json'
  for text in ('{', '[]', '{"files": {"00": {"items": 1}}}'):
    path.write_text(text)
    with pytest.raises(config.ConfigError) as error:
      train.train(c, tmp_path / 'run')
    assert str(error.value) == (
      f'{path}: no certificate of contamination: build the data again, or '
      'delete it'
    )


def test_certificates_are_those_of_the_data_that_a_run_reads(run, tmp_path):
  folder, _ = run
  programs.write_data(tmp_path)  # without one
  workdir = tmp_path / 'run'
  shutil.copytree(folder / 'run', workdir)
  stored = (workdir / 'contamination.json').read_bytes()
  other = tmp_path / 'other'
  writer.write(other, ['other text'] * 99, utf8_bytes.make())
  (other / 'contamination.json').write_text('{"files": {}}')
  c = programs.on_eight(tmp_path, steps=4, save_every=4).unlock()
  c.data.sources.train.path = str(other)
  with pytest.raises(config.ConfigError, match='was trained on'):
    train.train(c.lock(), workdir)
  assert (workdir / 'contamination.json').read_bytes() == stored
  # Nothing was saved: the run begins again, on data of which nothing is known.
  shutil.rmtree(workdir / 'checkpoints')
  (workdir / 'metrics.jsonl').unlink()
  train.train(programs.on_eight(tmp_path, steps=4, save_every=4), workdir)
  assert certificates.read(workdir) == {'train': None}


def test_a_run_has_the_certificates_of_the_run_that_it_starts_from(run):
  folder, _ = run
  c = programs.on_eight(
    folder, steps=4, save_every=4, init_from=str(folder / 'run')
  )
  train.train(c, folder / 'tuned')
  own = certificates.read(folder / 'tuned')
  assert own is not None
  assert own == {'train': own['train'], 'init_from/train': own['train']}
  (folder / 'run' / 'contamination.json').rename(folder / 'away')
  try:
    train.train(c, folder / 'tuned')  # it goes on, and keeps what it has
    assert certificates.read(folder / 'tuned') == own
    train.train(c, folder / 'fresh')
    assert certificates.read(folder / 'fresh') == {
      'train': own['train'],
      'init_from/train': None,
    }
  finally:
    (folder / 'away').rename(folder / 'run' / 'contamination.json')


def test_shared_sets_have_the_ids_of_their_evaluators(shared_data):
  for name, place in SHARED.items():
    path = str(shared_data / place)
    (file,) = evaluation_items.read(name, {'path': path})
    task = getattr(probes, name)(path=path)
    assert [x.id for x in file.items] == [x.id for x in task.questions], name
    assert file.sha256 == task.card.sha256


def test_crows_pairs_have_the_ids_of_their_evaluator(shared_data):
  words = utf8_bytes.make()

  def apply(params, batch, *, cache=None, rng=None):
    del rng
    shape = (*batch.tokens.shape, words.size)
    return types.Output(jnp.zeros(shape) + params, cache, {})

  model = types.Model(lambda *a: None, apply, lambda *a: None, ())
  where = shared_data / 'fairness' / 'crows_pairs'
  path = str(where / 'crows_pairs_anonymized.csv')
  result = fairness.crows_pairs(
    context=context.Context(model, words, sharding.make_mesh()),
    path=path,
    batch_size=8,
    length=128,
    limit=8,
  )(jnp.zeros((1, 1, words.size)))
  (file,) = evaluation_items.read('crows_pairs', {'path': path})
  assert [x.id for x in file.items[:8]] == [x['id'] for x in result.items]
  assert result.card is not None and result.card['sha256'] == file.sha256
