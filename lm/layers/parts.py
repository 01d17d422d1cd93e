"""The parts of a model: what a mixer, an mlp and a kind of block are.

A config shows a model as a tree of parts. Each part is a spec, `{'fn':
'package.module:function', ...}`, and its function gets `shared` (a `Shared`,
what all parts of the model have in common) beside the spec's settings:

  mixer   moves information along the text: returns a `Mixer`
          attention.make, attention.cross, recurrent.make
  mlp     works on each token alone: returns an `Mlp`
          mlp.make, experts.make
  block   a kind of block, made of such parts: returns a `Kind`
          blocks.make, blocks.single
  norm    returns a function that builds a module, given `name`
          norms.rmsnorm, norms.layernorm (these two get no `shared`)

To add a mixer, write one file in lm/layers/ with a `make` that returns a
`Mixer`, name it in a config, and give it a row in tests/laws/. Nothing else
needs to know of it. The rules that its module has to keep:

  - Documents: no information passes from one document to another. Tokens of a
    document have the same number in `Text.segments`, and their positions
    restart at 0. Number 0 is padding: it must change no other token, no state
    and no cache. In a call with a cache, padding stands at the end of the rows.
  - Order: unless `shared.bidirectional`, no position sees a later one. A mixer
    that cannot look to the right raises a ValueError in `make` when it is asked
    to, and in `see` when `Text.prefix` is given.
  - Cache: reading a text in several calls gives what one call gives. `start`
    makes the cache of one layer, the module takes it and returns the new one.
    With cache None the module keeps nothing and returns None.
  - Depth: layers may be scanned and cut into stages, so `see` is called once
    for all layers of a kind, outside the loop, and every array that it returns
    has the rows of the batch as its first dimension.
  - Numbers: arrays are of `shared.dtype`, products read `shared.compute_dtype`;
    states that sum along a text are float32.
  - Names: the mixer's `name` is the scope of its parameters. A parameter that
    weight decay must leave alone ends in 'scale' or 'bias'.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from flax import linen as nn
import jax

from lm.layers import checks, initializers, linear

OUTPUTS = ('scaled', 'plain', 'zero')


class Row(NamedTuple):
  """Says of some parameters how they are cut and multiplied.

  One row serves sharding, Muon, Adafactor, LoRA, int8 and pruning.

  Attributes:
    path: a regex, searched in the parameter's path. In a part it begins below
      the part's own name and is anchored there: 'q$' of a mixer called
      'attention' finds 'layers_0/attention/q' alone.
    axes: logical axes of the last dimensions, see `sharding.shardings`; ()
      leaves every device a copy.
    summed: how many of the last dimensions a product sums over; 0 for what is
      no matrix of a product.
    out: how many dimensions after those come out; 0 for a table whose rows are
      read one by one.
    hidden: whether Muon and Adafactor take it for a matrix, see `types.Matrix`.
  """

  path: str
  axes: tuple[str | None, ...]
  summed: int = 0
  out: int = 0
  hidden: bool = True


class Init(NamedTuple):
  """Initial values of kernels; see `init`, and `transfer.mup` for the bases."""

  std: float | None
  outputs: str
  base_width: int | None = None
  base_depth: int | None = None
  base_head_width: int | None = None


def init(*, std: float | None = 0.02, outputs: str = 'scaled') -> Init:
  """Describes the initial values of kernels.

  Args:
    std: standard deviation; None is 1 / sqrt(inputs).
    outputs: the last kernel of a mixer or mlp: 'scaled' divides its deviation
      by sqrt(2 depth), which keeps the variance of the stream (GPT-2); 'plain'
      is like the others; 'zero' starts at 0.

  Raises:
    ValueError: for an unknown word.
  """
  checks.check_choices(outputs=(outputs, OUTPUTS))
  return Init(std, outputs)


class Shared(NamedTuple):
  """Holds the settings that all parts of a model have in common.

  Attributes:
    width: D.
    depth: number of blocks.
    init: of kernels.
    dtype: of activations.
    compute_dtype: what products read, see `linear.contract`.
    dropout: rate on branches.
    variational: whether all positions of a text share one dropout mask.
    bidirectional: whether a position sees what stands to its right.
    vocab: V; None in models whose parts do not see the tokens.
  """

  width: int
  depth: int
  init: Init
  dtype: str = 'float32'
  compute_dtype: str = 'float32'
  dropout: float = 0.0
  variational: bool = False
  bidirectional: bool = False
  vocab: int | None = None

  def check(self) -> None:
    """Checks the settings that every model has.

    Raises:
      ValueError: naming the first that is wrong.
    """
    checks.check_choices(dtype=(self.dtype, checks.DTYPES))
    linear.check(self.compute_dtype)
    checks.check_counts(width=self.width, depth=self.depth)
    checks.check_rates(dropout=self.dropout)

  @property
  def growth(self) -> tuple[float, float]:
    """Returns how many times wider and deeper it is than its base."""
    base = self.init.base_width or self.width, self.init.base_depth
    return self.width / base[0], self.depth / (base[1] or self.depth)

  def std(self, inputs: int) -> float:
    """Returns the deviation of a kernel with so many inputs, in the base."""
    base = inputs / self.growth[0]
    return base**-0.5 if self.init.std is None else self.init.std

  def kernel(self, gain: float = 1.0) -> initializers.Initializer:
    """Returns the initializer of kernels that read the stream."""
    return initializers.normal(self.std(self.width) * gain)

  def output(self, inputs: int) -> initializers.Initializer:
    """Returns the initializer of kernels that write to the stream."""
    if self.init.outputs == 'zero':
      return initializers.ZEROS
    depth = self.init.base_depth or self.depth
    gain = (2 * depth) ** -0.5 if self.init.outputs == 'scaled' else 1.0
    return initializers.normal(self.std(inputs) * gain)


class Memory(NamedTuple):
  """The text that a cross-attention reads.

  Attributes:
    hidden: [B, S, D], the encoder's output; None where a cache holds all that
      is needed of it.
    segments: int32 [B, S], the document of each token.
  """

  hidden: jax.Array | None
  segments: jax.Array


class Text(NamedTuple):
  """All that parts may know of a text, beside the stream.

  Attributes:
    segments, positions, prefix: of this call's tokens, see `types.Batch`.
    keys: the same of every slot of the cache, this call's tokens among them;
      None without a cache.
    first: int32 scalar, the slot of this call's first token; None without a
      cache.
    memory: the other text that this one reads; None if there is none.
    tokens: int32 [B, L], of this call; None if `Shared.vocab` is.
  """

  segments: jax.Array
  positions: jax.Array
  prefix: jax.Array | None = None
  keys: 'Text | None' = None
  first: jax.Array | None = None
  memory: Memory | None = None
  tokens: jax.Array | None = None


class Common(NamedTuple):
  """A module whose value all layers of a kind look at, such as T5's bias.

  Attributes:
    name: of its parameters, beside the blocks. Kinds that give the same name
      have one such module.
    build: given `name`, a module called with the `Text`.
    rows: of its parameters, below its name.
  """

  name: str
  build: Callable[..., nn.Module]
  rows: tuple[Row, ...] = ()


class Mixer(NamedTuple):
  """Moves information along the text.

  Attributes:
    name: scope of its parameters in a block, such as 'attention'.
    build: given `name`, a module called as `(x_BLD, seen, cache) -> (y_BLD,
      cache)`.
    see: `(text, initializing) -> seen`, what the layers look at: masks,
      rotations, where documents start. `initializing` tells that only shapes
      matter. With a `common` module it gets that one's value as a third
      argument.
    start: `(params, text, room) -> cache` of one layer with room for so many
      positions, a dict of arrays. `params` are the layer's own; `text` is the
      prompt, with the memory that will be read.
    rows: of its parameters, first match wins.
    flops: `length -> FLOPs` that the forward pass needs a token, in a text of
      that length: a multiply and an add for each term of a product.
    common: see `Common`; None has none.
  """

  name: str
  build: Callable[..., nn.Module]
  see: Callable[..., Any]
  start: Callable[[Any, Text, int], dict[str, jax.Array]]
  rows: tuple[Row, ...]
  flops: Callable[[int], float]
  common: Common | None = None


class Mlp(NamedTuple):
  """Works on each token alone.

  Attributes:
    build: given `name`, a module called as `(x_BLD, text) -> (y_BLD, metrics)`,
      where metrics are a dict of `types.Metric`. Losses end in '_loss'.
    rows, flops: the same as in `Mixer`.
    name: scope of its parameters.
  """

  build: Callable[..., nn.Module]
  rows: tuple[Row, ...]
  flops: Callable[[int], float]
  name: str = 'mlp'


class Kind(NamedTuple):
  """A kind of block, as a model knows it.

  Attributes:
    build: given `name`, a module called as `(x_BLD, seen, text, cache) ->
      (x_BLD, cache, metrics)`.
    see: `(text, initializing, values) -> seen`; `values` are those of the
      common modules, by name.
    start: `(params, text, room) -> cache` of one block.
    rows: of all parts.
    flops: of all parts.
    commons: modules that the model has to build once.
  """

  build: Callable[..., nn.Module]
  see: Callable[[Text, bool, Mapping[str, Any]], Any]
  start: Callable[[Any, Text, int], dict[str, Any]]
  rows: tuple[Row, ...]
  flops: Callable[[int], float]
  commons: tuple[Common, ...] = ()


def below(name: str, rows: Iterable[Row]) -> tuple[Row, ...]:
  """Puts rows below a scope: their paths begin with its name."""
  return tuple(row._replace(path=f'(^|/){name}/{row.path}') for row in rows)
