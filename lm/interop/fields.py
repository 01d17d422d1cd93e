"""Reads values of a config.json, and trusts none: the file came from others."""

from collections.abc import Callable, Collection, Mapping, Sequence
import sys
from typing import Any, NamedTuple

from lm.interop import layout

Config = Mapping[str, Any]

_MOST = 2**63 - 1  # of a count, which all programs can hold
# Classes without names get some. A config of a few bytes could ask for so many
# that their names take all memory.
_MOST_UNNAMED = 1 << 20


class Architecture(NamedTuple):
  """A model class of transformers, and how it becomes a model of lm.

  Attributes:
    fn: the name of our model; of our head, if the class has a head.
    table: `flat settings -> places of our parameters`.
    settings: `(config.json, names of tensors) -> flat settings` of our model,
      which `trees.grow` turns into a spec.
    config: `flat settings -> config.json`. Settings that it cannot say are
      found by reading the result again.
    prefix: of tensor names, which files of the bare model do without.
    duplicates: tensors that may repeat another one.
    ignored: regular expression of tensors that are no parameters of ours.
      Buffers of positions and frequencies are ignored anyway.
    body: the name of our model inside the head; '' if there is no head.
    rotary: keys of config.json that describe rotary positions and are read.
  """

  fn: str
  table: Callable[[Config], layout.Table]
  settings: Callable[[Config, set[str]], dict[str, Any]]
  config: Callable[[Config], dict[str, Any]]
  prefix: str
  duplicates: Mapping[str, str]
  ignored: str = '(?!)'  # none
  body: str = ''
  rotary: tuple[str, ...] = ()


def labels(config: Config) -> tuple[str, ...]:
  """Reads the names of the classes.

  Without names there are as many as `num_labels` says, and else two.

  Raises:
    ValueError: there is not one name for each number from 0 on, or there are
      too many classes without a name.
  """
  stated = config.get('num_labels')
  number = count(config, 'num_labels', 2)
  names = config.get('id2label')
  if not names:
    if number > _MOST_UNNAMED:
      raise ValueError(
        f'config.json: num_labels={number}: more than {_MOST_UNNAMED:,} classes'
        ' must have names in id2label'
      )
    return tuple(f'LABEL_{n}' for n in range(number))
  if not isinstance(names, dict) or {*names} != {*map(str, range(len(names)))}:
    raise ValueError(
      f'config.json: id2label={names!r:.60}: must name classes 0, 1, ...'
    )
  if stated is not None and number != len(names):
    raise ValueError(
      f'config.json: num_labels={number}, and id2label names {len(names)}'
    )
  return tuple(str(names[str(n)]) for n in range(len(names)))


def label_fields(labels: Sequence[str]) -> dict[str, Any]:
  """Makes the fields of a config.json that name the classes."""
  return {
    'id2label': {str(n): label for n, label in enumerate(labels)},
    'label2id': {label: n for n, label in enumerate(labels)},
  }


def count(config: Config, key: str, default: int | None = None) -> int:
  """Reads a count of at least 1; a missing one or null is the default.

  Raises:
    ValueError: the value is no count, is above `_MOST`, or is missing without a
      default.
  """
  value = config.get(key)
  value = default if value is None else value
  if type(value) is not int or not 1 <= value <= _MOST:
    raise ValueError(
      f'config.json: {key}={value!r:.40}: must be a whole number from 1 to '
      f'{_MOST}'
    )
  return value


def number(config: Config, key: str, default: float | None = None) -> float:
  """Reads a finite number above 0; a missing one or null is the default.

  Raises:
    ValueError: the value is no such number, or is missing without a default.
  """
  value: Any = config.get(key)
  value = default if value is None else value
  if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
    raise ValueError(
      f'config.json: {key}={value!r:.40}: must be a number above 0'
    )
  return float(value)


def optional(config: Config, key: str) -> float | None:
  """Reads a number above 0 that may be missing or null.

  Raises:
    ValueError: the value is no such number.
  """
  return None if config.get(key) is None else number(config, key)


def flag(config: Config, key: str, default: bool) -> bool:
  """Reads a bool.

  Raises:
    ValueError: the value is no bool.
  """
  value = config.get(key, default)
  if type(value) is not bool:
    raise ValueError(f'config.json: {key}={value!r:.40}: must be true or false')
  return value


def ids(config: Config, key: str) -> list[int]:
  """Reads an id or a list of ids; [] where it is missing, null or below 0.

  Raises:
    ValueError: the value is neither.
  """
  value = config.get(key)
  value = [] if value is None else value
  listed = value if isinstance(value, list) else [value]
  if not all(type(i) is int for i in listed):
    raise ValueError(f'{key}={value!r:.40}: must be an id or a list of ids')
  return [i for i in dict.fromkeys(listed) if i >= 0]


def choice(config: Config, key: str, known: Mapping[str, str], default: str):
  """Reads one of the known words, and returns what it stands for.

  Raises:
    ValueError: the value is not a known word.
  """
  value = config.get(key, default)
  if not isinstance(value, str) or value not in known:
    raise ValueError(
      f'config.json: {key}={value!r:.40} is not supported; only '
      f'{", ".join(known)}'
    )
  return known[value]


def require(config: Config, **wanted: Any) -> None:
  """Checks settings of which one value is supported; a missing one has it.

  Raises:
    ValueError: a setting has another value.
  """
  for key, value in wanted.items():
    if config.get(key, value) != value:
      raise ValueError(
        f'config.json: {key}={config[key]!r:.40} is not supported; only '
        f'{value!r} is'
      )


def refuse_unknown(
  config: Config, words: Sequence[str], known: Collection[str]
) -> None:
  """Refuses settings of a kind that are not read; null ones say nothing.

  Args:
    config: the content of config.json, or a part of it.
    words: that tell the kind: a key belongs to it if it contains one of them.
    known: keys that are read.

  Raises:
    ValueError: a key of the kind is not known.
  """
  for key, value in config.items():
    is_of_kind = any(word in key for word in words)
    if is_of_kind and key not in known and value is not None:
      raise ValueError(
        f'config.json: {key}={value!r:.40} is not supported: leave it out only '
        'if the model does without'
      )


def name_of(known: Mapping[str, str], value: str) -> str:
  """Returns the first word that stands for a value.

  Raises:
    ValueError: no word does.
  """
  for word, meaning in known.items():
    if meaning == value:
      return word
  raise ValueError(f'{value} has no name there')
