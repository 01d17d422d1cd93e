"""Reads a published tokenizer as the content of a tokenizer.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.data.tokenizers import tokenizer_json
from lm.interop import tensors


def read(folder: Path) -> dict[str, Any]:
  """Reads tokenizer.json, or makes it from the older files of GPT-2 and BERT.

  Raises:
    ValueError: there is no tokenizer, or it is broken; one line.
  """
  if (folder / 'tokenizer.json').is_file():
    return tensors.read_json(folder / 'tokenizer.json')
  settings = {}
  if (folder / 'tokenizer_config.json').is_file():
    settings = tensors.read_json(folder / 'tokenizer_config.json')
  if (folder / 'vocab.txt').is_file():
    lower = settings.get('do_lower_case', True)
    return tokenizer_json.wordpiece(_lines(folder / 'vocab.txt'), bool(lower))
  if (folder / 'merges.txt').is_file():
    ids = tensors.read_json(folder / 'vocab.json')
    tokens = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in tokens] != list(range(len(tokens))):
      raise ValueError(f'{folder}/vocab.json: its ids are not 0 to n - 1')
    merges = [line for line in _lines(folder / 'merges.txt') if line]
    special = {i for i, t in enumerate(tokens) if t == '<|endoftext|>'}
    return tokenizer_json.byte_level(tokens, merges, special, 'gpt-2')
  raise ValueError(
    f'{folder}: holds no tokenizer.json, nor vocab.txt, nor vocab.json with '
    'merges.txt; save the tokenizer with transformers first'
  )


def special_ids(config: Mapping[str, Any]) -> dict[str, int]:
  """Reads the ids of bos, eos and pad in a config.json.

  A decoder with an encoder has a start token, which is its bos.
  """
  keys = {
    'bos': ('decoder_start_token_id', 'bos_token_id'),
    'eos': ('eos_token_id',),
    'pad': ('pad_token_id',),
  }
  ids: dict[str, int] = {}
  for name, places in keys.items():
    for key in places:
      value = config.get(key)
      value = value[0] if isinstance(value, list) and value else value
      if type(value) is int and value >= 0 and name not in ids:
        ids[name] = value
  return ids


def _lines(path: Path) -> list[str]:
  try:
    # Not splitlines: a token may be another line separator of Unicode.
    return path.read_text(encoding='utf-8').split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{path}: cannot be read ({error})') from error
