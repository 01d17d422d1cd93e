"""OpenAI's chat interface, for a run that was tuned by a form.

The messages of a request are the turns of a conversation, which the form of the
run makes a prompt of; the answer is the assistant's next turn.
"""

from collections.abc import Sequence
from typing import Any

from lm.inference import detokenizer, engine, http_server, openai_api

MOST_MESSAGES = 1024  # each is encoded before the length is known
_KNOWN = (
  'model',
  'messages',
  'max_completion_tokens',
  'max_tokens',
  'temperature',
  'top_p',
  'n',
  'stop',
  'seed',
  'stream',
  'stream_options',
  'logprobs',
  'top_logprobs',
)
# Values that change nothing.
_NEUTRAL = {
  'modalities': ['text'],
  'parallel_tool_calls': True,
  'response_format': {'type': 'text'},
  'tool_choice': 'none',
  'tools': [],
}
_ROLES = {
  'assistant': 'assistant',
  'developer': 'system',  # OpenAI's newer word
  'system': 'system',
  'user': 'user',
}


def parse(
  body: bytes,
  *,
  model: str,
  run: engine.Run,
  limits: openai_api.Limits,
  capacity: int,
) -> openai_api.Request:
  """Checks a request, and makes a prompt of its messages.

  Args:
    body: JSON; a field that is null counts as left out.
    model: the name of the model that is served.
    run: the run that is served, which has a form.
    limits: see `openai_api.Limits`.
    capacity: positions of the model; an answer may take all that are left.

  Raises:
    http_server.Refused: the body is not an object of known fields that are in
      range.
  """
  assert run.form is not None
  fields = openai_api.read_fields(body, _KNOWN, _NEUTRAL)
  if 'max_completion_tokens' in fields:
    if 'max_tokens' in fields:
      raise http_server.Refused('max_tokens: give max_completion_tokens alone')
    fields['max_tokens'] = fields.pop('max_completion_tokens')
  try:
    ids = run.form(_turns(fields.get('messages')))
  except ValueError as e:
    raise openai_api.unreadable('messages', e) from e
  openai_api.check_size(ids, limits)
  top = openai_api.number(fields, 'top_logprobs', 0, engine.MOST_LOGPROBS, None)
  asked = openai_api.flag(fields, 'logprobs')
  if top is not None and not asked:
    raise http_server.Refused('top_logprobs: needs logprobs: true')
  room = capacity - len(ids) - 1  # beside bos
  return openai_api.request(
    {key: x for key, x in fields.items() if key != 'logprobs'},
    [(run.tokenizer.decode(ids), ids)],
    (top or 0) if asked else None,
    model=model,
    limits=limits,
    max_tokens=max(1, min(limits.max_tokens, room)),
  )


def _turns(messages: Any) -> list[tuple[str, str]]:
  """Reads the messages: role and text of each turn, the last one a user's.

  Raises:
    http_server.Refused: they are no such list.
  """
  if not isinstance(messages, list) or not messages:
    raise http_server.Refused('messages: must be a list of one at least')
  if len(messages) > MOST_MESSAGES:
    raise http_server.Refused(
      f'messages: more than {MOST_MESSAGES}; leave the oldest out',
      code='context_length_exceeded',
    )
  turns = []
  for n, message in enumerate(messages):
    role = message.get('role') if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
      raise http_server.Refused(
        f'messages[{n}]: must have one of the roles {", ".join(_ROLES)}'
      )
    turns.append((_ROLES[role], _text(message.get('content'), n)))
  if turns[-1][0] != 'user':
    raise http_server.Refused('messages: the last one must be of a user')
  return turns


def _text(content: Any, n: int) -> str:
  """Reads the content of a message: a text, or a list of texts."""
  if isinstance(content, str):
    return content
  parts = content if isinstance(content, list) else [None]
  texts = []
  for part in parts:
    match part:
      case {'type': 'text', 'text': str(text)}:
        texts.append(text)
      case _:
        raise http_server.Refused(f'messages[{n}]: the content must be text')
  return ''.join(texts)


def choice(
  request: openai_api.Request,
  event: int | None,
  pieces: Sequence[openai_api.Piece],
) -> dict[str, Any]:
  """Spells a choice; see `openai_api.Spelling`."""
  message: dict[str, Any] = {'content': ''.join(x.text for x in pieces)}
  if not event:  # the whole, or the first event
    message = {'role': 'assistant', **message}
  tokens = [token for piece in pieces for token in piece.tokens]
  logprobs = None
  if request.logprobs is not None:
    logprobs = {'content': [_logprob(x) for x in tokens], 'refusal': None}
  return {
    'index': pieces[-1].row,
    'message' if event is None else 'delta': message,
    'logprobs': logprobs,
    'finish_reason': pieces[-1].finish_reason,
  }


def _logprob(token: detokenizer.Token) -> dict[str, Any]:
  def spelled(name: str, logprob: float | None) -> dict[str, Any]:
    utf8 = token.utf8.get(name)
    known = None if utf8 is None else [*utf8]
    return {'token': name, 'logprob': logprob, 'bytes': known}

  best = [spelled(*pair) for pair in token.top_logprobs.items()]
  return {**spelled(token.name, token.logprob), 'top_logprobs': best}


SPELLING = openai_api.Spelling(
  'chatcmpl', 'chat.completion', 'chat.completion.chunk', choice
)
