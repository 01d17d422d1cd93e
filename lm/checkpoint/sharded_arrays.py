"""Leaves in parts: what each of several processes writes and reads of them.

A leaf that is cut over devices is stored as one zarr chunk a part, written by
the process that holds it and not compressed: the format of `leaves`, where an
array is one chunk. Who reads need not be cut the same way. No process ever
holds more than its own parts and one leaf.
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

_BAND_BYTES = 1 << 26  # of a leaf that are put together at a time to be hashed


class Parts(NamedTuple):
  """What one process holds of a leaf, in host memory.

  Attributes:
    dtype: its name, as in `leaves.Leaf`.
    shape: of the whole leaf.
    chunk: of one part.
    arrays: the parts that this process writes, by chunk name.
  """

  dtype: str
  shape: tuple[int, ...]
  chunk: tuple[int, ...]
  arrays: dict[str, np.ndarray]


def copy(state: Any, old: dict[str, Parts]) -> dict[str, Parts]:
  """Copies this process's parts to host memory of our own, by path.

  Of parts that lie on several devices, the device of replica 0 decides whose
  it is to write. Arguments as of `leaves.copy`.

  Raises:
    ValueError: a leaf cannot be stored.
  """
  held = []
  for path, leaf in host_arrays.by_path(state).items():
    array = host_arrays.raw(leaf)
    chunk = array.sharding.shard_shape(array.shape)
    shards = {
      name(shard.index, chunk): shard.data
      for shard in array.addressable_shards
      if shard.replica_id == 0 and array.size
    }
    for part in shards.values():
      part.copy_to_host_async()
    held.append((path, str(leaf.dtype), array.shape, chunk, shards))
  copies = {}
  for path, dtype, shape, chunk, shards in held:
    known = old[path].arrays if path in old else {}
    arrays = {
      key: host_arrays.keep(part, known.get(key))
      for key, part in shards.items()
    }
    copies[path] = Parts(dtype, shape, chunk, arrays)
  return copies


def name(index: tuple[slice, ...], chunk: tuple[int, ...]) -> str:
  """Returns the name of the chunk that begins where a part does."""
  starts = (
    (cut.start or 0) // size for cut, size in zip(index, chunk, strict=True)
  )
  return '.'.join(map(str, starts)) or '0'


def names(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[str]:
  """Yields the names of all chunks of a leaf, in C order."""
  grid = (size // part for size, part in zip(shape, chunk, strict=True))
  for place in itertools.product(*map(range, grid)):
    yield '.'.join(map(str, place)) or '0'


def announce(folder: Path, parts: Parts) -> None:
  """Turns the folder of an array of one element into that of a leaf in parts.

  Orbax made it: what its format needs beside shapes stays orbax's affair.
  """
  header = folder / '.zarray'
  zarr = json.loads(header.read_bytes())
  zarr |= {'shape': list(parts.shape), 'chunks': list(parts.chunk)}
  header.write_text(json.dumps(zarr))
  for file in folder.iterdir():
    if file != header:
      file.unlink()


def write(folder: Path, parts: Parts) -> dict[str, str]:
  """Writes and syncs the parts of a leaf; returns their sha256 in memory."""
  hashes = {}
  for key, array in parts.arrays.items():
    hashes[key] = host_arrays.sha256(array)
    with (folder / key).open('xb') as file:
      file.write(host_arrays.bytes_of(array))
      file.flush()
      os.fsync(file.fileno())
  return hashes


def read_back(
  folder: Path, parts: Parts
) -> tuple[str, dict[str, dict[str, Any]]]:
  """Hashes a leaf as it lies on disk, whole and by file.

  Returns:
    The sha256 of the leaf in C order, and `{chunk name: {bytes, sha256}}`.
  """
  files = {}
  for key in names(parts.shape, parts.chunk):
    with (folder / key).open('rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
      files[key] = {'bytes': file.tell(), 'sha256': found}
  if len(files) == 1:
    return found, files
  whole = hashlib.sha256()
  kind = host_arrays.dtype(parts.dtype)
  row_bytes = kind.itemsize * math.prod(parts.shape[1:])
  rows = max(1, min(parts.chunk[0], _BAND_BYTES // row_bytes))
  for first in range(0, parts.shape[0], parts.chunk[0]):
    opened = {
      key: np.memmap(folder / key, kind, 'r', shape=parts.chunk)
      for key in files
      if int(key.split('.')[0]) == first // parts.chunk[0]
    }
    for top in range(0, parts.chunk[0], rows):
      size = min(rows, parts.chunk[0] - top)
      band = np.empty((size, *parts.shape[1:]), kind)
      for key, part in opened.items():
        band[(slice(None), *_place(key, parts.chunk)[1:])] = part[
          top : top + size
        ]
      whole.update(host_arrays.bytes_of(band))
  return whole.hexdigest(), files


def read(
  folder: Path,
  record: dict[str, Any],
  file: Callable[[str], dict[str, Any]],
  where: jax.sharding.Sharding,
) -> jax.Array:
  """Reads what lies on this process of a leaf.

  Args:
    folder: of the leaf, checked by `leaves.check_files`.
    record: of the leaf in the manifest.
    file: from the name of a chunk to its record in the manifest.
    where: any sharding.

  Raises:
    errors.Damaged: a chunk is not what the manifest says.
  """
  shape, kind = tuple(record['shape']), host_arrays.dtype(record['dtype'])
  if 0 in shape:
    return jax.make_array_from_callback(
      shape, where, lambda index: np.empty(shape, kind)[index]
    )
  zarr = json.loads((folder / '.zarray').read_bytes())
  chunk = tuple(zarr['chunks'])
  opened: dict[str, np.ndarray] = {}

  def verified(key: str) -> np.ndarray:
    if key not in opened:
      data = (folder / key).read_bytes()
      if hashlib.sha256(data).hexdigest() != file(key)['sha256']:
        raise errors.Damaged(
          f'{folder / key}: sha256 differs: bits have changed; use another step'
        )
      opened[key] = np.frombuffer(data, kind).reshape(chunk)
    return opened[key]

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None
    spans = [cut.indices(n)[:2] for cut, n in zip(index, shape, strict=True)]
    if spans == _spans(key := name(index, chunk), chunk):
      return verified(key)
    out = np.empty([stop - first for first, stop in spans], kind)
    for key in names(shape, chunk):
      both = [
        (max(a, c), min(b, d))
        for (a, b), (c, d) in zip(spans, _spans(key, chunk), strict=True)
      ]
      if all(first < stop for first, stop in both):
        to = tuple(
          slice(first - a, stop - a)
          for (first, stop), (a, _) in zip(both, spans, strict=True)
        )
        of = tuple(
          slice(first - a, stop - a)
          for (first, stop), (a, _) in zip(
            both, _spans(key, chunk), strict=True
          )
        )
        out[to] = verified(key)[of]
    return out

  return jax.make_array_from_callback(shape, where, part)


def _spans(key: str, chunk: tuple[int, ...]) -> list[tuple[int, int]]:
  places = [int(word) for word in key.split('.')][: len(chunk)]
  return [
    (place * size, (place + 1) * size)
    for place, size in zip(places, chunk, strict=True)
  ]


def _place(key: str, chunk: tuple[int, ...]) -> tuple[slice, ...]:
  return tuple(slice(*span) for span in _spans(key, chunk))
