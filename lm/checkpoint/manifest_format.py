"""The format of a manifest, and what may be wrong with one or with a file.

A manifest may have been written by a stranger, so that nothing in it is
believed: names must stay inside the step's directory, numbers must be natural
numbers, and its bytes must be exactly those that lm writes for its content.
Everything here is standard library.
"""

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from lm.checkpoint import polling
from lm.runtime import regular_files

LARGEST_BYTES = 1 << 26  # a manifest of 100,000 leaves has 25 MB
VERSION = 1
_PART_BYTES = 1 << 22
_FIELDS = {'format', 'step', 'meta', 'leaves', 'files', 'checkpoint', 'sha256'}


def encode(content: dict[str, Any]) -> bytes:
  """Returns the one form in which lm writes JSON that is hashed."""
  return json.dumps(content, sort_keys=True, indent=1).encode() + b'\n'


def content_hash(step: int, leaves: dict[str, Any], meta: Any) -> str:
  """Hashes what training continues from: step, data position and leaves."""
  data = meta.get('data') if isinstance(meta, dict) else None
  return hashlib.sha256(
    encode({'step': step, 'data': data, 'leaves': leaves})
  ).hexdigest()


def own_hash(content: dict[str, Any]) -> str:
  """Hashes all fields of a manifest but the one that holds this hash."""
  rest = {k: v for k, v in content.items() if k != 'sha256'}
  return hashlib.sha256(encode(rest)).hexdigest()


def file_hash(path: Path, *, sync: bool = False) -> str:
  """Hashes a file; `sync` first makes it survive a power cut."""
  with regular_files.open_read(path) as file:
    if sync:
      os.fsync(file.fileno())
    digest = hashlib.sha256()
    while part := file.read(_PART_BYTES):
      digest.update(part)
      polling.reached(f'{path} from byte {file.tell()}')
    return digest.hexdigest()


def manifest_error(text: bytes, step: int) -> str:
  """Says what is wrong with the manifest of a step; '' for nothing."""
  if len(text) > LARGEST_BYTES:
    return f'larger than {LARGEST_BYTES} bytes'
  try:
    content = json.loads(text)
    if not isinstance(content, dict) or content.keys() != _FIELDS:
      return 'not a manifest of lm'
    # Byte for byte, so that no flipped bit hides in what a parser forgives.
    if encode(content) != text:
      return 'changed (not in the form in which lm writes it)'
    if content['sha256'] != own_hash(content):
      return 'changed (its own sha256 differs)'
    if content['format'] != VERSION:
      return f'format {content["format"]}, this lm reads {VERSION}'
    if content['step'] != step:
      return f'says step {content["step"]}: the directory was renamed'
    return _content_error(content)
  except (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
  ) as error:
    # Each line above may meet a value of any type.
    return f'unreadable ({type(error).__name__})'


def _content_error(content: dict[str, Any]) -> str:
  for name, record in content['files'].items():
    parts = PurePosixPath(name).parts
    # 'a//b' and 'a/./b' name files twice; '..' and '/' leave the directory.
    if (
      not parts or '/'.join(parts) != name or parts[0] == '/' or '..' in parts
    ) or '\0' in name:
      return f'unsafe file name {name[:40]!r}'
    if not _is_natural(record['bytes']) or not isinstance(
      record['sha256'], str
    ):
      return f'bad record of file {name[:40]!r}'
  for path, record in content['leaves'].items():
    if any(part in ('', '.', '..') for part in path.split('/')) or '\0' in path:
      return f'unsafe leaf name {path[:40]!r}'
    if (
      not isinstance(record['shape'], list)
      or not all(_is_natural(size) for size in record['shape'])
      or not all(isinstance(record[key], str) for key in ('dtype', 'sha256'))
    ):
      return f'bad record of leaf {path[:40]!r}'
  expected = content_hash(content['step'], content['leaves'], content['meta'])
  return '' if expected == content['checkpoint'] else 'content hash differs'


def _is_natural(value: Any) -> bool:
  # Exactly int: JSON's true is an int to `isinstance`, and 1.0 equals 1.
  return type(value) is int and 0 <= value < 1 << 62


def file_error(path: Path | None, record: dict[str, Any] | None) -> str:
  """Says what is wrong with one file of a step; '' for nothing.

  Args:
    path: the file; None if it is not there.
    record: of the file in the manifest; None if it has none.
  """
  if record is None:
    return 'extra file, not in the manifest'
  if path is None:
    return 'missing'
  if path.is_symlink():
    return 'is a symlink, which is not followed'
  size = path.stat().st_size
  if size != record['bytes']:
    kind = 'truncated' if size < record['bytes'] else 'grown'
    return f'{kind}: {size} bytes, expected {record["bytes"]}'
  if file_hash(path) != record['sha256']:
    return 'sha256 differs from the manifest: bits have changed'
  return ''
