"""OpenAI's completions interface: checks a request, and spells the answer.

A prompt is a string, a list of ids, or a list of either.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import secrets
import time
from types import MappingProxyType
from typing import Any, NamedTuple

from lm import config
from lm.inference import detokenizer, engine, generate, http_server
from lm.inference import prompts as prompts_lib

MOST_STOPS = 4  # as many as OpenAI's service takes
STOP_CHARACTERS = 256  # each token is searched for all of them
# Fields that never change a text: who asks, what is billed, what is kept.
_IDLE = frozenset(
  (
    'metadata',
    'prompt_cache_key',
    'prompt_cache_retention',
    'safety_identifier',
    'service_tier',
    'store',
    'user',
  )
)
# Fields that some clients always send, with the values that change nothing.
_NEUTRAL = {
  'frequency_penalty': 0,
  'logit_bias': {},
  'presence_penalty': 0,
  'suffix': '',
}


class Limits(NamedTuple):
  """Limits on one request, so that the requests behind it are served too.

  Attributes:
    max_tokens: new tokens of a text; a model may have room for fewer.
    prompt_tokens: of a prompt; the memory of its attention grows as the square.
    rows: prompts times n; each has a cache.
    waiting: requests that may wait for the device; the next one is refused with
      status 429.
    seconds: time for an answer, with waiting and compiling.
  """

  max_tokens: int = 4096
  prompt_tokens: int = 8192
  rows: int = 16
  waiting: int = 8
  seconds: float = 300.0

  def check(self) -> 'Limits':
    """Returns itself, if all limits are in range.

    Raises:
      config.ConfigError: a limit is out of range.
    """
    for name, value in self._asdict().items():
      if not 1 <= value <= 2**31 - 1:
        raise config.ConfigError(f'--{name}={value}: must be 1 or more')
    most = http_server.CONNECTIONS // 2
    if self.waiting > most:
      raise config.ConfigError(
        f'--waiting={self.waiting}: at most {most}, half of the connections'
      )
    return self


class Request(NamedTuple):
  """A checked request: the fields of its JSON, by their names in the interface.

  Attributes:
    prompt: each prompt as its text and its ids.
    stream_options: its include_usage.
  """

  model: str
  prompt: list[tuple[str, list[int]]]
  max_tokens: int
  temperature: float
  top_p: float
  n: int
  stop: list[str]
  seed: int
  stream: bool
  stream_options: bool
  logprobs: int | None
  echo: bool


def parse(
  body: bytes, *, model: str, run: engine.Run, limits: Limits
) -> Request:
  """Checks a request.

  Args:
    body: JSON; a field that is null counts as left out.
    model: the name of the model that is served.
    run: the run that is served.
    limits: see `Limits`.

  Raises:
    http_server.Refused: the body is not an object of known fields that are in
      range.
  """
  fields = read_fields(body, (*Request._fields, 'best_of'))
  prompt = _prompts(fields.get('prompt'), run, limits)
  logprobs = number(fields, 'logprobs', 0, engine.MOST_LOGPROBS, None)
  # The best n of n texts are all of them.
  if fields.get('best_of', 1) not in (1, fields.get('n', 1)):
    raise http_server.Refused('best_of: must be 1 or n: texts are not ranked')
  return request(fields, prompt, logprobs, model=model, limits=limits)


def request(
  fields: Mapping[str, Any],
  prompt: list[tuple[str, list[int]]],
  logprobs: int | None,
  *,
  model: str,
  limits: Limits,
  max_tokens: int = 16,
) -> Request:
  """Checks the fields that requests for texts and for chats share.

  Args:
    fields: of the request.
    prompt: each prompt as its text and its ids.
    logprobs: see `engine.Settings`.
    model: the name of the model that is served.
    limits: see `Limits`.
    max_tokens: where the request does not say.

  Raises:
    http_server.Refused: one is out of range.
  """
  check_model(fields, model)
  n = number(fields, 'n', 1, limits.rows, 1)
  if len(prompt) * n > limits.rows:
    raise http_server.Refused(
      f'n: prompts times n must be at most {limits.rows}'
    )
  options = fields.get('stream_options', {})
  known = {'include_usage', 'include_obfuscation'}
  if not isinstance(options, dict) or options.keys() - known:
    raise http_server.Refused(
      'stream_options: must be an object with include_usage alone'
    )
  return Request(
    model=model,
    prompt=prompt,
    max_tokens=number(fields, 'max_tokens', 0, limits.max_tokens, max_tokens),
    temperature=_drawing(fields, 'temperature', 1.0),
    top_p=_drawing(fields, 'top_p', 1.0),
    n=n,
    stop=_stops(fields),
    seed=_drawing(fields, 'seed', secrets.randbits(32)),
    stream=flag(fields, 'stream'),
    stream_options=flag(options, 'include_usage'),
    logprobs=logprobs,
    echo=flag(fields, 'echo'),
  )


def check_model(fields: Mapping[str, Any], model: str) -> None:
  """Refuses a request for another model than the one that is served.

  Raises:
    http_server.Refused: it is for another one.
  """
  if fields.get('model', model) != model:
    raise http_server.Refused(
      f'model: only {model} is served', 404, 'model_not_found'
    )


def model_routes(name: str, **more: Any) -> dict[str, http_server.Route]:
  """Lists the paths that tell which model is served, and that it is.

  Args:
    name: of the model.
    **more: fields of its description.
  """
  model = {
    'id': name,
    'object': 'model',
    'created': int(time.time()),
    'owned_by': 'lm',
    **more,
  }

  def route(value: Any, *, public: bool = False) -> http_server.Route:
    return http_server.Route(
      'GET', lambda exchange: exchange.json(value), public
    )

  return {
    '/healthz': route({'status': 'ok'}, public=True),
    '/v1/models': route({'object': 'list', 'data': [model]}),
    f'/v1/models/{name}': route(model),
  }


class Piece(NamedTuple):
  """A part of one choice of an answer.

  Attributes:
    row: the number of the choice.
    text: its new text.
    tokens: its new tokens.
    offset: where the text of these tokens begins, in the text of the choice.
    finish_reason: why the choice ends here; None while it goes on.
  """

  row: int
  text: str
  tokens: list[detokenizer.Token]
  offset: int
  finish_reason: str | None


class Spelling(NamedTuple):
  """How answers of one kind are spelled.

  Attributes:
    prefix: of their names.
    whole, part: what the interface calls an answer, and an event of a stream.
    choice: spells a choice from its pieces in order, one at least; None for the
      second argument spells the whole, a number the event of this number.
  """

  prefix: str
  whole: str
  part: str
  choice: Callable[[Request, int | None, Sequence[Piece]], dict[str, Any]]


def choice(
  request: Request, event: int | None, pieces: Sequence[Piece]
) -> dict[str, Any]:
  """Spells a choice, as a whole or a part of it alike; see `Spelling`."""
  del event
  tokens = [(p.offset, token) for p in pieces for token in p.tokens]
  logprobs = {
    'tokens': [token.name for _, token in tokens],
    'token_logprobs': [token.logprob for _, token in tokens],
    'top_logprobs': [token.top_logprobs or None for _, token in tokens],
    'text_offset': [offset + token.offset for offset, token in tokens],
  }
  return {
    'index': pieces[-1].row,
    'text': ''.join(piece.text for piece in pieces),
    'logprobs': None if request.logprobs is None else logprobs,
    'finish_reason': pieces[-1].finish_reason,
  }


SPELLING = Spelling('cmpl', 'text_completion', 'text_completion', choice)


def read_fields(
  body: bytes,
  known: Sequence[str],
  neutral: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
  """Reads the fields of a request that are known and not null.

  Args:
    body: JSON.
    known: names of fields.
    neutral: more values, by field, that change nothing.

  Raises:
    http_server.Refused: the body is not an object of known fields.
  """

  def constant(text: str):
    raise ValueError(text)  # NaN and Infinity, which are no JSON

  try:
    fields = json.loads(body, parse_constant=constant)
  except (ValueError, RecursionError) as e:
    raise http_server.Refused('body: not JSON; send one object') from e
  if not isinstance(fields, dict):
    raise http_server.Refused('body: not a JSON object; send {"prompt": ...}')
  for name, value in fields.items():
    if name in _IDLE:
      continue
    usual = {**_NEUTRAL, **neutral}
    if name in usual and value in (None, usual[name]):
      continue
    if name not in known:
      raise http_server.Refused(
        f'{name[:40]}: not known here; known: {", ".join(known)}'
      )
  return {name: x for name, x in fields.items() if x is not None}


def number(
  fields: Mapping[str, Any],
  name: str,
  low: float,
  high: float,
  default: float | None,
  types: tuple[type, ...] = (int,),
) -> Any:
  """Reads a number from `low` to `high`.

  Raises:
    http_server.Refused: it is none.
  """
  if name not in fields:
    return default
  value = fields[name]
  # `type`, because a bool is an int; `not`, because nan compares as false.
  if type(value) not in types or not low <= value <= high:
    number = 'a number' if float in types else 'a whole number'
    raise http_server.Refused(f'{name}: must be {number} from {low} to {high}')
  return value


def _drawing(fields: Mapping[str, Any], name: str, default: float) -> Any:
  """Reads a setting of drawing, see `generate.RANGES`."""
  types = (int,) if name in generate.WHOLE else (int, float)
  low, high = generate.RANGES[name]
  return number(fields, name, low, high, default, types)


def flag(fields: Mapping[str, Any], name: str) -> bool:
  value = fields.get(name, False)
  if type(value) is not bool:
    raise http_server.Refused(f'{name}: must be true or false')
  return value


def _stops(fields: Mapping[str, Any]) -> list[str]:
  """Reads the stop strings: one, or a list."""
  stop = fields.get('stop', [])
  stop = [stop] if isinstance(stop, str) else stop
  if (
    not isinstance(stop, list)
    or len(stop) > MOST_STOPS
    or not all(
      isinstance(word, str) and 0 < len(word) <= STOP_CHARACTERS
      for word in stop
    )
  ):
    raise http_server.Refused(
      f'stop: must be at most {MOST_STOPS} strings of 1 to {STOP_CHARACTERS} '
      'characters'
    )
  return stop


def _prompts(
  value: Any, run: engine.Run, limits: Limits
) -> list[tuple[str, list[int]]]:
  """Reads the prompts: a text, a list of ids, or a list of either."""
  size, both = run.tokenizer.size, (str, list)
  many = value if isinstance(value, list) else [value]
  if many is value and many and all(type(x) is int for x in many):
    many = [value]
  if not many or not all(isinstance(x, both) for x in many):
    raise http_server.Refused(
      "prompt: must be a string, ids, or a list of either; '' begins a document"
    )
  prompts = []
  for one in many:
    try:
      ids = run.read(one) if isinstance(one, str) else one
    except ValueError as e:  # half of a surrogate pair, or too long
      raise unreadable('prompt', e) from e
    if not all(type(i) is int and 0 <= i < size for i in ids):
      raise http_server.Refused(f'prompt: ids must be from 0 to {size - 1}')
    check_size(ids, limits)
    # Echoed is what the model reads, which a form may have put around a text.
    plain = isinstance(one, str) and run.form is None
    prompts.append((one if plain else run.tokenizer.decode(ids), ids))
  return prompts


def unreadable(name: str, error: ValueError) -> http_server.Refused:
  """Makes the answer to a field of which no prompt can be made.

  Args:
    name: of the field.
    error: of `engine.Run.read` or `engine.Run.form`.
  """
  too_long = isinstance(error, prompts_lib.TooLong)
  code = 'context_length_exceeded' if too_long else 'bad_request'
  return http_server.Refused(f'{name}: {error}', code=code)


def check_size(ids: Sequence[int], limits: Limits) -> None:
  """Refuses a prompt that is too long.

  Raises:
    http_server.Refused: it is.
  """
  if len(ids) > limits.prompt_tokens:
    raise http_server.Refused(
      f'prompt: more than {limits.prompt_tokens} tokens; shorten it',
      code='context_length_exceeded',
    )
