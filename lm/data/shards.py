"""Reads token arrays from disk: memory-mapped, and checked before use.

A dataset is a directory: flat little-endian arrays of ids (`*.bin`), beside
each the offsets of its documents (`*.idx`, int64), and `manifest.json`. Every
document is its tokens followed by eos, so a token starts a document exactly
where the one before it is eos.
"""

import bisect
from collections.abc import Iterable, Sequence
import errno
import hashlib
import itertools
import os
from pathlib import Path
import stat
import threading
from typing import NamedTuple
import zlib

import numpy as np

from lm import types
from lm.data import manifest as manifests
from lm.data import names

_FIX = 'restore it or prepare the data again'


class Place(NamedTuple):
  """Where a document lies.

  Attributes:
    shard: name of its shard.
    document: its number in the shard.
    offset: of its first token in the shard.
    start: of its first token in the dataset's stream.
    stop: after its last token, which is eos.
  """

  shard: str
  document: int
  offset: int
  start: int
  stop: int


class Shards:
  """A dataset as one stream of T tokens over all shards.

  Reading is thread-safe: all that changes is which blocks have been checked,
  and checking one twice does no harm.

  Attributes:
    directory: of the dataset.
    manifest: of the dataset.
    fingerprint: sha256 of the manifest.
    reading: path of the shard that each thread, by its name, is reading now; so
      the error of a reader that hangs names both.
  """

  def __init__(self, directory: Path, manifest: manifests.Manifest):
    self.directory = directory
    self.manifest = manifest
    self.fingerprint = manifest.fingerprint
    self.reading: dict[str, str] = {}
    self._first_token = _starts(s.tokens for s in manifest.shards)
    self._first_document = _starts(s.documents for s in manifest.shards)
    self._tokens = [
      _Blocks(directory, s, manifests.TOKENS, manifest) for s in manifest.shards
    ]
    self._offsets = [
      _Blocks(directory, s, manifests.OFFSETS, manifest)
      for s in manifest.shards
    ]

  def rows(self, starts: np.ndarray, length: int) -> np.ndarray:
    """Gathers rows of the stream, which is cyclic: token T is token 0.

    Args:
      starts: int64 [B], place of the first token of each row, maybe negative.
      length: of a row.

    Returns:
      int32 [B, length].

    Raises:
      ValueError: a block that was not read before is damaged.
    """
    out = np.empty((len(starts), length), np.int32)
    total = self.manifest.tokens
    firsts, maps = self._first_token, self._tokens
    thread = threading.current_thread().name
    try:
      for row, start in zip(out, (starts % total).tolist(), strict=True):
        done = 0
        while done < length:  # once, unless the row crosses into other shards
          n = bisect.bisect_right(firsts, start) - 1
          count = min(length - done, firsts[n + 1] - start)
          self.reading[thread] = maps[n].path
          row[done : done + count] = maps[n].read(start - firsts[n], count)
          done += count
          start = (start + count) % total
    finally:
      self.reading.pop(thread, None)
    return out

  def read(self, start: int, stop: int) -> np.ndarray:
    """Reads tokens [start, stop) of the stream: int32 [stop - start]."""
    assert 0 <= start <= stop <= self.manifest.tokens, (start, stop)
    return self.rows(np.asarray([start]), stop - start)[0]

  def document(self, index: int) -> np.ndarray:
    """Reads a document by its number: int32, its tokens and then eos."""
    assert 0 <= index < self.manifest.documents, index
    n = bisect.bisect_right(self._first_document, index) - 1
    start, stop = self._offsets[n].read(index - self._first_document[n], 2)
    return self._tokens[n].read(start, stop - start).astype(np.int32)

  def place(self, index: int) -> Place:
    """Finds where a document lies, by its number in the dataset."""
    assert 0 <= index < self.manifest.documents, index
    n = bisect.bisect_right(self._first_document, index) - 1
    number = index - self._first_document[n]
    start, stop = self._offsets[n].read(number, 2).tolist()
    first = self._first_token[n]
    name = self.manifest.shards[n].name
    return Place(name, number, start, first + start, first + stop)

  def document_at(self, token: int) -> int:
    """Finds the number of the document that a token of the stream is in."""
    assert 0 <= token < self.manifest.tokens, token
    n = bisect.bisect_right(self._first_token, token) - 1
    offsets = self._offsets[n].read(0, self._offsets[n].size)
    inside = np.searchsorted(offsets, token - self._first_token[n], 'right') - 1
    return self._first_document[n] + int(inside)

  def verify(self) -> None:
    """Reads every byte and checks checksums, ids and offsets.

    Raises:
      ValueError: something is damaged.
    """
    for tokens, offsets in zip(self._tokens, self._offsets, strict=True):
      tokens.verify()
      offsets.verify()
      ends = np.flatnonzero(tokens.read(0, tokens.size) == self.manifest.eos)
      starts = offsets.read(0, offsets.size)
      if starts[0] != 0 or not np.array_equal(starts[1:], ends + 1):
        raise ValueError(
          f'shard {offsets.path}: offsets do not match the tokens; {_FIX}'
        )


class _Blocks:
  """A memory-mapped file, whose blocks are checked before their first use."""

  def __init__(
    self,
    directory: Path,
    shard: manifests.Shard,
    suffix: str,
    manifest: manifests.Manifest,
  ):
    file = directory / f'{shard.name}{suffix}'
    self.path = names.short(file)
    self._file = file
    self._expected = shard.files[suffix]
    try:
      status = file.stat()
    except OSError as e:
      raise ValueError(
        f'shard {self.path}: cannot be read ({e.strerror}); {_FIX}'
      ) from e
    if not stat.S_ISREG(status.st_mode):
      raise ValueError(f'shard {self.path}: not a file; {_FIX}')
    if status.st_size != self._expected.bytes:
      raise ValueError(
        f'shard {self.path}: has {status.st_size} bytes, not '
        f'{self._expected.bytes}; {_FIX}'
      )
    try:
      memory = np.memmap(file, np.uint8, 'r')
    except OSError as e:
      if e.errno == errno.ENOMEM:
        raise ValueError(
          f'shard {self.path}: the system gives this process no more memory '
          'maps, of which each shard needs two: raise vm.max_map_count, or '
          'prepare larger shards'
        ) from e
      raise ValueError(
        f'shard {self.path}: cannot be read ({e.strerror}); {_FIX}'
      ) from e
    # A plain array, because slicing a `memmap` costs more than copying a row.
    self._bytes = memory.view(np.ndarray)
    is_tokens = suffix == manifests.TOKENS
    self._items = self._bytes.view(
      manifest.dtype if is_tokens else manifests.OFFSET
    )
    self._below = manifest.vocab if is_tokens else shard.tokens + 1
    self._checked = bytearray(len(self._expected.crc32))
    self.size = self._items.size

  def read(self, start: int, count: int) -> np.ndarray:
    """Returns items [start, start + count), as a view into the map."""
    item = self._items.itemsize
    first = start * item // manifests.BLOCK_BYTES
    stop = -(-(start + count) * item // manifests.BLOCK_BYTES)
    if (
      0 in self._checked[first:stop]
    ):  # one search, as most reads need no check
      for block in range(first, stop):
        self._check(block)
    return self._items[start : start + count]

  def _check(self, block: int) -> None:
    """Checks the checksum and the ids of a block, if that was not done.

    Raises:
      ValueError: the block is damaged.
    """
    if self._checked[block]:
      return
    at = slice(
      block * manifests.BLOCK_BYTES, (block + 1) * manifests.BLOCK_BYTES
    )
    data = self._bytes[at]
    if zlib.crc32(data.data) != self._expected.crc32[block]:
      raise ValueError(
        f'shard {self.path}: block {block} of {len(self._checked)} is damaged '
        f'(crc32); {_FIX}'
      )
    # jax silently clamps an id that is outside the vocabulary.
    items = data.view(self._items.dtype)
    if items.min() < 0 or items.max() >= self._below:
      raise ValueError(
        f'shard {self.path}: block {block} holds {items.max()}, outside the '
        f'range of {self._below}; {_FIX}'
      )
    self._checked[block] = 1

  def verify(self) -> None:
    """Checks all blocks and the hash of the file.

    Raises:
      ValueError: the file is damaged.
    """
    for block in range(len(self._checked)):
      self._checked[block] = 0
      self._check(block)
    with self._file.open('rb') as f:
      if hashlib.file_digest(f, 'sha256').hexdigest() != self._expected.sha256:
        raise ValueError(f'shard {self.path}: wrong sha256; {_FIX}')


def load(
  directory: str | os.PathLike[str],
  tokenizer: types.Tokenizer | None = None,
) -> Shards:
  """Opens a dataset: checks the manifest, and names and sizes of all files.

  The content of files is checked block by block, when it is first read.

  Args:
    directory: that `writer.write` wrote.
    tokenizer: that must have written the dataset; None: any may have.

  Raises:
    ValueError: the manifest or a shard is missing, damaged, truncated or not
      of this dataset, or another tokenizer wrote it.
  """
  path = Path(directory)
  manifest = manifests.load(path)
  if tokenizer is not None:
    # Reserved ids do not count: shards serve any number of them.
    size = tokenizer.size - tokenizer.reserved
    if (manifest.tokenizer, manifest.vocab) != (tokenizer.sha256, size):
      raise ValueError(
        f'dataset {names.short(path)}: written with tokenizer '
        f'{manifest.tokenizer[:12]} of {manifest.vocab} ids, not '
        f'{tokenizer.sha256[:12]} of {size}; give that one or prepare the data '
        'again'
      )
    if manifest.eos != tokenizer.eos:
      raise ValueError(
        f'dataset {names.short(path)}: its documents end in id {manifest.eos},'
        f' and eos is {tokenizer.eos} now; prepare the data again'
      )
  suffixes = (manifests.TOKENS, manifests.OFFSETS)
  known = {s.name + suffix for s in manifest.shards for suffix in suffixes}
  for file in sorted(path.iterdir()):
    if file.suffix in suffixes and file.name not in known:
      raise ValueError(
        f'shard {names.short(file)}: not in the manifest; remove it or '
        'prepare the data again'
      )
  return Shards(path, manifest)


def _starts(counts: Iterable[int]) -> Sequence[int]:
  """Returns the first item of each shard, and the number of all items."""
  return list(itertools.accumulate(counts, initial=0))
