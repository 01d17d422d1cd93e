"""Questions about passages, in the nested and flat forms of SQuAD."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from lm.data.finetuning import fields
from lm.data.finetuning import records as record_lib

_NO_ANSWER = 'questions whose answers are not in the passage'
_ABSENT = 'answers that are not in the passage'


class Row(NamedTuple):
  """A question, and the object that holds its passage."""

  passage: Any
  question: Any


def nested(data: Any) -> Iterator[Row]:
  """Yields the questions of articles and their paragraphs.

  Raises:
    fields.FieldError: the data has another form.
  """
  for article in fields.entries(data, 'data'):
    for paragraph in fields.entries(article, 'paragraphs'):
      for question in fields.entries(paragraph, 'qas'):
        yield Row(paragraph, question)


def reading(
  row: Row, name: str, counts: Counter[str], no_place: int | None = None
) -> record_lib.Reading | record_lib.LeftOut:
  """Makes a record of a question.

  An answer that is not at its stated place is searched in the passage: where it
  occurs nearest to that place. A question without answers stays without.

  Args:
    row: the question and its passage.
    name: of the data set.
    counts: to which answers are added that are not in their passage.
    no_place: the offset by which a data set marks an answer that is not in the
      passage; None: it marks none.

  Raises:
    fields.FieldError: a field is missing or of another type, an offset is
      negative, or a question that is said to be impossible has answers.
  """
  passage = fields.text(row.passage, 'context')
  stated = _answers(row.question)
  is_marked = fields.present(row.question, 'is_impossible')
  if is_marked and fields.truth(row.question, 'is_impossible') and stated:
    raise fields.FieldError('is_impossible is true, and there are answers')
  answers = []
  for start, text in stated:
    if start < 0 and start != no_place:
      raise fields.FieldError(
        f'answer_start is {start}, and a number from 0 on belongs there'
      )
    place = _nearest(passage, text, start)
    if place is not None:
      answers.append((place, text))
  if stated and not answers:
    return record_lib.LeftOut(_NO_ANSWER)
  counts[_ABSENT] += len(stated) - len(answers)
  return record_lib.Reading(
    f'{name}/{fields.label(row.question, "id")}',
    fields.text(row.question, 'question'),
    passage,
    tuple(answers),
  )


def _answers(question: Any) -> list[tuple[int, str]]:
  """Reads answers: objects in a list, or an object of two lists.

  Raises:
    fields.FieldError: they have another form.
  """
  found = fields.value(question, 'answers')
  if isinstance(found, dict):  # as in the data sets of Hugging Face
    texts, starts = (
      fields.entries(found, key) for key in ('text', 'answer_start')
    )
    if len(texts) != len(starts):
      raise fields.FieldError(
        f'answers have {len(texts)} texts and {len(starts)} offsets'
      )
    found = [
      {'text': text, 'answer_start': start}
      for text, start in zip(texts, starts, strict=True)
    ]
  elif not isinstance(found, list):
    found = fields.entries(question, 'answers')  # says what it is
  return [
    (fields.integer(answer, 'answer_start'), fields.text(answer, 'text'))
    for answer in found
  ]


def _nearest(passage: str, text: str, start: int) -> int | None:
  """Finds where a text occurs nearest to a place; the first of two as near."""
  if not text:
    return None
  # The occurrence that begins at or before the place, and the one behind it.
  before = passage.rfind(text, 0, max(start, 0) + len(text))
  after = passage.find(text, max(start, 0))
  places = [place for place in (before, after) if place >= 0]
  return min(places, key=lambda place: abs(place - start), default=None)
