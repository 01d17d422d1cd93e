"""Reads the content of a `tokenizer.json`: a tree of JSON."""

import itertools
import json
from typing import Any, NamedTuple

from lm.data.tokenizers import files, tokenizer_json, vocabulary

Tree = tokenizer_json.Tree

# The keys under which imported runs say which ids are bos, eos and pad of their
# model, and keep the files beside it that lm does not use. No other program
# writes them.
IDS = 'lm_ids'
GENERATION = 'lm_generation_config'
TEMPLATE = 'lm_chat_template'
_KEYS = ('bos', 'eos', 'pad')
_PARTS = ('normalizer', 'pre_tokenizer', 'post_processor', 'decoder')


def parse(path: str, raw: bytes) -> tuple[Tree, dict[int, str]]:
  """Parses a file.

  Returns:
    Its tree, and its pieces by id, see `pieces_of`.

  Raises:
    ValueError: the file is not a `tokenizer.json`, or is broken.
  """
  try:
    tree = json.loads(raw)
    pieces, model = pieces_of(tree), tree['model']
    pairs = merges_of(model)
    keys = ('unk_token', 'continuing_subword_prefix', 'end_of_word_suffix')
    settings = [model[key] for key in keys if model.get(key) is not None]
    # Fails for a value that is no string, or that is not Unicode.
    ''.join(itertools.chain(pieces.values(), settings, *pairs)).encode()
    is_good = (
      bool(pieces)
      and all(type(i) is int and 0 <= i < vocabulary.MOST for i in pieces)
      and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
      and isinstance(model.get('unk_id'), int | None)
      and all(isinstance(tree.get(key), dict | None) for key in _PARTS)
    )
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    is_good, tree, pieces = False, {}, {}
  if not is_good:
    raise files.error(
      path,
      'not a tokenizer.json, or cut short; get it again, or write it with '
      'save_pretrained',
    )
  return tree, pieces


class Own(NamedTuple):
  """Entries that imported runs write into a file beside the tokenizer.

  Attributes:
    ids: of bos, eos and pad of the model, and a list `ends` of all ids that end
      a text; those that are known.
    generation_config: the content of the model's generation_config.json.
    chat_template: templates of chats, as tokenizer_config.json has them.
  """

  ids: dict[str, Any]
  generation_config: dict[str, Any] | None
  chat_template: Any


def take_own(path: str, tree: Tree) -> Own:
  """Removes from a tree what imported runs have written, and returns it.

  Raises:
    ValueError: an entry of the tree is broken.
  """
  ids = tree.pop(IDS, {})
  if not isinstance(ids, dict) or not ids.keys() <= {*_KEYS, 'ends'}:
    raise files.error(
      path, f'{IDS} holds other keys than bos, eos, pad and ends; remove them'
    )
  generation = tree.pop(GENERATION, None)
  if not isinstance(ids.get('ends', []), list) or not isinstance(
    generation, dict | None
  ):
    raise files.error(
      path, f'{IDS}.ends must be a list, and {GENERATION} an object'
    )
  return Own(ids, generation, tree.pop(TEMPLATE, None))


def pieces_of(tree: Tree) -> dict[int, str]:
  """Returns by id the model's pieces and the tokens added to them."""
  vocab = tree['model']['vocab']
  if isinstance(vocab, list):
    pieces = {i: piece for i, (piece, _) in enumerate(vocab)}
  else:
    pieces = {i: piece for piece, i in vocab.items()}
  return pieces | {t['id']: t['content'] for t in added_tokens(tree)}


def added_tokens(tree: Tree) -> list[Tree]:
  """Returns the tokens that are matched in text before the model runs."""
  return tree.get('added_tokens') or []


def special_ids(tree: Tree) -> set[int]:
  """Returns the ids that the file calls special."""
  return {token['id'] for token in added_tokens(tree) if token.get('special')}


def unknown_id(tree: Tree) -> int | None:
  """Finds the id of text that the model cannot spell; None: it has none."""
  model = tree['model']
  if isinstance(model['vocab'], list):
    return model.get('unk_id')
  return model['vocab'].get(model.get('unk_token'))


def merges_of(model: Tree) -> list[list[str]]:
  """Returns the merges of a BPE; older files write them as one string each."""
  return [
    merge.split(' ') if isinstance(merge, str) else merge
    for merge in model.get('merges') or ()
  ]


def joined(model: Tree, pair: list[str]) -> str:
  """Returns the piece that a merge makes."""
  prefix = model.get('continuing_subword_prefix') or ''
  return pair[0] + pair[1].removeprefix(prefix)


def has_type(tree: Tree, name: str, *keys: str) -> bool:
  """Tells if an entry of the tree, or a part of its sequence, has a type.

  Args:
    tree: of the file.
    name: of the type.
    keys: of the entries, such as 'normalizer'.
  """
  parts = tokenizer_json.parts(tree, *keys)
  return any(part.get('type') == name for part in parts)
