"""The manifest of a dataset, which describes its files down to the block.

`manifest.json` is a canonical JSON text that contains its own hash, so that
every changed bit of it is noticed. That hash is the fingerprint of the dataset.
"""

import hashlib
import json
from pathlib import Path
import re
from typing import Any, NamedTuple

import numpy as np

from lm.data import names
from lm.runtime import regular_files

FORMAT = 1
NAME = 'manifest.json'
# Blocks are checked when they are first read. They are so small that a random
# read waits only about 1 ms, and so large that their checksums take no space.
BLOCK_BYTES = 1 << 20
TOKENS, OFFSETS = '.bin', '.idx'  # suffixes of a shard's two files
OFFSET = np.dtype('<i8')
_SHARD_NAME = re.compile(r'[0-9A-Za-z_-]{1,64}')
_FIX = 'restore it or prepare the data again'


class File(NamedTuple):
  """The size of a file in bytes, its sha256 and the crc32 of each block."""

  bytes: int
  sha256: str
  crc32: tuple[int, ...]


class Shard(NamedTuple):
  """A shard: tokens in `name.bin`, and where documents start in `name.idx`."""

  name: str
  documents: int
  tokens: int
  files: dict[str, File]


class Manifest(NamedTuple):
  """Describes a dataset: documents in order, each its tokens and then eos.

  Attributes:
    tokenizer: sha256 of the tokenizer that wrote the dataset.
    vocab: size of that tokenizer; every id is below it.
    bos: id of the tokenizer.
    eos: id of the tokenizer.
    pad: id of the tokenizer.
    documents: number of documents, none of them empty.
    tokens: number of tokens, one eos a document included.
    text_bytes: bytes of UTF-8 of all documents, by which bits per byte divide.
    settings: how the data was prepared, for people who read the file.
    shards: in the order of the token stream.
    lost_bytes: how many of the bytes its ids do not give back, see
      `vocabulary.lost_bytes`; 0 only if they give back every document exactly.
      None if it was not measured: the tokenizer loses no text by its own rules,
      or an older version wrote the dataset.
  """

  tokenizer: str
  vocab: int
  bos: int
  eos: int
  pad: int
  documents: int
  tokens: int
  text_bytes: int
  settings: dict[str, Any]
  shards: tuple[Shard, ...]
  lost_bytes: int | None = None

  @property
  def dtype(self) -> np.dtype:
    """The type of the ids on disk."""
    return dtype(self.vocab)

  @property
  def fingerprint(self) -> str:
    """The sha256 of all attributes."""
    return hashlib.sha256(_canonical(_to_json(self))).hexdigest()


def dtype(vocab: int) -> np.dtype:
  """Returns the smallest type for ids: little-endian uint16 or uint32."""
  return np.dtype('<u2' if vocab <= 1 << 16 else '<u4')


def dump(manifest: Manifest) -> bytes:
  """Returns the canonical text of `manifest.json`."""
  body = _to_json(manifest)
  return _canonical({**body, 'sha256': manifest.fingerprint}) + b'\n'


def load(directory: Path) -> Manifest:
  """Reads and checks `directory/manifest.json`.

  Raises:
    ValueError: the file is missing, was changed, has another format, or
      contradicts itself.
  """
  where = names.short(directory)
  try:
    data = regular_files.read(directory / NAME)
  except (OSError, ValueError) as e:  # a path may hold a NUL
    why = getattr(e, 'strerror', e)
    raise ValueError(
      f'dataset {where}: {NAME} cannot be read ({why}); give a '
      'directory that lm.corpus.prepare.write_dataset wrote'
    ) from e
  try:
    body = json.loads(data)
    version = body['format']
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise ValueError(
      f'dataset {where}: {NAME} is not a manifest; {_FIX}'
    ) from e
  if version != FORMAT:
    raise ValueError(
      f'dataset {where}: {NAME} has format {str(version)[:20]}, not {FORMAT}; '
      'prepare the data again'
    )
  try:
    manifest = _from_json(body)
    is_unchanged = dump(manifest) == data
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
    raise ValueError(f'dataset {where}: {NAME} is malformed; {_FIX}') from e
  if not is_unchanged:
    raise ValueError(
      f'dataset {where}: {NAME} differs from its own sha256; {_FIX}'
    )
  _check(manifest, where)
  return manifest


def _check(m: Manifest, where: str) -> None:
  """Checks that sizes agree, and that names do not leave the directory.

  Raises:
    ValueError: they do not agree, or a name has other characters.
  """

  def demand(is_good: bool, what: str) -> None:
    if not is_good:
      raise ValueError(f'dataset {where}: {NAME}: {what}; {_FIX}')

  demand(0 < m.vocab <= 1 << 31, 'vocabulary size out of range')
  for i in (m.bos, m.eos, m.pad):
    demand(0 <= i < m.vocab, 'special id outside the vocabulary')
  demand(bool(m.shards), 'no shards')
  demand(len({s.name for s in m.shards}) == len(m.shards), 'a shard twice')
  demand(m.tokens == sum(s.tokens for s in m.shards), 'wrong token count')
  demand(
    m.documents == sum(s.documents for s in m.shards), 'wrong document count'
  )
  demand(m.text_bytes > 0, 'no text')
  demand((m.lost_bytes or 0) <= m.text_bytes, 'lost more bytes than it has')
  for s in m.shards:
    name = names.short(s.name)
    demand(_SHARD_NAME.fullmatch(s.name) is not None, f'bad name {name}')
    demand(0 < s.documents <= s.tokens, f'counts of shard {name}')
    sizes = {
      TOKENS: s.tokens * m.dtype.itemsize,
      OFFSETS: (s.documents + 1) * OFFSET.itemsize,
    }
    demand(s.files.keys() == sizes.keys(), f'files of shard {name}')
    for suffix, file in s.files.items():
      blocks = -(-file.bytes // BLOCK_BYTES)
      is_good = file.bytes == sizes[suffix] and len(file.crc32) == blocks
      demand(is_good, f'size of shard {name}{suffix}')


def _canonical(body: dict[str, Any]) -> bytes:
  return json.dumps(body, indent=1, sort_keys=True).encode()


def _to_json(m: Manifest) -> dict[str, Any]:
  shards = [
    {
      **s._asdict(),
      'files': {
        suffix: {
          'bytes': file.bytes,
          'sha256': file.sha256,
          'crc32': ''.join(f'{crc:08x}' for crc in file.crc32),
        }
        for suffix, file in s.files.items()
      },
    }
    for s in m.shards
  ]
  body = {**m._asdict(), 'format': FORMAT, 'shards': shards}
  if m.lost_bytes is None:
    del body['lost_bytes']  # as in manifests of older versions
  return body


def _from_json(body: dict[str, Any]) -> Manifest:
  shards = [
    Shard(
      str(s['name']),
      _count(s['documents']),
      _count(s['tokens']),
      {suffix: _file(file) for suffix, file in s['files'].items()},
    )
    for s in body['shards']
  ]
  counts = {
    key: _count(body[key])
    for key in (
      'vocab',
      'bos',
      'eos',
      'pad',
      'documents',
      'tokens',
      'text_bytes',
    )
  }
  if 'lost_bytes' in body:
    counts['lost_bytes'] = _count(body['lost_bytes'])
  return Manifest(
    tokenizer=str(body['tokenizer']),
    settings=dict(body['settings']),
    shards=tuple(shards),
    **counts,
  )


def _file(file: dict[str, Any]) -> File:
  crcs = bytes.fromhex(file['crc32'])
  return File(
    _count(file['bytes']),
    str(file['sha256']),
    tuple(np.frombuffer(crcs, '>u4').tolist()),
  )


def _count(value: Any) -> int:
  """Checks a number; `True` and 1.0 are none, though they equal 1."""
  if type(value) is not int or not 0 <= value < 1 << 62:
    raise ValueError('not a count')
  return value
