"""Writes a dataset: streamed, with checksums, and all of it or nothing."""

from collections.abc import Iterable, Iterator
import hashlib
import itertools
import json
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any
import zlib

import numpy as np

from lm import types
from lm.data import manifest as manifests
from lm.data import names, shards
from lm.data.tokenizers import vocabulary

_TEXT_AT_ONCE = 1 << 20  # characters encoded together


def write(
  directory: str | os.PathLike[str],
  documents: Iterable[str],
  tokenizer: types.Tokenizer,
  *,
  shard_tokens: int = 1 << 28,
  settings: dict[str, Any] | None = None,
) -> manifests.Manifest:
  """Writes a dataset, all of it or nothing.

  Writing the same dataset again changes nothing.

  Args:
    directory: is made; it may exist if it is empty.
    documents: are read once, in order; empty ones are left out.
    tokenizer: of the dataset.
    shard_tokens: a shard is closed with the document that reaches this.
    settings: are kept in the manifest, for people who read it.

  Raises:
    ValueError: the directory holds something else, or there are no documents.
  """
  target = Path(directory)
  kept = json.loads(json.dumps(settings or {}))  # as it will be read back
  old = None
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    old = shards.load(target).manifest
    if (old.tokenizer, old.settings) != (tokenizer.sha256, kept):
      raise _occupied(target)
  target.parent.mkdir(parents=True, exist_ok=True)
  part = Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
  try:
    new = _write(part, documents, tokenizer, shard_tokens, kept)
    if old is None:
      part.chmod(0o755)  # mkdtemp lets only the owner read
      part.rename(target)
      _sync(target.parent)
    elif old != new:
      raise _occupied(target)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return new


def _occupied(target: Path) -> ValueError:
  return ValueError(
    f'dataset {names.short(target)}: holds another dataset; remove it or '
    'write to another directory'
  )


def _write(
  part: Path,
  documents: Iterable[str],
  tokenizer: types.Tokenizer,
  shard_tokens: int,
  settings: dict[str, Any],
) -> manifests.Manifest:
  """Writes shards and their manifest into an empty directory."""
  assert shard_tokens > 0
  stream = itertools.chain.from_iterable(
    zip(texts, tokenizer.encode_batch(texts), strict=True)
    for texts in _batches(documents)
  )
  text_bytes = lost_bytes = 0
  written: list[manifests.Shard] = []
  # One document ahead, so that no shard is begun that stays empty.
  following = next(stream, None)
  while following is not None:
    rest = itertools.chain([following], stream)
    shard, size, lost = _write_shard(
      part, f'{len(written):05d}', rest, tokenizer, shard_tokens
    )
    written.append(shard)
    text_bytes += size
    lost_bytes += lost
    following = next(stream, None)
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


def _write_shard(
  part: Path,
  name: str,
  documents: Iterator[tuple[str, list[int]]],
  tokenizer: types.Tokenizer,
  shard_tokens: int,
) -> tuple[manifests.Shard, int, int]:
  """Writes one shard.

  Args:
    part: directory.
    name: of the shard.
    documents: text and ids of each; as many are read as the shard has.
    tokenizer: that encoded them.
    shard_tokens: the shard is closed with the document that reaches this.

  Returns:
    The shard, the number of bytes of its text, and how many of them the ids do
    not give back: 0 without a look if the tokenizer is lossless.
  """
  vocab = tokenizer.size - tokenizer.reserved
  dtype = manifests.dtype(vocab)
  specials = (tokenizer.bos, tokenizer.eos, tokenizer.pad)
  text_bytes = lost_bytes = 0
  offsets = [0]
  with _Writer(part / f'{name}{manifests.TOKENS}') as out:
    for text, ids in documents:
      text_bytes += len(text.encode())
      if not tokenizer.lossless:
        lost_bytes += vocabulary.lost_bytes(text, tokenizer.decode(ids))
      array = np.asarray([*ids, tokenizer.eos], np.int64)
      assert array.min() >= 0 and array.max() < vocab
      # Readers find documents by eos, so one inside would start another.
      assert not np.isin(array[:-1], specials).any(), 'a forged special id'
      out.add(array.astype(dtype).tobytes())
      offsets.append(offsets[-1] + len(array))
      if offsets[-1] >= shard_tokens:
        break
  with _Writer(part / f'{name}{manifests.OFFSETS}') as index:
    index.add(np.asarray(offsets, manifests.OFFSET).tobytes())
  shard = manifests.Shard(
    name,
    documents=len(offsets) - 1,
    tokens=offsets[-1],
    files={manifests.TOKENS: out.file(), manifests.OFFSETS: index.file()},
  )
  return shard, text_bytes, lost_bytes


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
