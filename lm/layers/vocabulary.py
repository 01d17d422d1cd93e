"""From tokens to vectors, and from vectors to logits."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import sharding
from lm.layers import linear


class Embed(nn.Module):
  """Looks up a vector for each token, and adds those of positions and types.

  Attributes:
    vocab: V.
    width: D.
    length: rows of the table of learned positions; None has no such table.
    token_types: rows of the table of token types (BERT's sentences A and B);
      0 has no such table.
    std: standard deviation of the initial tables. GPT-2 and BERT use 0.02, for
      tied and untied tables alike.
  """

  vocab: int
  width: int
  length: int | None = None
  token_types: int = 0
  std: float = 0.02

  @nn.compact
  def __call__(self, tokens_BL, positions_BL=None, token_types_BL=None):
    """Returns vectors [B, L, D] for tokens, positions and types [B, L].

    Raises:
      ValueError: the batch is longer than the table of positions.
    """
    init = nn.initializers.normal(self.std)

    def look_up(name, rows, ids_BL, axis=None):
      table = self.param(name, init, (rows, self.width))
      # Gathered whole along D: a lookup in a table that is cut there makes XLA
      # replicate it ("Involuntary full rematerialization").
      return jnp.take(sharding.constrain(table, axis, None), ids_BL, 0)

    x_BLD = look_up('table', self.vocab, tokens_BL, 'vocab')
    if self.length is not None:
      if tokens_BL.shape[1] > self.length:
        # A lookup beyond the table gives nan, without an error.
        raise ValueError(
          f'a batch of length {tokens_BL.shape[1]} is longer than '
          f'model.length={self.length} learned positions: raise it'
        )
      x_BLD += look_up('positions', self.length, positions_BL)
    if self.token_types:
      if token_types_BL is None:
        token_types_BL = jnp.zeros_like(tokens_BL)
      x_BLD += look_up('token_types', self.token_types, token_types_BL)
    return x_BLD

  def table(self) -> jax.Array:
    """Returns the table [V, D], for an output layer that is tied to it."""
    return self.get_variable('params', 'table')


class Logits(nn.Module):
  """Scores each entry of the vocabulary: float32 [B, L, V].

  Attributes:
    vocab: V.
    compute_dtype: type that the factors of the product are rounded to.
    std: standard deviation of the initial kernel.
    bias: whether to add a bias for each entry.
    softcap: bounds logits by `softcap * tanh(logit / softcap)`; None is off.
      Reference: Gemma 2, arXiv 2408.00118, section 2.
  """

  vocab: int
  compute_dtype: str
  std: float = 0.02
  bias: bool = False
  softcap: float | None = None

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, table_VD: jax.Array | None = None
  ) -> jax.Array:
    """Multiplies with `table_VD`, or with a kernel of its own if it is None."""
    # Logits in float32: the loss is a small difference of large numbers.
    precision = linear.floating(self.compute_dtype), 'float32'
    if table_VD is not None:
      logits_BLV = linear.contract('BLD,VD->BLV', x_BLD, table_VD, *precision)
    else:
      init = nn.initializers.normal(self.std)
      kernel_DV = self.param('kernel', init, (x_BLD.shape[-1], self.vocab))
      logits_BLV = linear.contract('BLD,DV->BLV', x_BLD, kernel_DV, *precision)
    if self.bias:
      bias_V = self.param('bias', nn.initializers.zeros, (self.vocab,))
      logits_BLV += bias_V[None, None]
    if self.softcap is not None:
      logits_BLV = self.softcap * jnp.tanh(logits_BLV / self.softcap)
    return sharding.constrain(logits_BLV, 'batch', 'length', 'vocab')
