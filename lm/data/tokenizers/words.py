r"""Tokenizers of whole words, with a closed vocabulary, as WikiText-2 is read.

A word is what stands between white space, in the sense of `str.split`. Every
line end '\n' is an id too: the `<eos>` that PyTorch's word_language_model and
AWD-LSTM put after a sentence or paragraph. It is another id than `eos`, which
ends a document and never stands in a text. A word outside the vocabulary is the
unknown id, and so is the word `<unk>` in a text, such as WikiText's files have.

So wiki.test.tokens has 241,211 words and 4,358 line ends: 245,569 ids, which
published perplexities divide by, and one `eos` more for each document.
`lm.evals.likelihood` with words=245_569 gives exp(total nats / 245,569), and
counts the nats of the ends of documents in the total.

Ids 0, 1 and 2 are pad, eos and bos, 3 is the line end, 4 the unknown word, and
those of the words follow, the most frequent first.

Unknown words and the width of white space are lost, so a tokenizer is not
`lossless`. A text of known words in the layout of the training text comes back
exactly: words apart by one space, and either a space at the beginning and the
end of each line, as in WikiText, or none.
"""

from collections import Counter
from collections.abc import Iterable
import hashlib
import json
from typing import NamedTuple

from lm import types
from lm.data.tokenizers import files, vocabulary

LINE_END, UNKNOWN = 3, 4
FIRST = 5  # id of the most frequent word
UNKNOWN_WORD = '<unk>'


class Words(NamedTuple):
  """The content of a tokenizer's file.

  Attributes:
    words: in the order of their ids, `UNKNOWN_WORD` left out.
    padded: whether a line begins and ends with a space, as in WikiText.
  """

  words: tuple[str, ...]
  padded: bool


def make(path: str, reserved: int = 0) -> types.Tokenizer:
  """Loads a tokenizer of words that `train` wrote.

  Args:
    path: of the file, `*.json`.
    reserved: number of ids to add, see `lm.data.tokenizers.auto.load`.

  Raises:
    ValueError: the file is missing or is not a list of words.
  """
  vocabulary.check_reserved(reserved)
  data = files.read(path)
  words, padded = _parse(path, data)
  id_of = {word: FIRST + n for n, word in enumerate(words)}
  line_end = ' \n' if padded else '\n'
  pieces = ['', '', '', line_end, *(f' {x}' for x in (UNKNOWN_WORD, *words))]
  word_starts = vocabulary.word_starts([x.encode() for x in pieces], reserved)
  pieces += [''] * reserved

  def encode(text: str) -> list[int]:
    ids: list[int] = []
    for line in vocabulary.checked_text(text).split('\n'):
      ids += [id_of.get(word, UNKNOWN) for word in line.split()]
      ids.append(LINE_END)
    return ids[:-1]

  def decode_next(ids: list[int]) -> str:
    vocabulary.check_ids(ids, len(pieces))
    text = ''.join([pieces[i] for i in ids])
    return text if padded else text.replace('\n ', '\n')

  def decode(ids: list[int]) -> str:
    text = decode_next(ids)
    return text if padded else text.removeprefix(' ')

  mask, sentinels = vocabulary.reserved_ids(len(pieces), reserved)
  return types.Tokenizer(
    encode=encode,
    encode_batch=lambda texts: [encode(text) for text in texts],
    decode=decode,
    decode_next=decode_next,
    size=len(pieces),
    bos=vocabulary.BOS,
    eos=vocabulary.EOS,
    ends=(vocabulary.EOS,),
    pad=vocabulary.PAD,
    sha256=hashlib.sha256(data).hexdigest(),
    reserved=reserved,
    mask=mask,
    sentinels=sentinels,
    word_starts=word_starts,
    lossless=False,
  )


def train(
  texts: Iterable[str],
  path: str,
  *,
  vocab: int | None = None,
  least_count: int = 3,
) -> None:
  """Writes the frequent words of `texts` as a tokenizer of words.

  The same texts give the same file, byte for byte, in whatever order they come.

  Args:
    texts: documents.
    path: the file to write, `*.json`.
    vocab: most ids, the 5 that come before the words included: of equally
      frequent words, those that come first by code point are kept. None: no
      limit.
    least_count: a word that occurs more seldom is left out, so that a model
      learns what the unknown word means. 3 is WikiText's.

  Raises:
    ValueError: a setting is out of range, or no word is frequent enough.
  """
  if vocab is not None and (type(vocab) is not int or vocab <= FIRST):
    raise ValueError(
      f'vocab={vocab!r:.40}: give a whole number from {FIRST + 1} (5 special '
      'ids and a word), or none for all words'
    )
  if type(least_count) is not int or least_count < 1:
    raise ValueError(
      f'least_count={least_count!r:.40}: give a whole number above 0'
    )
  counts: Counter[str] = Counter()
  padded = 0  # lines with a space at both ends, less the other ones
  for text in texts:
    for line in vocabulary.checked_text(text).split('\n'):
      counts.update(line.split())
      if line:
        padded += 1 if line[0] == ' ' == line[-1] else -1
  del counts[UNKNOWN_WORD]
  kept = [word for word, n in counts.items() if n >= least_count]
  kept.sort(key=lambda word: (-counts[word], word))
  if vocab is not None:
    del kept[vocab - FIRST :]
  if not kept:
    raise files.error(
      path,
      f'no word occurs {least_count} times; give more text, or another '
      'least_count',
    )
  body = json.dumps({'padded': padded > 0, 'words': kept}, ensure_ascii=False)
  files.write(path, body.encode() + b'\n')


def is_words(path: str) -> bool:
  """Tells whether a file is that of a tokenizer of words.

  Raises:
    ValueError: the file cannot be read.
  """
  data = files.read(path)
  try:
    tree = json.loads(data)
  except (ValueError, RecursionError):
    return False
  return isinstance(tree, dict) and 'words' in tree


def read(path: str) -> Words:
  """Reads the words of a tokenizer, in the order of their ids.

  Raises:
    ValueError: the file is missing or is not a list of words.
  """
  return _parse(path, files.read(path))


def _parse(path: str, data: bytes) -> Words:
  """Reads and checks the content of a file."""
  try:
    tree = json.loads(data)
    words, padded = tree['words'], tree['padded']
    ' '.join(words).encode()  # fails for what is not Unicode text
    is_good = (
      isinstance(words, list)
      and type(padded) is bool
      and 0 < len(words) <= vocabulary.MOST
      and len({*words, UNKNOWN_WORD}) == len(words) + 1
      and all(word.split() == [word] for word in words)
    )
  except (ValueError, KeyError, TypeError, RecursionError):
    is_good, words, padded = False, [], False
  if not is_good:
    raise files.error(
      path,
      'not a list of distinct words; write it again with '
      "lm.data.prepare.train_tokenizer, kind='words'",
    )
  return Words(tuple(words), padded)
