"""Batches score what they should, and count what they leave out."""

import json
import os
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from configs import base
from lm import config
from lm.data.finetuning import passages, tasks
from lm.data.finetuning import records as record_lib
from lm.data.tokenizers import utf8_bytes
from lm.training import setup

BYTES = utf8_bytes.make()
CASES = Path(os.environ.get('LM_DATA', '../shared/data')).parent / 'cases'
needs_cases = pytest.mark.skipif(
  not CASES.is_dir(), reason='needs shared/cases'
)


@pytest.fixture(autouse=True)
def _says_each_line_again():
  record_lib.print_counts.cache_clear()


def records(reader, path, **settings):
  spec = {'fn': f'lm.data.finetuning.{reader}', 'path': str(path)}
  return spec | settings


def form(name, **settings):
  return {'fn': f'lm.data.finetuning.{name}', **settings}


def data(reader, made, *, length=64, batch_size=2, **settings):
  """Opens records for training, as a run does."""
  spec = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': reader,
    'form': made,
    'length': length,
    **settings,
  }
  return config.build(spec, tokenizer=BYTES, seed=0, batch_size=batch_size)


def put(path, rows):
  path.write_text('\n'.join(map(json.dumps, rows)))
  return path


@needs_cases
@pytest.mark.parametrize(
  ('name', 'letters'), [('ja', 'とうきょう'), ('hi', 'दिल्ली')]
)
def test_an_answer_in_a_script_without_spaces_can_be_a_target(name, letters):
  reader = records('readers:squad', CASES / f'squad_{name}.json')
  batch = data(reader, form('forms:span'), length=128, batch_size=1).batch(0)
  ((first, last),) = batch.targets
  # A leading space is a part of the answer's first token.
  found = BYTES.decode(batch.tokens[0, first : last + 1].tolist())
  assert found.strip() == letters and batch.weights.all()


def test_pieces_of_passages():
  for passage, pieces in (
    ('A red-hot pie.', 'A|red|-|hot|pie|.'),
    ('在东京 Tokyo', '在|东|京|Tokyo'),
    ('東京タワーへ', '東|京|タ|ワ|ー|へ'),
    ('สวัสดี', 'ส|วั|ส|ดี'),
    ('राम दिल्ली में।', 'राम|दिल्ली|में|।'),
    ('서울에 간다', '서울에|간다'),
    ('می\u200cشود', 'می\u200cشود'),
    ('a\u200cb', 'a|\u200c|b'),
    ('cafe\u0301s', 'cafe\u0301s'),
    ('カ\u3099き', 'カ\u3099|き'),
  ):
    found = [passage[a:b] for a, b in passages.pieces(passage)]
    assert '|'.join(found) == pieces


@hypothesis.given(st.text('aé\u0301字かั้ดีद्ि \u200c।.', max_size=20))
def test_pieces_cover_a_passage(passage):
  """A failure means that an answer can contain what no piece has."""
  found = passages.pieces(passage)
  covered = [n for first, stop in found for n in range(first, stop)]
  expected = [n for n, x in enumerate(passage) if not x.isspace()]
  assert covered == expected
  assert all(first < stop for first, stop in found)


@needs_cases
def test_questions_without_an_answer_are_trained_on():
  for name, expected in (
    ('squad_all_impossible', {(0, 0)}),
    ('squad_v2', {(0, 0), (12, 15)}),
  ):
    reader = records('readers:squad', CASES / f'{name}.json')
    batch = data(reader, form('forms:span'), length=128, batch_size=2).batch(0)
    assert {tuple(row) for row in batch.targets.tolist()} == expected
    assert batch.weights.all()


def test_an_answer_that_no_row_contains_is_not_called_unanswerable(
  tmp_path, capsys
):
  passage = 'a ' * 60
  rows = [
    {
      'id': str(n),
      'context': passage,
      'question': 'q',
      'answers': {'text': [passage[: 2 * n - 1]], 'answer_start': [0]},
    }
    for n in (1, 50)
  ]
  reader = records('readers:flat_squad', put(tmp_path / 'x.jsonl', rows))
  spec = form('forms:span', question=8)
  made, _, found = tasks.read(reader, spec, BYTES, 32)
  assert [r.lost for r in found] == [r.record == 1 for r in found]
  # Position 0 then means that the answer is in another row.
  assert all(r.weights == [1.0, 1.0] for r in found)
  line = 'task squad (x): not used: 1 records that nothing is learnt from\n'
  assert capsys.readouterr().err == line
  assert made.card.counts == '1 records that nothing is learnt from'
  # Where questions may have no answer, it means that this one has none.
  none = {'text': [], 'answer_start': []}
  refusal = {'id': 'n', 'context': 'a', 'question': 'q', 'answers': none}
  path = put(tmp_path / 'y.jsonl', [*rows, refusal])
  made, _, found = tasks.read(
    records('readers:flat_squad', path), spec, BYTES, 32
  )
  assert [any(r.weights) for r in found] == [r.record != 1 for r in found]
  assert made.card.counts == '1 records that nothing is learnt from'
  reader = records('readers:flat_squad', put(tmp_path / 'x.jsonl', rows[1:]))
  with pytest.raises(ValueError, match='nothing is learnt from its 1 records'):
    data(reader, spec, length=32)


@needs_cases
def test_room_for_the_whole_row_leaves_answers_their_tokens():
  reader = records('pair_readers:alpaca', CASES / 'alpaca_small.jsonl')
  for room in (31, 30, 1):
    made = data(
      reader, form('pair_forms:reply', room=room), length=32, batch_size=8
    )
    batch = made.batch(0)
    assert (batch.weights.sum(1) >= 1).all()
    scored = [
      BYTES.decode(row[weights > 0].tolist())
      for row, weights in zip(batch.targets, batch.weights, strict=True)
    ]
    assert sorted(scored) == [str(n) for n in range(8)]
    if room > 1:
      assert (batch.weights.sum(1) == 2).all()  # the digit and eos


def test_a_source_may_have_no_room_at_all(tmp_path):
  row = {'prompt': 'a question', 'chosen': 'b', 'rejected': 'c'}
  path = put(tmp_path / 'x.jsonl', [row])
  reader = records('chat_readers:comparisons', path)
  batch = data(reader, form('pair_forms:prefer'), length=5, batch_size=1)
  (tokens,), (types,) = batch.batch(0).tokens, batch.batch(0).token_types
  # Each half is bos and an answer, of which one token has room.
  assert tokens.tolist()[:4] == [
    BYTES.bos,
    *BYTES.encode('b'),
    BYTES.bos,
    *BYTES.encode('c'),
  ]
  assert types.tolist()[:4] == [0, 1, 0, 1]


def test_answers_that_do_not_differ_are_counted(tmp_path):
  same = 'an answer that begins in the same way'
  row = {'prompt': 'a', 'chosen': f'{same}: b', 'rejected': f'{same}: c'}
  other = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}
  reader = records(
    'chat_readers:comparisons', put(tmp_path / 'x.jsonl', [row, other])
  )
  spec = form('pair_forms:prefer')
  made, _, rows = tasks.read(reader, spec, BYTES, 32)
  assert [row.lost for row in rows] == [True, False]
  assert '1 records that nothing is learnt from' in made.card.counts
  assert 'nothing' not in tasks.read(reader, spec, BYTES, 128)[0].card.counts
  put(tmp_path / 'x.jsonl', [row])
  with pytest.raises(ValueError, match='nothing is learnt from its 1 records'):
    data(reader, spec, length=32)


def test_what_is_not_used_is_counted_printed_and_stored(tmp_path, capsys):
  rows = [
    {'sentence1': 'a', 'sentence2': 'b', 'label': x, 'id': n}
    for n, x in enumerate(['yes', '-', 'no', 'yes'])
  ]
  rows[0]['sentence1'] = 'a' * 70
  reader = records('readers:ocnli', put(tmp_path / 'x.jsonl', rows))
  spec = form('forms:classify', classes=2, labels=['no', 'yes'])
  made = data(reader, spec)
  counts = (
    '1 pairs on which the annotators do not agree, '
    '10 tokens cut off from 1 records'
  )
  assert made.state(3)['counts'] == counts
  assert capsys.readouterr().err == f'task ocnli (x): not used: {counts}\n'
  # A run goes on, though its checkpoint does not say what was left out.
  old = {k: v for k, v in made.state(3).items() if k != 'counts'}
  assert data(reader, spec, position=old).state(3) == made.state(3)
  # Counts of private records would tell something about them.
  short = records('readers:ocnli', put(tmp_path / 'y.jsonl', rows[1:]))
  assert 'counts' not in data(short, spec, expected=1).state(3)


def test_cut_tokens_are_counted_by_each_form(tmp_path):
  pair = {'prompt': 'p' * 40, 'chosen': 'c' * 40, 'rejected': 'r' * 3}
  talk = [
    {'role': role, 'content': letter * 40}
    for role, letter in (('user', 'u'), ('assistant', 'a'))
  ]
  path = put(tmp_path / 'x.jsonl', [pair | {'messages': talk}])
  words = {'source': 'prompt', 'target': 'chosen'}
  pairs = records('pair_readers:pairs', path, **words)
  for reader, made, cut in (
    # 32 tokens: bos and 31 of the 40 letters of an answer are left.
    (pairs, form('pair_forms:reply', room=31), 41 + 40 - 31),
    (pairs, form('pair_forms:translate', source=41), 40 - 31),
    (pairs, form('pair_forms:translate', source=40), 40 - 31 + 1),
    (
      records('chat_readers:messages', path),
      form('pair_forms:chat'),
      # Of 'User: U\nAssistant: A' and eos, 32 tokens.
      len('User: ') + 41 + len('Assistant: ') + 41 - 32,
    ),
    # In each half of 16 tokens: bos, 7 of 41 tokens, 8 of 41 and all of 4.
    (
      records('chat_readers:comparisons', path),
      form('pair_forms:prefer'),
      34 + 33,
    ),
    (
      records('readers:texts', path, fields=['chosen'], label='rejected'),
      form('forms:classify', classes=1, labels=['rrr']),
      40 - 30,
    ),
  ):
    found, _, _ = tasks.read(reader, made, BYTES, 32)
    assert found.card.counts == f'{cut} tokens cut off from 1 records', made


@needs_cases
def test_labels_of_training_and_of_evaluation():
  train, test = (
    records('readers:conll', CASES / f'ner_{x}.conll')
    for x in ('train', 'test')
  )
  spec = form('forms:tag', classes=3, labels=train)
  made, _, (row,) = tasks.read(test, spec, BYTES, 64)
  assert made.card.counts == '1 records with a label that the model lacks'
  # Anna, Lee and saw are guessed, and Lee's tag has no score.
  assert [place for place in row.places if place >= 0] == [0, 1, 2]
  assert sum(row.weights) == 2
  batch = data(train, spec, batch_size=1).batch(0)
  assert batch.weights.sum() == 3
  with pytest.raises(
    ValueError, match='label I-PER is not one of the 3 labels'
  ):
    data(test, spec)
  lines = CASES / 'cls_bom.jsonl'
  spec = form('forms:classify', classes=1, labels=['pos'])
  with pytest.raises(ValueError, match=r'label neg is not one of the 1 labels'):
    data(records('readers:texts', lines), spec)
  _, _, rows = tasks.read(records('readers:texts', lines), spec, BYTES, 64)
  assert [row.weights for row in rows] == [[1.0], [0.0]]


@pytest.mark.parametrize(
  ('reader', 'row'),
  [
    (
      'messages',
      {
        'messages': [
          {'role': 'user', 'content': 'q'},
          {'role': 'assistant', 'content': 'ab'},
        ]
      },
    ),
    (
      'sharegpt',
      {
        'conversations': [
          {'from': 'human', 'value': 'q'},
          {'from': 'gpt', 'value': 'ab'},
        ]
      },
    ),
  ],
)
def test_conversations_are_trained_on(tmp_path, reader, row):
  path = put(tmp_path / 'x.jsonl', [row])
  made = data(records(f'chat_readers:{reader}', path), form('pair_forms:chat'))
  batch = made.batch(0)
  scored = np.where(batch.weights[0] > 0, batch.targets[0], BYTES.pad)
  assert BYTES.decode(scored.tolist()) == 'ab'
  assert batch.weights[0].sum() == 3  # and eos


ROW = {
  'review': 'good',
  'stars': 5,
  'talk': [
    {'speaker': 'A', 'text': 'hi'},
    {'speaker': 'B', 'text': 'hello'},
  ],
  'better': 'yes',
  'worse': 'no',
  'id': 1,
  'context': 'good',
  'question': 'q',
  'answers': {'text': ['good'], 'answer_start': [0]},
}
COLUMNS = {'fields': ('review',), 'label': 'stars'}
# Readers of one's own files, with their settings, and the form of their kind.
OWN = {
  'texts': (
    {'fn': 'readers:texts', **COLUMNS},
    {'fn': 'forms:classify', 'classes': 1, 'labels': ('5',)},
  ),
  'pairs': (
    {'fn': 'pair_readers:pairs', 'source': 'review', 'target': 'better'},
    {'fn': 'pair_forms:reply'},
  ),
  'messages': (
    {
      'fn': 'chat_readers:messages',
      'messages': 'talk',
      'role': 'speaker',
      'content': 'text',
      'roles': {'A': 'user', 'B': 'assistant'},
    },
    {'fn': 'pair_forms:chat'},
  ),
  'comparisons': (
    {
      'fn': 'chat_readers:comparisons',
      'prompt': 'review',
      'chosen': 'better',
      'rejected': 'worse',
    },
    {'fn': 'pair_forms:prefer'},
  ),
  'flat_squad': ({'fn': 'readers:flat_squad'}, {'fn': 'forms:span'}),
}


@pytest.mark.parametrize(
  ('name', 'suffix'),
  [
    *((name, 'jsonl') for name in OWN),
    # A table has no lists, as conversations and answers of SQuAD are.
    *(
      (x, y) for x in ('texts', 'pairs', 'comparisons') for y in ('csv', 'tsv')
    ),
  ],
)
def test_a_config_names_readers_and_columns_of_ones_own_files(
  tmp_path, name, suffix
):
  reader, made = (
    {**spec, 'fn': f'lm.data.finetuning.{spec["fn"]}'} for spec in OWN[name]
  )
  path = tmp_path / f'rows.{suffix}'
  put(path, [ROW])
  if suffix != 'jsonl':
    between = {'csv': ',', 'tsv': '\t'}[suffix]
    columns = {k: str(v) for k, v in ROW.items() if isinstance(v, str | int)}
    path.write_text(
      f'{between.join(columns)}\n{between.join(columns.values())}'
    )
  c = base.get_config().unlock()
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': {**reader, 'path': str(path)},
    'form': made,
    'length': 128,
  }
  file = tmp_path / 'config.json'
  file.write_text(config.to_json(c))
  c = config.load(file)
  opened = setup.open_data(setup.fill(c), BYTES)
  assert opened.batch(0).weights.any()
