"""Readers of conversations and preferences in the forms that most tools write.

See `lm.data.finetuning.readers` for what a reader is, and `records.rows` for
the files: JSON lines or one JSON array, packed or not.
"""

import collections
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lm.data import names
from lm.data.finetuning import fields
from lm.data.finetuning import records as record_lib

# Names that tools give to the roles of `records.Chat`.
ROLES = MappingProxyType(
  {
    'system': 'system',
    'developer': 'system',
    'user': 'user',
    'human': 'user',
    'assistant': 'assistant',
    'gpt': 'assistant',
    'chatgpt': 'assistant',
    'bot': 'assistant',
    'model': 'assistant',
  }
)
_UNANSWERED = 'messages behind the last answer'
_NO_ANSWER = 'conversations without an answer'


def messages(
  *,
  path: str,
  messages: str = 'messages',
  role: str = 'role',
  content: str = 'content',
  system: str = 'system',
  roles: Mapping[str, str] = ROLES,
  name: str = 'messages',
) -> record_lib.Records:
  """Reads conversations, whose messages have a role and a content.

  This is the form of OpenAI's API and of most data sets on Hugging Face. Only
  messages up to the last answer are read; what is behind it is counted, and so
  are conversations without an answer.

  Args:
    path: of a file, or a pattern; see `records.rows`.
    messages: the field of the list of messages.
    role: the field of a message with its role.
    content: the field of a message with its text: a string, or a list of parts
      of the type 'text'.
    system: the field of a text that comes before the messages; it may be
      missing.
    roles: 'system', 'user' or 'assistant' for each role of the file.
    name: of the data set, for its card.

  Raises:
    ValueError: the file is missing or damaged, lacks a field, or has a role
      that `roles` does not name.
  """
  counts: collections.Counter[str] = collections.Counter()

  def record(row, n):
    turns = _turns(fields.entries(row, messages), role, content, roles)
    before = fields.text(row, system, '')
    if before:
      turns.insert(0, ('system', before))
    last = max(
      (i for i, turn in enumerate(turns) if turn[0] == 'assistant'), default=0
    )
    if not last:  # an answer to nothing is none
      return record_lib.LeftOut(_NO_ANSWER)
    counts[_UNANSWERED] += len(turns) - last - 1
    return record_lib.Chat(f'{name}/{n}', tuple(turns[: last + 1]))

  rows = record_lib.rows(path, name)
  result = record_lib.collect(name, path, 'chrf', rows, record)
  return result._replace(counts={**result.counts, **counts})


def sharegpt(*, path: str, name: str = 'sharegpt') -> record_lib.Records:
  """Reads conversations whose messages have the fields `from` and `value`.

  This is the form of ShareGPT, which FastChat and LLaMA-Factory read. See
  `messages`.
  """
  return messages(
    path=path,
    messages='conversations',
    role='from',
    content='value',
    name=name,
  )


def comparisons(
  *,
  path: str,
  prompt: str = 'prompt',
  chosen: str = 'chosen',
  rejected: str = 'rejected',
  name: str = 'comparisons',
) -> record_lib.Records:
  """Reads questions with a better and a worse answer, in the form of TRL.

  A question and its answers are strings, or lists of messages as in `messages`.
  Where the lists of both answers begin with the conversation itself, it is the
  question, and `prompt` is not read. Several messages of a question are joined
  by empty lines.

  Args:
    path: of a file, or a pattern; see `records.rows`.
    prompt: the field of the question.
    chosen: the field of the better answer.
    rejected: the field of the worse answer.
    name: of the data set, for its card.

  Raises:
    ValueError: the file is missing or damaged, lacks a field, or the two
      answers are to different conversations.
  """

  def record(row, n):
    (before, better), (other, worse) = (
      _texts(row, key) for key in (chosen, rejected)
    )
    if before != other:
      raise fields.FieldError(
        f'{chosen} and {rejected} do not continue the same messages'
      )
    if not before:
      earlier, last = _texts(row, prompt)
      before = [*earlier, last]
    question = '\n\n'.join(before)
    return record_lib.Preference(f'{name}/{n}', question, better, worse)

  rows = record_lib.rows(path, name, (prompt, chosen, rejected))
  return record_lib.collect(name, path, 'accuracy', rows, record)


def _texts(row: Any, key: str) -> tuple[list[str], str]:
  """Reads a string, or a list of messages: the texts before, and the last one.

  Raises:
    fields.FieldError: the field holds something else.
  """
  if not isinstance(fields.value(row, key), list):
    return [], fields.text(row, key)
  turns = _turns(fields.entries(row, key), 'role', 'content', ROLES)
  if not turns:
    raise fields.FieldError(
      f'{key} is an empty list, and messages belong there'
    )
  *before, last = [text for _, text in turns]
  return before, last


def _turns(
  listed: Sequence[Any], role: str, content: str, roles: Mapping[str, str]
) -> list[tuple[str, str]]:
  """Reads messages: the role and the text of each.

  Raises:
    fields.FieldError: a message lacks a field or has an unknown role.
  """
  turns = []
  for message in listed:
    name = fields.text(message, role)
    if name not in roles:
      raise fields.FieldError(
        f'{role} is {names.short(name)!r}, which roles does not name'
      )
    turns.append((roles[name], _content(message, content)))
  return turns


def _content(message: Any, key: str) -> str:
  """Reads the text of a message, which may be parts of the type 'text'.

  Raises:
    fields.FieldError: it is no text.
  """
  if not isinstance(fields.value(message, key), list):
    return fields.text(message, key)
  parts = []
  for part in fields.entries(message, key):
    kind = fields.text(part, 'type')
    if kind != 'text':
      raise fields.FieldError(
        f'{key} has a part of the type {names.short(kind)!r}, which is no text'
      )
    parts.append(fields.text(part, 'text'))
  return ''.join(parts)
