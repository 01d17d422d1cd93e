"""Tensors in safetensors files: one file, or several with an index.

Headers are read first. Tensors are read one at a time, after `layout.check` has
checked all their shapes.
"""

from collections.abc import Callable, Mapping
import json
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

ONE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
DTYPES = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_LARGEST_JSON = 100 << 20  # bytes; the largest tokenizers have 33 MB


class Source(NamedTuple):
  """A published model whose files are open.

  Attributes:
    where: what errors call it.
    config: the content of its config.json.
    shapes: of all tensors, by name.
    read: `name -> array` in the stored dtype. It raises a ValueError if that is
      not in `DTYPES`.
    dtype: of all floating-point tensors; 'float32' if they have several.
  """

  where: str
  config: dict[str, Any]
  shapes: Mapping[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]
  dtype: str


def open_folder(folder: Path) -> Source:
  """Opens a folder of config.json and safetensors.

  Raises:
    ValueError: a file is missing, broken or in another format; one line.
  """
  config = read_json(folder / 'config.json')
  if (folder / 'adapter_config.json').exists():
    raise ValueError(
      f'{folder}: adapter_config.json: an adapter beside a model is not read: '
      'merge it first, and save the result'
    )
  files = _files(folder)
  shapes: dict[str, tuple[int, ...]] = {}
  kinds: dict[str, str] = {}
  opened: dict[str, Any] = {}
  for path in files:
    try:
      file = safetensors.safe_open(path, 'np')
      for name in file.keys():  # noqa: SIM118 - it is no dict
        slice_ = file.get_slice(name)
        if name in shapes:
          raise ValueError(f'{path}: tensor {name} is in two files')
        shapes[name] = tuple(slice_.get_shape())
        kinds[name], opened[name] = slice_.get_dtype(), file
    except (safetensors.SafetensorError, OSError) as error:
      raise ValueError(
        f'{path}: not a sound safetensors file ({error}); fetch it again'
      ) from error

  def read(name: str) -> np.ndarray:
    if kinds[name] not in DTYPES:
      raise ValueError(
        f'tensor {name} is {kinds[name]}; only {", ".join(DTYPES)} are read'
      )
    return opened[name].get_tensor(name)

  floats = {DTYPES[kind] for kind in kinds.values() if kind in DTYPES}
  dtype = floats.pop() if len(floats) == 1 else np.dtype(np.float32)
  return Source(str(folder), config, shapes, read, str(dtype))


def save(tensors: Mapping[str, np.ndarray], folder: Path, dtype: str) -> None:
  """Writes one safetensors file in a dtype; a kill leaves no part of it.

  Raises:
    OSError: the file cannot be written.
  """
  kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
  part = folder / f'.{ONE}.part'
  try:
    safetensors.numpy.save_file(
      {name: x.astype(kind) for name, x in tensors.items()},
      part,
      metadata={'format': 'pt'},  # transformers refuses a file without
    )
    part.replace(folder / ONE)
  except safetensors.SafetensorError as error:
    raise OSError(None, str(error), str(part)) from error
  finally:
    part.unlink(missing_ok=True)


def read_json(path: Path, kind: type = dict) -> Any:
  """Reads a JSON object, or a list, of limited size.

  Raises:
    ValueError: the file is missing, too large or of another kind.
  """
  try:
    if path.stat().st_size > _LARGEST_JSON:
      raise ValueError('larger than 100 MiB')
    content = json.loads(path.read_text(encoding='utf-8'))
    if not isinstance(content, kind):
      raise ValueError('no object' if kind is dict else 'no list')
  except OSError as error:
    raise ValueError(f'{path}: cannot be read ({error.strerror})') from error
  except (ValueError, RecursionError) as error:
    what = 'object' if kind is dict else 'list'
    raise ValueError(f'{path}: not a JSON {what} ({error})') from error
  return content


def _files(folder: Path) -> list[Path]:
  if (folder / ONE).is_file():
    return [folder / ONE]
  if not (folder / INDEX).is_file():
    raise ValueError(
      f'{folder}: holds no {ONE}; files of pickled tensors (*.bin) are not '
      'read: save the model with safetensors first'
    )
  names = read_json(folder / INDEX).get('weight_map')
  if not isinstance(names, dict) or not all(
    isinstance(name, str) and name == Path(name).name for name in names.values()
  ):
    raise ValueError(
      f'{folder / INDEX}: weight_map must name files of this folder'
    )
  return [folder / name for name in sorted(set(names.values()))]
