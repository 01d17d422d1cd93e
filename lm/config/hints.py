"""Types of config values, as annotations name them."""

import ast
import collections.abc
import pathlib
import types
import typing
from typing import Any

from ml_collections import config_dict

_NAMES = {
  bool: 'True or False',
  int: 'an int',
  float: 'a number',
  str: 'a str',
  type(None): 'None',
}
# The words of annotations in a source that is not imported.
_WORDS = {
  'Any': Any,
  'Iterable': collections.abc.Iterable,
  'Mapping': collections.abc.Mapping,
  'Sequence': collections.abc.Sequence,
  **{
    kind.__name__: kind for kind in (bool, dict, float, int, list, str, tuple)
  },
}


class Spec:
  """The type of a dict that names a function, and perhaps its arguments."""


def is_tree(value: Any) -> bool:
  """Tells whether a value is a dict of further values."""
  return isinstance(value, config_dict.ConfigDict | collections.abc.Mapping)


def fits(value: Any, hint: Any) -> bool:
  """Tells whether a config's value is of an annotated type."""
  if hint is Any:
    return True
  if hint is Spec:
    return is_tree(value) and 'fn' in value
  origin, inside = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, x) for x in inside)
  if origin is typing.Literal:
    return any(type(value) is type(x) and value == x for x in inside)
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
    return is_tree(value) and (
      not inside or all(fits(x, inside[1]) for x in value.values())
    )
  if issubclass(base, tuple) and inside and inside[-1] is not Ellipsis:
    return (
      isinstance(value, tuple | list)
      and len(value) == len(inside)
      and all(map(fits, value, inside))
    )
  if issubclass(base, collections.abc.Iterable):
    # A str is a sequence of letters, which nobody means.
    return isinstance(value, tuple | list) and (
      not inside or all(fits(x, inside[0]) for x in value)
    )
  return False  # of a class that no config's value has


def elements(hint: Any) -> list[Any]:
  """Lists the types of the elements of each kind of sequence that fits."""
  origin, inside = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return [x for kind in inside for x in elements(kind)]
  base = origin or hint
  none = str, collections.abc.Mapping
  if not isinstance(base, type) or issubclass(base, none):
    return []
  is_sequence = issubclass(base, collections.abc.Iterable)
  return [inside[0] if inside else Any] if is_sequence else []


def say(hint: Any) -> str:
  """Names a type in an error line."""
  if hint is Spec:
    return "a dict with a function's name, fn"
  origin, inside = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    words = [
      'a tuple of these' if elements(x) == [inside[0]] else say(x)
      for x in inside
    ]
    return ' or '.join(dict.fromkeys(words))
  if origin is typing.Literal:
    many = f'one of {", ".join(map(str, inside))}'
    return ' or '.join(map(repr, inside)) if len(inside) < 4 else many
  base = origin or hint
  if base in _NAMES:
    return _NAMES[base]
  if base is pathlib.Path:
    return 'a str'
  if isinstance(base, type):
    if issubclass(base, collections.abc.Mapping):
      return 'a dict'
    if issubclass(base, tuple) and inside and inside[-1] is not Ellipsis:
      return f'({", ".join(map(say, inside))})'
    if issubclass(base, collections.abc.Iterable):
      return f'a tuple, each {say(inside[0])}' if inside else 'a tuple'
  return f'what a program gives, a {getattr(base, "__name__", base)}'


def of_source(node: ast.expr | None) -> Any:
  """Reads an annotation in a source, without importing what it names.

  Returns:
    The type; Any for what only an import could tell.
  """
  match node:
    case ast.Constant(value=None):
      return type(None)
    case ast.Name(id=name):
      return _WORDS.get(name, Any)
    case ast.BinOp(left=left, op=ast.BitOr(), right=right):
      left, right = of_source(left), of_source(right)
      return Any if Any in (left, right) else left | right
    case ast.Subscript(value=ast.Name(id='Literal'), slice=inside):
      words = inside.elts if isinstance(inside, ast.Tuple) else [inside]
      values = tuple(x.value for x in words if isinstance(x, ast.Constant))
      return typing.Literal[values] if len(values) == len(words) else Any
    case ast.Subscript(value=outside, slice=inside):
      outer = of_source(outside)
      words = inside.elts if isinstance(inside, ast.Tuple) else [inside]
      parts = tuple(
        ... if isinstance(x, ast.Constant) and x.value is ... else of_source(x)
        for x in words
      )
      return Any if outer is Any else outer[parts]
  return Any
