"""Keys of a config that are no argument of a function: one table of types.

What a function takes, its annotations say, see arguments.py. These keys are
read by programs; `configs/base.py` says what they mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lm.config import hints, messages
from lm.config.messages import ConfigError


class Key(NamedTuple):
  """Describes what may stand at a key.

  Attributes:
    hint: the type.
    least: the smallest int.
    most: the largest int.
  """

  hint: Any
  least: int = 0
  # Steps are int32 on the device: jax would wrap a larger one without a word.
  most: int = 2**31 - 1

  def want(self) -> str:
    """Names the type, and the range of its ints."""
    bounds = f'an int from {self.least} to {self.most}'
    return hints.say(self.hint).replace('an int', bounds)

  def check(self, key: str, value: Any) -> None:
    """Refuses a value that may not stand at this key.

    Raises:
      ConfigError: naming the key, the value and what may stand there.
    """
    good = hints.fits(value, self.hint)
    if type(value) is int:
      good = good and self.least <= value <= self.most
    if not good:
      raise ConfigError(f'{key}: {messages.show(value)} must be {self.want()}')


_SPEC = Key(hints.Spec)
_OPTIONAL_SPEC = Key(hints.Spec | None)
_COUNT = Key(int)  # 0: none
_POSITIVE = Key(int, 1)
_NAMES = Key(Sequence[str])
_Axis = Literal['data', 'stage', 'fsdp', 'expert', 'sequence', 'tensor']

TYPES = {
  # Seeds are uint32 on the device.
  'seed': Key(int, 0, 2**32 - 1),
  'steps': _POSITIVE,
  'batch_size': _POSITIVE,
  'microbatches': _POSITIVE,
  'numerics': Key(Literal['fast', 'deterministic']),
  'logical_shards': _POSITIVE,
  'save_every': _POSITIVE,
  'keep': _POSITIVE,
  'keep_every': _COUNT,
  'log_every': _POSITIVE,
  'eval_every': _COUNT,
  'early.metric': Key(str | None),
  'early.higher': Key(bool),
  'early.patience': _POSITIVE,
  'max_skipped': _COUNT,
  'log.to': _NAMES,
  'log.project': Key(str),
  'log.name': Key(str | None),
  'log.writer': _OPTIONAL_SPEC,
  'log.norms_every': _COUNT,
  'profile': Key(Sequence[int]),
  'watchdog.factor': Key(float),
  'watchdog.least_seconds': Key(float),
  'watchdog.first_seconds': Key(float),
  'threads': _COUNT,
  'prefetch': _COUNT,
  'fit': _OPTIONAL_SPEC,
  'init_from': Key(str | None),
  'init_paths': _NAMES,
  'branch_from': Key(str | None),
  'branch_step': Key(int | None, 1),
  'allow': _NAMES,
  'tokenizer': _SPEC,
  'data': _SPEC,
  'model': _SPEC,
  'loss': _SPEC,
  'optim': _SPEC,
  'privacy': _OPTIONAL_SPEC,
  'evals.*': _SPEC,
  'mesh.data': Key(int | None, 1),
  'mesh.stage': _POSITIVE,
  'mesh.fsdp': _POSITIVE,
  'mesh.expert': _POSITIVE,
  'mesh.sequence': _POSITIVE,
  'mesh.tensor': _POSITIVE,
  'mesh.slices': _POSITIVE,
  'plan.target': Key(str),
  'plan.vocab': Key(int | None, 1),
  'evaluate.workdirs': _NAMES,
  'evaluate.steps': Key(Literal['last'] | int | Sequence[int] | None),
  'sharding.*': Key(_Axis | Sequence[_Axis] | None),
}
# What stands for keys that are newer than some runs: what these runs did, as
# far as they did anything. It is the same in configs/base.py.
NEWER = {
  'log.to': (),
  'log.project': 'lm',
  'log.name': None,
  'log.writer': None,
  'log.norms_every': 0,
  'profile': (),
  'watchdog.factor': 20.0,
  'watchdog.least_seconds': 300.0,
  'watchdog.first_seconds': 14400.0,
}
_SECTIONS = {key.partition('.')[0] for key in TYPES if '.' in key}


def find(key: str) -> Key | None:
  """Finds what may stand at a key; None for a key that is not in the table."""
  section, _, name = key.rpartition('.')
  return TYPES.get(key) or (TYPES.get(f'{section}.*') if name else None)


def check(tree: Mapping[str, Any]) -> None:
  """Checks the keys of a config that stand in the table.

  Raises:
    ConfigError: naming the first that is wrong.
  """
  for name, value in tree.items():
    if name in _SECTIONS:
      if not hints.is_tree(value):
        raise ConfigError(f'{name}: {messages.show(value)} must be a dict')
      for part, inner in value.items():
        if found := find(f'{name}.{part}'):
          found.check(f'{name}.{part}', inner)
    elif name in TYPES:
      TYPES[name].check(name, value)


def check_known(tree: Any) -> None:
  """Checks that the sections of a config have no other keys.

  Raises:
    ConfigError: naming the first one.
  """
  for name in sorted(_SECTIONS.intersection(tree)):
    known = [key for key in TYPES if key.startswith(f'{name}.')]
    for part in tree[name]:
      if find(f'{name}.{part}') is None:
        hint = messages.did_you_mean(f'{name}.{part}', known)
        raise ConfigError(f'unknown key {name}.{part}{hint}')


def complete(tree: Any) -> None:
  """Adds the keys that the config of an older run does not have.

  Args:
    tree: a config, which is changed; one that lacks other keys is no run's, and
      stays as it is.
  """
  names, newer = (
    {key.partition('.')[0] for key in table} for table in (TYPES, NEWER)
  )
  if not names - newer <= {*tree}:
    return
  with tree.unlocked():
    for key, value in NEWER.items():
      section, _, name = key.rpartition('.')
      if section and section not in tree:
        tree[section] = {}
      part = tree[section] if section else tree
      if name not in part:
        part[name] = value


def check_complete(tree: Any) -> None:
  """Checks that a config has all keys of a run, and no others in a section.

  Raises:
    ConfigError: naming the first that is missing or unknown.
  """
  check_known(tree)
  for key in TYPES:
    name, _, part = key.partition('.')
    if name not in tree or (part not in ('', '*') and part not in tree[name]):
      key = key.removesuffix('.*')
      raise ConfigError(f'{key}: is missing: configs/base.py declares it')
