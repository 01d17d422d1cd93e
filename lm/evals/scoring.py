"""Scores continuations of texts: how likely a model finds them.

Every evaluator that compares likelihoods asks here. The objective in the run's
config says how to ask: a decoder continues a prompt, an encoder-decoder reads
the context in its source, and where an objective has no prompt, such as that of
BERT, each token is masked in turn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, loss, sharding, types
from lm.data import objectives
from lm.evals import context as context_lib

# Positions of the narrowest row. Narrower ones would save little time and cost
# one more compiled program each.
_NARROWEST = 32


class Score(NamedTuple):
  """The cost of a continuation.

  Attributes:
    nats: the sum of -log p of its tokens, added up in double precision.
    tokens: the number of its tokens.
    bytes: the length of its UTF-8.
    greedy: whether each of its tokens is the likeliest in its place.
  """

  nats: float
  tokens: int
  bytes: int
  greedy: bool


Scorer = Callable[[types.Params, Sequence[tuple[str, str]]], list[Score]]


class _Row(NamedTuple):
  """A row of a batch.

  Attributes:
    text: number of the text that the row belongs to.
    ids: what the model reads, before one of them is masked.
    targets: what each position is scored on.
    first: the first position that is scored; in a masked row, the masked one.
    stop: one more than the last position that is scored.
    prefix: number of positions of a prefix LM that see each other, or None.
    source: ids on the encoder's side, or None.
  """

  text: int
  ids: Sequence[int]
  targets: Sequence[int]
  first: int
  stop: int
  prefix: int | None = None
  source: Sequence[int] | None = None


def make(
  context: context_lib.Context,
  *,
  batch_size: int,
  length: int,
  objective: Mapping[str, Any] = objectives.CAUSAL,
  stride: int | None = None,
) -> Scorer:
  """Makes `(params, [(context, continuation)]) -> [Score]`.

  Context and continuation are tokenized together, after the spaces at the
  context's end were moved to the continuation, where a word's first piece has
  its space. The context alone has some number of tokens; the tokens after that
  many are the continuation's. This is the rule of lm-evaluation-harness, with
  one difference: the model always reads the tokens of the whole text, even if
  one of them spans the boundary. The last token is scored in any case. Every
  text begins with bos, and an empty context is bos alone.

  A text that is longer than `length` is cut from the left, bos first. If the
  continuation alone is longer, it is scored in windows, each token once.

  A masked model gives the pseudo-log-likelihood of the continuation: each of
  its tokens is masked alone, and sees all others of its window. Reference:
  Salazar et al. 2020, arXiv 1910.14659, section 2.

  Args:
    context: the run that is evaluated.
    batch_size: rows at a time; changes nothing but speed.
    length: L, the most positions that the model reads, on either side.
    objective: spec of the objective that the model was trained for.
    stride: positions from one window of a long continuation to the next, at
      most L. Each token then sees the L - stride tokens before it, or all if
      there are fewer. None: L, and only the last window is moved back, so that
      it is full.

  Raises:
    ValueError: a setting is out of range, or the objective scores no text.
  """
  objectives.check_whole('batch_size', batch_size, 1)
  objectives.check_whole('length', length, 1)
  step = length if stride is None else stride
  objectives.check_whole('stride', step, 1)
  if step > length:
    raise ValueError(f'stride={stride} must be at most length={length}')
  tokenizer, mesh = context.tokenizer, context.mesh
  asked = config.build(objective, tokenizer=tokenizer, length=length)
  cut = _cutter(tokenizer, objective, asked, length, step)
  widths = _widths(length, mesh)
  run = compiled(context.model.apply, mesh)
  # Every process is given all texts, and brings the rows that are its own.
  host, hosts = sharding.host(mesh, batch_size)
  own = slice(host * (batch_size // hosts), (host + 1) * (batch_size // hosts))

  def score(
    params: types.Params, pairs: Sequence[tuple[str, str]]
  ) -> list[Score]:
    context_lib.check_scores(context, params, asked)
    texts = _encode(tokenizer, pairs)
    rows = [
      row
      for text, (prefix, ids) in enumerate(texts)
      if ids  # a continuation without tokens costs nothing
      for row in cut.rows(text, prefix, ids)
    ]
    # A text may have many rows, in several batches. float64, as a long text in
    # float32 would lose the digits that tell two likelihoods apart.
    nats = np.zeros(len(texts), np.float64)
    greedy = np.ones(len(texts), bool)

    def add(part, result):
      nats_BL, is_likeliest_BL = map(np.asarray, result)
      # The arrays are longer than `part` if the last batch is not full.
      for row, nats_L, is_likeliest_L in zip(
        part, nats_BL, is_likeliest_BL, strict=False
      ):
        scored = slice(row.first, row.stop)
        nats[row.text] += nats_L[scored].sum(dtype=np.float64)
        greedy[row.text] &= bool(is_likeliest_L[scored].all())

    pending = None  # the device works on a batch while the host makes the next
    for shape, part in _batches(rows, widths, batch_size):
      batch = _batch(part[own], own, shape, part[0], tokenizer, cut.masks)
      with jax.set_mesh(mesh):
        result = run(params, sharding.put(batch, mesh, host, hosts))
      if pending is not None:
        add(*pending)
      pending = part, result
    if pending is not None:
      add(*pending)
    return [
      Score(float(nats[n]), len(ids), len(text.encode()), bool(greedy[n]))
      for n, ((_, ids), (_, text)) in enumerate(zip(texts, pairs, strict=True))
    ]

  return score


class _Cutter(NamedTuple):
  """Cuts texts into rows.

  Attributes:
    rows: `(number, context ids, continuation ids) -> rows` of a text.
    masks: whether the first scored position of a row is masked.
  """

  rows: Callable[[int, list[int], list[int]], Iterator[_Row]]
  masks: bool


def _cutter(
  tokenizer: types.Tokenizer,
  spec: Mapping[str, Any],
  objective: objectives.Objective,
  length: int,
  stride: int,
) -> _Cutter:
  """Chooses the rows that suit the objective of a model.

  Raises:
    ValueError: the objective scores no text.
  """
  prompt = objective.prompt
  if prompt is None:
    ends = _has_ends(objective, spec, tokenizer)
    rows = functools.partial(_masked_rows, tokenizer, length, stride, ends)
  else:
    rows = functools.partial(_prompted_rows, prompt, length, stride)
  return _Cutter(rows, prompt is None)


def _masked_rows(
  tokenizer: types.Tokenizer,
  length: int,
  stride: int,
  ends: bool,
  text: int,
  context: list[int],
  ids: list[int],
) -> Iterator[_Row]:
  """Cuts a text for a masked model: one row for each token that is scored."""
  # A model whose texts end with eos was trained with bos and eos around every
  # window, as BERT with [CLS] and [SEP]. Others see bos once, before the text.
  whole = [*context, *ids] if ends else [tokenizer.bos, *context, *ids]
  begin, end = [tokenizer.bos] * ends, [tokenizer.eos] * ends
  room = length - 2 * ends  # bos and eos take two positions of each window
  for start, first, stop in _windows(
    len(whole) - len(ids), len(whole), room, min(stride, room)
  ):
    row = [*begin, *whole[start:stop], *end]
    # The rows of a window differ in the masked token alone, so they share their
    # ids; `_batch` masks its own copy.
    for place in range(first - start + ends, stop - start + ends):
      yield _Row(text, row, row, place, place + 1)


def _prompted_rows(
  prompt: Callable[..., types.Batch],
  length: int,
  stride: int,
  text: int,
  context: list[int],
  ids: list[int],
) -> Iterator[_Row]:
  """Cuts a text for a model that continues a prompt: one row for a window."""
  batch = prompt([context])
  whole = [*batch.tokens[0].tolist(), *ids]
  known = len(whole) - len(ids)
  # Cut from the left, like the target side: the end of a context says most
  # about what comes next.
  source = None if batch.source is None else batch.source[0, -length:]
  # Position p predicts token p + 1, so the last token is only a target.
  for start, first, stop in _windows(known - 1, len(whole) - 1, length, stride):
    yield _Row(
      text,
      whole[start:stop],
      whole[start + 1 : stop + 1],
      first - start,
      stop - start,
      # The context is the prefix; a later window may have nothing left of it.
      None if batch.prefix is None else max(known - start, 0),
      None if source is None else source.tolist(),
    )


def _has_ends(
  objective: objectives.Objective,
  spec: Mapping[str, Any],
  tokenizer: types.Tokenizer,
) -> bool:
  """Tells whether the texts of an objective that masks tokens end with eos.

  Raises:
    ValueError: the objective does not mask tokens.
  """
  # One example says it: a window full of one letter.
  row = np.full((1, objective.window + 1), tokenizer.encode('a')[-1], np.int32)
  row[:, 0] = tokenizer.eos
  batch = objective.make(
    row, np.array([objective.window]), np.zeros(1, np.uint64)
  )
  # Masked tokens are predicted in their places. Objectives such as skip-grams
  # have targets of another shape, and cannot say what a text costs.
  same = batch.tokens.shape == batch.targets.shape and batch.source is None
  if tokenizer.mask is None or not same:
    raise ValueError(
      f'objective {spec["fn"]}: neither continues a text nor masks '
      'tokens, so no text can be scored with it'
    )
  return bool((batch.tokens == tokenizer.eos).any())


def _encode(
  tokenizer: types.Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
  """Gives the tokens of contexts, without bos, and of continuations."""
  # Most tokenizers put a space into the first piece of the next word. At the
  # end of a context it would be a token that the whole text does not have.
  contexts = [context.rstrip() for context, _ in pairs]
  wholes = [context + text for context, text in pairs]
  return [
    (whole[:n], whole[n:])
    for (_, text), known, whole in zip(
      pairs,
      tokenizer.encode_batch(contexts),
      tokenizer.encode_batch(wholes),
      strict=True,
    )
    # A token may span the boundary: one is left to score all the same.
    for n in [min(len(known), len(whole) - bool(text))]
  ]


def _windows(
  first: int, total: int, length: int, stride: int
) -> Iterator[tuple[int, int, int]]:
  """Covers positions first..total - 1, each once, by windows.

  Yields:
    (start, first, stop): a window reads start..stop - 1, at most `length`
    positions, and scores first..stop - 1 of them.
  """
  if total - first <= stride:
    stop = total  # one window scores all
  elif first < length:
    stop = min(length, total)  # the first window has the whole context
  else:
    stop = min(first + stride, total)
  while True:
    yield max(stop - length, 0), first, stop
    if stop == total:
      return
    first, stop = stop, min(stop + stride, total)


def _batches(
  rows: list[_Row], widths: Sequence[int], batch_size: int
) -> Iterator[tuple[tuple[int, int], list[_Row]]]:
  """Yields (shape of a row, at most `batch_size` rows that fit it)."""

  def width(ids: Sequence[int]) -> int:
    return next(w for w in widths if w >= len(ids))

  def shape(row: _Row) -> tuple[int, int]:
    return width(row.ids), 0 if row.source is None else width(row.source)

  # The widest come first: if they do not fit into memory, it is known at once.
  rows.sort(key=shape, reverse=True)
  for place, group in itertools.groupby(rows, key=shape):
    same = list(group)
    for n in range(0, len(same), batch_size):
      yield place, same[n : n + batch_size]


def _widths(length: int, mesh: jax.sharding.Mesh) -> list[int]:
  """Lists the widths that rows are padded to, ascending: L and its halves.

  A program is compiled for each, so that short texts do not cost what long ones
  do, and few widths are enough.
  """
  # Positions are sharded over the axis `sequence`, in multiples of 8 each.
  parts = 8 * mesh.shape['sequence']
  halves = itertools.takewhile(
    lambda n: n >= _NARROWEST, (length >> n for n in itertools.count(1))
  )
  return sorted(
    {length, *(min(-(-n // parts) * parts, length) for n in halves)}
  )


def _batch(
  rows: Sequence[_Row],
  own: slice,
  shape: tuple[int, int],
  like: _Row,
  tokenizer: types.Tokenizer,
  masks: bool,
) -> types.Batch:
  """Lays rows out, with rows of padding in place of those that are missing.

  Args:
    rows: those of this process, at most as many as `own` is long.
    own: the rows of the batch that belong to this process.
    shape: widths L and S of the target side and of the source.
    like: any row of the batch, as a process may have none of its own: it tells
      whether rows have a prefix and a source.
    tokenizer: for its pad and mask.
    masks: whether the first scored position of a row is masked.
  """
  count = own.stop - own.start
  batch = objectives.padding(count, shape[0], tokenizer)
  prefix, source, source_segments = None, None, None
  if like.prefix is not None:
    prefix = np.zeros(batch.tokens.shape, bool)
  if like.source is not None:
    source = np.full((count, shape[1]), tokenizer.pad, np.int32)
    source_segments = np.zeros_like(source)
  # What is not set here stays padding, of weight 0 and segment 0.
  for b, row in enumerate(rows):
    filled = slice(len(row.ids))
    batch.tokens[b, filled] = row.ids
    batch.targets[b, filled] = row.targets
    batch.weights[b, row.first : row.stop] = 1
    batch.positions[b, filled] = np.arange(len(row.ids))
    batch.segments[b, filled] = 1
    if masks:
      batch.tokens[b, row.first] = tokenizer.mask
    if prefix is not None:
      prefix[b, : row.prefix] = True
    if (
      row.source is not None
      and source is not None
      and source_segments is not None
    ):
      source[b, : len(row.source)] = row.source
      source_segments[b, : len(row.source)] = 1
  return batch._replace(
    prefix=prefix, source=source, source_segments=source_segments
  )


@functools.lru_cache(maxsize=4)  # all evaluators of a run share its programs
def compiled(apply: Callable[..., types.Output], mesh: jax.sharding.Mesh):
  """Compiles `(params, batch) -> (nats [B, L], is likeliest [B, L])`."""

  def run(params, batch):
    logits_BLV = apply(params, batch).logits
    nats_BL = loss.cross_entropy(logits_BLV, batch.targets)
    return nats_BL, jnp.argmax(logits_BLV, axis=-1) == batch.targets

  # Replicated: a process can only read an array of which it has every part.
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.jit(run, out_shardings=whole)
