"""Masked language modelling: BERT's objective and what came of it."""

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

  The tokens are those of `windows.pack`, so a document begins with bos, in the
  place of BERT's [CLS], and its eos is no input. Targets are the tokens before
  masking, and weights are 1 exactly where a token was chosen.

  A unit is a token, or a word with `whole_words`. Of n tokens that are neither
  bos nor padding, units are chosen until they hold round(share n) tokens, 1 at
  least if there is any: exactly that many where units are tokens, and with
  words an excess that is smaller than the last word chosen.

  Args:
    tokenizer: has a mask.
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
  objectives.check_whole('length', length, 1)
  mask = _masking(tokenizer, share, mask_share, random_share, whole_words, span)

  def make(rows, sizes, keys):
    batch = windows.pack(rows, sizes, tokenizer)
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
  """Predicts masked tokens of two texts, and if one follows the other.

  An example is `bos A eos B eos`, one segment, with token_types 0 through the
  first eos and 1 after it. A opens the window. B is what follows A, or, in half
  of the examples, as long a stretch from the second half of the window, never
  one that touches A. Any eos of the window itself is dropped.

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
