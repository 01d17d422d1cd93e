"""The manifest of a dataset: what its files are, down to the block.

`manifest.json` is one canonical JSON text that ends in its own hash, so every
changed bit of it is noticed. That hash is the dataset's fingerprint.
"""

import hashlib
import json
from pathlib import Path
import re
from typing import Any, NamedTuple

import numpy as np

from lm.data import names

FORMAT = 1
NAME = 'manifest.json'
# The unit that is checked when first touched: small enough that a random read
# does not wait (about 1 ms), large enough that the checksums stay tiny.
BLOCK_BYTES = 1 << 20
TOKENS, OFFSETS = '.bin', '.idx'  # suffixes of a shard's two files
OFFSET = np.dtype('<i8')
_SHARD_NAME = re.compile(r'[0-9A-Za-z_-]{1,64}')
_FIX = 'restore it or prepare the data again'


class File(NamedTuple):
  """A file's size in bytes, its sha256 and the crc32 of each block."""

  bytes: int
  sha256: str
  crc32: tuple[int, ...]


class Shard(NamedTuple):
  """A shard: `name.bin` holds its tokens, `name.idx` where documents start."""

  name: str
  documents: int
  tokens: int
  files: dict[str, File]


class Manifest(NamedTuple):
  """A dataset: documents in order, each of them its tokens and then eos.

  Attributes:
    tokenizer: sha256 of the tokenizer that wrote it.
    vocab: that tokenizer's size; every id is below it.
    bos, eos, pad: that tokenizer's special ids.
    documents: how many, none of them empty.
    tokens: how many, one eos a document included.
    text_bytes: UTF-8 bytes of all documents, what bits per byte divide by.
    settings: how the data was prepared, for readers.
    shards: in the order of the token stream.
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

  @property
  def dtype(self) -> np.dtype:
    """The type of ids on disk."""
    return dtype(self.vocab)

  @property
  def fingerprint(self) -> str:
    """The sha256 of all of the above."""
    return hashlib.sha256(_canonical(_to_json(self))).hexdigest()


def dtype(vocab: int) -> np.dtype:
  """Gives the smallest type of ids: little-endian uint16 or uint32."""
  return np.dtype('<u2' if vocab <= 1 << 16 else '<u4')


def dump(manifest: Manifest) -> bytes:
  """Writes the canonical text."""
  body = _to_json(manifest)
  return _canonical({**body, 'sha256': manifest.fingerprint}) + b'\n'


def load(directory: Path) -> Manifest:
  """Reads and checks `directory/manifest.json`.

  Raises:
    ValueError: it is missing, changed since written, of another format, or
      contradicts itself.
  """
  where = names.short(directory)
  try:
    data = (directory / NAME).read_bytes()
  except OSError as e:
    raise ValueError(
      f'dataset {where}: {NAME} cannot be read ({e.strerror}); give a '
      'directory that lm.data.prepare.write_dataset wrote'
    ) from e
  try:
    body = json.loads(data)
    version = body['format']
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise ValueError(f'dataset {where}: {NAME} is no manifest; {_FIX}') from e
  if version != FORMAT:
    raise ValueError(
      f'dataset {where}: {NAME} has format {str(version)[:20]}, not {FORMAT}; '
      'prepare the data again'
    )
  try:
    manifest = _from_json(body)
    unchanged = dump(manifest) == data
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
    raise ValueError(f'dataset {where}: {NAME} is malformed; {_FIX}') from e
  if not unchanged:
    raise ValueError(
      f'dataset {where}: {NAME} differs from its own sha256; {_FIX}'
    )
  _check(manifest, where)
  return manifest


def _check(m: Manifest, where: str) -> None:
  """Refuses sizes that contradict each other and names that leave `where`."""

  def demand(good: bool, what: str) -> None:
    if not good:
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
      good = file.bytes == sizes[suffix] and len(file.crc32) == blocks
      demand(good, f'size of shard {name}{suffix}')


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
  return {**m._asdict(), 'format': FORMAT, 'shards': shards}


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
  if type(value) is not int or not 0 <= value < 1 << 62:
    raise ValueError('not a count')
  return value
