"""The arrays of a state in host memory: copies, hashes and their files.

A typed random key is stored as its words (uint32), under the name of its own
dtype; every other leaf is stored as it is. Bytes are little-endian and in C
order.
"""

import hashlib
import json
import math
from pathlib import Path
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import errors, tree
from lm.checkpoint import polling

EMPTY_SHA256 = hashlib.sha256().hexdigest()  # of an array without elements
_PART = 1 << 22  # numbers that are looked at together
assert sys.byteorder == 'little', 'hashes would differ from those elsewhere'


class HostArray(NamedTuple):
  """One leaf of a state in host memory.

  Attributes:
    dtype: the name of the leaf's dtype, such as 'key<fry>' for a random key.
    array: its value; the words of a random key.
  """

  dtype: str
  array: np.ndarray

  def record(self) -> dict[str, Any]:
    """Returns the record of the leaf in the manifest."""
    return {
      'shape': list(self.array.shape),
      'dtype': self.dtype,
      'sha256': sha256(self.array),
    }


class Spec:
  """The shape and the dtype's name of a leaf, for `tree.diff`."""

  def __init__(self, shape: Any, dtype: str):
    """Turns any sequence of sizes into the shape."""
    self.shape, self.dtype = tuple(shape), dtype


def specs(like: Any) -> dict[str, Spec]:
  """Describes by path how a tree of arrays or shapes is stored."""
  return {
    path: Spec(unwrap_key(leaf).shape, str(leaf.dtype))
    for path, leaf in tree.paths(like)
  }


def unwrap_key(leaf: Any) -> Any:
  """Turns a random key, or the shape of one, into its words.

  Every other leaf is returned as it is.
  """
  if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return leaf
  if isinstance(leaf, jax.Array):
    return jax.random.key_data(leaf)
  return jax.eval_shape(jax.random.key_data, leaf)


def wrap_key(leaf: jax.Array, like: Any) -> jax.Array:
  """Turns words back into a random key, if `like` is one."""
  if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
    return leaf
  impl = jax.random.key_impl(jnp.empty((), like.dtype))
  return jax.random.wrap_key_data(leaf, impl=impl)


def dtype(name: str) -> np.dtype:
  """Returns the dtype of the stored array for the name in a manifest.

  Raises:
    TypeError: arrays of numbers have no such dtype.
  """
  # jax knows the names that NumPy lacks, such as bfloat16.
  found = np.dtype(np.uint32) if name.startswith('key<') else jnp.dtype(name)
  if not (jnp.issubdtype(found, jnp.number) or found == np.bool_):
    raise TypeError(f'{name} is no type of numbers')
  return found


def nbytes(like: Any) -> int:
  """Counts the bytes of a tree of arrays or shapes.

  Raises:
    ValueError: one of them holds something else than numbers.
  """
  total = 0
  for path, spec in specs(like).items():
    try:
      total += math.prod(spec.shape) * dtype(spec.dtype).itemsize
    except TypeError as error:
      raise ValueError(f'{path} cannot be stored: {error}') from None
  return total


def copy(state: Any, old: dict[str, HostArray]) -> dict[str, HostArray]:
  """Copies all leaves to host memory that nothing else writes to, by path.

  Args:
    state: tree of arrays; may be donated when this returns.
    old: the last copy, whose memory is used again, since the kernel takes
      longer to give fresh pages than the copy itself takes.

  Raises:
    ValueError: a leaf cannot be stored.
  """
  flat = by_path(state)
  arrays = {path: unwrap_key(leaf) for path, leaf in flat.items()}
  for path, leaf in arrays.items():
    if isinstance(leaf, jax.Array):
      # Half an array would be saved, and nobody would notice before a restore.
      if not leaf.is_fully_addressable:
        raise ValueError(
          f'{path}: lies on devices of several processes: give the Checkpointer'
          ' their group, of lm.runtime.processes'
        )
      leaf.copy_to_host_async()  # all transfers run at once
  return {
    path: HostArray(
      str(flat[path].dtype),
      copy_array(leaf, old[path].array if path in old else None),
    )
    for path, leaf in arrays.items()
  }


def by_path(state: Any) -> dict[str, Any]:
  """Lists the leaves of a tree by path.

  Raises:
    ValueError: two of them would be stored in one place.
  """
  flat = dict(tree.paths(state))
  # Orbax calls the folder of leaf a/b 'a.b'.
  if len({path.replace('/', '.') for path in flat}) != len(flat):
    raise ValueError('two leaves have paths that differ only in "." and "/"')
  return flat


def copy_array(leaf: Any, buffer: np.ndarray | None) -> np.ndarray:
  """Copies an array to memory of our own, to `buffer` if that fits."""
  view = np.asarray(leaf)
  if _is_copy(leaf):
    return view  # a second copy would only cost time
  if (
    buffer is None
    or buffer.shape != view.shape
    or buffer.dtype != view.dtype
    or not buffer.flags.writeable
  ):
    buffer = np.empty(view.shape, view.dtype)
  np.copyto(buffer, view)
  return buffer


def is_finite(array: np.ndarray) -> bool:
  """Tells whether an array holds neither nan nor an infinite number.

  Arrays of whole numbers do.
  """
  if not jnp.issubdtype(array.dtype, jnp.inexact):
    return True
  flat = np.ascontiguousarray(array).reshape(-1)
  # In parts, or the answers would take as much memory as a quarter of it.
  return all(
    np.isfinite(flat[first : first + _PART]).all()
    for first in range(0, flat.size, _PART)
  )


def file_error(path: Path, name: str) -> str:
  """Says what is wrong with the numbers in a file; '' for nothing.

  Args:
    path: of a file without a header.
    name: of the dtype, as a manifest has it.
  """
  try:
    kind = dtype(name)
  except TypeError:
    return f'unknown dtype {name[:40]!r}'
  if path.stat().st_size % kind.itemsize:
    return f'is no array of {name}'
  if not path.stat().st_size:
    return ''
  array = np.memmap(path, kind, 'r')
  for first in range(0, array.size, _PART):
    polling.reached(f'{path} from byte {first} again')
    if not is_finite(array[first : first + _PART]):
      return 'holds nan or an infinite number'
  return ''


def not_finite(path: str, step: int) -> errors.NotFinite:
  """Makes the error for a leaf that may not be saved."""
  return errors.NotFinite(
    f'step {step} not saved: {path} holds nan or an infinite number: lower'
    ' optim.peak or look at where it comes from; older steps are intact'
  )


def sha256(array: np.ndarray) -> str:
  """Hashes an array's bytes."""
  return hashlib.sha256(bytes_of(array)).hexdigest()


def bytes_of(array: np.ndarray) -> memoryview:
  """Returns a view of an array's bytes, in C order."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def nest(flat: dict[str, Any]) -> dict[str, Any]:
  """Turns `{'a/b': x}` into `{'a': {'b': x}}`."""
  nested: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, name = path.split('/')
    place = nested
    for parent in parents:
      place = place.setdefault(parent, {})
    place[name] = leaf
  return nested


def check_written(content: dict[str, Any]) -> None:
  """Checks that the files on disk are the arrays that were in memory.

  An array that is written whole is one file of exactly its bytes. So the hash
  of the array in a manifest, computed in memory, must be the hash of the file,
  computed from what was read back.

  Args:
    content: a manifest.

  Raises:
    errors.Storage: two hashes differ.
  """
  for path, record in content['leaves'].items():
    # The only chunk of a matrix is called '0.0', that of a scalar '0'.
    chunk = '.'.join('0' for _ in record['shape']) or '0'
    name = f'state/{path.replace("/", ".")}/{chunk}'
    file = content['files'].get(name, {'sha256': 'no file'})
    if 0 not in record['shape'] and file['sha256'] != record['sha256']:
      raise not_as_written(name, content['step'])


def not_as_written(name: str, step: int) -> errors.Storage:
  """Makes the error for a file that is not what was in memory."""
  return errors.Storage(
    f'{name}: what was written at step {step} is not what was in memory: look'
    ' for a faulty disk or memory'
  )


def check_files(state: Path, records: dict[str, dict[str, Any]]) -> None:
  """Checks that reading takes no more memory than the files have bytes.

  The hashes of a stranger's checkpoint may all be right. But a tiny zarr file
  can announce terabytes of zeros, or decompress to them. Ours are never
  compressed, and all their chunks are there, so that anything else is refused
  before a parser sees it.

  Args:
    state: directory of arrays whose bytes are verified already.
    records: the leaves to be read, as in the manifest.

  Raises:
    errors.Damaged: something is not in the one format that lm writes.
  """
  metadata = json.loads((state / '_METADATA').read_bytes())
  if metadata['use_ocdbt'] or metadata['use_zarr3']:
    raise errors.Damaged(f'{state}: not in the format of lm; use another step')
  for path, record in records.items():
    folder = state / path.replace('/', '.')
    zarr = json.loads((folder / '.zarray').read_bytes())
    want = dtype(record['dtype'])
    # zarr has NumPy's codes ('<f4'), and plain names for the rest ('bfloat16').
    zarr_dtype = want.str if want.kind in 'biufc' else want.name
    chunk = want.itemsize * math.prod(zarr['chunks'])
    files = [file for file in folder.iterdir() if file.name != '.zarray']
    sizes = [file.stat().st_size for file in files]
    need = want.itemsize * math.prod(record['shape'])
    if (
      zarr['shape'] != record['shape']
      or not all(type(size) is int and size > 0 for size in zarr['chunks'])
      or zarr['dtype'] != zarr_dtype
      or zarr['compressor'] is not None
      or zarr['filters'] is not None
      or any(size != chunk for size in sizes)
      # No chunk is missing, and their padding is bounded.
      or not need <= sum(sizes) <= 2 * need
    ):
      raise errors.Damaged(
        f'{folder}: {sum(sizes)} bytes, announced as {zarr["dtype"]}'
        f'{zarr["shape"]}, are not {record["dtype"]}{record["shape"]}: not'
        ' written by lm; use another step'
      )


def _is_copy(leaf: Any) -> bool:
  """Tells whether `np.asarray` of a leaf has copied it."""
  # On a CPU it is a view of the device's own buffer, which the next training
  # step may overwrite once the state is donated.
  return isinstance(leaf, jax.Array) and all(
    device.platform != 'cpu' for device in leaf.devices()
  )
