"""Reads how a model of sentence-transformers pools the vectors of a text.

Its folder has modules.json beside the model's files: the model, its pooling and
perhaps a normalization, which our vectors have in any case.

Reference: Reimers and Gurevych 2019, arXiv 1908.10084, section 3.
"""

from pathlib import Path
from typing import Any

from lm.interop import tensors

_MODULES = 'modules.json'
_PREFIX = 'pooling_mode_'
# Our names of the modes that are supported.
_POOLS = {'cls_token': 'first', 'mean_tokens': 'mean', 'lasttoken': 'last'}


def read(folder: Path) -> str | None:
  """Reads the pooling of a folder: 'first', 'mean' or 'last'; None: none there.

  Raises:
    ValueError: a file is broken, or the vectors are computed in another way.
  """
  path = folder / _MODULES
  if not path.is_file():
    return None
  modules = tensors.read_json(path, list)
  pool = None
  for n, module in enumerate(modules):
    kind = str(module.get('type')) if isinstance(module, dict) else ''
    kind = kind.rpartition('.')[2]
    if kind == 'Pooling':
      place = folder / Path(str(module.get('path'))).name / 'config.json'
      pool = _mode(place, tensors.read_json(place))
    elif kind not in ('Transformer', 'Normalize') or (n == 0) != (
      kind == 'Transformer'
    ):
      raise ValueError(f'{path}: a module {kind!r:.40} is not supported there')
  return pool


def _mode(path: Path, settings: dict[str, Any]) -> str:
  """Reads the mode: one flag of several, or, in new files, one word."""
  modes = [
    key.removeprefix(_PREFIX)
    for key, value in settings.items()
    if key.startswith(_PREFIX) and value is True
  ]
  word = settings.get('pooling_mode')
  if isinstance(word, str):
    words = {'cls': 'cls_token', 'mean': 'mean_tokens'}
    modes = [words.get(word, word)]
  if len(modes) != 1 or modes[0] not in _POOLS:
    raise ValueError(
      f'{path}: pooling {", ".join(modes) or "without a mode"!r:.60} is not '
      f'supported; only one of {", ".join(_POOLS)} is'
    )
  return _POOLS[modes[0]]
