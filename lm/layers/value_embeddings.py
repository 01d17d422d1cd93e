"""Embeddings of tokens that attentions add to their values.

Reference: Jordan et al. 2024, github.com/KellerJordan/modded-nanogpt (records
since November 2024), after Zhou et al. 2024, arXiv 2410.17897, who add the
values of the first block. There, values and embeddings have learned weights.
Here the table starts at 0 instead, so that a model begins as one without.
"""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import sharding
from lm.layers import initializers, parts

ROWS = (parts.Row(r'table$', ('vocab', 'embed'), 1, hidden=False),)


class ValueEmbedding(nn.Module):
  """Looks up a vector for the values of each token: [B, L, K, H].

  Attributes:
    vocab: V.
    kv_heads: K.
    head_width: H.
  """

  vocab: int
  kv_heads: int
  head_width: int

  @nn.compact
  def __call__(self, text: parts.Text) -> jax.Array:
    assert text.tokens is not None
    width = self.kv_heads * self.head_width
    table_VF = self.param('table', initializers.ZEROS, (self.vocab, width))
    # Whole along its width, see `vocabulary.Embed`.
    table_VF = sharding.constrain(table_VF, 'vocab', None)
    found_BLF = jnp.take(table_VF, text.tokens, axis=0)
    return found_BLF.reshape(*text.tokens.shape, self.kv_heads, -1)


def common(
  shared: parts.Shared, kv_heads: int, head_width: int
) -> parts.Common:
  """Describes the table that attentions with such heads have in common.

  Raises:
    ValueError: the model does not tell its parts the tokens.
  """
  if shared.vocab is None:
    raise ValueError(
      'value_embed: this kind of model has none: set it to False'
    )
  build = partial(
    ValueEmbedding,
    vocab=shared.vocab,
    kv_heads=kv_heads,
    head_width=head_width,
  )
  return parts.Common(f'value_embed_{kv_heads}x{head_width}', build, ROWS)
