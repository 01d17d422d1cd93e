"""LoRA: a body that stays as it is, and small changes of its matrices.

  c.model = {'fn': 'lm.models.lora:make', 'body': ..., 'rank': 8, ...}

A body that is a head keeps its `task` parameters trained whole: give
`init_paths` '=body/body' for a run of the model inside, '=body' for one of all.
"""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from lm import config, tree, types
from lm.layers import compress
from lm.models import settings

NAME = 'lm.models.lora:make'
_FIXED = ('body/(?!(.*/)?task/)',)


def make(
  *,
  vocab: int,
  body: Mapping[str, Any],
  rank: int = 8,
  alpha: float = 16.0,
  paths: str = r'attention/[qv]$',
) -> types.Model:
  """Makes a model that adds `alpha / rank * a @ b` to matrices of its body.

  Its parameters are `body`, and below `lora` an `a` and a `b` at the path of
  each matrix. `b` starts at 0, so that it begins as its body, which never
  learns. Matrices are added up in each pass: to write texts, merge it first
  (tools/export).

  Args:
    vocab: V of the body.
    body: spec of a model, or of a head around one.
    rank: of the changes.
    alpha: scales them, by `alpha / rank`.
    paths: a regular expression; a matrix in whose path it is found changes.

  Raises:
    ValueError: a setting is out of range; at `init`, no matrix has such a path.

  Reference: Hu et al. 2021, arXiv 2106.09685, section 4.1, without dropout. The
    paper leaves open the variance of `a`; here `x @ a` is as large as `x`.
  """
  settings.check_counts(rank=rank)
  if not alpha > 0:
    raise ValueError(f'alpha={alpha} must be above 0')
  model = config.build(body, vocab=vocab)

  def init(rng, batch):
    body_rng, rng = jax.random.split(rng)
    params = model.init(body_rng, batch)
    found = compress.matrices(params, paths)
    keys = dict(zip(found, jax.random.split(rng, len(found)), strict=True))
    changes = {
      path: _start(keys[path], w.shape, found[path], rank)
      for path, w in tree.paths(params)
      if path in found
    }
    nested = traverse_util.unflatten_dict(changes, sep='/')
    return {'body': params, 'lora': nested}

  def apply(params, batch, *, cache=None, rng=None):
    return model.apply(_whole(params, alpha), batch, cache=cache, rng=rng)

  def start(params, batch, room):
    return model.start(_whole(params, alpha), batch, room)

  def head(params, hidden):
    assert model.head is not None
    return model.head(_whole(params, alpha), hidden)

  # Changes are small: every device holds all of them.
  axes = ((r'(^|/)lora/', ()), *model.axes)
  return types.Model(init, apply, start, axes, model.head and head, _FIXED)


def merged(
  spec: Mapping[str, Any], params: types.Params
) -> tuple[dict[str, Any], types.Params]:
  """Makes changes part of the body: gives its own spec and parameters.

  Args:
    spec: of a model, defaults filled in; without LoRA it is given back.
    params: its parameters.
  """
  if 'body' not in spec:
    return dict(spec), params
  if spec['fn'] == NAME:
    return merged(spec['body'], _whole(params, spec['alpha']))
  body, inner = merged(spec['body'], params['body'])
  return {**spec, 'body': body}, {**params, 'body': inner}


def _start(
  key: jax.Array, shape: tuple[int, ...], summed: tuple[int, ...], rank: int
) -> dict[str, jax.Array]:
  """Draws the changes of a matrix, or of a stack of them."""
  *lead, rows, columns = compress.flat(shape, summed)
  inputs = columns if summed == (-1,) else rows
  a = jax.random.normal(key, (*lead, rows, rank)) * inputs**-0.5
  return {'a': a, 'b': jnp.zeros((*lead, rank, columns))}


def _whole(params: types.Params, alpha: float) -> types.Params:
  """Adds the changes to the body."""
  changes = dict(tree.paths(params['lora']))

  def add(path, w):
    if f'{path}/a' not in changes:
      return w
    a, b = changes[f'{path}/a'], changes[f'{path}/b']
    # Exact, so that a model merged elsewhere is the one that was trained.
    change = jnp.matmul(a, b, precision='highest').reshape(w.shape)
    return w + alpha / a.shape[-1] * change

  return tree.map_paths(add, params['body'])
