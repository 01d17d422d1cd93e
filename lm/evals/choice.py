"""Evaluators that compare likelihoods: choices, last words, pairs, documents.

A config names one of these functions, with the spec of a reader from
lm.evals.probes as its `task` and the settings of `scoring.make`:

  {'fn': 'lm.evals.choice:choice', 'batch_size': 16, 'length': 512,
   'task': {'fn': 'lm.evals.probes:arc_easy', 'path': 'arc_easy/test.jsonl'}}
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import numpy as np

from lm import config, metrics, types
from lm.data import objectives
from lm.data.tokenizers import vocabulary
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
    context: the run that is evaluated.
    task: spec of a reader of questions.
    batch_size: rows at a time; changes nothing but speed.
    length: L, the most positions that the model reads.
    objective: spec of the objective that the model was trained for.

  Returns:
    `params -> Result`, whose metrics are

      accuracy: how often the gold choice is the likeliest; of equal choices the
        first is taken. Also for each category, if questions have categories.
      accuracy_per_token: the same by nats per token of the choice.
      accuracy_per_byte: the same by nats per byte of the choice, without the
        space before it: acc_norm of lm-evaluation-harness, which counts
        characters.
      confidence: the likeliest choice's share of exp(-nats) over all choices.
      brier: the sum over choices of the squared differences between share and
        truth, from 0 to 2. Reference: Brier 1950.
      calibration_error: the mean of |accuracy - confidence| over 15 bins of
        confidence, weighted by their questions. Reference: Guo et al. 2017,
        arXiv 1706.04599, section 2 (ECE).

    An item has the first five, and gold_nats.

  Raises:
    ValueError: see `scoring.make`.
    config.ConfigError: the task cannot be read.
  """
  loaded, score = _prepare(context, task, batch_size, length, objective)

  def evaluate(params: types.Params) -> results.Result:
    items = []
    for question, scores in _grouped(params, loaded.questions, score):
      gold = question.gold
      nats = np.array([x.nats for x in scores])
      tokens = [max(x.tokens, 1) for x in scores]
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
    metric = {
      **results.means(items, 'accuracy', by='category'),
      **results.means(items, *names),
      'calibration_error': calibration_error(
        [item['confidence'] for item in items],
        [item['accuracy'] for item in items],
      ),
    }
    return results.Result(metric, items, loaded.card._asdict())

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

  Arguments and errors are the same as in `choice`. The metrics are accuracy,
  how often each token of the word is the likeliest; loss_nats, the mean over
  words of the nats of the whole word; and perplexity, exp of loss_nats. An item
  has the first two.
  """
  loaded, score = _prepare(context, task, batch_size, length, objective)

  def evaluate(params: types.Params) -> results.Result:
    items = [
      {
        'id': question.id,
        'accuracy': int(scores[question.gold].greedy),
        'loss_nats': scores[question.gold].nats,
        **question.labels,
      }
      for question, scores in _grouped(params, loaded.questions, score)
    ]
    metric = results.means(items, 'accuracy', 'loss_nats')
    metric['perplexity'] = _exp(metric['loss_nats'])
    return results.Result(metric, items, loaded.card._asdict())

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

  Arguments and errors are the same as in `choice`. The metrics are accuracy,
  how often the good sentence is likelier (and not just as likely), also for
  each category; and margin, the mean number of nats by which it is likelier. An
  item has both.

  Reference: Warstadt et al. 2020, arXiv 1912.00582: whole sentences are
  compared, without regard to their lengths.
  """
  loaded, score = _prepare(context, task, batch_size, length, objective)

  def evaluate(params: types.Params) -> results.Result:
    items = []
    for question, scores in _grouped(params, loaded.questions, score):
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
    metric = results.means(items, 'accuracy', by='category')
    metric |= results.means(items, 'margin')
    return results.Result(metric, items, loaded.card._asdict())

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
  """Makes an evaluator of whole texts.

  A text begins with bos; its end is not scored.

  Args:
    context: the run that is evaluated.
    task: spec of a reader, `lm.evals.probes.documents`.
    batch_size: rows at a time; changes nothing but speed.
    length: L, the most positions that the model reads.
    objective: spec of the objective that the model was trained for.
    stride: see `scoring.make`. None reads full windows; less than `length`
      slides the window, so that each token sees at least the length - stride
      tokens before it.
    words: number of words in all texts; None counts what white space separates.

  Returns:
    `params -> Result`, whose metrics are ratios of sums over all documents:
    loss_nats per token, perplexity, bits_per_byte of UTF-8 and word_perplexity.
    An item has nats, tokens, bytes and words. For a masked model all of these
    come from its pseudo-likelihood and do not compare with other models. Where
    the ids of a text do not give it back, its item has no nats: they would be
    those of another text. Then bits_per_byte and word_perplexity are left out.

  Raises:
    ValueError: see `scoring.make`.
    config.ConfigError: the task cannot be read.
  """
  loaded, score = _prepare(context, task, batch_size, length, objective, stride)
  lost = {
    question.id
    for question in loaded.questions
    if not vocabulary.gives_back(context.tokenizer, question.pairs[0][1])
  }

  def evaluate(params: types.Params) -> results.Result:
    scored = [
      (question, x)
      for question, (x,) in _grouped(params, loaded.questions, score)
    ]
    items = [
      {
        'id': question.id,
        'nats': None if question.id in lost else x.nats,
        'tokens': x.tokens,
        'bytes': x.bytes,
        'words': len(question.pairs[0][1].split()),
        **question.labels,
      }
      for question, x in scored
    ]
    nats = math.fsum(x.nats for _, x in scored)
    tokens, size, counted = (
      sum(item[name] for item in items) for name in ('tokens', 'bytes', 'words')
    )
    counted = counted if words is None else words
    metric = {
      'loss_nats': nats / max(tokens, 1),
      'perplexity': _exp(nats / max(tokens, 1)),
    }
    if not lost:
      metric['bits_per_byte'] = metrics.bits_per_byte(nats, size)
      metric['word_perplexity'] = _exp(nats / max(counted, 1))
    return results.Result(metric, items, loaded.card._asdict())

  return evaluate


def calibration_error(
  confidences: Sequence[float], hits: Sequence[int]
) -> float:
  """Measures how far confidences are from accuracies, in bins; see `choice`."""
  bins = np.ceil(np.asarray(confidences) * _BINS)  # a bin is (low, high]
  gap = np.asarray(hits) - np.asarray(confidences)
  sums = [abs(gap[bins == n].sum()) for n in range(_BINS + 1)]
  return float(math.fsum(sums) / len(gap))


def _prepare(
  context, task, batch_size, length, objective, stride=None
) -> tuple[probes.Task, scoring.Scorer]:
  """Reads a task, and makes the scorer of its texts."""
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
