"""How a window of the token stream becomes a training example.

An example is a pure function of its row, size and key: neither the other rows
of the batch nor what was made before can change it. So a batch stays a
function of its step, with any number of hosts, threads and restarts.

A factory is named by a config. It takes the tokenizer and L, the length of the
scored side, and whatever it has settings for.
"""

from collections.abc import Callable, Sequence
import math
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from lm import types
from lm.data import windows

_LONGEST_SPAN = 10  # units; SpanBERT, section 3.1
CAUSAL = MappingProxyType({'fn': 'lm.data.objectives:causal'})
_NOISE_POWER = 0.75  # of a word's count; Mikolov et al. 2013, section 2.2


class Objective(NamedTuple):
  """A way to make examples.

  Attributes:
    window: W, tokens of the stream that one example uses.
    make: `(rows, sizes, keys) -> Batch`. Rows, int32 [B, W + 1], hold the token
      before the window and then the window, as `windows.Windows.read` gives
      them; sizes, int64 [B], 0..W, count the window's tokens that are not
      padding, and what a row holds beyond them does not matter and may be
      written over; keys, uint64 [B], are all the randomness there is, one an
      example.
    likelihood: whether the window's tokens are scored once each, given only
      what is left of them: the sum of losses is then that of the text.
    prompt: `(texts' ids) -> Batch`, what a model that was trained so goes on
      from, for `generate`; None: it goes on from nothing.
  """

  window: int
  make: Callable[[np.ndarray, np.ndarray, np.ndarray], types.Batch]
  likelihood: bool = False
  prompt: Callable[[Sequence[Sequence[int]]], types.Batch] | None = None


def example(objective: Objective, batch_size: int) -> types.Batch:
  """Gives a batch of zeros, for shapes and types."""
  row = np.zeros((1, objective.window + 1), np.int32)
  made = objective.make(row, np.zeros(1, np.int64), np.zeros(1, np.uint64))
  return types.Batch(
    *[
      None if x is None else np.zeros((batch_size, *x.shape[1:]), x.dtype)
      for x in made
    ]
  )


def padded(rows: Sequence[Sequence[int]], pad: int) -> types.Batch:
  """Makes a batch of uneven rows of ids, padded on the right.

  Raises:
    ValueError: for an empty row, which has no last token to go on from.
  """
  if not all(rows):
    raise ValueError('a prompt has no tokens: begin it with bos')
  L = max(map(len, rows))
  tokens_BL = np.full((len(rows), L), pad, np.int32)
  for row, ids in zip(tokens_BL, rows, strict=True):
    row[: len(ids)] = ids
  lengths_B1 = np.array([len(ids) for ids in rows])[:, None]
  segments_BL = (np.arange(L)[None] < lengths_B1).astype(np.int32)
  return types.Batch(
    tokens=tokens_BL,
    targets=tokens_BL,
    weights=segments_BL.astype(np.float32),
    positions=np.tile(np.arange(L, dtype=np.int32), (len(rows), 1)),
    segments=segments_BL,
  )


def causal(*, tokenizer: types.Tokenizer, length: int) -> Objective:
  """Predicts every token from those before it; see `windows.pack`.

  Raises:
    ValueError: a setting is out of range.
  """
  _check_whole('length', length, 1)

  def make(rows, sizes, keys):
    del keys  # nothing is random
    return windows.pack(rows, sizes, tokenizer)

  return Objective(length, make, likelihood=True, prompt=_prompt(tokenizer))


def prefix_lm(*, tokenizer: types.Tokenizer, length: int) -> Objective:
  """Predicts the rest of each document from a first part that is read whole.

  The first p of a document's n positions are its prefix, p uniform on 1..n - 1;
  a document of one position has none. Prefix positions see each other in both
  directions, so position l < p - 1 sees its own target and is not scored; the
  prefix's last position predicts the first token outside.

  Raises:
    ValueError: a setting is out of range.

  Reference: Raffel et al. 2020, arXiv 1910.10683, sections 3.2.1 and 3.2.3.
  There an example is one text; here each packed document has its own split.
  """
  _check_whole('length', length, 1)

  def make(rows, sizes, keys):
    batch = windows.pack(rows, sizes, tokenizer)
    prefix = np.zeros(batch.tokens.shape, bool)
    for b, generator in enumerate(map(_generator, keys)):
      count = np.bincount(batch.segments[b])
      split = generator.integers(1, np.maximum(count, 2))
      split[count < 2] = 0
      split[0] = 0  # padding
      split = split[batch.segments[b]]
      prefix[b] = batch.positions[b] < split
      batch.weights[b, batch.positions[b] + 1 < split] = 0
    return batch._replace(prefix=prefix)

  def prompt(texts):
    batch = _prompt(tokenizer)(texts)
    return batch._replace(prefix=batch.segments > 0)

  return Objective(length, make, prompt=prompt)


def masked(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  share: float = 0.15,
  mask_share: float = 0.8,
  random_share: float = 0.1,
  whole_words: bool = False,
  span: float | None = None,
) -> Objective:
  """Predicts masked tokens from the rest of their document.

  The tokens are those of `windows.pack`, so a document begins with bos, in the
  place of BERT's [CLS], and its eos is no input. Targets are the tokens before
  masking, and weights are 1 exactly where a token was chosen.

  A unit is a token, or a word with `whole_words`. Of n tokens that are neither
  bos nor padding, units are chosen until they hold round(share n) tokens, 1 at
  least if there is any: exactly that many where units are tokens, and with
  words an excess that is smaller than the last word chosen.

  Args:
    tokenizer: its first reserved id is the mask.
    length: L, positions.
    share: of the tokens, how many are chosen.
    mask_share: of the chosen, how many become the mask, by a draw for each.
    random_share: how many become a random id of ordinary text; the rest stay.
    whole_words: chooses words, which begin by `tokenizer.word_starts` or where
      a document does, at its start or at the window's edge.
    span: chooses runs of units, inside a document, of lengths from a geometric
      distribution of this mean, kept to 1..10; 5 is SpanBERT's, whose mean
      comes to 3.8 by the limit. The last run is cut at the budget. None: units
      are chosen one by one.

  Raises:
    ValueError: a setting is out of range, or the tokenizer has no mask.

  Reference: Devlin et al. 2019, arXiv 1810.04805, sections 3.1 and A.1; there
  a random id may be any of the vocabulary. Spans: Joshi et al. 2020, arXiv
  1907.10529, section 3.1, where all of a span shares one of the three fates,
  and before it Sun et al. 2019, arXiv 1904.09223, whose spans are phrases and
  names found by other tools.
  """
  _check_whole('length', length, 1)
  mask = _masking(tokenizer, share, mask_share, random_share, whole_words, span)

  def make(rows, sizes, keys):
    batch = windows.pack(rows, sizes, tokenizer)
    texts = np.where(batch.tokens == tokenizer.bos, 0, batch.segments)
    tokens, weights = np.empty_like(batch.tokens), np.empty_like(batch.weights)
    for b, generator in enumerate(map(_generator, keys)):
      tokens[b], weights[b] = mask(batch.tokens[b], texts[b], generator)
    return batch._replace(tokens=tokens, targets=batch.tokens, weights=weights)

  return Objective(length, make)


def next_sentence(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  share: float = 0.15,
  mask_share: float = 0.8,
  random_share: float = 0.1,
  whole_words: bool = False,
  span: float | None = None,
) -> Objective:
  """Predicts masked tokens of two texts, and if one follows the other.

  An example is `bos A eos B eos`, one segment, with kinds 0 through the first
  eos and 1 after it. A opens the window. B is what follows A, or, in half of
  the examples, as long a stretch from the second half of the window, never one
  that touches A. Any eos of the window itself is dropped.

  Position 0 is always scored, on 1 if B follows A and on 0 if not: there the
  model's logits must be those of its next-sentence head, in classes 0 and 1.
  All other positions are masked and scored as in `masked`, whose settings these
  are; the three special tokens are never masked. A and B together hold at most
  L - 3 tokens and at most half of the window's, A from 1 to all but one of
  them; where the window has fewer than 4, all is padding.

  Raises:
    ValueError: a setting is out of range, or the tokenizer has no mask.

  Reference: Devlin et al. 2019, arXiv 1810.04805, sections 3.1 and A.2. There B
  comes from a random document of the corpus; here from text nearby, of the
  same document perhaps, which is harder to tell from the true one. There A and
  B are whole sentences and a tenth of the pairs is cut short, and the means of
  both losses are added; here the pair is one more position of the same mean.
  """
  _check_whole('length', length, 5)
  mask = _masking(tokenizer, share, mask_share, random_share, whole_words, span)
  bos, eos = [tokenizer.bos], [tokenizer.eos]

  def make(rows, sizes, keys):
    batch = _padding(len(rows), length, tokenizer)
    kinds = np.zeros_like(batch.tokens)
    for b, generator in enumerate(map(_generator, keys)):
      text, document = _words(rows[b], sizes[b], tokenizer)
      half = len(text) // 2
      both = min(length - 3, half)
      if both < 2:
        continue
      split = generator.integers(1, both)
      follows = generator.random() < 0.5
      begin = split
      if not follows:
        begin = generator.integers(half, len(text) - (both - split) + 1)
      end = begin + both - split
      ids = np.concatenate((bos, text[:split], eos, text[begin:end], eos))
      # B's are one higher, so that no masked span runs from A into B.
      texts = np.concatenate(
        ([0], document[:split], [0], document[begin:end] + 1, [0])
      )
      here = slice(len(ids))
      batch.tokens[b, here], chosen = mask(ids, texts, generator)
      batch.targets[b, here] = ids
      batch.weights[b, here] = chosen
      batch.targets[b, 0] = follows
      batch.weights[b, 0] = 1
      batch.positions[b, here] = np.arange(len(ids))
      batch.segments[b, here] = 1
      kinds[b, split + 2 : len(ids)] = 1
    return batch._replace(kinds=kinds)

  return Objective(2 * length, make)


def span_corruption(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  source: int,
  noise: float = 0.15,
  mean_span: float = 3.0,
) -> Objective:
  """Predicts the spans that an encoder's text has lost.

  Each span is replaced by a sentinel: span n, from 0 on, by id size - 1 - n.
  The source is what that leaves; the targets are each sentinel and its span, in
  order; eos ends both. The decoder reads bos and then its targets.

  Of a window of W tokens, round(noise W) are lost, in round(lost / mean_span)
  spans: 1 at least, and no more than tokens are kept. The lengths of the spans
  are a random composition of the tokens lost, all equally probable, and those
  of the stretches before each span one of the tokens kept: a window begins with
  a stretch and ends with a span. Its documents are one example, with their eos
  as ordinary tokens. A window of 1 token gives padding.

  W is the largest for which source and targets fit.

  Args:
    tokenizer: its last reserved ids are the sentinels.
    length: L, positions of the decoder.
    source: S, positions of the encoder.
    noise: share of the tokens that are lost.
    mean_span: their mean number in a span.

  Raises:
    ValueError: a setting is out of range, or the tokenizer has too few
      sentinels.

  Reference: Raffel et al. 2020, arXiv 1910.10683, section 3.1.4, and for whole
  spans 3.3.4. As in their code, and not in their figure 2, no sentinel stands
  between the last span and eos. Their decoder begins with pad, ours with bos.
  """
  _check_whole('length', length, 3)
  _check_whole('source', source, 3)
  if not 0 < noise < 1:
    raise ValueError(f'noise={noise} must be above 0 and below 1')
  if not mean_span >= 1:
    raise ValueError(f'mean_span={mean_span} must be at least 1')

  def counts(size: int) -> tuple[int, int]:
    """Counts the tokens lost and their spans; neither falls as size grows."""
    lost = min(max(round(size * noise), 1), size - 1)
    return lost, min(max(round(lost / mean_span), 1), size - lost)

  def fits(size: int) -> bool:
    lost, spans = counts(size)
    return size - lost + spans < source and lost + spans < length

  window = max(n for n in range(2, source + length) if fits(n))
  most = counts(window)[1]
  if tokenizer.reserved < most + 1:
    raise ValueError(
      f'tokenizer.reserved={tokenizer.reserved} is too small for {most} '
      f'sentinels and the mask; set tokenizer.reserved to {most + 1} or more'
    )

  def make(rows, sizes, keys):
    batch = _padding(len(rows), length, tokenizer)
    encoder = np.full((len(rows), source), tokenizer.pad, np.int32)
    encoder_segments = np.zeros_like(encoder)
    for b, generator in enumerate(map(_generator, keys)):
      text = rows[b, 1 : sizes[b] + 1]
      if len(text) < 2:
        continue
      lost, spans = counts(len(text))
      runs = np.empty(2 * spans, np.int64)  # kept, lost, kept, lost ...
      runs[0::2] = _composition(len(text) - lost, spans, generator)
      runs[1::2] = _composition(lost, spans, generator)
      run = np.repeat(np.arange(2 * spans), runs)
      is_lost = run % 2 == 1
      first = np.diff(run, prepend=-1) != 0
      sentinel = tokenizer.size - 1 - run // 2
      inputs = np.where(is_lost, sentinel, text)[first | ~is_lost]
      targets = np.where(is_lost, text, sentinel)[first | is_lost]

      encoder[b, : len(inputs) + 1] = np.append(inputs, tokenizer.eos)
      encoder_segments[b, : len(inputs) + 1] = 1
      here = slice(len(targets) + 1)
      batch.tokens[b, here] = np.append(tokenizer.bos, targets)
      batch.targets[b, here] = np.append(targets, tokenizer.eos)
      batch.weights[b, here] = 1
      batch.positions[b, here] = np.arange(len(targets) + 1)
      batch.segments[b, here] = 1
    return batch._replace(source=encoder, source_segments=encoder_segments)

  def prompt(texts):
    read = padded([[*ids, tokenizer.eos] for ids in texts], tokenizer.pad)
    return padded([[tokenizer.bos] for _ in texts], tokenizer.pad)._replace(
      source=read.tokens, source_segments=read.segments
    )

  return Objective(window, make, prompt=prompt)


def both_ways(*, tokenizer: types.Tokenizer, length: int) -> Objective:
  """Predicts every token from those before it, and from those after it.

  The batch is [B, 2 L]: columns 0..L - 1 are those of `causal`, the others are
  the same row read from right to left and packed by the same rules; kinds are 0
  and 1. A model gives each half a network of its own. Reversed, a document
  begins with bos, and eos is the target that follows its first token; at the
  window's right edge the one token beyond is an input, as at the left edge
  going forward. So an epoch has every token, eos included, once as a target in
  either half.
  Positions and segments count from 0 and 1 in each half.

  Raises:
    ValueError: a setting is out of range.

  Reference: Peters et al. 2018, arXiv 1802.05365, section 3.1; there texts are
  single sentences.
  """
  _check_whole('length', length, 1)

  def make(rows, sizes, keys):
    del keys  # nothing is random
    # Padding stays at the end: a row is turned around its own last token.
    column = np.maximum(sizes[:, None] - np.arange(length + 1), 0)
    reverse = np.take_along_axis(rows, column, axis=1)
    halves = [windows.pack(x, sizes, tokenizer) for x in (rows, reverse)]
    fields = zip(halves[0][:5], halves[1][:5], strict=True)
    kinds = np.repeat(np.array([[0, 1]], np.int32), length, axis=1)
    return types.Batch(
      *[np.concatenate(pair, axis=1) for pair in fields],
      kinds=np.tile(kinds, (len(rows), 1)),
    )

  return Objective(length, make, prompt=_prompt(tokenizer))


def skip_gram(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  context: int = 5,
  negatives: int = 5,
) -> Objective:
  """Tells words that stand near each other from words drawn at random.

  An example is a list of L pairs without order: a center in `tokens`, a context
  or a noise word in `source`, and class 1 or 0 in `targets`. Centers are drawn
  from the window's L tokens without replacement until the pairs fill the list;
  each is paired with all words of its document that lie within its reach,
  uniform on 1..context. After each true pair come its `negatives` noise pairs.
  An eos is no word, and pairs stay inside the window.

  Args:
    tokenizer: gives the words.
    length: L, pairs.
    context: the longest reach.
    negatives: noise words for each true pair.

  Raises:
    ValueError: a setting is out of range.

  Reference: Mikolov et al. 2013, arXiv 1310.4546, sections 2 and 2.2; the reach
  is from arXiv 1301.3781, section 3.2. Noise is drawn with their probability,
  count^0.75, but by counts of the window instead of the corpus; it may hit the
  context itself, and then has weight 0. Frequent words are not subsampled. An
  epoch makes centers of about one word in (1 + negatives) (context + 1) only: a
  window of just the words that fill the list would be too small to count in.
  """
  _check_whole('length', length, 1)
  _check_whole('context', context, 1)
  _check_whole('negatives', negatives, 1)
  most = math.ceil(length / (1 + negatives))  # true pairs in an example
  offset = np.delete(np.arange(-context, context + 1), context)

  def make(rows, sizes, keys):
    batch = _padding(len(rows), length, tokenizer)
    targets, source = np.zeros_like(batch.tokens), batch.tokens.copy()
    for b, generator in enumerate(map(_generator, keys)):
      text, document = _words(rows[b], sizes[b], tokenizer)
      if not len(text):
        continue
      center = generator.permutation(len(text))
      reach = generator.integers(1, context, len(text), endpoint=True)
      near = center[:, None] + offset
      # Number 0 is no document, so no pair leaves the window.
      same = np.pad(document, context)[near + context] == document[center, None]
      pair = np.nonzero(same & (np.abs(offset) <= reach[:, None]))
      who, where = pair[0][:most], pair[1][:most]
      true = text[near[who, where]][:, None]
      words, count = np.unique(text, return_counts=True)
      chance = count**_NOISE_POWER
      noise = generator.choice(
        words, (len(true), negatives), p=chance / chance.sum()
      )
      is_true = np.arange(1 + negatives) == 0
      others = np.concatenate((true, noise), axis=1)
      here = slice(min(others.size, length))
      batch.tokens[b, here] = np.repeat(text[center[who]], 1 + negatives)[here]
      targets[b, here] = np.tile(is_true, len(true))[here]
      batch.weights[b, here] = (is_true | (others != true)).ravel()[here]
      batch.segments[b, here] = 1
      source[b, here] = others.ravel()[here]
    return batch._replace(
      targets=targets, source=source, source_segments=batch.segments.copy()
    )

  return Objective(length, make)


def _masking(
  tokenizer: types.Tokenizer,
  share: float,
  mask_share: float,
  random_share: float,
  whole_words: bool,
  span: float | None,
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
  """Makes `mask(ids, texts, generator) -> (masked, chosen)`, see `masked`.

  There ids are [L], texts [L] number what may be masked in ascending order,
  neither words nor spans run from one number into the next, 0 is not masked,
  and chosen is bool [L].
  """
  if not 0 < share <= 1:
    raise ValueError(f'share={share} must be above 0 and at most 1')
  if not (
    min(mask_share, random_share) >= 0 and mask_share + random_share <= 1
  ):
    raise ValueError(
      f'mask_share={mask_share} and random_share={random_share} must be at '
      'least 0 and at most 1 together'
    )
  if span is not None and not span >= 1:
    raise ValueError(f'span={span} must be at least 1, or None')
  if tokenizer.reserved < 1:
    raise ValueError(
      'tokenizer.reserved=0 leaves no id for the mask; set tokenizer.reserved '
      'to 1 or more'
    )
  mask_id = tokenizer.size - tokenizer.reserved
  special = (tokenizer.pad, tokenizer.eos, tokenizer.bos)
  ordinary = np.setdiff1d(np.arange(mask_id), special)

  def mask(ids, texts, generator):
    place = np.flatnonzero(texts)
    text = texts[place]
    begins = np.ones(len(place), bool)
    if whole_words:
      begins = tokenizer.word_starts[ids[place]]
      begins = begins | (np.diff(text, prepend=0) != 0)
    unit = np.cumsum(begins) - 1
    order = _order(text[begins], span, generator)
    budget = max(1, round(share * len(place)))
    held = np.cumsum(np.bincount(unit)[order])
    taken = order[: np.searchsorted(held, budget) + 1]
    chosen = np.zeros(len(ids), bool)
    chosen[place] = np.isin(unit, taken)

    count = np.count_nonzero(chosen)
    fate = generator.random(count)
    other = generator.choice(ordinary, count)
    other = np.where(fate < mask_share + random_share, other, ids[chosen])
    masked_ids = ids.copy()
    masked_ids[chosen] = np.where(fate < mask_share, mask_id, other)
    return masked_ids, chosen

  return mask


def _order(
  texts: np.ndarray, span: float | None, generator: np.random.Generator
) -> np.ndarray:
  """Gives the order in which units are masked: each of them once, [U].

  Args:
    texts: [U], ascending, the text that each unit belongs to, from 1.
    span: as in `masked`.
    generator: of all draws.
  """
  start = generator.permutation(len(texts))
  if span is None:
    return start
  offset = np.arange(_LONGEST_SPAN)
  chance = (1 - 1 / span) ** offset
  size = generator.choice(offset + 1, len(start), p=chance / chance.sum())
  unit = start[:, None] + offset
  inside = np.pad(texts, (0, _LONGEST_SPAN))[unit] == texts[start, None]
  unit = unit[inside & (offset < size[:, None])]
  _, first = np.unique(unit, return_index=True)
  return unit[np.sort(first)]


def _composition(
  total: int, parts: int, generator: np.random.Generator
) -> np.ndarray:
  """Draws one of the ordered ways to write a sum of positive parts: [parts]."""
  cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1
  return np.diff(cuts, prepend=0, append=total)


def _prompt(tokenizer: types.Tokenizer) -> Callable[..., types.Batch]:
  return lambda texts: padded(
    [[tokenizer.bos, *ids] for ids in texts], tokenizer.pad
  )


def _words(
  row: np.ndarray, size: int, tokenizer: types.Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
  """Takes the eos out of a window.

  Returns:
    The other ids of the window [N], and the numbers of their documents [N],
    ascending from 1.
  """
  window = row[1 : size + 1]
  rest = window != tokenizer.eos
  return window[rest], 1 + np.cumsum(row[:size] == tokenizer.eos)[rest]


def _padding(
  count: int, length: int, tokenizer: types.Tokenizer
) -> types.Batch:
  """Makes a batch of padding to write examples into."""
  pad = np.full((count, length), tokenizer.pad, np.int32)
  return types.Batch(
    tokens=pad,
    targets=pad.copy(),
    weights=np.zeros(pad.shape, np.float32),
    positions=np.zeros_like(pad),
    segments=np.zeros_like(pad),
  )


def _generator(key: np.uint64) -> np.random.Generator:
  # Counter-based: neighbouring keys give streams as independent as any.
  return np.random.Generator(np.random.Philox(key=int(key)))


def _check_whole(name: str, value: int, least: int) -> None:
  if type(value) is not int or value < least:
    raise ValueError(f'{name}={value} must be a whole number from {least} on')
