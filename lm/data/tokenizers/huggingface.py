"""Tokenizers of Hugging Face, from their file `tokenizer.json`.

The file holds a tree of JSON, called `tree` here, which the package
`tokenizers` reads.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import functools
import hashlib
import json
import re
from typing import Any

import numpy as np
import tokenizers

from lm import types
from lm.data.tokenizers import files, tokenizer_json, vocabulary
from lm.data.tokenizers import tokenizer_json_reader as reader

Tree = tokenizer_json.Tree

# bos, eos and pad of known models. The first family whose eos is in a file is
# chosen.
_FAMILIES = (
  ('[CLS]', '[SEP]', '[PAD]'),
  ('<s>', '</s>', '<pad>'),
  ('<bos>', '<eos>', '<pad>'),
  ('<|begin_of_text|>', '<|end_of_text|>', '<|end_of_text|>'),
  ('<|endoftext|>', '<|endoftext|>', '<|endoftext|>'),
)
_MASKS = ('[MASK]', '<mask>')
_BYTE = re.compile('<0x([0-9A-F]{2})>')
# Special pieces get names that begin so, which no text spells: U+10FFFF is a
# noncharacter, and a text that contains it all the same is cut after it.
_UNSPELLABLE = '\U0010ffff special '


def make(
  path: str,
  *,
  size: int | None = None,
  reserved: int = 0,
  bos: int | None = None,
  eos: int | None = None,
  pad: int | None = None,
  ends: Sequence[int] | None = None,
) -> types.Tokenizer:
  """Makes a tokenizer from a `tokenizer.json`.

  `encode` adds no special ids, and no text can spell one: text that looks like
  a special token is encoded as ordinary pieces. Special ids are those that the
  file calls special, and bos, eos, pad, the mask and the sentinels. `decode`
  skips them all.

  `decode(encode(x)) == x` holds for a byte-level BPE that has pieces for all
  bytes, does not normalize text and does not put a space before it. It does not
  hold for all others: BERT's lower-cases and drops spaces, T5's replaces
  characters, and a character that a file cannot spell becomes the unknown id.
  It is left out where the file has no unknown id, or where that is also bos,
  eos or pad.

  Args:
    path: of the file.
    size: number of ids V where the model's table has more rows than the file
      has ids, as T5's has. None: as many rows as ids.
    reserved: number of ids to add after those.
    bos: id that begins a document. None: the one under `lm_ids`, which the
      files of imported runs have; or else [CLS], <s>, <bos>, <|begin_of_text|>
      or <|endoftext|>, from the same family as eos; or else eos.
    eos: id that ends a document. None: the one under `lm_ids`; or else the
      first of [SEP], </s>, <eos>, <|end_of_text|> and <|endoftext|> in the
      file.
    pad: id of padding. None: the one under `lm_ids`; or else [PAD] or <pad>,
      from the same family as eos; or else eos.
    ends: ids that end a text beside eos. None: those under `lm_ids`, if any.

  Returns:
    The tokenizer. Its mask is [MASK] or <mask>, or else the first reserved id.
    Its sentinels are <extra_id_0>, <extra_id_1> ..., or else the other reserved
    ids. Its `reserved` counts all ids above those of the file.

  Raises:
    ValueError: the file is missing or broken, its eos is unknown, or an id or
      the size does not fit it.
  """
  return from_bytes(
    path,
    files.read(path),
    size=size,
    reserved=reserved,
    bos=bos,
    eos=eos,
    pad=pad,
    ends=ends,
  )


def from_bytes(
  path: str,
  raw: bytes,
  *,
  size: int | None = None,
  reserved: int = 0,
  **ids: Any,
) -> types.Tokenizer:
  """Makes a tokenizer from the content of a `tokenizer.json`; see `make`.

  Args:
    path: where the content comes from, for errors.
    raw: the content.
    size, reserved, **ids: see `make`; the last are bos, eos, pad and ends.

  Raises:
    ValueError: see `make`.
  """
  vocabulary.check_reserved(reserved)
  tree, pieces = reader.parse(path, raw)
  count = max(pieces) + 1
  rows = count if size is None else size
  if type(rows) is not int or not count <= rows <= vocabulary.MOST:
    fix = f'give {count} to {vocabulary.MOST}'
    raise files.error(path, f'has {count} ids, size={size}; {fix}')
  total = rows + reserved
  bos, eos, pad, ends = _chosen_ids(path, tree, count, ids)
  mask, sentinels = _mask_and_sentinels(
    pieces, *vocabulary.reserved_ids(total, reserved)
  )
  special = reader.special_ids(tree) | (
    {bos, eos, pad, mask, *sentinels, *ends} & set(pieces)
  )
  engine = open_tree(path, _seal(tree, special))
  encode, encode_batch = _encoders(
    engine, {reader.unknown_id(tree)} & {bos, eos, pad}
  )

  is_text = np.isin(np.arange(total), [i for i in pieces if i not in special])
  texts = [pieces[i] if is_text[i] else '' for i in range(count)]
  is_byte_level = reader.has_type(
    tree, 'ByteLevel', 'normalizer', 'pre_tokenizer'
  )
  utf8 = _utf8_of(tree, texts, is_byte_level)

  def decode(ids: list[int]) -> str:
    vocabulary.check_ids(ids, total)
    kept = [int(i) for i in ids if is_text[i]]
    if is_byte_level:
      # Exact for all bytes, whichever decoder the file names.
      return b''.join([utf8[i] for i in kept]).decode('utf-8', 'replace')
    return engine.decode(kept, skip_special_tokens=False)

  return types.Tokenizer(
    encode=encode,
    encode_batch=encode_batch,
    decode=decode,
    decode_next=decode
    if is_byte_level
    else vocabulary.decoder_of_rest(encode, decode),
    size=total,
    bos=bos,
    eos=eos,
    ends=ends,
    pad=pad,
    sha256=hashlib.sha256(raw).hexdigest(),
    reserved=total - count,
    mask=mask,
    sentinels=sentinels,
    word_starts=_word_starts(tree, texts, utf8, total - count),
    # What normalizers, patterns and added tokens do to every text is not known.
    lossless=False,
    special={pieces[i]: i for i in sorted(special) if i in pieces},
  )


def pieces(path: str) -> list[tuple[str, bytes]]:
  """Lists (kind, UTF-8) of the pieces of a file, see `pieces.Piece`.

  A prefix such as '##', which continues a word, is left out. A byte of its own
  in a byte-level file is a byte piece, unless it is ASCII.

  Raises:
    ValueError: the file is missing or is not a `tokenizer.json`.
  """
  tree, named = reader.parse(path, files.read(path))
  texts = [named.get(i, '') for i in range(max(named) + 1)]
  is_byte_level = reader.has_type(
    tree, 'ByteLevel', 'normalizer', 'pre_tokenizer'
  )
  prefix = tree['model'].get('continuing_subword_prefix') or ''
  special, unknown = reader.special_ids(tree), reader.unknown_id(tree)
  utf8 = _utf8_of(tree, [x.removeprefix(prefix) for x in texts], is_byte_level)
  result = []
  for i, (text, spelled) in enumerate(zip(texts, utf8, strict=True)):
    if i == unknown or i in special or i not in named:
      kind = 'unknown' if i == unknown else 'special'
      spelled = text.encode()
    elif _BYTE.fullmatch(text) or (len(spelled) == 1 and spelled > b'\x7f'):
      kind = 'byte'
    else:
      kind = 'text'
    result.append((kind, spelled))
  return result


def _chosen_ids(
  path: str, tree: Tree, count: int, given: Mapping[str, Any]
) -> tuple[int, int, int, tuple[int, ...]]:
  """Finds bos, eos, pad and all ids that end a text, and checks them.

  Args:
    path: of the file, for errors.
    tree: of the file; what imported runs have written is taken out.
    count: number of ids of the file.
    given: what a user has chosen, by name; None leaves it to the file.

  Raises:
    ValueError: see `_check_ids` and `_ends`.
  """
  chosen = reader.take_own(path, tree).ids
  chosen |= {name: i for name, i in given.items() if i is not None}
  ends = list(chosen.pop('ends', ()))
  named = {name: chosen.get(name) for name in ('bos', 'eos', 'pad')}
  last = {f'ends[{n}]': i for n, i in enumerate(ends)}
  _check_ids(path, tree, {**named, **last}, count)
  bos, eos, pad = _ends(path, reader.pieces_of(tree), **named)
  return bos, eos, pad, tuple(dict.fromkeys([eos, *ends]))


def _check_ids(
  path: str, tree: Tree, chosen: dict[str, int | None], count: int
) -> None:
  """Checks the ids that a user or the file chose for bos, eos and pad.

  Raises:
    ValueError: an id is not in the file, or a BPE spells text with it.
  """
  pieces, model = reader.pieces_of(tree), tree['model']
  special = reader.special_ids(tree)
  merged = {reader.joined(model, pair) for pair in reader.merges_of(model)}
  for key, i in chosen.items():
    if i is None:
      continue
    if type(i) is not int or not 0 <= i < count:
      raise files.error(
        path, f'{key}={i} is not one of its {count} ids; give one of those'
      )
    piece = pieces.get(i, '')
    is_text = piece in merged or ('merges' in model and len(piece) == 1)
    if is_text and i not in special:
      raise files.error(
        path, f'{key}={i} is the text {piece[:40]!r}; give a special id'
      )


def _ends(
  path: str,
  pieces: dict[int, str],
  *,
  bos: int | None,
  eos: int | None,
  pad: int | None,
) -> tuple[int, int, int]:
  """Finds bos, eos and pad where they are None.

  Raises:
    ValueError: the file has no known eos.
  """
  id_of = {piece: i for i, piece in pieces.items()}
  known = [family for family in _FAMILIES if family[1] in id_of]
  if eos is None:
    if not known:
      raise files.error(
        path, 'has no piece known to end a text; give the ids bos, eos and pad'
      )
    eos = id_of[known[0][1]]
  alone = (pieces.get(eos, ''),) * 3  # an eos of no known family
  family = next((f for f in known if id_of[f[1]] == eos), alone)
  bos = id_of.get(family[0], eos) if bos is None else bos
  pad = id_of.get(family[2], eos) if pad is None else pad
  return bos, eos, pad


def _mask_and_sentinels(
  pieces: dict[int, str], mask: int | None, sentinels: Sequence[int]
) -> tuple[int | None, Sequence[int]]:
  """Finds the mask and sentinels of a file, or else returns those given."""
  id_of = {piece: i for i, piece in pieces.items()}
  mask = next((id_of[m] for m in _MASKS if m in id_of), mask)
  own: list[int] = []
  while (i := id_of.get(f'<extra_id_{len(own)}>')) is not None:
    own.append(i)
  return mask, own or sentinels


def _encoders(
  engine: tokenizers.Tokenizer, left_out: Collection[int | None]
) -> tuple[Callable[[str], list[int]], Callable[[list[str]], list[list[int]]]]:
  """Makes `encode` and `encode_batch`, which leave some ids out.

  Args:
    engine: of the sealed tree, see `_seal`.
    left_out: an unknown id that is also bos, eos or pad, which text must not
      spell.
  """
  inside = re.compile(f'(?<={_UNSPELLABLE[0]})(?={_UNSPELLABLE[1:]})')

  def encode(text: str) -> list[int]:
    is_plain = _UNSPELLABLE not in vocabulary.checked_text(text)
    ids: list[int] = []
    for part in [text] if is_plain else inside.split(text):
      ids += engine.encode(part, add_special_tokens=False).ids
    return [i for i in ids if i not in left_out] if left_out else ids

  def encode_batch(texts: list[str]) -> list[list[int]]:
    checked = [vocabulary.checked_text(text) for text in texts]
    if left_out or any(_UNSPELLABLE in text for text in checked):
      return [encode(text) for text in texts]
    rows = engine.encode_batch_fast(list(texts), add_special_tokens=False)
    return [row.ids for row in rows]

  return encode, encode_batch


def _seal(tree: Tree, special: set[int]) -> Tree:
  """Reduces a tree to the encoding of text, which no special id can enter.

  Special pieces get names that no text spells: a model that looks words up, as
  unigram and WordPiece do, would otherwise find them in the text '</s>'. What
  truncates, pads or randomly varies the ids is removed.

  Args:
    tree: of the file.
    special: ids that text must not spell.
  """
  pieces = reader.pieces_of(tree)
  renamed = {pieces[i]: f'{_UNSPELLABLE}{i}' for i in special}
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
      for pair in reader.merges_of(model)
      if not renamed.keys() & {*pair, reader.joined(model, pair)}
    ]
    model['dropout'] = None
  added = [
    token | {'content': f'{_UNSPELLABLE}{token["id"]}', 'special': True}
    if token['id'] in special
    else token
    for token in reader.added_tokens(tree)
  ]
  sealed = {'model': model, 'added_tokens': added}
  removed = dict.fromkeys(('truncation', 'padding', 'post_processor'))
  return tree | sealed | removed


def open_tree(path: str, tree: Tree) -> tokenizers.Tokenizer:
  """Opens a tree so that text spells no special token, and tries it.

  Raises:
    ValueError: the package refuses the tree, or gives other ids to its added
      tokens.
  """
  fix = 'get the file again, or write it with save_pretrained'
  try:
    engine = tokenizers.Tokenizer.from_str(json.dumps(tree))
    engine.encode_special_tokens = True
    engine.decode(engine.encode(vocabulary.PROBE).ids)
  except BaseException as e:
    # A panic of Rust is no Exception, and its class is not public.
    if not isinstance(e, Exception) and type(e).__name__ != 'PanicException':
      raise
    raise files.error(path, f'refused ({str(e)[:60]}); {fix}') from e
  for token in reader.added_tokens(tree):
    if engine.token_to_id(token['content']) != token['id']:
      raise files.error(path, f'id {token["id"]} is not the next one; {fix}')
  return engine


@functools.cache
def _alphabet() -> dict[str, int]:
  """Returns the byte of each character of the byte-level alphabet.

  Byte-level BPE writes printable bytes of Latin-1 as themselves, and the others
  as characters from U+0100 on.
  """
  plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = [byte for byte in range(0x100) if byte not in plain]
  return {chr(byte): byte for byte in plain} | {
    chr(0x100 + n): byte for n, byte in enumerate(others)
  }


def _utf8_of(tree: Tree, texts: list[str], is_byte_level: bool) -> list[bytes]:
  """Returns the bytes of UTF-8 that each piece stands for."""
  if not is_byte_level:
    return [_metaspace_bytes(piece) for piece in texts]
  # Added tokens are matched in text before it is written in the alphabet.
  verbatim = {t['id'] for t in reader.added_tokens(tree)}
  return [
    piece.encode() if i in verbatim else _byte_level_bytes(piece)
    for i, piece in enumerate(texts)
  ]


def _byte_level_bytes(piece: str) -> bytes:
  alphabet = _alphabet()
  if all(c in alphabet for c in piece):
    return bytes(alphabet[c] for c in piece)
  return piece.encode()


def _metaspace_bytes(piece: str) -> bytes:
  if byte := _BYTE.fullmatch(piece):
    return bytes([int(byte[1], 16)])
  return piece.replace(vocabulary.SPACE_MARK, ' ').encode()


def _word_starts(
  tree: Tree, texts: list[str], utf8: list[bytes], reserved: int
) -> np.ndarray:
  """Finds the pieces that begin a word: bool [V].

  Pieces that continue a word are known by their prefix ('##'), if the model has
  one. A model that marks the ends of words instead does not say where they
  begin, so each of its pieces counts as a word; so does each piece of a model
  that has whole words only.
  """
  model = tree['model']
  if prefix := model.get('continuing_subword_prefix'):
    starts = [not piece.startswith(prefix) for piece in texts]
    return np.array(starts + [True] * reserved)
  if model.get('end_of_word_suffix') or model.get('type') == 'WordLevel':
    return np.ones(len(texts) + reserved, bool)
  return vocabulary.word_starts(utf8, reserved)
