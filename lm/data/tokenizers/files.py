"""Reads and writes the files of tokenizers, and makes their errors."""

import json
import os
from pathlib import Path

from lm.data import names
from lm.runtime import regular_files


def read(path: str) -> bytes:
  """Reads the file of a tokenizer.

  Raises:
    ValueError: the file cannot be read.
  """
  try:
    return regular_files.read(Path(path))
  except (OSError, ValueError) as e:  # a path may hold a NUL
    why = getattr(e, 'strerror', e)
    raise error(
      path,
      f'cannot be read ({why}); give the path of a file that '
      'lm.corpus.prepare.train_tokenizer wrote',
    ) from e


def write(path: str, data: bytes) -> None:
  """Writes all of a file or nothing: a kill leaves no half tokenizer."""
  target = Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  part = target.with_name(f'.{target.name}.{os.getpid()}')
  try:
    part.write_bytes(data)
    part.replace(target)
  finally:
    part.unlink(missing_ok=True)


def is_tokenizer_json(path: str) -> bool:
  """Tells if a file is a `tokenizer.json` of Hugging Face.

  Raises:
    ValueError: the file cannot be read.
  """
  if not path.endswith('.json'):
    return False
  data = read(path)
  try:
    tree = json.loads(data)
  except (ValueError, RecursionError):
    return False
  return isinstance(tree, dict) and 'model' in tree


def error(path: str, cause: str) -> ValueError:
  """Makes the error of a tokenizer's file, in one printable line."""
  cause = ''.join(c if c.isprintable() else '?' for c in cause)
  return ValueError(f'tokenizer {names.short(path)}: {cause}')
