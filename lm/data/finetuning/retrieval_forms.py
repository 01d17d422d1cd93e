"""Forms of questions and what answers them: rows for `lm.models.heads:embed`.

See `lm.data.finetuning.forms` for what a form is.
"""

from collections.abc import Sequence
from typing import Any

from lm import types
from lm.data import objectives
from lm.data.finetuning import batching
from lm.data.finetuning import records as record_lib

ASKS, ANSWERS = 0, 1  # the sides of a record


def match(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  question: int = 32,
  asks: str = '',
  answers: str = '',
  ends: bool = True,
) -> batching.Form:
  """Makes rows of several texts, which do not see each other.

  A row is `bos question eos`, and then `bos text eos` for the text that answers
  it, and for one that does not where the record is a preference. Texts that are
  too long lose their end. The target is 0, the class of the right answer.

  Args:
    tokenizer: of the model.
    length: L, tokens a row.
    question: most tokens of a question, bos and eos included; the other texts
      share the rest of the row.
    asks, answers: stand before each question, and before each other text.
    ends: whether a text ends with eos; see `forms.classify`.

  Raises:
    ValueError: the question leaves no room for the other texts.
  """
  objectives.check_whole('question', question, 3)
  if question > length - 6:
    raise ValueError(f'question={question} leaves no room in length={length}')
  before = asks, answers

  def ids(texts: Sequence[str], side: int) -> list[list[int]]:
    return tokenizer.encode_batch([before[side] + text for text in texts])

  def cut(text: list[int], room: int) -> list[int]:
    end = [tokenizer.eos] if ends else []
    return [tokenizer.bos, *text[: room - 1 - len(end)], *end]

  def rows(records: Sequence[Any]) -> list[batching.Row]:
    parts = [sides(record) for record in records]
    first = ids([x[0] for x in parts], ASKS)
    rest = iter(ids([text for x in parts for text in x[1:]], ANSWERS))
    result = []
    for n, (own, part) in enumerate(zip(first, parts, strict=True)):
      found = [next(rest) for _ in part[1:]]
      start = cut(own, question)
      room = (length - len(start)) // len(found)
      texts = [start, *(cut(text, room) for text in found)]
      whole = sum(len(x) + 1 + ends for x in (own, *found))
      result.append(_row(n, texts, [0], whole - sum(map(len, texts))))
    return result

  def alone(texts: Sequence[str], side: int) -> list[batching.Row]:
    room = question if side == ASKS else length - question
    return [
      _row(n, [cut(text, room)], [], 0)
      for n, text in enumerate(ids(texts, side))
    ]

  return batching.Form(rows, 1, packs=False, alone=alone)


def _row(
  number: int, texts: list[list[int]], targets: list[int], cut: int
) -> batching.Row:
  """Makes a row of texts, each a document of its own."""
  tokens = [token for text in texts for token in text]
  return batching.Row(
    record=number,
    ids=tokens,
    token_types=[0] * len(tokens),
    targets=targets,
    weights=[1.0] * len(targets),
    places=[batching.NOT_SCORED] * len(tokens),
    documents=[n for n, text in enumerate(texts) for _ in text],
    cut=cut,
  )


def sides(record: Any) -> tuple[str, ...]:
  """Lists the question of a record, what answers it, and what does not.

  Raises:
    ValueError: it is no reading, pair or preference.
  """
  match record:
    case record_lib.Reading():
      return record.question, record.passage
    case record_lib.Preference():
      return record.source, record.chosen, record.rejected
    case record_lib.Pair():
      return record.source, record.targets[0]
  raise ValueError(
    f'{type(record).__name__} is no pair of texts: give a reader of questions'
    ' and passages, or of pairs'
  )
