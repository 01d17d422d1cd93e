"""Stages as functions of one document."""

import pyarrow as pa

from lm.corpus import stages

ROWS = [
  stages.Document('a', 'en', changes=(('x.y', 2),)),
  stages.Document('b', reason='other.rule', value=0.5),
  stages.Document('c', counts=(('x.z', 1), ('x.y', 3))),
]
GIVEN = stages.batch(pa.array(['line 1', 'line 2', 'line 3']), ROWS)


def test_documents_of_a_batch_are_those_it_was_made_of():
  assert stages.documents(GIVEN) == ROWS
  empty = stages.batch(pa.array([], pa.string()), [])
  assert stages.documents(empty) == []
  assert empty.schema == stages.DOCUMENTS


def test_each_changes_what_is_not_dropped_and_keeps_the_rest():
  def change(x):
    if x.text == 'a':
      return x
    return x._replace(reason='mine', value=1.0, counts=(('mine', 1),))

  found = stages.each(change)(GIVEN)
  assert found.schema == stages.DOCUMENTS
  assert found.column('place') == GIVEN.column('place')
  assert stages.documents(found) == [ROWS[0], ROWS[1], change(ROWS[2])]
  assert stages.each(lambda x: x)(GIVEN) == GIVEN
  texts = stages.each(lambda x: x._replace(text=f'{x.text}!'))(GIVEN)
  assert texts.column('text').to_pylist() == ['a!', 'b', 'c!']


def test_each_takes_an_empty_batch():
  empty = stages.batch(pa.array([], pa.string()), [])
  assert stages.each(lambda x: x)(empty) == empty
