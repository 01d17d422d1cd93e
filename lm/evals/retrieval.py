"""Evaluator of sentence vectors: finds the text that answers a question.

{'fn': 'lm.evals.retrieval:make', 'batch_size': 64, 'length': 256,
 'records': {'fn': 'lm.data.finetuning.readers:squad', 'path': 'dev.json.gz'},
 'form': {'fn': 'lm.data.finetuning.retrieval_forms:match'}}
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import numpy as np

from lm import types
from lm.data.finetuning import batching, retrieval_forms
from lm.data.finetuning import records as record_lib
from lm.evals import classification, results
from lm.evals import context as context_lib

_DEPTH = 10  # of nDCG and the shorter recall


def make(
  *,
  context: context_lib.Context,
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  batch_size: int,
  length: int,
  folds: int = 1,
  fold: int | None = None,
  limit: int | None = None,
) -> Callable[[types.Params], results.Result]:
  """Makes an evaluator of a model with a head `heads.embed`.

  The collection has every text that answers one of the questions, once. Texts
  are ranked by the cosine of their vectors with the question's.

  Args:
    context: the run that is evaluated.
    records: spec of a reader of questions and passages, or of pairs.
    form: spec of `retrieval_forms.match`.
    batch_size: texts at a time; changes nothing but speed.
    length: L of the form.
    folds, fold, limit: see `classification.classes`.

  Returns:
    `params -> Result`, see `score`.

  Raises:
    ValueError: see `classification.classes`; or the form has no single texts.
  """
  data, built, _ = classification.read(
    records, form, context.tokenizer, length, folds, fold, limit
  )
  if built.alone is None:
    raise ValueError(
      'form: it makes no rows of single texts: use '
      'lm.data.finetuning.retrieval_forms:match'
    )
  alone = built.alone
  asked, texts = collection(data.records)
  # Rows of one text have no targets of their own.
  single = batching.Form(built.rows, 1, packs=False)
  vectors = classification.scorer(
    context, single, batch_size, length, lambda out: out.hidden[:, 0]
  )

  def embed(params, texts, side):
    return np.stack([x for _, x in vectors(params, alone(texts, side))])

  def evaluate(params: types.Params) -> results.Result:
    asked_QD = embed(params, asked, retrieval_forms.ASKS)
    texts_ND = embed(params, texts, retrieval_forms.ANSWERS)
    return score(data, lambda n: texts_ND @ asked_QD[n])

  return evaluate


def collection(records: Sequence[Any]) -> tuple[list[str], list[str]]:
  """Lists the questions, and the texts that answer them, each once."""
  both = [retrieval_forms.sides(x) for x in records]
  return [x[0] for x in both], list(dict.fromkeys(x[1] for x in both))


def score(
  records: record_lib.Records, scores: Callable[[int], np.ndarray]
) -> results.Result:
  """Scores a ranking of the texts of `collection`.

  Args:
    records: questions with the text that answers them.
    scores: from the number of a question to the scores of all texts, of which
      higher ones are better. A text with the same score as the right one stands
      before it.

  Returns:
    `ndcg` (of the first 10), `mrr` (1 / rank, of all), `recall_1`, `recall_10`.
    One text is right for each question. An item has all, and the rank.
  """
  _, texts = collection(records.records)
  number = {text: n for n, text in enumerate(texts)}
  items = []
  for n, record in enumerate(records.records):
    found = scores(n)
    right = number[retrieval_forms.sides(record)[1]]
    rank = int(np.sum(~(found < found[right])))  # the last one where it is nan
    items.append(
      {
        'id': record.id,
        'ndcg': 1 / math.log2(1 + rank) if rank <= _DEPTH else 0.0,
        'mrr': 1 / rank,
        'recall_1': int(rank == 1),
        'recall_10': int(rank <= _DEPTH),
        'rank': rank,
      }
    )
  metrics = results.means(items, 'ndcg', 'mrr', 'recall_1', 'recall_10')
  return results.Result(metrics, items, records.card._asdict())
