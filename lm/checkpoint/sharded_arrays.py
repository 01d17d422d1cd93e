"""Arrays in shards: what each of several processes writes and reads of a leaf.

A leaf that is sharded over devices is stored as one zarr chunk per shard. Each
process writes the shards that it holds, not compressed: the same format as that
of `host_arrays`, where an array is a single chunk. A reader may be sharded in
another way than the writer was. No process ever holds more than its own shards
and one leaf.
"""

from collections.abc import Callable, Iterator
import hashlib
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm import errors
from lm.checkpoint import host_arrays

# How much of a leaf is put together at a time, to be hashed in C order.
_BAND_BYTES = 1 << 26


class ShardedArray(NamedTuple):
  """The shards of one leaf that one process writes, in host memory.

  Attributes:
    dtype: the name of the leaf's dtype, as in `host_arrays.HostArray`.
    shape: of the whole leaf.
    chunk: the shape of one shard.
    shards: the shards that this process writes, by the name of their chunk.
  """

  dtype: str
  shape: tuple[int, ...]
  chunk: tuple[int, ...]
  shards: dict[str, np.ndarray]


def copy(state: Any, old: dict[str, ShardedArray]) -> dict[str, ShardedArray]:
  """Copies this process's shards to host memory, by path.

  Several devices may hold the same shard. The process that has its replica 0
  writes it, so that every shard is written exactly once.

  Args:
    state: tree of arrays; may be donated when this returns.
    old: the last copy, whose memory is used again.

  Raises:
    ValueError: a leaf cannot be stored.
  """
  leaves = []
  for path, leaf in host_arrays.by_path(state).items():
    array = host_arrays.unwrap_key(leaf)
    # jax shards evenly, so that all shards of a leaf have the shape of a chunk.
    chunk = array.sharding.shard_shape(array.shape)
    shards = {
      chunk_name(shard.index, chunk): shard.data
      for shard in array.addressable_shards
      if shard.replica_id == 0 and array.size
    }
    for shard in shards.values():
      shard.copy_to_host_async()  # all transfers run at once
    leaves.append((path, str(leaf.dtype), array.shape, chunk, shards))
  copies = {}
  for path, dtype, shape, chunk, shards in leaves:
    buffers = old[path].shards if path in old else {}
    arrays = {
      name: host_arrays.copy_array(shard, buffers.get(name))
      for name, shard in shards.items()
    }
    copies[path] = ShardedArray(dtype, shape, chunk, arrays)
  return copies


def chunk_name(index: tuple[slice, ...], chunk: tuple[int, ...]) -> str:
  """Returns the name of the chunk that begins where a shard does."""
  starts = (
    (part.start or 0) // size for part, size in zip(index, chunk, strict=True)
  )
  return '.'.join(map(str, starts)) or '0'


def chunk_names(
  shape: tuple[int, ...], chunk: tuple[int, ...]
) -> Iterator[str]:
  """Yields the names of all chunks of a leaf, in C order."""
  grid = (size // part for size, part in zip(shape, chunk, strict=True))
  for place in itertools.product(*map(range, grid)):
    yield '.'.join(map(str, place)) or '0'


def write_header(folder: Path, array: ShardedArray) -> None:
  """Turns the folder of an array of one element into that of a sharded leaf.

  Orbax has written that array. So whatever its format needs besides the shapes
  comes from orbax itself, and only the shapes are ours.
  """
  header = folder / '.zarray'
  zarr = json.loads(header.read_bytes())
  # All else in the header (dtype, order, no compressor) is as orbax wrote it.
  zarr |= {'shape': list(array.shape), 'chunks': list(array.chunk)}
  header.write_text(json.dumps(zarr))
  for file in folder.iterdir():
    if file != header:
      file.unlink()


def write(folder: Path, array: ShardedArray) -> dict[str, str]:
  """Writes this process's shards of a leaf and syncs them to disk.

  Returns:
    The sha256 of each shard as it was in memory, by the name of its chunk.
  """
  hashes = {}
  for name, shard in array.shards.items():
    # Before it is written: this is the hash that the disk is compared with.
    hashes[name] = host_arrays.sha256(shard)
    # 'x': a file that is there already means that two processes write it.
    with (folder / name).open('xb') as file:
      file.write(host_arrays.bytes_of(shard))
      file.flush()
      os.fsync(file.fileno())
  return hashes


def read_back(
  folder: Path, array: ShardedArray
) -> tuple[str, dict[str, dict[str, Any]]]:
  """Hashes a leaf as it is on disk: as a whole, and each of its files.

  Returns:
    The sha256 of the leaf in C order, and records of the form `{chunk name:
    {'bytes': int, 'sha256': str}}`.
  """
  files = {}
  sha256 = host_arrays.EMPTY_SHA256
  for name in chunk_names(array.shape, array.chunk):
    with (folder / name).open('rb') as file:
      sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
      files[name] = {'bytes': file.tell(), 'sha256': sha256}
  if len(files) == 1:
    return sha256, files  # one chunk is the leaf in C order
  whole = hashlib.sha256()
  for band in _bands(folder, array, list(files)):
    whole.update(host_arrays.bytes_of(band))
  return whole.hexdigest(), files


def _bands(
  folder: Path, array: ShardedArray, names: list[str]
) -> Iterator[np.ndarray]:
  """Yields a leaf from first row to last, a few of its rows at a time.

  A leaf's hash is that of its bytes in C order, in which the rows of chunks
  that lie side by side alternate. Memory maps and bands of bounded size put
  them in order without holding the leaf.
  """
  dtype = host_arrays.dtype(array.dtype)
  row_bytes = dtype.itemsize * math.prod(array.shape[1:])
  rows = max(1, min(array.chunk[0], _BAND_BYTES // row_bytes))
  for first in range(0, array.shape[0], array.chunk[0]):
    chunks = {
      name: np.memmap(folder / name, dtype, 'r', shape=array.chunk)
      for name in names
      if int(name.split('.')[0]) == first // array.chunk[0]  # these rows
    }
    for top in range(0, array.chunk[0], rows):
      size = min(rows, array.chunk[0] - top)
      band = np.empty((size, *array.shape[1:]), dtype)
      for name, part in chunks.items():
        columns = tuple(
          slice(*span) for span in _chunk_spans(name, array.chunk)[1:]
        )
        band[(slice(None), *columns)] = part[top : top + size]
      yield band


def read(
  folder: Path,
  record: dict[str, Any],
  file_record: Callable[[str], dict[str, Any]],
  sharding: jax.sharding.Sharding,
) -> jax.Array:
  """Reads the shards of a leaf that belong on this process's devices.

  Args:
    folder: of the leaf, checked by `host_arrays.check_files`.
    record: of the leaf in the manifest.
    file_record: from the name of a chunk to its record in the manifest.
    sharding: any; it need not be the one that the leaf was written with.

  Raises:
    errors.Damaged: a chunk is not what the manifest says.
  """
  shape, dtype = tuple(record['shape']), host_arrays.dtype(record['dtype'])
  if 0 in shape:
    return jax.make_array_from_callback(
      shape, sharding, lambda index: np.empty(shape, dtype)[index]
    )
  zarr = json.loads((folder / '.zarray').read_bytes())
  chunk = tuple(zarr['chunks'])
  # Several shards may need the same chunk, which is read and verified once.
  verified: dict[str, np.ndarray] = {}

  def read_chunk(name: str) -> np.ndarray:
    if name not in verified:
      data = (folder / name).read_bytes()
      if hashlib.sha256(data).hexdigest() != file_record(name)['sha256']:
        raise errors.Damaged(
          f'{folder / name}: sha256 differs: bits have changed; use another'
          ' step'
        )
      verified[name] = np.frombuffer(data, dtype).reshape(chunk)
    return verified[name]

  def read_shard(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None
    spans = [part.indices(n)[:2] for part, n in zip(index, shape, strict=True)]
    name = chunk_name(index, chunk)
    if spans == _chunk_spans(name, chunk):
      return read_chunk(name)  # sharded as it was written: no copy
    # Sharded in another way: put together from all chunks that overlap.
    out = np.empty([stop - first for first, stop in spans], dtype)
    for name in chunk_names(shape, chunk):
      if slices := _overlap(spans, _chunk_spans(name, chunk)):
        target, source = slices
        out[target] = read_chunk(name)[source]
    return out

  return jax.make_array_from_callback(shape, sharding, read_shard)


def _overlap(
  spans: list[tuple[int, int]], chunk_spans: list[tuple[int, int]]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
  """Finds what a shard and a chunk have in common.

  Args:
    spans: the shard's first and last index plus one, by dimension.
    chunk_spans: the chunk's.

  Returns:
    The common part as slices of the shard, and as slices of the chunk; None if
    they have nothing in common.
  """
  common = [
    (max(a, c), min(b, d))
    for (a, b), (c, d) in zip(spans, chunk_spans, strict=True)
  ]
  if not all(first < stop for first, stop in common):
    return None
  in_shard, in_chunk = (
    tuple(
      slice(first - start, stop - start)
      for (first, stop), (start, _) in zip(common, origin, strict=True)
    )
    for origin in (spans, chunk_spans)
  )
  return in_shard, in_chunk


def _chunk_spans(name: str, chunk: tuple[int, ...]) -> list[tuple[int, int]]:
  # A scalar's only chunk is called '0' although it has no dimension.
  places = [int(word) for word in name.split('.')][: len(chunk)]
  return [
    (place * size, (place + 1) * size)
    for place, size in zip(places, chunk, strict=True)
  ]
