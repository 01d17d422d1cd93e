"""Real texts of the shared data folder, and ways to change them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
import contextlib
import gzip
import itertools
import json
from pathlib import Path
from random import Random
import re
from typing import IO

# Prose, technical text, Chinese, reviews and web pages.
SOURCES = (
  'lm_en/gutenberg/train.jsonl.gz',
  'lm_en/peps/train.jsonl.gz',
  'lm_zh/novels/train.jsonl.gz',
  'lm_zh/wiki_passages/train.jsonl.gz',
  'classification/movie_reviews_v2/all.jsonl.gz',
  'lm_en/wikitext2/wiki.train.tokens.gz',
  'lm_en/web_demo/c4_demo.jsonl',
  'lm_en/tinystories_sample/tinystories_head.txt',
)
_PIECE = re.compile('([A-Za-z]+)')
_CHINESE = re.compile('[\u3400-\u9fff]')
_KEPT = 200_000  # tokens between spaces: 30 MB


def documents(root: Path, random: Random) -> Iterator[str]:
  """Yields documents of all sources in turns, until each has been read.

  A document is a run of whole lines of a text, of 0.6 to 12 KB.

  Raises:
    ValueError: a source is not there.
  """
  for name in SOURCES:
    if not (root / name).exists():
      raise ValueError(
        f'{root / name} is not there: set LM_DATA to the folder of the data'
      )
  with contextlib.ExitStack() as files:
    turns = [
      _cut(_texts(files.enter_context(open_text(root / name)), name), random)
      for name in SOURCES
    ]
    while turns:
      for source in list(turns):
        if (text := next(source, None)) is None:
          turns.remove(source)
        else:
          yield text


def open_text(path: Path) -> IO[str]:
  """Opens a text file, compressed or not."""
  if path.suffix == '.gz':
    return gzip.open(path, 'rt', encoding='utf-8')
  return path.open(encoding='utf-8')


def _texts(file: IO[str], name: str) -> Iterator[Iterable[str]]:
  """Yields the lines of each text of a file."""
  if '.jsonl' not in name:
    yield (line.rstrip('\n') for line in file)
    return
  for line in file:
    text = json.loads(line)['text']
    if isinstance(text, str):
      yield text.split('\n')


def _cut(given: Iterable[Iterable[str]], random: Random) -> Iterator[str]:
  for lines in given:
    piece: list[str] = []
    size, wanted = 0, _wanted(random)
    for line in lines:
      piece.append(line)
      size += len(line.encode()) + 1
      if size >= wanted:
        yield '\n'.join(piece)
        piece, size, wanted = [], 0, _wanted(random)
    if size > 400:
      yield '\n'.join(piece)


def _wanted(random: Random) -> float:
  """Draws the bytes of a document, about as web pages have."""
  return min(12_000, max(600, random.lognormvariate(7.6, 0.6)))


class Vocabulary:
  """The words of documents in lower case, most frequent first.

  Attributes:
    words: in Latin letters.
    characters: Chinese ones.
  """

  def __init__(self, given: Iterable[str]):
    words: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for text in given:
      words.update(_PIECE.findall(text.lower()))
      if not text.isascii():
        characters.update(_CHINESE.findall(text))
    self.words = _by_count(words)
    self.characters = _by_count(characters)


def _by_count(counts: Counter[str]) -> list[str]:
  return sorted(counts, key=lambda x: (-counts[x], x))


class Substitution(dict[str, str]):
  """Maps words to words of about the same frequency.

  It gives a corpus the look of another one: each word becomes the same word
  everywhere, and the most frequent words stay, so that rules of quality find
  what they found before. Words keep their capitals.
  """

  def __init__(self, vocabulary: Vocabulary, random: Random):
    super().__init__()
    self._words = _shuffled(vocabulary.words, 150, 2000, random)
    self._characters = {
      ord(a): b
      for a, b in _shuffled(vocabulary.characters, 50, 300, random).items()
    }

  def __missing__(self, token: str) -> str:
    if len(self) > _KEPT:
      self.clear()
    self[token] = result = _PIECE.sub(self._replaced, token)
    return result

  def _replaced(self, match: re.Match[str]) -> str:
    word = match[0]
    result = self._words.get(word.lower())
    if result is None:
      return word
    if word[0].isupper():
      return result.upper() if word[1:].isupper() else result.capitalize()
    return result

  def apply(self, text: str) -> str:
    """Replaces the words of a text."""
    if not text.isascii() and _CHINESE.search(text):
      return _PIECE.sub(self._replaced, text.translate(self._characters))
    # Between spaces there are few different tokens, which are kept.
    return '\n'.join(
      ' '.join([self[x] for x in line.split(' ')]) for line in text.split('\n')
    )


def _shuffled(
  words: Sequence[str], keep: int, step: int, random: Random
) -> dict[str, str]:
  """Maps words to others by shuffling blocks of neighbours in frequency."""
  result: dict[str, str] = {}
  for start in range(keep, len(words), step):
    block = words[start : start + step]
    other = list(block)
    random.shuffle(other)
    result.update(zip(block, other, strict=True))
  return result


def mutate(
  text: str, rate: float, vocabulary: Vocabulary, random: Random
) -> str:
  """Replaces words and Chinese characters by others, each with this rate."""
  pieces = re.split('([A-Za-z]+|[\u3400-\u9fff])', text)
  for n in range(1, len(pieces), 2):
    if random.random() < rate:
      is_latin = pieces[n].isascii()
      choices = vocabulary.words if is_latin else vocabulary.characters
      pieces[n] = random.choice(choices)
  return ''.join(pieces)


def wrap(text: str, width: int) -> str:
  """Breaks lines anew at spaces; a longer word has a line of its own."""
  lines: list[str] = []
  line: list[str] = []
  size = 0
  for word in text.replace('\n', ' ').split(' '):
    if line and size + len(word) > width:
      lines.append(' '.join(line))
      line, size = [], 0
    line.append(word)
    size += len(word) + 1
  return '\n'.join([*lines, ' '.join(line)])


def jaccard(one: Sequence[str], other: Sequence[str], n: int = 5) -> float:
  """Computes the Jaccard similarity of the sets of n-grams of two texts.

  Args:
    one: words of a text.
    other: words of the other.
    n: words in a gram; a shorter text is one gram.
  """
  a, b = (
    set(zip(*(itertools.islice(x, i, None) for i in range(n)), strict=False))
    if len(x) >= n
    else {tuple(x)}
    for x in (one, other)
  )
  shared = len(a & b)
  return shared / (len(a) + len(b) - shared)
