"""Readers of labelled data sets, which a config names.

A reader is a function of `path`. It returns the records of one kind, the card
of their data set, and the labels that occur. `lm.data.finetuning.tasks` makes
batches of them for training; `lm.evals.classification` and
`lm.evals.generation` evaluate models on them.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lm.data.finetuning import conll_files, record_files, squad_files
from lm.data.finetuning import fields as field_lib
from lm.data.finetuning import records as record_lib


def texts(
  *,
  path: str,
  fields: Sequence[str] = ('text',),
  label: str = 'label',
  name: str = 'texts',
) -> record_lib.Records:
  """Reads texts and their classes from any table or JSON.

  Args:
    path: of a file, or a pattern; see `records.rows`.
    fields: the field of the text, or those of both texts of a pair.
    label: the field of the class: a text or a whole number.
    name: of the data set, for its card.

  Raises:
    ValueError: the file is missing or damaged, or lacks a field.
  """
  if not fields:
    raise ValueError('texts: fields is empty: name the field of the text')

  def record(row, n):
    return record_lib.Text(
      f'{name}/{n}',
      tuple(field_lib.text(row, x) for x in fields),
      field_lib.label(row, label),
    )

  rows = record_lib.rows(path, name, (*fields, label))
  return record_lib.collect(name, path, 'accuracy', rows, record)


def sentence_polarity(*, path: str) -> record_lib.Records:
  """Reads sentences of film reviews, 'neg' or 'pos'.

  Pang and Lee 2005, arXiv cs/0506075. See `texts`.
  """
  return texts(path=path, name='sentence_polarity')


def subjectivity(*, path: str) -> record_lib.Records:
  """Reads sentences, 'objective' or 'subjective'.

  Pang and Lee 2004, arXiv cs/0409058. See `texts`.
  """
  return texts(path=path, name='subjectivity')


def movie_reviews(
  *, path: str, folds: Sequence[int] | None = None
) -> record_lib.Records:
  """Reads whole film reviews, 'neg' or 'pos', of some of their ten folds.

  Pang and Lee 2004, arXiv cs/0409058. Folds of None are all. See `texts`.
  """
  if folds is not None and not folds:
    raise ValueError('movie_reviews: folds is empty: give some of 0 to 9')

  def record(row, n):
    if folds is not None and field_lib.integer(row, 'fold') not in folds:
      return record_lib.LeftOut('reviews of other folds')
    text, label = field_lib.text(row, 'text'), field_lib.label(row, 'label')
    return record_lib.Text(f'movie_reviews/{n}', (text,), label)

  rows = record_lib.rows(path, 'movie_reviews')
  return record_lib.collect('movie_reviews', path, 'accuracy', rows, record)


def banking77(*, path: str) -> record_lib.Records:
  """Reads customers' questions of 77 classes; Casanueva et al. 2020.

  Reference: arXiv 2003.04807. See `texts`.
  """
  return texts(path=path, label='category', name='banking77')


def clinc150(*, path: str, split: str, scope: str = 'in') -> record_lib.Records:
  """Reads requests of 150 classes; Larson et al. 2019, arXiv 1909.02027.

  Args:
    path: of data_full.json.
    split: 'train', 'val' or 'test'.
    scope: 'all' includes the requests that belong to no class, whose label is
      'oos'; 'in' leaves them out.

  Raises:
    ValueError: see `texts`; or split or scope is unknown.
  """
  if split not in ('train', 'val', 'test') or scope not in ('in', 'all'):
    raise ValueError(
      f"clinc150: split={split!r} is not 'train', 'val' or 'test', or "
      f"scope={scope!r} is not 'in' or 'all'"
    )
  splits = record_files.json_value(path, 'clinc150')
  with record_lib.checked(path, 'clinc150'):
    rows = field_lib.entries(splits, split)
    outside = []
    if field_lib.present(splits, f'oos_{split}'):
      outside = field_lib.entries(splits, f'oos_{split}')

  def record(row, n):
    text, label = field_lib.text(row, 0), field_lib.label(row, 1)
    return record_lib.Text(f'clinc150/{split}/{n}', (text,), label)

  if scope == 'all':
    rows = rows + outside
  result = record_lib.collect('clinc150', path, 'accuracy', rows, record)
  if scope == 'all':
    return result
  return result._replace(counts={'requests of no class': len(outside)})


def ocnli(*, path: str) -> record_lib.Records:
  """Reads Chinese pairs of sentences for natural language inference.

  Hu et al. 2020, arXiv 2010.05444. Labels are 'entailment', 'neutral' and
  'contradiction'; pairs on which the annotators did not agree, with label '-',
  are left out. See `texts`.
  """

  def record(row, n):
    label = field_lib.label(row, 'label')
    if label == '-':
      return record_lib.LeftOut('pairs on which the annotators do not agree')
    pair = tuple(field_lib.text(row, x) for x in ('sentence1', 'sentence2'))
    return record_lib.Text(f'ocnli/{field_lib.label(row, "id")}', pair, label)

  rows = record_lib.rows(path, 'ocnli')
  return record_lib.collect('ocnli', path, 'accuracy', rows, record)


def boolq(*, path: str) -> record_lib.Records:
  """Reads questions, and passages that answer them by 'yes' or 'no'.

  Clark et al. 2019, arXiv 1905.10044. See `texts`.
  """

  def record(row, n):
    pair = tuple(field_lib.text(row, x) for x in ('question', 'passage'))
    label = 'yes' if field_lib.truth(row, 'answer') else 'no'
    return record_lib.Text(f'boolq/{n}', pair, label)

  rows = record_lib.rows(path, 'boolq')
  return record_lib.collect('boolq', path, 'accuracy', rows, record)


def conll(
  *,
  path: str,
  word: int = 0,
  tag: int = 1,
  name: str = 'conll',
) -> record_lib.Records:
  """Reads lines of a word and its tag; an empty line ends a sentence.

  Tags in IO, IOB1, IOBES, BILOU and BMES become BIO; they may have no types.
  Lines of comments, which begin with '#', and of '-DOCSTART-' are counted and
  left out. See `conll_files.parse`.

  Args:
    path: of a file.
    word: column of the word, from 0 on.
    tag: column of the tag, from 0 on.
    name: of the data set, for its card.

  Raises:
    ValueError: the file is missing or damaged, or a line lacks a column.
  """
  parsed = conll_files.parse(
    record_files.lines(path), path=path, word=word, tag=tag
  )

  def record(row, n):
    return record_lib.Sentence(f'{name}/{n}', *row)

  result = record_lib.collect(name, path, 'f1', parsed.rows, record)
  return result._replace(counts=parsed.counts)


def wnut17(*, path: str) -> record_lib.Records:
  """Reads sentences with rare entities; Derczynski et al. 2017. See `conll`."""
  return conll(path=path, name='wnut17')


def wikigold(*, path: str) -> record_lib.Records:
  """Reads sentences of Wikipedia with their entities; see `conll`.

  Reference: Balasuriya et al. 2009.
  """
  return conll(path=path, name='wikigold')


def uner_zh(*, path: str) -> record_lib.Records:
  """Reads Chinese sentences with their entities; see `conll`.

  Reference: Mayhew et al. 2024, arXiv 2311.09122.
  """
  return conll(path=path, word=1, tag=2, name='uner_zh')


def squad(*, path: str, name: str = 'squad') -> record_lib.Records:
  """Reads questions about passages; Rajpurkar et al. 2016, arXiv 1606.05250.

  An answer that is not at its stated place is searched in the passage: where it
  occurs nearest to that place. Answers that are not in the passage are counted
  and left out, and so are questions that have others only. Questions that the
  passage does not answer, as in SQuAD 2.0 (Rajpurkar et al. 2018, arXiv
  1806.03822), are records without answers.

  Raises:
    ValueError: the file is missing, damaged or not in the form of SQuAD.
  """
  return _squad(path, name)


def flat_squad(*, path: str, name: str = 'squad') -> record_lib.Records:
  """Reads questions about passages, one a row, as Hugging Face stores SQuAD.

  A row has `id`, `context`, `question` and `answers`, which has the lists
  `text` and `answer_start`; both are empty if the passage has no answer. See
  `squad`, and `records.rows` for the file.

  Raises:
    ValueError: the file is missing or damaged, or a row lacks a field.
  """
  rows = record_lib.rows(path, name)
  return _readings(path, name, rows, lambda row: squad_files.Row(row, row))


def cmrc2018(*, path: str) -> record_lib.Records:
  """Reads Chinese questions about passages; see `squad`.

  An offset of -1 marks an answer that is not in the passage as it is written.

  Reference: Cui et al. 2019, arXiv 1810.07366.
  """
  return _squad(path, 'cmrc2018', no_place=-1)


def drcd(*, path: str) -> record_lib.Records:
  """Reads questions about passages in traditional Chinese; see `squad`.

  Reference: Shao et al. 2018, arXiv 1806.00920.
  """
  return squad(path=path, name='drcd')


def _squad(
  path: str, name: str, no_place: int | None = None
) -> record_lib.Records:
  data = record_files.json_value(path, name)
  with record_lib.checked(path, name):
    rows = list(squad_files.nested(data))
  return _readings(path, name, rows, lambda row: row, no_place)


def _readings(
  path: str,
  name: str,
  rows: Iterable[Any],
  question: Callable[[Any], squad_files.Row],
  no_place: int | None = None,
) -> record_lib.Records:
  absent: collections.Counter[str] = collections.Counter()

  def record(row, n):
    return squad_files.reading(question(row), name, absent, no_place)

  result = record_lib.collect(name, path, 'f1', rows, record)
  return result._replace(counts={**result.counts, **absent})
