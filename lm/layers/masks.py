"""Attention masks: a few numbers a token, made into arrays when needed."""

from flax import struct
import jax
import jax.numpy as jnp

# Half the least float32: finite, so that a row that may look nowhere (padding)
# gives a uniform softmax and not nan, and far from overflow when added to.
MASKED = float(jnp.finfo(jnp.float32).min) / 2


class AttentionMask(struct.PyTreeNode):
  """Which keys queries may look at, where both are the tokens of one text.

  A mask of 32,768 tokens has a billion entries; this has a few a token, and
  what needs a mask makes the block of it that it works on.

  Attributes:
    segments: int32 [B, L], document of each token; equal numbers see each
      other.
    positions: int32 [B, L], of each token in its document; None has no window.
    prefix: bool [B, L], tokens that all of their document see; None: none.
    causal: whether a token sees only those to its left, and itself.
    window: how many positions are seen, see `window_mask`; None sees all.
    kernel: what mixes, of `kernels.choose`.
    whole_B1LS: what `materialize` makes of it, once for all layers; None where
      nothing reads a whole mask.
  """

  segments: jax.Array
  positions: jax.Array | None = None
  prefix: jax.Array | None = None
  causal: bool = struct.field(pytree_node=False, default=True)
  window: int | None = struct.field(pytree_node=False, default=None)
  kernel: str = struct.field(pytree_node=False, default='blockwise')
  whole_B1LS: jax.Array | None = None

  def tokens(self) -> dict[str, jax.Array | None]:
    """Returns the fields that say something of each token."""
    return {
      'segments': self.segments,
      'positions': self.positions,
      'prefix': self.prefix,
    }

  def materialize(
    self, keys: 'AttentionMask | None' = None, first: jax.Array | int = 0
  ) -> jax.Array:
    """Makes the mask bool [B, 1, L, S], True where a query may look.

    Args:
      keys: None are the queries.
      first: slot of the first query among the keys; it may be negative.
    """
    keys = self if keys is None else keys
    if self.causal:
      mask_B1LS = causal_mask(self.segments, keys.segments, first, keys.prefix)
    else:
      mask_B1LS = document_mask(self.segments, keys.segments)
    if self.window is None:
      return mask_B1LS
    assert self.positions is not None and keys.positions is not None
    return mask_B1LS & window_mask(self.positions, keys.positions, self.window)


def document_mask(
  query_segments_BL: jax.Array, key_segments_BS: jax.Array
) -> jax.Array:
  """Lets each position see its own document: bool [B, 1, L, S].

  Args:
    query_segments_BL: document of each query.
    key_segments_BS: document of each key; equal numbers see each other.
  """
  return (query_segments_BL[:, :, None] == key_segments_BS[:, None, :])[:, None]


def causal_mask(
  query_segments_BL: jax.Array,
  key_segments_BS: jax.Array,
  first: jax.Array | int = 0,
  prefix_BS: jax.Array | None = None,
) -> jax.Array:
  """Lets each position see the earlier ones of its own document.

  Args:
    query_segments_BL, key_segments_BS: see `document_mask`.
    first: slot of the first query among the keys, where a cache precedes it.
    prefix_BS: bool, keys that all positions of their document see (prefix LM,
      Raffel et al. 2020, arXiv 1910.10683, section 3.2.1); None: there are
      none.

  Returns:
    bool [B, 1, L, S], True where a query may look.
  """
  L, S = query_segments_BL.shape[1], key_segments_BS.shape[1]
  slots_L1 = first + jnp.arange(L)[:, None]
  seen_1LS = (jnp.arange(S)[None, :] <= slots_L1)[None]
  if prefix_BS is not None:
    seen_1LS = seen_1LS | prefix_BS[:, None, :]
  return document_mask(query_segments_BL, key_segments_BS) & seen_1LS[:, None]


def window_mask(
  positions_BL: jax.Array, positions_BS: jax.Array, window: int
) -> jax.Array:
  """Lets each position see `window` positions, itself the last of them.

  Returns:
    bool [B, 1, L, S], to be combined with a mask of documents.

  Reference: Beltagy et al. 2020, arXiv 2004.05150, section 3.1; looking left
  only, as Mistral 7B, arXiv 2310.06825, section 2.
  """
  distance_BLS = positions_BL[:, :, None] - positions_BS[:, None, :]
  return (distance_BLS < window)[:, None]
