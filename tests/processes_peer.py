"""One of two processes of a group; tests/runtime/processes_test.py starts both.

python -m tests.processes_peer laws FOLDER
python -m tests.processes_peer watch
python -m tests.processes_peer sleep
"""

import errno
import os
from pathlib import Path
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from lm import checkpoint, errors, sharding
from lm.checkpoint import manifest, polling, sharded_arrays
from lm.data import stream
from lm.data.tokenizers import utf8_bytes
from lm.runtime import process_group, processes

MESHES: tuple[dict[str, int], ...] = (
  {'data': 8},
  {'fsdp': 8},
  {'tensor': 8},
  {'sequence': 8},
  {'data': 2, 'sequence': 2, 'tensor': 2},
  {'stage': 2, 'fsdp': 4},
  {'stage': 2, 'data': 2, 'expert': 2},
)


def state(mesh, axes):
  """Makes numbers on a mesh, the same ones on any."""
  where = jax.NamedSharding(mesh, jax.P(*axes))
  whole = jax.NamedSharding(mesh, jax.P())

  def make():
    x_8D = jnp.sin(jnp.arange(8 * 16 * 3, dtype=jnp.float32)).reshape(8, 16, 3)
    return {
      'step': jnp.int32(7),
      'empty': jnp.zeros((0, 3)),
      'params': {
        'cut': x_8D,
        'half': x_8D.astype(jnp.bfloat16),
        'all': x_8D[0],
      },
    }

  cut = {'cut': where, 'half': where, 'all': whole}
  places = {'step': whole, 'empty': whole, 'params': cut}
  return jax.jit(make, out_shardings=places)(), places


def same(found, expected) -> None:
  """Compares trees whose arrays lie on several processes."""
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
      np.testing.assert_array_equal(np.asarray(x.data), np.asarray(y.data))


def laws(group: process_group.ProcessGroup, folder: Path) -> None:
  """Checks what two processes do together with what one does."""
  values = group.gather('numbers', group.index * 10, 60.0)
  assert values == ([0, 10] if group.leads else None)
  assert group.share('word', 'x' * group.index + 'y', 60.0) == 'y'
  assert [group.stop(n == 2 and group.index == 1) for n in range(5)] == [
    False,
    False,
    False,
    True,
    False,
  ]

  # the rows of a batch, in their order, on any mesh
  data = stream.make(
    {'train': {'path': f'{folder}/train', 'weight': 1.0}},
    tokenizer=utf8_bytes.make(),
    seed=0,
    batch_size=16,
    length=16,
  )
  whole = data.batch(3)
  shuffled = [jax.devices()[n] for n in (0, 4, 1, 5, 2, 6, 3, 7)]
  meshes = [sharding.make_mesh(devices=None, **sizes) for sizes in MESHES]
  meshes.append(
    jax.sharding.Mesh(
      np.reshape(np.array(shuffled), meshes[0].devices.shape), sharding.AXES
    )
  )
  read = []
  for mesh in meshes:
    host, hosts = sharding.host(mesh, 16)
    read.append(hosts)
    batch = sharding.put(data.batch(3, host, hosts), mesh, host, hosts)
    for placed, expected in zip(
      jax.tree.leaves(batch), jax.tree.leaves(whole), strict=True
    ):
      for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, expected[shard.index])
  assert read == [2, 2, 1, 1, 2, 1, 2, 1]

  # a checkpoint: cut in one way, read in another, and that of one process
  mesh = sharding.make_mesh(fsdp=4)
  rows, _ = state(mesh, [('data', 'fsdp'), None, None])
  columns, where = state(mesh, [None, ('data', 'fsdp'), None])
  both, _ = state(mesh, ['data', 'fsdp', None])
  like = jax.eval_shape(lambda: rows)
  for name, made in (('rows', rows), ('columns', columns), ('both', both)):
    with checkpoint.Checkpointer(folder / name, group=group) as saver:
      assert saver.meta() is None and saver.restore(like, where) is None
      saver.save(7, made, {'data': {'step': 7}})
      saver.wait()
      found = saver.restore(like, where)
      assert found is not None
      same(found[0], columns)
      assert saver.meta() == {'data': {'step': 7}}
  found = checkpoint.restore(folder / 'one', like, where)
  same(found[0], columns)

  read_back = sharded_arrays.read_back

  # what fails on one process fails on both, and leaves nothing behind
  def full(*unused):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'a disk')

  def wrong(*arguments):
    whole, files = read_back(*arguments)
    return whole, {key: {**file, 'sha256': ''} for key, file in files.items()}

  for part, fault, said in (
    ('write', full, 'process 1 .* a disk: No space left'),
    ('read_back', wrong, 'is not what was in memory'),
  ):
    with checkpoint.Checkpointer(folder / 'rows', group=group) as saver:
      healthy = getattr(sharded_arrays, part)
      setattr(sharded_arrays, part, fault if group.index == 1 else healthy)
      saver.save(8, rows, {'data': {}})
      try:
        saver.wait()
        raise AssertionError('was saved')
      except errors.Storage as error:
        assert group.index or re.search(said, str(error)), error
      setattr(sharded_arrays, part, healthy)
      group.meet('failed', 60.0)
      if group.leads:
        found = manifest.root(folder / 'rows').iterdir()
        assert [path.name for path in found] == ['00000007']
  # a folder that is not shared is refused before anything is saved
  polling.LONGEST_SECONDS = 0.5
  place = folder / ('rows' if group.leads else 'elsewhere')
  try:
    with checkpoint.Checkpointer(place, group=group):
      group.meet('refused', 60.0)
      assert group.leads
  except errors.Storage as error:
    assert 'is not the folder of process 0: use storage' in str(error)
    group.meet('refused', 60.0)
  print('all laws hold', flush=True)


def watch(group: process_group.ProcessGroup) -> None:
  """Goes on for a minute, or until something happens to the others."""
  print('ready', flush=True)
  for step in range(600):
    group.stop(False)
    if os.environ.get('RAISE_AT') == str(step):
      raise ValueError('the disk is on fire')
    time.sleep(0.1)


if __name__ == '__main__':
  with processes.start(wait_seconds=120.0) as together:
    if sys.argv[1] == 'laws':
      laws(together, Path(sys.argv[2]))
    elif sys.argv[1] == 'watch':
      watch(together)
    else:  # as in a compiler: only other threads see what happens
      print('ready', flush=True)
      time.sleep(60)
