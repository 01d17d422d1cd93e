"""From tokens to vectors, and from vectors to logits."""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import sharding
from lm.layers import checks, initializers, linear, parts, positions

POSITIONS = ('none', 'learned', 'sinusoids')

ROWS = (
  parts.Row(r'embed/table$', ('vocab', 'embed'), 1, hidden=False),
  parts.Row(r'embed/(positions|token_types)$', (None, 'embed')),
  parts.Row(r'head/kernel$', ('embed', 'vocab'), 1, 1, hidden=False),
  # Cut like the logits that it is added to.
  parts.Row(r'head/bias$', ('vocab',)),
)


class Embedding(NamedTuple):
  """How tokens become vectors; see `embedding`."""

  positions: str
  token_types: int
  scale: float | None
  std: float


def embedding(
  *,
  positions: str = 'none',
  token_types: int = 0,
  scale: float | None = None,
  std: float = 0.02,
) -> Embedding:
  """Describes how tokens become vectors.

  Args:
    positions: what is added for a token's position: 'learned' vectors,
      'sinusoids', or 'none'.
    token_types: rows of the table for `Batch.token_types` (BERT's sentences A
      and B); 0 has none.
    scale: multiplies the vectors, before sinusoids are added; None is the
      square root of D with sinusoids (Vaswani et al. 2017, section 3.4) and 1
      without.
    std: deviation of the initial tables. 0.02 is GPT-2's and BERT's.

  Raises:
    ValueError: for an unknown word, or a scale of 0.
  """
  checks.check_choices(positions=(positions, POSITIONS))
  checks.check_above_zero(scale=scale)
  return Embedding(positions, token_types, scale, std)


class Output(NamedTuple):
  """How vectors become logits; see `output`."""

  tied: bool
  scale: float
  softcap: float | None
  bias: bool
  std: float | None


def output(
  *,
  tied: bool = True,
  scale: float = 1.0,
  softcap: float | None = None,
  bias: bool = False,
  std: float | None = None,
) -> Output:
  """Describes how vectors become logits.

  Args:
    tied: the output layer is the embedding table (Press and Wolf 2017, arXiv
      1608.05859).
    scale: multiplies what the output layer reads; 1 / sqrt(D) of T5 with a tied
      table.
    softcap: bounds logits by `softcap * tanh(logit / softcap)`; None is off.
      Reference: Gemma 2, arXiv 2408.00118, section 2.
    bias: adds a bias for each entry of the vocabulary.
    std: deviation of the initial kernel, where it is not tied; None is that of
      the model's other kernels.

  Raises:
    ValueError: for a scale or softcap of 0.
  """
  checks.check_above_zero(scale=scale, softcap=softcap)
  return Output(tied, scale, softcap, bias, std)


def embed(
  spec: Embedding, vocab: int, shared: parts.Shared, length: int | None = None
) -> 'Embed':
  """Builds the `Embed` of a model; `length` is the longest text, if known.

  Raises:
    ValueError: for positions that the model cannot have.
  """
  width = shared.width
  if spec.positions == 'sinusoids' and width % 2:
    raise ValueError(f'width={width} must be even for sinusoids')
  if spec.positions == 'learned' and length is None:
    raise ValueError('positions=learned needs a model with a length')
  base = width / shared.growth[0]
  usual = base**0.5 if spec.positions == 'sinusoids' else 1.0
  return Embed(
    vocab,
    width,
    length if spec.positions == 'learned' else None,
    spec.token_types,
    spec.std,
    usual if spec.scale is None else spec.scale,
    spec.positions == 'sinusoids',
  )


def logits(spec: Output, vocab: int, shared: parts.Shared) -> 'Logits':
  """Builds the `Logits` of a model."""
  return Logits(
    vocab,
    shared.compute_dtype,
    shared.std(shared.width) if spec.std is None else spec.std,
    bias=spec.bias,
    softcap=spec.softcap,
    # Rows that a lookup needs as large at every width are too large here.
    scale=spec.scale / (shared.growth[0] if spec.tied else 1),
    name='head',
  )


class Embed(nn.Module):
  """Looks up a vector for each token, and adds those of positions and types.

  Attributes:
    vocab: V.
    width: D.
    length: rows of the table of learned positions; None has no such table.
    token_types: rows of the table of token types (BERT's sentences A and B);
      0 has no such table.
    std: standard deviation of the initial tables.
    scale: multiplies the vectors.
    sinusoids: adds those of the positions.
  """

  vocab: int
  width: int
  length: int | None = None
  token_types: int = 0
  std: float = 0.02
  scale: float = 1.0
  sinusoids: bool = False

  @nn.compact
  def __call__(self, tokens_BL, positions_BL=None, token_types_BL=None):
    """Returns vectors [B, L, D] for tokens, positions and types [B, L].

    Raises:
      ValueError: the batch is longer than the table of positions.
    """
    init = initializers.normal(self.std)

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
    x_BLD *= self.scale
    if self.sinusoids:
      assert positions_BL is not None
      x_BLD += positions.sinusoids(positions_BL, self.width)
    return x_BLD

  def table(self) -> jax.Array:
    """Returns the table [V, D], for an output layer that is tied to it."""
    return nn.meta.unbox(self.get_variable('params', 'table'))


class Logits(nn.Module):
  """Scores each entry of the vocabulary: float32 [B, L, V].

  Attributes:
    vocab: V.
    compute_dtype: type that the factors of the product are rounded to.
    std: standard deviation of the initial kernel.
    bias: whether to add a bias for each entry.
    softcap: bounds logits by `softcap * tanh(logit / softcap)`; None is off.
    scale: multiplies what the layer reads.
  """

  vocab: int
  compute_dtype: str
  std: float = 0.02
  bias: bool = False
  softcap: float | None = None
  scale: float = 1.0

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, table_VD: jax.Array | None = None
  ) -> jax.Array:
    """Multiplies with `table_VD`, or with a kernel of its own if it is None."""
    x_BLD *= self.scale
    # Logits in float32: the loss is a small difference of large numbers.
    precision = linear.floating(self.compute_dtype), 'float32'
    if table_VD is not None:
      logits_BLV = linear.contract('BLD,VD->BLV', x_BLD, table_VD, *precision)
    else:
      init = initializers.normal(self.std)
      kernel_DV = self.param('kernel', init, (x_BLD.shape[-1], self.vocab))
      logits_BLV = linear.contract('BLD,DV->BLV', x_BLD, kernel_DV, *precision)
    if self.bias:
      bias_V = self.param('bias', initializers.ZEROS, (self.vocab,))
      logits_BLV += bias_V[None, None]
    if self.softcap is not None:
      logits_BLV = self.softcap * jnp.tanh(logits_BLV / self.softcap)
    return sharding.constrain(logits_BLV, 'batch', 'length', 'vocab')
