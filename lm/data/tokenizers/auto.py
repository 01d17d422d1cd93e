"""Loads a tokenizer by its file's name, of whichever kind it is."""

from lm import errors, types
from lm.data.tokenizers import (
  characters,
  files,
  sentencepiece,
  utf8_bytes,
  words,
)


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
