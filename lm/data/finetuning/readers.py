"""Readers of labelled data sets, which a config names.

A reader is a function of `path`. It returns the records of one kind, the card
of their data set, and the labels that occur. `lm.data.finetuning.tasks` makes
batches of them for training; `lm.evals.classification` and
`lm.evals.generation` evaluate models on them.
"""

from collections.abc import Iterable, Sequence
import csv
import io
import re

from lm.data import names
from lm.data.finetuning import record_files
from lm.data.finetuning import records as record_lib

_TAG = re.compile(r'O|[BI]-\S+')


def texts(
  *,
  path: str,
  fields: Sequence[str] = ('text',),
  label: str = 'label',
  name: str = 'texts',
) -> record_lib.Records:
  """Reads texts and their classes from any JSON lines.

  Args:
    path: of a file, packed by gzip where its name ends in '.gz', or a pattern.
    fields: the field of the text, or those of both texts of a pair.
    label: the field of the class.
    name: of the data set, for its card.

  Raises:
    ValueError: the file is missing or damaged, or lacks a field.
  """

  def record(row, n):
    return record_lib.Text(
      f'{name}/{n}', tuple(str(row[x]) for x in fields), str(row[label])
    )

  return record_lib.collect(
    name, path, 'accuracy', record_files.json_lines(path), record
  )


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
  rows = [
    x
    for x in record_files.json_lines(path)
    if folds is None or x.get('fold') in folds
  ]

  def record(row, n):
    return record_lib.Text(f'movie_reviews/{n}', (row['text'],), row['label'])

  return record_lib.collect('movie_reviews', path, 'accuracy', rows, record)


def banking77(*, path: str) -> record_lib.Records:
  """Reads customers' questions of 77 classes; Casanueva et al. 2020.

  Reference: arXiv 2003.04807. See `texts`.
  """
  rows = list(csv.DictReader(io.StringIO(record_files.text(path), newline='')))

  def record(row, n):
    return record_lib.Text(f'banking77/{n}', (row['text'],), row['category'])

  return record_lib.collect('banking77', path, 'accuracy', rows, record)


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
  rows = [*splits.get(split, ())]
  if scope == 'all':
    rows += splits.get(f'oos_{split}', ())

  def record(row, n):
    return record_lib.Text(f'clinc150/{split}/{n}', (row[0],), row[1])

  return record_lib.collect('clinc150', path, 'accuracy', rows, record)


def ocnli(*, path: str) -> record_lib.Records:
  """Reads Chinese pairs of sentences for natural language inference.

  Hu et al. 2020, arXiv 2010.05444. Labels are 'entailment', 'neutral' and
  'contradiction'; pairs on which the annotators did not agree, with label '-',
  are left out. See `texts`.
  """
  rows = [
    row for row in record_files.json_lines(path) if row.get('label') != '-'
  ]

  def record(row, n):
    pair = row['sentence1'], row['sentence2']
    return record_lib.Text(f'ocnli/{row["id"]}', pair, row['label'])

  return record_lib.collect('ocnli', path, 'accuracy', rows, record)


def boolq(*, path: str) -> record_lib.Records:
  """Reads questions, and passages that answer them by 'yes' or 'no'.

  Clark et al. 2019, arXiv 1905.10044. See `texts`.
  """

  def record(row, n):
    label = 'yes' if row['answer'] else 'no'
    return record_lib.Text(
      f'boolq/{n}', (row['question'], row['passage']), label
    )

  return record_lib.collect(
    'boolq', path, 'accuracy', record_files.json_lines(path), record
  )


def conll(
  *,
  path: str,
  word: int = 0,
  tag: int = 1,
  name: str = 'conll',
) -> record_lib.Records:
  """Reads lines of a word and its tag; an empty line ends a sentence.

  Tags in IO, where an entity may begin with 'I-', become BIO. Comments, which
  begin with '#', and the line '-DOCSTART-' are left out.

  Args:
    path: of a file, packed by gzip where its name ends in '.gz'.
    word: column of the word, from 0 on.
    tag: column of the tag, from 0 on.
    name: of the data set, for its card.

  Raises:
    ValueError: the file is missing or damaged, or a line lacks a column.
  """
  rows: list[list[list[str]]] = [[]]
  for n, line in enumerate(record_files.text(path).split('\n')):
    parts = line.split()
    if not parts:
      rows.append([])
    elif line.startswith('#') and len(parts) != tag + 1:
      continue
    elif parts[0] != '-DOCSTART-':
      if len(parts) <= max(word, tag):
        raise ValueError(
          f'task {names.short(path)}: line {n + 1} has {len(parts)} columns '
          f'and no column {max(word, tag)}: set word and tag'
        )
      if not _TAG.fullmatch(parts[tag]):
        raise ValueError(
          f'task {names.short(path)}: line {n + 1}: {names.short(parts[tag])} '
          'is not a tag such as O, B-PER or I-PER: set word and tag'
        )
      rows[-1].append([parts[word], parts[tag]])

  def record(row, n):
    words, tags = zip(*row, strict=True)
    return record_lib.Sentence(f'{name}/{n}', words, bio(tags))

  return record_lib.collect(
    name, path, 'f1', [row for row in rows if row], record
  )


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

  An answer that is not at its stated place is searched in the passage. Answers
  that are not in the passage are left out, and so are questions without any.

  Raises:
    ValueError: the file is missing, damaged or not in the form of SQuAD.
  """

  def record(row, n):
    passage, question = row
    answers = []
    for answer in question['answers']:
      start, text = answer['answer_start'], answer['text']
      if passage[start : start + len(text)] != text:
        start = passage.find(text)
      if text and start >= 0:
        answers.append((start, text))
    return record_lib.Reading(
      f'{name}/{question["id"]}', question['question'], passage, tuple(answers)
    )

  try:
    rows = [
      (paragraph['context'], question)
      for article in record_files.json_value(path, name)['data']
      for paragraph in article['paragraphs']
      for question in paragraph['qas']
    ]
  except (KeyError, TypeError) as e:
    raise ValueError(
      f'task {names.short(path)}: not in the form of SQuAD ({e!r})'
    ) from e
  result = record_lib.collect(name, path, 'f1', rows, record)
  return result._replace(records=[r for r in result.records if r.answers])


def cmrc2018(*, path: str) -> record_lib.Records:
  """Reads Chinese questions about passages; see `squad`.

  Reference: Cui et al. 2019, arXiv 1810.07366.
  """
  return squad(path=path, name='cmrc2018')


def drcd(*, path: str) -> record_lib.Records:
  """Reads questions about passages in traditional Chinese; see `squad`.

  Reference: Shao et al. 2018, arXiv 1806.00920.
  """
  return squad(path=path, name='drcd')


def bio(tags: Iterable[str]) -> tuple[str, ...]:
  """Changes tags in IO to BIO: each entity begins with 'B-'."""
  result, before = [], 'O'
  for tag in tags:
    if tag.startswith('I-') and before[2:] != tag[2:]:
      tag = f'B-{tag[2:]}'
    result.append(tag)
    before = tag
  return tuple(result)
