"""Writes and reads arrays with orbax, which is imported nowhere else.

The format is plain zarr: a directory per array, not compressed, so that the
size of its files bounds the memory that reading takes.
"""

from collections.abc import Mapping
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lm import tree
from lm.checkpoint import host_arrays

# Orbax logs what our own errors say in one line.
logging.getLogger('absl').addFilter(
  lambda record: '/orbax/checkpoint/' not in record.pathname
)


def write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays by path; none may be without elements.

  Args:
    folder: must not exist.
    arrays: by path, such as `{'params/embed/table': ...}`.
  """
  with _checkpointer() as writer:
    args = ocp.args.PyTreeSave(host_arrays.nest(dict(arrays)))
    writer.save(folder.absolute(), args=args)


def read(
  folder: Path,
  specs: Mapping[str, host_arrays.Spec],
  shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> dict[str, Any]:
  """Reads arrays by path.

  Orbax parses whatever bytes it meets: check them before, and expect any error.

  Args:
    folder: that `write` has written.
    specs: of the arrays to read, which may be some of those in the folder.
    shardings: of each of them, over devices of this process alone; None reads
      numpy arrays.
  """
  args: dict[str, Any]
  if shardings is None:
    args = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in specs}
  else:
    args = {
      path: ocp.ArrayRestoreArgs(
        restore_type=jax.Array,
        sharding=shardings[path],
        global_shape=spec.shape,
        dtype=host_arrays.dtype(spec.dtype),
      )
      for path, spec in specs.items()
    }
  with _checkpointer() as reader:
    arrays = reader.restore(
      folder.absolute(),
      args=ocp.args.PyTreeRestore(
        item=host_arrays.nest(dict.fromkeys(args, 0)),
        restore_args=host_arrays.nest(args),
        partial_restore=True,
      ),
    )
  return dict(tree.paths(arrays))


def _checkpointer() -> ocp.Checkpointer:
  # The arrays are copies already, which a second copy would only double.
  registry = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
    (jax.Array, ocp.type_handlers.ArrayHandler()),
  )
  alone = ocp.options.MultiprocessingOptions()
  if jax.process_count() > 1:
    # Orbax would wait for the other processes by itself, without a deadline.
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      primary_host=here,
      active_processes={here},
      barrier_sync_key_prefix=f'lm-{here}',
    )
  return ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(
      type_handler_registry=registry,
      use_ocdbt=False,
      use_compression=False,
      multiprocessing_options=alone,
    ),
    multiprocessing_options=alone,
  )
