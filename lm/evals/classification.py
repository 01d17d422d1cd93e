"""Evaluators of tuned heads: classes of texts, tags of words, spans of answers.

{'fn': 'lm.evals.classification:classes', 'batch_size': 64, 'length': 64,
 'records': {'fn': 'lm.data.finetuning.readers:banking77', 'path': 'test.csv'},
 'form': the form that the model was trained with}
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import re
import string
from typing import Any
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np

from lm import sharding, types
from lm.data import names, objectives
from lm.data.finetuning import batching, passages, tasks
from lm.data.finetuning import records as record_lib
from lm.evals import choice, packages, results
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
    records: spec of the reader of records, as in `tasks.make`.
    form: spec of the form that the model was trained with, as in `tasks.make`.
    batch_size: rows at a time; changes nothing but speed.
    length: L, the most positions that the model reads.
    folds: number of parts that the records are divided into.
    fold: the only part that is evaluated; None: all.
    limit: number of records that are evaluated, the first ones; None: all.

  Returns:
    `params -> Result` with `accuracy`, `macro_f1` (of scikit-learn, over the
    labels that occur), `loss_nats`, `confidence` and `calibration_error`, see
    `choice.choice`. An item has the first, third and fourth, gold and guess. A
    text whose class the model lacks is a miss, and has no loss.

  Raises:
    ValueError: see `tasks.make`; or the model has other classes, or
      scikit-learn is missing.
  """
  data, built, rows = read(
    records, form, context.tokenizer, length, folds, fold, limit
  )
  score = scorer(context, built, batch_size, length)
  _sklearn_metrics()  # a missing package is found before the work

  def evaluate(params: types.Params) -> results.Result:
    logits_NC = np.stack([logits_1C[0] for _, logits_1C in score(params, rows)])
    return score_classes(data, built.labels, logits_NC)

  return evaluate


def score_classes(
  records: record_lib.Records, labels: Sequence[str], logits_NC: np.ndarray
) -> results.Result:
  """Scores the logits of texts; gives the result of `classes`.

  Args:
    records: N texts.
    labels: of each class, in their order.
    logits_NC: float64; log p will do.
  """
  metrics = _sklearn_metrics()
  number = {label: n for n, label in enumerate(labels)}
  items = []
  for record, logits_C in zip(records.records, logits_NC, strict=True):
    log_C = logits_C - np.logaddexp.reduce(logits_C)
    guess = labels[int(log_C.argmax())]
    items.append(
      {
        'id': record.id,
        'accuracy': int(guess == record.label),
        # A class that training lacks is missed, at a cost that is not known.
        'loss_nats': float(-log_C[number[record.label]])
        if record.label in number
        else None,
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
  return results.Result(metric, items, records.card._asdict())


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
  """Makes an evaluator of a tagger.

  Arguments and errors are the same as in `classes`.

  Returns:
    `params -> Result` with `f1`, `precision` and `recall` of whole entities, by
    seqeval, which counts as conlleval does; `f1/TYPE`; `accuracy` of tags; and
    `exact`, the share of sentences whose tags are all right. An item is a
    sentence and has exact and accuracy.

  Reference: Tjong Kim Sang and De Meulder 2003, section 4.
  """
  data, built, rows = read(
    records, form, context.tokenizer, length, folds, fold, limit
  )
  score = scorer(context, built, batch_size, length)
  _seqeval_metrics()  # a missing package is found before the work

  def evaluate(params: types.Params) -> results.Result:
    guesses = [['O'] * len(record.words) for record in data.records]
    for row, logits_LC in score(params, rows):
      for place, best in zip(row.places, logits_LC.argmax(-1), strict=False):
        if place != batching.NOT_SCORED:
          guesses[row.record][place] = built.labels[int(best)]
    return score_tags(data, guesses)

  return evaluate


def score_tags(
  records: record_lib.Records, guesses: Sequence[list[str]]
) -> results.Result:
  """Scores guessed tags, one for each word; gives the result of `tags`."""
  metrics = _seqeval_metrics()
  gold = [list(record.tags) for record in records.records]
  items = [
    {
      'id': record.id,
      'exact': int(want == got),
      'accuracy': float(
        np.mean([a == b for a, b in zip(want, got, strict=True)])
      ),
    }
    for record, want, got in zip(records.records, gold, guesses, strict=True)
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
  return results.Result(metric, items, records.card._asdict())


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
  """Makes an evaluator of a model that finds answers in passages.

  The other arguments are the same as in `classes`. A passage may have several
  rows. The answer is the span of at most 30 tokens, in any of them, whose two
  scores have the largest sum. If questions of the data set have no answer, ''
  is an answer, too, whose score is that of position 0, in the row where it is
  smallest.

  Args:
    language: 'en' compares words in lower case, without articles and
      punctuation; 'zh' compares characters, without punctuation, and suits
      other scripts without spaces.

  Returns:
    `params -> Result` with `exact` and `f1`, each against the best of a
    question's answers, as the official script of SQuAD counts them. For Chinese
    the script of CMRC counts the longest common part instead; this counts
    common characters. Where questions have no answer, both are given for them
    and for the others as well: `exact/unanswerable`, `exact/answerable`. An
    item has both, and the answer.

  Raises:
    ValueError: see `classes`; or the language is another.

  References: Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1; Devlin et
  al. 2019, arXiv 1810.04805, section 4.3.
  """
  check_language(language)
  data, built, rows = read(
    records, form, context.tokenizer, length, folds, fold, limit
  )
  score = scorer(context, built, batch_size, length)

  def evaluate(params: types.Params) -> results.Result:
    best = [(-np.inf, '')] * len(data.records)
    none = [np.inf] * len(data.records)
    for row, logits_2L in score(params, rows):
      passage = data.records[row.record].passage
      value, first, last = _span(row, logits_2L)
      if value > best[row.record][0]:
        cut = passages.pieces(passage)
        text = passage[cut[row.places[first]][0] : cut[row.places[last]][1]]
        best[row.record] = value, text
      none[row.record] = min(none[row.record], float(logits_2L[:, 0].sum()))
    can_refuse = record_lib.UNANSWERABLE in data.labels
    texts = [
      '' if can_refuse and refusal > value else text
      for (value, text), refusal in zip(best, none, strict=True)
    ]
    return score_answers(data, texts, language)

  return evaluate


def score_answers(
  records: record_lib.Records, texts: Sequence[str], language: str
) -> results.Result:
  """Scores answers, one for each question; gives the result of `spans`."""
  items = []
  for record, text in zip(records.records, texts, strict=True):
    golds = [answer for _, answer in record.answers] or ['']
    exact, f1 = (
      max(compare(text, gold, language) for gold in golds)
      for compare in (exact_match, overlap)
    )
    item = {'id': record.id, 'exact': exact, 'f1': f1, 'answer': text}
    if record_lib.UNANSWERABLE in records.labels:
      kind = 'answerable' if record.answers else record_lib.UNANSWERABLE
      item['category'] = kind
    items.append(item)
  metric = results.means(items, 'exact', 'f1', by='category')
  return results.Result(metric, items, records.card._asdict())


def check_language(language: str) -> None:
  """Checks the language of answers; see `spans`.

  Raises:
    ValueError: the language is another.
  """
  if language not in ('en', 'zh'):
    raise ValueError(f"language={language!r} is neither 'en' nor 'zh'")


def exact_match(answer: str, gold: str, language: str) -> int:
  """Gives 1 if two answers are the same, else 0; see `spans`."""
  return int(_words(answer, language) == _words(gold, language))


def overlap(answer: str, gold: str, language: str) -> float:
  """Gives the F1 of the words that two answers share; see `spans`."""
  a, b = _words(answer, language), _words(gold, language)
  shared = sum(min(a.count(word), b.count(word)) for word in set(a))
  return 2 * shared / (len(a) + len(b)) if shared else float(a == b)


def _words(text: str, language: str) -> list[str]:
  text = text.lower()
  if language == 'zh':
    # Marks are vowels in scripts such as that of Thai.
    return [x for x in text if x.isalnum() or unicodedata.category(x)[0] == 'M']
  text = ''.join(x for x in text if x not in string.punctuation)
  return re.sub(r'\b(a|an|the)\b', ' ', text).split()


def _span(row: batching.Row, logits_2L: np.ndarray) -> tuple[float, int, int]:
  """Finds the likeliest span of a passage: score, first and last token."""
  in_passage_L = np.array(row.places) != batching.NOT_SCORED
  L = len(in_passage_L)
  start_L, stop_L = np.where(in_passage_L, logits_2L[:, :L], -np.inf)
  best = -np.inf, 0, 0
  # All spans of one length at a time: L * 30 sums, and no [L, L] array.
  for more in range(min(_LONGEST, L)):
    total = start_L[: L - more] + stop_L[more:]
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
  """Reads the records to evaluate, the form and its rows; see `classes`."""
  tasks.check_folds(folds, fold)

  def keep(n):
    # Record n is in fold n % folds, and the (n // folds)-th record there.
    place, part = divmod(n, folds)
    order = n if fold is None else place
    return (fold is None or part == fold) and (limit is None or order < limit)

  data, built, rows = tasks.read(records, form, tokenizer, length, keep)
  known: set[str] = set()
  for record in data.records:
    if record.id in known:  # results are compared by it
      raise ValueError(
        f'task {data.card.name}: the id {names.short(record.id)} is there '
        'twice: give each record its own'
      )
    known.add(record.id)
  return data, built, rows


def scorer(
  context: context_lib.Context,
  form: batching.Form,
  batch_size: int,
  length: int,
  read: Callable[[types.Output], jax.Array] = lambda out: out.logits,
) -> Callable[..., Iterator[tuple[batching.Row, np.ndarray]]]:
  """Makes `(params, rows) -> (row, its scores in float64)` for each row.

  Args:
    context: the run that is evaluated.
    form: that made the rows.
    batch_size: rows at a time.
    length: L.
    read: takes the scores from what the model returns; they are logits unless
      another part is asked for.
  """
  objectives.check_whole('batch_size', batch_size, 1)
  model, tokenizer, mesh = context
  host, hosts = sharding.host(mesh, batch_size)
  if hosts > 1:
    raise ValueError(
      'heads are evaluated by one process: leave them to lm.evaluate'
    )

  @jax.jit
  def run(params, batch):
    # Replicated on every device, so that the host can read them.
    logits = read(model.apply(params, batch)).astype(jnp.float32)
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
        result = run(params, sharding.put(batch, mesh, host, hosts))
      logits = np.asarray(result, np.float64)
      if form.labels and logits.shape[-1] != len(form.labels):
        raise ValueError(
          f'the model has {logits.shape[-1]} classes, and form.labels are '
          f'{len(form.labels)}: use the form that it was trained with'
        )
      yield from zip(part, logits, strict=False)

  return score


def _sklearn_metrics() -> Any:
  with packages.required('scikit-learn'):
    from sklearn import metrics
  return metrics


def _seqeval_metrics() -> Any:
  with packages.required('seqeval'):
    from seqeval import metrics
  return metrics
