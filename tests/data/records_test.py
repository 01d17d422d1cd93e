"""Records of files as they are in the world: read rightly, or refused by name.

Each reader is built as a config names it.
"""

import json
import os
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
import pytest

from lm import config
from lm.data.finetuning import conll_files, fields
from lm.data.finetuning import records as record_lib

CASES = Path(os.environ.get('LM_DATA', '../shared/data')).parent / 'cases'
READERS = ('readers', 'pair_readers', 'chat_readers')
needs_cases = pytest.mark.skipif(
  not CASES.is_dir(), reason='needs shared/cases'
)


@pytest.fixture
def put(tmp_path):
  def put(name, content):
    if not isinstance(content, str):
      content = '\n'.join(map(json.dumps, content))
    (tmp_path / name).write_text(content, newline='')
    return tmp_path / name

  return put


def read(reader, path, **settings):
  spec = {'fn': f'lm.data.finetuning.{reader}', 'path': str(path), **settings}
  return config.build(spec)


def refused(reader, path, **settings):
  with pytest.raises(ValueError) as caught:
    read(reader, path, **settings)
  line = str(caught.value)
  assert line.startswith(f'lm.data.finetuning.{reader}: task ')
  assert '\n' not in line and len(line) <= 200, line
  return line


PAIRS = {'source': 's', 'target': 't'}


@needs_cases
@pytest.mark.parametrize(
  ('reader', 'file', 'settings', 'message'),
  [
    ('readers:texts', 'cls_null.jsonl', {}, 'record 2: text is null, and a te'),
    (
      'pair_readers:alpaca',
      'alpaca_null.jsonl',
      {},
      'record 2: output is null',
    ),
    (
      'pair_readers:preferences',
      'pref_null.json',
      {},
      'record 1: chosen.value is null, and a text belongs there',
    ),
    ('pair_readers:pairs', 'pairs_none.jsonl', PAIRS, 'record 1: s is null, a'),
    ('pair_readers:pairs', 'pairs_num.jsonl', PAIRS, 'record 1: s is 5, and a'),
    (
      'readers:boolq',
      'boolq_str.jsonl',
      {},
      'record 4: answer is null, and tr',
    ),
    (
      'readers:squad',
      'squad_neg.json',
      {},
      'record 1: answer_start is -1, and',
    ),
    (
      'readers:squad',
      'squad_negmatch.json',
      {},
      'answer_start is -6, and a nu',
    ),
    (
      'readers:squad',
      'squad_noanswers_key.json',
      {},
      'record 1: answers is missing; its fields: id, question',
    ),
    ('readers:banking77', 'csv_unbalanced.csv', {}, 'row '),
    ('readers:banking77', 'latin1.csv', {}, 'byte 0xe9'),
    (
      'pair_readers:tatoeba',
      'tatoeba_crlf.tsv',
      {},
      'record 3: it has 1 field',
    ),
  ],
)
def test_cases_that_are_refused(reader, file, settings, message):
  line = refused(reader, CASES / file, **settings)
  assert message in line and file in line


@needs_cases
def test_each_line_of_a_case_is_judged_by_itself(put):
  lines = (CASES / 'cls_null.jsonl').read_text().splitlines()
  messages = (
    None,
    'text is null, and a text belongs there',
    'label is null, and a text or a whole number belongs there',
    'text is an object, and a text belongs there',
    None,
    'label is 1.0, and a text or a whole number belongs there',
    'label is true, and a text or a whole number belongs there',
  )
  for line, message in zip(lines, messages, strict=True):
    path = put('x.jsonl', f'{lines[0]}\n{line}')
    if message is None:
      assert len(read('readers:texts', path).records) == 2
    else:
      assert f'record 2: {message}' in refused('readers:texts', path)
  whole = read('readers:texts', put('x.jsonl', lines[4]))
  assert whole.records[0].label == '1'
  lines = (CASES / 'boolq_str.jsonl').read_text().splitlines()
  made = read('readers:boolq', put('x.jsonl', '\n'.join(lines[:3])))
  assert [one.label for one in made.records] == ['no', 'no', 'no']


@needs_cases
def test_cases_that_are_read():
  (made,) = read('pair_readers:alpaca', CASES / 'alpaca_missing.jsonl').records
  assert (made.source, made.targets) == ('Say hi', ('hi',))
  table = read('readers:banking77', CASES / 'bank_blankline.csv')
  assert [(*one.texts, one.label) for one in table.records] == [
    ('hello', 'a'),
    ('world', 'b'),
  ]
  assert table.counts == {'rows that end before the columns that are read': 1}
  made = read('pair_readers:tatoeba', CASES / 'tatoeba_crlf2.tsv').records
  assert [one.targets for one in made] == [('Bonjour.',), ('Salut.',)]
  for name, count in (('par', 3), ('par_crlf', 3), ('par_empty', 2)):
    made = read(
      'pair_readers:parallel',
      CASES / f'{name}_src.txt',
      target_path=str(CASES / f'{name}_tgt.txt'),
    )
    assert len(made.records) == count
  assert read('readers:texts', CASES / 'cls_bom.jsonl').labels == ('neg', 'pos')


@needs_cases
@pytest.mark.parametrize(
  ('file', 'words', 'tags'),
  [
    ('tab_nbsp', 'The|10\u00a0000|Paris', 'O O B-LOC'),
    ('space_token', 'New York|is', 'B-LOC O'),
    ('u3000', '\u3000|北京', 'O B-LOC'),
    ('hash_cols', 'tweet|#Berlin|Bob', 'O B-LOC B-PER'),
    ('hash', 'tweet|#win|#|Bob', 'O O O B-PER'),
    ('comment2', 'Anna|sang', 'B-PER O'),
    ('iobes', 'Anna|New|York|sang', 'B-PER B-LOC I-LOC O'),
    ('notype', 'gene|x|sang', 'B I O'),
    (
      'iob1',
      'English|County|Cup|Bob|won|I-PER',
      'B-MISC B-MISC I-MISC B-PER O B-PER',
    ),
  ],
)
def test_cases_of_words_and_tags(file, words, tags):
  made = read('readers:conll', CASES / f'conll_{file}.conll')
  (one,) = made.records
  assert (one.words, one.tags) == (
    tuple(words.split('|')),
    tuple(tags.split(' ')),
  )
  comments = {'lines of comments': 1} if file == 'comment2' else {}
  assert {k: v for k, v in made.counts.items() if v} == comments


@needs_cases
def test_blank_lines_may_have_spaces():
  made = read('readers:conll', CASES / 'conll_ws_blank.conll').records
  assert [one.words for one in made] == [('Anna',), ('Bob',), ('Cy',)]


@pytest.mark.parametrize(
  ('tags', 'expected'),
  [
    ('I-A I-A I-B O I-B', 'B-A I-A B-B O B-B'),  # IO
    ('I-A B-A I-A I-B', 'B-A B-A I-A B-B'),  # IOB1
    ('B-A I-A O B-A', 'B-A I-A O B-A'),  # IOB2
    ('B-A I-A E-A S-A S-B', 'B-A I-A I-A B-A B-B'),  # IOBES
    ('B-A I-A L-A U-A U-B', 'B-A I-A I-A B-A B-B'),  # BILOU
    ('B-A M-A E-A W-A S-A', 'B-A I-A I-A B-A B-A'),  # BMES, BMEWO
    ('I I O I', 'B I O B'),  # without types
    ('B-A E-A I-A', 'B-A I-A B-A'),  # an entity has ended before I
    ('B-A-x I-A-x I-A', 'B-A-x I-A-x B-A'),  # a type may have a hyphen
  ],
)
def test_schemes_of_tags_become_bio(tags, expected):
  assert conll_files.bio(tags.split()) == tuple(expected.split())


@hypothesis.given(
  st.lists(
    st.tuples(st.sampled_from(['', '-A', '-B']), st.integers(1, 4)) | st.none(),
    max_size=8,
  ),
  st.sampled_from(['BIES', 'BILU', 'BMES', 'BIII']),
)
def test_every_scheme_gives_the_same_entities(entities, scheme):
  """A failure means that a scheme loses an entity or its length."""
  begin, inside, last, single = scheme
  single = 'B' if scheme == 'BIII' else single
  tags, expected = [], []
  for entity in entities:
    if entity is None:
      tags.append('O')
      expected.append('O')
      continue
    kind, size = entity
    middle = [inside] * (size - 2)
    letters = [single] if size == 1 else [begin, *middle, last]
    tags += [f'{letter}{kind}' for letter in letters]
    expected += [f'B{kind}', *[f'I{kind}'] * (size - 1)]
  assert conll_files.bio(tags) == tuple(expected)


def test_lines_that_are_no_words_and_tags_are_refused(put):
  for text, message in (
    ('a\tO\nb O\n', 'line 2 has 1 columns and no column 1: set word and tag'),
    ('a\tO\n\t\tO\n', 'line 2 has no word in column 0: set word and tag'),
    ('a\tX-PER\n', 'line 1: X-PER is not a tag such as O, B-PER or I-PER'),
    ('# a\n', 'there is no record'),
  ):
    line = refused('readers:conll', put('x.conll', text))
    assert message in line


def squad(context, *questions):
  listed = [
    {'id': str(n), 'question': 'q', **q} for n, q in enumerate(questions)
  ]
  return {'data': [{'paragraphs': [{'context': context, 'qas': listed}]}]}


@needs_cases
def test_an_answer_is_the_one_nearest_to_its_offset(put):
  made = read('readers:squad', CASES / 'squad_offby.json').records
  assert [one.answers for one in made] == [((55, 'Rome'),)] * 2
  path = put(
    'x.json', [squad('ab ab ab', *(answers('ab', n) for n in range(9)))]
  )
  made = read('readers:squad', path).records
  # Of two that are as near, the first.
  starts = [one.answers[0][0] for one in made]
  assert starts == [0, 0, 3, 3, 3, 6, 6, 6, 6]


def answers(text, *starts):
  return {'answers': [{'text': text, 'answer_start': n} for n in starts]}


def test_answers_that_are_not_in_the_passage_are_counted(put):
  some = {'answers': answers('ab', 0)['answers'] + answers('x', 0)['answers']}
  path = put('x.json', [squad('ab', some, answers('x', 0), answers('', 0))])
  made = read('readers:squad', path)
  assert [one.answers for one in made.records] == [((0, 'ab'),)]
  assert made.counts == {
    'questions whose answers are not in the passage': 2,
    'answers that are not in the passage': 1,
  }
  # The answers of such questions are no reason to call them unanswerable.
  assert made.labels == ()
  path = put('x.json', [squad('ab', answers('x', 0))])
  assert 'there is no record (1 questions whose' in refused(
    'readers:squad', path
  )


@needs_cases
def test_questions_without_an_answer_are_a_class(put):
  made = read('readers:squad', CASES / 'squad_v2.json')
  assert [one.answers for one in made.records] == [((0, 'Rome'),), ()]
  assert made.labels == (record_lib.UNANSWERABLE,)
  (one,) = read('readers:squad', CASES / 'squad_all_impossible.json').records
  assert one.answers == ()
  path = put(
    'x.json', [squad('ab', {**answers('ab', 0), 'is_impossible': True})]
  )
  line = refused('readers:squad', path)
  assert 'record 1: is_impossible is true, and there are answers' in line


def test_cmrc_marks_answers_that_are_not_in_the_passage(put):
  path = put('x.json', [squad('北京', answers('京', 1), answers('上海', -1))])
  made = read('readers:cmrc2018', path)
  assert len(made.records) == 1
  assert made.counts['questions whose answers are not in the passage'] == 1
  assert 'answer_start is -1' in refused('readers:drcd', path)


@pytest.mark.parametrize('form', ['lines', 'array'])
def test_flat_squad(put, form):
  rows = [
    {
      'id': 'a',
      'context': 'Rome fell',
      'question': 'What?',
      'answers': {'text': ['Rome'], 'answer_start': [0]},
    },
    {
      'id': 7,
      'context': 'Rome fell',
      'question': 'Who?',
      'answers': {'text': [], 'answer_start': []},
    },
    {'id': 'c', 'context': 'Rome', 'question': 'q', **answers('Rome', 0)},
  ]
  path = put('x.json', [rows] if form == 'array' else rows)
  made = read('readers:flat_squad', path)
  assert [(one.id, one.answers) for one in made.records] == [
    ('squad/a', ((0, 'Rome'),)),
    ('squad/7', ()),
    ('squad/c', ((0, 'Rome'),)),
  ]
  rows[0]['answers']['answer_start'] = []
  line = refused('readers:flat_squad', put('x.json', rows))
  assert 'record 1: answers have 1 texts and 0 offsets' in line


@pytest.mark.parametrize(
  ('suffix', 'text'),
  [
    ('csv', 'id,review,stars\n1,"good, I say",5\n2,bad,1\n'),
    ('tsv', 'id\treview\tstars\n1\tgood, I say\t5\n2\tbad\t1\n'),
    (
      'jsonl',
      '{"review": "good, I say", "stars": 5}\n{"review": "bad", "stars": 1}',
    ),
    (
      'json',
      '[{"review": "good, I say", "stars": "5"},\n'
      ' {"review": "bad", "stars": "1"}]',
    ),
  ],
)
def test_texts_and_pairs_of_any_table(put, suffix, text):
  path = put(f'x.{suffix}', text)
  made = read('readers:texts', path, fields=['review'], label='stars')
  assert [one[1:] for one in made.records] == [
    (('good, I say',), '5'),
    (('bad',), '1'),
  ]
  if suffix != 'jsonl':  # a target is a text
    made = read('pair_readers:pairs', path, source='review', target='stars')
    assert made.records[0][1:] == ('good, I say', ('5',))
  with pytest.raises(ValueError, match='fields is empty: name the field of'):
    read('readers:texts', path, fields=[], label='stars')
  line = refused('readers:texts', path, fields=['text'], label='stars')
  assert 'record 1: text is missing; its fields: ' in line
  assert 'review, stars' in line


def test_an_error_names_one_of_several_files(put):
  put('a.jsonl', [{'text': 'a', 'label': 'x'}] * 2)
  put('b.jsonl', [{'text': 'a', 'label': 'x'}, {'text': 'a', 'label': None}])
  path = put('c.csv', 'text,label\na,x\n')
  line = refused('readers:texts', path.with_name('*.*'))
  assert 'b.jsonl: record 2: label is null' in line
  put('b.jsonl', [{'text': 'a', 'label': 'x'}])
  assert len(read('readers:texts', path.with_name('*.*')).records) == 4


def test_a_field_inside_an_object(put):
  path = put('x.jsonl', [{'data': {'text': 'a'}, 'x.y': 'b'}])
  made = read('readers:texts', path, fields=['data.text'], label='x.y').records
  assert made[0][1:] == (('a',), 'b')


def test_fields_of_the_wrong_type_are_named():
  row = {
    'a': {'b': ['c']},
    'half': '\ud800',
    'words': ['x'],
    'blank': ' ',
    'yes': 'Yes ',
    'one': 1,
    'big': 2,
  }
  for call, message in (
    (lambda: fields.text(row, 'a.c'), 'c is missing; its fields: b'),
    (lambda: fields.text(row, 'half'), 'half has half a character (a lone s'),
    (lambda: fields.text(row['words'], -1), 'it has 1 fields, and no field -1'),
    (lambda: fields.text('text', 0), "'text' stands where a list belongs"),
    (lambda: fields.text([], 'x'), 'a list stands where an object belongs'),
    (lambda: fields.texts({'x': []}, 'x'), 'x is an empty list, and a text be'),
    (lambda: fields.label(row, 'blank'), 'blank is empty, and a label belongs'),
    (lambda: fields.entries(row, 'one'), 'one is 1, and a list belongs there'),
    (lambda: fields.integer(row, 'yes'), "yes is 'Yes ', and a whole number b"),
    (lambda: fields.truth(row, 'big'), 'big is 2, and true or false belongs'),
  ):
    with pytest.raises(fields.FieldError) as caught:
      call()
    assert message in str(caught.value)
  assert fields.truth(row, 'yes') and fields.truth(row, 'one')


MESSAGES = [
  {'role': 'user', 'content': 'a'},
  {'role': 'assistant', 'content': [{'type': 'text', 'text': 'b'}]},
  {'role': 'user', 'content': 'c'},
]
TURNS = (('user', 'a'), ('assistant', 'b'))


@pytest.mark.parametrize('reader', READERS)
def test_configs_of_runs_may_name_every_reader(reader):
  module = __import__(f'lm.data.finetuning.{reader}', fromlist=[''])
  own = {
    name
    for name, value in vars(module).items()
    if callable(value)
    and value.__module__ == module.__name__
    and not name.startswith('_')
  }
  for name in own:
    spec = {'fn': f'lm.data.finetuning.{reader}:{name}', 'path': 'x'}
    config.read_untrusted(
      json.dumps(
        {'data': {'fn': 'lm.data.finetuning.tasks:make', 'records': spec}}
      )
    )


def test_conversations_in_messages(put):
  system = {'role': 'developer', 'content': 's'}
  rows = [
    {'messages': [*MESSAGES[:2]]},
    {'messages': [system, *MESSAGES]},
    {'messages': MESSAGES[:1]},
    {'messages': MESSAGES[:2], 'system': 's'},
    {'messages': MESSAGES[1:]},
  ]
  made = read('chat_readers:messages', put('x.jsonl', rows))
  assert [one.turns for one in made.records] == [
    TURNS,
    (('system', 's'), *TURNS),
    (('system', 's'), *TURNS),
  ]
  assert made.counts == {
    'conversations without an answer': 2,
    'messages behind the last answer': 1,
  }
  for message, why in (
    (
      {'role': 'tool', 'content': 'x'},
      "role is 'tool', which roles does not name",
    ),
    ({'role': 'user', 'content': None}, 'content is null, and a text belongs'),
    ({'role': 'user'}, 'content is missing; its fields: role'),
    (
      {'role': 'user', 'content': [{'type': 'image_url'}]},
      "content has a part of the type 'image_url', which is no text",
    ),
  ):
    path = put('y.jsonl', [rows[0], {'messages': [message, *MESSAGES]}])
    assert f'record 2: {why}' in refused('chat_readers:messages', path)
  roles = {'role': 'speaker', 'content': 'text', 'messages': 'talk'}
  path = put('z.jsonl', [{'talk': [{'speaker': x, 'text': x} for x in 'AB']}])
  (one,) = read(
    'chat_readers:messages',
    path,
    roles={'A': 'user', 'B': 'assistant'},
    **roles,
  ).records
  assert one.turns == (('user', 'A'), ('assistant', 'B'))


def test_conversations_of_sharegpt(put):
  rows = [
    {
      'id': 'x',
      'conversations': [
        {'from': who, 'value': text}
        for who, text in (('system', 's'), ('human', 'a'), ('gpt', 'b'))
      ],
    }
  ]
  for text in (rows, [rows]):
    (one,) = read('chat_readers:sharegpt', put('x.json', text)).records
    assert one.turns == (('system', 's'), *TURNS)


def test_comparisons_of_texts_and_of_messages(put):
  better, worse = (
    [*MESSAGES[:1], {'role': 'assistant', 'content': x}] for x in 'xy'
  )
  rows = [
    {'prompt': 'a', 'chosen': 'x', 'rejected': 'y'},
    {'prompt': MESSAGES[:1], 'chosen': better[1:], 'rejected': worse[1:]},
    {'chosen': better, 'rejected': worse},
    {'prompt': 'a', 'chosen': better, 'rejected': worse},
  ]
  made = read('chat_readers:comparisons', put('x.jsonl', rows)).records
  assert [one[1:] for one in made] == [('a', 'x', 'y')] * 4
  table = put('x.csv', 'prompt,chosen,rejected\na,x,y\n')
  (one,) = read('chat_readers:comparisons', table).records
  assert one[1:] == ('a', 'x', 'y')
  for row, why in (
    ({'chosen': 'x', 'rejected': 'y'}, 'prompt is missing; its fields: chosen'),
    ({'chosen': better, 'rejected': 'y'}, 'chosen and rejected do not contin'),
    ({'prompt': 'a', 'chosen': [], 'rejected': 'y'}, 'chosen is an empty list'),
    ({'prompt': 'a', 'chosen': 'x', 'rejected': None}, 'rejected is null, an'),
  ):
    line = refused('chat_readers:comparisons', put('y.jsonl', [row]))
    assert f'record 1: {why}' in line


def test_left_out_rows_of_published_sets_are_counted(shared_data):
  folder = shared_data / 'classification'
  made = read('readers:ocnli', folder / 'ocnli/dev.jsonl.gz')
  (count,) = made.counts.values()
  assert len(made.records) + count == 3000
  path = folder / 'clinc150/data_full.json.gz'
  made = read('readers:clinc150', path, split='test')
  assert made.counts == {'requests of no class': 1000}
  assert not read('readers:clinc150', path, split='test', scope='all').counts
