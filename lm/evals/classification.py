"""Evaluators of tuned heads: classes of texts, tags of words, answers' places.

{'fn': 'lm.evals.classification:classes', 'batch_size': 64, 'length': 64,
 'records': {'fn': 'lm.data.finetuning.readers:banking77', 'path': 'test.csv'},
 'form': the form that the model was trained with}
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import importlib
import re
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import errors, sharding, types
from lm.data import objectives
from lm.data.finetuning import batching, passages, tasks
from lm.data.finetuning import records as record_lib
from lm.evals import choice, results
from lm.evals import context as context_lib

Evaluator = Callable[[types.Params], results.Result]
_LONGEST = 30  # tokens of an answer; Devlin et al. 2019's run_squad.py


def classes(
  *,
  context: context_lib.Context,
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  batch_size: int,
  length: int,
  folds: int = 1,
  fold: int | None = None,
  limit: int | None = None,
) -> Evaluator:
  """Makes an evaluator of a classifier.

  Args:
    context: the run that is evaluated.
    records, form, length, folds: as of `tasks.make`.
    batch_size: rows at a time; changes nothing but speed.
    fold: judges this part of the records alone; None: all.
    limit: judges the first so many; None: all.

  Returns:
    `params -> Result` with `accuracy`, `macro_f1` (of scikit-learn, over the
    labels that occur), `loss_nats` and `calibration_error`, see
    `choice.choice`. An item has accuracy, nats, confidence, and gold and guess.

  Raises:
    ValueError: see `tasks.make`; the model has no such classes; scikit-learn is
      missing.
  """
  found, made, rows = read(
    records, form, context.tokenizer, length, folds, fold, limit
  )
  score = _scorer(context, made, batch_size, length)
  package('sklearn.metrics', 'scikit-learn')  # or it is missed after the work

  def evaluate(params: types.Params) -> results.Result:
    logits_NC = np.stack([logits_1C[0] for _, logits_1C in score(params, rows)])
    return classified(found, made.labels, logits_NC)

  return evaluate


def classified(
  found: record_lib.Records, order: Sequence[str], logits_NC: np.ndarray
) -> results.Result:
  """Judges the logits of texts: what `classes` gives.

  Args:
    found: N texts.
    order: labels by their class.
    logits_NC: float64; log p will do.
  """
  metrics = package('sklearn.metrics', 'scikit-learn')
  number = {label: n for n, label in enumerate(order)}
  items = []
  for record, logits_C in zip(found.records, logits_NC, strict=True):
    log_C = logits_C - np.logaddexp.reduce(logits_C)
    guess = order[int(log_C.argmax())]
    items.append(
      {
        'id': record.id,
        'accuracy': int(guess == record.label),
        'loss_nats': float(-log_C[number[record.label]]),
        'confidence': float(np.exp(log_C.max())),
        'gold': record.label,
        'guess': guess,
      }
    )
  gold, guesses = ([item[key] for item in items] for key in ('gold', 'guess'))
  metric = {
    **results.means(items, 'accuracy', 'loss_nats', 'confidence'),
    'macro_f1': float(
      metrics.f1_score(gold, guesses, average='macro', zero_division=0)
    ),
    'calibration_error': choice.calibration_error(
      [item['confidence'] for item in items],
      [item['accuracy'] for item in items],
    ),
  }
  return results.Result(metric, items, found.card._asdict())


def tags(
  *,
  context: context_lib.Context,
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  batch_size: int,
  length: int,
  folds: int = 1,
  fold: int | None = None,
  limit: int | None = None,
) -> Evaluator:
  """Makes an evaluator of a tagger; arguments and errors as of `classes`.

  Returns:
    `params -> Result` with `f1`, `precision` and `recall` of whole entities, by
    seqeval as conlleval counts them, `f1/TYPE`, and `accuracy` of tags. An item
    is a sentence: `exact`, whether all its tags are right, and `accuracy`.

  Reference: Tjong Kim Sang and De Meulder 2003, section 4.
  """
  found, made, rows = read(
    records, form, context.tokenizer, length, folds, fold, limit
  )
  score = _scorer(context, made, batch_size, length)
  package('seqeval.metrics', 'seqeval')  # or it is missed after the work

  def evaluate(params: types.Params) -> results.Result:
    guesses = [['O'] * len(record.words) for record in found.records]
    for row, logits_LC in score(params, rows):
      for place, best in zip(row.places, logits_LC.argmax(-1), strict=False):
        if place != batching.NOT_SCORED:
          guesses[row.record][place] = made.labels[int(best)]
    return tagged(found, guesses)

  return evaluate


def tagged(
  found: record_lib.Records, guesses: Sequence[list[str]]
) -> results.Result:
  """Judges a tag a word of sentences: what `tags` gives."""
  metrics = package('seqeval.metrics', 'seqeval')
  gold = [list(record.tags) for record in found.records]
  items = [
    {
      'id': record.id,
      'exact': int(want == got),
      'accuracy': float(
        np.mean([a == b for a, b in zip(want, got, strict=True)])
      ),
    }
    for record, want, got in zip(found.records, gold, guesses, strict=True)
  ]
  report = metrics.classification_report(
    gold, guesses, output_dict=True, zero_division=0
  )
  total = report.pop('micro avg')
  metric = {
    'f1': float(total['f1-score']),
    'precision': float(total['precision']),
    'recall': float(total['recall']),
    'accuracy': float(metrics.accuracy_score(gold, guesses)),
    **results.means(items, 'exact'),
    **{
      f'f1/{name}': float(part['f1-score'])
      for name, part in sorted(report.items())
      if not name.endswith(' avg')
    },
  }
  return results.Result(metric, items, found.card._asdict())


def spans(
  *,
  context: context_lib.Context,
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  batch_size: int,
  length: int,
  language: str = 'en',
  folds: int = 1,
  fold: int | None = None,
  limit: int | None = None,
) -> Evaluator:
  """Makes an evaluator of a reader; other arguments as of `classes`.

  A question is answered once: by the likeliest of the spans of at most 30
  tokens, by the sum of both scores, of all rows of its passage.

  Args:
    language: 'en' compares words, lower-cased, without articles and signs;
      'zh' compares characters, without signs.

  Returns:
    `params -> Result` with `exact` and `f1`, against the best of a question's
    answers, as the official script of SQuAD counts them. In Chinese CMRC's
    counts the longest common part instead; this counts common characters. An
    item has both, and the answer.

  Raises:
    ValueError: see `classes`; or another language.

  Reference: Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1.
  """
  check_language(language)
  found, made, rows = read(
    records, form, context.tokenizer, length, folds, fold, limit
  )
  score = _scorer(context, made, batch_size, length)

  def evaluate(params: types.Params) -> results.Result:
    best = [(-np.inf, '')] * len(found.records)
    for row, logits_2L in score(params, rows):
      passage = found.records[row.record].passage
      guess, first, last = _span(row, logits_2L)
      if guess > best[row.record][0]:
        cut = passages.pieces(passage)
        text = passage[cut[row.places[first]][0] : cut[row.places[last]][1]]
        best[row.record] = guess, text
    return answered(found, [text for _, text in best], language)

  return evaluate


def answered(
  found: record_lib.Records, texts: Sequence[str], language: str
) -> results.Result:
  """Judges an answer a question: what `spans` gives."""
  items = []
  for record, text in zip(found.records, texts, strict=True):
    golds = [answer for _, answer in record.answers]
    exact, f1 = (
      max(compare(text, gold, language) for gold in golds)
      for compare in (exact_match, overlap)
    )
    items.append({'id': record.id, 'exact': exact, 'f1': f1, 'answer': text})
  metric = results.means(items, 'exact', 'f1')
  return results.Result(metric, items, found.card._asdict())


def check_language(language: str) -> None:
  """Checks how answers are compared; see `spans`.

  Raises:
    ValueError: it is another language.
  """
  if language not in ('en', 'zh'):
    raise ValueError(f"language={language!r} is neither 'en' nor 'zh'")


def exact_match(answer: str, gold: str, language: str) -> int:
  """Tells whether two answers are the same; see `spans`."""
  return int(_words(answer, language) == _words(gold, language))


def overlap(answer: str, gold: str, language: str) -> float:
  """Gives the F1 of the words that two answers share; see `spans`."""
  a, b = _words(answer, language), _words(gold, language)
  shared = sum(min(a.count(word), b.count(word)) for word in set(a))
  return 2 * shared / (len(a) + len(b)) if shared else float(a == b)


def _words(text: str, language: str) -> list[str]:
  text = text.lower()
  if language == 'zh':
    return [x for x in text if x.isalnum()]
  text = ''.join(x for x in text if x not in string.punctuation)
  return re.sub(r'\b(a|an|the)\b', ' ', text).split()


def _span(row: batching.Row, logits_2L: np.ndarray) -> tuple[float, int, int]:
  """Finds the likeliest span of a passage: score, first and last token."""
  live = np.array(row.places) != batching.NOT_SCORED
  start_L, stop_L = np.where(live, logits_2L[:, : len(live)], -np.inf)
  best = -np.inf, 0, 0
  for more in range(min(_LONGEST, len(live))):
    total = start_L[: len(live) - more] + stop_L[more:]
    first = int(total.argmax())
    if total[first] > best[0]:
      best = float(total[first]), first, first + more
  return best


def read(
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  tokenizer: types.Tokenizer,
  length: int,
  folds: int,
  fold: int | None,
  limit: int | None = None,
) -> tuple[record_lib.Records, batching.Form, list[batching.Row]]:
  """Reads what is judged, the first `limit` records; see `classes`."""
  tasks.check_folds(folds, fold)

  def keep(n):
    place, part = divmod(n, folds)
    first = n if fold is None else place
    return (fold is None or part == fold) and (limit is None or first < limit)

  return tasks.read(records, form, tokenizer, length, keep)


def _scorer(context, form, batch_size, length):
  """Makes `(params, rows) -> (row, its logits in float64) each`."""
  objectives.check_whole('batch_size', batch_size, 1)
  model, tokenizer, mesh = context
  host, hosts = sharding.host(mesh, batch_size)
  if hosts > 1:
    raise ValueError(
      'heads are judged by one process: leave them to lm.evaluate'
    )

  @jax.jit
  def run(params, batch):
    # Whole on every device, to be read by the host.
    logits = model.apply(params, batch).logits.astype(jnp.float32)
    return jax.lax.with_sharding_constraint(
      logits, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )

  def score(
    params: types.Params, rows: Sequence[batching.Row]
  ) -> Iterator[tuple[batching.Row, np.ndarray]]:
    for n in range(0, len(rows), batch_size):
      part = rows[n : n + batch_size]
      filled = [[row] for row in part] + [[]] * (batch_size - len(part))
      batch = batching.assemble(filled, form, length, tokenizer)
      with jax.set_mesh(mesh):
        found = run(params, sharding.put(batch, mesh, host, hosts))
      logits = np.asarray(found, np.float64)
      if form.labels and logits.shape[-1] != len(form.labels):
        raise ValueError(
          f'the model has {logits.shape[-1]} classes, and form.labels are '
          f'{len(form.labels)}: judge by the form that it was trained with'
        )
      yield from zip(part, logits, strict=False)

  return score


def package(module: str, name: str) -> Any:
  """Imports a package of metrics, or says how to have it.

  Raises:
    ValueError: it is missing.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ValueError(
      f'this evaluator needs {name}: {errors.install("tasks")}'
    ) from error
