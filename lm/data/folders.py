"""Lists the files of folders that hold data.

A folder may hold a dataset that `save_to_disk` of Hugging Face's `datasets`
wrote: `state.json` lists its files of Arrow, beside which others may lie that a
program cached. A folder of several of them, the splits of a dataset, has a file
`dataset_dict.json`.
"""

from collections.abc import Iterator
import json
import os
from typing import Any

from lm.data import byte_files, names, remote_files

_STATE, _INFO, _SPLITS = 'state.json', 'dataset_info.json', 'dataset_dict.json'
_MOST = 16 << 20  # bytes of such a file


def files(folder: str) -> list[str] | None:
  """Lists the files of a folder at any depth, but no hidden ones, sorted.

  Of a dataset of Hugging Face only those are listed that hold its rows.

  Args:
    folder: its path, or an address, see `remote_files`.

  Returns:
    None: it is no folder.

  Raises:
    ValueError: a folder cannot be read, or it holds a dataset of which a file
      is missing, or one of several splits, of which one must be named.
  """
  if remote_files.is_address(folder):
    found = remote_files.inside(folder, 'input')
    if found is None:
      return None
    start = len(folder.rstrip('/'))
    found = [x for x in found if '/.' not in x[start:]]
  elif os.path.isdir(folder):
    found = sorted(_local(folder))
  else:
    return None
  by_folder: dict[str, list[str]] = {}
  for path in found:
    place, _, name = path.rpartition('/')
    by_folder.setdefault(place, []).append(name)
  chosen: list[str] = []
  for place, inside in by_folder.items():
    chosen += [f'{place}/{name}' for name in _chosen(place, inside)]
  return chosen


def _local(folder: str) -> Iterator[str]:
  """Lists the files of a folder of this machine.

  Raises:
    ValueError: a folder in it cannot be read.
  """

  def refuse(error: OSError) -> None:
    name = names.short(error.filename)
    raise ValueError(
      f'input {name}: cannot be read ({error.strerror}); check it'
    ) from error

  for place, folders, inside in os.walk(folder, onerror=refuse):
    folders[:] = [x for x in folders if not x.startswith('.')]
    for file in inside:
      path = os.path.join(place, file)
      if not file.startswith('.') and os.path.isfile(path):
        yield path


def _chosen(place: str, inside: list[str]) -> list[str]:
  """Chooses the files of one folder that hold data."""
  where = f'input {names.short(place)}'
  if _SPLITS in inside:
    splits = _read(f'{place}/{_SPLITS}').get('splits')
    if not isinstance(splits, list) or len(splits) != 1:
      raise ValueError(
        f'{where}: holds the splits {", ".join(map(str, splits or []))[:60]}; '
        'give the folder of one'
      )
    return [x for x in inside if x != _SPLITS]
  if not {_STATE, _INFO} <= set(inside):
    return inside
  listed = _read(f'{place}/{_STATE}').get('_data_files')
  rows = [
    x['filename']
    for x in (listed if isinstance(listed, list) else [])
    if isinstance(x, dict) and isinstance(x.get('filename'), str)
  ]
  missing = [x for x in rows if x not in inside]
  if missing or not rows:
    which = names.short(missing[0]) if missing else 'its files'
    raise ValueError(
      f'{where}: {which} of {_STATE} is not there; copy the whole folder'
    )
  return rows


def _read(path: str) -> dict[str, Any]:
  """Reads an object of JSON.

  Raises:
    ValueError: it is damaged.
  """
  with byte_files.stored(path, 'input') as file:
    data = file.read(_MOST)
  try:
    value = json.loads(data)
  except (ValueError, RecursionError):
    value = None
  if not isinstance(value, dict):
    raise ValueError(f'input {names.short(path)}: is not JSON; fetch it again')
  return value
