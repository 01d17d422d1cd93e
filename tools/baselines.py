"""Fits simple baselines that count words, to compare with a tuned head.

  python -m tools.baselines --workdir=runs/classic \\
    --config=configs/finetune/texts.py:../shared/data,banking77
  python -m tools.compare runs/classic/logistic runs/banking77

Fits baselines to the training records of a config, and evaluates them by its
evaluators of `lm.evals.classification` or `lm.evals.retrieval`. WORKDIR/NAME/
gets evals.jsonl and items/ like a run, so that tools.compare pairs both.

For classes of texts (the words of a pair are counted together):
  majority        the most frequent class
  naive_bayes     multinomial, on counts of words and pairs of words
  logistic        regression on tf-idf of words, pairs of words, and 2 to 5
                  characters inside words; its C is chosen by three folds
  ngrams          a language model for each class, of n-grams of up to 6 bytes:
                  the class whose model finds a text likeliest, weighted by the
                  shares of the classes
For tags of words:
  majority        the most frequent tag
  dictionary      the tag that the word had most often; if it is new, the tag
                  that it had most often in lower case; else O
  logistic        regression on the word, its beginning, end and shape, and two
                  words to each side
For answers in passages:
  sliding_window  a span in the sentence with most words of the question; among
                  these, the one in the window with most of them
For texts that answer questions:
  bm25            see lm.data.finetuning.bm25
  tf_idf          the cosine of the counts of its words, weighted by rarity;
                  what is rare is learnt from the collection that is searched
"""

import bisect
import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
import hashlib
import itertools
import math
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy import special
from sklearn import (
  dummy,
  feature_extraction,
  linear_model,
  model_selection,
  naive_bayes,
  pipeline,
)
from sklearn.feature_extraction import text

from lm import config, errors
from lm.data.finetuning import bm25, passages, tasks
from lm.data.finetuning import records as record_lib
from lm.data.tokenizers import utf8_bytes
from lm.evals import classification, fingerprint, items, results, retrieval
from lm.models import ngram
from lm.reporting import metrics_log

# From records and the spec of their evaluator to its result.
Baseline = Callable[[record_lib.Records, Mapping[str, Any]], results.Result]

_WORD = r'\w+|[^\w\s]'  # also words of one letter, and punctuation
_CHOICES = [1.0, 10.0, 100.0]  # for C of the regression on texts
# C of the regression on words. From 1 to 10 the F1 of Wikigold, WNUT17 and
# UNER's Chinese changes by 0.03 at most, and choosing it by three folds would
# take seven times as long.
_FIXED = 3.0
# Words that no answer consists of; single characters say too little for that.
_COMMON = {'en': text.ENGLISH_STOP_WORDS, 'zh': frozenset()}


def classes(train: record_lib.Records) -> dict[str, Baseline]:
  """Fits the baselines for classes of texts."""
  words = text.CountVectorizer(ngram_range=(1, 2), token_pattern=_WORD)
  both = pipeline.make_union(
    text.TfidfVectorizer(
      ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD
    ),
    text.TfidfVectorizer(
      analyzer='char_wb', ngram_range=(2, 5), sublinear_tf=True
    ),
  )
  models = {
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
    'ngrams': _LanguageModels(),
  }
  gold = [record.label for record in train.records]

  def classify(model, test, _):
    shares_NC = model.predict_proba(_texts(test))
    known = list(model.classes_)
    unseen = sorted({r.label for r in test.records} - {*known})
    # A class without training records gets next to nothing, not 0: log 0 would
    # make its loss infinite.
    logits_NC = np.log(np.maximum(shares_NC, 1e-12))
    none = np.full((len(logits_NC), len(unseen)), np.log(1e-12))
    return classification.score_classes(
      test, known + unseen, np.concatenate((logits_NC, none), axis=1)
    )

  return {
    name: functools.partial(classify, model.fit(_texts(train), gold))
    for name, model in models.items()
  }


class _LanguageModels:
  """A classifier with an n-gram model for each class, like those of sklearn.

  Reference: Peng et al. 2003, "Language and task independent text
  categorization with simple language models", NAACL; smoothed by Kneser-Ney.
  """

  def __init__(self, order: int = 6):
    self._order = order
    self._words = utf8_bytes.make()

  def fit(self, texts: Sequence[str], gold: Sequence[str]) -> Self:
    shares = collections.Counter(gold)
    self.classes_ = sorted(shares)
    self._prior_C = np.log([shares[x] / len(gold) for x in self.classes_])
    self._models = []
    for label in self.classes_:
      own = [text for text, x in zip(texts, gold, strict=True) if x == label]
      self._models.append(
        ngram.fit(
          self._encoded(own),
          vocab=self._words.size,
          order=self._order,
          bos=self._words.bos,
        )
      )
    return self

  def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
    documents = self._encoded(texts)
    nats_CN = [
      ngram.nats(params, documents, bos=self._words.bos)
      for params in self._models
    ]
    return special.softmax(self._prior_C - np.transpose(nats_CN), axis=1)

  def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
    eos = self._words.eos
    return [np.array([*self._words.encode(text), eos]) for text in texts]


def tags(train: record_lib.Records) -> dict[str, Baseline]:
  """Fits the baselines for tags of words."""
  pairs = [
    pair for r in train.records for pair in zip(r.words, r.tags, strict=True)
  ]
  gold = [tag for _, tag in pairs]
  (most_frequent, _), *_ = collections.Counter(gold).most_common(1)
  exact = _usual(pairs)
  lower = _usual((word.lower(), tag) for word, tag in pairs)
  model = pipeline.make_pipeline(
    feature_extraction.DictVectorizer(),
    linear_model.LogisticRegression(C=_FIXED, max_iter=1000),
  ).fit([x for r in train.records for x in _features(r.words)], gold)
  guesses = {
    'majority': lambda words: [most_frequent] * len(words),
    'dictionary': lambda words: [
      exact.get(word) or lower.get(word.lower(), 'O') for word in words
    ],
    'logistic': lambda words: model.predict(_features(words)).tolist(),
  }

  def tag(guess, test, _):
    guessed = [guess(record.words) for record in test.records]
    return classification.score_tags(test, guessed)

  return {k: functools.partial(tag, guess) for k, guess in guesses.items()}


def _usual(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
  """Gives the most frequent tag of each word."""
  counts = collections.defaultdict(collections.Counter)
  for word, tag in pairs:
    counts[word][tag] += 1
  return {word: x.most_common(1)[0][0] for word, x in counts.items()}


def _features(words: Sequence[str]) -> list[dict[str, str | bool]]:
  """Describes each word of a sentence."""
  around = ['', '', *words, '', '']  # blanks mark where the sentence ends
  result = []
  for n, word in enumerate(words):
    row: dict[str, str | bool] = {'capital': word[:1].isupper()}
    for size in range(1, 5):
      row |= {f'prefix {size}': word[:size], f'suffix {size}': word[-size:]}
    for place in range(-2, 3):
      other = around[n + 2 + place]
      row |= {f'lower {place}': other.lower(), f'shape {place}': _shape(other)}
    result.append(row)
  return result


@functools.cache
def _shape(word: str) -> str:
  """Writes 'McDonald-12' as 'XxXx-0'."""
  kinds = (
    'X' if x.isupper() else 'x' if x.isalpha() else '0' if x.isdigit() else x
    for x in word
  )
  return ''.join(kind for kind, _ in itertools.groupby(kinds))


def spans(_: record_lib.Records) -> dict[str, Baseline]:
  """Gives the baseline for answers in passages, which learns nothing."""

  def answer(test, spec):
    language = spec.get('language', 'en')
    classification.check_language(language)
    texts = [_answer(record, language) for record in test.records]
    return classification.score_answers(test, texts, language)

  return {'sliding_window': answer}


def _answer(record: record_lib.Reading, language: str) -> str:
  """Finds the span in the part of a passage that is most like its question.

  References: Rajpurkar et al. 2016, arXiv 1606.05250, section 5. There the
  candidates are the constituents of a parse; here they are the longest spans
  without punctuation, common words and words of the question. Richardson et al.
  2013, MCTest, algorithm 1, for the choice among the sentences that share most.
  """
  words = _lower(record.passage)
  question = [word for word in _lower(record.question) if word.isalnum()]
  excluded = _COMMON[language] | {*question}
  kept = [word.isalnum() and word not in excluded for word in words]
  # The places where a span of kept words begins or ends.
  edges = [
    n
    for n, (a, b) in enumerate(itertools.pairwise([False, *kept, False]))
    if a != b
  ]
  candidates = [*zip(edges[::2], edges[1::2], strict=True)]
  if not candidates:
    return ''
  ends = [n + 1 for n, word in enumerate(words) if word in '.!?。！？']
  ends = [0, *ends, len(words)]

  def shared(span: tuple[int, int]) -> int:
    """Counts words and pairs of the question in the rest of its sentence."""
    before = words[ends[bisect.bisect(ends, span[0]) - 1] : span[0]]
    after = words[span[1] : ends[bisect.bisect_left(ends, span[1])]]
    return len((_grams(before) | _grams(after)) & _grams(question))

  counts = collections.Counter(words)

  def window(span: tuple[int, int]) -> float:
    """Weighs its words and the question's in the window with most of them."""
    wanted = {*question, *words[slice(*span)]}
    weights = [
      math.log1p(1 / counts[word]) if word in wanted else 0.0 for word in words
    ]
    return np.convolve(weights, np.ones(len(wanted))).max()

  most = max(map(shared, candidates))
  first, stop = max((x for x in candidates if shared(x) == most), key=window)
  cut = passages.pieces(record.passage)
  return record.passage[cut[first][0] : cut[stop - 1][1]]


def _lower(passage: str) -> list[str]:
  return [
    passage[first:stop].lower() for first, stop in passages.pieces(passage)
  ]


def _grams(words: Sequence[str]) -> set[Any]:
  return {*words, *itertools.pairwise(words)}


def search(_: record_lib.Records) -> dict[str, Baseline]:
  """Gives the baselines for search, which learn nothing from records."""

  def by_bm25(test, spec):
    asked, texts = retrieval.collection(test.records)
    index = bm25.Index(texts)
    return retrieval.score(test, lambda n: index.scores(asked[n]))

  def by_tf_idf(test, spec):
    asked, texts = retrieval.collection(test.records)
    cut: Any = bm25.words
    weigh = text.TfidfVectorizer(analyzer=cut, sublinear_tf=True)
    found: Any = weigh.fit_transform(texts)
    given: Any = weigh.transform(asked)
    return retrieval.score(
      test, lambda n: (found @ given[n].T).toarray().ravel()
    )

  return {'bm25': by_bm25, 'tf_idf': by_tf_idf}


# By evaluator: the types of its records, and the function that fits baselines.
_KINDS: dict[str, tuple[tuple[type, ...], Any]] = {
  'lm.evals.classification:classes': ((record_lib.Text,), classes),
  'lm.evals.classification:tags': ((record_lib.Sentence,), tags),
  'lm.evals.classification:spans': ((record_lib.Reading,), spans),
  'lm.evals.retrieval:make': (
    (record_lib.Reading, record_lib.Pair, record_lib.Preference),
    search,
  ),
}


def evaluate(c: config.Config, workdir: Path) -> list[dict[str, Any]]:
  """Fits the baselines, evaluates them and writes their results.

  Returns:
    A row for each baseline: its name, and its metrics as in evals.jsonl.

  Raises:
    config.ConfigError: the config has no records, no evaluators for them, or
      evaluators of several kinds.
    errors.Storage: the folder cannot be written.
  """
  # Filled with defaults as in a run: the hash of the task covers them.
  c = config.fill(c, given={'data': ('position', 'steps')})
  evals = {k: v for k, v in c.evals.items() if v.fn in _KINDS}
  kinds = {spec.fn for spec in evals.values()}
  if 'records' not in c.data or len(kinds) != 1:
    raise config.ConfigError(
      'data.records, evals: baselines need labelled records, and evaluators '
      'of one fn of lm.evals.classification or lm.evals.retrieval'
    )
  kind, fit = _KINDS[kinds.pop()]
  with config.user_errors():
    train = _part(c.data, c.data.get('held_out'), kind, held=True)
    tests = {
      name: _part(spec, spec.get('fold'), kind, held=False)
      for name, spec in evals.items()
    }
  rows = []
  trained_on = [train.card.sha256, *(record.id for record in train.records)]
  for name, baseline in fit(train).items():
    digest = hashlib.sha256(' '.join([name, *trained_on]).encode()).hexdigest()
    row: dict[str, Any] = {'baseline': name}
    for evaluator, test in tests.items():
      with config.user_errors():
        result = baseline(test, evals[evaluator])
      about = {
        'step': 0,
        'checkpoint': digest,
        'evaluator': evaluator,
        'task': fingerprint.task(config.plain(evals[evaluator])),
        'code': fingerprint.code(config.plain(evals[evaluator])),
      }
      metrics = {f'{evaluator}/{k}': v for k, v in result.metrics.items()}
      try:
        items.write(workdir / name, about, result.items)
        metrics_log.append(
          workdir / name / 'evals.jsonl', {**about, 'metrics': metrics}
        )
      except OSError as error:
        raise errors.Storage(
          f'{errors.refusal(error)}: give another --workdir'
        ) from error
      row |= metrics
    rows.append(row)
  return rows


def _part(
  spec: Any, part: int | None, kinds: tuple[type, ...], *, held: bool
) -> record_lib.Records:
  """Reads the records of a spec.

  Args:
    spec: of data or an evaluator.
    part: a fold, or None for all records.
    kinds: the types that records may have.
    held: whether the fold is held out: all other records are read.

  Raises:
    ValueError: there are no records, or they are of another type.
  """
  data = config.build(spec.records)
  folds = spec.get('folds', 1)
  tasks.check_folds(folds, part)
  kept = [
    record
    for n, record in enumerate(data.records)
    if part is None or (n % folds == part) != held
  ]
  if not kept or not isinstance(kept[0], kinds):
    have = type(kept[0]).__name__ if kept else 'no record'
    raise ValueError(
      f'task {data.card.name}: {have} where baselines need a '
      f'{" or ".join(x.__name__ for x in kinds)}: change records or folds'
    )
  return data._replace(records=kept)


def _texts(data: record_lib.Records) -> list[str]:
  return ['\n'.join(record.texts) for record in data.records]


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  rows = evaluate(*config.parse(argv, __doc__ or ''))
  print(metrics_log.table(rows, list(rows[0])))


if __name__ == '__main__':
  config.main(main)
