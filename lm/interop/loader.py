"""Loads a model that `python -m tools.export stablehlo` wrote, without lm.

This file is copied into the folder of the model, as model.py:

  import model
  run = model.load('exports/a')
  logits = run.call(run.params, {'tokens': ids})  # int32 [B, L] -> [B, L, V]

A row is one text from its beginning: the id `bos`, the text, and padding with
the id `pad` on the right. manifest.json has the ids, and the other inputs that
a model may have. The packages jax, flatbuffers, numpy and safetensors are
needed. `python model.py` checks the bytes of the folder, and the loss of the
model on the probe. Its exit codes: 0 as expected; 4 the bytes are not those
that were written; 9 the loss is higher than the probe's by more than the budget
of the export.
"""

from collections.abc import Callable
import hashlib
import json
from pathlib import Path
import sys
from typing import Any, NamedTuple

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

TOGETHER = 4  # rows of the probe


class Loaded(NamedTuple):
  """An exported model.

  Attributes:
    call: `(params, {name: ids}) -> logits`; it can be called inside jit.
    params: arrays by name.
    manifest: the content of manifest.json.
  """

  call: Callable[..., jax.Array]
  params: dict[str, np.ndarray]
  manifest: dict[str, Any]


def load(folder: str | Path = '.') -> Loaded:
  """Reads a folder, after the hashes of all its files were checked.

  Raises:
    ValueError: the bytes are not those that were written.
  """
  folder = Path(folder)
  try:
    manifest = json.loads((folder / 'manifest.json').read_bytes())
    files = manifest['files']
    for name in files:
      with (folder / Path(name).name).open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
      if digest != files[name]['sha256']:
        raise ValueError(f'{name}: its sha256 differs from the manifest')
    code = bytearray((folder / 'model.stablehlo').read_bytes())
    params = safetensors.numpy.load_file(folder / 'params.safetensors')
  except (LookupError, OSError, TypeError, ValueError) as error:
    raise ValueError(f'{folder}: {error}: copy it again') from error
  call = export.deserialize(code).call
  if manifest['fixed'] is not None:
    call = _padded(call, manifest)
  return Loaded(call, params, manifest)


def check(folder: str | Path = '.') -> tuple[float, float, float]:
  """Computes the loss of a model on the probe in its folder.

  Returns:
    The loss in nats a token, by how much it is higher than the probe's, and by
    how much it may be.

  Raises:
    ValueError: the bytes are not those that were written.
  """
  run = load(folder)
  probe, report = (
    json.loads((Path(folder) / name).read_bytes())
    for name in ('probe.json', 'report.json')
  )
  weights, targets, nats = (
    np.array(x)
    for x in (
      probe['batch']['weights'],
      probe['batch']['targets'],
      probe['nats'],
    )
  )
  inputs = {
    name: np.array(probe['batch'][name], spec['dtype'])
    for name, spec in run.manifest['inputs'].items()
  }
  costs = []
  for n in range(0, len(weights), TOGETHER):
    part = {name: x[n : n + TOGETHER] for name, x in inputs.items()}
    scores = jax.nn.log_softmax(run.call(run.params, part))
    at = targets[n : n + TOGETHER, :, None]
    costs.append(-np.take_along_axis(np.asarray(scores), at, axis=-1)[..., 0])
  # A target without a weight may have an infinite loss, and 0 * inf is nan.
  cost = np.where(weights > 0, np.concatenate(costs), 0).astype(np.float64)
  total = weights.sum()
  loss, rise = ((weights * x).sum() / total for x in (cost, cost - nats))
  return float(loss), float(rise), report['budget_nats']


def _padded(call, manifest):
  """Makes a function of one row of fixed length take any rows up to it."""
  pads = {'tokens': manifest['ids']['pad'], 'source': manifest['ids']['pad']}

  def run(params, inputs):
    length = inputs['tokens'].shape[1]
    rows = {}
    for name, x in inputs.items():
      room = manifest['inputs'][name]['shape'][1] - x.shape[1]
      if room < 0:
        raise ValueError(f'{name}: rows of {x.shape[1]} are {-room} too long')
      pad = pads.get(name, 0)
      rows[name] = jnp.pad(x, ((0, 0), (0, room)), constant_values=pad)

    def one(row):
      return call(params, {name: x[None] for name, x in row.items()})[0]

    return jax.lax.map(one, rows)[:, :length]

  return run


def main() -> int:
  """Checks the folder of this file, and returns the exit code."""
  try:
    loss, rise, budget = check(Path(__file__).parent)
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 4
  print(f'loss {loss:.6g} nats, {rise:+.3g} beside the original')
  return 0 if rise <= budget else 9


if __name__ == '__main__':
  sys.exit(main())
