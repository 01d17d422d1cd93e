"""Objectives of encoder-decoders: texts with lost spans, texts to continue."""

from collections.abc import Callable
import functools

import numpy as np

from lm import types
from lm.data import objectives


def span_corruption(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  source: int,
  noise: float = 0.15,
  mean_span: float = 3.0,
) -> objectives.Objective:
  """Predicts spans that were removed from the encoder's text.

  In the source, span n is replaced by the tokenizer's sentinel n, from 0 on.
  The targets are each sentinel and its span, in order. Source and targets end
  with eos. The decoder reads bos and then its targets.

  Of a window of W tokens, round(noise W) are removed, in round(removed /
  mean_span) spans: at least 1, and no more than tokens are kept. The lengths of
  the spans are a composition of the number of removed tokens, drawn with equal
  probability from all; those of the stretches before each span are one of the
  number of kept tokens. So a window begins with a stretch and ends with a span.
  The documents of a window are one example, in which eos is an ordinary token.
  A window of 1 token gives padding.

  W is the largest window whose source and targets fit.

  Args:
    tokenizer: needs a sentinel for each span.
    length: L, positions of the decoder.
    source: S, positions of the encoder.
    noise: share of the tokens that are removed.
    mean_span: mean number of tokens in a span.

  Raises:
    ValueError: a setting is out of range, or the tokenizer has too few
      sentinels.

  Reference: Raffel et al. 2020, arXiv 1910.10683, section 3.1.4, and 3.3.4 for
  whole spans. Like their code, and unlike their figure 2, ours has no sentinel
  between the last span and eos. Their decoder begins with pad, ours with bos.
  """
  objectives.check_whole('length', length, 3)
  objectives.check_whole('source', source, 3)
  if not 0 < noise < 1:
    raise ValueError(f'noise={noise} must be above 0 and below 1')
  if not mean_span >= 1:
    raise ValueError(f'mean_span={mean_span} must be at least 1')

  counts = functools.partial(_counts, noise=noise, mean_span=mean_span)

  def fits(size: int) -> bool:
    removed, spans = counts(size)
    return size - removed + spans < source and removed + spans < length

  # Neither count falls as the size grows, so no larger window can fit again.
  window = max(n for n in range(2, source + length) if fits(n))
  most_spans = counts(window)[1]
  sentinels = np.asarray(tokenizer.sentinels, np.int64)
  if len(sentinels) < most_spans:
    raise ValueError(
      f'tokenizer: has {len(sentinels)} sentinels, too few for {most_spans} '
      f'spans; set tokenizer.reserved to {most_spans + 1} or more, or take a '
      'shorter source'
    )

  def make(rows, sizes, keys):
    batch = objectives.padding(len(rows), length, tokenizer)
    encoder_BS = np.full((len(rows), source), tokenizer.pad, np.int32)
    encoder_segments_BS = np.zeros_like(encoder_BS)
    for b, generator in enumerate(map(objectives.generator_of, keys)):
      text = rows[b, 1 : sizes[b] + 1]
      if len(text) < 2:  # one token can be removed or kept, not both
        continue
      inputs, targets = _corrupted(
        text, *counts(len(text)), sentinels, generator
      )
      here = slice(len(inputs) + 1)
      encoder_BS[b, here] = np.append(inputs, tokenizer.eos)
      encoder_segments_BS[b, here] = 1
      here = slice(len(targets) + 1)
      batch.tokens[b, here] = np.append(tokenizer.bos, targets)
      batch.targets[b, here] = np.append(targets, tokenizer.eos)
      batch.weights[b, here] = 1
      batch.positions[b, here] = np.arange(len(targets) + 1)
      batch.segments[b, here] = 1
    return batch._replace(
      source=encoder_BS, source_segments=encoder_segments_BS
    )

  return objectives.Objective(window, make, prompt=_prompt(tokenizer))


def _counts(size: int, noise: float, mean_span: float) -> tuple[int, int]:
  """Counts the removed tokens of a window, and their spans."""
  removed = min(max(round(size * noise), 1), size - 1)
  return removed, min(max(round(removed / mean_span), 1), size - removed)


def _corrupted(
  text: np.ndarray,
  removed: int,
  spans: int,
  sentinels: np.ndarray,
  generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Removes random spans from a text.

  Args:
    text: ids [N].
    removed: number of tokens to remove.
    spans: number of spans.
    sentinels: ids, at least one a span.
    generator: of all draws.

  Returns:
    What is left with a sentinel for each span, and each sentinel with its span.
  """
  runs = np.empty(2 * spans, np.int64)  # kept, removed, kept, removed ...
  runs[0::2] = _composition(len(text) - removed, spans, generator)
  runs[1::2] = _composition(removed, spans, generator)
  run = np.repeat(np.arange(2 * spans), runs)  # [N], the run of each token
  is_removed = run % 2 == 1
  is_first = np.diff(run, prepend=-1) != 0  # in its run
  sentinel = sentinels[run // 2]
  # A sentinel takes the place of a removed run in the inputs, and of a kept run
  # in the targets: there it stands before the span that follows.
  inputs = np.where(is_removed, sentinel, text)[is_first | ~is_removed]
  targets = np.where(is_removed, text, sentinel)[is_first | is_removed]
  return inputs, targets


def one_span(
  *, tokenizer: types.Tokenizer, length: int
) -> objectives.Objective:
  """Predicts a window that was removed as a whole, for its likelihood.

  The source is a sentinel and eos. The decoder reads bos, that sentinel and the
  L - 1 tokens of the window; exactly these tokens are scored. So a model of
  `span_corruption` can say how likely a text is, or be adapted to write text.

  Args:
    tokenizer: needs a sentinel.
    length: L, positions of the decoder.

  Raises:
    ValueError: a setting is out of range, or the tokenizer has no sentinel.

  Reference: Lester et al. 2021, arXiv 2104.08691, section 3.1, on what such a
  model writes. They adapt it with a prefix instead of a sentinel.
  """
  objectives.check_whole('length', length, 2)
  if not tokenizer.sentinels:
    raise ValueError(
      'tokenizer: has no sentinel; set tokenizer.reserved to 2 or more'
    )
  sentinel = tokenizer.sentinels[0]

  def source(count: int) -> dict[str, np.ndarray]:
    ids = np.array([sentinel, tokenizer.eos], np.int32)
    ids_BS = np.tile(ids, (count, 1))
    return {'source': ids_BS, 'source_segments': np.ones_like(ids_BS)}

  def make(rows, sizes, keys):
    del keys  # nothing is random
    batch = objectives.padding(len(rows), length, tokenizer)
    place = np.arange(length)
    # One position more than tokens: the first one predicts the sentinel, and
    # has weight 0.
    live = (place <= sizes[:, None]) & (sizes[:, None] > 0)
    text = np.concatenate((np.full_like(rows[:, :1], sentinel), rows[:, 1:]), 1)
    batch.targets[:] = np.where(live, text, tokenizer.pad)
    batch.tokens[:, 0] = np.where(live[:, 0], tokenizer.bos, tokenizer.pad)
    batch.tokens[:, 1:] = np.where(live, text, tokenizer.pad)[:, :-1]
    batch.tokens[:, 1:][~live[:, 1:]] = tokenizer.pad
    batch.weights[:] = live & (place > 0)
    batch.positions[:] = live * place
    batch.segments[:] = live
    return batch._replace(**source(len(rows)))

  def prompt(texts):
    rows = [[tokenizer.bos, sentinel, *ids] for ids in texts]
    batch = objectives.padded(rows, tokenizer.pad)
    return batch._replace(**source(len(rows)))

  return objectives.Objective(length - 1, make, likelihood=True, prompt=prompt)


def continuation(
  *, tokenizer: types.Tokenizer, length: int, source: int
) -> objectives.Objective:
  """Predicts the second part of a window from the first.

  The source is the first part and eos. The decoder reads bos and the second
  part, and its targets end with eos. The parts are to each other as the encoder
  is to the decoder, and neither is empty: a window of 1 token gives padding.
  The documents of a window are one example, in which eos is an ordinary token.
  The tokenizer needs no sentinel.

  Args:
    tokenizer: for the ids of bos, eos and padding.
    length: L, positions of the decoder.
    source: S, positions of the encoder.

  Raises:
    ValueError: a setting is out of range.

  Reference: Raffel et al. 2020, arXiv 1910.10683, section 3.3.1 (prefix
  language modeling), where the place of the cut is random.
  """
  objectives.check_whole('length', length, 2)
  objectives.check_whole('source', source, 2)
  window = source + length - 2  # each side has an eos too

  def make(rows, sizes, keys):
    del keys  # nothing is random
    batch = objectives.padding(len(rows), length, tokenizer)
    encoder = objectives.padding(len(rows), source, tokenizer)
    for b, size in enumerate(sizes.tolist()):
      if size < 2:
        continue
      text = rows[b, 1 : size + 1]
      # Rounded up where more must be in the encoder, so that the rest fits.
      cut = min(max(-(-size * (source - 1) // window), 1), size - 1)
      here = slice(cut + 1)
      encoder.tokens[b, here] = np.append(text[:cut], tokenizer.eos)
      encoder.segments[b, here] = 1
      here = slice(size - cut + 1)
      batch.tokens[b, here] = np.append(tokenizer.bos, text[cut:])
      batch.targets[b, here] = np.append(text[cut:], tokenizer.eos)
      batch.weights[b, here] = 1
      batch.positions[b, here] = np.arange(size - cut + 1)
      batch.segments[b, here] = 1
    return batch._replace(
      source=encoder.tokens, source_segments=encoder.segments
    )

  return objectives.Objective(window, make, prompt=_prompt(tokenizer))


def _prompt(tokenizer: types.Tokenizer) -> Callable[..., types.Batch]:
  """Makes batches whose texts the encoder reads, and whose decoder begins."""

  def prompt(texts):
    texts = [[*ids, tokenizer.eos] for ids in texts]
    encoder = objectives.padded(texts, tokenizer.pad)
    decoder = objectives.padded([[tokenizer.bos]] * len(texts), tokenizer.pad)
    return decoder._replace(
      source=encoder.tokens, source_segments=encoder.segments
    )

  return prompt


def _composition(
  total: int, parts: int, generator: np.random.Generator
) -> np.ndarray:
  """Draws an ordered list of positive parts with a given sum: int64 [parts].

  All lists are equally probable, because each corresponds to one choice of
  places between the units of the sum.
  """
  cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1
  return np.diff(cuts, prepend=0, append=total)
