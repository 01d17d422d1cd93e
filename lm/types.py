"""The types that all of `lm` shares: batches, models, metrics, tokenizers.

Dimension legend, used as suffixes of local arrays and as einsum letters:

  B batch            L target length       S source / key length
  D width            N query heads         K kv heads
  G = N / K          H head width          F mlp width
  V vocabulary       C classes             E experts
  M parts in turn    R position buckets    1 broadcast

M numbers microbatches, or the chunks of a loss. A small letter is a part of its
dimension: l is a part of the positions L. A module that needs other letters
says so in its docstring.

An "axis" belongs to a mesh (`data`, `fsdp`, `tensor`), a "dimension" to an
array.

This file must not import jax at run time: `lm.data` imports it on hosts and in
worker processes, where no device may be touched.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from lm import initial

Array = Any  # jax.Array or np.ndarray; naming them would import jax
Params = Any  # plain nested dict of arrays
Cache = Any  # KV cache, RNN carry or encoder memory: one idea for `generate`


class Batch(NamedTuple):
  """A batch of examples: every model reads one, and every loss scores one.

  Attributes:
    tokens: int32 [B, L], the input of the side that is scored.
    targets: int32 [B, L], the id that is right at each position; [B, K] for the
      classes of K texts in a row.
    weights: float32 [B, L], 0 where nothing is scored.
    positions: int32 [B, L], restarting at 0 in each packed document.
    segments: int32 [B, L], the number of each token's document, from 1; 0 is
      padding.
    prefix: bool [B, L], the bidirectional region of a prefix LM, or None.
    source: int32 [B, S], the tokens of the encoder's side, or None.
    source_segments: int32 [B, S], like `segments`, or None. A document of the
      target side reads the source tokens that have its number.
    token_types: int32 [B, L], the type of each token (0 and 1 are BERT's
      sentences A and B); None stands for zeros.
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
  """The result of applying a model to a batch.

  Attributes:
    logits: [B, L, V].
    cache: the updated cache, or None where none was given.
    aux: metrics that the model reports of itself, by name. Those whose names
      end in '_loss' are minimized too: the value of each, its total over its
      weight, is added to the training loss. Their weights depend on the batch
      alone, not on parameters.
    hidden: [B, L, D], the input of the output layer, which `models.heads` use
      as features; None for an n-gram model.
  """

  logits: Array
  cache: Cache
  aux: dict[str, 'Metric']
  hidden: Array = None


class Metric(NamedTuple):
  """A sum and its weight; the value of the metric is `total / weight`.

  Merging two metrics adds both fields. So means are exact under packing,
  microbatches, uneven last batches and any number of hosts.
  """

  total: Array | float
  weight: Array | float


class Matrix(NamedTuple):
  """Parameters that a product reads.

  What their shape has before these dimensions (scanned layers, experts) makes
  it a batch of matrices.

  Attributes:
    path: a regex, searched in their paths.
    summed: how many of their last dimensions the product sums over.
    out: how many dimensions after those come out; 0 for a table whose rows are
      read one by one.
    hidden: whether Muon orthogonalizes it and Adafactor factors it; they treat
      others as they treat biases.
  """

  path: str
  summed: int
  out: int
  hidden: bool = True


class Model(NamedTuple):
  """A model as a tuple of pure functions, like optax.GradientTransformation.

  Attributes:
    parameters: `batch -> tree` of `initial.Parameter` and the like: what
      parameters the model has, and how they are drawn. It draws nothing.
    apply: `(params, batch, *, cache=None, rng=None) -> Output`; dropout is on
      exactly when `rng` is given.
    start: `(params, batch, length) -> Cache` with room for `length` positions:
      an empty KV cache, the first carry of an RNN, the memory of an encoder.
    axes: `((path_regex, logical_axes), ...)`, the sharding table of the
      parameters. The first row that matches wins; its axes name the last
      dimensions.
    head: `(params, hidden) -> logits`, the output layer alone, for losses that
      never hold the logits of all positions at once; None where a model has no
      such layer.
    fixed: regexes, matched at the beginning of paths, of the parameters that
      never learn: a step computes no gradient for them, and `optim.fitted`
      hides them from the optimizer.
    matrices: the parameters that products read; the first match wins.
    flops: `length -> FLOPs` that the forward pass of a token needs, in texts of
      that length; None where a model does not say.
    compares_rows: whether what it computes for a row depends on the other rows
      of the batch, which then may not be cut.
    growth: how many times wider and deeper it is than the model whose learning
      rates it takes, see `optim.transfer`.
  """

  parameters: Callable[..., Any]
  apply: Callable[..., Output]
  start: Callable[..., Cache]
  axes: tuple[tuple[str, tuple[str | None, ...]], ...]
  head: Callable[..., Array] | None = None
  fixed: tuple[str, ...] = ()
  matrices: tuple['Matrix', ...] = ()
  flops: Callable[[int], float] | None = None
  compares_rows: bool = False
  growth: tuple[float, float] = (1.0, 1.0)

  def init(self, seed: int, batch: Batch | None) -> Params:
    """Draws initial parameters: arrays of the host.

    Args:
      seed: the same seed draws the same values.
      batch: any that the model could read, for shapes.
    """
    return initial.draw(self.parameters(batch), seed)


class TrainState(NamedTuple):
  """Everything that training carries from one step to the next.

  Attributes:
    step: int32 scalar, how many updates were tried so far; also the index of
      the next batch.
    params: the parameters of the model.
    opt_state: the state of the optax optimizer.
    extra: further state by name, such as `skipped` (how many updates were
      dropped because they were not finite) and averages of parameters.
  """

  step: Array
  params: Params
  opt_state: Any
  extra: dict[str, Any]


class Tokenizer(NamedTuple):
  """Turns text into ids and back, by pure functions.

  Attributes:
    encode: `str -> list[int]`, without bos or eos.
    encode_batch: `list[str] -> list[list[int]]`, the same for many texts,
      faster.
    decode: `list[int] -> str`, the inverse of `encode`; it skips bos, eos and
      pad.
    decode_next: `list[int] -> str`, decodes ids that follow other text: a space
      that `decode` takes from the beginning of a text stays.
    size: V, the size of the vocabulary; every id is below it.
    bos: id before the first token of a document.
    eos: id after the last token of a document.
    ends: ids that end a text when a model draws them; the first is eos.
    pad: id of padding.
    sha256: fingerprint; shards written by a tokenizer with another one are
      refused.
    reserved: how many ids at the end of the vocabulary no text is encoded to.
    mask: id of BERT's mask, or None.
    sentinels: ids of T5's sentinels, in the order of their use.
    word_starts: bool [V], whether a piece begins a word.
    lossless: whether `decode(encode(x)) == x` holds for every Unicode string,
      by the tokenizer's own rules. False promises nothing: then each dataset
      says what its text lost (`lm.data.manifest.Manifest`).
    special: ids that no text is encoded to, by how the tokenizer's file spells
      them.
  """

  encode: Callable[[str], list[int]]
  encode_batch: Callable[[list[str]], list[list[int]]]
  decode: Callable[[list[int]], str]
  decode_next: Callable[[list[int]], str]
  size: int
  bos: int
  eos: int
  ends: tuple[int, ...]
  pad: int
  sha256: str
  reserved: int
  mask: int | None
  sentinels: Sequence[int]
  word_starts: Array
  lossless: bool
  special: Mapping[str, int] = MappingProxyType({})
