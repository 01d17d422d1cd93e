"""Arguments of specs, checked against the annotations of their function."""

import collections.abc
import functools
import pathlib
import types
import typing
from typing import Any

from lm.config import values
from lm.config.values import ConfigError

_NAMES = {
  bool: 'True or False',
  int: 'an int',
  float: 'a number',
  str: 'a str',
  type(None): 'None',
}


def check(name: str, fn: Any, arguments: dict[str, Any]) -> None:
  """Checks the values that a spec gives to a function.

  Args:
    name: of the function, for the error.
    fn: the function.
    arguments: by parameter; a config's values.

  Raises:
    ConfigError: naming the first value of a wrong type, and the right one.
  """
  hints = _hints(fn)
  for key, value in arguments.items():
    hint = hints.get(key, Any)
    if not _fits(value, hint):
      raise ConfigError(
        f'{name}: {key}={values.show(value)} is wrong; must be {_say(hint)}'
      )


@functools.cache
def _hints(fn: Any) -> dict[str, Any]:
  try:
    return typing.get_type_hints(fn)
  except (NameError, TypeError):
    # Names that only a type checker sees, or a callable without annotations.
    return {}


def _fits(value: Any, hint: Any) -> bool:
  """Tells whether a config's value is of an annotated type."""
  if hint is Any:
    return True
  origin, inside = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return any(_fits(value, x) for x in inside)
  if origin is typing.Literal:
    return value in inside
  base = origin or hint
  if base is float:
    return type(value) in (int, float)
  if base in (bool, int, str, type(None)):
    return type(value) is base
  if base is pathlib.Path:
    return isinstance(value, str)
  if not isinstance(base, type):
    return True  # a type variable, say: the function checks it
  if issubclass(base, collections.abc.Mapping):
    return values.is_tree(value) and (
      not inside or all(_fits(x, inside[1]) for x in value.values())
    )
  if issubclass(base, tuple) and inside and inside[-1] is not Ellipsis:
    return (
      isinstance(value, tuple | list)
      and len(value) == len(inside)
      and all(map(_fits, value, inside))
    )
  if issubclass(base, collections.abc.Iterable):
    # A str is a sequence of letters, which nobody means.
    return isinstance(value, tuple | list) and (
      not inside or all(_fits(x, inside[0]) for x in value)
    )
  return False  # of a class that no config's value has


def _say(hint: Any) -> str:
  origin, inside = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return ' or '.join(dict.fromkeys(_say(x) for x in inside))
  if origin is typing.Literal:
    return ' or '.join(map(repr, inside))
  base = origin or hint
  if base in _NAMES:
    return _NAMES[base]
  if base is pathlib.Path:
    return 'a str'
  if isinstance(base, type):
    if issubclass(base, collections.abc.Mapping):
      return 'a dict'
    if issubclass(base, tuple) and inside and inside[-1] is not Ellipsis:
      return f'({", ".join(map(_say, inside))})'
    if issubclass(base, collections.abc.Iterable):
      return f'a tuple, each {_say(inside[0])}' if inside else 'a tuple'
  return f'what a program gives, a {getattr(base, "__name__", base)}'
