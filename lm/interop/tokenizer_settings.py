"""Reads the settings that lie beside the files of a published tokenizer.

These are tokenizer_config.json, special_tokens_map.json and added_tokens.json.
A setting that can change the ids of a text is obeyed, or refused by its key.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lm.data.tokenizers import tokenizer_json, tokenizer_json_reader
from lm.interop import tensors

CONFIG = 'tokenizer_config.json'
_MAP, _ADDED = 'special_tokens_map.json', 'added_tokens.json'
_ROLES = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')
_LISTS = ('additional_special_tokens', 'extra_special_tokens')
# Settings of padding, of ids around a text, of decoding and of programs. None
# changes the ids of a text by itself.
_NEUTRAL = frozenset(
  (
    'add_bos_token',
    'add_eos_token',
    'added_tokens_decoder',
    'backend',
    'chat_template',
    'clean_up_tokenization_spaces',
    'extra_ids',
    'is_local',
    'legacy',
    'local_files_only',
    'max_length',
    'max_len',
    'model_input_names',
    'model_max_length',
    'model_specific_special_tokens',
    'name_or_path',
    'pad_to_multiple_of',
    'pad_token_type_id',
    'padding',
    'padding_side',
    'processor_class',
    'response_schema',
    'return_token_type_ids',
    'special_tokens_map_file',
    'spaces_between_special_tokens',
    'split_special_tokens',
    'stride',
    'tokenizer_class',
    'tokenizer_file',
    'transformers_version',
    'trim_offsets',
    'truncation',
    'truncation_side',
    'truncation_strategy',
    'use_fast',
    *_LISTS,
    *(f'{role}_token' for role in _ROLES),
    *(f'{role}_token_id' for role in _ROLES),
  )
)


class Settings(NamedTuple):
  """The settings beside a tokenizer.

  Attributes:
    folder: of the files.
    config: the content of tokenizer_config.json.
    roles: special tokens by their role, such as 'bos'.
    special: all special tokens.
    added: tokens that are matched in text before the model runs, by id; each is
      an entry of a `tokenizer.json`.
  """

  folder: Path
  config: dict[str, Any]
  roles: dict[str, str]
  special: set[str]
  added: dict[int, dict[str, Any]]


def read(folder: Path) -> Settings:
  """Reads the files that are there.

  Raises:
    ValueError: a file is broken; one line.
  """

  def content(name):
    path = folder / name
    return tensors.read_json(path) if path.is_file() else {}

  config = content(CONFIG)
  roles, special = {}, set()
  for tree in (content(_MAP), config):
    for role in _ROLES:
      if tree.get(f'{role}_token') is not None:
        roles[role] = _text(folder, f'{role}_token', tree[f'{role}_token'])
    for key in _LISTS:
      listed = tree.get(key) or ()
      listed = listed.values() if isinstance(listed, Mapping) else listed
      if not isinstance(listed, Collection) or isinstance(listed, str):
        raise ValueError(f'{folder}: {key}={listed!r:.40}: must be a list')
      special |= {_text(folder, key, x) for x in listed}
  special |= {*roles.values()}
  added = {}
  for token, i in content(_ADDED).items():
    added[_id(folder, _ADDED, i)] = _entry(i, token, token in special)
  decoder = config.get('added_tokens_decoder') or {}
  if not isinstance(decoder, Mapping):
    raise ValueError(f'{folder / CONFIG}: added_tokens_decoder: no object')
  for key, token in decoder.items():
    i = _id(folder, 'added_tokens_decoder', key)
    text = _text(folder, f'added_tokens_decoder.{key}', token)
    entry = _entry(i, text, text in special)
    if isinstance(token, Mapping):
      flags = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
      entry |= {k: bool(token[k]) for k in flags if k in token}
    added[i] = entry
  return Settings(folder, config, roles, special, added)


def check_class(settings: Settings, known: Collection[str]) -> None:
  """Checks the class that the settings name, if they name one.

  Raises:
    ValueError: it is another one than the files' own.
  """
  name = settings.config.get('tokenizer_class')
  custom = settings.config.get('auto_map')
  if custom or (name is not None and name not in known):
    key = 'auto_map' if custom else 'tokenizer_class'
    raise ValueError(
      f'{settings.folder / CONFIG}: {key}={custom or name!r:.60} is not read '
      'from these files: save the tokenizer as tokenizer.json'
    )


def check_keys(
  settings: Settings, obeyed: Collection[str], fixed: Mapping[str, Any]
) -> None:
  """Refuses settings that may change ids and are not obeyed.

  Args:
    settings: see `Settings`.
    obeyed: keys that the caller obeys.
    fixed: by key, values that are supported beside null.

  Raises:
    ValueError: a key has another value, or is unknown; one line.
  """
  for key, value in settings.config.items():
    if key in _NEUTRAL or key in obeyed or value is None:
      continue
    if key not in fixed or (value != fixed[key] and value not in ([], {})):
      raise ValueError(
        f'{settings.folder / CONFIG}: {key}={value!r:.40} is not supported: '
        'save the tokenizer as tokenizer.json'
      )


def flag(settings: Settings, key: str, default: bool | None) -> bool | None:
  """Reads a bool that may be null.

  Raises:
    ValueError: the value is neither.
  """
  value = settings.config.get(key, default)
  if not isinstance(value, bool | None):
    raise ValueError(
      f'{settings.folder / CONFIG}: {key}={value!r:.40}: must be true or false'
    )
  return default if value is None else value


def add_tokens(
  settings: Settings, tree: tokenizer_json.Tree, *, strict: bool
) -> None:
  """Adds tokens to the content of a `tokenizer.json`, and marks special ones.

  Args:
    settings: see `Settings`.
    tree: is changed.
    strict: whether each special token must have an id.

  Raises:
    ValueError: a token has another id in the files, or none.
  """
  pieces = tokenizer_json_reader.pieces_of(tree)
  have = {t['id']: t for t in tokenizer_json_reader.added_tokens(tree)}
  for i, entry in sorted(settings.added.items()):
    if pieces.get(i, entry['content']) != entry['content']:
      raise ValueError(
        f'{settings.folder}: the added token {entry["content"]!r:.40} has id '
        f'{i}, which is {pieces[i]!r:.40} in the vocabulary'
      )
    have[i] = entry
    pieces[i] = entry['content']
  ids = {piece: i for i, piece in pieces.items()}
  for text in sorted(settings.special):
    if text in ids:
      i = ids[text]
      have[i] = {**have.get(i, _entry(i, text, True)), 'special': True}
    elif strict:
      raise ValueError(
        f'{settings.folder}: the special token {text!r:.40} is not in the '
        f'vocabulary: give its id in {_ADDED}'
      )
  tree['added_tokens'] = [have[i] for i in sorted(have)]


def _entry(i: int, text: str, special: bool) -> dict[str, Any]:
  # What is not special is searched for in the normalized text.
  return tokenizer_json.token(i, text, special) | {'normalized': not special}


def _text(folder: Path, key: str, token: Any) -> str:
  """Reads a token: its text, or an object with its `content`."""
  text = token.get('content') if isinstance(token, Mapping) else token
  if not isinstance(text, str) or not text:
    raise ValueError(f'{folder}: {key}={token!r:.40}: is no token')
  return text


def _id(folder: Path, key: str, value: Any) -> int:
  if isinstance(value, str) and value.isascii() and value.isdigit():
    value = int(value)
  if type(value) is not int or value < 0:
    raise ValueError(f'{folder}: {key}: {value!r:.40} is no id')
  return value
