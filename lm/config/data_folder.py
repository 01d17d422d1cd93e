"""Data by one flag: `--data=FOLDER` instead of the paths that a config names.

The folder is as preparation writes it: a tokenizer, and a dataset each in
`train`, `valid` and perhaps `test`.
"""

from pathlib import Path
from typing import Any

from lm.config import hints, values
from lm.config.messages import ConfigError
from lm.config.values import Config

_SPLITS = ('train', 'valid', 'test')


def paths(c: Config, folder: str | Path) -> dict[str, str]:
  """Finds the paths of a config that lead into a folder of prepared data.

  They are those of its tokenizer, of its only training source, and of all other
  datasets that are called as those in the folder are.

  Args:
    c: a whole config, or a part of one with its keys.
    folder: of the data.

  Returns:
    New values by key.

  Raises:
    ConfigError: the config reads no such data, or the folder lacks some.
  """
  folder, new = Path(folder), {}
  flat = values.flatten(c)
  sources = [key for key in flat if key.startswith('data.sources.')]
  sources = [key for key in sources if key.endswith('.path')]
  for key, value in flat.items():
    if not key.endswith('.path') or not isinstance(value, str):
      continue
    path = Path(value)
    if key == 'tokenizer.path':
      new[key] = str(folder / f'tokenizer{path.suffix}')
    elif [key] == sources:
      new[key] = str(folder / 'train')
    elif key.startswith(('data.sources.', 'evals.')) and path.name in _SPLITS:
      new[key] = str(folder / path.name)
  if not new:
    raise ConfigError(
      f'--data={folder}: this config reads no prepared texts: set its paths'
    )
  for key, value in new.items():
    if not Path(value).exists():
      raise ConfigError(
        f'--data={folder}: has no {Path(value).name}, which {key} needs: '
        'prepare it, or set that key'
      )
  return new


def replaced(c: Config, new: dict[str, str]) -> dict[str, Any]:
  """Copies a config with other values for some keys, given as `paths` does."""

  def copy(tree, key):
    return {
      k: copy(v, f'{key}{k}.') if hints.is_tree(v) else new.get(f'{key}{k}', v)
      for k, v in tree.items()
    }

  return copy(c, '')
