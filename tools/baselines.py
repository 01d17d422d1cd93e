"""What counting words gives, beside a tuned classifier.

  python -m tools.baselines --workdir=runs/classic \\
    --config=configs/finetune/texts.py:../shared/data,banking77
  python -m tools.compare runs/classic/logistic runs/banking77

Fits scikit-learn's baselines to the training records of a config, and judges
them by its evaluators of classes: WORKDIR/NAME/ holds evals.jsonl and items/ as
those of a run, so that tools.compare pairs both. Of a pair of texts words are
counted together.

  majority     the commonest class
  naive_bayes  multinomial, on counts of words and pairs of words
  logistic     regression on tf-idf of words, pairs of words, and 2 to 5
               characters inside words; its C is chosen by three folds

Exit codes: 0 done; 2 wrong config or usage; 5 storage.
"""

import argparse
from collections.abc import Sequence
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import (
  dummy,
  linear_model,
  model_selection,
  naive_bayes,
  pipeline,
)
from sklearn.feature_extraction import text

from lm import config, errors, log
from lm.data import records, tasks
from lm.evals import items, labels, results

_WORD = r'\w+|[^\w\s]'  # also of one letter, and signs
_CHOICES = [1.0, 10.0, 100.0]  # of logistic regression's C
_JUDGE = 'lm.evals.labels:classes'


def make() -> dict[str, Any]:
  """Returns the baselines by name, not fitted."""
  words = text.CountVectorizer(ngram_range=(1, 2), token_pattern=_WORD)
  both = pipeline.make_union(
    text.TfidfVectorizer(
      ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD
    ),
    text.TfidfVectorizer(
      analyzer='char_wb', ngram_range=(2, 5), sublinear_tf=True
    ),
  )
  return {
    'majority': dummy.DummyClassifier(strategy='prior'),
    'naive_bayes': pipeline.make_pipeline(
      words, naive_bayes.MultinomialNB(alpha=0.5)
    ),
    'logistic': model_selection.GridSearchCV(
      pipeline.make_pipeline(
        both, linear_model.LogisticRegression(max_iter=1000)
      ),
      {'logisticregression__C': _CHOICES},
      cv=3,
    ),
  }


def judge(c: config.Config, workdir: Path) -> list[dict[str, Any]]:
  """Fits and judges; writes what it found.

  Returns:
    A row a baseline: its name, and metrics as in evals.jsonl.

  Raises:
    config.ConfigError: the config has no records, or no evaluator of classes.
    errors.Storage: the folder cannot be written.
  """
  evals = {k: v for k, v in c.evals.items() if v.fn == _JUDGE}
  if 'records' not in c.data or not evals:
    raise config.ConfigError(
      'data.records, evals: baselines need labelled records, and an evaluator '
      f'with fn {_JUDGE}'
    )
  with config.refusals():
    train = _part(c.data, c.data.held_out, held=True)
    tests = {
      name: _part(spec, spec.get('fold'), held=False)
      for name, spec in evals.items()
    }
  told = []
  for name, model in make().items():
    model.fit(_texts(train), [r.label for r in train.records])
    digest = hashlib.sha256(f'{name} {train.card.sha256}'.encode()).hexdigest()
    row: dict[str, Any] = {'baseline': name}
    for evaluator, found in tests.items():
      shares_NC = model.predict_proba(_texts(found))
      known = list(model.classes_)
      unseen = sorted({r.label for r in found.records} - {*known})
      # A class that training has none of has no share.
      logits_NC = np.log(np.maximum(shares_NC, 1e-12))
      none = np.full((len(logits_NC), len(unseen)), np.log(1e-12))
      result = labels.classified(
        found, known + unseen, np.concatenate((logits_NC, none), axis=1)
      )
      about = {
        'step': 0,
        'checkpoint': digest,
        'evaluator': evaluator,
        'task': results.task(config.plain(evals[evaluator])),
        'code': results.code(),
      }
      metrics = {f'{evaluator}/{k}': v for k, v in result.metrics.items()}
      try:
        items.write(workdir / name, about, result.items)
        log.append(
          workdir / name / 'evals.jsonl', {**about, 'metrics': metrics}
        )
      except OSError as error:
        raise errors.Storage(
          f'{errors.refusal(error)}: give another --workdir'
        ) from error
      row |= metrics
    told.append(row)
  return told


def _part(spec: Any, part: int | None, *, held: bool) -> records.Records:
  """Reads the records of a spec: those of a fold, or all but those."""
  found = config.build(spec.records)
  folds = spec.get('folds', 1)
  tasks.check_folds(folds, part)
  kept = [
    record
    for n, record in enumerate(found.records)
    if part is None or (n % folds == part) != held
  ]
  return found._replace(records=kept)


def _texts(found: records.Records) -> list[str]:
  return ['\n'.join(record.texts) for record in found.records]


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.baselines',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--config', required=True, help='of a tuned classifier')
  parser.add_argument('--workdir', required=True, type=Path)
  flags = parser.parse_args(argv)
  rows = judge(config.load(flags.config), flags.workdir)
  print(log.table(rows, list(rows[0])))


if __name__ == '__main__':
  config.main(main)
