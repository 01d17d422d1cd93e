"""Reads checkpoints back: every file is verified before it is parsed.

The order is always the same. The manifest is read and checked; every file is
compared with it; the headers of the arrays are checked, so that they ask for no
more memory than their files have bytes; then the arrays are parsed, and their
values are hashed once more.
"""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import errors, tree
from lm.checkpoint import host_arrays, manifest, orbax_io, sharded_arrays

_SCALES = 'extra/scales/'
_AVERAGES = 'opt_state/average/'  # see lm.optim.averages


def restore(
  workdir: str | os.PathLike[str],
  like: Any,
  shardings: Any,
  step: int | None = None,
) -> tuple[Any, Any]:
  """Restores a state onto devices, however many there are.

  Args:
    workdir: of the run to restore from.
    like: tree of shapes and dtypes, such as `jax.eval_shape` returns.
    shardings: tree of shardings with the structure of `like`, or one sharding
      for all leaves.
    step: the step to restore; None for the newest sound one.

  Returns:
    The state and its meta.

  Raises:
    errors.Missing: there is no checkpoint.
    errors.Gone: there is no step of this number (any more).
    errors.Damaged: this step, or every step, is damaged.
    errors.Mismatch: paths, shapes or dtypes differ; nothing is ever cast.
  """
  return manifest.newest(
    workdir, lambda n: load(workdir, n, like, shardings), step
  )


def restore_params(
  workdir: str | os.PathLike[str],
  step: int | None = None,
  *,
  averaged: bool = True,
) -> dict[str, Any]:
  """Reads the parameters alone, as nested dicts of numpy arrays.

  It needs no mesh and no model. The optimizer's state is verified but not read.
  Where the run keeps averages of parameters, these are read in their place:
  they are what the run is evaluated with. Parameters that are stored as whole
  numbers (see `lm.layers.compress`) are multiplied by their scales, which are
  in `extra/scales` at the same paths.

  Args:
    workdir: of the run.
    step: the step to read; None for the newest sound one.
    averaged: False reads the parameters that are trained in any case.

  Raises:
    errors.Missing: there is no checkpoint, or it has no parameters.
    errors.Gone: there is no step of this number (any more).
    errors.Damaged: this step, or every step, is damaged.
  """
  return manifest.newest(
    workdir, lambda n: _load_params(workdir, n, averaged), step
  )


def load(
  workdir: str | os.PathLike[str],
  step: int,
  like: Any,
  shardings: Any,
  verified: dict[str, Any] | None = None,
) -> tuple[Any, Any]:
  """Restores one step.

  Args:
    workdir: of the run.
    step: the step to restore.
    like: tree of shapes and dtypes.
    shardings: tree of shardings, or one for all leaves.
    verified: the step's manifest, if its files have been compared with it
      already; None compares them now.

  Returns:
    The state and its meta.

  Raises:
    errors.Gone: there is no such step (any more).
    errors.Damaged: the step is damaged.
    errors.Mismatch: paths, shapes or dtypes differ.
  """
  content = verified or manifest.verify(workdir, step)
  specs = host_arrays.specs(like)
  # Compared by path, before any array is read: a state is never cast, filled up
  # or cut to fit a config.
  if lines := tree.diff(_specs(content['leaves']), specs):
    raise errors.Mismatch(
      f'{manifest.directory(workdir, step)}: {len(lines)} leaves differ from'
      f' this configuration: {"; ".join(lines[:3])}: use the config it was'
      ' saved with',
      lines,
    )
  if isinstance(shardings, jax.sharding.Sharding):
    by_path = dict.fromkeys(specs, shardings)
  else:
    by_path = dict(tree.paths(shardings))
  assert specs.keys() == by_path.keys(), sorted(specs.keys() ^ by_path.keys())
  # With other processes, each reads only what it holds, and orbax, which would
  # wait for the others, is not asked.
  if all(sharding.is_fully_addressable for sharding in by_path.values()):
    arrays = _read(workdir, step, content['leaves'], by_path)
    # Arrays without elements, which orbax cannot store, are numpy's until here.
    arrays = {k: jax.device_put(v, by_path[k]) for k, v in arrays.items()}
  else:
    arrays = _read_sharded(workdir, step, content, by_path)
  leaves = [
    host_arrays.wrap_key(arrays[path], leaf) for path, leaf in tree.paths(like)
  ]
  return jax.tree.unflatten(jax.tree.structure(like), leaves), content['meta']


def _read_sharded(
  workdir: str | os.PathLike[str],
  step: int,
  content: dict[str, Any],
  shardings: dict[str, jax.sharding.Sharding],
) -> dict[str, jax.Array]:
  """Reads the shards of a step that belong on this process's devices."""
  state = manifest.directory(workdir, step) / 'state'
  records = content['leaves']
  arrays = {}
  with _explained(state.parent):
    # The files' hashes are compared chunk by chunk, when they are read.
    host_arrays.check_files(state, _with_elements(records))
    for path, record in records.items():
      folder = state / path.replace('/', '.')

      def file_record(name: str, folder: Path = folder) -> dict[str, Any]:
        return content['files'][f'state/{folder.name}/{name}']

      arrays[path] = sharded_arrays.read(
        folder, record, file_record, shardings[path]
      )
  return arrays


def _load_params(
  workdir: str | os.PathLike[str], step: int, averaged: bool
) -> dict[str, Any]:
  directory = manifest.directory(workdir, step)
  leaves = manifest.verify(workdir, step)['leaves']
  records = {
    path: record
    for path, record in leaves.items()
    if path.startswith(('params/', _SCALES))
  }
  if not records:
    raise errors.Missing(f'{directory}: has no params: use another run')
  places = {path: path for path in records}
  for path in records if averaged else ():
    place = f'{_AVERAGES}{path.removeprefix("params/")}'
    if place in leaves:
      places[path] = place
      if leaves[place]['shape'] != records[path]['shape']:
        raise errors.Damaged(
          f'{directory}: leaf {place} does not have the shape of {path}: not'
          ' written by lm; use another step'
        )
  found = _read(workdir, step, {x: leaves[x] for x in places.values()})
  arrays = {
    path: np.asarray(found[place], host_arrays.dtype(records[path]['dtype']))
    for path, place in places.items()
  }
  # The weights are stored as whole numbers times a scale per row or column.
  for path in [path for path in arrays if path.startswith(_SCALES)]:
    name, scale = f'params/{path.removeprefix(_SCALES)}', arrays[path]
    param = arrays.get(name, np.empty(()))
    # Without this check, a scale that a stranger has written could broadcast a
    # small parameter to an array that fills the memory.
    if param.ndim != scale.ndim or not all(
      n in (1, m) for n, m in zip(scale.shape, param.shape, strict=True)
    ):
      raise errors.Damaged(
        f'{directory}: leaf {path}{scale.shape} does not fit'
        f' {name}{param.shape}: not written by lm; use another step'
      )
    arrays[name] = param * scale
  return host_arrays.nest(arrays).get('params', {})


def _read(
  workdir: str | os.PathLike[str],
  step: int,
  records: dict[str, dict[str, Any]],
  shardings: dict[str, jax.sharding.Sharding] | None = None,
) -> dict[str, Any]:
  """Reads leaves of a verified step, by path, and checks their hashes."""
  place = manifest.directory(workdir, step)
  stored = _with_elements(records)
  with _explained(place):
    # Arrays without elements have no files; the manifest says all about them.
    arrays: dict[str, Any] = {
      path: np.empty(record['shape'], host_arrays.dtype(record['dtype']))
      for path, record in records.items()
      if path not in stored
    }
    host_arrays.check_files(place / 'state', stored)
    arrays |= orbax_io.read(place / 'state', _specs(stored), shardings)
  for path, array in arrays.items():
    # The files were right; this is about what a parser has made of them.
    if host_arrays.sha256(np.asarray(array)) != records[path]['sha256']:
      raise errors.Damaged(
        f'{place}: leaf {path}: sha256 differs; use another step'
      )
  return arrays


def _with_elements(
  records: dict[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
  """Selects the leaves that have elements; no other leaf has files."""
  return {k: v for k, v in records.items() if 0 not in v['shape']}


def _specs(records: dict[str, dict[str, Any]]) -> dict[str, host_arrays.Spec]:
  return {
    path: host_arrays.Spec(record['shape'], record['dtype'])
    for path, record in records.items()
  }


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
  """Turns any error of a parser into one line about the step at `place`."""
  try:
    yield
  except errors.Failure:
    raise
  except Exception as error:
    # Without a read lock, a trainer may delete the step at any moment: then its
    # files are missing, and nothing is damaged.
    if not place.exists():
      raise errors.Gone(
        f'{place}: deleted while it was read: use a newer step'
      ) from error
    raise errors.Damaged(
      f'{place}: cannot be read: {error}; use another step'
    ) from error
