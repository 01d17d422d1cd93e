"""Writing a dataset: streamed, checksummed, and all of it or nothing."""

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
    directory: made here; may exist if empty.
    documents: read once, in order; empty ones are left out.
    tokenizer: turns them into ids.
    shard_tokens: a shard is closed with the document that reaches this.
    settings: kept in the manifest, for readers.

  Raises:
    ValueError: the directory holds something else, or there are no documents.
  """
  target = Path(directory)
  kept = json.loads(json.dumps(settings or {}))  # as it will be read back
  old = None
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    old = shards.load(target).manifest
    if (old.tokenizer, old.settings) != (tokenizer.sha256, kept):
      raise _taken(target)
  target.parent.mkdir(parents=True, exist_ok=True)
  part = Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
  try:
    new = _write(part, documents, tokenizer, shard_tokens, kept)
    if old is None:
      part.chmod(0o755)  # mkdtemp lets only the owner in
      part.rename(target)
      _sync(target.parent)
    elif old != new:
      raise _taken(target)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return new


def _taken(target: Path) -> ValueError:
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
  assert shard_tokens > 0
  vocab = tokenizer.size - tokenizer.reserved
  dtype = manifests.dtype(vocab)
  specials = (tokenizer.bos, tokenizer.eos, tokenizer.pad)
  text_bytes = 0
  done: list[manifests.Shard] = []
  stream = itertools.chain.from_iterable(
    zip(texts, tokenizer.encode_batch(texts), strict=True)
    for texts in _batches(documents)
  )
  following = next(stream, None)
  while following is not None:
    name = f'{len(done):05d}'
    offsets = [0]
    with _Writer(part / f'{name}{manifests.TOKENS}') as out:
      while following is not None and offsets[-1] < shard_tokens:
        text, ids = following
        text_bytes += len(text.encode())
        array = np.asarray([*ids, tokenizer.eos], np.int64)
        assert array.min() >= 0 and array.max() < vocab
        # An eos inside would start a document that is none.
        assert not np.isin(array[:-1], specials).any(), 'a forged special id'
        out.add(array.astype(dtype).tobytes())
        offsets.append(offsets[-1] + len(array))
        following = next(stream, None)
    with _Writer(part / f'{name}{manifests.OFFSETS}') as index:
      index.add(np.asarray(offsets, manifests.OFFSET).tobytes())
    done.append(
      manifests.Shard(
        name,
        documents=len(offsets) - 1,
        tokens=offsets[-1],
        files={manifests.TOKENS: out.file(), manifests.OFFSETS: index.file()},
      )
    )
  if not done:
    raise ValueError(
      'no documents to write: the input is empty or holds only empty ones; '
      'check its path and settings'
    )
  manifest = manifests.Manifest(
    tokenizer=tokenizer.sha256,
    vocab=vocab,
    bos=tokenizer.bos,
    eos=tokenizer.eos,
    pad=tokenizer.pad,
    documents=sum(s.documents for s in done),
    tokens=sum(s.tokens for s in done),
    text_bytes=text_bytes,
    settings=settings,
    shards=tuple(done),
  )
  with _Writer(part / manifests.NAME) as out:
    out.add(manifests.dump(manifest))
  _sync(part)
  return manifest


class _Writer:
  """Writes a file and its checksums as it goes, and syncs it at the end."""

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
      size += len(text) + 64  # an object's own weight: short ones must not pile
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
