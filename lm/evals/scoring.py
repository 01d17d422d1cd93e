"""How likely a model finds a continuation of a text: the one place that asks.

Whatever a model was trained for, its config's objective says how: a decoder
continues its prompt, an encoder-decoder reads the context in its source, and
where an objective has no prompt, as that of BERT, each token is masked in turn.
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

_NARROWEST = 32  # positions; shorter rows would only mean more programs


class Score(NamedTuple):
  """What a continuation costs.

  Attributes:
    nats: the sum of -log p of its tokens, added up in double.
    tokens: how many.
    bytes: of its UTF-8.
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
    text: number of the text that it belongs to.
    ids: what the model reads, but for the mask.
    targets: what it is scored on, one a position.
    first, stop: the positions that are scored; of a masked row the one that is
      masked.
    prefix: positions of a prefix LM that see each other; None of others.
    source: ids on the encoder's side; None without one.
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

  The tokens of a continuation are those of the whole text beyond as many as the
  context has alone, once spaces at the context's end were moved to the
  continuation, where a word's first piece has its space. This is the rule of
  lm-evaluation-harness, but that the model always reads the tokens of the whole
  text, also where a token spans the boundary; the last token is scored in any
  case. Before all stands bos, and an empty context is bos alone.

  What is longer than `length` is cut from the left, bos first. A continuation
  that is longer itself is scored in windows, each token once.

  A masked model gives the pseudo-log-likelihood of the continuation: each of
  its tokens is masked alone, and sees all others of its window. Reference:
  Salazar et al. 2020, arXiv 1910.14659, section 2.

  Args:
    context: the run that is evaluated.
    batch_size: rows at a time; changes nothing but speed.
    length: L, the most positions that the model reads, on either side.
    objective: spec of what the model was trained for.
    stride: positions from one window of a long continuation to the next, at
      most L: a token has L - stride before it, or all there are. None: L, and
      only the last window is moved back to be a full one.

  Raises:
    ValueError: a setting is out of range, or the objective scores no text.
  """
  model, tokenizer, mesh = context
  objectives.check_whole('batch_size', batch_size, 1)
  objectives.check_whole('length', length, 1)
  step = length if stride is None else stride
  objectives.check_whole('stride', step, 1)
  if step > length:
    raise ValueError(f'stride={stride} must be at most length={length}')
  made = config.build(objective, tokenizer=tokenizer, length=length)
  prompt, masks = made.prompt, made.prompt is None
  ends = masks and _ends(made, objective, tokenizer)
  # Every process asks for all texts, and brings the rows that are its own.
  host, hosts = sharding.host(mesh, batch_size)
  own = slice(host * (batch_size // hosts), (host + 1) * (batch_size // hosts))
  widths = _widths(length, mesh)
  run = compiled(model.apply, mesh)

  def lay(text: int, context: list[int], ids: list[int]) -> Iterator[_Row]:
    """Cuts a text in rows."""
    if prompt is None:
      # What has an end has its bos in every window: it stands for a class.
      every = [tokenizer.bos, *context, *ids][ends:]
      begin, end = [tokenizer.bos] * ends, [tokenizer.eos] * ends
      room = length - 2 * ends
      for start, first, stop in _windows(
        len(every) - len(ids), len(every), room, min(step, room)
      ):
        row = [*begin, *every[start:stop], *end]
        for place in range(first - start + ends, stop - start + ends):
          yield _Row(text, row, row, place, place + 1)
      return
    begun = prompt([context])
    every = [*begun.tokens[0].tolist(), *ids]
    known = len(every) - len(ids)
    source = None if begun.source is None else begun.source[0, -length:]
    # Position p predicts token p + 1.
    for start, first, stop in _windows(known - 1, len(every) - 1, length, step):
      yield _Row(
        text,
        every[start:stop],
        every[start + 1 : stop + 1],
        first - start,
        stop - start,
        None if begun.prefix is None else max(known - start, 0),
        None if source is None else source.tolist(),
      )

  def shape(row: _Row) -> tuple[int, int]:
    width = next(w for w in widths if w >= len(row.ids))
    if row.source is None:
      return width, 0
    return width, next(w for w in widths if w >= len(row.source))

  def score(
    params: types.Params, pairs: Sequence[tuple[str, str]]
  ) -> list[Score]:
    parted = _encode(tokenizer, pairs)
    rows = [
      row
      for text, (context, ids) in enumerate(parted)
      if ids
      for row in lay(text, context, ids)
    ]
    nats = np.zeros(len(parted), np.float64)
    greedy = np.ones(len(parted), bool)

    def note(part, found):
      nats_BL, hit_BL = map(np.asarray, found)
      for row, nats_L, hit_L in zip(part, nats_BL, hit_BL, strict=False):
        here = slice(row.first, row.stop)
        nats[row.text] += nats_L[here].sum(dtype=np.float64)
        greedy[row.text] &= bool(hit_L[here].all())

    pending = None  # the device works on a batch while the next one is made
    # The widest come first: what does not fit in memory is known at once.
    rows.sort(key=shape, reverse=True)
    for place, same in itertools.groupby(rows, key=shape):
      same = list(same)
      for n in range(0, len(same), batch_size):
        part = same[n : n + batch_size]
        batch = _batch(part[own], own, place, same[0], tokenizer, masks)
        with jax.set_mesh(mesh):
          found = run(params, sharding.put(batch, mesh, host, hosts))
        if pending is not None:
          note(*pending)
        pending = part, found
    if pending is not None:
      note(*pending)
    return [
      Score(float(nats[n]), len(ids), len(text.encode()), bool(greedy[n]))
      for n, ((_, ids), (_, text)) in enumerate(zip(parted, pairs, strict=True))
    ]

  return score


def _ends(
  made: objectives.Objective,
  objective: Mapping[str, Any],
  tokenizer: types.Tokenizer,
) -> bool:
  """Tells if the texts of an objective that masks tokens end with eos.

  Raises:
    ValueError: it does not mask tokens.
  """
  row = np.full((1, made.window + 1), tokenizer.encode('a')[-1], np.int32)
  row[:, 0] = tokenizer.eos
  batch = made.make(row, np.array([made.window]), np.zeros(1, np.uint64))
  same = batch.tokens.shape == batch.targets.shape and batch.source is None
  if tokenizer.mask is None or not same:
    raise ValueError(
      f'objective {objective["fn"]}: neither goes on from a text nor masks '
      'tokens, so no text can be scored with it'
    )
  return bool((batch.tokens == tokenizer.eos).any())


def _encode(
  tokenizer: types.Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
  """Gives the tokens of contexts, without bos, and of continuations."""
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
    stop = total
  elif first < length:
    stop = min(length, total)  # all that stands before is read
  else:
    stop = min(first + stride, total)
  while True:
    yield max(stop - length, 0), first, stop
    if stop == total:
      return
    first, stop = stop, min(stop + stride, total)


def _widths(length: int, mesh: jax.sharding.Mesh) -> list[int]:
  """Lists what rows are padded to, ascending: halves of halves of L."""
  parts = 8 * mesh.shape['sequence']  # which cut a row's positions
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
  """Lays rows out, and as many of padding as are missing from `own`.

  A process may have no row of its own: `like` tells what a row has.
  """
  count = own.stop - own.start
  batch = objectives.padding(count, shape[0], tokenizer)
  prefix, source, known = None, None, None
  if like.prefix is not None:
    prefix = np.zeros(batch.tokens.shape, bool)
  if like.source is not None:
    source = np.full((count, shape[1]), tokenizer.pad, np.int32)
    known = np.zeros_like(source)
  for b, row in enumerate(rows):
    here = slice(len(row.ids))
    batch.tokens[b, here] = row.ids
    batch.targets[b, here] = row.targets
    batch.weights[b, row.first : row.stop] = 1
    batch.positions[b, here] = np.arange(len(row.ids))
    batch.segments[b, here] = 1
    if masks:
      batch.tokens[b, row.first] = tokenizer.mask
    if prefix is not None:
      prefix[b, : row.prefix] = True
    if row.source is not None and source is not None and known is not None:
      source[b, : len(row.source)] = row.source
      known[b, : len(row.source)] = 1
  return batch._replace(prefix=prefix, source=source, source_segments=known)


@functools.lru_cache(maxsize=4)  # all evaluators of a run share its programs
def compiled(apply: Callable[..., types.Output], mesh: jax.sharding.Mesh):
  """Compiles `(params, batch) -> (nats [B, L], is likeliest [B, L])`."""

  def run(params, batch):
    logits_BLV = apply(params, batch).logits
    nats_BL = loss.cross_entropy(logits_BLV, batch.targets)
    return nats_BL, jnp.argmax(logits_BLV, axis=-1) == batch.targets

  # Whole on every process, which may read only what is.
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.jit(run, out_shardings=whole)
