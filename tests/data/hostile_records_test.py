"""Whatever a file holds, a reader gives records or refuses it in one line."""

import inspect
import json
import tempfile

import hypothesis
from hypothesis import strategies as st
import pytest

from lm import config
from lm.data.finetuning import batching, chat_readers, pair_readers, readers
from lm.data.finetuning import records as record_lib
from lm.data.tokenizers import utf8_bytes

BYTES = utf8_bytes.make()
# Fields that the readers below look for, and what stands in them in good files.
FIELDS = (
  *('text', 'label', 'fold', 'sentence1', 'sentence2', 'id', 'question'),
  *('passage', 'answer', 'answers', 'context', 'answer_start', 'is_impossible'),
  *('data', 'paragraphs', 'qas', 'train', 'oos_train', 'category', 'source'),
  *('target', 'fname', 'dialogue', 'summary', 'instruction', 'input', 'output'),
  *('conversations', 'messages', 'message', 'chosen', 'rejected', 'value'),
  *('prompt', 'role', 'content', 'from', 'type', 'system'),
)
LEAVES = (
  st.none()
  | st.booleans()
  | st.integers(-3, 9)
  | st.sampled_from([0.5, 1.0, 1e300, float('nan')])
  | st.sampled_from(['', ' ', 'a', 'a b', 'no', 'user', 'gpt', '\ud800', '-'])
)
VALUES = st.recursive(
  LEAVES,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5)
  ),
  max_leaves=20,
)
SETTINGS = {
  'clinc150': {'split': 'train', 'scope': 'all'},
  'movie_reviews': {'folds': (0,)},
  'pairs': {'source': 'source', 'target': 'target'},
}
READERS = {
  name: (module, SETTINGS.get(name, {}))
  for module in (readers, pair_readers, chat_readers)
  for name, value in vars(module).items()
  if inspect.isfunction(value)
  and value.__module__ == module.__name__
  and not name.startswith('_')
  and 'target_path' not in inspect.signature(value).parameters
}
KINDS = {
  record_lib.Text: {'fn': 'forms:classify', 'classes': 1, 'labels': ('a',)},
  record_lib.Sentence: {'fn': 'forms:tag', 'classes': 1, 'labels': ('O',)},
  record_lib.Reading: {'fn': 'forms:span', 'question': 4},
  record_lib.Pair: {'fn': 'pair_forms:reply'},
  record_lib.Chat: {'fn': 'pair_forms:chat'},
  record_lib.Preference: {'fn': 'pair_forms:prefer'},
}


def check(name, text, fails_if_read=''):
  """Reads a file of a text, and makes rows of its records."""
  module, settings = READERS[name]
  spec = {'fn': f'{module.__name__}:{name}', **settings}
  with tempfile.NamedTemporaryFile('w', encoding='utf-8', newline='') as file:
    file.write(text)
    file.flush()
    try:
      made = config.build({**spec, 'path': file.name})
    except ValueError as error:
      line = str(error)
      assert 'task ' in line and '\n' not in line and len(line) <= 200, line
      return
  assert made.records and not fails_if_read, fails_if_read
  form = KINDS[type(made.records[0])]
  form = {**form, 'fn': f'lm.data.finetuning.{form["fn"]}'}
  built = config.build(form, tokenizer=BYTES, length=16)
  rows = built.rows(made.records)
  assert {row.record for row in rows} == {*range(len(made.records))}
  batching.assemble([[row] for row in rows], built, 16, BYTES)


TALK = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
SHARED = [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}]
ANSWER = {'text': 'a', 'answer_start': 0}
QUESTION = {'id': 'x', 'question': 'q', 'answers': [ANSWER]}
# Files of one value that are read.
GOOD = {
  'texts': {'text': 'a', 'label': 'a'},
  'movie_reviews': {'text': 'a', 'label': 'a', 'fold': 0},
  'clinc150': {'train': [['a', 'a']], 'oos_train': [['a', 'a']]},
  'ocnli': {'sentence1': 'a', 'sentence2': 'a', 'label': 'a', 'id': 0},
  'boolq': {'question': 'a', 'passage': 'a', 'answer': True},
  'squad': {'data': [{'paragraphs': [{'context': 'a', 'qas': [QUESTION]}]}]},
  'flat_squad': {'context': 'a', **QUESTION},
  'pairs': {'source': 'a', 'target': ['a']},
  'dialogsum': {'fname': 'a', 'dialogue': 'a', 'summary': 'a'},
  'alpaca': {'instruction': 'a', 'input': 'a', 'output': 'a'},
  'preferences': {
    'conversations': SHARED[:1],
    'chosen': SHARED[1],
    'rejected': SHARED[1],
  },
  'kdconv': {'messages': [{'message': 'a'}, {'message': 'a'}]},
  'crosswoz': {'id': 'a', 'messages': [{'content': 'a'}, {'content': 'a'}]},
  'messages': {'messages': TALK, 'system': 'a'},
  'sharegpt': {'conversations': SHARED},
  'comparisons': {'prompt': 'a', 'chosen': TALK[1:], 'rejected': TALK[1:]},
}


def places(value, here=()):
  """Yields the paths of all values inside a value."""
  inner = value.items() if isinstance(value, dict) else ()
  inner = enumerate(value) if isinstance(value, list) else inner
  for key, part in inner:
    yield (*here, key)
    yield from places(part, (*here, key))


def changed(value, path, new):
  """Returns a value in which another one stands at a path; GONE removes it."""
  if not path:
    return new
  key, *rest = path
  copy = value.copy()
  copy[key] = changed(value[key], rest, new)
  if copy[key] is GONE:
    del copy[key]
  return copy


GONE = object()


@pytest.mark.parametrize('name', GOOD)
def test_good_files_are_read(name):
  with pytest.raises(AssertionError, match='was read'):
    check(name, json.dumps(GOOD[name]), 'was read')


@pytest.mark.parametrize('name', GOOD)
@hypothesis.given(st.data())
@hypothesis.settings(max_examples=100)
def test_any_change_of_a_good_file_is_read_or_refused(name, data):
  good = GOOD[name]
  path = data.draw(st.sampled_from([*places(good)]))
  new = data.draw(st.just(GONE) | VALUES)
  check(name, json.dumps(changed(good, path, new)))


@pytest.mark.parametrize('name', READERS)
@hypothesis.given(
  st.text('ab#OBI-PER \t\r\n,"{}[]\u00a0\u3000\ufeff', max_size=40)
)
@hypothesis.settings(max_examples=60)
def test_any_text_is_read_or_refused(name, text):
  check(name, text)
