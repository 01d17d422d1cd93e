"""Span corruption: T5's objective, and its text as one span."""

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
  """Predicts the spans that an encoder's text has lost.

  Each span is replaced by a sentinel: span n, from 0 on, by the tokenizer's
  sentinel n. The source is what that leaves; the targets are each sentinel and
  its span, in order; eos ends both. The decoder reads bos and then its targets.

  Of a window of W tokens, round(noise W) are lost, in round(lost / mean_span)
  spans: 1 at least, and no more than tokens are kept. The lengths of the spans
  are a random composition of the tokens lost, all equally probable, and those
  of the stretches before each span one of the tokens kept: a window begins with
  a stretch and ends with a span. Its documents are one example, with their eos
  as ordinary tokens. A window of 1 token gives padding.

  W is the largest for which source and targets fit.

  Args:
    tokenizer: has a sentinel for each span.
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
  objectives.check_whole('length', length, 3)
  objectives.check_whole('source', source, 3)
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
  sentinels = np.asarray(tokenizer.sentinels, np.int64)
  if len(sentinels) < most:
    raise ValueError(
      f'tokenizer: has {len(sentinels)} sentinels, too few for {most} spans; '
      f'set tokenizer.reserved to {most + 1} or more, or take a shorter source'
    )

  def make(rows, sizes, keys):
    batch = objectives.padding(len(rows), length, tokenizer)
    encoder = np.full((len(rows), source), tokenizer.pad, np.int32)
    encoder_segments = np.zeros_like(encoder)
    for b, generator in enumerate(map(objectives.generator_of, keys)):
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
      sentinel = sentinels[run // 2]
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
    read = objectives.padded(
      [[*ids, tokenizer.eos] for ids in texts], tokenizer.pad
    )
    return objectives.padded(
      [[tokenizer.bos] for _ in texts], tokenizer.pad
    )._replace(source=read.tokens, source_segments=read.segments)

  return objectives.Objective(window, make, prompt=prompt)


def one_span(
  *, tokenizer: types.Tokenizer, length: int
) -> objectives.Objective:
  """Predicts a window that is lost as a whole: the likelihood of a decoder.

  The source is a sentinel and eos, and the decoder reads bos, that sentinel and
  the window's L - 1 tokens, all of which are scored, and nothing else. So a
  model of `span_corruption` can be asked how likely it finds a text, or be
  adapted to writing it.

  Args:
    tokenizer: has a sentinel.
    length: L, positions of the decoder.

  Raises:
    ValueError: a setting is out of range, or the tokenizer has no sentinel.

  Reference: Lester et al. 2021, arXiv 2104.08691, section 3.1, on what such a
  model writes; adapted there with a prefix instead of a sentinel.
  """
  objectives.check_whole('length', length, 2)
  if not tokenizer.sentinels:
    raise ValueError(
      'tokenizer: has no sentinel; set tokenizer.reserved to 2 or more'
    )
  sentinel = tokenizer.sentinels[0]

  def asked(count: int) -> dict[str, np.ndarray]:
    source = np.tile(np.array([sentinel, tokenizer.eos], np.int32), (count, 1))
    return {'source': source, 'source_segments': np.ones_like(source)}

  def make(rows, sizes, keys):
    del keys  # nothing is random
    batch = objectives.padding(len(rows), length, tokenizer)
    place = np.arange(length)
    live = (place <= sizes[:, None]) & (sizes[:, None] > 0)
    text = np.concatenate((np.full_like(rows[:, :1], sentinel), rows[:, 1:]), 1)
    batch.targets[:] = np.where(live, text, tokenizer.pad)
    batch.tokens[:, 0] = np.where(live[:, 0], tokenizer.bos, tokenizer.pad)
    batch.tokens[:, 1:] = np.where(live, text, tokenizer.pad)[:, :-1]
    batch.tokens[:, 1:][~live[:, 1:]] = tokenizer.pad
    batch.weights[:] = live & (place > 0)
    batch.positions[:] = live * place
    batch.segments[:] = live
    return batch._replace(**asked(len(rows)))

  def prompt(texts):
    rows = [[tokenizer.bos, sentinel, *ids] for ids in texts]
    batch = objectives.padded(rows, tokenizer.pad)
    return batch._replace(**asked(len(rows)))

  return objectives.Objective(length - 1, make, likelihood=True, prompt=prompt)


def _composition(
  total: int, parts: int, generator: np.random.Generator
) -> np.ndarray:
  """Draws one of the ordered ways to write a sum of positive parts: [parts]."""
  cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1
  return np.diff(cuts, prepend=0, append=total)
