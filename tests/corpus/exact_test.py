"""Exact duplicates: what counts as the same text."""

import pyarrow as pa

from lm.corpus import exact, stages, texts


def keys(*given):
  """Returns the key of each text, or None."""
  places = pa.array([''] * len(given))
  batch = stages.batch(places, [stages.Document(x) for x in given])
  make = exact.make().keys
  assert make is not None
  found = make(batch)
  by_row = {
    row: (high, low)
    for row, high, low in zip(
      *(x.to_pylist() for x in found.columns), strict=True
    )
  }
  return [by_row.get(row) for row in range(len(given))]


def test_case_marks_and_line_breaks_do_not_count():
  a, b, c, d = keys('One, two: 三', 'one\nTWO 三!', 'one two 四', 'one two')
  assert a == b
  assert len({a, c, d}) == 3


def test_texts_without_words_are_compared_by_what_they_have():
  a, b, c = keys('!!', '!?', '!!')
  assert a == c != b


def test_long_words_are_compared_to_their_ends(monkeypatch):
  monkeypatch.setattr(texts, 'BLOCK', 4)
  assert texts.Text('threa').hashes == texts.Text('threb').hashes
  a, b, c = keys('threa', 'threb', 'Threa.')
  assert a == c != b
