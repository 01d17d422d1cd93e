"""Heads are evaluated on questions without answers and on new labels."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm import config
from lm.data.tokenizers import utf8_bytes
from lm.evals import classification, context

CASES = Path(os.environ.get('LM_DATA', '../shared/data')).parent / 'cases'
BYTES = utf8_bytes.make()
needs_cases = pytest.mark.skipif(
  not CASES.is_dir(), reason='needs shared/cases'
)


def evaluated(kind, reader, path, form, monkeypatch, guess, **settings):
  """Evaluates guesses in the place of a model's logits."""
  monkeypatch.setattr(
    classification,
    'scorer',
    lambda *_: lambda params, rows: ((row, guess(row)) for row in rows),
  )
  nothing: Any = None
  spec = {
    'fn': f'lm.evals.classification:{kind}',
    'records': {'fn': f'lm.data.finetuning.{reader}', 'path': str(path)},
    'form': {'fn': f'lm.data.finetuning.{form.pop("fn")}', **form},
    'batch_size': 4,
    'length': 128,
    **settings,
  }
  made = context.Context(nothing, BYTES, nothing)
  return config.build(spec, context=made)(nothing)


def first_word(score, none):
  """Gives logits that find the first word, and a score for no answer."""

  def guess(row):
    logits = np.full((2, 128), -99.0)
    places = np.flatnonzero(np.array(row.places) == 0)
    logits[0, places[0]] = logits[1, places[-1]] = score
    logits[:, 0] = none
    return logits

  return guess


@needs_cases
@pytest.mark.parametrize('file', ['squad_v2', 'squad_all_impossible'])
@pytest.mark.parametrize('refuses', [True, False])
def test_no_answer_is_an_answer(file, refuses, monkeypatch):
  found = evaluated(
    'spans',
    'readers:squad',
    CASES / f'{file}.json',
    {'fn': 'forms:span'},
    monkeypatch,
    first_word(1.0, 2.0 if refuses else 0.5),
  )
  answer = '' if refuses else 'Rome'
  assert {item['answer'] for item in found.items} == {answer}
  kinds = [item['category'] for item in found.items]
  assert kinds == ['answerable', 'unanswerable'][-len(kinds) :]
  assert found.metrics['exact/unanswerable'] == float(refuses)
  if file == 'squad_v2':
    assert found.metrics['exact/answerable'] == float(not refuses)
    assert found.metrics['exact'] == found.metrics['f1'] == 0.5


@needs_cases
def test_a_question_with_an_answer_is_never_refused(monkeypatch):
  found = evaluated(
    'spans',
    'readers:squad',
    CASES / 'squad_bom.json',
    {'fn': 'forms:span'},
    monkeypatch,
    first_word(1.0, 50.0),
  )
  assert found.metrics == {'exact': 1.0, 'f1': 1.0}
  assert 'category' not in found.items[0]


@needs_cases
@pytest.mark.parametrize(('name', 'language'), [('ja', 'zh'), ('hi', 'en')])
def test_answers_in_scripts_without_spaces_are_found(
  name, language, monkeypatch
):
  def guess(row):
    logits = np.full((2, 128), -9.0)
    logits[np.arange(2), row.targets] = 9.0
    return logits

  found = evaluated(
    'spans',
    'readers:squad',
    CASES / f'squad_{name}.json',
    {'fn': 'forms:span'},
    monkeypatch,
    guess,
    language=language,
  )
  assert found.metrics['exact'] == 1.0


def test_marks_tell_answers_apart():
  assert not classification.exact_match('ดี', 'ดู', 'zh')
  assert classification.exact_match('ดี!', 'ดี', 'zh')


@needs_cases
def test_a_tag_that_training_lacks_is_a_miss(monkeypatch):
  def guess(row):
    logits = np.zeros((len(row.places), 3))
    logits[np.array([*row.places]) == 0, 1] = 9.0  # Anna is B-PER
    logits[np.array([*row.places]) > 0, 2] = 9.0  # the others are O
    return logits

  train = {
    'fn': 'lm.data.finetuning.readers:conll',
    'path': str(CASES / 'ner_train.conll'),
  }
  assert config.build(train).labels == ('B-LOC', 'B-PER', 'O')
  found = evaluated(
    'tags',
    'readers:conll',
    CASES / 'ner_test.conll',
    {'fn': 'forms:tag', 'classes': 3, 'labels': train},
    monkeypatch,
    guess,
  )
  # "Anna Lee" was found in part, which is no entity found.
  assert found.metrics['f1'] == 0.0
  assert found.metrics['accuracy'] == pytest.approx(2 / 3)
  assert found.card is not None
  assert found.card['counts'] == '1 records with a label that the model lacks'


def test_a_class_that_training_lacks_is_a_miss(tmp_path, monkeypatch):
  rows = [{'text': x, 'label': x} for x in ('a', 'b', 'c')]
  path = tmp_path / 'x.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  found = evaluated(
    'classes',
    'readers:texts',
    path,
    {'fn': 'forms:classify', 'classes': 2, 'labels': ['a', 'b']},
    monkeypatch,
    lambda row: np.log([[0.75, 0.25]]),
  )
  assert [item['loss_nats'] for item in found.items] == [
    pytest.approx(-np.log(0.75)),
    pytest.approx(-np.log(0.25)),
    None,
  ]
  assert found.metrics['accuracy'] == pytest.approx(1 / 3)
  assert found.metrics['loss_nats'] == pytest.approx(-np.log(0.75 * 0.25) / 2)


def test_records_to_evaluate_have_ids_of_their_own(tmp_path, monkeypatch):
  row = {'sentence1': 'a', 'sentence2': 'b', 'label': 'x', 'id': 5}
  path = tmp_path / 'x.jsonl'
  path.write_text('\n'.join([json.dumps(row)] * 2))
  with pytest.raises(ValueError) as caught:
    evaluated(
      'classes',
      'readers:ocnli',
      path,
      {'fn': 'forms:classify', 'classes': 1, 'labels': ['x']},
      monkeypatch,
      lambda row: np.zeros((1, 1)),
    )
  assert 'task ocnli: the id ocnli/5 is there twice' in str(caught.value)
