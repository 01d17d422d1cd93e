"""Parameters made smaller: matrices in int8, and matrices with zeros.

Both take a tree of parameters as a checkpoint holds it, on the host, and give
one with the same paths. Blocks that `scan` has stacked come out as they would
one by one.
"""

from collections.abc import Sequence
import math
import re

import numpy as np

from lm import tree, types
from lm.layers import linear

# Dimensions, counted from the right, that a product sums over; a word's row in
# the table is read alone. Experts and stacked blocks have more on the left.
# What is in no row stays as it is: biases, norms, routers, positions.
_MATRICES = (
  (r'(attention|cross)/[qkv]$', (-3,)),
  (r'(attention|cross)/o$', (-3, -2)),
  (r'/(up|gate|down)$', (-2,)),
  (r'/(input|state)$', (-3,)),
  (r'/kernel$', (-2,)),
  (r'embed/table$', (-1,)),
)
ALL = ''
BLOCKS = r'(^|/)layers(_\d+)?/'
SCOPES = ('global', 'matrix')


def int8(
  params: types.Params, paths: str = ALL
) -> tuple[types.Params, dict[str, np.ndarray]]:
  """Rounds matrices to whole numbers, with a scale for each output.

  Symmetric: 0 stays 0. An output is what a product does not sum over, so that
  no large weight coarsens those of another output.

  Args:
    params: float32.
    paths: a regular expression; a matrix in whose path it is found is rounded.

  Returns:
    The parameters, and the scales of the int8 ones among them by path: their
    product is what was rounded.

  Raises:
    ValueError: no matrix has such a path, or qwix is not installed.
  """
  linear.check('int8')
  found, scales = matrices(params, paths), {}

  def rounded(path, leaf):
    if path not in found:
      return leaf
    kept = [n for n in range(leaf.ndim) if n - leaf.ndim not in found[path]]
    x = linear.quantized(leaf, kept, 'int8')
    scales[path] = np.asarray(x.scale)
    return np.asarray(x.qvalue)

  return tree.map_paths(rounded, params), scales


def prune(
  params: types.Params,
  paths: str = BLOCKS,
  *,
  sparsity: float,
  scope: str = 'global',
) -> types.Params:
  """Puts the weights of the smallest magnitudes to zero.

  Args:
    params: float32.
    paths: as of `int8`; by default the matrices of blocks.
    sparsity: the share of those matrices' weights that becomes zero, rounded
      down; of equal weights at its border all stay.
    scope: where weights are compared: 'global' in all of the matrices together,
      'matrix' in each.

  Raises:
    ValueError: a setting is out of range, or no matrix has such a path.

  Reference: Han et al. 2015, arXiv 1506.02626, section 3.1, without training
  again.
  """
  if not 0 < sparsity < 1:
    raise ValueError(f'sparsity={sparsity} must be above 0 and below 1')
  if scope not in SCOPES:
    raise ValueError(f'scope={scope!r} is not one of {", ".join(SCOPES)}')
  found = matrices(params, paths)

  def cut(weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    sizes = np.concatenate([np.abs(x).ravel() for x in weights])
    least = np.partition(sizes, n := int(sparsity * sizes.size))[n]
    return [np.where(np.abs(x) < least, np.float32(0), x) for x in weights]

  leaves = {k: np.asarray(x) for k, x in tree.paths(params) if k in found}
  if scope == 'global':
    pruned = dict(zip(leaves, cut([*leaves.values()]), strict=True))
  else:
    pruned = {
      path: np.stack([cut([part])[0] for part in x])
      if 'layers' in path.split('/')
      else cut([x])[0]
      for path, x in leaves.items()
    }
  return tree.map_paths(lambda path, x: pruned.get(path, x), params)


def sparsity(params: types.Params, paths: str = BLOCKS) -> float:
  """Tells which share of the weights of matrices is zero.

  Raises:
    ValueError: no matrix has such a path.
  """
  found = matrices(params, paths)
  leaves = [x for path, x in tree.paths(params) if path in found]
  zeros = sum(x.size - np.count_nonzero(x) for x in leaves)
  return zeros / sum(x.size for x in leaves)


def flat(shape: Sequence[int], summed: Sequence[int]) -> tuple[int, ...]:
  """Gives the shape of a matrix, or of many, with one dimension a side.

  Args:
    shape: of a leaf.
    summed: what a product sums over of it, see `matrices`.
  """
  right = -1 - max(summed) or 1  # of a word's row, which is summed over itself
  left = len(summed) + right
  sides = shape[-left:-right], shape[-right:]
  return (*shape[:-left], *map(math.prod, sides))


def matrices(params: types.Params, paths: str) -> dict[str, tuple[int, ...]]:
  """Finds matrices and what a product sums over of each, by path."""
  try:
    wanted = re.compile(paths)
  except re.error as error:
    raise ValueError(f'paths={paths}: no regular expression: {error}') from None
  known = {
    path: summed
    for path, _ in tree.paths(params)
    for regex, summed in _MATRICES
    if re.search(regex, path)
  }
  found = {
    path: summed for path, summed in known.items() if wanted.search(path)
  }
  if not found:
    some = ', '.join([*known][:3]) or 'none: it is counted, not trained'
    raise ValueError(f'paths={paths}: found in no matrix; there are {some}')
  return found
