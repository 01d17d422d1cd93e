"""Planted preferences give planted scores; every file is read whole."""

import gzip
import hashlib
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, sharding, types
from lm.data import objectives
from lm.data.tokenizers import utf8_bytes
from lm.evals import choice, context, probes, results

WORDS = utf8_bytes.make()
# Letters whose probabilities are known, whatever stands before them.
CHANCE = {'a': 0.5, 'b': 0.25, 'c': 0.125, ' ': 0.0625}


def planted() -> tuple[types.Model, types.Params]:
  """A model that draws every token from CHANCE, and the rest alike."""
  rest = (1 - sum(CHANCE.values())) / (WORDS.size - len(CHANCE))
  chance_V = np.full(WORDS.size, rest)
  for letter, chance in CHANCE.items():
    chance_V[WORDS.encode(letter)] = chance

  def apply(params, batch, *, cache=None, rng=None):
    del rng
    shape = (*batch.tokens.shape, WORDS.size)
    return types.Output(jnp.zeros(shape) + params, cache, {})

  model = types.Model(lambda *a: None, apply, lambda *a: None, ())
  return model, jnp.asarray(np.log(chance_V), jnp.float32)[None, None]


MODEL, PARAMS = planted()
CONTEXT = context.Context(MODEL, WORDS, sharding.make_mesh())


def bits(text):
  """Computes the bits of a text of known letters."""
  return -sum(math.log2(CHANCE[letter]) for letter in text)


def write(path, rows):
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  return str(path)


def evaluate(fn, **settings):
  settings = {'batch_size': 8, 'length': 32, **settings}
  return config.build(
    {'fn': f'lm.evals.choice:{fn}', **settings},
    context=CONTEXT,
  )(PARAMS)


def task(fn, path, **settings):
  return {'fn': f'lm.evals.probes:{fn}', 'path': str(path), **settings}


def test_a_choice_is_scored_by_its_sum_its_tokens_and_its_bytes(tmp_path):
  """With the space before it ' ccc' costs 13 bits, ' aaaaaaaaaa' 14."""
  rows = [
    {'id': 'sum', 'question': 'q', 'choices': ['aaaaaaaaaa', 'ccc'], 'gold': 1},
    {
      'id': 'mean',
      'question': 'q',
      'choices': ['aaaaaaaaaa', 'ccc'],
      'gold': 0,
    },
    {'id': 'both', 'question': 'q', 'choices': ['c', 'a', 'b'], 'gold': 1},
  ]
  found = evaluate('choice', task=task('arc_easy', write(tmp_path / 'x', rows)))
  assert [item['id'] for item in found.items] == [
    'arc_easy/sum',
    'arc_easy/mean',
    'arc_easy/both',
  ]
  assert [item['accuracy'] for item in found.items] == [1, 0, 1]
  assert [item['accuracy_per_token'] for item in found.items] == [0, 1, 1]
  assert [item['accuracy_per_byte'] for item in found.items] == [0, 1, 1]
  # shares of the last are those of 1/8, 1/2 and 1/4
  assert found.items[2]['confidence'] == pytest.approx(4 / 7, rel=1e-4)
  assert found.items[2]['brier'] == pytest.approx((1 + 9 + 4) / 49, rel=1e-4)
  assert found.items[2]['gold_nats'] == pytest.approx(5 * math.log(2), rel=1e-5)
  metrics = found.metrics
  assert metrics['accuracy'] == metrics['accuracy_per_byte'] == 2 / 3
  # two of 2/3 share a bin, where a half is right; one of 4/7 is alone
  assert metrics['calibration_error'] == pytest.approx(
    (2 * abs(1 / 2 - 2 / 3) + (1 - 4 / 7)) / 3, rel=1e-4
  )
  assert found.card is not None and found.card['name'] == 'arc_easy'
  assert (
    found.card['sha256']
    == hashlib.sha256((tmp_path / 'x').read_bytes()).hexdigest()
  )


def test_calibration_is_the_gap_in_each_bin():
  assert choice.calibration_error([1.0] * 4, [1] * 4) == 0
  assert choice.calibration_error([0.75] * 4, [1, 1, 1, 0]) == 0
  assert choice.calibration_error([1.0] * 4, [1, 1, 0, 0]) == 0.5
  # over and under in bins of their own do not make up for each other
  assert choice.calibration_error([0.5, 1.0], [1, 0]) == 0.75


def test_groups_have_means_of_their_own(tmp_path):
  rows = [
    {'subject': s, 'question': 'q', 'choices': ['x', 'y'], 'gold': gold}
    for s, gold in (('law', 0), ('law', 0), ('art', 1), ('art', 0))
  ]
  found = evaluate(
    'choice', task=task('mmlu', write(tmp_path / 'x', rows)), length=64
  )
  # A and B are equally likely, and the first is taken
  assert found.metrics['accuracy'] == 0.75
  assert found.metrics['accuracy/law'] == 1
  assert found.metrics['accuracy/art'] == 0.5
  assert found.items[2]['category'] == 'art'


def test_a_last_word_is_known_if_each_token_is_the_likeliest(tmp_path):
  rows = [{'text': 'b c aa'}, {'text': 'b b'}, {'text': 'the end'}]
  path = write(tmp_path / 'x', rows)
  found = evaluate('cloze', task=task('lambada_openai', path, limit=2))
  # no space is ever the likeliest, and a word begins with one
  assert found.metrics['accuracy'] == 0
  nats = (bits(' aa') + bits(' b')) / 2 * math.log(2)
  assert found.metrics['loss_nats'] == pytest.approx(nats, rel=1e-5)
  assert found.metrics['perplexity'] == pytest.approx(math.exp(nats), rel=1e-4)
  assert [item['id'] for item in found.items] == [
    'lambada_openai/0',
    'lambada_openai/1',
  ]


def test_a_pair_counts_if_the_good_one_is_strictly_likelier(tmp_path):
  rows = [
    {'UID': uid, 'pairID': str(n), 'sentence_good': good, 'sentence_bad': bad}
    | {'field': 'syntax', 'term': 'islands'}
    for n, (uid, good, bad) in enumerate(
      [('p', 'a', 'b'), ('p', 'ab', 'ba'), ('q', 'c', 'bb'), ('q', 'aa', 'c')]
    )
  ]
  path = write(tmp_path / 'x', rows)
  found = evaluate('pairs', task=task('blimp', path))
  assert [item['accuracy'] for item in found.items] == [1, 0, 1, 1]
  assert found.metrics['accuracy'] == 0.75
  assert found.metrics['accuracy/p'] == 0.5 and found.metrics['accuracy/q'] == 1
  assert found.metrics['margin'] == pytest.approx(
    (1 + 0 + 1 + 1) / 4 * math.log(2), rel=1e-5
  )
  assert found.items[0]['term'] == 'islands'
  assert found.items[3]['id'] == 'blimp/q/3'


@pytest.mark.parametrize('stride', [None, 3])
def test_documents_are_weighed_by_their_lengths(tmp_path, stride):
  texts = ['a b c a b c ' * 5, 'c']
  path = write(tmp_path / 'x.jsonl', [{'text': text} for text in texts])
  found = evaluate(
    'documents', task=task('documents', path), stride=stride, length=16
  )
  size, cost = 61, sum(map(bits, texts))
  assert found.metrics == pytest.approx(
    {
      'loss_nats': cost * math.log(2) / size,
      'perplexity': 2 ** (cost / size),
      'bits_per_byte': cost / size,
      'word_perplexity': 2 ** (cost / 31),
    },
    rel=1e-4,
  )
  assert [item['words'] for item in found.items] == [30, 1]
  assert [item['tokens'] for item in found.items] == [60, 1]
  words = evaluate('documents', task=task('documents', path), words=10)
  assert words.metrics['word_perplexity'] == pytest.approx(
    2 ** (cost / 10), rel=1e-4
  )


def test_a_text_that_ids_do_not_give_back_has_no_nats(tmp_path):
  """The model is asked for 'a b' in both, which is not the text 'A b'."""
  lossy = WORDS._replace(
    lossless=False,
    encode=lambda text: WORDS.encode(text.lower()),
    encode_batch=lambda texts: [WORDS.encode(x.lower()) for x in texts],
  )
  where = context.Context(MODEL, lossy, sharding.make_mesh())

  def ask(*texts):
    path = write(tmp_path / 'x.jsonl', [{'text': text} for text in texts])
    spec = {'fn': 'lm.evals.choice:documents', 'batch_size': 8, 'length': 32}
    spec['task'] = task('documents', path)
    return config.build(spec, context=where)(PARAMS)

  kept = ask('a b', 'c')
  assert 'bits_per_byte' in kept.metrics and 'word_perplexity' in kept.metrics
  found = ask('A b', 'c')
  assert found.metrics.keys() == {'loss_nats', 'perplexity'}
  assert found.metrics['loss_nats'] == kept.metrics['loss_nats']
  assert [item['nats'] for item in found.items] == [
    None,
    pytest.approx(bits('c') * math.log(2), rel=1e-5),
  ]


def test_means_leave_out_what_is_not_known():
  items = [{'id': '1', 'x': 1, 'g': 'b'}, {'id': '2', 'x': None, 'g': 'a'}]
  found = results.means(items, 'x', by='g')
  assert found['x'] == 1 and found['x/b'] == 1 and math.isnan(found['x/a'])


# Rows as of the README of the data.
FILES = [
  ('arc_easy', 'evals/arc_easy/test.jsonl', 2376),
  ('arc_easy', 'evals/arc_easy/valid.jsonl', 570),
  ('arc_easy', 'evals/arc_easy/train.jsonl.gz', 2251),
  ('arc_challenge', 'evals/arc_challenge/test.jsonl', 1172),
  ('piqa', 'evals/piqa/valid.jsonl.gz', 1838),
  ('hellaswag', 'evals/hellaswag/valid_1000_olmes.jsonl.gz', 1000),
  ('openbookqa', 'evals/openbookqa/test.jsonl', 500),
  ('commonsense_qa', 'evals/commonsense_qa/valid.jsonl', 1221),
  ('copa', 'evals/copa/valid.jsonl', 100),
  ('sciq', 'evals/sciq/valid.jsonl.gz', 1000),
  ('winogrande', 'evals/winogrande/valid.jsonl', 1267),
  ('boolq', 'qa/boolq/valid.jsonl.gz', 3270),
  ('mmlu', 'evals/mmlu/test.jsonl.gz', 14042),
  ('mmlu', 'evals/mmlu/validation.jsonl.gz', 1531),
  ('cmmlu', 'evals/cmmlu/test.jsonl.gz', 11582),
  ('lambada_openai', 'evals/lambada_openai/lambada_test.jsonl.gz', 5153),
  ('blimp', 'evals/blimp/blimp.jsonl.gz', 67000),
]
# What the first question of a file asks, and what is right.
FIRST = {
  'evals/arc_easy/test.jsonl': (
    'Question: Which statement best explains why photosynthesis is the '
    'foundation of most food webs?\nAnswer:',
    ' Sunlight is the source of energy for nearly all ecosystems.',
  ),
  'evals/copa/valid.jsonl': (
    'The man turned on the faucet therefore',
    ' water flowed from the spout.',
  ),
  'evals/sciq/valid.jsonl.gz': (
    '\nQuestion: Who proposed the theory of evolution by natural selection?\n'
    'Answer:',
    ' darwin',
  ),
  'evals/winogrande/valid.jsonl': (
    'Sarah was a much better surgeon than Maria so Maria',
    ' always got the easier cases.',
  ),
  'evals/commonsense_qa/valid.jsonl': (
    'Question: A revolving door is convenient for two direction travel, but it '
    'also serves as a security measure at a what?\nA. bank\nB. library\nC. '
    'department store\nD. mall\nE. new york\nAnswer:',
    ' A',
  ),
  'evals/mmlu/validation.jsonl.gz': (
    'The following are multiple choice questions (with answers) about abstract '
    'algebra.\n\nThe cyclic subgroup of Z_24 generated by 18 has order\nA. 4\n'
    'B. 8\nC. 12\nD. 6\nAnswer:',
    ' A',
  ),
  'evals/cmmlu/test.jsonl.gz': (
    '以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n'
    '在农业生产中被当作极其重要的劳动对象发挥作用，最主要的不可替代的基本生产资料'
    '是\nA. 农业生产工具\nB. 土地\nC. 劳动力\nD. 资金\n答案：',
    ' B',
  ),
  'evals/blimp/blimp.jsonl.gz': (
    '',
    'Who should Derek hug after shocking Richard?',
  ),
}


def test_prompts_by_subject_are_those_of_the_harness(tmp_path):
  """Descriptions as in its tasks/mmlu/default and tasks/cmmlu, zero-shot."""
  row = {'question': ' q ', 'choices': ['x', 'y'], 'gold': 1}
  for name, subject, description, answer in (
    ('mmlu', 'us_foreign_policy',
     'The following are multiple choice questions (with answers) about us '
     'foreign policy.', 'Answer:'),
    ('cmmlu', 'ancient_chinese',
     '以下是关于古汉语的单项选择题，请直接给出正确答案的选项。', '答案：'),
  ):  # fmt: skip
    path = write(tmp_path / name, [row | {'subject': subject}])
    (asked,) = getattr(probes, name)(path=path).questions
    context = f'{description}\n\nq\nA. x\nB. y\n{answer}'
    assert asked.pairs == [(context, ' A'), (context, ' B')]
    assert asked.labels == {'category': subject}
  path = write(tmp_path / 'other', [row | {'subject': 'law'}])
  with pytest.raises(ValueError, match='line 1 is no question of cmmlu'):
    probes.cmmlu(path=path)


@pytest.mark.parametrize(('name', 'path', 'rows'), FILES)
def test_a_reader_reads_its_whole_file(shared_data, name, path, rows):
  first_pair = FIRST.get(path)
  path = str(shared_data / path)
  asked = getattr(probes, name)(path=path)
  assert len(asked.questions) == rows
  assert len({question.id for question in asked.questions}) == rows
  for question in asked.questions:
    assert all(text.strip() for _, text in question.pairs)
  assert asked.card.split == path.rpartition('/')[2].partition('.')[0]
  first = asked.questions[0]
  if first_pair is not None:
    assert first.pairs[first.gold] == first_pair
  few = getattr(probes, name)(path=path, limit=3)
  assert few.questions == asked.questions[:3] and few.card == asked.card


def test_documents_are_read_as_data_is(tmp_path):
  path = tmp_path / 'x.txt.gz'
  path.write_bytes(gzip.compress(b'eins\nzwei\n\ndrei\n'))
  found = probes.documents(path=str(path), unit='line')
  texts = [question.pairs[0][1] for question in found.questions]
  assert texts == ['eins', 'zwei', 'drei']
  few = probes.documents(path=str(path), unit='paragraph', limit=1)
  assert len(few.questions) == 1


@pytest.mark.parametrize(
  ('text', 'say'),
  [
    (None, 'no such file; check the path'),
    ('', 'there is no question'),
    ('{"id": 1', 'line 1 is not a JSON object'),
    ('[1]', 'line 1 is not a JSON object'),
    (
      '{"id": 1, "question": "q", "gold": 0}',
      'line 1 is no question of piqa (choices is missing; its fields: '
      'id, question, gold); give a file of that set',
    ),
    (
      '{"id": 1, "question": "q", "choices": ["a"], "gold": 1}',
      'line 1 is no question of piqa (ValueError: the right choice is 1 of 1, '
      'from 0 on); '
      'give a file of that set',
    ),
    (
      '{"id": 1, "question": "q", "choices": ["a", "b"], "gold": -1}',
      'line 1 is no question of piqa (ValueError: the right choice is -1 of 2, '
      'from 0 on); give a file of that set',
    ),
  ],
)
def test_a_wrong_file_is_one_line(tmp_path, monkeypatch, text, say):
  monkeypatch.chdir(tmp_path)
  if text is not None:
    (tmp_path / 'x.jsonl').write_text(text)
  with pytest.raises(config.ConfigError) as caught:
    evaluate('choice', task=task('piqa', 'x.jsonl'))
  assert str(caught.value).endswith(f'task x.jsonl: {say}')


_ASKED = {'id': 1, 'question': 'q', 'choices': ['a', 'b'], 'gold': 1}
ROWS = {
  **dict.fromkeys(('arc_easy', 'piqa', 'openbookqa', 'commonsense_qa'), _ASKED),
  'hellaswag': {'id': 1, 'context': 'c', 'choices': ['a', 'b'], 'gold': 1},
  'sciq': {**_ASKED, 'support': 's'},
  'winogrande': {'id': 1, 'sentence': 'a _ b', 'choices': ['a'], 'gold': 0},
  'boolq': {'passage': 'p', 'question': 'q', 'answer': True},
  'mmlu': {**_ASKED, 'subject': 's', 'id': None},
  'lambada_openai': {'text': 'a b'},
  'copa': {
    'idx': 1,
    'premise': 'p.',
    'question': 'cause',
    'choice1': 'a',
    'choice2': 'b',
    'label': 1,
  },
  'blimp': {
    'UID': 'u',
    'pairID': 1,
    'field': 'f',
    'term': 't',
    'sentence_good': 'a',
    'sentence_bad': 'b',
  },
}


@pytest.mark.parametrize('name', ROWS)
def test_a_field_of_another_type_is_one_line(tmp_path, name):
  """None of them becomes 'None', or another choice, in silence."""
  row, file = ROWS[name], tmp_path / 'x.jsonl'
  assert len(getattr(probes, name)(path=write(file, [row])).questions) == 1
  for key in row:
    for value in (None, 1.5, {'a': 1}, [None, None], [1, 2]):
      if row[key] is not None:  # what mmlu does not read
        path = write(file, [row, {**row, key: value}])
        with pytest.raises(ValueError, match=r'x\.jsonl: line 2 is no ') as e:
          getattr(probes, name)(path=path)
        assert '\n' not in str(e.value) and len(str(e.value)) <= 200


def test_evaluators_take_the_settings_of_the_scorer(tmp_path):
  path = write(tmp_path / 'x', [{'text': 'a b'}])
  for fn in ('choice', 'cloze', 'pairs', 'documents'):
    with pytest.raises(config.ConfigError, match='batch_size=0 must be'):
      evaluate(fn, task=task('lambada_openai', path), batch_size=0)
  with pytest.raises(config.ConfigError, match='stride=9 must be at most'):
    evaluate('documents', task=task('documents', path), stride=9, length=8)


def test_a_config_names_a_task_inside_an_evaluator(tmp_path):
  """As it stands in `evals`: filled with defaults, and written and read."""
  path = write(tmp_path / 'x', [{'text': 'b aa'}])
  spec = {'fn': 'lm.evals.choice:cloze', 'batch_size': 8, 'length': 16}
  spec['task'] = task('lambada_openai', path)
  full = config.fill(config.from_json(json.dumps({'evals': {'last': spec}})))
  assert full.evals.last.task.limit is None
  assert full.evals.last.objective.fn == objectives.CAUSAL['fn']
  built = config.build(full.evals.last, context=CONTEXT)
  assert built(PARAMS).items[0]['loss_nats'] == pytest.approx(
    bits(' aa') * math.log(2), rel=1e-5
  )
