"""LoRA: a model that never learns itself, and small updates of its matrices.

  c.model = {'fn': 'lm.models.lora:make', 'body': ..., 'rank': 8, ...}

The body may be a head around another model. The parameters of the head, `task`,
are then trained in full. A run of the inner model fits into the `init_paths`
('=body/body',), a run of the head and its model into ('=body',).
"""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import Any

from flax import traverse_util
import jax.numpy as jnp

from lm import config, initial, tree, types
from lm.layers import checks, compress
from lm.optim import masks

NAME = 'lm.models.lora:make'
# All of the body but the parameters of a head, however many bodies are nested.
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

  Its parameters are those of the body, under `body`, and an `a` and a `b` for
  each matrix, under `lora` and the path of the matrix. `b` starts at 0, so that
  the model starts as its body. The updates are added in every forward pass: to
  generate text, merge them first (tools/export).

  Args:
    vocab: V of the body.
    body: the spec of a model, or of a head around one.
    rank: rank of the updates.
    alpha: updates are scaled by `alpha / rank`.
    paths: a regular expression; matrices in whose path it is found are updated.

  Raises:
    ValueError: a setting is out of range, or no matrix has such a path.

  Reference: Hu et al. 2021, arXiv 2106.09685, section 4.1, without dropout. The
    paper does not state the variance of `a`; here `x @ a` is as large as `x`.
  """
  checks.check_counts(rank=rank)
  if not alpha > 0:
    raise ValueError(f'alpha={alpha} must be above 0')
  model = config.build(body, vocab=vocab)

  def parameters(batch):
    params = model.parameters(batch)
    summed = compress.matrices(params, model.matrices, paths)
    names = _unrolled(params, summed)
    changes = {
      path: _start(names[path], w.shape, summed[path], rank)
      for path, w in tree.paths(params)
      if path in summed
    }
    nested = traverse_util.unflatten_dict(changes, sep='/')
    return {'body': params, 'lora': nested}

  # The matrices are added, rather than x @ a @ b computed beside each product,
  # so that any model can be a body and none has to know of LoRA.
  def apply(params, batch, *, cache=None, rng=None):
    return model.apply(_whole(params, alpha), batch, cache=cache, rng=rng)

  def start(params, batch, room):
    return model.start(_whole(params, alpha), batch, room)

  def head(params, hidden):
    assert model.head is not None
    return model.head(_whole(params, alpha), hidden)

  # The updates are small, so every device holds all of them.
  axes = ((r'(^|/)lora/', ()), *model.axes)
  return types.Model(
    parameters,
    apply,
    start,
    axes,
    model.head and head,
    fixed=_FIXED,
    matrices=model.matrices,
    flops=model.flops,
    compares_rows=model.compares_rows,
  )


def merged(
  spec: Mapping[str, Any], params: types.Params
) -> tuple[dict[str, Any], types.Params]:
  """Adds the updates to the body for good.

  Args:
    spec: the spec of a model, with its defaults filled in. LoRA may be inside a
      head, or not there at all.
    params: the parameters of the model.

  Returns:
    The spec and the parameters of the same model without LoRA.
  """
  if 'body' not in spec:
    return dict(spec), params
  if spec['fn'] == NAME:
    return merged(spec['body'], _whole(params, spec['alpha']))
  body, inner = merged(spec['body'], params['body'])
  return {**spec, 'body': body}, {**params, 'body': inner}


def _unrolled(
  params: types.Params, found: Iterable[str]
) -> dict[str, list[str]]:
  """Lists what the matrices of a leaf are called where blocks are not scanned.

  So that a scanned model draws what an unrolled one draws.
  """
  numbers = masks.blocks(params)
  return {
    path: [
      re.sub(r'(^|/)layers/\d+/', rf'\1layers_{n}/', path)
      for n in numbers[path] or [0]
    ]
    for path in found
  }


def _start(
  names: Sequence[str],
  shape: tuple[int, ...],
  summed: tuple[int, ...],
  rank: int,
) -> dict[str, Any]:
  """Describes the first update of a matrix, or of a stack of matrices.

  Args:
    names: of each matrix of a stack of blocks, where they are not stacked.
    shape: the shape of the parameter.
    summed: the dimensions that a product sums over, see `compress.matrices`.
    rank: rank of the update.
  """
  *lead, rows, columns = compress.flat(shape, summed)
  # A variance of 1 / inputs keeps x @ a as large as x. A row of the embedding
  # table is the output of a lookup, so there inputs and outputs change places.
  inputs = columns if summed == (-1,) else rows
  into, out = (rows, rank), (*lead, rank, columns)
  draws = initial.Normal(inputs**-0.5)
  if len(names) == 1:
    a = initial.Parameter(f'lora/{names[0]}/a', (*lead, *into), draws)
  else:
    a = initial.Stacked(
      tuple(
        initial.Parameter(f'lora/{name}/a', (*lead[1:], *into), draws)
        for name in names
      )
    )
  b = initial.Parameter(f'lora/{names[0]}/b', out, initial.Constant(0.0))
  return {'a': a, 'b': b}


def _whole(params: types.Params, alpha: float) -> types.Params:
  """Returns the parameters of the body with the updates added."""
  changes = dict(tree.paths(params['lora']))

  def add(path, w):
    if f'{path}/a' not in changes:
      return w
    a, b = changes[f'{path}/a'], changes[f'{path}/b']
    # In full precision, so that a model merged on another device is the one
    # that was trained.
    change = jnp.matmul(a, b, precision='highest').reshape(w.shape)
    return w + alpha / a.shape[-1] * change

  return tree.map_paths(add, params['body'])
