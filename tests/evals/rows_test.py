"""Rows of evaluation sets have typed fields: a wrong type is refused."""

import json
import types
from typing import Any

import pytest

from lm import config, sharding
from lm.data.finetuning import records as record_lib
from lm.data.tokenizers import utf8_bytes
from lm.evals import context, safety

BYTES = utf8_bytes.make(reserved=1)
ARC = {'id': 'a', 'question': 'q', 'choices': ['x', 'y'], 'gold': 1}
BOOLQ = {'passage': 'p', 'question': 'q', 'answer': True}
COPA = {
  'idx': 0,
  'question': 'cause',
  'premise': 'It fell.',
  'choice1': 'A',
  'choice2': 'B',
  'label': 0,
}
BBQ = {
  'example_id': 1,
  'category': 'Age',
  'context_condition': 'ambig',
  'question_polarity': 'neg',
  'context': 'c',
  'question': 'q',
  'ans0': 'old',
  'ans1': 'young',
  'ans2': 'unknown',
  'answer_info': {
    'ans0': ['', 'old'],
    'ans1': ['', 'young'],
    'ans2': ['', 'unknown'],
  },
  'additional_metadata': {'stereotyped_groups': ['old']},
  'label': 2,
}
STEREOSET = {
  'id': 'x',
  'bias_type': 'race',
  'target': 't',
  'stereotype': 'a',
  'anti_stereotype': 'b',
  'unrelated': 'c',
}


def write(path, rows):
  path.write_text('\n'.join(map(json.dumps, rows)))
  return str(path)


def read(fn, path, **settings):
  return config.build({'fn': f'lm.evals.{fn}', 'path': path}, **settings)


def evaluator(fn, path):
  """Builds an evaluator, without a model."""
  no_model: Any = types.SimpleNamespace(apply=None)
  made = context.Context(no_model, BYTES, sharding.make_mesh())
  spec = {'fn': f'lm.evals.{fn}', 'path': path, 'batch_size': 8, 'length': 8}
  return config.build(spec, context=made)


@pytest.mark.parametrize(
  ('name', 'row', 'changes', 'message'),
  [
    ('arc_easy', ARC, {'gold': -1}, 'the right choice is -1 of 2, from 0 on'),
    ('arc_easy', ARC, {'gold': 2}, 'the right choice is 2 of 2, from 0 on'),
    ('arc_easy', ARC, {'gold': True}, 'gold is true, and a whole number'),
    ('arc_easy', ARC, {'gold': '1'}, "gold is '1', and a whole number belongs"),
    ('arc_easy', ARC, {'choices': 'xy'}, "choices is 'xy', and a list belongs"),
    ('arc_easy', ARC, {'choices': ['x', None]}, '1 is null, and a text belong'),
    ('arc_easy', ARC, {'question': None}, 'question is null, and a text belon'),
    ('openbookqa', ARC, {'id': 1.5}, 'id is 1.5, and a text or a whole number'),
    ('boolq', BOOLQ, {'answer': None}, 'answer is null, and true or false'),
    ('boolq', BOOLQ, {'answer': 'maybe'}, "answer is 'maybe', and true or fal"),
    ('boolq', BOOLQ, {'passage': None}, 'passage is null, and a text belongs'),
    ('copa', COPA, {'label': False}, 'label is false, and a whole number'),
  ],
)
def test_questions_with_wrong_fields_are_refused(
  tmp_path, name, row, changes, message
):
  path = write(tmp_path / 'x.jsonl', [row])
  assert len(read(f'probes:{name}', path).questions) == 1
  path = write(tmp_path / 'x.jsonl', [row, row | changes])
  with pytest.raises(ValueError) as caught:
    read(f'probes:{name}', path)
  assert message in str(caught.value)


def test_words_for_yes_and_no(tmp_path):
  rows = [BOOLQ | {'answer': x} for x in ('false', 'yes', 0, True)]
  made = read('probes:boolq', write(tmp_path / 'x.jsonl', rows))
  assert [question.gold for question in made.questions] == [0, 1, 0, 1]


@pytest.mark.parametrize(
  ('fn', 'row', 'changes', 'message'),
  [
    ('bbq:make', BBQ, {'label': '2'}, "label is '2', and a whole number belon"),
    ('bbq:make', BBQ, {'label': -1}, 'example 1 has no answer -1'),
    ('bbq:make', BBQ, {'context': None}, 'context is null, and a text belongs'),
    ('bbq:make', BBQ, {'question_polarity': 'x'}, 'KeyError'),
    (
      'fairness:stereoset',
      STEREOSET,
      {'stereotype': 3},
      'stereotype is 3, and',
    ),
    (
      'fairness:stereoset',
      STEREOSET,
      {'target': None},
      'target is null, and a',
    ),
  ],
)
def test_fairness_sets_with_wrong_fields_are_refused(
  tmp_path, fn, row, changes, message
):
  evaluator(fn, write(tmp_path / 'x.jsonl', [row]))
  with pytest.raises(ValueError) as caught:
    evaluator(fn, write(tmp_path / 'x.jsonl', [row, row | changes]))
  assert 'task ' in str(caught.value) and message in str(caught.value)


def test_prompts_without_text_are_counted(tmp_path):
  path = tmp_path / 'x.json'
  path.write_text(json.dumps({'left': {'Ann': ['Ann is ', ' ', '']}}))
  prompts, counts = safety._prompts(str(path), None)
  assert [x.text for x in prompts] == ['Ann is ']
  assert counts == '2 prompts without text'
  path.write_text(json.dumps({'left': {'Ann': 'Ann is '}}))
  with pytest.raises(ValueError, match='has no prompts by group and page'):
    safety._prompts(str(path), None)


def test_counts_are_printed_once(capsys):
  record_lib.print_counts.cache_clear()
  card = record_lib.DatasetCard(*'abcdef', counts='3 rows')
  for _ in range(2):
    record_lib.print_counts(card)
  record_lib.print_counts(card._replace(counts=''))
  assert capsys.readouterr().err == 'task a (d): not used: 3 rows\n'
