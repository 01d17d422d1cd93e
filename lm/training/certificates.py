"""Keeps the contamination certificates of a run's data with the run.

The factory writes contamination.json into the folder of a build, above its
datasets, such as train/ or train/web/. The run's own has those of all sources,

  {"sources": {"train": {...}, "books": null}}

where null stands for a source without one, and "init_from/train" for a source
of the run that its parameters are from.
"""

from collections.abc import Callable, Mapping
import json
from pathlib import Path
from typing import Any

from lm import config
from lm.runtime import regular_files

NAME = 'contamination.json'


def collect(
  c: config.Config, folder: Path, source: Path | None, *, resumes: bool
) -> dict[str, bytes]:
  """Collects the certificates of a run's data.

  Args:
    c: of the run.
    folder: of the run.
    source: the run that it starts from now, if any.
    resumes: whether it goes on from a checkpoint, on the same data as before;
      from one of `source` if there is one.

  Returns:
    What the run's own file is to hold, by its name; {} if it needs none.

  Raises:
    config.ConfigError: a certificate is damaged.
  """
  stored = read(folder)
  # A run may go on where its data lie without their certificates. What a run
  # that never saved has left may be of other data.
  own = stored if source is None else read(source)
  before = (own or {}) if resumes else {}
  found: dict[str, Any] = {
    name: _of_dataset(Path(one['path'])) or before.get(name)
    for name, one in sorted(c.data.get('sources', {}).items())
  }
  earlier = {k: x for k, x in before.items() if k.startswith('init_from/')}
  if c.init_from is not None or earlier:
    if source is not None and not resumes:
      theirs = read(source) or {'train': None}
      earlier = {f'init_from/{name}': x for name, x in theirs.items()}
    found |= earlier or {'init_from/train': None}
  if stored is None and not any(found.values()):
    return {}
  text = json.dumps({'sources': found}, ensure_ascii=False, sort_keys=True)
  return {NAME: text.encode() + b'\n'}


def read(workdir: Path) -> Mapping[str, Any] | None:
  """Reads the certificates of a run by source; None where it has none.

  Raises:
    config.ConfigError: the file is damaged.
  """
  found = _json(workdir / NAME, _read_plain)
  if found is None:
    return None
  if not isinstance(sources := found.get('sources'), dict) or not all(
    x is None or _is_sound(x) for x in sources.values()
  ):
    raise _damaged(workdir / NAME)
  return sources


def _of_dataset(folder: Path) -> Mapping[str, Any] | None:
  """Reads the certificate of a dataset, beside it or in a folder above."""
  above = [folder, folder.parent]
  if folder.parent.name == 'train':
    above.append(folder.parent.parent)
  for path in (x / NAME for x in above):
    found = _json(path, regular_files.read)
    # A run may lie above its data, and what it has there is its own.
    if found is not None and 'sources' not in found:
      if not _is_sound(found):
        raise _damaged(path)
      return found
  return None


def _is_sound(certificate: Any) -> bool:
  """Tells whether a certificate says what evaluation needs of it."""
  files = certificate.get('files') if isinstance(certificate, dict) else None
  return isinstance(files, dict) and all(
    isinstance(file, dict)
    and isinstance(file.get('items'), int)
    and isinstance(file.get('flagged'), dict)
    and isinstance(file.get('unchecked'), dict)
    for file in files.values()
  )


def _read_plain(path: Path) -> bytes:
  with regular_files.open_read(path) as file:
    return file.read()


def _json(path: Path, read: Callable[[Path], bytes]) -> dict[str, Any] | None:
  try:
    found = json.loads(read(path))
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError) as error:
    raise _damaged(path) from error
  if not isinstance(found, dict):
    raise _damaged(path)
  return found


def _damaged(path: Path) -> config.ConfigError:
  return config.ConfigError(
    f'{path}: no certificate of contamination: build the data again, or '
    'delete it'
  )
