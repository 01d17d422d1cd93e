"""Baselines are evaluated in the way of a run, and pair with it."""

import pytest

from configs import base
from lm import config
from lm.data.finetuning import records as record_lib
from lm.evals import fingerprint, items
from lm.reporting import metrics_log
from tests.data import tasks_test
from tools import baselines, compare

CARD = record_lib.DatasetCard(*'abcdef')


def planted(
  tmp_path,
  write=tasks_test.write_texts,
  reader='lm.data.finetuning.readers:texts',
  **changes,
):
  def read(name, count, seed):
    return {'fn': reader, 'path': write(tmp_path / name, count, seed)}

  form = {'fn': 'lm.data.finetuning.forms:classify', 'classes': 2}
  c = base.get_config().unlock()
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': read('train', 120, 0),
    'form': form,
    'length': 64,
  }
  c.evals = {
    'test': {
      'fn': 'lm.evals.classification:classes',
      'records': read('test', 40, 1),
      'form': form,
      'batch_size': 8,
      'length': 64,
      **changes,
    }
  }
  return c.lock()


def test_baselines_find_words_that_decide(tmp_path):
  c = planted(tmp_path)
  found = baselines.evaluate(c, tmp_path / 'classic')
  accuracy = {row['baseline']: row['test/accuracy'] for row in found}
  # Words of one letter are words to both.
  assert accuracy['majority'] == 0.5
  assert accuracy['naive_bayes'] == 1.0 and accuracy['logistic'] > 0.9
  assert accuracy['ngrams'] > 0.9
  lines = [
    metrics_log.read(tmp_path / 'classic' / name / 'evals.jsonl')[0]
    for name in accuracy
  ]
  assert len({line['checkpoint'] for line in lines}) == 4
  # A run stores its config with defaults: its task has that hash.
  stored = config.plain(
    config.fill(c, given={'data': ('position', 'steps')}).evals
  )
  assert {line['task'] for line in lines} == {fingerprint.task(stored['test'])}
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
  train = baselines._part(c.data, 1, (record_lib.Text,), held=True)
  test = baselines._part(c.evals.test, 1, (record_lib.Text,), held=False)
  assert (len(train.records), len(test.records)) == (90, 10)
  assert not {r.id for r in train.records} & {
    f'texts/{n}' for n in range(1, 120, 4)
  }


def tagged(*lines):
  """Words, of which those with a type behind a slash are entities."""
  made = []
  for n, line in enumerate(lines):
    words, tags = zip(
      *((x.partition('/')[::2]) for x in line.split()), strict=True
    )
    made.append(
      record_lib.Sentence(str(n), words, tuple(x or 'O' for x in tags))
    )
  return record_lib.Records(CARD, made)


def metrics(found, test, spec):
  return {
    name: baseline(test, spec).metrics for name, baseline in found.items()
  }


def test_a_dictionary_knows_words_and_their_lower_case():
  train = tagged('us the us US/B-ORG', 'a Fox/B-ANI', 'fox fox hen/B-ANI')
  test = tagged('US/B-ORG Us us', 'Fox/B-ANI fOX Hen/B-ANI new')
  found = metrics(baselines.tags(train), test, {})
  assert found['dictionary']['accuracy'] == found['dictionary']['f1'] == 1.0
  assert found['majority']['accuracy'] == pytest.approx(4 / 7)
  assert found['majority']['f1'] == 0.0


@pytest.mark.parametrize(
  ('lines', 'test'),
  [
    (('in old {}/B-A', 'on old {}'), ('in old new/B-A', 'on old new')),
    (('{}/B-A new red', '{} new, red'), ('x/B-A new red', 'x new, red')),
    (('{0} {0}ova/B-A', '{0} {0}'), ('x Anova/B-A', 'x x')),
    (('ka{0}/B-A', 'ki{0}'), ('kaxy/B-A', 'kixy')),
    (('X{}/B-A', 'x{}'), ('T-mmmmm/B-A', 't-mmmmm')),
    (('{0}{0}X{0}{0}/B-A', '{0}{0}{0}{0}'), ('mmmmmYmmmm/B-A', 'mmmmmmmmmm')),
    (('{0} {0}/B-A', '{0}'), ('x x/B-A', 'x')),
  ],
)
def test_a_regression_sees_what_no_dictionary_does(lines, test):
  names = [a + b for a in 'abcde' for b in 'fghij']
  train = tagged(*(line.format(x) for x in names for line in lines))
  found = metrics(baselines.tags(train), tagged(*test), {})
  assert found['logistic']['accuracy'] == found['logistic']['f1'] == 1.0
  assert found['dictionary']['recall'] == 0.0


def test_baselines_of_tags_pair_with_each_other(tmp_path, capsys):
  c = planted(
    tmp_path,
    tasks_test.write_tags,
    'lm.data.finetuning.readers:conll',
    fn='lm.evals.classification:tags',
  )
  found = baselines.evaluate(c, tmp_path / 'x')
  f1 = {row['baseline']: row['test/f1'] for row in found}
  assert f1 == {'majority': 0.0, 'dictionary': 1.0, 'logistic': 1.0}
  report = compare.compare(
    [str(tmp_path / 'x' / 'majority')], [str(tmp_path / 'x' / 'dictionary')]
  )
  assert {row['metric']: row['decision'] for row in report['rows']} == {
    'exact': 'B is better',
    'accuracy': 'B is better',
  }
  # What is fitted to other records is another thing.
  c = c.unlock()
  c.data.folds, c.data.held_out = 4, 0
  (tmp_path / 'c.json').write_text(config.to_json(c))
  baselines.main(
    [
      f'--config={tmp_path / "c.json"}',
      f'--workdir={tmp_path / "y"}',
      '--config.data.held_out=1',
    ]
  )
  assert '\ndictionary ' in capsys.readouterr().out
  whole, part = (
    metrics_log.read(tmp_path / x / 'dictionary' / 'evals.jsonl')[0]
    for x in 'xy'
  )
  assert whole['task'] == part['task']
  assert whole['checkpoint'] != part['checkpoint']


FARMS = 'The fox is in Paris. The hen of Ann is in Old Rome. The cow is in Kew.'


@pytest.mark.parametrize(
  ('language', 'question', 'passage', 'answer'),
  [
    ('en', 'Where is the fox?', FARMS, 'Paris'),
    ('en', 'Where is the hen?', FARMS, 'Ann'),
    # Of two in one sentence the one that is nearer.
    (
      'en',
      'Who ran to Rome?',
      'Ann saw the river, and Bob ran to Rome.',
      'Bob',
    ),
    # Pairs of words count, and rare words count for more.
    ('en', 'What is red wine?', 'Wine is Ann and red. Red wine is Bob.', 'Bob'),
    (
      'en',
      'It is Kew?',
      'Is it is it is it is it. Is it is Ann, and then a Kew is Bob.',
      'Bob',
    ),
    ('zh', '王五住在哪里？', '张三住在上海。王五住在北京。', '北京'),
    ('en', 'The?', 'The.', ''),
  ],
)
def test_a_window_slides_to_the_words_of_the_question(
  language, question, passage, answer
):
  reading = record_lib.Reading('x', question, passage, ((0, answer),))
  test = record_lib.Records(CARD, [reading])
  (baseline,) = baselines.spans(test).values()
  result = baseline(test, {'language': language})
  assert result.items[0]['answer'] == answer
  assert result.metrics == {'exact': 1.0, 'f1': 1.0}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'language': 'de'}, "language='de' is neither 'en' nor 'zh'"),
    (
      {'fn': 'lm.evals.classification:tags'},
      'task squad: Reading where baselines need a Sentence: change records or'
      ' folds',
    ),
    (
      {'folds': 99, 'fold': 98},
      'task squad: no record where baselines need a Reading: change records or'
      ' folds',
    ),
  ],
)
def test_wrong_records_are_refused(tmp_path, changes, message):
  changes = {'fn': 'lm.evals.classification:spans', **changes}
  write = tasks_test.write_readings
  c = planted(tmp_path, write, 'lm.data.finetuning.readers:squad', **changes)
  with pytest.raises(config.ConfigError) as caught:
    baselines.evaluate(c, tmp_path)
  assert str(caught.value) == message


def test_a_config_without_records_is_refused(tmp_path):
  of_two = planted(tmp_path).unlock()
  of_two.evals.other = {
    **of_two.evals.test,
    'fn': 'lm.evals.classification:tags',
  }
  for c in (base.get_config(), of_two):
    with pytest.raises(config.ConfigError) as caught:
      baselines.evaluate(c, tmp_path)
    assert str(caught.value) == (
      'data.records, evals: baselines need labelled records, and evaluators '
      'of one fn of lm.evals.classification or lm.evals.retrieval'
    )
