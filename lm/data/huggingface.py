"""Tokenizers of other houses: the file `tokenizer.json`, in and out.

What it holds is a tree of JSON, called `tree` here, that the package
`tokenizers` reads. `make` gives a tokenizer of this house that uses one,
`export` gives one for ours, and the rest build one from what other files hold.

Reference: Sennrich et al. 2016, arXiv 1508.07909 (BPE); Radford et al. 2019,
section 2.2 (of bytes); Kudo 2018, arXiv 1804.10959 (unigram); Devlin et al.
2019, arXiv 1810.04805 (WordPiece).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
import functools
import hashlib
import itertools
import json
import re
import struct
from typing import Any

import numpy as np
import tokenizers

from lm import types
from lm.data import names, tokenizer

Tree = dict[str, Any]

# Where a file says which ids are bos, eos and pad of its model; ours alone.
IDS = 'lm_ids'
# bos, eos, pad: the first family whose eos a file has is taken
_FAMILIES = (
  ('[CLS]', '[SEP]', '[PAD]'),
  ('<s>', '</s>', '<pad>'),
  ('<bos>', '<eos>', '<pad>'),
  ('<|begin_of_text|>', '<|end_of_text|>', '<|end_of_text|>'),
  ('<|endoftext|>', '<|endoftext|>', '<|endoftext|>'),
)
_MASKS = ('[MASK]', '<mask>')
_MOST = 1 << 22  # ids; a broken file must not ask for a table of 4 billion
_SPACE_MARK = '\u2581'
_BYTE = re.compile('<0x([0-9A-F]{2})>')
# It begins the names that special ids get where they are used: a noncharacter,
# so that no text is spoilt, and a text that has it all the same is cut there.
_UNSPELLABLE = '\U0010ffff special '
# Kinds of pieces, as sentencepiece and GGUF number them.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTES = range(1, 7)
_GPT2 = {
  'type': 'ByteLevel',
  'add_prefix_space': False,
  'trim_offsets': True,
  'use_regex': True,
}
_DIGITS = {'type': 'Digits', 'individual_digits': True}
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def make(
  path: str,
  *,
  size: int | None = None,
  reserved: int = 0,
  bos: int | None = None,
  eos: int | None = None,
  pad: int | None = None,
) -> types.Tokenizer:
  """Makes a tokenizer of a `tokenizer.json`.

  `encode` adds no special ids, and no text spells one: what looks like one is
  ordinary pieces. Special are the ids that the file calls so, bos, eos, pad,
  the mask and the sentinels; `decode` skips them all.

  `decode(encode(x)) == x` holds for a byte-level BPE with pieces for all bytes
  that neither normalizes text nor puts a space before it. Of others it is not
  promised: BERT's lower-cases and drops spaces, T5's maps characters to others,
  and a character that a file cannot spell is its unknown id, or is left out
  where it has none or where that is also bos, eos or pad.

  Args:
    path: of the file.
    size: V where the model's table has more rows than the file has ids, as T5's
      has. None: as many rows as ids.
    reserved: ids to add after those.
    bos: None: what the file says in `lm_ids`, as files of imported runs do; or
      [CLS], <s>, <bos>, <|begin_of_text|> or <|endoftext|>, of the same family
      as eos; or eos, where that is not there.
    eos: None: as bos, or the first of [SEP], </s>, <eos>, <|end_of_text|> and
      <|endoftext|> that the file has.
    pad: None: [PAD] or <pad>, as bos.

  Returns:
    One whose mask is [MASK] or <mask>, or else the first reserved id; whose
    sentinels are <extra_id_0> and on, or else as of our own; and whose
    `reserved` counts all ids above those of the file.

  Raises:
    ValueError: the file is missing or broken, its eos cannot be told, or an id
      or the size does not fit it.
  """
  raw = tokenizer.read(path)
  tree, spelled = _parse(path, raw)
  count = max(spelled) + 1
  rows = count if size is None else size
  if type(rows) is not int or rows < count:
    raise _fault(path, f'has {count} ids, size={size}; give {count} or more')
  total = rows + reserved
  given = _stored(path, tree)
  for key, i in (('bos', bos), ('eos', eos), ('pad', pad)):
    given[key] = given.get(key) if i is None else i
  _check_given(path, tree, given, count)
  ends = _ends(path, spelled, **given)
  mask, sentinels = _signs(spelled, *tokenizer.reserve(total, reserved))
  special = _special(tree) | ({*ends, mask, *sentinels} & set(spelled))
  engine = _open(path, _seal(tree, special))
  encode, encode_batch = _encoders(engine, {_unknown(tree)} & {*ends})

  is_text = np.zeros(total, bool)
  is_text[[i for i in spelled if i not in special]] = True
  pieces = [spelled[i] if is_text[i] else '' for i in range(count)]
  of_bytes = _has_type(tree, 'ByteLevel', 'normalizer', 'pre_tokenizer')
  if of_bytes:
    whole = {t['id'] for t in _added_of(tree)}
    spell = [
      piece.encode() if i in whole else _bytes_of(piece)
      for i, piece in enumerate(pieces)
    ]
  else:
    spell = [_text_of(piece) for piece in pieces]

  def decode(ids: list[int]) -> str:
    tokenizer.check_ids(ids, total)
    kept = [int(i) for i in ids if is_text[i]]
    if of_bytes:
      return b''.join([spell[i] for i in kept]).decode('utf-8', 'replace')
    return engine.decode(kept, skip_special_tokens=False)

  return types.Tokenizer(
    encode=encode,
    encode_batch=encode_batch,
    decode=decode,
    size=total,
    bos=ends[0],
    eos=ends[1],
    pad=ends[2],
    sha256=hashlib.sha256(raw).hexdigest(),
    reserved=total - count,
    mask=mask,
    sentinels=sentinels,
    word_starts=_word_starts(tree, pieces, spell, total - count),
  )


def export(path: str, reserved: int = 0) -> Tree:
  """Gives the `tokenizer.json` of one of our own tokenizers.

  It gives the same ids for any text, if it is told to spell special tokens like
  other text: `special_files` tells so. Its pieces have true spaces where
  sentencepiece writes U+2581, which thereby is spelled by bytes, as by ours.
  Unigram pieces of sums that are equal to 7 digits, where sentencepiece rounds,
  may be others.

  Args:
    path: as for `lm.data.tokenizer.load`; the tree of a `tokenizer.json` from
      elsewhere is returned as it is.
    reserved: as for it: the mask becomes <mask> and the sentinels <extra_id_0>
      and on. Those of a file from elsewhere stay without a name.

  Raises:
    ValueError: the file is missing or broken, or its pieces cannot be told to
      another program.
  """
  if tokenizer.is_foreign(path):
    tree, _ = _parse(path, tokenizer.read(path))
    _stored(path, tree)
    return tree
  own = tokenizer.load(path, reserved)
  if path == 'bytes':
    tree = _characters(())
  elif path.endswith('.model'):
    tree = _sentencepiece(path)
  else:
    tree = _characters(json.loads(tokenizer.read(path))['characters'])
  if own.mask is not None:
    spelled = {own.mask: '<mask>'}
    spelled |= {i: f'<extra_id_{n}>' for n, i in enumerate(own.sentinels)}
    tree['added_tokens'] += [_added(i, spelled[i]) for i in sorted(spelled)]
  engine = _open(path, tree)
  for text in (tokenizer.PROBE, *(t['content'] for t in tree['added_tokens'])):
    if engine.encode(text).ids != own.encode(text):
      raise _fault(
        path,
        f'cannot be written: a tokenizer.json gives other ids to {text[:20]!r}',
      )
  return tree


def special_files(own: types.Tokenizer, tree: Tree) -> dict[str, Tree]:
  """Gives the files that a folder needs beside `tokenizer.json`.

  Args:
    own: the tokenizer that a model was trained with.
    tree: its `tokenizer.json`, of `export`.

  Returns:
    By name, the JSON of each file: `tokenizer_config.json`, by which
    `transformers.AutoTokenizer` opens the folder. It names bos, eos, pad and
    the mask, where they have names.
  """
  spelled = _spelled(tree)
  roles = {'bos': own.bos, 'eos': own.eos, 'pad': own.pad, 'mask': own.mask}
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
  }
  if tree.get('decoder') == _OWN_DECODER and tree.get('normalizer') is None:
    settings['split_special_tokens'] = True  # no text spells ours
  for role, i in roles.items():
    if i in spelled:
      settings[f'{role}_token'] = spelled[i]
  return {'tokenizer_config.json': settings}


def byte_level(
  tokens: Sequence[str],
  merges: Sequence[str],
  special: Collection[int],
  pre: str,
  *,
  added: Collection[int] = (),
) -> Tree:
  """Builds the `tokenizer.json` of a byte-level BPE.

  Args:
    tokens: the pieces by id, in the printable alphabet of bytes.
    merges: pairs of pieces with a space between, the first to be merged first;
      the line of the version that a merges.txt begins with counts for nothing.
    special: ids that stand for no text.
    pre: how text is cut into words before it is merged, by the names of GGUF:
      'gpt-2' or 'default'; 'smollm', where digits stand alone; 'llama-bpe',
      Llama 3's; 'qwen2'.
    added: ids of further tokens that are cut out of text as they stand.

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
      f'pre-tokenizer {names.short(pre)}: unknown; one of {", ".join(cuts)} is '
      'read'
    )
  vocab = _distinct(tokens)
  if merges and merges[0].startswith('#version:'):
    merges = merges[1:]
  pairs = [merge.split(' ') for merge in merges]
  for merge, pair in zip(merges, pairs, strict=True):
    if len(pair) != 2 or not {*pair, ''.join(pair)} <= vocab.keys():
      raise ValueError(
        f'merge {names.short(merge)}: is not of two pieces to a third; take '
        'tokens and merges of the same file'
      )
  tree = _tree(_bpe(vocab, pairs, ignore_merges=pre == 'llama-bpe'))
  tree['added_tokens'] = _all_added(tokens, special, added)
  tree['normalizer'] = {'type': 'NFC'} if pre == 'qwen2' else None
  tree['pre_tokenizer'] = cuts[pre]
  tree['post_processor'] = whole | {'trim_offsets': False}
  tree['decoder'] = whole
  return tree


def metaspace(
  tokens: Sequence[str],
  scores: Sequence[float],
  kinds: Sequence[int],
  *,
  prefix: bool = True,
) -> Tree:
  """Builds the `tokenizer.json` of a sentencepiece BPE as Llama's.

  Args:
    tokens: the pieces by id, with U+2581 for a space.
    scores: of each; the pair whose piece has the highest is merged first.
    kinds: of each, as GGUF numbers them: 1 normal, 2 unknown, 3 control, 4 cut
      out of text as it stands, 5 unused, 6 a byte.
    prefix: puts a space before each text.

  Raises:
    ValueError: the three differ in length, or there are pieces twice.

  Reference: Kudo and Richardson 2018, arXiv 1808.06226.
  """
  if not len(tokens) == len(scores) == len(kinds):
    raise ValueError(
      f'{len(tokens)} tokens, {len(scores)} scores and {len(kinds)} kinds: '
      'must be as many; take them of the same file'
    )
  unknown, control, user, byte = (
    [i for i, kind in enumerate(kinds) if kind == wanted]
    for wanted in (_UNKNOWN, _CONTROL, _USER, _BYTES)
  )
  normal = (i for i, kind in enumerate(kinds) if kind == _NORMAL)
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
  spaces = _replace(' ', _SPACE_MARK)
  tree['normalizer'] = spaces
  tree['decoder'] = _sequence(
    _replace(_SPACE_MARK, ' '), *_OWN_DECODER['decoders'], key='decoders'
  )
  if prefix:
    tree['normalizer'] = _sequence(
      {'type': 'Prepend', 'prepend': _SPACE_MARK}, spaces, key='normalizers'
    )
    strip = {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}
    tree['decoder']['decoders'].append(strip)
  return tree


def wordpiece(lines: Iterable[str], lowercase: bool) -> Tree:
  """Builds the `tokenizer.json` of BERT.

  Args:
    lines: of its `vocab.txt`, a piece each.
    lowercase: takes case and accents off, as the uncased models do.

  Raises:
    ValueError: a piece is there twice, or [UNK] is not.

  Reference: Devlin et al. 2019, arXiv 1810.04805, section 3.
  """
  pieces = [line.rstrip('\r\n') for line in lines]
  if pieces and not pieces[-1]:
    pieces.pop()  # what follows the last line's end
  vocab = _distinct(pieces)
  if '[UNK]' not in vocab:
    raise ValueError('vocab.txt: lacks the piece [UNK]; give one of BERT')
  tree = _tree(
    {
      'type': 'WordPiece',
      'unk_token': '[UNK]',
      'continuing_subword_prefix': '##',
      'max_input_chars_per_word': 100,
      'vocab': vocab,
    }
  )
  special = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
  tree['added_tokens'] = _all_added(
    pieces, [vocab[piece] for piece in special if piece in vocab], ()
  )
  tree['normalizer'] = {
    'type': 'BertNormalizer',
    'clean_text': True,
    'handle_chinese_chars': True,
    'strip_accents': None,
    'lowercase': lowercase,
  }
  tree['pre_tokenizer'] = {'type': 'BertPreTokenizer'}
  tree['decoder'] = {'type': 'WordPiece', 'prefix': '##', 'cleanup': True}
  if '[CLS]' in vocab and '[SEP]' in vocab:
    tree['post_processor'] = {
      'type': 'BertProcessing',
      'sep': ['[SEP]', vocab['[SEP]']],
      'cls': ['[CLS]', vocab['[CLS]']],
    }
  return tree


def _fault(path: str, cause: str) -> ValueError:
  cause = ''.join(c if c.isprintable() else '?' for c in cause)
  return ValueError(f'tokenizer {names.short(path)}: {cause}')


def _parse(path: str, raw: bytes) -> tuple[Tree, dict[int, str]]:
  """Reads a file and what its ids are spelled, see `_spelled`."""
  try:
    tree = json.loads(raw)
    spelled, model = _spelled(tree), tree['model']
    pairs = _pairs(model)
    words = ('unk_token', 'continuing_subword_prefix', 'end_of_word_suffix')
    given = [model[key] for key in words if model.get(key) is not None]
    # Fails for what is no string, or no Unicode.
    ''.join(itertools.chain(spelled.values(), given, *pairs)).encode()
    good = (
      bool(spelled)
      and all(type(i) is int and 0 <= i <= _MOST for i in spelled)
      and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
      and isinstance(model.get('unk_id'), int | None)
    )
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    good, tree, spelled = False, {}, {}
  if not good:
    raise _fault(
      path,
      'not a tokenizer.json, or cut short; get it again, or write it with '
      'save_pretrained',
    )
  return tree, spelled


def _stored(path: str, tree: Tree) -> dict[str, Any]:
  """Takes the ids of bos, eos and pad out of a file that says them."""
  found = tree.pop(IDS, {})
  if not isinstance(found, dict) or not found.keys() <= {'bos', 'eos', 'pad'}:
    raise _fault(path, f'{IDS} holds other things than bos, eos and pad')
  return found


def _spelled(tree: Tree) -> dict[int, str]:
  """Reads by id the model's pieces and the tokens added to them."""
  vocab = tree['model']['vocab']
  if isinstance(vocab, list):
    spelled = {i: piece for i, (piece, _) in enumerate(vocab)}
  else:
    spelled = {i: piece for piece, i in vocab.items()}
  return spelled | {t['id']: t['content'] for t in _added_of(tree)}


def _check_given(
  path: str, tree: Tree, given: dict[str, int | None], count: int
) -> None:
  """Checks ids that a user gave.

  Raises:
    ValueError: one is none of the file's, or a BPE spells text with it.
  """
  spelled, model = _spelled(tree), tree['model']
  special = _special(tree)
  made = {_joined(model, pair) for pair in _pairs(model)}
  for key, i in given.items():
    if i is None:
      continue
    if type(i) is not int or not 0 <= i < count:
      raise _fault(path, f'{key}={i} is none of its {count} ids')
    piece = spelled.get(i, '')
    is_text = piece in made or ('merges' in model and len(piece) == 1)
    if is_text and i not in special:
      raise _fault(
        path, f'{key}={i} is the text {piece[:40]!r}; give a special id'
      )


def _ends(
  path: str,
  spelled: dict[int, str],
  *,
  bos: int | None,
  eos: int | None,
  pad: int | None,
) -> tuple[int, int, int]:
  """Finds bos, eos and pad, as far as they are not given.

  Raises:
    ValueError: eos cannot be told.
  """
  id_of = {piece: i for i, piece in spelled.items()}
  known = [family for family in _FAMILIES if family[1] in id_of]
  if eos is None:
    if not known:
      raise _fault(
        path, 'has no piece known to end a text; give the ids bos, eos and pad'
      )
    eos = id_of[known[0][1]]
  alone = (spelled.get(eos, ''),) * 3
  family = next((f for f in known if id_of[f[1]] == eos), alone)
  bos = id_of.get(family[0], eos) if bos is None else bos
  pad = id_of.get(family[2], eos) if pad is None else pad
  return bos, eos, pad


def _signs(
  spelled: dict[int, str], mask: int | None, sentinels: Sequence[int]
) -> tuple[int | None, Sequence[int]]:
  """Finds the mask and the sentinels; those given are where there are none."""
  id_of = {piece: i for i, piece in spelled.items()}
  mask = next((id_of[m] for m in _MASKS if m in id_of), mask)
  own: list[int] = []
  while (i := id_of.get(f'<extra_id_{len(own)}>')) is not None:
    own.append(i)
  return mask, own or sentinels


def _encoders(
  engine: tokenizers.Tokenizer, lost: Collection[int | None]
) -> tuple[Callable[[str], list[int]], Callable[[list[str]], list[list[int]]]]:
  """Makes `encode` and `encode_batch`, which leave out the ids `lost`."""
  inside = re.compile(f'(?<={_UNSPELLABLE[0]})(?={_UNSPELLABLE[1:]})')

  def encode(text: str) -> list[int]:
    is_plain = _UNSPELLABLE not in tokenizer.checked(text)
    ids: list[int] = []
    for part in [text] if is_plain else inside.split(text):
      ids += engine.encode(part, add_special_tokens=False).ids
    return [i for i in ids if i not in lost] if lost else ids

  def encode_batch(texts: list[str]) -> list[list[int]]:
    if lost or any(_UNSPELLABLE in tokenizer.checked(text) for text in texts):
      return [encode(text) for text in texts]
    rows = engine.encode_batch_fast(list(texts), add_special_tokens=False)
    return [row.ids for row in rows]

  return encode, encode_batch


def _added_of(tree: Tree) -> list[Tree]:
  return tree.get('added_tokens') or []


def _special(tree: Tree) -> set[int]:
  return {token['id'] for token in _added_of(tree) if token.get('special')}


def _unknown(tree: Tree) -> int | None:
  """Finds the id of text that the model cannot spell."""
  model = tree['model']
  if isinstance(model['vocab'], list):
    return model.get('unk_id')
  return model['vocab'].get(model.get('unk_token'))


def _pairs(model: Tree) -> list[list[str]]:
  return [
    merge.split(' ') if isinstance(merge, str) else merge
    for merge in model.get('merges') or ()
  ]


def _joined(model: Tree, pair: list[str]) -> str:
  prefix = model.get('continuing_subword_prefix') or ''
  return pair[0] + pair[1].removeprefix(prefix)


def _seal(tree: Tree, special: set[int]) -> Tree:
  """Takes out of a file what is not text to ids, one by one.

  Special pieces get names that no text has: a model that looks words up, as
  unigram and WordPiece do, would find them in the text '</s>' else. What cuts,
  pads or varies the ids goes.
  """
  spelled = _spelled(tree)
  renamed = {spelled[i]: f'{_UNSPELLABLE}{i}' for i in special}
  model = dict(tree['model'])
  if isinstance(model['vocab'], list):
    model['vocab'] = [
      [f'{_UNSPELLABLE}{i}' if i in special else piece, score]
      for i, (piece, score) in enumerate(model['vocab'])
    ]
  else:
    model['vocab'] = {
      f'{_UNSPELLABLE}{i}' if i in special else piece: i
      for piece, i in model['vocab'].items()
    }
  if model.get('unk_token') in renamed:
    model['unk_token'] = renamed[model['unk_token']]
  if 'merges' in model:
    model['merges'] = [
      pair
      for pair in _pairs(model)
      if not renamed.keys() & {*pair, _joined(model, pair)}
    ]
    model['dropout'] = None
  added = [
    token | {'content': f'{_UNSPELLABLE}{token["id"]}', 'special': True}
    if token['id'] in special
    else token
    for token in _added_of(tree)
  ]
  sealed = {'model': model, 'added_tokens': added}
  return (
    tree | sealed | dict.fromkeys(('truncation', 'padding', 'post_processor'))
  )


def _open(path: str, tree: Tree) -> tokenizers.Tokenizer:
  """Opens a tree so that text spells no token called special, and tries it.

  Raises:
    ValueError: it is refused, or gives other ids to the tokens added.
  """
  fix = 'get the file again, or write it with save_pretrained'
  try:
    engine = tokenizers.Tokenizer.from_str(json.dumps(tree))
    engine.encode_special_tokens = True
    engine.decode(engine.encode(tokenizer.PROBE).ids)
  except BaseException as e:
    # A fault in Rust is none of Exception's kinds, and its class is not public.
    if not isinstance(e, Exception) and type(e).__name__ != 'PanicException':
      raise
    raise _fault(path, f'refused ({str(e)[:60]}); {fix}') from e
  for token in _added_of(tree):
    if engine.token_to_id(token['content']) != token['id']:
      raise _fault(path, f'id {token["id"]} is not the next one; {fix}')
  return engine


def _has_type(tree: Tree, name: str, *keys: str) -> bool:
  """Tells if one of the parts, or a part of theirs, is of a type."""
  parts = [tree.get(key) for key in keys]
  while parts:
    part = parts.pop()
    if isinstance(part, dict):
      if part.get('type') == name:
        return True
      for key in ('normalizers', 'pretokenizers'):
        inner = part.get(key)
        parts += inner if isinstance(inner, list) else []
  return False


@functools.cache
def _alphabet() -> dict[str, int]:
  """Gives the bytes of the characters that byte-level BPE writes for them.

  Printable bytes of Latin-1 are written as they are, others from U+0100 on.
  """
  plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = [byte for byte in range(0x100) if byte not in plain]
  return {chr(byte): byte for byte in plain} | {
    chr(0x100 + n): byte for n, byte in enumerate(others)
  }


def _bytes_of(piece: str) -> bytes:
  alphabet = _alphabet()
  if all(c in alphabet for c in piece):
    return bytes(alphabet[c] for c in piece)
  return piece.encode()


def _text_of(piece: str) -> bytes:
  if byte := _BYTE.fullmatch(piece):
    return bytes([int(byte[1], 16)])
  return piece.replace(_SPACE_MARK, ' ').encode()


def _word_starts(
  tree: Tree, pieces: list[str], spelled: list[bytes], reserved: int
) -> np.ndarray:
  """Finds the pieces that begin a word: bool [V].

  Where a piece says that it goes on with a word ('##'), that counts. Where it
  says that it ends one, its begin cannot be told, and each is a word; so is
  each piece of a model without parts of words.
  """
  model = tree['model']
  if prefix := model.get('continuing_subword_prefix'):
    starts = [not piece.startswith(prefix) for piece in pieces]
    return np.array(starts + [True] * reserved)
  if model.get('end_of_word_suffix') or model.get('type') == 'WordLevel':
    return np.ones(len(pieces) + reserved, bool)
  return tokenizer.word_starts(spelled, reserved)


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


_OWN_DECODER = _sequence(
  {'type': 'ByteFallback'}, {'type': 'Fuse'}, key='decoders'
)


def _tree(model: Tree) -> Tree:
  keys = ('truncation', 'padding', 'normalizer', 'pre_tokenizer')
  return {
    'version': '1.0',
    **dict.fromkeys(keys),
    'added_tokens': [],
    'post_processor': None,
    'decoder': _OWN_DECODER,
    'model': model,
  }


def _added(i: int, content: str, special: bool = True) -> Tree:
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
    _added(i, tokens[i], i in special) for i in sorted({*special, *others})
  ]


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


def _distinct(pieces: Sequence[str]) -> dict[str, int]:
  vocab: dict[str, int] = {}
  for i, piece in enumerate(pieces):
    if vocab.setdefault(piece, i) != i:
      raise ValueError(
        f'piece {names.short(piece)!r}: is there twice, as id {vocab[piece]} '
        f'and {i}; get the file again'
      )
  return vocab


def _merges(scores: dict[str, float]) -> list[list[str]]:
  """Ranks the pairs of pieces that make up a piece, by the piece's score."""
  ranked = sorted(scores, key=lambda piece: -scores[piece])
  return [
    [piece[:cut], piece[cut:]]
    for piece in ranked
    for cut in range(1, len(piece))
    if piece[:cut] in scores and piece[cut:] in scores
  ]


def _characters(alphabet: Sequence[str]) -> Tree:
  spelling = [f'<0x{byte:02X}>' for byte in range(256)]
  pieces = ['<pad>', '</s>', '<s>', *spelling, *alphabet]
  tree = _tree(_bpe(_distinct(pieces), [], byte_fallback=True))
  tree['added_tokens'] = _all_added(pieces, range(3), ())
  return tree


def _sentencepiece(path: str) -> Tree:
  """Writes a sentencepiece model, which `path` is known to be."""
  pieces, scores, kinds, is_bpe = _read_model(tokenizer.read(path))
  if _UNUSED in kinds or _USER in kinds:
    raise _fault(
      path, 'has unused or user-defined pieces, which are not written'
    )
  pieces = [piece.replace(_SPACE_MARK, ' ') for piece in pieces]
  normal = {
    piece: score
    for piece, score, kind in zip(pieces, scores, kinds, strict=True)
    if kind == _NORMAL
  }
  others = [i for i, kind in enumerate(kinds) if kind in (_UNKNOWN, _CONTROL)]
  if is_bpe:
    vocab = _distinct(pieces)
    tree = _tree(_bpe(vocab, _merges(normal), byte_fallback=True))
  else:
    vocab = [[piece, normal.get(piece, 0.0)] for piece in pieces]
    model = {'type': 'Unigram', 'unk_id': kinds.index(_UNKNOWN)}
    tree = _tree(model | {'vocab': vocab, 'byte_fallback': True})
    # The model would find these in text, so it is cut inside them, between two
    # characters that no other piece has side by side.
    side_by_side = {
      piece[n : n + 2] for piece in normal for n in range(len(piece) - 1)
    }
    cuts = [_cut(path, '<0x', '[0-9A-F]{2}>', side_by_side)]
    cuts += [_cut(path, pieces[i], '', side_by_side) for i in others]
    tree['pre_tokenizer'] = _split('|'.join(cuts), 'MergedWithNext')
  tree['added_tokens'] = _all_added(pieces, others, ())
  return tree


def _cut(path: str, word: str, tail: str, side_by_side: set[str]) -> str:
  """Gives the expression of what stands in a word after a place to cut it."""
  for n in range(1, len(word)):
    if word[n - 1 : n + 1] not in side_by_side:
      return f'(?<={re.escape(word[:n])}){re.escape(word[n:])}{tail}'
  raise _fault(path, f'its pieces spell {word!r}, which is not written')


def _read_model(
  raw: bytes,
) -> tuple[list[str], list[float], list[int], bool]:
  """Reads pieces, scores, kinds, and if it is BPE, of a sentencepiece model.

  The numbers of the fields are those of sentencepiece_model.proto.
  """
  pieces: list[str] = []
  scores: list[float] = []
  kinds: list[int] = []
  is_bpe = False
  for number, value in _fields(raw):
    if number == 1:
      piece = dict(_fields(value))
      pieces.append(piece[1].decode())
      scores.append(struct.unpack('<f', piece.get(2, bytes(4)))[0])
      kinds.append(piece.get(3, _NORMAL))
    elif number == 2:
      is_bpe = dict(_fields(value)).get(3, 1) == 2
  return pieces, scores, kinds, is_bpe


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
  """Reads the fields of a message in the format of protocol buffers."""
  place = 0

  def varint() -> int:
    nonlocal place
    value = shift = 0
    while True:
      byte = raw[place]
      place += 1
      value |= (byte & 0x7F) << shift
      shift += 7
      if byte < 0x80:
        return value

  while place < len(raw):
    tag = varint()
    if tag & 7 == 0:
      yield tag >> 3, varint()
      continue
    size = {1: 8, 5: 4}.get(tag & 7) or varint()
    yield tag >> 3, raw[place : place + size]
    place += size
