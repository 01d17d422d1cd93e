"""The decoder: GPT-2, Llama and what lies between, as blocks of one model.

Reference: Radford et al. 2019 (GPT-2); Touvron et al. 2023, arXiv 2302.13971
(Llama: RMSNorm, RoPE, SwiGLU); Gemma 3, arXiv 2503.19786 (windows, norms before
and after); Yang et al. 2025, arXiv 2505.09388 (Qwen3: QK-norm).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax

from lm import config, sharding, types
from lm.layers import blocks as blocks_lib
from lm.layers import checks, parts, stack, vocabulary
from lm.models import linen

ROWS = (
  *vocabulary.ROWS,
  # Vectors as wide as the stream: cheap to hold whole, read by every device.
  parts.Row(r'(scale|bias)$', (sharding.WHOLE,)),
)


def make(
  *,
  vocab: int,
  length: int,
  width: int,
  depth: int,
  blocks: Mapping[str, Mapping[str, Any]],
  pattern: Sequence[str],
  first: Sequence[str] = (),
  norm: Mapping[str, Any],
  embed: Mapping[str, Any],
  head: Mapping[str, Any],
  init: Mapping[str, Any],
  dropout: float = 0.0,
  scan: bool = False,
  remat: str = 'none',
  dtype: str = 'float32',
  compute_dtype: str = 'float32',
) -> types.Model:
  """Makes a decoder-only language model.

  Parameters are float32. A batch with a `prefix` is read as by a prefix LM.

  Args:
    vocab: V.
    length: longest sequence; the size of the table of learned positions.
    width: D.
    depth: number of blocks.
    blocks, pattern, first: kinds of block and their order, see `stack.make`.
    norm: spec of the final norm.
    embed: spec of `vocabulary.embedding`.
    head: spec of `vocabulary.output`.
    init: spec of `parts.init`.
    dropout: rate on embeddings and residual branches (not on attention weights,
      unlike GPT-2).
    scan, remat: see `stack.make`.
    dtype: type of activations.
    compute_dtype: type that matrix products read, see `linear.contract`. On CPU
      `compute_dtype='bfloat16'` with `dtype='float32'` is fastest; on
      accelerators use bfloat16 for both. 'int8' and 'fp8' are for those that
      multiply them faster, and need qwix.

  Raises:
    ValueError: for settings that do not fit together.
  """
  shared = parts.Shared(
    width, depth, config.build(init), dtype, compute_dtype, dropout, vocab=vocab
  )
  shared.check()
  checks.check_counts(vocab=vocab, length=length)
  layers = stack.make(shared, blocks, pattern, first, scan=scan, remat=remat)
  module = Decoder(
    vocab=vocab,
    length=length,
    shared=shared,
    stack=layers,
    norm=config.build(norm),
    embedding=config.build(embed),
    output=config.build(head),
  )
  vocabulary.embed(module.embedding, vocab, shared, length)  # checks it

  def start(params, batch, room):
    if room > length:
      raise ValueError(
        f'{room} positions, prompt and new ones, are more than model.length='
        f'{length}: ask for fewer tokens'
      )
    return linen.remember(
      batch, room, lambda text: layers.start(params, text, room)
    )

  def flops(length: int) -> float:
    return layers.flops(length) + 2 * width * vocab

  return linen.bridge(
    module,
    (*layers.rows(), *ROWS),
    start,
    unrolled=module.clone(stack=layers.unrolled()),
    layouts={'': layers.layers},
    flops=flops,
    growth=shared.growth,
  )


class Decoder(nn.Module):
  """Embedding, blocks, norm, head.

  Attributes:
    vocab, length: see `make`.
    shared: what its parts have in common.
    stack: the blocks.
    norm: builds the final norm, given `name`.
    embedding, output: of the vocabulary.
  """

  vocab: int
  length: int
  shared: parts.Shared
  stack: stack.Stack
  norm: Callable[..., nn.Module]
  embedding: vocabulary.Embedding
  output: vocabulary.Output

  def setup(self):
    c = self.shared
    self.embed = vocabulary.embed(self.embedding, self.vocab, c, self.length)
    self.logits = vocabulary.logits(self.output, self.vocab, c)

  def head(self, x_BLD: jax.Array) -> jax.Array:
    """Scores the vocabulary: [B, L, V]."""
    return self.logits(x_BLD, self.embed.table() if self.output.tied else None)

  @nn.compact
  def __call__(self, batch: types.Batch, cache: Any) -> types.Output:
    x_BLD = self.embed(batch.tokens, batch.positions).astype(self.shared.dtype)
    x_BLD = blocks_lib.dropout(self, self.shared.dropout, x_BLD)
    x_BLD = sharding.constrain(x_BLD, 'batch', 'length', None)
    text, cache = linen.recall(batch, cache)
    x_BLD, caches, metrics = stack.run(
      self.stack, self, x_BLD, text, cache and cache['layers']
    )
    if cache is not None:
      cache = {**cache, 'layers': caches}
    x_BLD = self.norm(name='final_norm')(x_BLD)
    return types.Output(self.head(x_BLD), cache, metrics, x_BLD)
