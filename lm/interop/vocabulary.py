"""Reads a published tokenizer as the content of a tokenizer.json."""

from collections.abc import Iterable, Mapping
import json
from pathlib import Path
from typing import Any

from lm.data.tokenizers import tokenizer_json
from lm.data.tokenizers import tokenizer_json_reader as reader
from lm.interop import fields, tensors, tokenizer_settings

# The classes of transformers whose files these are. All of a line read alike.
_BERT = ('BertTokenizer', 'DistilBertTokenizer', 'ElectraTokenizer')
_GPT2 = {'GPT2Tokenizer': 'gpt-2', 'Qwen2Tokenizer': 'qwen2'}
_PLAIN = (None, 'PreTrainedTokenizerFast', 'TokenizersBackend')
_END = '<|endoftext|>'
_CASES = ('do_lower_case', 'strip_accents', 'tokenize_chinese_chars')
_TEMPLATE = 'chat_template'
_GENERATION = 'generation_config.json'


def read(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
  """Reads tokenizer.json, or makes it from the older files of GPT-2 and BERT.

  It contains, under keys of its own, which ids begin, end and pad a text of the
  model, its generation_config.json and its chat templates. See
  `tokenizer_json_reader.Own`.

  Args:
    folder: of the files.
    config: the content of config.json.

  Raises:
    ValueError: there is no tokenizer, it is broken, or it has a setting that is
      not supported; one line.
  """
  settings = tokenizer_settings.read(folder)
  if config.get('tokenizer_class') is not None:
    settings.config.setdefault('tokenizer_class', config['tokenizer_class'])
  if (folder / 'tokenizer.json').is_file():
    tree = _from_tree(folder, settings)
  elif (folder / 'vocab.txt').is_file():
    tree = _from_pieces(folder, settings)
  elif (folder / 'merges.txt').is_file():
    tree = _from_merges(folder, settings, config.get('model_type'))
  else:
    raise ValueError(
      f'{folder}: holds no tokenizer.json, nor vocab.txt, nor vocab.json with '
      'merges.txt; save the tokenizer with transformers first'
    )
  generation = None
  if (folder / _GENERATION).is_file():
    generation = tensors.read_json(folder / _GENERATION)
    tree[reader.GENERATION] = generation
  template = _template(folder, settings)
  if template is not None:
    tree[reader.TEMPLATE] = template
  ids = special_ids(config, generation or {})
  by_piece = {piece: i for i, piece in reader.pieces_of(tree).items()}
  for name, roles in (('bos', ('bos', 'cls')), ('eos', ('eos', 'sep'))):
    named = [settings.roles[x] for x in roles if x in settings.roles]
    if name not in ids and named and named[0] in by_piece:
      ids[name] = by_piece[named[0]]
  tree[reader.IDS] = ids
  return tree


def special_ids(
  config: Mapping[str, Any],
  generation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Reads the ids of bos, eos and pad in the files of a model.

  A decoder with an encoder has a start token, which is its bos.

  Args:
    config: the content of config.json.
    generation: the content of generation_config.json, which decides where a
      text ends, if it says so.

  Returns:
    Those of the ids that are known, by name, and the list `ends` of the ids
    that end a text, if there are others than eos.

  Raises:
    ValueError: a value is no id; one line.
  """
  generation = generation or {}
  keys = {
    'bos': ('decoder_start_token_id', 'bos_token_id'),
    'eos': ('eos_token_id',),
    'pad': ('pad_token_id',),
  }
  ids: dict[str, Any] = {}
  for name, places in keys.items():
    for tree in (config, generation):
      for key in places:
        found = fields.ids(tree, key)
        if found and name not in ids:
          ids[name] = found[0]
  ends = fields.ids(generation, 'eos_token_id')
  ends = ends or fields.ids(config, 'eos_token_id')
  if ends and ends != [ids['eos']]:
    ids['ends'] = ends
  return ids


def _from_tree(
  folder: Path, settings: tokenizer_settings.Settings
) -> dict[str, Any]:
  """Reads tokenizer.json, and what the files beside it say otherwise."""
  tree = tensors.read_json(folder / 'tokenizer.json')
  reader.parse(str(folder / 'tokenizer.json'), json.dumps(tree).encode())
  normalizer = tree.get('normalizer') or {}
  # The classes without a model of their own take the file as it is.
  is_plain = settings.config.get('tokenizer_class') in _PLAIN
  if normalizer.get('type') == 'BertNormalizer' and not is_plain:
    names = ('lowercase', 'strip_accents', 'handle_chinese_chars')
    for key, ours in zip(_CASES, names, strict=True):
      if key in settings.config and ours in normalizer:
        normalizer[ours] = tokenizer_settings.flag(settings, key, None)
  prefix = tokenizer_settings.flag(settings, 'add_prefix_space', None)
  if prefix is not None:
    _set_prefix(folder, tree, prefix)
  tokenizer_settings.add_tokens(settings, tree, strict=False)
  return tree


def _set_prefix(folder: Path, tree: dict[str, Any], prefix: bool) -> None:
  """Sets whether a space is put before each text, where a file can be told.

  Raises:
    ValueError: the file puts one, or none, in another way.
  """
  if reader.has_type(tree, 'ByteLevel', 'pre_tokenizer'):
    tokenizer_json.set_prefix(tree, prefix)
    return
  # Alone, or after a cut at spaces as in older files of T5.
  puts = reader.has_type(tree, 'Prepend', 'normalizer') or any(
    part.get('type') == 'Metaspace'
    and part.get('prepend_scheme', 'always') != 'never'
    and part.get('add_prefix_space', True)
    for part in tokenizer_json.parts(tree, 'pre_tokenizer')
  )
  if puts != prefix:
    raise ValueError(
      f'{folder / tokenizer_settings.CONFIG}: add_prefix_space={prefix}, and '
      'tokenizer.json says otherwise: save both again'
    )


def _from_pieces(
  folder: Path, settings: tokenizer_settings.Settings
) -> dict[str, Any]:
  """Makes the tree of vocab.txt."""
  tokenizer_settings.check_class(settings, _with_fast(_BERT))
  tokenizer_settings.check_keys(
    settings, _CASES, {'do_basic_tokenize': True, 'never_split': None}
  )
  lower, accents, chinese = (
    tokenizer_settings.flag(settings, key, default)
    for key, default in zip(_CASES, (True, None, True), strict=True)
  )
  tree = tokenizer_json.wordpiece(
    _lines(folder / 'vocab.txt'),
    bool(lower),
    strip_accents=accents,
    chinese=bool(chinese),
    roles=settings.roles,
  )
  tokenizer_settings.add_tokens(settings, tree, strict=True)
  return tree


def _from_merges(
  folder: Path, settings: tokenizer_settings.Settings, model_type: Any
) -> dict[str, Any]:
  """Makes the tree of vocab.json and merges.txt."""
  tokenizer_settings.check_class(settings, _with_fast(_GPT2))
  tokenizer_settings.check_keys(
    settings, ('add_prefix_space',), {'errors': 'replace'}
  )
  usual = 'Qwen2Tokenizer' if model_type == 'qwen3' else 'GPT2Tokenizer'
  name = settings.config.get('tokenizer_class') or usual
  ids = tensors.read_json(folder / 'vocab.json')
  tokens = sorted(ids, key=lambda token: ids[token])
  if [ids[token] for token in tokens] != list(range(len(tokens))):
    raise ValueError(f'{folder}/vocab.json: its ids are not 0 to n - 1')
  merges = [line for line in _lines(folder / 'merges.txt') if line]
  tree = tokenizer_json.byte_level(
    tokens,
    merges,
    {i for i, t in enumerate(tokens) if t == _END},
    _GPT2[name.removesuffix('Fast')],
    prefix=bool(tokenizer_settings.flag(settings, 'add_prefix_space', False)),
  )
  tokenizer_settings.add_tokens(settings, tree, strict=True)
  return tree


def _template(folder: Path, settings: tokenizer_settings.Settings) -> Any:
  """Reads the chat templates: a text, a list of named ones, or None."""
  main = folder / f'{_TEMPLATE}.jinja'
  more = sorted((folder / f'additional_{_TEMPLATE}s').glob('*.jinja'))
  if more:
    texts = {path.stem: _text(path) for path in more}
    texts |= {'default': _text(main)} if main.is_file() else {}
    return [{'name': x, 'template': text} for x, text in texts.items()]
  if main.is_file():
    return _text(main)
  if (folder / f'{_TEMPLATE}.json').is_file():
    return tensors.read_json(folder / f'{_TEMPLATE}.json').get(_TEMPLATE)
  return settings.config.get(_TEMPLATE)


def _with_fast(names: Iterable[str]) -> list[str]:
  return [f'{name}{end}' for name in names for end in ('', 'Fast')]


def _lines(path: Path) -> list[str]:
  # Not splitlines: a token may be another line separator of Unicode.
  return _text(path).split('\n')


def _text(path: Path) -> str:
  try:
    return path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{path}: cannot be read ({error})') from error
