"""T5's relative positions: buckets of distances, and a bias for each."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.layers import initializers, parts


def buckets(
  positions_BL: jax.Array,
  positions_BS: jax.Array,
  *,
  count: int,
  max_distance: int,
  bidirectional: bool,
) -> jax.Array:
  """Sorts pairs of positions into buckets by their distance: int32 [B, L, S].

  Half of the buckets hold one distance each. The others grow logarithmically up
  to `max_distance`; all pairs that are farther apart share the last one.

  Args:
    positions_BL: positions of the queries.
    positions_BS: positions of the keys.
    count: R, how many buckets there are, an even number.
    max_distance: the distance, in tokens, at which the last bucket begins.
    bidirectional: True splits the buckets in two halves, the upper one for keys
      to the right of the query. False has buckets for keys to its left, and
      puts all others into bucket 0.

  Reference: Raffel et al. 2020, arXiv 1910.10683, section 2.1.
  """
  distance_BLS = positions_BL[:, :, None] - positions_BS[:, None, :]
  offset_BLS = jnp.zeros_like(distance_BLS)
  if bidirectional:
    count //= 2  # for each side
    offset_BLS = jnp.where(distance_BLS < 0, count, 0)
    distance_BLS = jnp.abs(distance_BLS)
  distance_BLS = jnp.maximum(distance_BLS, 0)
  exact = count // 2
  # On the host in float64, so that no device rounds a distance at the border of
  # two buckets into the other one.
  far = np.arange(max_distance + 1)
  grown = np.log(np.maximum(far, exact) / exact) / np.log(max_distance / exact)
  # The bucket of each distance. A lookup is cheaper than a logarithm a pair.
  table = np.where(
    far < exact, far, np.minimum(exact + grown * (count - exact), count - 1)
  ).astype(np.int32)
  return (
    offset_BLS + jnp.asarray(table)[jnp.minimum(distance_BLS, max_distance)]
  )


class RelativeBias(nn.Module):
  """Learns a bias for each head and bucket of distances: [B, N, L, S].

  Attributes: see `buckets`; `heads` is N.
  """

  buckets: int
  max_distance: int
  heads: int
  bidirectional: bool

  @nn.compact
  def __call__(self, text: parts.Text):
    init = initializers.normal(self.heads**-0.5)
    table_RN = self.param('table', init, (self.buckets, self.heads))
    keys = text.keys or text
    buckets_BLS = buckets(
      text.positions,
      keys.positions,
      count=self.buckets,
      max_distance=self.max_distance,
      bidirectional=self.bidirectional,
    )
    return jnp.einsum('BLSN->BNLS', jnp.take(table_RN, buckets_BLS, axis=0))
