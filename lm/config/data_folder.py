"""Data by one flag: `--data=FOLDER` instead of the paths that a config names.

The folder is as preparation writes it: a tokenizer, and a dataset each in
`train`, `valid` and perhaps `test`. Each of these may hold one dataset a source
instead, such as `train/web` and `train/wiki`.
"""

from pathlib import Path
from typing import Any

from lm.config import hints, values
from lm.config.messages import ConfigError
from lm.config.values import Config

_SPLITS = ('train', 'valid', 'test')
_MANIFEST = 'manifest.json'  # of a dataset


def spread(c: Any, folder: str | Path) -> None:
  """Gives each source in a folder of prepared data a key of its own.

  A config with one training source gets all that are in the folder, with a
  weight of 1 each, unless its one is among them. An evaluator `valid` becomes
  `valid_web` and `valid_wiki`.

  Args:
    c: a config that is not locked, or a part of one with its keys; is changed.
    folder: of the data.

  Raises:
    ConfigError: the name of a source cannot be a key.
  """
  folder = Path(folder)
  sources, found = (
    c.get('data', {}).get('sources', {}),
    _sources(folder, 'train'),
  )
  if len(sources) == 1 and found and next(iter(sources)) not in found:
    path = next(iter(sources.values()))['path']
    c['data']['sources'] = {
      name: {'path': f'{path}/{name}', 'weight': 1.0} for name in found
    }
  for name, spec in [*c.get('evals', {}).items()]:
    path = spec.get('path')
    split = Path(path).name if isinstance(path, str) else ''
    if found := _sources(folder, split):
      del c['evals'][name]
      for source in found:
        own = values.plain(spec) | {'path': f'{path}/{source}'}
        c['evals'][f'{name}_{source}'] = own


def _sources(folder: Path, split: str) -> list[str]:
  """Lists the sources of a split; none where it is one dataset."""
  if split not in _SPLITS or (folder / split / _MANIFEST).exists():
    return []
  names = sorted(x.parent.name for x in folder.glob(f'{split}/*/{_MANIFEST}'))
  for name in names:
    if '.' in name:
      raise ConfigError(
        f'--data={folder}: {split}/{name}: the name of a source is a key of '
        'the config, and may have no dot: rename the folder'
      )
  return names


def paths(c: Config, folder: str | Path) -> dict[str, str]:
  """Finds the paths of a config that lead into a folder of prepared data.

  They are those of its tokenizer, of its only training source, and of all other
  datasets that are called as those in the folder are.

  Args:
    c: a whole config, or a part of one with its keys, after `spread`.
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
    elif key in sources and _sources(folder, 'train'):
      new[key] = str(folder / 'train' / key.split('.')[2])
    elif [key] == sources:
      new[key] = str(folder / 'train')
    elif not key.startswith(('data.sources.', 'evals.')):
      continue
    elif path.name in _SPLITS:
      new[key] = str(folder / path.name)
    elif path.name in _sources(folder, path.parent.name):
      new[key] = str(folder / path.parent.name / path.name)
  if not new:
    raise ConfigError(
      f'--data={folder}: this config reads no prepared texts: set its paths'
    )
  for key, value in new.items():
    if not Path(value).exists():
      raise ConfigError(
        f'--data={folder}: has no {Path(value).relative_to(folder)}, which '
        f'{key} needs: prepare it, or set that key'
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
