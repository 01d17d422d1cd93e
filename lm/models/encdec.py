"""Encoder and decoder: the original Transformer and T5.

Reference: Vaswani et al. 2017, arXiv 1706.03762; Raffel et al. 2020, arXiv
1910.10683 (T5); Shazeer 2020, arXiv 2002.05202 (the gates of T5 v1.1).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import config, metrics, sharding, types
from lm.layers import blocks as blocks_lib
from lm.layers import checks, parts, stack, vocabulary
from lm.models import linen

ROWS = (*vocabulary.ROWS, parts.Row(r'(scale|bias)$', (sharding.WHOLE,)))


class SideSpec(NamedTuple):
  """The blocks of one side; see `side`."""

  depth: int
  blocks: Mapping[str, Mapping[str, Any]]
  pattern: Sequence[str]
  first: Sequence[str]
  norm: Callable[..., nn.Module] | None


def side(
  *,
  depth: int,
  blocks: Mapping[str, Mapping[str, Any]],
  pattern: Sequence[str],
  first: Sequence[str] = (),
  norm: Mapping[str, Any] | None = None,
) -> SideSpec:
  """Describes the blocks of the encoder, or of the decoder.

  Args:
    depth: number of blocks.
    blocks, pattern, first: kinds of block and their order, see `stack.make`.
      Those of the decoder have a `cross` that reads the encoder's text.
    norm: spec of a norm after the last block, which dropout follows: for blocks
      whose order is not 'post'; None has neither.
  """
  built = None if norm is None else config.build(norm)
  return SideSpec(depth, blocks, pattern, first, built)


def make(
  *,
  vocab: int,
  width: int,
  encoder: Mapping[str, Any],
  decoder: Mapping[str, Any],
  embed: Mapping[str, Any],
  head: Mapping[str, Any],
  init: Mapping[str, Any],
  dropout: float = 0.0,
  scan: bool = False,
  remat: str = 'none',
  dtype: str = 'float32',
  compute_dtype: str = 'float32',
) -> types.Model:
  """Makes a model that reads `Batch.source` and writes the target side.

  One embedding table serves both sides. A document of the target reads the part
  of the source that has its number, so that examples can be packed.

  Args:
    vocab: V.
    width: D.
    encoder, decoder: specs of the function `side`.
    embed: spec of `vocabulary.embedding`; it has no length, so no learned
      positions.
    head: spec of `vocabulary.output`.
    init: spec of `parts.init`.
    dropout: rate on embeddings and branches (not on attention weights).
    scan, remat, dtype, compute_dtype: the same as in `decoder.make`.

  Raises:
    ValueError: for settings that do not fit together.
  """
  checks.check_counts(vocab=vocab)
  shared = parts.Shared(
    width, 1, config.build(init), dtype, compute_dtype, dropout, vocab=vocab
  )
  sides = {
    name: _side(name, config.build(spec), shared, scan, remat)
    for name, spec in (('encoder', encoder), ('decoder', decoder))
  }
  module = EncoderDecoder(
    vocab=vocab,
    shared=shared,
    encoder=sides['encoder'],
    decoder=sides['decoder'],
    embedding=config.build(embed),
    output=config.build(head),
  )
  vocabulary.embed(module.embedding, vocab, shared)  # checks it
  stacks = {name: side.stack for name, side in sides.items()}
  deep = shared._replace(depth=_depth(stacks, shared))

  def start(params, batch, room):
    memory_BSD = cast(
      jax.Array, module.apply({'params': params}, batch, None, encode=True)
    )
    memory = parts.Memory(memory_BSD, batch.source_segments)

    def layers(text):
      text = text._replace(memory=memory)
      return stacks['decoder'].start(params['decoder'], text, room)

    cache = linen.remember(batch._replace(prefix=None), room, layers)
    return {**cache, 'source_segments': batch.source_segments}

  def flops(length: int) -> float:
    # For a token of each side, so of a source as long as the text.
    blocks = sum(layers.flops(length) for layers in stacks.values())
    return blocks + 2 * width * vocab

  return linen.bridge(
    module,
    (*stacks['encoder'].rows(), *stacks['decoder'].rows(), *ROWS),
    start,
    unrolled=module.clone(
      encoder=_unrolled(sides['encoder']), decoder=_unrolled(sides['decoder'])
    ),
    layouts={name: x.layers for name, x in stacks.items()},
    flops=flops,
    growth=deep.growth,
  )


def _depth(stacks: Mapping[str, stack.Stack], shared: parts.Shared) -> int:
  depths = {len(x.unrolled().layers) for x in stacks.values()}
  if shared.init.base_depth and len(depths) > 1:
    raise ValueError(
      'init.base_depth: depth transfers where encoder and decoder have one'
      ' depth: set encoder.depth and decoder.depth alike, or base_depth=None'
    )
  return max(depths)


def _side(
  name: str, spec: SideSpec, shared: parts.Shared, scan: bool, remat: str
) -> 'Side':
  shared = shared._replace(depth=spec.depth, bidirectional=name == 'encoder')
  shared.check()
  try:
    layers = stack.make(
      shared, spec.blocks, spec.pattern, spec.first, scan=scan, remat=remat
    )
  except ValueError as error:
    raise ValueError(f'{name}.{error}') from error
  return Side(stack=layers, norm=spec.norm, dropout=shared.dropout)


def _unrolled(side: 'Side') -> 'Side':
  return side.clone(stack=side.stack.unrolled())


class EncoderDecoder(nn.Module):
  """Both sides around one embedding.

  Attributes:
    vocab: V.
    shared: what its parts have in common.
    encoder, decoder: the sides.
    embedding, output: of the vocabulary.
  """

  vocab: int
  shared: parts.Shared
  encoder: nn.Module
  decoder: nn.Module
  embedding: vocabulary.Embedding
  output: vocabulary.Output

  def setup(self):
    c = self.shared
    self.embed = vocabulary.embed(self.embedding, self.vocab, c)
    self.logits = vocabulary.logits(self.output, self.vocab, c)

  def head(self, x_BLD: jax.Array) -> jax.Array:
    """Scores the vocabulary: [B, L, V]."""
    return self.logits(x_BLD, self.embed.table() if self.output.tied else None)

  @nn.compact
  def __call__(
    self, batch: types.Batch, cache: Any, encode: bool = False
  ) -> Any:
    """Returns the output, or only the encoder's [B, S, D] with `encode`."""

    def enter(tokens_BL, positions_BL):
      x_BLD = self.embed(tokens_BL, positions_BL).astype(self.shared.dtype)
      x_BLD = blocks_lib.dropout(self, self.shared.dropout, x_BLD)
      return sharding.constrain(x_BLD, 'batch', 'length', None)

    memory, found = None, {}
    if cache is None:
      segments_BS = batch.source_segments
      if segments_BS is None:
        raise ValueError(
          'an encoder-decoder reads a source: the batch has none'
        )
      positions_BS = _restarting(segments_BS)
      memory_BSD, _, found = self.encoder(
        enter(batch.source, positions_BS),
        parts.Text(segments_BS, positions_BS, tokens=batch.source),
        None,
      )
      if encode:
        return memory_BSD
      memory = parts.Memory(memory_BSD, segments_BS)
    else:
      memory = parts.Memory(None, cache['source_segments'])
    text, cache = linen.recall(batch._replace(prefix=None), cache)
    x_BLD, caches, written = self.decoder(
      enter(batch.tokens, batch.positions),
      text._replace(memory=memory),
      cache and cache['layers'],
    )
    if cache is not None:
      cache = {**cache, 'layers': caches}
    found = metrics.join(found, written)
    return types.Output(self.head(x_BLD), cache, found, x_BLD)


class Side(nn.Module):
  """A stack of blocks, and a norm at its end.

  Attributes:
    stack: the blocks.
    norm: builds the last norm; None has none, nor dropout there.
    dropout: rate.
  """

  stack: stack.Stack
  norm: Callable[..., nn.Module] | None
  dropout: float

  @nn.compact
  def __call__(self, x_BLD, text, caches):
    """Returns [B, L, D], the new caches and metrics."""
    x_BLD, caches, found = stack.run(self.stack, self, x_BLD, text, caches)
    if self.norm is not None:
      x_BLD = self.norm(name='final_norm')(x_BLD)
      x_BLD = blocks_lib.dropout(self, self.dropout, x_BLD)
    return x_BLD, caches, found


def _restarting(segments_BS):
  """Counts positions within each document of a packed row."""
  place_1S = jnp.arange(segments_BS.shape[1])[None]
  before_BS = jnp.pad(segments_BS[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  starts_BS = jnp.where(segments_BS != before_BS, place_1S, 0)
  return place_1S - jax.lax.cummax(starts_BS, axis=1)
