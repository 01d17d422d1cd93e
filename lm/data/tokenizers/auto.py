"""Loads a tokenizer by its file's name, or trains one, of whichever kind."""

from collections.abc import Iterable

from lm import errors, types
from lm.data.tokenizers import (
  characters,
  files,
  sentencepiece,
  utf8_bytes,
  words,
)

# Kinds that are trained, by the suffix with which `load` knows their files.
KINDS = {
  'bpe': '.model',
  'unigram': '.model',
  'characters': '.json',
  'words': '.json',
}


def load(name: str, reserved: int = 0) -> types.Tokenizer:
  """Loads a tokenizer from `*.model` or `*.json`, or the one named `bytes`.

  A `*.json` is a `tokenizer.json` of Hugging Face where it has a `model`, a
  list of words where it has `words`, and else a list of characters.

  Args:
    name: path of the file, or 'bytes'.
    reserved: number of ids to add at the end of the vocabulary. The first is
      the mask; the others, from the last one downwards, are the sentinels. They
      change no encoding, so the same shards serve any number of them.

  Raises:
    ValueError: the file is missing, broken or of another kind, or the package
      that reads it is not installed.
  """
  if name == 'bytes':
    return utf8_bytes.make(reserved)
  if name.endswith('.model'):
    return sentencepiece.make(name, reserved)
  if files.is_tokenizer_json(name):
    try:
      # The package `tokenizers` is an extra that others need not install.
      from lm.data.tokenizers import huggingface
    except ModuleNotFoundError as e:
      raise files.error(
        name, f'needs the package {e.name}: {errors.install("interop")}'
      ) from e
    return huggingface.make(name, reserved=reserved)
  if name.endswith('.json'):
    if words.is_words(name):
      return words.make(name, reserved)
    return characters.make(name, reserved)
  raise files.error(
    name,
    'unknown kind; give x.model (sentencepiece), x.json (characters, words, '
    "Hugging Face) or the word 'bytes'",
  )


def packages(name: str) -> tuple[str, ...]:
  """Lists the outside packages by which the tokenizer of a name encodes."""
  if name.endswith('.model'):
    return ('sentencepiece',)
  return ('tokenizers',) if files.is_tokenizer_json(name) else ()


def train(
  texts: Iterable[str],
  path: str,
  kind: str = 'bpe',
  *,
  vocab: int | None = None,
  coverage: float = 0.9995,
  max_bytes: int = 1_000_000_000,
  least_count: int = 3,
) -> None:
  """Trains a tokenizer on texts and writes its file.

  The same texts give the same file, byte for byte. All kinds but words, see
  `lm.data.tokenizers.words`, lose no text.

  Args:
    texts: documents.
    path: the file to write, with the suffix of its kind.
    kind: one of `KINDS`.
    vocab: number of pieces, 261 or more; None: 8,192. Characters need none. Of
      words it is the most ids; None: no limit.
    coverage: share of the occurrences of characters that get pieces, from 0.98
      to 1; the rest are spelled by bytes.
    max_bytes: stop reading there, because training holds the text in memory.
    least_count: words that occur more seldom get no id.

  Raises:
    ValueError: the kind is unknown, the name has another suffix, a setting is
      out of range, or the vocabulary does not fit the texts.
    OSError: the file cannot be written.
  """
  if kind not in KINDS:
    raise ValueError(f'kind={kind!r}: unknown; give one of {", ".join(KINDS)}')
  if not path.endswith(KINDS[kind]):
    raise ValueError(
      f'output: a {kind} tokenizer is loaded by its suffix {KINDS[kind]}; end '
      'the name in it'
    )
  if kind == 'characters':
    characters.train(texts, path)
  elif kind == 'words':
    words.train(texts, path, vocab=vocab, least_count=least_count)
  else:
    sentencepiece.train(
      texts,
      path,
      8192 if vocab is None else vocab,
      kind,
      coverage=coverage,
      max_bytes=max_bytes,
    )
