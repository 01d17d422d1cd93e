"""Forms make the rows that their docstrings describe."""

from typing import Any

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from lm.data.finetuning import (
  batching,
  forms,
  pair_forms,
  passages,
  readers,
)
from lm.data.finetuning import records as record_lib
from lm.data.tokenizers import utf8_bytes
from lm.evals import classification, context

BYTES = utf8_bytes.make()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('reader', 'path', 'language'),
  [
    ('squad', 'qa/squad_v1_subset/dev_3articles.json.gz', 'en'),
    ('squad', 'qa/xquad/xquad.en.json.gz', 'en'),
    ('cmrc2018', 'qa/cmrc2018/trial.json.gz', 'zh'),
  ],
)
def test_cutting_passages_loses_almost_no_answer(
  shared_data, reader, path, language, monkeypatch
):
  """Cutting passages into pieces and rows costs almost nothing."""
  monkeypatch.setattr(
    classification, 'scorer', lambda *_: lambda params, rows: map(known, rows)
  )

  def known(row):
    logits = np.full((2, 512), -9.0)
    if row.targets != [0, 0]:
      logits[np.arange(2), row.targets] = 9.0
    return row, logits

  nothing: Any = None
  evaluate = classification.spans(
    context=context.Context(nothing, BYTES, nothing),
    records={
      'fn': f'lm.data.finetuning.readers:{reader}',
      'path': str(shared_data / path),
    },
    form={'fn': 'lm.data.finetuning.forms:span', 'stride': 128},
    batch_size=1,
    length=512,
    language=language,
  )
  # Answers of more bytes than a span may have tokens are not found.
  monkeypatch.setattr(classification, '_LONGEST', 512)
  found = evaluate(None)
  assert found.metrics['f1'] > 0.98
  assert {item['id'] for item in found.items} == {
    f'{reader}/{r.id.partition("/")[2]}'
    for r in getattr(readers, reader)(path=str(shared_data / path)).records
  }


@hypothesis.given(
  st.integers(0, 60), st.integers(1, 20), st.none() | st.integers(1, 25)
)
def test_rows_overlap_and_each_token_is_scored_once(size, room, stride):
  rows = list(passages.overlapping(size, room, stride))
  assert [n for _, _, mine in rows for n in mine] == list(range(size))
  around = [
    max(
      min(n - first, stop - 1 - n)
      for first, stop, _ in rows
      if first <= n < stop
    )
    for n in range(size)
  ]
  last = rows[-1][1] - 1
  for first, stop, mine in rows:
    assert stop - first <= room
    for n in mine:
      # Both ends of the text have nothing beyond them to see.
      here = min(n - first, stop - 1 - n)
      assert here >= around[n] - 1 or stop - 1 == last or not first


def test_a_long_sentence_is_tagged_in_parts_and_each_word_once():
  words = tuple('abcdefghijklmnop')
  one = record_lib.Sentence('x', words, ('O', 'B-A') * 8)
  form = forms.tag(
    tokenizer=BYTES, length=8, classes=2, labels=('B-A', 'O'), join=''
  )
  rows = form.rows([one])
  assert len(rows) > 2 and all(len(row.ids) <= 8 for row in rows)
  scored = [
    (place, target)
    for row in rows
    for place, target, weight in zip(
      row.places, [*row.targets, 0], [*row.weights, 0.0], strict=True
    )
    if weight
  ]
  assert scored == [(n, 1 - n % 2) for n in range(16)]


def test_a_pair_is_cut_where_it_is_longer():
  form = forms.classify(
    tokenizer=BYTES, length=10, classes=2, labels=('n', 'y'), token_types=True
  )
  (row,) = form.rows([record_lib.Text('x', ('abcdefgh', 'ij'), 'y')])
  assert BYTES.decode(row.ids) == 'abcdeij' and len(row.ids) == 10
  assert row.token_types == [0] * 7 + [1] * 3 and row.targets == [1]
  batch = batching.assemble([[row], []], form, 12, BYTES)
  assert batch.token_types is not None and batch.segments.sum() == 10
  assert batch.weights.tolist() == [[1.0], [0.0]]
  form = forms.classify(
    tokenizer=BYTES, length=10, classes=2, labels=('n', 'y'), ends=False
  )
  (row,) = form.rows([record_lib.Text('x', ('abcdefgh', 'ij'), 'y')])
  assert BYTES.decode(row.ids) == 'abcdefij' and len(row.ids) == 10
  assert row.ids.count(BYTES.eos) == 1 and row.ids[-1] != BYTES.eos


def test_rows_of_pairs_for_translate_and_reply():
  pair = record_lib.Pair('x', 'ab', ('cde', 'f'))
  form = pair_forms.translate(tokenizer=BYTES, length=8, source=6)
  (row,) = form.rows([pair])
  batch = batching.assemble([[row, row], []], form, 8, BYTES)
  eos, bos = BYTES.eos, BYTES.bos
  assert row.ids == [bos, *BYTES.encode('cde')]
  assert row.targets == [*BYTES.encode('cde'), eos]
  assert batch.segments[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
  assert batch.positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
  assert batch.weights.sum() == 8 and not batch.weights[1].any()
  form = pair_forms.reply(
    tokenizer=BYTES, length=8, template='<{source}>', room=3
  )
  (row,) = form.rows([pair])
  assert row.ids == [bos, *BYTES.encode('<ab>cde')][:8]
  assert row.targets == [*BYTES.encode('<ab>cde'), eos][:8]
  assert row.weights == [0, 0, 0, 0, 1, 1, 1, 1]
  # A long source loses its beginning, a long answer its end.
  (row,) = form.rows([record_lib.Pair('x', 'abcdefgh', ('ijklmnop',))])
  assert row.ids == [bos, *BYTES.encode('fgh>ijk')]
  assert row.targets == BYTES.encode('fgh>ijkl')
  assert row.weights == [0, 0, 0, 0, 1, 1, 1, 1]
  assert form.prompt is not None
  asked = form.prompt([pair])
  assert BYTES.decode(asked.tokens[0].tolist()) == '<ab>'


def test_only_the_assistant_is_scored_in_a_conversation():
  talk = record_lib.Chat(
    'x',
    (
      ('system', 'S'),
      ('user', 'a'),
      ('assistant', 'bc'),
      ('user', 'd'),
      ('assistant', 'e'),
    ),
  )
  form = pair_forms.chat(
    tokenizer=BYTES,
    length=32,
    template={'system': '{};', 'user': '<{}>', 'assistant': '={}.'},
  )
  (row,) = form.rows([talk])
  eos = BYTES.eos
  every = [*BYTES.encode('S;<a>=bc'), eos, *BYTES.encode('<d>=e'), eos]
  assert row.targets == every and row.ids == [BYTES.bos, *every[:-1]]
  scored = [x for x, weight in zip(every, row.weights, strict=True) if weight]
  assert scored == [*BYTES.encode('bc'), eos, *BYTES.encode('e'), eos]
  assert form.prompt is not None
  asked = form.prompt([talk]).tokens[0].tolist()
  assert asked == [
    BYTES.bos,
    *every[: every.index(eos) + 1],
    *BYTES.encode('<d>='),
  ]
  assert (talk.targets, talk.source) == (('e',), 'S\na\nbc\nd')
  # The oldest turns go first, the system's stays.
  short = pair_forms.chat(
    tokenizer=BYTES,
    length=9,
    template={'system': '{};', 'user': '<{}>', 'assistant': '={}.'},
  )
  (row,) = short.rows([talk])
  assert row.targets == [*BYTES.encode('S;<d>=e'), eos]


@pytest.mark.parametrize(
  ('turns', 'row', 'prompt'),
  [
    # A last turn that is too long loses its end, and the system's turn stays.
    (
      [('system', 'S'), ('user', 'abcdefgh')],
      'S;<abcdefgh>=!',
      'S;<abcdefgh>=',
    ),
    ([('system', 'S'), ('user', 'a' * 20)], 'S;=!', 'S;<aaaaaaaaaa='),
    # It goes where it would take most of the row.
    (
      [('system', 'S' * 9), ('user', 'a' * 20)],
      'SSSSSSSSS;=!',
      '<aaaaaaaaaaaa=',
    ),
    ([('user', 'a' * 20)], '=!', '<aaaaaaaaaaaa='),
    ([('system', 'S' * 20)], '=!', 'SSSSSSSSSSSSS='),
    ([], '=!', '='),
  ],
)
def test_what_a_long_conversation_loses(turns, row, prompt):
  form = pair_forms.chat(
    tokenizer=BYTES,
    length=15,
    template={'system': '{};', 'user': '<{}>', 'assistant': '={}.'},
  )
  talk = record_lib.Chat('x', (*turns, ('assistant', '')))
  (made,) = form.rows([talk])
  text = BYTES.decode(made.targets[:-1]) + '!' * (made.targets[-1] == BYTES.eos)
  assert text == row
  assert form.prompt is not None
  asked = form.prompt([talk]).tokens[0].tolist()
  assert asked[0] == BYTES.bos and BYTES.decode(asked) == prompt


def test_a_long_last_turn_is_cut_and_the_system_stays():
  form = pair_forms.chat(
    tokenizer=BYTES,
    length=9,
    template={'system': '{};', 'user': '<{}>', 'assistant': '={}.'},
  )
  talk = (('system', 'S'), ('user', 'a'), ('assistant', 'b' * 20))
  (row,) = form.rows([record_lib.Chat('x', talk)])
  assert row.targets == BYTES.encode('S;=bbbbbb')
  # Otherwise nothing might be learnt.
  talk = (('system', 'S' * 8), *talk[1:])
  (row,) = form.rows([record_lib.Chat('x', talk)])
  assert row.targets == BYTES.encode('=bbbbbbbb')


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    ({'system': '{}', 'user': '{}'}, 'template: assistant needs one {}'),
    (
      {'system': '{}', 'user': '', 'assistant': '{}'},
      'template: user needs one {} for the text',
    ),
  ],
)
def test_a_template_without_a_place_for_the_text_is_refused(template, message):
  with pytest.raises(ValueError) as caught:
    pair_forms.chat(tokenizer=BYTES, length=9, template=template)
  assert message in str(caught.value)
