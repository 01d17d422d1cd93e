"""Files of words and tags, one word a line: CoNLL and its relatives."""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import NamedTuple

from lm.data import names

# How a tag begins in each of the schemes: IO, IOB1, IOB2 (BIO), IOBES, BILOU,
# BMES, BMEWO.
_TAG = re.compile(r'O|[BIELMSUW](-\S+)?')
_ONE = 'SUW'  # an entity of one word
_LAST = 'EL'  # the last word of an entity
_COMMENTS = 'lines of comments'
_DOCUMENTS = 'lines of -DOCSTART-'


class Sentences(NamedTuple):
  """The sentences of a file.

  Attributes:
    rows: of each sentence, its words and their tags, in BIO.
    counts: of the lines that are in no sentence.
  """

  rows: list[tuple[tuple[str, ...], tuple[str, ...]]]
  counts: Mapping[str, int]


def parse(lines: Sequence[str], *, path: str, word: int, tag: int) -> Sentences:
  """Parses lines of a word and its tag; an empty line ends a sentence.

  If a file has tabs, they alone part its columns, so that a word may hold
  spaces. Else spaces of ASCII do: a no-break space is a part of its word.

  A line that begins with '#' is a comment, unless it has as many columns as
  other lines and a tag among them.

  Args:
    lines: without their ends.
    path: of the file, for errors.
    word: column of the word, from 0 on.
    tag: column of the tag, from 0 on.

  Raises:
    ValueError: a line lacks a column, a word or a tag.
  """
  table = [_blank_to_none(line) for line in lines]
  tabs = any('\t' in line for line in table if line)
  split = [_columns(line, tabs) if line else [] for line in table]
  width = next(
    (len(parts) for parts in split if parts and not parts[0].startswith('#')), 0
  )
  rows: list[list[tuple[str, str]]] = [[]]
  counts = {_DOCUMENTS: 0, _COMMENTS: 0}
  for n, parts in enumerate(split, 1):
    where = f'task {names.short(path)}: line {n}'
    if not parts:
      rows.append([])
    elif parts[0].split(' ')[0] == '-DOCSTART-':
      counts[_DOCUMENTS] += 1
    elif _is_comment(table[n - 1], parts, tag, width):
      counts[_COMMENTS] += 1
    else:
      rows[-1].append(_word_and_tag(parts, word, tag, where))
  sentences = []
  for row in filter(None, rows):
    words, tags = zip(*row, strict=True)
    sentences.append((words, bio(tags)))
  return Sentences(sentences, counts)


def bio(tags: Iterable[str]) -> tuple[str, ...]:
  """Changes tags of any scheme to BIO, where each entity begins with 'B'.

  A tag that continues an entity of another type, or none, begins one.
  """
  result, before = [], 'O'
  for tag in tags:
    kind, rest = tag[0], tag[1:]
    if kind == 'O':
      result.append('O')
      before = 'O'
      continue
    begins = kind == 'B' or kind in _ONE or before[1:] != rest or before == 'O'
    result.append(f'{"B" if begins else "I"}{rest}')
    # After its last word, an entity cannot be continued.
    before = 'O' if kind in _ONE or kind in _LAST else tag
  return tuple(result)


def _blank_to_none(line: str) -> str:
  return line if line.strip(' \t\r') else ''


def _columns(line: str, tabs: bool) -> list[str]:
  if tabs:
    return line.rstrip('\r').split('\t')
  return re.split(r' +', line.strip(' \r'))


def _is_comment(line: str, parts: Sequence[str], tag: int, width: int) -> bool:
  if not line.startswith('#'):
    return False
  has_tag = len(parts) > tag and _TAG.fullmatch(parts[tag].strip(' '))
  return not has_tag or (width > 0 and len(parts) != width)


def _word_and_tag(
  parts: Sequence[str], word: int, tag: int, where: str
) -> tuple[str, str]:
  """Returns the two columns of a line.

  Raises:
    ValueError: one is missing, empty or no tag.
  """
  if len(parts) <= max(word, tag):
    raise ValueError(
      f'{where} has {len(parts)} columns and no column {max(word, tag)}: set '
      'word and tag'
    )
  text, label = parts[word], parts[tag].strip(' ')
  if not text.strip(' '):
    raise ValueError(f'{where} has no word in column {word}: set word and tag')
  if not _TAG.fullmatch(label):
    raise ValueError(
      f'{where}: {names.short(label)} is not a tag such as O, B-PER or I-PER: '
      'set word and tag'
    )
  return text.strip(' '), label
