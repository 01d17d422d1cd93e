"""Builds the content of a `tokenizer.json` from the files of tokenizers.

The content is a tree of JSON, which the package `tokenizers` reads. The sources
are GGUF, vocab.txt, merges.txt, and the tokenizers that are trained here.

Reference: Sennrich et al. 2016, arXiv 1508.07909 (BPE); Radford et al. 2019,
section 2.2 (of bytes); Kudo 2018, arXiv 1804.10959 (unigram); Devlin et al.
2019, arXiv 1810.04805 (WordPiece).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
import copy
import re
from types import MappingProxyType
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from lm.data import names
from lm.data.tokenizers import files, vocabulary

Tree = dict[str, Any]

# Its classes are made at run time, where a type checker does not see them.
_MESSAGES: Any = sentencepiece_model_pb2

# Types of pieces, as sentencepiece and GGUF number them.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTES = range(1, 7)
_GPT2 = {
  'type': 'ByteLevel',
  'add_prefix_space': False,
  'trim_offsets': True,
  'use_regex': True,
}
_BERT_ROLES = ('pad', 'unk', 'cls', 'sep', 'mask')
_DIGITS = {'type': 'Digits', 'individual_digits': True}
# Words as Llama 3 and Qwen 2 cut them; the two differ in how long a number is.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def byte_level(
  tokens: Sequence[str],
  merges: Sequence[str],
  special: Collection[int],
  pre: str,
  *,
  added: Collection[int] = (),
  prefix: bool = False,
) -> Tree:
  """Builds the `tokenizer.json` of a byte-level BPE.

  Args:
    tokens: the pieces by id, in the printable alphabet of bytes.
    merges: pairs of pieces separated by a space, in the order in which they are
      merged. The line '#version: ...' that opens a merges.txt is ignored.
    special: ids that stand for no text.
    pre: how text is cut into words before merging, by GGUF's names: 'gpt-2' or
      'default'; 'smollm', which separates all digits; 'llama-bpe' (Llama 3);
      'qwen2'.
    added: ids of further tokens that are matched in text verbatim.
    prefix: puts a space before each text that has none.

  Raises:
    ValueError: `pre` is unknown, or the merges do not fit the tokens.

  Reference: Radford et al. 2019, section 2.2.
  """
  whole = _GPT2 | {'use_regex': False}
  cuts = {
    'default': _GPT2,
    'gpt-2': _GPT2,
    'smollm': _sequence(_DIGITS, _GPT2),
    'llama-bpe': _sequence(_split(_WORDS.replace('DIGITS', '{1,3}')), whole),
    'qwen2': _sequence(_split(_WORDS.replace('DIGITS', '')), whole),
  }
  if pre not in cuts:
    raise ValueError(
      f'pre-tokenizer {names.short(pre)}: unknown; only {", ".join(cuts)} are '
      'read'
    )
  vocab = _distinct(tokens)
  if merges and merges[0].startswith('#version:'):
    merges = merges[1:]
  pairs = [merge.split(' ') for merge in merges]
  for merge, pair in zip(merges, pairs, strict=True):
    if len(pair) != 2 or not {*pair, ''.join(pair)} <= vocab.keys():
      raise ValueError(
        f'merge {names.short(merge)}: does not join two pieces into a third; '
        'take tokens and merges from the same file'
      )
  tree = _tree(_bpe(vocab, pairs, ignore_merges=pre == 'llama-bpe'))
  tree['added_tokens'] = _all_added(tokens, special, added)
  tree['normalizer'] = {'type': 'NFC'} if pre == 'qwen2' else None
  tree['pre_tokenizer'] = copy.deepcopy(cuts[pre])  # it may be changed
  if prefix:
    set_prefix(tree)
  tree['post_processor'] = whole | {'trim_offsets': False}
  tree['decoder'] = whole
  return tree


def metaspace(
  tokens: Sequence[str],
  scores: Sequence[float],
  piece_types: Sequence[int],
  *,
  prefix: bool = True,
) -> Tree:
  """Builds the `tokenizer.json` of a sentencepiece BPE such as Llama's.

  Args:
    tokens: the pieces by id, with U+2581 for a space.
    scores: of the pieces; the pair that makes the piece with the highest score
      is merged first.
    piece_types: of the pieces, as GGUF numbers them: 1 normal, 2 unknown,
      3 control, 4 user-defined (matched in text verbatim), 5 unused, 6 byte.
    prefix: puts a space before each text.

  Raises:
    ValueError: the three differ in length, or a piece occurs twice.

  Reference: Kudo and Richardson 2018, arXiv 1808.06226.
  """
  if not len(tokens) == len(scores) == len(piece_types):
    raise ValueError(
      f'{len(tokens)} tokens, {len(scores)} scores and {len(piece_types)} '
      'types: must be equally many; take them from the same file'
    )
  normal, unknown, control, user, byte = (
    [i for i, of_piece in enumerate(piece_types) if of_piece == piece_type]
    for piece_type in (_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTES)
  )
  tree = _tree(
    _bpe(
      _distinct(tokens),
      _merges({tokens[i]: scores[i] for i in normal}),
      byte_fallback=len(byte) == 256,
      fuse_unk=True,
      unk_token=tokens[unknown[0]] if unknown else None,
    )
  )
  tree['added_tokens'] = _all_added(tokens, unknown + control, user)
  spaces = _replace(' ', vocabulary.SPACE_MARK)
  tree['normalizer'] = spaces
  tree['decoder'] = _sequence(
    _replace(vocabulary.SPACE_MARK, ' '),
    *OWN_DECODER['decoders'],
    key='decoders',
  )
  if prefix:
    tree['normalizer'] = _sequence(
      {'type': 'Prepend', 'prepend': vocabulary.SPACE_MARK},
      spaces,
      key='normalizers',
    )
    strip = {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}
    tree['decoder']['decoders'].append(strip)
  return tree


def parts(tree: Tree, *keys: str) -> list[Tree]:
  """Lists entries of a tree and all parts of their sequences, in order.

  Args:
    tree: of the file.
    keys: of the entries, such as 'normalizer'.
  """
  found: list[Tree] = []
  rest: list[Any] = [tree.get(key) for key in reversed(keys)]
  while rest:
    part = rest.pop()
    if isinstance(part, dict):
      found.append(part)
      for key in ('normalizers', 'pretokenizers'):
        inner = part.get(key)
        rest += reversed(inner) if isinstance(inner, list) else []
  return found


def set_prefix(tree: Tree, prefix: bool = True) -> None:
  """Sets whether a byte-level tokenizer puts a space before each text.

  Raises:
    ValueError: the tokenizer cuts no text into bytes.
  """
  # The first part sees the text as it is.
  cuts = parts(tree, 'pre_tokenizer')
  found = [part for part in cuts if part.get('type') == 'ByteLevel']
  if not found:
    raise ValueError(
      'add_prefix_space: only byte-level tokenizers can be told this'
    )
  found[0]['add_prefix_space'] = prefix


def wordpiece(
  lines: Iterable[str],
  lowercase: bool,
  *,
  strip_accents: bool | None = None,
  chinese: bool = True,
  roles: Mapping[str, str] = MappingProxyType({}),
) -> Tree:
  """Builds the `tokenizer.json` of BERT.

  Args:
    lines: of its `vocab.txt`, one piece each.
    lowercase: removes case, as the uncased models do.
    strip_accents: removes accents; None does where case is removed.
    chinese: makes each Chinese character a word of its own.
    roles: pieces that are the tokens 'unk', 'sep', 'pad', 'cls' and 'mask'. The
      others have their usual names.

  Raises:
    ValueError: a piece occurs twice, or the one for unknown words is missing.

  Reference: Devlin et al. 2019, arXiv 1810.04805, section 3.
  """
  pieces = [line.rstrip('\r\n') for line in lines]
  if pieces and not pieces[-1]:
    pieces.pop()  # the file's last line end, not a piece
  vocab = _distinct(pieces)
  names = {role: f'[{role.upper()}]' for role in _BERT_ROLES} | dict(roles)
  if names['unk'] not in vocab:
    raise ValueError(
      f'vocab.txt: lacks the piece {names["unk"]}; give that of a BERT model'
    )
  tree = _tree(
    {
      'type': 'WordPiece',
      'unk_token': names['unk'],
      'continuing_subword_prefix': '##',
      'max_input_chars_per_word': 100,
      'vocab': vocab,
    }
  )
  special = [names[role] for role in _BERT_ROLES if names[role] in vocab]
  tree['added_tokens'] = _all_added(pieces, [vocab[x] for x in special], ())
  tree['normalizer'] = {
    'type': 'BertNormalizer',
    'clean_text': True,
    'handle_chinese_chars': chinese,
    'strip_accents': strip_accents,
    'lowercase': lowercase,
  }
  tree['pre_tokenizer'] = {'type': 'BertPreTokenizer'}
  tree['decoder'] = {'type': 'WordPiece', 'prefix': '##', 'cleanup': True}
  if {names['cls'], names['sep']} <= vocab.keys():
    tree['post_processor'] = {
      'type': 'BertProcessing',
      **{role: [names[role], vocab[names[role]]] for role in ('sep', 'cls')},
    }
  return tree


def characters(alphabet: Sequence[str]) -> Tree:
  """Builds the `tokenizer.json` of a character or byte tokenizer of ours."""
  spelling = [f'<0x{byte:02X}>' for byte in range(256)]
  pieces = ['<pad>', '</s>', '<s>', *spelling, *alphabet]
  tree = _tree(_bpe(_distinct(pieces), [], byte_fallback=True))
  tree['added_tokens'] = _all_added(pieces, range(3), ())
  return tree


def sentencepiece(path: str) -> Tree:
  """Builds the `tokenizer.json` of a sentencepiece model that loses no text.

  Its pieces have true spaces where sentencepiece writes U+2581.

  Args:
    path: of the model, which `lm.data.tokenizers.sentencepiece` has opened.

  Raises:
    ValueError: the model has pieces that a `tokenizer.json` cannot express.
  """
  model = _MESSAGES.ModelProto()
  model.ParseFromString(files.read(path))
  pieces = [piece.piece for piece in model.pieces]
  scores = [piece.score for piece in model.pieces]
  piece_types = [piece.type for piece in model.pieces]
  if _UNUSED in piece_types or _USER in piece_types:
    raise files.error(
      path, 'has unused or user-defined pieces, which cannot be exported'
    )
  pieces = [piece.replace(vocabulary.SPACE_MARK, ' ') for piece in pieces]
  normal = {
    piece: score
    for piece, score, piece_type in zip(
      pieces, scores, piece_types, strict=True
    )
    if piece_type == _NORMAL
  }
  special = [i for i, x in enumerate(piece_types) if x in (_UNKNOWN, _CONTROL)]
  if model.trainer_spec.model_type == model.trainer_spec.BPE:
    vocab = _distinct(pieces)
    tree = _tree(_bpe(vocab, _merges(normal), byte_fallback=True))
  else:
    vocab = [[piece, normal.get(piece, 0.0)] for piece in pieces]
    model = {'type': 'Unigram', 'unk_id': piece_types.index(_UNKNOWN)}
    tree = _tree(model | {'vocab': vocab, 'byte_fallback': True})
    # A unigram model would find special pieces and byte pieces when a text
    # spells them. So text is cut inside such words, between two characters that
    # no other piece has side by side: all other text is encoded as before.
    side_by_side = {
      piece[n : n + 2] for piece in normal for n in range(len(piece) - 1)
    }
    cuts = [_cut(path, '<0x', '[0-9A-F]{2}>', side_by_side)]
    cuts += [_cut(path, pieces[i], '', side_by_side) for i in special]
    tree['pre_tokenizer'] = _split('|'.join(cuts), 'MergedWithNext')
  tree['added_tokens'] = _all_added(pieces, special, ())
  return tree


def _cut(path: str, word: str, tail: str, side_by_side: set[str]) -> str:
  """Writes a pattern that matches a word from a place where it can be cut.

  Args:
    path: of the model, for the error.
    word: that text must not be encoded as.
    tail: pattern of what follows the word.
    side_by_side: pairs of characters between which text must not be cut.
  """
  for n in range(1, len(word)):
    if word[n - 1 : n + 1] not in side_by_side:
      return f'(?<={re.escape(word[:n])}){re.escape(word[n:])}{tail}'
  raise files.error(
    path, f'its pieces spell {word!r}, which cannot be exported'
  )


def _merges(scores: dict[str, float]) -> list[list[str]]:
  """Lists the pairs of pieces that make a piece, by the piece's score."""
  ranked = sorted(scores, key=lambda piece: -scores[piece])
  return [
    [piece[:cut], piece[cut:]]
    for piece in ranked
    for cut in range(1, len(piece))
    if piece[:cut] in scores and piece[cut:] in scores
  ]


def _distinct(pieces: Sequence[str]) -> dict[str, int]:
  """Numbers the pieces: piece -> id.

  Raises:
    ValueError: a piece occurs twice.
  """
  vocab: dict[str, int] = {}
  for i, piece in enumerate(pieces):
    if vocab.setdefault(piece, i) != i:
      raise ValueError(
        f'piece {names.short(piece)!r}: occurs twice, as id {vocab[piece]} '
        f'and {i}; get the file again'
      )
  return vocab


def _bpe(vocab: dict[str, int], merges: list[list[str]], **settings) -> Tree:
  return {
    'type': 'BPE',
    'dropout': None,
    'unk_token': None,
    'continuing_subword_prefix': None,
    'end_of_word_suffix': None,
    'fuse_unk': False,
    'byte_fallback': False,
    'ignore_merges': False,
    'vocab': vocab,
    'merges': merges,
  } | settings


def _tree(model: Tree) -> Tree:
  keys = ('truncation', 'padding', 'normalizer', 'pre_tokenizer')
  return {
    'version': '1.0',
    **dict.fromkeys(keys),
    'added_tokens': [],
    'post_processor': None,
    'decoder': OWN_DECODER,
    'model': model,
  }


def token(i: int, content: str, special: bool = True) -> Tree:
  """Builds the entry of an added token, which is matched in text verbatim."""
  return {
    'id': i,
    'content': content,
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': special,
  }


def _all_added(
  tokens: Sequence[str], special: Collection[int], others: Collection[int]
) -> list[Tree]:
  return [
    token(i, tokens[i], i in special) for i in sorted({*special, *others})
  ]


def _sequence(*parts: Tree, key: str = 'pretokenizers') -> Tree:
  return {'type': 'Sequence', key: list(parts)}


def _split(pattern: str, behavior: str = 'Isolated') -> Tree:
  return {
    'type': 'Split',
    'pattern': {'Regex': pattern},
    'behavior': behavior,
    'invert': False,
  }


def _replace(old: str, new: str) -> Tree:
  return {'type': 'Replace', 'pattern': {'String': old}, 'content': new}


OWN_DECODER = _sequence(
  {'type': 'ByteFallback'}, {'type': 'Fuse'}, key='decoders'
)
