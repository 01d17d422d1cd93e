"""Trials: points of a sweep that are checked, and named for their folders.

A name says what a run has other than the base config, as 'peak=0.01_seed=1':
it follows from the point and the base config alone. So it stays the same when
other points are added, in whatever way they are written down. A run that has
nothing else is called 'base'.
"""

from collections.abc import Iterable, Mapping, Sequence
import hashlib
import json
import re
from typing import Any, NamedTuple

from lm import config
from lm.sweeping import points as points_lib

BASE = 'base'
_LONGEST = 100  # characters of a name; file systems take 255 bytes
_DIGITS = 10  # of the hash that ends a name which does not say everything
# Other characters mean something to shells, patterns and lists of paths, and
# some file systems do not tell large letters from small ones.
_PLAIN = re.compile(r'[a-z0-9.+-]+|True|False|None')
_OTHER = re.compile(r'[^A-Za-z0-9_.+-]+')


class Base(NamedTuple):
  """The config that a sweep starts from.

  Attributes:
    file: of the config, and its argument.
    overrides: changes that all runs share, `('steps', '100')`.
    data: a folder of prepared data, see `config.load`.
    config: with the overrides.
  """

  file: str
  overrides: tuple[tuple[str, Any], ...]
  data: str | None
  config: config.Config

  def words(self) -> list[str]:
    """Spells the flags of lm.train that load the config."""
    data = [] if self.data is None else [f'--data={self.data}']
    return [f'--config={self.file}', *data, *flags(self.overrides)]


class Trial(NamedTuple):
  """A run of a sweep.

  Attributes:
    name: of its folder.
    point: the values of the keys that its point sets, as the config has them.
    config: the whole config.
    words: the flags of lm.train that load the config.
  """

  name: str
  point: Mapping[str, Any]
  config: config.Config
  words: tuple[str, ...]


def flags(changes: Iterable[tuple[str, Any]]) -> list[str]:
  """Spells changes of a config as flags."""
  return [f'--config.{key}={value}' for key, value in changes]


def load_base(
  file: str,
  overrides: Iterable[tuple[str, Any]] = (),
  data: str | None = None,
) -> Base:
  """Loads the config that a sweep starts from.

  Raises:
    config.ConfigError: one line that names the file or the key.
  """
  overrides = tuple(overrides)
  return Base(file, overrides, data, config.load(file, overrides, data))


def make(
  base: Base, points: Sequence[points_lib.Point]
) -> tuple[list[Trial], list[str]]:
  """Checks all points and makes their trials.

  Args:
    base: what they change.
    points: in the order in which they are run.

  Returns:
    The trials; and a line for each point that is the same as one before it.

  Raises:
    config.ConfigError: naming the first point that cannot be used, and its key.
  """
  if not points:
    raise config.ConfigError('the sweep has no points: give one at least')
  common, labels = dict(base.overrides), _labels(base.config)
  plain = config.flatten(base.config)
  trials: dict[str, Trial] = {}
  first: dict[str, int] = {}  # number of a point, by its config
  names: dict[str, int] = {}  # and by its name
  notes = []
  for n, point in enumerate(points, 1):
    if not isinstance(point, Mapping):
      raise config.ConfigError(f'point {n}: {point!r} is no dict of keys')
    for key in point:
      if not isinstance(key, str):
        raise config.ConfigError(
          f"point {n}: the key {key!r} is no string, such as 'optim.peak'"
        )
    where = f'point {n} ({spell(point)})'
    if both := common.keys() & point.keys():
      raise config.ConfigError(
        f'{where}: --config.{min(both)} sets that key for all: leave one out'
      )
    try:
      c = config.load(base.file, [*base.overrides, *point.items()], base.data)
    except config.ConfigError as error:
      raise config.ConfigError(f'{where}: {error}') from error
    text = config.to_json(c)
    if text in first:
      notes.append(f'{where} is point {first[text]} again, and is run once')
      continue
    first[text] = n
    flat = config.flatten(c)
    point = {key: flat[key] for key in point}
    words = *base.words(), *flags(point.items())
    name = _name(point, plain, labels)
    if name in names:
      # A key was set to the value that it would have had, if it followed
      # another key by a reference.
      raise config.ConfigError(
        f'{where} has the name {name} of point {names[name]}, but another '
        'config: leave out keys that follow others'
      )
    names[name] = n
    trials[text] = Trial(name, point, c, words)
  return [*trials.values()], notes


def spell(point: Mapping[str, Any]) -> str:
  """Spells a point in a line for people."""
  return ', '.join(f'{k}={v}' for k, v in point.items()) or 'no changes'


def _labels(c: config.Config) -> dict[str, str]:
  """Shortens each key of a config to an end that no other key has."""
  keys = [*config.flatten(c)]
  ends: dict[str, int] = {}
  for key in keys:
    for end in _ends(key):
      ends[end] = ends.get(end, 0) + 1
  return {
    key: next((end for end in _ends(key) if ends[end] == 1), key)
    for key in keys
  }


def _ends(key: str) -> list[str]:
  """Lists the ends of a key, the shortest first."""
  parts = key.split('.')
  return ['.'.join(parts[n:]) for n in reversed(range(len(parts)))]


def _name(
  point: Mapping[str, Any],
  plain: Mapping[str, Any],
  labels: Mapping[str, str],
) -> str:
  """Names the folder of a point.

  Args:
    point: its values, as the config has them.
    plain: the values of the base config.
    labels: of all keys.
  """
  changed = {
    key: value
    for key, value in point.items()
    if repr(value) != repr(plain[key])
  }
  if not changed:
    return BASE
  # The seed comes last, so that repetitions stand together in a list.
  order = sorted(changed, key=lambda key: (key == points_lib.SEED, key))
  exact = all(_PLAIN.fullmatch(str(value)) for value in changed.values())
  parts = []
  for key in order:
    label = _OTHER.sub('-', labels[key])
    value = str(changed[key])
    if not exact:
      value = _OTHER.sub('-', value).strip('-')
    parts.append(f'{label}={value}')
  name = '_'.join(parts)
  if exact and len(name) <= _LONGEST:
    return name
  text = json.dumps({key: repr(changed[key]) for key in order})
  digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
  return f'{name[: _LONGEST - _DIGITS - 1]}_{digest}'
