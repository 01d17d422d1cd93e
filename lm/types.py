"""The words of the house: what every floor above agrees on.

Dimension legend, used as suffixes of local arrays and as einsum letters:

  B batch            L target length       S source / key length
  D width            N query heads         K kv heads
  G = N / K          H head width          F mlp width
  V vocabulary       C classes             E experts
  M microbatches     R position buckets    1 broadcast

"axis" is a mesh axis (`data`, `fsdp`, `tensor`), "dimension" a tensor's.
This file must not import jax at run time: `lm.data` reads it on hosts, and in
worker processes, where no device may be touched.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Array = Any  # jax.Array or np.ndarray; naming them would import jax
Params = Any  # plain nested dict of arrays
Cache = Any  # KV cache, RNN carry or encoder memory: one idea for `generate`


class Batch(NamedTuple):
  """What every model reads and every loss scores.

  Attributes:
    tokens: int32 [B, L], the model's input on the scored side.
    targets: int32 [B, L], what position l is scored on ([B, K] for the classes
      of K texts a row).
    weights: float32 [B, L], 0 where nothing is scored.
    positions: int32 [B, L], restarting at 0 in each packed document.
    segments: int32 [B, L], 0 is padding, documents count from 1.
    prefix: bool [B, L], the bidirectional region of a prefix LM, or None.
    source: int32 [B, S], the encoder side, or None.
    source_segments: int32 [B, S], 0 is padding, or None; a document of the
      target side reads the part of the source that has its number.
    token_types: int32 [B, L], which of the model's token_types of text a token belongs to
      (BERT's sentence A and B), or None: all 0.
  """

  tokens: Array
  targets: Array
  weights: Array
  positions: Array
  segments: Array
  prefix: Array | None = None
  source: Array | None = None
  source_segments: Array | None = None
  token_types: Array | None = None


class Output(NamedTuple):
  """A model's answer.

  Attributes:
    logits: [B, L, V].
    cache: the new one.
    aux: what a model measures of itself, by name: `Metric`s over the tokens of
      the batch that are not padding. Those whose names end in '_loss' are added
      to what is minimized, each as its mean over the batch's tokens.
    hidden: [B, L, D], what the output layer reads: features for `models.heads`;
      None of an n-gram.
  """

  logits: Array
  cache: Cache
  aux: dict[str, 'Metric']
  hidden: Array = None


class Metric(NamedTuple):
  """A sum and its weight; its value is `total / weight`.

  Merging adds both fields, so means are exact under packing, microbatches,
  uneven last batches and any number of hosts.
  """

  total: Array | float
  weight: Array | float


class Model(NamedTuple):
  """A model is pure values, shaped like `optax.GradientTransformation`.

  Attributes:
    init: `(rng, batch) -> Params`.
    apply: `(params, batch, *, cache=None, rng=None) -> Output`; dropout is on
      exactly when `rng` is given.
    start: `(params, batch, length) -> Cache`, room for `length` positions:
      zeros of a KV cache, an RNN's carry or the encoder's memory.
    axes: `((path_regex, logical_axes), ...)`, the sharding table of the
      parameters; first match wins, aligned to the right.
    head: `(params, hidden) -> logits`, the output layer alone, position by
      position, for losses that never hold the logits of all positions; None:
      it cannot be had apart.
    fixed: regexes, from the beginning of their paths, of the parameters that
      never learn: the step computes no gradient for them, and `optim.holding`
      keeps an optimizer from them.
  """

  init: Callable[..., Params]
  apply: Callable[..., Output]
  start: Callable[..., Cache]
  axes: tuple[tuple[str, tuple[str | None, ...]], ...]
  head: Callable[..., Array] | None = None
  fixed: tuple[str, ...] = ()


class TrainState(NamedTuple):
  """All that training carries from one step to the next.

  Attributes:
    step: int32 scalar, updates tried so far; also the index of the next batch.
    params: the model's parameters.
    opt_state: the optax state.
    extra: dict of further state: `skipped` (updates dropped because they were
      not finite), averages of parameters and the like.
  """

  step: Array
  params: Params
  opt_state: Any
  extra: dict[str, Any]


class Tokenizer(NamedTuple):
  """Text to ids and back, as pure functions.

  Attributes:
    encode: `str -> list[int]`, without bos or eos.
    encode_batch: `list[str] -> list[list[int]]`, the same, faster.
    decode: `list[int] -> str`; the inverse of `encode`, skips bos, eos, pad.
    size: vocabulary size V; every id is below it.
    bos: id put before a document's first token.
    eos: id that ends a document.
    pad: id of padding.
    sha256: fingerprint; shards written with another one are refused.
    reserved: how many ids at the end of the vocabulary stand for nothing that
      is written: no text is encoded to them.
    mask: id of BERT's mask, or None.
    sentinels: ids of T5's sentinels, in the order of their use.
    word_starts: bool [V], whether a piece begins a word.
  """

  encode: Callable[[str], list[int]]
  encode_batch: Callable[[list[str]], list[list[int]]]
  decode: Callable[[list[int]], str]
  size: int
  bos: int
  eos: int
  pad: int
  sha256: str
  reserved: int
  mask: int | None
  sentinels: Sequence[int]
  word_starts: Array
