"""Readers of questions with answers and with what only looks like one.

See `lm.data.finetuning.readers` for what a reader is.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lm import config
from lm.data.finetuning import bm25, retrieval_forms
from lm.data.finetuning import records as record_lib


def identical(*, records: Mapping[str, Any]) -> record_lib.Records:
  """Reads texts as pairs of a text and itself, which dropout tells apart.

  Args:
    records: spec of a reader of texts, whose classes are not used.

  Raises:
    ValueError: the records cannot be read, or are no texts.

  Reference: Gao et al. 2021, arXiv 2104.08821, section 3 (SimCSE).
  """
  found = config.build(records)
  pairs = []
  for record in found.records:
    if not isinstance(record, record_lib.Text):
      raise ValueError(f'{records["fn"]}: gives no texts')
    pairs += [
      record_lib.Pair(f'{record.id}/{n}', text, (text,))
      for n, text in enumerate(record.texts)
    ]
  return found._replace(records=pairs, labels=())


def mined(*, records: Mapping[str, Any], skip: int = 0) -> record_lib.Records:
  """Reads questions with the wrong text that BM25 likes best.

  It is chosen among the texts that answer other questions. A text that holds
  the answer of a reading is none.

  Args:
    records: spec of a reader of questions and passages, or of pairs.
    skip: leaves out the first ones that BM25 finds, which may be right.

  Raises:
    ValueError: the records cannot be read, or have one text alone.

  Reference: Karpukhin et al. 2020, arXiv 2004.04906, section 3.2.
  """
  if skip < 0:
    raise ValueError(f'skip={skip}: give 0 or more')
  found = config.build(records)
  both = [retrieval_forms.sides(x) for x in found.records]
  texts = list(dict.fromkeys(x[1] for x in both))
  index = bm25.Index(texts)
  result, without = [], 0
  for record, (question, answer, *_) in zip(found.records, both, strict=True):
    held = [x for _, x in getattr(record, 'answers', ())]
    order = np.argsort(-index.scores(question), kind='stable')
    wrong = (
      texts[n]
      for n in order
      if texts[n] != answer and not any(x in texts[n] for x in held)
    )
    for _ in range(skip):
      next(wrong, None)
    chosen = next(wrong, None)
    if chosen is None:
      without += 1
      continue
    result.append(record_lib.Preference(record.id, question, answer, chosen))
  if not result:
    raise ValueError(
      f'task {found.card.name}: no question has a wrong text: give more texts'
    )
  counts = {**found.counts, 'questions without a wrong text': without}
  return found._replace(records=result, labels=(), counts=counts)
