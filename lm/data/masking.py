"""Masked language modelling: the objective of BERT and its variants."""

from collections.abc import Callable

import numpy as np

from lm import types
from lm.data import objectives, windows

_LONGEST_SPAN = 10  # units; SpanBERT, section 3.1


def masked(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  share: float = 0.15,
  mask_share: float = 0.8,
  random_share: float = 0.1,
  whole_words: bool = False,
  span: float | None = None,
) -> objectives.Objective:
  """Predicts masked tokens from the rest of their document.

  The tokens are those of `windows.pack`: a document begins with bos, in the
  place of BERT's [CLS], and its eos is not an input. Targets are the tokens
  before masking, and weights are 1 exactly where a token was chosen.

  A unit is a token, or a word with `whole_words`. Of n tokens that are neither
  bos nor padding, units are chosen until they hold round(share n) tokens, at
  least 1 if there are any. Where units are tokens, that number is exact; with
  words, it is exceeded by less than the last chosen word.

  Args:
    tokenizer: needs a mask.
    length: L, positions.
    share: of the tokens that are chosen.
    mask_share: of the chosen tokens that become the mask, drawn for each token.
    random_share: of the chosen tokens that become a random id of ordinary text.
      The others are left as they are.
    whole_words: chooses words. A word begins as `tokenizer.word_starts` says,
      or where a document begins, or at the window's edge.
    span: chooses runs of units inside a document. Their lengths are drawn from
      a geometric distribution of this mean, limited to 1..10. SpanBERT's is 5,
      which the limit reduces to a mean of 3.8. The last run is cut when enough
      tokens are chosen. None: units are chosen one by one.

  Raises:
    ValueError: a setting is out of range, or the tokenizer has no mask.

  Reference: Devlin et al. 2019, arXiv 1810.04805, sections 3.1 and A.1, where
  a random id may be any of the vocabulary. Spans: Joshi et al. 2020, arXiv
  1907.10529, section 3.1, where all tokens of a span are treated alike; and
  before it Sun et al. 2019, arXiv 1904.09223, whose spans are phrases and names
  found by other tools.
  """
  objectives.check_whole('length', length, 1)
  mask = _masking(tokenizer, share, mask_share, random_share, whole_words, span)

  def make(rows, sizes, keys):
    batch = windows.pack(rows, sizes, tokenizer)
    # 0 is not masked: padding has segment 0 already, and bos gets it here.
    texts = np.where(batch.tokens == tokenizer.bos, 0, batch.segments)
    tokens, weights = np.empty_like(batch.tokens), np.empty_like(batch.weights)
    for b, generator in enumerate(map(objectives.generator_of, keys)):
      tokens[b], weights[b] = mask(batch.tokens[b], texts[b], generator)
    return batch._replace(tokens=tokens, targets=batch.tokens, weights=weights)

  return objectives.Objective(length, make)


def next_sentence(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  share: float = 0.15,
  mask_share: float = 0.8,
  random_share: float = 0.1,
  whole_words: bool = False,
  span: float | None = None,
) -> objectives.Objective:
  """Predicts masked tokens of two texts, and whether one follows the other.

  An example is `bos A eos B eos`. It is one segment, with token type 0 through
  the first eos and 1 after it. A begins the window. B is the text that follows
  A, or, in half of the examples, equally much text from the second half of the
  window, which never touches A. Any eos of the window itself is dropped.

  Position 0 is always scored: its target is 1 if B follows A, and else 0. There
  the logits must be those of the model's next-sentence head, in classes 0
  and 1. All other positions are masked and scored as in `masked`, which has the
  same settings; the three special tokens are never masked. A and B together
  have at most L - 3 tokens, and at most half of the window's. A has at least 1
  token, and B, too. A window of fewer than 4 tokens gives padding.

  Args:
    tokenizer: needs a mask.
    length: L, positions.
    share: see `masked`.
    mask_share: see `masked`.
    random_share: see `masked`.
    whole_words: see `masked`.
    span: see `masked`.

  Raises:
    ValueError: a setting is out of range, or the tokenizer has no mask.

  Reference: Devlin et al. 2019, arXiv 1810.04805, sections 3.1 and A.2. Their B
  comes from a random document of the corpus. Ours comes from nearby text,
  perhaps of the same document, which is harder to tell from the true one. Their
  A and B are whole sentences, a tenth of their pairs is shorter, and they add
  the means of both losses; our pair is one more position of the same mean.
  """
  objectives.check_whole('length', length, 5)
  mask = _masking(tokenizer, share, mask_share, random_share, whole_words, span)
  bos, eos = [tokenizer.bos], [tokenizer.eos]

  def make(rows, sizes, keys):
    batch = objectives.padding(len(rows), length, tokenizer)
    token_types = np.zeros_like(batch.tokens)
    for b, generator in enumerate(map(objectives.generator_of, keys)):
      text, document = objectives.words_of(rows[b], sizes[b], tokenizer)
      half = len(text) // 2
      both = min(length - 3, half)
      if both < 2:
        continue
      split = generator.integers(1, both)  # tokens of A; the others are of B
      follows = generator.random() < 0.5
      begin = split
      if not follows:
        begin = generator.integers(half, len(text) - (both - split) + 1)
      end = begin + both - split
      ids = np.concatenate((bos, text[:split], eos, text[begin:end], eos))
      # The documents of B count one higher, so that no masked span runs from A
      # into B, and 0 keeps the special tokens from being masked.
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
      token_types[b, split + 2 : len(ids)] = 1
    return batch._replace(token_types=token_types)

  return objectives.Objective(2 * length, make)


def _masking(
  tokenizer: types.Tokenizer,
  share: float,
  mask_share: float,
  random_share: float,
  whole_words: bool,
  span: float | None,
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
  """Makes a function that masks the tokens of one example, see `masked`.

  Returns:
    `mask(ids, texts, generator) -> (masked, chosen)`, where ids are [L]; texts
    [L] ascend and number what neither words nor spans may leave, and 0 is never
    masked; masked are ids [L]; chosen is bool [L].

  Raises:
    ValueError: a setting is out of range, or the tokenizer has no mask.
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
  mask_id = tokenizer.mask
  if mask_id is None:
    raise ValueError(
      'tokenizer: has no id for the mask; set tokenizer.reserved to 1 or more'
    )
  special = (tokenizer.pad, tokenizer.eos, tokenizer.bos, mask_id)
  ordinary = np.setdiff1d(
    np.arange(tokenizer.size - tokenizer.reserved),
    [*special, *tokenizer.sentinels],
  )

  def mask(ids, texts, generator):
    place = np.flatnonzero(texts)  # [N], the tokens that may be masked
    text = texts[place]
    begins = np.ones(len(place), bool)
    if whole_words:
      begins = tokenizer.word_starts[ids[place]]
      begins = begins | (np.diff(text, prepend=0) != 0)
    unit = np.cumsum(begins) - 1  # [N], the unit of each token
    order = _order(text[begins], span, generator)
    budget = max(1, round(share * len(place)))  # tokens
    # Tokens of the first n units of the order; the first sum that reaches the
    # budget says how many units are chosen.
    sums = np.cumsum(np.bincount(unit)[order])
    units = order[: np.searchsorted(sums, budget) + 1]
    chosen = np.zeros(len(ids), bool)
    chosen[place] = np.isin(unit, units)

    count = np.count_nonzero(chosen)
    # One draw a token decides: mask, random id, or as it is.
    draw = generator.random(count)
    others = generator.choice(ordinary, count)
    others = np.where(draw < mask_share + random_share, others, ids[chosen])
    masked_ids = ids.copy()
    masked_ids[chosen] = np.where(draw < mask_share, mask_id, others)
    return masked_ids, chosen

  return mask


def _order(
  texts: np.ndarray, span: float | None, generator: np.random.Generator
) -> np.ndarray:
  """Draws the order in which units are masked: each of them once, [U].

  Args:
    texts: [U], ascending, number of the text that each unit belongs to, from 1.
    span: see `masked`.
    generator: of all draws.
  """
  start = generator.permutation(len(texts))
  if span is None:
    return start
  # A span may begin at each unit, in random order, so every unit occurs.
  offset = np.arange(_LONGEST_SPAN)
  probability = (1 - 1 / span) ** offset  # geometric, up to its sum
  probability /= probability.sum()
  size = generator.choice(offset + 1, len(start), p=probability)
  unit = start[:, None] + offset
  # The padding has number 0, which is no text, so that no span leaves the end.
  inside = np.pad(texts, (0, _LONGEST_SPAN))[unit] == texts[start, None]
  unit = unit[inside & (offset < size[:, None])]
  # Spans overlap: a unit counts where it occurs first.
  _, first = np.unique(unit, return_index=True)
  return unit[np.sort(first)]
