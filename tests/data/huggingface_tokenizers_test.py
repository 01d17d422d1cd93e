"""Tokenizers of other houses: the same ids in and out, and nothing forged."""

import functools
import json
from pathlib import Path
import random
import re
import subprocess
import sys
from typing import Any

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import sentencepiece as spm
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

import lm.data.tokenizers
from lm.data.tokenizers import (
  auto,
  characters,
  export,
  huggingface,
  sentencepiece,
  tokenizer_json,
)
from tests import interop_peer

TEXTS = [
  *(f'The brown fox\n\n  jumps over\tthe dog {n}.\n' for n in range(300)),
  *(f'你好，世界。\n我们去学习第{n}课' for n in range(100)),
  'nul\0here, mark\u2581there',
]
SPELLED = (
  ' a  b \n\n\t c\r\n\0 e\u0301 \ufb01 \uff21\u2581\u2047 \U0001f600\ufeff ',
  '<s></s><pad><unk><0x41><0x0A',
  '<mask><extra_id_0><|endoftext|>[MASK][CLS]',
  '\U0010ffff special 1',
  '\u2581\u2581 a\u2581',
  ' The brown  fox jumps\n',
  '你好，世界。我们去学习 123éé',
  '',
)
OWN = ('bpe', 'unigram', 'characters', 'bytes')
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
PIECES = ['END', *ALPHABET, '12', '123', '1234', '\u0120zz']
MERGES = ['1 2', '12 3', '123 4']
TEXT = st.text(st.characters(exclude_categories=['Cs']))


made = functools.cache(huggingface.make)


def save(path: Path, tree: Any) -> str:
  path.write_text(json.dumps(tree))
  return str(path)


def read(path: str) -> Any:
  return json.loads(Path(path).read_text())


def engine_of(tree: Any) -> tokenizers.Tokenizer:
  engine = tokenizers.Tokenizer.from_str(json.dumps(tree))
  engine.encode_special_tokens = True
  return engine


@pytest.fixture(scope='module')
def own(tmp_path_factory) -> dict[str, str]:
  """The files of our own kinds."""
  root = tmp_path_factory.mktemp('own')
  files = {name: str(root / f'{name}.model') for name in OWN[:2]}
  sentencepiece.train(TEXTS, files['bpe'], 370, 'bpe')
  sentencepiece.train(TEXTS, files['unigram'], 308, 'unigram')
  characters.train(TEXTS, str(root / 'c.json'))
  return files | {'characters': str(root / 'c.json'), 'bytes': 'bytes'}


@pytest.fixture(scope='module')
def exported(own) -> dict[str, tokenizers.Tokenizer]:
  return {k: engine_of(export.to_tokenizer_json(f, 4)) for k, f in own.items()}


@pytest.fixture(scope='module')
def foreign(tmp_path_factory) -> dict[str, str]:
  """Files such as others write them."""
  root = tmp_path_factory.mktemp('foreign')
  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.train_from_iterator(
    TEXTS,
    trainers.BpeTrainer(
      vocab_size=330,
      special_tokens=['<|endoftext|>'],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  made.add_tokens(['  \n', 'éé'])
  pieces = ['<pad>', '</s>', '<unk>', '\u2581', 'a', '\u2581the', 's', '<0x41>']
  pieces += [f'<extra_id_{n}>' for n in reversed(range(3))]
  special = [0, 1, 2, 8, 9, 10]
  t5 = {
    'model': {
      'type': 'Unigram',
      'unk_id': 2,
      'vocab': [[p, -float(n > 2)] for n, p in enumerate(pieces)],
    },
    'pre_tokenizer': {
      'type': 'Metaspace',
      'replacement': '\u2581',
      'prepend_scheme': 'always',
      'split': True,
    },
    'decoder': {
      'type': 'Metaspace',
      'replacement': '\u2581',
      'prepend_scheme': 'always',
      'split': True,
    },
    'added_tokens': [added(i, pieces[i]) for i in special],
  }
  words = [
    '[PAD]',
    '[UNK]',
    '[CLS]',
    '[SEP]',
    '[MASK]',
    'fox',
    '##es',
    '[',
    ']',
  ]
  bert = tokenizer_json.wordpiece(
    [*words, 'mask', 'é', 'e', '世'], lowercase=True
  )
  path = str(root / 'bytes.json')
  made.save(path)
  return {
    'bytes': path,
    't5': save(root / 't5.json', t5),
    'bert': save(root / 'bert.json', bert),
  }


def added(i: int, content: str, special: bool = True) -> dict[str, Any]:
  flags = dict.fromkeys(
    ('single_word', 'lstrip', 'rstrip', 'normalized'), False
  )
  return {'id': i, 'content': content, 'special': special, **flags}


@pytest.mark.parametrize('kind', OWN)
@hypothesis.given(text=TEXT | st.lists(st.sampled_from(SPELLED)).map(''.join))
def test_ids_are_the_same_in_an_exported_tokenizer(own, exported, kind, text):
  check_same_ids(own, exported, kind, text)


@pytest.mark.parametrize('kind', OWN)
def test_ids_of_words_are_the_same_in_an_exported_tokenizer(
  own, exported, kind
):
  draw = random.Random(0)
  parts = ('The', ' ', 'brown fox', 'jum', 'ps', '\n', '你好', '，', '1', '<0x')
  for _ in range(400):
    text = ''.join(draw.choices(parts, k=draw.randrange(30)))
    check_same_ids(own, exported, kind, text)


def check_same_ids(own, exported, kind: str, text: str) -> None:
  words, there = auto.load(own[kind]), exported[kind]
  mine, theirs = words.encode(text), there.encode(text).ids
  assert there.decode(theirs) == text
  if kind == 'unigram' and mine != theirs:
    # sentencepiece adds in float32, and so finds a best among equals
    score = spm.SentencePieceProcessor(model_file=own[kind]).GetScore
    assert sum(map(score, mine)) == pytest.approx(sum(map(score, theirs)), 1e-6)
  else:
    assert mine == theirs


@pytest.mark.parametrize('kind', OWN)
def test_an_exported_tokenizer_comes_back_as_it_was(own, tmp_path, kind):
  tree = export.to_tokenizer_json(own[kind], 4)
  path = save(tmp_path / 'tokenizer.json', tree)
  mine, back = auto.load(own[kind], 4), huggingface.make(path)
  for key in ('size', 'bos', 'eos', 'pad', 'mask'):
    assert getattr(back, key) == getattr(mine, key), key
  assert (
    list(back.sentinels)
    == list(mine.sentinels)
    == [mine.size - n for n in (1, 2, 3)]
  )
  np.testing.assert_array_equal(back.word_starts, mine.word_starts)
  for text in SPELLED:
    ids = mine.encode(text)
    assert back.encode(text) == back.encode_batch([text])[0] == ids
    assert back.decode([back.bos, *ids, mine.size - 1]) == text
  assert export.to_tokenizer_json(path) == tree


def test_a_sentencepiece_model_of_others_keeps_its_ids_or_is_refused(tmp_path):
  def train(**settings) -> str:
    path = tmp_path / 'm.model'
    with path.open('wb') as f:
      spm.SentencePieceTrainer.Train(
        sentence_iterator=iter([*TEXTS, *['fox>> dog>>'] * 99]),
        model_writer=f,
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        pad_id=3,
        minloglevel=2,
        **settings,
      )
    return str(path)

  path = train(model_type='bpe', bos_piece='<begin>')
  mine, there = auto.load(path), engine_of(export.to_tokenizer_json(path))
  assert mine.bos == there.token_to_id('<begin>')
  for text in (*SPELLED, '<begin><s>'):
    assert there.encode(text).ids == mine.encode(text)
  path = train(model_type='bpe', user_defined_symbols=['<sep>'])
  with pytest.raises(ValueError, match=r'm\.model: has unused or user-defined'):
    export.to_tokenizer_json(path)
  path = train(model_type='unigram')
  mine, there = auto.load(path), engine_of(export.to_tokenizer_json(path))
  for text in (*SPELLED, '<s>>>>', '>><0x41>>>'):
    assert there.encode(text).ids == mine.encode(text)
  path = train(model_type='unigram', bos_piece='913')
  with pytest.raises(ValueError, match=r"m\.model: its pieces spell '913', w"):
    export.to_tokenizer_json(path)


@hypothesis.given(text=TEXT | st.lists(st.sampled_from(SPELLED)).map(''.join))
def test_byte_level_text_round_trips_and_forges_nothing(foreign, text):
  words = made(foreign['bytes'])
  ids = words.encode(text)
  assert words.decode(ids) == text
  assert words.encode_batch(['x', text])[1] == ids
  assert 0 not in ids and max(ids, default=0) < words.size


def test_no_text_spells_a_special_id(foreign):
  specials = {'bytes': {0}, 't5': {0, 1, 8, 9, 10}, 'bert': {0, 2, 3, 4}}
  for kind, ids in specials.items():
    words = made(foreign[kind])
    texts = [*SPELLED, '</s>', '[SEP]', '[MASK]', '<extra_id_2>', '<pad> [PAD]']
    texts += [f'\U0010ffff special {i}' for i in range(words.size)]
    for text, got in zip(texts, words.encode_batch(texts), strict=True):
      assert not ids & set(got), (kind, text)
      assert words.encode(text) == got
  # Their own package would find the piece, whatever it is told.
  assert 1 in engine_of(read(foreign['t5'])).encode('a</s>').ids


@pytest.mark.parametrize('prefix', (None, '##'))
def test_a_special_that_merges_make_is_not_spelled(tmp_path, prefix):
  mark = prefix or ''
  parts = ['<', f'{mark}/', f'{mark}s', f'{mark}>', '</', f'{mark}s>', '</s>']
  tree = {
    'model': {
      'type': 'BPE',
      'vocab': {piece: i for i, piece in enumerate(parts)},
      'merges': [[parts[0], parts[1]], [parts[2], parts[3]], parts[4:6]],
      'continuing_subword_prefix': prefix,
    },
    'added_tokens': [added(6, '</s>')],
  }
  assert engine_of(tree).encode('</s>').ids == [6]
  words = huggingface.make(save(tmp_path / 't.json', tree))
  assert words.eos == 6 and words.encode('</s>') == [4, 5]
  tree['added_tokens'] = []
  path = save(tmp_path / 't.json', tree)
  with pytest.raises(ValueError, match="eos=6 is the text '</s>'; give a spec"):
    huggingface.make(path, eos=6)


def test_special_ids_are_known_by_their_names(foreign, own):
  for name in foreign:
    made = auto.load(foreign[name])
    names = {x['content']: x['id'] for x in read(foreign[name])['added_tokens']}
    special = {x for x in names if x[0] in '<['} & made.special.keys()
    assert special and made.bos in made.special.values()
    assert all(made.special[x] == names[x] for x in special)
    assert all(made.decode([i]) == '' for i in made.special.values())
  assert auto.load(own['bpe']).special == {'<pad>': 0, '</s>': 1, '<s>': 2}


def test_specials_decode_to_nothing(foreign):
  for kind, text in (
    ('bytes', ' the  \nfox'),
    ('t5', 'a the'),
    ('bert', 'fox'),
  ):
    words = made(foreign[kind], reserved=2)
    ids = words.encode(text)
    assert ids and words.decode(ids) == text
    extra = [words.bos, words.mask, words.eos, words.pad, *words.sentinels]
    assert words.decode([*extra, *np.asarray(ids), words.size - 1]) == text
    for bad in (-1, words.size):
      with pytest.raises(ValueError, match=f'id {bad} is outside the vocabula'):
        words.decode([1, bad])
    with pytest.raises(ValueError, match='lone surrogate at character 1'):
      words.encode_batch(['a\ud800'])


def test_what_a_file_adds_to_text_is_left_out(foreign, tmp_path):
  tree = read(foreign['bert'])
  tree['truncation'] = {
    'direction': 'Right',
    'max_length': 3,
    'strategy': 'LongestFirst',
    'stride': 0,
  }
  tree['padding'] = {
    'strategy': {'Fixed': 9},
    'direction': 'Right',
    'pad_to_multiple_of': None,
    'pad_id': 0,
    'pad_type_id': 0,
    'pad_token': '[PAD]',
  }
  words = huggingface.make(save(tmp_path / 't.json', tree))
  assert engine_of(tree).encode('FOXES').ids == [2, 5, 3] + [0] * 6
  assert words.encode('FOXES') == words.encode_batch(['FOXES'])[0] == [5, 6]
  tree = read(foreign['bytes'])
  tree['model']['dropout'] = 0.9
  words = huggingface.make(save(tmp_path / 'd.json', tree))
  assert words.encode(TEXTS[0]) == made(foreign['bytes']).encode(TEXTS[0])


def test_ends_are_found_by_their_usual_names(tmp_path):
  def of(*pieces, **settings):
    vocab = {piece: i for i, piece in enumerate(['x', *pieces])}
    tree = {'model': {'type': 'WordLevel', 'vocab': vocab, 'unk_token': 'x'}}
    words = huggingface.make(save(tmp_path / 't.json', tree), **settings)
    return words.bos, words.eos, words.pad, words.mask

  assert of('[PAD]', '[SEP]', '[CLS]', '[MASK]') == (3, 2, 1, 4)
  assert of('<s>', '</s>', '<pad>', '<mask>') == (1, 2, 3, 4)
  assert of('<pad>', '</s>') == (2, 2, 1, None)
  assert of('<bos>', '<eos>') == (1, 2, 2, None)
  assert of('<|begin_of_text|>', '<|end_of_text|>') == (1, 2, 2, None)
  assert of('<|endoftext|>') == (1, 1, 1, None)
  assert of('<|endoftext|>', '<s>', '</s>') == (2, 3, 3, None)
  assert of('<|endoftext|>', '<s>', '</s>', eos=1) == (1, 1, 1, None)
  assert of('<s>', '</s>', 'end', eos=3) == (3, 3, 3, None)
  assert of('<s>', '</s>', 'end', bos=3, pad=1) == (3, 2, 1, None)
  with pytest.raises(ValueError, match=r't\.json: has no piece known to end a'):
    of('end')


def test_a_table_may_have_more_rows_than_a_file_has_ids(foreign):
  plain = made(foreign['t5'])
  assert (plain.size, plain.reserved, plain.mask) == (11, 0, None)
  assert list(plain.sentinels) == [10, 9, 8]
  words = made(foreign['t5'], size=16, reserved=2)
  # All 7 above the file's: shards of the one serve the other.
  assert (words.size, words.reserved, words.mask) == (18, 7, 16)
  assert list(words.sentinels) == [10, 9, 8]
  assert len(words.word_starts) == 18 and words.sha256 == plain.sha256
  assert words.encode('a the') == plain.encode('a the')
  assert words.decode([*words.encode('a'), 11, 17]) == 'a'
  words = made(foreign['bytes'], reserved=3)
  assert (words.size, words.mask, list(words.sentinels)) == (
    335,
    332,
    [334, 333],
  )
  assert made(foreign['bert'], reserved=3).mask == 4


def test_words_begin_where_a_piece_says_so(foreign):
  def starts(kind: str, text: str) -> str:
    words = made(foreign[kind])
    return ''.join(str(int(words.word_starts[i])) for i in words.encode(text))

  assert starts('t5', 'thes the a') == '10110'
  assert starts('bert', 'foxes 世 fox') == '1011'
  tokens = [*ALPHABET, '\u0120x', '\u00e4\u00bd', 'END']
  path = foreign['bytes'].replace('bytes.json', 'small.json')
  merges = ['\u0120 x', '\u00e4 \u00bd']
  tree = tokenizer_json.byte_level(tokens, merges, {258}, 'gpt-2')
  words = huggingface.make(save(Path(path), tree), eos=258)
  for text, expected in (('y x', '01'), ('x你', '000'), ('x.y', '010')):
    got = ''.join(str(int(words.word_starts[i])) for i in words.encode(text))
    assert got == expected, text
  assert words.word_starts[258]


@pytest.mark.parametrize(
  ('pre', 'text', 'expected'),
  [
    ('gpt-2', '1234', ['1234']),
    ('default', '1234', ['1234']),
    ('smollm', '1234', ['1', '2', '3', '4']),
    ('qwen2', '1234', ['1', '2', '3', '4']),
    ('llama-bpe', '12341', ['123', '4', '1']),
    ('gpt-2', 'x zz', ['x', '\u0120', 'z', 'z']),
    ('llama-bpe', 'x zz', ['x', '\u0120zz']),
    ('gpt-2', 'e\u0301', ['e', '\u00cc', '\u0123']),
    ('qwen2', 'e\u0301', ['\u00c3', '\u00a9']),
  ],
)
def test_a_byte_level_tokenizer_cuts_text_as_its_kind_does(pre, text, expected):
  merges = ['#version: 0.2', *MERGES]
  tree = tokenizer_json.byte_level(PIECES, merges, {0}, pre, added=[2])
  assert engine_of(tree).encode(text).tokens == expected
  assert (
    engine_of(tree).decode(engine_of(tree).encode(TEXTS[0]).ids) == TEXTS[0]
  )
  flags = [(t['content'], t['special']) for t in tree['added_tokens']]
  assert flags == [('END', True), (PIECES[2], False)]


def test_text_that_a_file_cannot_spell_is_unknown_or_left_out(tmp_path):
  pieces = [p for p in PIECES if p != 'q']
  tree = tokenizer_json.byte_level(pieces, MERGES, {0}, 'gpt-2')
  path = save(tmp_path / 't.json', tree)
  assert huggingface.make(path, eos=0).encode('1q2') == [
    pieces.index('1'),
    pieces.index('2'),
  ]
  tree['model']['unk_token'] = 'END'
  assert engine_of(tree).encode('q').ids == [0]
  words = huggingface.make(save(tmp_path / 't.json', tree), eos=0)
  assert words.encode('q1') == words.encode_batch(['q1'])[0]
  assert words.encode('q1') == [pieces.index('1')]


@pytest.mark.parametrize('prefix', (True, False))
def test_a_sentencepiece_bpe_is_built_from_its_lists(tmp_path, prefix):
  path = str(tmp_path / 'm.model')
  with open(path, 'wb') as f:
    spm.SentencePieceTrainer.Train(
      sentence_iterator=iter(TEXTS),
      model_writer=f,
      vocab_size=390,
      model_type='bpe',
      byte_fallback=True,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      add_dummy_prefix=prefix,
      minloglevel=2,
    )
  model = spm.SentencePieceProcessor(model_file=path)
  pieces = [model.IdToPiece(i) for i in range(390)]
  scores = [model.GetScore(i) for i in range(390)]
  piece_types = [2, 3, 3] + [6] * 256 + [1] * 131
  tree = tokenizer_json.metaspace(pieces, scores, piece_types, prefix=prefix)
  words = huggingface.make(save(tmp_path / 't.json', tree))
  assert (words.bos, words.eos, words.pad) == (1, 2, 2)
  draw = random.Random(0)
  for _ in range(500):
    text = ''.join(draw.choices('The brown fox\n 12\u2581é你<s>', k=20))
    assert words.encode(text) == model.Encode(text)
    assert words.decode(words.encode(text)) == model.Decode(model.Encode(text))
  # Scores rank the pieces, wherever they stand.
  back = [*range(259), *reversed(range(259, 390))]
  tree = tokenizer_json.metaspace(
    [pieces[i] for i in back],
    [scores[i] for i in back],
    piece_types,
    prefix=prefix,
  )
  for text in TEXTS[::40]:
    assert engine_of(tree).encode(text).tokens == model.EncodeAsPieces(text)
  piece_types[300] = 4
  tree = tokenizer_json.metaspace(pieces, scores, piece_types, prefix=prefix)
  assert tree['added_tokens'][-1]['content'] == pieces[300]
  assert not tree['added_tokens'][-1]['special']


@pytest.mark.parametrize('lowercase', (True, False))
def test_a_wordpiece_tokenizer_is_built_from_its_lines(lowercase):
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'The', 'fox']
  pieces += ['##es', '##e', '.', ',', 'cafe', 'Café', '世', '1', '##2']
  text = 'The foxes, the CAFÉ. Café\x00 世界 12 121 3\u00a0e\u0301'
  there = tokenizers.BertWordPieceTokenizer(
    vocab={piece: i for i, piece in enumerate(pieces)}, lowercase=lowercase
  )
  lines = '\r\n'.join([*pieces, '']).split('\n')
  engine = engine_of(tokenizer_json.wordpiece(lines, lowercase))
  got = engine.encode(text, 'the fox')
  expected = there.encode(text, 'the fox')
  assert got.ids == expected.ids and got.type_ids == expected.type_ids
  assert 1 in got.ids and got.ids[0] == 2 and pieces.index('##es') in got.ids


def test_lists_that_do_not_fit_are_one_line():
  cases = (
    (
      lambda: tokenizer_json.byte_level(PIECES, [], {0}, 'x'),
      'pre-tokenizer x: ',
    ),
    (
      lambda: tokenizer_json.byte_level(PIECES, [], {0}, ''),
      'pre-tokenizer : ',
    ),
    (
      lambda: byte_level('1 q2'),
      'merge 1 q2: does not join two pieces into a third',
    ),
    (lambda: byte_level('1 9'), 'merge 1 9: does not join two'),
    (lambda: byte_level('12'), 'merge 12: does not join two'),
    (lambda: byte_level('1 2 3'), 'merge 1 2 3: does not join two'),
    (
      lambda: tokenizer_json.byte_level(['a', 'b', 'a'], [], {0}, 'gpt-2'),
      "piece 'a': occurs twice, as id 0 and 2",
    ),
    (
      lambda: tokenizer_json.metaspace(['a', 'b'], [0.0], [1, 1]),
      '2 tokens, 1 scores and 2 types: must be equally many',
    ),
    (
      lambda: tokenizer_json.metaspace(['a', 'a'], [0.0] * 2, [1, 1]),
      "piece 'a': occurs twice",
    ),
    (
      lambda: tokenizer_json.wordpiece(['[UNK]', 'a', 'a'], True),
      "piece 'a': occurs twice",
    ),
    (
      lambda: tokenizer_json.wordpiece(['a', ''], True),
      'vocab.txt: lacks the piece',
    ),
  )

  def byte_level(merge: str):
    return tokenizer_json.byte_level(PIECES, [merge], {0}, 'gpt-2')

  for build, message in cases:
    with pytest.raises(ValueError, match=f'^{re.escape(message)}') as e:
      build()
    assert len(str(e.value)) <= 200 and '\n' not in str(e.value)


def test_ids_that_do_not_fit_are_one_line(foreign):
  cases: tuple[tuple[dict[str, Any], str], ...] = (
    ({'size': 331}, 'has 332 ids, size=331; give 332 to 4194304'),
    ({'size': 400.0}, 'has 332 ids, size=400.0; give 332 to 4194304'),
    ({'size': 10**9}, 'size=1000000000; give 332 to 4194304'),
    ({'bos': 332}, 'bos=332 is not one of its 332 ids'),
    ({'pad': -1}, 'pad=-1 is not one of its 332 ids'),
    ({'eos': '1'}, 'eos=1 is not one of its 332 ids'),
    ({'eos': 1}, "eos=1 is the text '!'; give a special id"),
    ({'eos': 300}, 'eos=300 is the text '),
  )
  for settings, message in cases:
    with pytest.raises(ValueError, match=r'tokenizer .*bytes\.json: ') as e:
      huggingface.make(foreign['bytes'], **settings)
    assert message in str(e.value)
    assert len(str(e.value)) <= 200 and '\n' not in str(e.value)


def test_broken_files_are_one_line(foreign, tmp_path):
  whole = Path(foreign['bytes']).read_text()
  good = {'type': 'BPE', 'vocab': {'a': 0, '</s>': 1}, 'merges': []}
  huggingface.make(save(tmp_path / 't.json', {'model': good}))

  def model(**settings) -> str:
    return json.dumps({'model': good | settings})

  shapes = (
    json.dumps({'model': good, 'normalizer': 3}),
    '',
    '[]',
    '3',
    '{}',
    '{"model": 3}',
    '{"model": {"vocab": {}}}',
    '{"model": {"vocab": 3}}',
    whole[: len(whole) // 2],
    '[' * 99_999,
    '{"model":' * 99_999,
    '\udcff',
    model(vocab={'a': -1}),
    model(vocab={'a': 1 << 32}),
    model(vocab={'a': True}),
    model(vocab={'\ud800': 0}),
    model(vocab=[['a', 0, 0]]),
    model(vocab=[[3, 0.0]]),
    model(merges=3),
    model(merges=[3]),
    model(merges=['a']),
    model(merges=[['a', 3]]),
    model(unk_token=3),
    model(unk_token=['a']),
    model(unk_id=[]),
    model(continuing_subword_prefix=3),
    json.dumps({'model': good, 'added_tokens': 3}),
    json.dumps({'model': good, 'added_tokens': [3]}),
    json.dumps({'model': good, 'added_tokens': [{'id': 0}]}),
  )
  contents = (
    model(merges=[['a', 'b']]),
    model(vocab=[['</s>', 0.0]], type='Unigram', unk_id=7),
    model(vocab=[['</s>', None]], type='Unigram'),
    model(type='Other'),
    model(dropout='x', fuse_unk=3),
    json.dumps({'model': good, 'pre_tokenizer': {'type': 'Sequence'}}),
    json.dumps({'model': good, 'added_tokens': [{'id': 1, 'content': '</s>'}]}),
    '{"model": '
    + json.dumps(good)
    + ', "decoder": {"type": '
    + '[' * 900
    + ']' * 900
    + '}}',
  )
  path = tmp_path / 'broken.json'
  for body, message in [
    *((body, 'not a tokenizer.json, or cut short; get') for body in shapes),
    *((body, r'refused \(.*\); get') for body in contents),
    (
      json.dumps({'model': good, 'added_tokens': [added(7, '</t>')]}),
      'id 7 is not the next one; get',
    ),
  ]:
    path.write_bytes(body.encode('utf-8', 'surrogateescape'))
    with pytest.raises(ValueError, match=rf'broken\.json: {message}') as e:
      huggingface.make(str(path))
    assert len(str(e.value)) <= 200 and '\n' not in str(e.value), body[:80]
  with pytest.raises(ValueError, match=r'no\.json: cannot be read'):
    huggingface.make(str(tmp_path / 'no.json'))
  with pytest.raises(ValueError, match=r'no\.json: cannot be read'):
    export.to_tokenizer_json(str(tmp_path / 'no.json'))


def test_a_fault_inside_the_package_is_one_line(tmp_path, capfd):
  tree = {
    'model': {'type': 'BPE', 'vocab': {'</s>': 0}, 'merges': []},
    'normalizer': {'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'},
  }
  with pytest.raises(ValueError, match=r't\.json: refused \(Precompiled: '):
    huggingface.make(save(tmp_path / 't.json', tree))
  assert 'panicked' in capfd.readouterr().err


def test_random_damage_gives_an_error_or_a_working_tokenizer(foreign, tmp_path):
  draw = random.Random(0)
  path = tmp_path / 't.json'
  refused = 0
  for kind in ('bytes', 't5', 'bert'):
    whole = Path(foreign[kind]).read_bytes()
    for _ in range(60):
      data = bytearray(whole)
      data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
      path.write_bytes(data)
      try:
        words = huggingface.make(str(path))
      except ValueError as e:
        refused += 1
        assert re.fullmatch(r'tokenizer .*t\.json: [^\n]+', str(e))
        continue
      ids = words.encode(SPELLED[0])
      assert all(0 <= i < words.size for i in ids)
      words.decode(ids)
  assert 20 < refused < 170


def test_files_are_told_apart_by_what_they_hold(own, foreign):
  assert auto.load(foreign['t5'], 2).sentinels == [10, 9, 8]
  assert auto.load(foreign['t5'], 2).mask == 11
  assert auto.load(own['characters']).eos == 1
  assert export.to_tokenizer_json(foreign['t5']) == read(foreign['t5'])


def test_a_missing_package_is_one_line(foreign, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  monkeypatch.delitem(sys.modules, 'lm.data.tokenizers.huggingface')
  monkeypatch.delattr(lm.data.tokenizers, 'huggingface')
  with pytest.raises(ValueError) as e:
    auto.load(foreign['t5'])
  assert str(e.value).endswith(
    "t5.json: needs the package tokenizers: pip install -e '.[interop]'"
  )


def test_the_files_beside_name_the_specials(own, foreign):
  def settings(path: str, reserved: int = 0) -> Any:
    words = auto.load(path, reserved)
    tree = export.to_tokenizer_json(path, reserved)
    return export.special_files(words, tree)['tokenizer_config.json']

  always = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
  }
  ends = {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<pad>'}
  whole = always | ends | {'split_special_tokens': True}
  for path in own.values():
    assert settings(path) == whole
    assert settings(path, 1) == whole | {'mask_token': '<mask>'}
  assert settings(foreign['bert'], 3) == always | {
    'bos_token': '[CLS]',
    'eos_token': '[SEP]',
    'pad_token': '[PAD]',
    'mask_token': '[MASK]',
  }
  end = '<|endoftext|>'
  assert settings(foreign['bytes'], 1) == always | {
    'bos_token': end,
    'eos_token': end,
    'pad_token': end,
  }


@pytest.mark.process
def test_transformers_opens_an_exported_folder(own, foreign, tmp_path, peer):
  asked = {}
  for kind in (*OWN, 'foreign'):
    path = foreign['bytes'] if kind == 'foreign' else own[kind]
    words, tree = auto.load(path, 3), export.to_tokenizer_json(path, 3)
    files = export.special_files(words, tree)
    (tmp_path / kind).mkdir()
    for name, body in ({'tokenizer.json': tree} | files).items():
      save(tmp_path / kind / name, body)
    own_only = SPELLED if kind != 'foreign' else SPELLED[5:6]
    texts = [*TEXTS[:3], *own_only]
    save(tmp_path / kind / 'texts.json', texts)
    asked[kind] = words, texts
  done = subprocess.run(
    [
      *(peer, interop_peer.__file__, 'words'),
      *(str(tmp_path / kind) for kind in asked),
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  for kind, (words, texts) in asked.items():
    there = json.loads((tmp_path / kind / 'peer.json').read_text())
    assert there['ends'] == [words.bos, words.eos, words.pad]
    if kind != 'foreign':
      assert (there['mask'], there['size']) == (words.mask, words.size)
    assert there['ids'] == [words.encode(text) for text in texts]
    assert there['texts'] == texts
