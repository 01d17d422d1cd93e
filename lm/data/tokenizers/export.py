"""Writes our own tokenizers as `tokenizer.json`, for other programs."""

from lm import types
from lm.data.tokenizers import (
  auto,
  characters,
  files,
  huggingface,
  tokenizer_json,
  vocabulary,
  words,
)
from lm.data.tokenizers import tokenizer_json_reader as reader

Tree = tokenizer_json.Tree

# The special pieces of words have a space in their names, as no word has.
_OF_WORDS = ('<text padding>', '<text end>', '<text start>')


def to_tokenizer_json(path: str, reserved: int = 0) -> Tree:
  """Returns the `tokenizer.json` of a tokenizer, as a tree of JSON.

  The tree gives the same ids for any text, if it is opened so that special
  tokens are encoded like other text, as `special_files` says. Its pieces have
  true spaces where sentencepiece writes U+2581; a U+2581 in a text is thereby
  spelled by bytes, as by our tokenizers. Where two ways to cut a text into
  unigram pieces have scores that are equal to 7 digits, sentencepiece rounds
  and may choose the other one.

  Args:
    path: see `lm.data.tokenizers.auto.load`. A `tokenizer.json` is
      returned unchanged.
    reserved: number of ids to add. The mask becomes <mask>, and the sentinels
      <extra_id_0>, <extra_id_1> ... In a `tokenizer.json` they get no name.

  Raises:
    ValueError: the file is missing or broken, or a `tokenizer.json` cannot
      express its pieces.
  """
  if files.is_tokenizer_json(path):
    tree, _ = reader.parse(path, files.read(path))
    reader.take_own(path, tree)
    return tree
  own = auto.load(path, reserved)
  if path == 'bytes':
    tree = tokenizer_json.characters(())
  elif path.endswith('.model'):
    tree = tokenizer_json.sentencepiece(path)
  elif words.is_words(path):
    tree = _words(words.read(path))
  else:
    tree = tokenizer_json.characters(characters.alphabet(path))
  if own.mask is not None:
    pieces = {own.mask: '<mask>'}
    pieces |= {i: f'<extra_id_{n}>' for n, i in enumerate(own.sentinels)}
    tree['added_tokens'] += [
      tokenizer_json.token(i, pieces[i]) for i in sorted(pieces)
    ]
  engine = huggingface.open_tree(path, tree)
  for text in (vocabulary.PROBE, *(t['content'] for t in tree['added_tokens'])):
    if engine.encode(text).ids != own.encode(text):
      raise files.error(
        path,
        'cannot be exported: a tokenizer.json gives other ids to '
        f'{text[:20]!r}',
      )
  return tree


def special_files(
  own: types.Tokenizer, tree: Tree, path: str = ''
) -> dict[str, Tree]:
  """Returns the files that a folder needs beside `tokenizer.json`.

  Args:
    own: the tokenizer that a model was trained with.
    tree: its `tokenizer.json`, from `to_tokenizer_json`.
    path: of its file, which may contain files of the model that was imported;
      '' if it has none.

  Returns:
    The JSON of each file by its name: `tokenizer_config.json`, by which
    `transformers.AutoTokenizer` opens the folder. It names bos, eos, pad and
    the mask, where they have pieces, and has the chat templates that were
    imported. And `generation_config.json`, if it was imported.
  """
  pieces = reader.pieces_of(tree)
  roles = {'bos': own.bos, 'eos': own.eos, 'pad': own.pad, 'mask': own.mask}
  settings: Tree = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
  }
  is_own = (
    tree.get('decoder') == tokenizer_json.OWN_DECODER
    and tree.get('normalizer') is None
  ) or all(pieces.get(i) == name for i, name in enumerate(_OF_WORDS))
  if is_own:
    settings['split_special_tokens'] = True  # no text can spell ours
  for role, i in roles.items():
    if i in pieces:
      settings[f'{role}_token'] = pieces[i]
  result = {'tokenizer_config.json': settings}
  if files.is_tokenizer_json(path):
    content, _ = reader.parse(path, files.read(path))
    imported = reader.take_own(path, content)
    if imported.chat_template is not None:
      settings['chat_template'] = imported.chat_template
    if imported.generation_config is not None:
      result['generation_config.json'] = imported.generation_config
  return result


def _words(content: words.Words) -> Tree:
  """Builds the `tokenizer.json` of a tokenizer of words."""
  pieces = [*_OF_WORDS, '\n', words.UNKNOWN_WORD, *content.words]
  # White space by `str.split`; \s of a regular expression is less.
  blanks = [n for n in range(0x3001) if chr(n).isspace() and chr(n) != '\n']
  blank = ''.join(f'\\x{{{n:x}}}' for n in blanks)
  # Each piece is decoded with a space before it.
  steps = [_replace('Regex', r'\A', ' '), {'type': 'Fuse'}]
  if not content.padded:
    steps += [_replace('String', ' \n', '\n'), _replace('String', '\n ', '\n')]
    steps.append({'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0})
  return tokenizer_json.characters(()) | {
    'added_tokens': [
      tokenizer_json.token(i, name) for i, name in enumerate(_OF_WORDS)
    ],
    'pre_tokenizer': {
      'type': 'Sequence',
      'pretokenizers': [
        _split(f'[{blank}]+', 'Removed'),
        _split('\n', 'Isolated'),
      ],
    },
    'decoder': {'type': 'Sequence', 'decoders': steps},
    'model': {
      'type': 'WordLevel',
      'vocab': {piece: i for i, piece in enumerate(pieces)},
      'unk_token': words.UNKNOWN_WORD,
    },
  }


def _split(pattern: str, behavior: str) -> Tree:
  return {
    'type': 'Split',
    'pattern': {'Regex': pattern},
    'behavior': behavior,
    'invert': False,
  }


def _replace(kind: str, pattern: str, content: str) -> Tree:
  return {'type': 'Replace', 'pattern': {kind: pattern}, 'content': content}
