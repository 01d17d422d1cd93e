"""Values of a config: their laws, JSON and differences."""

from collections.abc import Iterable
import json
import math
import re
from typing import Any

from ml_collections import config_dict

from lm.config import keys
from lm.config.hints import is_tree
from lm.config.messages import ConfigError, show

# A ConfigDict, or a dict, of such values. Its attributes are those that a file
# declares, which no type checker can know.
Config = Any

_TUPLE = '__tuple__'  # JSON knows no tuples: {'__tuple__': [1, 2]}


def innermost(model: Any) -> tuple[str, Any]:
  """Finds the body of heads and of LoRA: its place in a config, and it."""
  where = 'model'
  while 'body' in model:
    where, model = f'{where}.body', model['body']
  return where, model


def plain(tree: Config) -> dict[str, Any]:
  """Copies a config into plain nested dicts."""
  return {k: plain(v) if is_tree(v) else _sorted(v) for k, v in tree.items()}


def _sorted(value: Any) -> Any:
  """Copies a leaf; dicts inside it become sorted, as JSON writes them."""
  if type(value) in (tuple, list):
    return type(value)(map(_sorted, value))
  if type(value) is dict:
    return {k: value[k] for k in sorted(value, key=str)}
  return value


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


def check_value(key: str, value: Any) -> None:
  """Checks a leaf of a config by the laws of this package.

  Raises:
    ConfigError: it breaks one.
  """
  # exact types: a numpy scalar is a float too, but would not survive JSON
  if type(value) in (tuple, list):
    for v in value:
      if type(v) is dict:
        _check_numbers(key, v)
      else:
        check_value(key, v)
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


def _check_numbers(key: str, value: dict[Any, Any]) -> None:
  """Checks a dict inside a tuple: it may hold numbers by name, and no spec.

  What looks for functions and files in a config need not look into tuples.
  """
  _check_keys(value)
  for name, number in value.items():
    if type(number) not in (int, float):
      raise ConfigError(
        f'{key}: {name}={show(number)} is refused: a dict in a tuple may hold '
        'numbers alone, such as weights by name'
      )
    check_value(key, number)


def check(c: Config) -> None:
  """Checks every key and value of a config by the laws of this package.

  Raises:
    ConfigError: naming the first key that breaks one.
  """
  tree = plain(c)
  _check_keys(tree)
  for key, value in flatten(tree).items():
    check_value(key, value)
  keys.check(tree)
  if {'batch_size', 'microbatches'} <= tree.keys():
    batch_size, microbatches = tree['batch_size'], tree['microbatches']
    if batch_size % microbatches:
      raise ConfigError(
        f'microbatches: {microbatches} does not divide batch_size {batch_size}'
      )


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

  def same(key: str) -> bool:
    # 100 and 100.0 are one number, but True and 1 are not one value.
    both = old.get(key), new.get(key)
    numbers = all(type(x) in (int, float) for x in both)
    return both[0] == both[1] if numbers else text(old, key) == text(new, key)

  return [
    f'{k}: {text(old, k)} (checkpoint) -> {text(new, k)} (now)'
    for k in sorted(old.keys() | new.keys())
    if not same(k) and not f'{k}.'.startswith(prefixes)
  ]
