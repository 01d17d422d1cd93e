"""Values of a config.json, read with care: it came with a file."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any, NamedTuple

from lm.interop import layout

Config = Mapping[str, Any]


class Architecture(NamedTuple):
  """A model class of transformers, and what is ours of it.

  Attributes:
    fn: our model, by name; of a class with a head, the head.
    table: `spec -> where our parameters lie`.
    settings: `(config.json, names of tensors) -> settings` of the model.
    config: `spec -> config.json` of a spec without None where that stands for a
      number; `settings` tells if all of the spec is in it.
    base: a prefix that names of the bare model lack.
    same: tensors that may repeat another one.
    unread: regular expression of tensors that hold no parameter of ours, beside
      positions and frequencies.
    body: our model inside of the head, by name; '': there is no head.
  """

  fn: str
  table: Callable[[Config], layout.Table]
  settings: Callable[[Config, set[str]], dict[str, Any]]
  config: Callable[[Config], dict[str, Any]]
  base: str
  same: Mapping[str, str]
  unread: str = '(?!)'  # none
  body: str = ''


def labels(config: Config) -> tuple[str, ...]:
  """Reads the names of the classes; a config.json without them has two.

  Raises:
    ValueError: they are not one for each number from 0 on.
  """
  names = config.get('id2label') or {'0': 'LABEL_0', '1': 'LABEL_1'}
  if not isinstance(names, dict) or {*names} != {*map(str, range(len(names)))}:
    raise ValueError(f'config.json: id2label={names!r:.60} are no classes')
  return tuple(str(names[str(n)]) for n in range(len(names)))


def labelled(labels: Sequence[str]) -> dict[str, Any]:
  """Makes what a config.json says of classes."""
  return {
    'id2label': {str(n): label for n, label in enumerate(labels)},
    'label2id': {label: n for n, label in enumerate(labels)},
  }


def whole(config: Config, key: str, default: int | None = None) -> int:
  """Reads a count of at least 1; None stands for the default.

  Raises:
    ValueError: it is missing or something else.
  """
  value = config.get(key)
  value = default if value is None else value
  if type(value) is not int or value < 1:
    raise ValueError(f'config.json: {key}={value!r:.40} is no count')
  return value


def number(config: Config, key: str, default: float | None = None) -> float:
  """Reads a finite number above 0; None stands for the default.

  Raises:
    ValueError: it is missing or something else.
  """
  value: Any = config.get(key)
  value = default if value is None else value
  if type(value) not in (int, float) or not 0 < value < math.inf:
    raise ValueError(f'config.json: {key}={value!r:.40} is no positive number')
  return float(value)


def optional(config: Config, key: str) -> float | None:
  """Reads a number that may be None.

  Raises:
    ValueError: for the same reasons as in `number`.
  """
  return None if config.get(key) is None else number(config, key)


def flag(config: Config, key: str, default: bool) -> bool:
  """Reads a bool.

  Raises:
    ValueError: it is something else.
  """
  value = config.get(key, default)
  if type(value) is not bool:
    raise ValueError(
      f'config.json: {key}={value!r:.40} is neither true nor false'
    )
  return value


def choice(config: Config, key: str, known: Mapping[str, str], default: str):
  """Reads one of some words, and gives what it stands for.

  Raises:
    ValueError: it is another.
  """
  value = config.get(key, default)
  if not isinstance(value, str) or value not in known:
    raise ValueError(
      f'config.json: {key}={value!r:.40} is not supported; only '
      f'{", ".join(known)}'
    )
  return known[value]


def only(config: Config, **wanted: Any) -> None:
  """Checks settings that have one value here, also where they are missing.

  Raises:
    ValueError: one has another.
  """
  for key, value in wanted.items():
    if config.get(key, value) != value:
      raise ValueError(
        f'config.json: {key}={config[key]!r:.40} is not supported; only '
        f'{value!r} is'
      )


def inverse(known: Mapping[str, str], value: str) -> str:
  """Finds the first word that stands for a value.

  Raises:
    ValueError: there is none.
  """
  for word, meaning in known.items():
    if meaning == value:
      return word
  raise ValueError(f'{value} has no name there')
