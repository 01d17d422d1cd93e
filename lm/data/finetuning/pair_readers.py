"""Readers of data sets from which a model learns to write, or to prefer.

They read pairs, conversations and preferences. See `lm.data.finetuning.readers`
for what a reader is.
"""

from collections.abc import Callable
from typing import Any

from lm.data import names
from lm.data.finetuning import fields, record_files
from lm.data.finetuning import records as record_lib


def parallel(
  *, path: str, target_path: str, name: str = 'parallel'
) -> record_lib.Records:
  """Reads pairs from two files, whose lines correspond.

  Args:
    path: of the sources.
    target_path: of their targets.
    name: of the data set, for its card.

  Raises:
    ValueError: a file is missing or damaged, or one is longer.
  """
  both = [record_files.lines(file) for file in (path, target_path)]
  if len(both[0]) != len(both[1]):
    raise ValueError(
      f'task {names.short(path)}: {len(both[0])} lines, and '
      f'{names.short(target_path)} has {len(both[1])}: give files whose lines '
      'correspond'
    )

  def record(row, n):
    return record_lib.Pair(f'{name}/{n}', row[0].strip(), (row[1].strip(),))

  rows = list(zip(*both, strict=True))
  result = record_lib.collect(name, path, 'bleu', rows, record)
  sha256 = record_files.sha256_of([path, target_path])
  return result._replace(card=result.card._replace(sha256=sha256))


def multi30k(*, path: str, target_path: str) -> record_lib.Records:
  """Reads captions in two languages; Elliott et al. 2016, arXiv 1605.00459.

  See `parallel`.
  """
  return parallel(path=path, target_path=target_path, name='multi30k')


def tatoeba(*, path: str) -> record_lib.Records:
  """Reads sentences and their translations: the first two columns of a table.

  Raises:
    ValueError: the file is missing or damaged, or a line has only one column.
  """
  rows = [line.split('\t') for line in record_files.lines(path) if line.strip()]

  def record(row, n):
    return record_lib.Pair(
      f'tatoeba/{n}', fields.text(row, 0), (fields.text(row, 1),)
    )

  return record_lib.collect('tatoeba', path, 'chrf', rows, record)


def pairs(
  *, path: str, source: str, target: str, name: str = 'pairs'
) -> record_lib.Records:
  """Reads pairs from any table or JSON.

  Args:
    path: of a file, or a pattern; see `records.rows`.
    source: the field of the source: a string, or a list of strings, which are
      joined by spaces.
    target: the field of the target: a string, or a list of strings, of which
      each is right.
    name: of the data set, for its card.

  Raises:
    ValueError: the file is missing or damaged, or lacks a field.
  """

  def record(row, n):
    text = ' '.join(fields.texts(row, source))
    return record_lib.Pair(f'{name}/{n}', text, fields.texts(row, target))

  rows = record_lib.rows(path, name, (source, target))
  return record_lib.collect(name, path, 'rougeL', rows, record)


def scitldr(*, path: str) -> record_lib.Records:
  """Reads abstracts and their summaries; Cachola et al. 2020.

  Reference: arXiv 2004.15011. See `pairs`.
  """
  return pairs(path=path, source='source', target='target', name='scitldr')


def dialogsum(*, path: str) -> record_lib.Records:
  """Reads conversations and their summaries, three each in the test file.

  Reference: Chen et al. 2021, arXiv 2105.06762. See `texts`.
  """

  def record(row, n):
    keys = sorted(key for key in row if key.startswith('summary'))
    if not keys:
      fields.text(row, 'summary')  # says which fields there are
    return record_lib.Pair(
      f'dialogsum/{fields.label(row, "fname")}',
      fields.text(row, 'dialogue'),
      tuple(fields.text(row, key) for key in keys),
    )

  rows = record_lib.rows(path, 'dialogsum')
  return record_lib.collect('dialogsum', path, 'rougeL', rows, record)


def alpaca(*, path: str, limit: int | None = None) -> record_lib.Records:
  """Reads instructions and answers; an empty line parts instruction and input.

  An input may be empty or missing.

  Args:
    path: of a file, or a pattern; see `records.rows`.
    limit: number of records, from the first on; below 0, all but the last ones.
      None reads all.

  Reference: Taori et al. 2023, Stanford Alpaca. See `pairs`.
  """

  def record(row, n):
    parts = fields.text(row, 'instruction'), fields.text(row, 'input', '')
    source = '\n\n'.join(filter(None, parts))
    return record_lib.Pair(f'alpaca/{n}', source, (fields.text(row, 'output'),))

  rows = list(record_lib.rows(path, 'alpaca'))
  return record_lib.collect('alpaca', path, 'rougeL', rows[:limit], record)


def preferences(*, path: str) -> record_lib.Records:
  """Reads questions with a better and a worse answer.

  The form is that of LLaMA-Factory's demo data. Earlier turns of a conversation
  are a part of the question, joined by empty lines. See `texts`.
  """

  def record(row, n):
    turns = fields.entries(row, 'conversations')
    question = '\n\n'.join(fields.text(x, 'value') for x in turns)
    answers = (fields.text(row, f'{x}.value') for x in ('chosen', 'rejected'))
    return record_lib.Preference(f'preferences/{n}', question, *answers)

  rows = record_lib.rows(path, 'preferences')
  return record_lib.collect('preferences', path, 'accuracy', rows, record)


def kdconv(*, path: str) -> record_lib.Records:
  """Reads Chinese conversations about films, music and travel.

  Two speakers take turns, and the second one is the assistant. See `texts`.

  Reference: Zhou et al. 2020, arXiv 2004.04100.
  """

  return _talks('kdconv', path, 'message', lambda row, n: str(n))


def crosswoz(*, path: str) -> record_lib.Records:
  """Reads Chinese conversations that book a trip. See `kdconv`.

  Reference: Zhu et al. 2020, arXiv 2002.11893.
  """

  return _talks(
    'crosswoz', path, 'content', lambda row, n: fields.label(row, 'id')
  )


def _talks(
  name: str, path: str, field: str, identify: Callable[[Any, int], str]
) -> record_lib.Records:
  """Reads conversations in which user and assistant take turns.

  A message after the last one of the assistant has no answer: it is left out.

  Args:
    name: of the data set.
    path: of its file.
    field: of a message, with its text.
    identify: `(row, number) -> name of the record`.
  """
  counts = {'messages without an answer': 0}

  def record(row, n):
    messages = [fields.text(x, field) for x in fields.entries(row, 'messages')]
    unanswered = len(messages) % 2
    messages = messages[: len(messages) - unanswered]
    if not messages:
      raise fields.FieldError('there is no answer in messages')
    counts['messages without an answer'] += unanswered
    roles = ('user', 'assistant') * (len(messages) // 2)
    return record_lib.Chat(
      f'{name}/{identify(row, n)}', tuple(zip(roles, messages, strict=True))
    )

  rows = record_lib.rows(path, name)
  result = record_lib.collect(name, path, 'chrf', rows, record)
  return result._replace(counts=counts)
