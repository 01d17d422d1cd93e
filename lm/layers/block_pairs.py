"""Texts cut into blocks, and which blocks of queries see which of keys.

Letters that `types` does not have: I blocks of queries, J blocks of keys.
"""

import jax
import jax.numpy as jnp


class Blocks:
  """A dimension cut into equal blocks; the last of them is filled up.

  Attributes:
    length: of the dimension.
    count: how many blocks there are.
    size: positions in each.
  """

  def __init__(self, length: int, block: int):
    self.length = length
    self.count = -(-length // block)
    # Blocks as even as can be, so that little is filled up; multiples of 8
    # for vector units.
    even = -(-length // self.count)
    self.size = even if self.count == 1 else -(-even // 8) * 8

  def fill(self, x, axis, value=0):
    """Fills up the last block of an array along `axis`."""
    missing = self.count * self.size - self.length
    if not missing:
      return x
    pad = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, pad, constant_values=value)

  def pad(self, mask, segment):
    """Fills up the last block of a mask with tokens of document `segment`."""
    values = {'segments': segment, 'positions': 0, 'prefix': False}
    tokens = {
      name: x if x is None else self.fill(x, 1, values[name])
      for name, x in mask.tokens().items()
    }
    return mask.replace(**tokens)

  def tokens(self, mask, i):
    """Takes block `i` of a mask."""
    return mask.replace(
      **jax.tree.map(lambda x: self.slice(x, i, 1), mask.tokens())
    )

  def slice(self, x, i, axis):
    """Takes block `i` of an array."""
    return jax.lax.dynamic_slice_in_dim(x, i * self.size, self.size, axis)

  def split(self, x, axis):
    """Stacks the blocks of an array along a new first dimension."""
    x = self.fill(x, axis)
    shape = *x.shape[:axis], self.count, self.size, *x.shape[axis + 1 :]
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  def join(self, x, axis):
    """Undoes `split`, but for the filling."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def meets(queries, keys, first, rows: Blocks, columns: Blocks):
  """Finds which blocks of queries may see which blocks of keys: bool [I, J].

  It compares only the least and the greatest number of each block. So a pair
  may be found in which no query sees a key, which costs time; a pair that is
  not found has none for certain, and is skipped.
  """

  def extremes(x, blocks):
    x = x.reshape(len(x), blocks.count, blocks.size)
    return x.min(-1), x.max(-1)

  def pairs(x_BI, y_BJ, compare):
    return compare(x_BI[:, :, None], y_BJ[:, None, :])

  # Two blocks can share a document only if their ranges of numbers overlap.
  low_BI, high_BI = extremes(queries.segments, rows)
  low_BJ, high_BJ = extremes(keys.segments, columns)
  meets_BIJ = pairs(low_BI, high_BJ, jnp.less_equal) & pairs(
    high_BI, low_BJ, jnp.greater_equal
  )
  if queries.causal:
    # The last query of a block sees the most keys.
    last_I = first + (jnp.arange(rows.count) + 1) * rows.size - 1
    start_J = jnp.arange(columns.count) * columns.size
    before_BIJ = pairs(last_I[None], start_J[None], jnp.greater_equal)
    if keys.prefix is not None:
      # A key of a prefix is seen from the left, too.
      before_BIJ = before_BIJ | extremes(keys.prefix, columns)[1][:, None]
    meets_BIJ = meets_BIJ & before_BIJ
  window = queries.window
  if window is not None:
    # The first query of a block reaches farthest to the left.
    query_BI = extremes(queries.positions, rows)[0]
    key_BJ = extremes(keys.positions, columns)[1]
    meets_BIJ = meets_BIJ & pairs(query_BI, key_BJ, lambda a, b: a - b < window)
  # One loop runs over all rows of the batch, so a block is needed if any row
  # needs it.
  return jnp.any(meets_BIJ, axis=0)


def bounds(meets_IJ):
  """Finds the first block that each row of pairs meets, and one past the last.

  Both are equal in a row that meets none, so that its loop does not run.
  """
  J = meets_IJ.shape[1]
  least_I = jnp.argmax(meets_IJ, axis=1)
  most_I = J - jnp.argmax(meets_IJ[:, ::-1], axis=1)
  return least_I, jnp.where(jnp.any(meets_IJ, axis=1), most_I, least_I)
