"""Compresses parameters: rounds matrices to int8, or prunes their weights.

Both functions take a tree of parameters as a checkpoint holds it, on the host,
and return one with the same paths. Blocks that `scan` has stacked come out as
they would one by one.
"""

from collections.abc import Sequence
import math
import re

import numpy as np

from lm import tree, types
from lm.layers import linear

# `Model.matrices`. What no row names stays as it is: biases, norms, routers,
# positions.
Table = Sequence[types.Matrix]
ALL = ''
BLOCKS = r'(^|/)layers(_\d+)?/'
SCOPES = ('global', 'matrix')


def int8(
  params: types.Params, table: Table, paths: str = ALL
) -> tuple[types.Params, dict[str, np.ndarray]]:
  """Rounds matrices to int8, with a scale for each output of their product.

  Rounding is symmetric, so 0 stays 0. Outputs are the dimensions that a product
  does not sum over: a large weight makes no other output coarser.

  Args:
    params: float32 parameters.
    table: `Model.matrices`.
    paths: a regular expression; matrices in whose path it is found are rounded.

  Returns:
    The parameters, and the scale of each int8 matrix by its path: the matrix
    times its scale is the value that was rounded.

  Raises:
    ValueError: no matrix has such a path, or qwix is not installed.
  """
  linear.check('int8')
  summed, scales = matrices(params, table, paths), {}

  def rounded(path, leaf):
    if path not in summed:
      return leaf
    # One scale for each entry along the dimensions that are not summed over.
    # Only these can be taken out of the sum and multiplied afterwards.
    kept = [n for n in range(leaf.ndim) if n - leaf.ndim not in summed[path]]
    x = linear.quantized(leaf, kept, 'int8')
    scales[path] = np.asarray(x.scale)
    return np.asarray(x.qvalue)

  return tree.map_paths(rounded, params), scales


def prune(
  params: types.Params,
  table: Table,
  paths: str = BLOCKS,
  *,
  sparsity: float,
  scope: str = 'global',
) -> types.Params:
  """Sets the weights with the smallest magnitudes to zero.

  Args:
    params: float32 parameters.
    table: `Model.matrices`.
    paths: a regular expression; matrices in whose path it is found are pruned.
      By default these are the matrices of the blocks.
    sparsity: the fraction of the weights of these matrices that becomes zero.
      The count is rounded down, and weights equal to the threshold all stay.
    scope: which weights are compared with each other: those of all matrices
      ('global'), or those of one matrix ('matrix').

  Raises:
    ValueError: a setting is out of range, or no matrix has such a path.

  Reference: Han et al. 2015, arXiv 1506.02626, section 3.1, without the
  retraining.
  """
  if not 0 < sparsity < 1:
    raise ValueError(f'sparsity={sparsity} must be above 0 and below 1')
  if scope not in SCOPES:
    raise ValueError(f'scope={scope!r} is not one of {", ".join(SCOPES)}')
  names = matrices(params, table, paths)

  def cut(weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    sizes = np.concatenate([np.abs(x).ravel() for x in weights])
    # Weight number n in ascending order; linear time, where sorting is not.
    threshold = np.partition(sizes, n := int(sparsity * sizes.size))[n]
    return [np.where(np.abs(x) < threshold, np.float32(0), x) for x in weights]

  leaves = {k: np.asarray(x) for k, x in tree.paths(params) if k in names}
  if scope == 'global':
    pruned = dict(zip(leaves, cut([*leaves.values()]), strict=True))
  else:
    # A stack of scanned blocks is as many matrices as it has blocks. The path
    # tells: unrolled ones are called layers_0, layers_1 and so on.
    pruned = {
      path: np.stack([cut([part])[0] for part in x])
      if 'layers' in path.split('/')
      else cut([x])[0]
      for path, x in leaves.items()
    }
  return tree.map_paths(lambda path, x: pruned.get(path, x), params)


def sparsity(params: types.Params, table: Table, paths: str = BLOCKS) -> float:
  """Returns the fraction of the weights of matrices that are zero.

  Args:
    params: parameters.
    table: `Model.matrices`.
    paths: a regular expression; matrices in whose path it is found count.

  Raises:
    ValueError: no matrix has such a path.
  """
  names = matrices(params, table, paths)
  leaves = [x for path, x in tree.paths(params) if path in names]
  zeros = sum(x.size - np.count_nonzero(x) for x in leaves)
  return zeros / sum(x.size for x in leaves)


def flat(shape: Sequence[int], summed: Sequence[int]) -> tuple[int, ...]:
  """Returns the shape [..., rows, columns] of a parameter as plain matrices.

  Args:
    shape: the shape of the parameter.
    summed: the dimensions that a product sums over, see `matrices`.
  """
  # Outputs are all dimensions to the right of those that are summed over. An
  # embedding table has none there, so its width takes their place.
  right = -1 - max(summed) or 1
  left = len(summed) + right
  sides = shape[-left:-right], shape[-right:]
  return (*shape[:-left], *map(math.prod, sides))


def matrices(
  params: types.Params, table: Table, paths: str
) -> dict[str, tuple[int, ...]]:
  """Finds the matrices whose paths match.

  Args:
    params: parameters.
    table: `Model.matrices`.
    paths: a regular expression that is searched for in each path.

  Returns:
    By path, the dimensions that a product with this matrix sums over, counted
    from the right: (-3,) is the width of a query kernel [D, N, H].

  Raises:
    ValueError: `paths` is no regular expression, or no matrix matches it.
  """
  try:
    wanted = re.compile(paths)
  except re.error as error:
    raise ValueError(f'paths={paths}: no regular expression: {error}') from None
  known = {}
  for path, _ in tree.paths(params):
    for row in table:
      if re.search(row.path, path):
        known[path] = tuple(range(-row.summed - row.out, -row.out))
        break
  result = {
    path: summed for path, summed in known.items() if wanted.search(path)
  }
  if not result:
    some = ', '.join([*known][:3]) or 'none: it is counted, not trained'
    raise ValueError(f'paths={paths}: found in no matrix; there are {some}')
  return result
