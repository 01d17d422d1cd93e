"""Overrides: other values for declared keys, in the types of these keys."""

import ast
from collections.abc import Sequence
import re
from typing import Any
import warnings

from lm.config import hints, keys, sources, values
from lm.config.messages import ConfigError, did_you_mean, show
from lm.config.values import Config


def override(c: Config, key: str, value: Any) -> None:
  """Sets a declared key, in the declared value's type.

  A str takes any text as it is; a float takes an int; a tuple takes '1,2',
  '(1, 2)' or 'a,b', with elements of the declared type (of the declared types
  and number, where they differ). A key declared None or () has the type that
  `keys.TYPES`, or else the function of its spec names; without one it takes any
  literal. An int takes a float where that function takes any number.

  Args:
    c: a config, which is changed.
    key: such as 'optim.peak'.
    value: text, as a flag gives it, or a config's value.

  Raises:
    ConfigError: for an unknown key, a dict, a wrong type or a refused value.
  """
  *parents, name = key.split('.')
  tree: Config = c
  for part in parents:
    tree = tree[part] if hints.is_tree(tree) and part in tree else {}
  if not hints.is_tree(tree) or name not in tree:
    known = values.flatten(c)
    raise ConfigError(f'unknown key {key}{did_you_mean(key, known)}')
  like = tree[name]
  if hints.is_tree(like):
    below = ', '.join(f'{key}.{k}' for k in values.flatten(like)) or 'none'
    raise ConfigError(f'{key}: a dict is not set whole; keys below it: {below}')
  found = keys.find(key)
  hint = found.hint if found else _hint(tree, name)
  new = _read(value, like, hint) if isinstance(value, str) else value
  if type(new) in (int, float):
    values.check_value(key, new)  # -1.5 for an int: say negative, not "an int"
  if found:
    found.check(key, new)
    new = tuple(new) if isinstance(new, list) else new
  else:
    try:
      new = _typed(new, like, hint)
    except TypeError as error:
      want = f'{error}, like {show(like)}' if like else f'{error}'
      raise ConfigError(
        f'{key}: {show(value)} is wrong; must be {want}'
      ) from None
  if hints.is_tree(new) and hint is not Any:
    values.check({name: new})
  else:
    values.check_value(key, new)
  if found or (type(like) is int and type(new) is float):
    with tree.ignore_type():  # its one type is that of the declared value
      tree[name] = new
    return
  try:
    tree[name] = new
  except TypeError:  # of a ConfigDict placeholder
    raise ConfigError(
      f'{key}: {show(value)} is wrong; must be as declared'
    ) from None


def _is_open(like: Any) -> bool:
  """Tells whether a declared value does not say what else may stand there."""
  return like is None or like in ((), [])


def _hint(tree: Config, name: str) -> Any:
  """Finds the type of a spec's argument, where its declared value is not it."""
  if _is_open(tree[name]) or type(tree[name]) is int:
    return sources.hints(tree).get(name, Any)
  return Any


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


def _read(text: str, like: Any, hint: Any) -> Any:
  """Reads a flag's text as far as the declared value or the type tells how."""
  return _parse(text, like) if hint is Any else _by_hint(text, hint)


def _by_hint(text: str, hint: Any) -> Any:
  """Reads a text as a value of a type, or else as a literal."""
  literal = _literal(text)
  choices = [literal]
  if not re.search(r'[(\[{]', text.strip()[1:]):  # a nested tuple is no text
    choices.append(text)
    for inside in hints.elements(hint):
      choices.append(tuple(_by_hint(x, inside) for x in _split(text)))
  return next((x for x in choices if hints.fits(x, hint)), literal)


def _split(text: str) -> list[str]:
  """Splits 'a,b' and '(a,b)', what a shell leaves of a tuple of strings."""
  parts = text.strip().removeprefix('(').removesuffix(')').split(',')
  parts = [x.strip() for x in parts]
  return parts[:-1] if parts[-1] == '' else parts


def _parse(text: str, like: Any) -> Any:
  """Reads a flag's text as far as the declared value tells how."""
  if isinstance(like, str):
    return text
  value = _literal(text)
  if not isinstance(like, tuple | list) or isinstance(value, tuple | list):
    return value
  parts = _split(text)
  likes = _elements(like, len(parts))
  if len(likes) != len(parts):
    return tuple(parts)  # a wrong length, which _typed refuses
  return tuple(_parse(x, y) for x, y in zip(parts, likes, strict=True))


def _typed(value: Any, like: Any, hint: Any = Any) -> Any:
  """Returns a value in the declared value's type, or raises TypeError(want)."""
  if _is_open(like) and (like is None or hint is not Any):
    if not hints.fits(value, hint):
      raise TypeError(hints.say(hint))
    return value if like is None else type(like)(value)
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
  is_number = hint is not Any and type(like) is int and type(value) is float
  if is_number and hints.fits(value, hint):
    return value
  if type(value) is not type(like):
    names = {bool: 'True or False', int: 'an int', float: 'a float'}
    raise TypeError(names.get(type(like), f'a {type(like).__name__}'))
  return value
