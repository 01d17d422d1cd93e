"""Writes a dataset: streamed, with checksums, and all of it or nothing."""

from collections.abc import Iterable, Iterator
import contextlib
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import Any, NamedTuple
import zlib

import numpy as np

from lm import types
from lm.data import manifest as manifests
from lm.data import names, shards
from lm.data.tokenizers import vocabulary
from lm.runtime import temporary

_TEXT_AT_ONCE = 1 << 20  # characters encoded together


class Block(NamedTuple):
  """Documents in a row, as ids.

  Attributes:
    tokens: ids of all documents, each followed by eos: [T] of the type that
      `manifest.dtype` chooses.
    lengths: int64 [D], tokens of each document, eos included.
    text_bytes: bytes of UTF-8 of the documents.
    lost_bytes: how many of them the ids do not give back: 0 without a look if
      the tokenizer is lossless.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  text_bytes: int
  lost_bytes: int


def write(
  directory: str | os.PathLike[str],
  documents: Iterable[str],
  tokenizer: types.Tokenizer,
  *,
  shard_tokens: int = 1 << 28,
  settings: dict[str, Any] | None = None,
) -> manifests.Manifest:
  """Encodes documents and writes them as a dataset, all of it or nothing.

  Args:
    directory: see `assemble`.
    documents: are read once, in order; empty ones are left out.
    tokenizer: of the dataset.
    shard_tokens: see `assemble`.
    settings: see `assemble`.

  Raises:
    ValueError: the directory holds something else, or there are no documents.
  """
  return assemble(
    directory,
    encode(documents, tokenizer),
    tokenizer,
    shard_tokens=shard_tokens,
    settings=settings,
  )


def assemble(
  directory: str | os.PathLike[str],
  blocks: Iterable[Block],
  tokenizer: types.Tokenizer,
  *,
  shard_tokens: int = 1 << 28,
  settings: dict[str, Any] | None = None,
  replaces: bool = False,
) -> manifests.Manifest:
  """Writes blocks as a dataset, all of it or nothing.

  Writing the same dataset again changes nothing.

  Args:
    directory: is made; it may exist if it is empty.
    blocks: are read once, in order. How documents are grouped in them does not
      change the dataset.
    tokenizer: that encoded them.
    shard_tokens: a shard is closed with the document that reaches this.
    settings: are kept in the manifest, for people who read it.
    replaces: whether another dataset in the directory is replaced.

  Raises:
    ValueError: the directory holds something else, or there are no documents.
  """
  target = Path(directory)
  kept = json.loads(json.dumps(settings or {}))  # as it will be read back
  old = None
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    old = shards.load(target).manifest
    if (old.tokenizer, old.settings) != (tokenizer.sha256, kept) and (
      not replaces
    ):
      raise occupied(target)
  target.parent.mkdir(parents=True, exist_ok=True)
  with temporary.folder(f'.{target.name}.', target.parent) as place:
    part = Path(place)
    new = _write(part, blocks, tokenizer, shard_tokens, kept)
    if old == new:
      return new
    if old is not None and not replaces:
      raise occupied(target)
    if old is not None:
      # A kill between the two leaves no dataset, and never half of one.
      target.rename(part / 'old')
    part.chmod(0o755)  # only its owner may read it
    part.rename(target)
    shutil.rmtree(target / 'old', ignore_errors=True)
    _sync(target.parent)
  return new


def occupied(target: Path) -> ValueError:
  """Makes the error of a directory with another dataset."""
  return ValueError(
    f'dataset {names.short(target)}: holds another dataset; remove it or '
    'write to another directory'
  )


def encode(
  documents: Iterable[str], tokenizer: types.Tokenizer
) -> Iterator[Block]:
  """Encodes documents in order; empty ones are left out."""
  vocab = tokenizer.size - tokenizer.reserved
  dtype = manifests.dtype(vocab)
  specials = (tokenizer.bos, tokenizer.eos, tokenizer.pad)
  for texts in _batches(documents):
    lost = 0
    arrays = []
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
      if not tokenizer.lossless:
        lost += vocabulary.lost_bytes(text, tokenizer.decode(ids))
      array = np.empty(len(ids) + 1, np.int32)
      array[:-1], array[-1] = ids, tokenizer.eos
      assert array.min() >= 0 and array.max() < vocab
      # Readers find documents by eos, so one inside would start another.
      forged = any((array[:-1] == x).any() for x in specials)
      assert not forged, 'a forged special id'
      arrays.append(array.astype(dtype))
    yield Block(
      np.concatenate(arrays),
      np.asarray([len(x) for x in arrays], np.int64),
      sum(len(text.encode()) for text in texts),
      lost,
    )


def _write(
  part: Path,
  blocks: Iterable[Block],
  tokenizer: types.Tokenizer,
  shard_tokens: int,
  settings: dict[str, Any],
) -> manifests.Manifest:
  """Writes shards and their manifest into an empty directory."""
  assert shard_tokens > 0
  text_bytes = lost_bytes = 0
  written: list[manifests.Shard] = []
  shard: _ShardWriter | None = None
  for block in blocks:
    text_bytes += block.text_bytes
    lost_bytes += block.lost_bytes
    ends = np.cumsum(block.lengths)
    first, begin = 0, 0  # document and token of the block that come next
    while first < len(ends):
      # Not opened before it gets a document, so that no shard stays empty.
      shard = shard or _ShardWriter(part, f'{len(written):05d}')
      reach = begin + shard_tokens - shard.tokens
      last = min(int(np.searchsorted(ends, reach)), len(ends) - 1)
      end = int(ends[last])
      shard.add(block.tokens[begin:end], block.lengths[first : last + 1])
      first, begin = last + 1, end
      if shard.tokens >= shard_tokens:
        written.append(shard.close())
        shard = None
  if shard:
    written.append(shard.close())
  if not written:
    raise ValueError(
      'no documents to write: the input is empty or holds only empty ones; '
      'check its path and settings'
    )
  manifest = manifests.Manifest(
    tokenizer=tokenizer.sha256,
    vocab=tokenizer.size - tokenizer.reserved,
    bos=tokenizer.bos,
    eos=tokenizer.eos,
    pad=tokenizer.pad,
    documents=sum(s.documents for s in written),
    tokens=sum(s.tokens for s in written),
    text_bytes=text_bytes,
    settings=settings,
    shards=tuple(written),
    lost_bytes=None if tokenizer.lossless else lost_bytes,
  )
  with _Writer(part / manifests.NAME) as out:
    out.add(manifests.dump(manifest))
  _sync(part)
  return manifest


class _ShardWriter:
  """Writes the two files of a shard."""

  def __init__(self, part: Path, name: str):
    self._part = part
    self._name = name
    self._files = contextlib.ExitStack()
    self._out = self._files.enter_context(
      _Writer(part / f'{name}{manifests.TOKENS}')
    )
    self._offsets = [np.zeros(1, np.int64)]
    self.tokens = 0

  def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
    """Appends documents: their tokens, and how many each has."""
    self._out.add(tokens.tobytes())
    self._offsets.append(self.tokens + np.cumsum(lengths))
    self.tokens += len(tokens)

  def close(self) -> manifests.Shard:
    """Ends the shard."""
    self._files.close()
    offsets = np.concatenate(self._offsets)
    with _Writer(self._part / f'{self._name}{manifests.OFFSETS}') as index:
      index.add(offsets.astype(manifests.OFFSET).tobytes())
    return manifests.Shard(
      self._name,
      documents=len(offsets) - 1,
      tokens=self.tokens,
      files={
        manifests.TOKENS: self._out.file(),
        manifests.OFFSETS: index.file(),
      },
    )


class _Writer:
  """Writes a file, computes its checksums, and syncs it to disk at the end."""

  def __init__(self, path: Path):
    self._path = path
    self._size = 0
    self._sha256 = hashlib.sha256()
    self._crc32: list[int] = []

  def __enter__(self) -> '_Writer':
    self._out = self._path.open('wb')
    return self

  def __exit__(self, *unused: object) -> None:
    with self._out:
      self._out.flush()
      os.fsync(self._out.fileno())

  def add(self, data: bytes) -> None:
    """Appends data to the file."""
    self._out.write(data)
    self._sha256.update(data)
    view = memoryview(data)
    while view:
      used = self._size % manifests.BLOCK_BYTES
      if not used:
        self._crc32.append(0)
      piece = view[: manifests.BLOCK_BYTES - used]
      self._crc32[-1] = zlib.crc32(piece, self._crc32[-1])
      self._size += len(piece)
      view = view[len(piece) :]

  def file(self) -> manifests.File:
    """Returns what the manifest says of the file."""
    return manifests.File(
      self._size, self._sha256.hexdigest(), tuple(self._crc32)
    )


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
  """Groups documents, so that the tokenizer can use all cores on a group."""
  texts: list[str] = []
  size = 0
  for text in documents:
    if text:
      texts.append(text)
      # 64 for the object itself, so that a group of very short texts is not
      # larger in memory than one of long ones.
      size += len(text) + 64
    if size >= _TEXT_AT_ONCE:
      yield texts
      texts, size = [], 0
  if texts:
    yield texts


def _sync(directory: Path) -> None:
  """Makes renames and new names in a directory survive a power cut."""
  handle = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
