"""Values of a config: their laws, typed overrides, JSON and differences."""

import ast
from collections.abc import Iterable, Mapping, Sequence
import difflib
import json
import math
import re
from typing import Any
import warnings

from ml_collections import config_dict

# A ConfigDict, or a dict, of such values. Its attributes are those that a file
# declares, which no type checker can know.
Config = Any

# Least and most of the top-level keys that every run has. Steps are int32 and
# seeds uint32 on the device: jax would wrap a larger one without a word.
_LIMITS = {
  'seed': (0, 2**32 - 1),
  'steps': (1, 2**31 - 1),
  'batch_size': (1, 2**31 - 1),
  'save_every': (1, 2**31 - 1),
  'microbatches': (1, 2**31 - 1),
  'log_every': (1, 2**31 - 1),
}
_LINE = 200  # characters of an error, so that it stays one line of a log
_TUPLE = '__tuple__'  # JSON knows no tuples: {'__tuple__': [1, 2]}


class ConfigError(ValueError):
  """A user's mistake in a config, flag or input: one line, exit code 2."""

  exit_code = 2

  def __init__(self, message: str):
    super().__init__(one_line(message))


def one_line(text: str) -> str:
  """Joins the lines of a message; of a long one, the middle is cut out.

  The place stands at its front and the fix at its end.
  """
  text = ' '.join(text.split())
  half = (_LINE - 5) // 2
  return text if len(text) <= _LINE else f'{text[:half]} ... {text[-half:]}'


def show(value: Any) -> str:
  """Prints a value in at most 40 characters, for an error line."""
  text = repr(value)
  return text if len(text) <= 40 else text[:37] + '...'


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """Ends an error line: the nearest known word, or else the known words."""
  names = sorted(known)
  near = difflib.get_close_matches(word, names, 1)
  last = word.rpartition('.')[2]  # 'peak' is near to 'optim.peak'
  near = near or [k for k in names if k.rpartition('.')[2] == last]
  if near:
    return f'; did you mean {near[0]}?'
  return f'; known: {", ".join(names)}' if names else '; there are none'


def is_tree(value: Any) -> bool:
  """Tells whether a value is a dict of further values."""
  return isinstance(value, config_dict.ConfigDict | Mapping)


def innermost(model: Any) -> tuple[str, Any]:
  """Finds the body of heads and of LoRA: its place in a config, and it."""
  where = 'model'
  while 'body' in model:
    where, model = f'{where}.body', model['body']
  return where, model


def plain(tree: Config) -> dict[str, Any]:
  """Copies a config into plain nested dicts."""
  return {k: plain(v) if is_tree(v) else v for k, v in tree.items()}


def flatten(c: Config) -> dict[str, Any]:
  """Lists all leaves as `{'optim.peak': 3e-4}`; an empty dict has none."""
  flat: dict[str, Any] = {}
  for key, value in plain(c).items():
    if is_tree(value):
      flat |= {f'{key}.{k}': v for k, v in flatten(value).items()}
    else:
      flat[str(key)] = value
  return flat


def _check_keys(tree: dict[str, Any]) -> None:
  for key, value in tree.items():
    if not (isinstance(key, str) and re.fullmatch(r'(?!__)[^\s.=]+', key)):
      raise ConfigError(
        f'{show(key)}: a key is a string without dots, spaces, "=" or a'
        ' leading "__"'
      )
    if is_tree(value):
      _check_keys(value)


def _check_value(key: str, value: Any) -> None:
  # exact types: a numpy scalar is a float too, but would not survive JSON
  if type(value) in (tuple, list):
    for v in value:
      _check_value(key, v)
  elif type(value) is float and not math.isfinite(value):
    raise ConfigError(f'{key}: {value} is refused; give a finite number')
  elif type(value) in (int, float):
    if value < 0:
      raise ConfigError(
        f'{key}: {show(value)} is negative, which no count, rate or size is;'
        ' None, where it is declared, says "no value"'
      )
    if type(value) is int and value >= 2**63:
      raise ConfigError(f'{key}: {show(value)} does not fit 64 bits')
  elif value is not None and type(value) not in (bool, str):
    raise ConfigError(
      f'{key}: a {type(value).__name__} is no config value; use None, bool,'
      ' int, float, str, or tuples, lists and dicts of them'
    )
  if key in _LIMITS:
    least, most = _LIMITS[key]
    if type(value) is not int or not least <= value <= most:
      raise ConfigError(
        f'{key}: {show(value)} must be an int from {least} to {most}'
      )


def check(c: Config) -> None:
  """Checks every key and value of a config by the laws of this package.

  Raises:
    ConfigError: naming the first key that breaks one.
  """
  tree = plain(c)
  _check_keys(tree)
  for key, value in flatten(tree).items():
    _check_value(key, value)
  for key in sorted(_LIMITS.keys() & tree.keys()):
    _check_value(key, tree[key])  # a dict in the place of a number
  if {'batch_size', 'microbatches'} <= tree.keys():
    batch_size, microbatches = tree['batch_size'], tree['microbatches']
    if batch_size % microbatches:
      raise ConfigError(
        f'microbatches: {microbatches} does not divide batch_size {batch_size}'
      )


def _literal(text: str) -> Any:
  """Reads a Python literal; what is none is a string."""
  word = text.strip().lower()
  if word in ('true', 'false'):
    return word == 'true'
  if word.lstrip('+-') in ('nan', 'inf', 'infinity'):
    return float(word[-3:] if word.endswith(('nan', 'inf')) else 'inf')
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Python warns about text like '1or'
      return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return text


def _elements(like: Sequence[Any], length: int) -> list[Any]:
  """Gives the declared value that stands for each element of a new tuple."""
  if not like:
    return [None] * length
  if all(type(x) is type(like[0]) for x in like):
    return [like[0]] * length
  return list(like)


def _parse(text: str, like: Any) -> Any:
  """Reads a flag's text as far as the declared value tells how."""
  if isinstance(like, str):
    return text
  value = _literal(text)
  if not isinstance(like, tuple | list) or isinstance(value, tuple | list):
    return value
  # 'a,b' and '(a,b)': what a shell leaves of a tuple of strings
  parts = text.strip().removeprefix('(').removesuffix(')').split(',')
  parts = [x.strip() for x in parts]
  parts = parts[:-1] if parts[-1] == '' else parts
  likes = _elements(like, len(parts))
  if len(likes) != len(parts):
    return tuple(parts)  # a wrong length, which _typed refuses
  return tuple(_parse(x, y) for x, y in zip(parts, likes, strict=True))


def _typed(value: Any, like: Any) -> Any:
  """Returns a value in the declared value's type, or raises TypeError(want)."""
  if like is None:
    return value
  if isinstance(like, tuple | list):
    kind = type(like).__name__
    if not isinstance(value, tuple | list):
      raise TypeError(f'a {kind}')
    likes = _elements(like, len(value))
    if len(likes) != len(value):
      raise TypeError(f'a {kind} of {len(like)}')
    try:
      return type(like)(map(_typed, value, likes))
    except TypeError as error:
      raise TypeError(f'a {kind} with {error} in this place') from None
  if type(like) is float and type(value) is int and abs(value) < 2**63:
    return float(value)
  if type(value) is not type(like):
    names = {bool: 'True or False', int: 'an int', float: 'a float'}
    raise TypeError(names.get(type(like), f'a {type(like).__name__}'))
  return value


def override(c: Config, key: str, text: str) -> None:
  """Sets a declared key from a flag's text, in the declared value's type.

  A str takes any text as it is; a float takes an int; a tuple takes '1,2',
  '(1, 2)' or 'a,b', with elements of the declared type (of the declared types
  and number, where they differ); a key declared None takes any literal.

  Raises:
    ConfigError: for an unknown key, a dict, a wrong type or a refused value.
  """
  *parents, name = key.split('.')
  tree = c
  for part in parents:
    tree = tree[part] if is_tree(tree) and part in tree else {}
  if not is_tree(tree) or name not in tree:
    raise ConfigError(f'unknown key {key}{did_you_mean(key, flatten(c))}')
  like = tree[name]
  if is_tree(like):
    below = ', '.join(f'{key}.{k}' for k in flatten(like)) or 'none'
    raise ConfigError(f'{key}: a dict is not set whole; keys below it: {below}')
  value = _parse(text, like)
  if type(value) in (int, float):
    _check_value(key, value)  # -1.5 for an int: say negative, not "an int"
  try:
    value = _typed(value, like)
    _check_value(key, value)
    tree[name] = value
  except TypeError as error:  # also of a ConfigDict placeholder
    want = f'{error}, like {show(like)}' if like is not None else 'as declared'
    raise ConfigError(f'{key}: {show(text)} is wrong; must be {want}') from None


def _encode(value: Any) -> Any:
  if is_tree(value):
    return {k: _encode(v) for k, v in value.items()}
  if isinstance(value, tuple):
    return {_TUPLE: [_encode(v) for v in value]}
  return [_encode(v) for v in value] if isinstance(value, list) else value


def _decode(value: dict[str, Any]) -> Any:
  if value.keys() != {_TUPLE}:
    return value
  if not isinstance(value[_TUPLE], list):
    raise ValueError(f'{_TUPLE} is not a list')
  return tuple(value[_TUPLE])


def to_json(c: Config) -> str:
  """Writes a config as JSON: sorted keys, tuples kept apart from lists."""
  check(c)
  return json.dumps(_encode(c), sort_keys=True, indent=2, allow_nan=False)


def from_json(text: str) -> Config:
  """Reads what `to_json` wrote, checked and locked; the inverse of it.

  Functions are not looked up: an old run's config can be read, and compared,
  after its code is gone. Call `trust` before building from a stranger's.

  Raises:
    ConfigError: for text that is no JSON object, or a value that is refused.
  """
  try:
    value = json.loads(text, object_hook=_decode)
    if not isinstance(value, dict):
      raise ConfigError('config is not a JSON object')
    check(value)
    return config_dict.ConfigDict(value).lock()
  except RecursionError:
    raise ConfigError('config is not valid JSON: nested too deep') from None
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f'config is not valid JSON: {error}') from error


def diff(a: Config, b: Config, allow: Iterable[str] = ()) -> list[str]:
  """Lists what differs: `'steps: 3 (checkpoint) -> 4 (now)'`, sorted by key.

  Args:
    a: the checkpoint's config, filled.
    b: the config of now, filled.
    allow: keys that may differ; 'optim' allows 'optim.peak', not 'optimal'.
  """
  old, new = flatten(a), flatten(b)
  prefixes = tuple(f'{k}.' for k in allow)

  def text(flat: dict[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else 'missing'

  return [
    f'{k}: {text(old, k)} (checkpoint) -> {text(new, k)} (now)'
    for k in sorted(old.keys() | new.keys())
    if text(old, k) != text(new, k) and not f'{k}.'.startswith(prefixes)
  ]
