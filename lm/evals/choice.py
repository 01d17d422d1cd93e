"""Evaluators that compare likelihoods: choices, last words, pairs, documents.

Each is made by a config's `fn` with a `task`, a spec of one of the readers in
lm.evals.probes, and the settings of `scoring.make`:

  {'fn': 'lm.evals.choice:choice', 'batch_size': 16, 'length': 512,
   'task': {'fn': 'lm.evals.probes:arc_easy', 'path': 'arc_easy/test.jsonl'}}
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import numpy as np

from lm import config, metrics, types
from lm.data import objectives
from lm.evals import context as context_lib
from lm.evals import probes, results, scoring

Evaluator = Callable[[types.Params], results.Result]
_BINS = 15  # of confidence; Guo et al. 2017, section 5


def choice(
  *,
  context: context_lib.Context,
  task: Mapping[str, Any],
  batch_size: int,
  length: int,
  objective: Mapping[str, Any] = objectives.CAUSAL,
) -> Evaluator:
  """Makes an evaluator of questions with several choices.

  Args:
    task: spec of a reader.
    others: as of `scoring.make`.

  Returns:
    `params -> Result`, whose metrics are

      accuracy: the gold choice is the likeliest; the first of equal ones is
        taken. `accuracy/CATEGORY` too where questions have
        categories.
      accuracy_per_token: by nats a token.
      accuracy_per_byte: by nats a byte of the choice, without the space before
        it: lm-evaluation-harness' acc_norm, which counts characters.
      confidence: the likeliest choice's share of exp(-nats) over all choices.
      brier: the mean over questions of the summed squares of shares minus
        truth, from 0 to 2. Reference: Brier 1950.
      calibration_error: the mean over 15 bins of confidence, weighted by their
        questions, of |accuracy - confidence|. Reference: Guo et al. 2017,
        arXiv 1706.04599, section 2 (ECE).

    An item has the first five, and gold_nats.

  Raises:
    ValueError: see `scoring.make`.
    config.ConfigError: the task cannot be read.
  """
  asked, score = _ask(context, task, batch_size, length, objective)

  def evaluate(params: types.Params) -> results.Result:
    items = []
    for question, scores in _grouped(params, asked.questions, score):
      gold = question.gold
      nats = np.array([found.nats for found in scores])
      tokens = [max(found.tokens, 1) for found in scores]
      sizes = [len(x.removeprefix(' ').encode()) for _, x in question.pairs]
      shares = np.exp(nats.min() - nats)
      shares /= shares.sum()
      wrong = shares - (np.arange(len(shares)) == gold)
      items.append(
        {
          'id': question.id,
          'accuracy': int(nats.argmin() == gold),
          'accuracy_per_token': int((nats / tokens).argmin() == gold),
          'accuracy_per_byte': int(
            (nats / np.maximum(sizes, 1)).argmin() == gold
          ),
          'brier': float(np.square(wrong).sum()),
          'confidence': float(shares.max()),
          'gold_nats': float(nats[gold]),
          **question.labels,
        }
      )
    names = ('accuracy_per_token', 'accuracy_per_byte', 'brier', 'confidence')
    found = {
      **results.means(items, 'accuracy', by='category'),
      **results.means(items, *names),
      'calibration_error': calibration_error(
        [item['confidence'] for item in items],
        [item['accuracy'] for item in items],
      ),
    }
    return results.Result(found, items, asked.card._asdict())

  return evaluate


def cloze(
  *,
  context: context_lib.Context,
  task: Mapping[str, Any],
  batch_size: int,
  length: int,
  objective: Mapping[str, Any] = objectives.CAUSAL,
) -> Evaluator:
  """Makes an evaluator of last words (LAMBADA).

  Arguments and errors are those of `choice`. Metrics: accuracy, whether each of
  the word's tokens is the likeliest; loss_nats, the mean over words of their
  nats; perplexity, exp of that. An item has the first two.
  """
  asked, score = _ask(context, task, batch_size, length, objective)

  def evaluate(params: types.Params) -> results.Result:
    items = [
      {
        'id': question.id,
        'accuracy': int(scores[question.gold].greedy),
        'loss_nats': scores[question.gold].nats,
        **question.labels,
      }
      for question, scores in _grouped(params, asked.questions, score)
    ]
    found = results.means(items, 'accuracy', 'loss_nats')
    found['perplexity'] = _exp(found['loss_nats'])
    return results.Result(found, items, asked.card._asdict())

  return evaluate


def pairs(
  *,
  context: context_lib.Context,
  task: Mapping[str, Any],
  batch_size: int,
  length: int,
  objective: Mapping[str, Any] = objectives.CAUSAL,
) -> Evaluator:
  """Makes an evaluator of minimal pairs (BLiMP).

  Arguments and errors are those of `choice`. Metrics: accuracy, also of each
  category: the good sentence is likelier, and not just as likely; margin,
  the mean of by how much. An item has both.

  Reference: Warstadt et al. 2020, arXiv 1912.00582: whole sentences are
  compared, without regard to their lengths.
  """
  asked, score = _ask(context, task, batch_size, length, objective)

  def evaluate(params: types.Params) -> results.Result:
    items = []
    for question, scores in _grouped(params, asked.questions, score):
      good = scores[question.gold].nats
      others = [x.nats for n, x in enumerate(scores) if n != question.gold]
      margin = min(others) - good
      items.append(
        {
          'id': question.id,
          'accuracy': int(margin > 0),
          'margin': margin,
          **question.labels,
        }
      )
    found = results.means(items, 'accuracy', by='category')
    found |= results.means(items, 'margin')
    return results.Result(found, items, asked.card._asdict())

  return evaluate


def documents(
  *,
  context: context_lib.Context,
  task: Mapping[str, Any],
  batch_size: int,
  length: int,
  objective: Mapping[str, Any] = objectives.CAUSAL,
  stride: int | None = None,
  words: int | None = None,
) -> Evaluator:
  """Makes an evaluator of whole texts, each from bos on, its end not scored.

  Args:
    task: spec of a reader, `lm.evals.probes.documents`.
    stride: as of `scoring.make`: None reads full windows; less than `length`
      slides, so that each token has at least length - stride before it.
    words: of all texts; None counts what white space parts.
    others: as of `scoring.make`.

  Returns:
    `params -> Result`, whose metrics are ratios of sums over all documents:
    loss_nats a token, perplexity, bits_per_byte of UTF-8 and word_perplexity.
    An item has nats, tokens, bytes and words. Of a masked model, all are of its
    pseudo-likelihood and do not compare with others.

  Raises:
    ValueError: see `scoring.make`.
    config.ConfigError: the task cannot be read.
  """
  asked, score = _ask(context, task, batch_size, length, objective, stride)

  def evaluate(params: types.Params) -> results.Result:
    items = [
      {
        'id': question.id,
        'nats': found.nats,
        'tokens': found.tokens,
        'bytes': found.bytes,
        'words': len(question.pairs[0][1].split()),
        **question.labels,
      }
      for question, (found,) in _grouped(params, asked.questions, score)
    ]
    nats = math.fsum(item['nats'] for item in items)
    tokens, size, counted = (
      sum(item[name] for item in items) for name in ('tokens', 'bytes', 'words')
    )
    counted = counted if words is None else words
    found = {
      'loss_nats': nats / max(tokens, 1),
      'perplexity': _exp(nats / max(tokens, 1)),
      'bits_per_byte': metrics.bits_per_byte(nats, size),
      'word_perplexity': _exp(nats / max(counted, 1)),
    }
    return results.Result(found, items, asked.card._asdict())

  return evaluate


def calibration_error(
  confidences: Sequence[float], hits: Sequence[int]
) -> float:
  """Tells how far confidences are from the shares of hits; see `choice`."""
  place = np.ceil(np.asarray(confidences) * _BINS)  # bins are (low, high]
  gap = np.asarray(hits) - np.asarray(confidences)
  sums = [abs(gap[place == n].sum()) for n in range(_BINS + 1)]
  return float(math.fsum(sums) / len(gap))


def _ask(
  context, task, batch_size, length, objective, stride=None
) -> tuple[probes.Task, scoring.Scorer]:
  """Reads a task, and makes what scores it."""
  score = scoring.make(
    context,
    batch_size=batch_size,
    length=length,
    objective=objective,
    stride=stride,
  )
  return config.build(task), score


def _grouped(params, questions, score):
  """Lists each question with the scores of its choices."""
  scores = iter(score(params, [x for q in questions for x in q.pairs]))
  return [(q, [next(scores) for _ in q.pairs]) for q in questions]


def _exp(nats: float) -> float:
  return math.exp(min(nats, 700))  # beyond it a double overflows
