"""Metrics of generated texts against targets: BLEU, chrF, ROUGE, exact, F1."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lm.evals import classification, packages, results

_NGRAMS = (1, 2)  # of distinct-n, Li et al. 2016
_REPEATED = 4  # words, of seq-rep-n, Welleck et al. 2020


class Scorer(NamedTuple):
  """Compares texts with the targets of their records.

  Attributes:
    score: `(texts, items) -> metrics`; what is counted text by text is added to
      the items.
    signature: how sacrebleu counts, and which version of it; None of others.
  """

  score: Callable[[Sequence[str], Sequence[results.Item]], dict[str, float]]
  signature: Callable[[], str] | None = None


def variety(texts: Sequence[str], language: str) -> dict[str, float]:
  """Measures how varied texts are.

  Args:
    texts: any number.
    language: 'zh' counts characters in place of words.

  Returns:
    distinct_1, distinct_2: distinct words, and pairs of words, over all of
      them in the whole set (Li et al. 2016, arXiv 1510.03055, section 5.1).
    repetition: the share of a text's runs of four words that occurred in it
      before, its mean over texts that have such runs (seq-rep-4, Welleck et al.
      2020, arXiv 1908.04319, section 6).
    length: words per text.
  """
  words = [list(x) if language == 'zh' else x.split() for x in texts]

  def grams(text, n):
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]

  metric = {}
  for n in _NGRAMS:
    all_grams = [gram for text in words for gram in grams(text, n)]
    metric[f'distinct_{n}'] = len(set(all_grams)) / max(len(all_grams), 1)
  repeated = [
    1 - len(set(runs)) / len(runs)
    for runs in (grams(text, _REPEATED) for text in words)
    if runs
  ]
  metric['repetition'] = sum(repeated) / max(len(repeated), 1)
  metric['length'] = sum(map(len, words)) / max(len(words), 1)
  return metric


def _bleu(records, language):
  with packages.required('sacrebleu'):
    import sacrebleu
  bleu = sacrebleu.BLEU(tokenize='zh' if language == 'zh' else '13a')

  def score(texts, items):
    del items  # BLEU is counted over the whole set alone
    return {'bleu': bleu.corpus_score(texts, _references(records)).score}

  return Scorer(score, lambda: bleu.get_signature().format())


def _chrf(records, language):
  del language
  with packages.required('sacrebleu'):
    import sacrebleu
  chrf = sacrebleu.CHRF()

  def score(texts, items):
    for record, text, item in zip(records, texts, items, strict=True):
      item['chrf'] = chrf.sentence_score(text, record.targets).score
    return {'chrf': chrf.corpus_score(texts, _references(records)).score}

  return Scorer(score, lambda: chrf.get_signature().format())


def _rouge(records, language):
  with packages.required('rouge-score'):
    from rouge_score import rouge_scorer
  names = ['rouge1', 'rouge2', 'rougeL']
  words: Any = _Characters() if language == 'zh' else None
  rouge = rouge_scorer.RougeScorer(names, use_stemmer=True, tokenizer=words)

  def score(texts, items):
    for record, text, item in zip(records, texts, items, strict=True):
      scores = [rouge.score(target, text) for target in record.targets]
      for name in names:
        item[name] = max(x[name].fmeasure for x in scores)
    return results.means(items, *names)

  return Scorer(score)


def _best_of_targets(name, compare):
  def make(records, language):
    def score(texts, items):
      for record, text, item in zip(records, texts, items, strict=True):
        item[name] = max(compare(text, x, language) for x in record.targets)
      return results.means(items, name)

    return Scorer(score)

  return make


class _Characters:
  """Splits texts into characters, where rouge-score asks for words."""

  def tokenize(self, text: str) -> list[str]:
    return [x for x in text if not x.isspace()]


def _references(records) -> Any:
  """Lays targets out as sacrebleu takes them: the n-th targets of all records.

  None stands for a target that a record does not have.
  """
  most = max(len(record.targets) for record in records)
  return [
    [
      record.targets[n] if n < len(record.targets) else None
      for record in records
    ]
    for n in range(most)
  ]


# Each makes `(records, language) -> Scorer`.
METRICS: dict[str, Callable[[Sequence[Any], str], Scorer]] = {
  'bleu': _bleu,
  'chrf': _chrf,
  'rouge': _rouge,
  'exact': _best_of_targets('exact', classification.exact_match),
  'f1': _best_of_targets('f1', classification.overlap),
}
