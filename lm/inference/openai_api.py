"""What a client may ask of `lm.serve`: JSON in, checked settings out.

The interface is that of OpenAI's completions; a prompt is a string, ids, or a
list of either.
"""

import json
import secrets
from typing import Any, NamedTuple

from lm import config
from lm.inference import engine, http_server

STOPS = 4  # as the service that the interface comes from
STOP_CHARACTERS = 256  # each token looks for all of them
# Fields that other clients send though they ask for nothing by them.
_NEUTRAL = {
  'best_of': 1,
  'frequency_penalty': 0,
  'logit_bias': {},
  'presence_penalty': 0,
  'suffix': '',
}


class Limits(NamedTuple):
  """What one request may take from those that wait behind it.

  Attributes:
    max_tokens: new ones of a text; a model may have room for fewer.
    prompt_tokens: of a prompt, whose attention takes memory as its square.
    rows: prompts times n, a cache each.
    waiting: requests behind the one that the device works on; a further one is
      told to come again.
    seconds: for waiting, compiling and drawing together.
  """

  max_tokens: int = 4096
  prompt_tokens: int = 8192
  rows: int = 16
  waiting: int = 8
  seconds: float = 300.0

  def check(self) -> 'Limits':
    """Returns itself.

    Raises:
      config.ConfigError: one is out of range.
    """
    for name, value in self._asdict().items():
      if not 1 <= value <= 2**31 - 1:
        raise config.ConfigError(f'--{name}={value}: must be 1 or more')
    if self.waiting > http_server.CONNECTIONS // 2:
      raise config.ConfigError(
        f'--waiting={self.waiting}: at most {http_server.CONNECTIONS // 2}, half '
        'of the connections'
      )
    return self


class Request(NamedTuple):
  """What a client asks for: the fields of its JSON, checked.

  Attributes:
    prompt: each as text and ids.
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
    model: the name of what is served.
    run: of that.
    limits: what it may ask for.

  Raises:
    endpoint.Refused: it is no object of known fields in their ranges.
  """

  def constant(text):
    raise ValueError(text)

  try:
    given = json.loads(body, parse_constant=constant)
  except (ValueError, RecursionError) as e:
    raise http_server.Refused('body: not JSON; send one object') from e
  if not isinstance(given, dict):
    raise http_server.Refused('body: not a JSON object; send {"prompt": ...}')
  for name, value in given.items():
    if name in _NEUTRAL and value in (None, _NEUTRAL[name]):
      continue
    if name not in Request._fields:
      raise http_server.Refused(
        f'{name[:40]}: not known here; known: {", ".join(Request._fields)}'
      )
  given = {name: x for name, x in given.items() if x is not None}

  def number(name, low, high, default, kinds: tuple[type, ...] = (int,)) -> Any:
    if name not in given:
      return default
    # bool is an int, and what is compared with nan is false.
    if type(given[name]) not in kinds or not low <= given[name] <= high:
      whole = 'a number' if float in kinds else 'a whole number'
      raise http_server.Refused(f'{name}: must be {whole} from {low} to {high}')
    return given[name]

  def flag(name: str, tree: dict[str, Any] = given) -> bool:
    if type(tree.get(name, False)) is not bool:
      raise http_server.Refused(f'{name}: must be true or false')
    return tree.get(name, False)

  if given.get('model', model) != model:
    raise http_server.Refused(
      f'model: only {model} is served', 404, 'model_not_found'
    )
  prompt = _prompts(given.get('prompt'), run, limits)
  n = number('n', 1, limits.rows, 1)
  if len(prompt) * n > limits.rows:
    raise http_server.Refused(
      f'n: prompts times n must be at most {limits.rows}'
    )
  stop = given.get('stop', [])
  stop = [stop] if isinstance(stop, str) else stop
  if (
    not isinstance(stop, list)
    or len(stop) > STOPS
    or not all(
      isinstance(word, str) and 0 < len(word) <= STOP_CHARACTERS
      for word in stop
    )
  ):
    raise http_server.Refused(
      f'stop: must be at most {STOPS} strings of 1 to {STOP_CHARACTERS} '
      'characters'
    )
  options = given.get('stream_options', {})
  if not isinstance(options, dict) or options.keys() - {'include_usage'}:
    raise http_server.Refused(
      'stream_options: must be an object with nothing but include_usage'
    )
  both = (int, float)
  return Request(
    model=model,
    prompt=prompt,
    max_tokens=number('max_tokens', 0, limits.max_tokens, 16),
    temperature=number('temperature', 0, 100, 1.0, both),
    top_p=number('top_p', 0, 1, 1.0, both),
    n=n,
    stop=stop,
    seed=number('seed', 0, 2**32 - 1, secrets.randbits(32)),
    stream=flag('stream'),
    stream_options=flag('include_usage', options),
    logprobs=number('logprobs', 0, engine.MOST_TOLD, None),
    echo=flag('echo'),
  )


def _prompts(
  given: Any, run: engine.Run, limits: Limits
) -> list[tuple[str, list[int]]]:
  """Reads the field: a text, ids, or a list of either."""
  size, both = run.tokenizer.size, (str, list)
  many = given if isinstance(given, list) else [given]
  if many is given and many and all(type(x) is int for x in many):
    many = [given]
  if not many or not all(isinstance(x, both) for x in many):
    raise http_server.Refused(
      "prompt: must be a string, ids, or a list of either; '' begins a document"
    )
  prompts = []
  for one in many:
    try:
      ids = run.tokenizer.encode(one) if isinstance(one, str) else one
    except ValueError as e:  # half of a surrogate pair
      raise http_server.Refused(f'prompt: {e}') from e
    if not all(type(i) is int and 0 <= i < size for i in ids):
      raise http_server.Refused(f'prompt: ids must be from 0 to {size - 1}')
    if len(ids) > limits.prompt_tokens:
      raise http_server.Refused(
        f'prompt: more than {limits.prompt_tokens} tokens; shorten it',
        code='context_length_exceeded',
      )
    text = one if isinstance(one, str) else run.tokenizer.decode(ids)
    prompts.append((text, ids))
  return prompts
