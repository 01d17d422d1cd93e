"""Tokenizers of other houses: the file `tokenizer.json`, in and out.

What it holds is a tree of JSON, called `tree` here, that the package
`tokenizers` reads. `make` gives a tokenizer of this house that uses one, and
`export` gives one for ours, which `tokenizer_json` builds.
"""

from collections.abc import Callable, Collection, Sequence
import functools
import hashlib
import itertools
import json
import re
from typing import Any

import numpy as np
import tokenizers

from lm import types
from lm.data.tokenizers import builtin, tokenizer_json

Tree = tokenizer_json.Tree

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
_BYTE = re.compile('<0x([0-9A-F]{2})>')
# It begins the names that special ids get where they are used: a noncharacter,
# so that no text is spoilt, and a text that has it all the same is cut there.
_UNSPELLABLE = '\U0010ffff special '


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
  raw = builtin.read(path)
  tree, spelled = _parse(path, raw)
  count = max(spelled) + 1
  rows = count if size is None else size
  if type(rows) is not int or rows < count:
    raise tokenizer_json.fault(
      path, f'has {count} ids, size={size}; give {count} or more'
    )
  total = rows + reserved
  given = _stored(path, tree)
  for key, i in (('bos', bos), ('eos', eos), ('pad', pad)):
    given[key] = given.get(key) if i is None else i
  _check_given(path, tree, given, count)
  ends = _ends(path, spelled, **given)
  mask, sentinels = _signs(spelled, *builtin.reserve(total, reserved))
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
    builtin.check_ids(ids, total)
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
    path: as for `lm.data.tokenizers.builtin.load`; the tree of a `tokenizer.json` from
      elsewhere is returned as it is.
    reserved: as for it: the mask becomes <mask> and the sentinels <extra_id_0>
      and on. Those of a file from elsewhere stay without a name.

  Raises:
    ValueError: the file is missing or broken, or its pieces cannot be told to
      another program.
  """
  if builtin.is_foreign(path):
    tree, _ = _parse(path, builtin.read(path))
    _stored(path, tree)
    return tree
  own = builtin.load(path, reserved)
  if path == 'bytes':
    tree = tokenizer_json.characters(())
  elif path.endswith('.model'):
    tree = tokenizer_json.sentencepiece(path)
  else:
    tree = tokenizer_json.characters(
      json.loads(builtin.read(path))['characters']
    )
  if own.mask is not None:
    spelled = {own.mask: '<mask>'}
    spelled |= {i: f'<extra_id_{n}>' for n, i in enumerate(own.sentinels)}
    tree['added_tokens'] += [
      tokenizer_json.token(i, spelled[i]) for i in sorted(spelled)
    ]
  engine = _open(path, tree)
  for text in (builtin.PROBE, *(t['content'] for t in tree['added_tokens'])):
    if engine.encode(text).ids != own.encode(text):
      raise tokenizer_json.fault(
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
  if (
    tree.get('decoder') == tokenizer_json.OWN_DECODER
    and tree.get('normalizer') is None
  ):
    settings['split_special_tokens'] = True  # no text spells ours
  for role, i in roles.items():
    if i in spelled:
      settings[f'{role}_token'] = spelled[i]
  return {'tokenizer_config.json': settings}


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
    raise tokenizer_json.fault(
      path,
      'not a tokenizer.json, or cut short; get it again, or write it with '
      'save_pretrained',
    )
  return tree, spelled


def _stored(path: str, tree: Tree) -> dict[str, Any]:
  """Takes the ids of bos, eos and pad out of a file that says them."""
  found = tree.pop(IDS, {})
  if not isinstance(found, dict) or not found.keys() <= {'bos', 'eos', 'pad'}:
    raise tokenizer_json.fault(
      path, f'{IDS} holds other things than bos, eos and pad'
    )
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
      raise tokenizer_json.fault(path, f'{key}={i} is none of its {count} ids')
    piece = spelled.get(i, '')
    is_text = piece in made or ('merges' in model and len(piece) == 1)
    if is_text and i not in special:
      raise tokenizer_json.fault(
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
      raise tokenizer_json.fault(
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
    is_plain = _UNSPELLABLE not in builtin.checked(text)
    ids: list[int] = []
    for part in [text] if is_plain else inside.split(text):
      ids += engine.encode(part, add_special_tokens=False).ids
    return [i for i in ids if i not in lost] if lost else ids

  def encode_batch(texts: list[str]) -> list[list[int]]:
    if lost or any(_UNSPELLABLE in builtin.checked(text) for text in texts):
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
    engine.decode(engine.encode(builtin.PROBE).ids)
  except BaseException as e:
    # A fault in Rust is none of Exception's kinds, and its class is not public.
    if not isinstance(e, Exception) and type(e).__name__ != 'PanicException':
      raise
    raise tokenizer_json.fault(path, f'refused ({str(e)[:60]}); {fix}') from e
  for token in _added_of(tree):
    if engine.token_to_id(token['content']) != token['id']:
      raise tokenizer_json.fault(
        path, f'id {token["id"]} is not the next one; {fix}'
      )
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
  return piece.replace(tokenizer_json.SPACE_MARK, ' ').encode()


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
  return builtin.word_starts(spelled, reserved)
