"""Tokenizers lose nothing, forge nothing, and refuse what is broken."""

import random
import re
from typing import Any

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import sentencepiece as spm

from lm import types
from lm.data.tokenizers import auto, characters, sentencepiece, vocabulary

SPELLED = (
  '<s></s><pad><unk><0x41>',
  '<0x0A>',
  '</s>',
  '\u2581',
  ' \u2581\u2581 a\u2581',
  '\0',
  'a\0b\0',
  '   \n\n\t\t \r\n ',
  '\u2047 \ufffd\ufeff\uffff\U0010ffff',
  'e\u0301\ufb01\uff21\u00a0\u3000',
  '你好，世界。我们去学习',
  '',
)
TEXTS = [
  *(f'The brown fox\n\n  jumps over\tthe dog {n}.\n' for n in range(400)),
  *(f'你好，世界。\n我们去学习第{n}课' for n in range(100)),
  'nul\0here, mark\u2581there',
]
NAMES = ('bpe', 'unigram', 'characters', 'bytes')
# Scripts by their ranges of code points; most write no spaces between words.
SCRIPTS = {
  'latin': 'az',
  'cyrillic': '\u0430\u044f',
  'hebrew': '\u05d0\u05ea',
  'arabic': '\u0620\u064a',
  'hindi': '\u0905\u094d',
  'thai': '\u0e01\u0e5b',
  'tibetan': '\u0f40\u0fbc',
  'burmese': '\u1000\u109f',
  'khmer': '\u1780\u17dd',
  'japanese': '\u3041\u30ff',
  'chinese': '\u4e00\u9fff',
  'korean': '\uac00\ud7a3',
  'emoji': '\U0001f600\U0001f64f',
  'any': '\0\U0010ffff',
}


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> dict[str, types.Tokenizer]:
  root = tmp_path_factory.mktemp('tokenizers')
  sentencepiece.train(TEXTS, str(root / 'b.model'), 370, 'bpe')
  sentencepiece.train(TEXTS, str(root / 'u.model'), 308, 'unigram')
  characters.train(TEXTS, str(root / 'c.json'))
  files = (str(root / 'b.model'), str(root / 'u.model'), str(root / 'c.json'))
  return {
    name: auto.load(file)
    for name, file in zip(NAMES, (*files, 'bytes'), strict=True)
  }


def check_lossless(words: types.Tokenizer, texts: list[str]) -> None:
  batch = words.encode_batch(texts)
  for text, ids in zip(texts, batch, strict=True):
    assert words.decode(ids) == text, repr(text)
  flat = np.concatenate([np.asarray(ids, np.int64) for ids in batch])
  assert flat.min() >= 0 and flat.max() < words.size
  assert not np.isin(flat, (words.pad, words.eos, words.bos)).any()


@pytest.mark.parametrize('name', NAMES)
def test_text_that_spells_specials_round_trips_and_forges_nothing(made, name):
  check_lossless(made[name], list(SPELLED))
  for text in SPELLED:
    assert made[name].encode(text) == made[name].encode_batch([text])[0]


@pytest.mark.slow
def test_100_000_random_strings_round_trip(made):
  rng = random.Random(0)
  alphabets = (
    *SPELLED[:-1],
    'abc \n',
    ''.join(map(chr, range(0x300))),
  )

  def draw() -> str:
    length = rng.randrange(24)
    if rng.random() < 0.5:
      return ''.join(rng.choices(rng.choice(alphabets), k=length))
    code = np.frombuffer(rng.randbytes(4 * length), np.uint32) % 0x110000
    return ''.join(chr(c) for c in code if not 0xD800 <= c < 0xE000)

  texts = [draw() for _ in range(100_000)]
  for n, name in enumerate(NAMES):
    check_lossless(made[name], texts[n::4])
  check_lossless(made['bpe'], texts)


@pytest.mark.parametrize('name', NAMES)
@hypothesis.given(text=st.text(st.characters(exclude_categories=['Cs'])))
def test_any_text_round_trips(made, name, text):
  words = made[name]
  assert words.decode(words.encode(text)) == text
  assert words.encode(text) == words.encode_batch(['x', text])[1]


@pytest.mark.parametrize('name', NAMES)
def test_specials_decode_to_nothing(made, name):
  words = made[name]
  ids = words.encode(' a b\u2581')
  around = [words.bos, *ids, words.eos, words.pad]
  assert words.decode(around) == ' a b\u2581'
  assert (words.pad, words.eos, words.bos) == (0, 1, 2)


@pytest.mark.parametrize('name', ('bytes', 'bpe', 'characters'))
def test_reserved_ids_are_a_mask_and_sentinels(tmp_path, name):
  path = {'bytes': 'bytes', 'bpe': 'm.model', 'characters': 'c.json'}[name]
  path = path if name == 'bytes' else str(tmp_path / path)
  if name == 'bpe':
    sentencepiece.train(TEXTS, path, 308)
  elif name == 'characters':
    characters.train(TEXTS, path)
  plain, one, many = (auto.load(path, n) for n in (0, 1, 4))
  size = plain.size
  assert (plain.mask, list(plain.sentinels)) == (None, [])
  assert (one.mask, list(one.sentinels), one.size) == (size, [], size + 1)
  assert (many.mask, many.size, many.reserved) == (size, size + 4, 4)
  assert list(many.sentinels) == [size + 3, size + 2, size + 1]
  assert plain.sha256 == many.sha256
  assert many.encode(SPELLED[0]) == plain.encode(SPELLED[0])
  assert many.decode([5, *range(size, size + 4)]) == plain.decode([5])


@pytest.mark.parametrize('name', NAMES)
def test_errors_of_use_are_one_clear_line(made, name):
  words = made[name]
  for encode in (words.encode, lambda text: words.encode_batch(['a', text])):
    with pytest.raises(ValueError, match='lone surrogate at character 1'):
      encode('a\ud800')
  for bad in (-1, words.size):
    with pytest.raises(ValueError, match=f'id {bad} is outside'):
      words.decode([5, bad])


def train_as_advised(texts: list[str], path: str, kind: str) -> None:
  """Trains with the size that the error about another size names."""
  if kind == 'characters':
    return characters.train(texts, path)
  vocab = 300
  for _ in range(3):
    try:
      return sentencepiece.train(texts, path, vocab, kind)
    except ValueError as e:
      found = re.search(r'does not fit.*(?: vs |<= )(\d+)', str(e))
      if found is None:
        raise
      vocab = int(found[1])
  raise AssertionError(f'no vocabulary fits {texts!r}')


@pytest.mark.parametrize('kind', ('bpe', 'unigram', 'characters'))
@pytest.mark.parametrize('script', SCRIPTS)
@hypothesis.settings(max_examples=15, derandomize=True)
@hypothesis.given(data=st.data())
def test_what_is_trained_on_any_script_loads_and_is_lossless(
  tmp_path_factory, kind, script, data
):
  first, last = SCRIPTS[script]
  letters = st.characters(
    min_codepoint=ord(first), max_codepoint=ord(last), exclude_categories=['Cs']
  )
  text = st.text(letters, min_size=1)
  texts = data.draw(st.lists(text, min_size=1, max_size=5))
  path = str(tmp_path_factory.mktemp('script') / 'x')
  path += '.json' if kind == 'characters' else '.model'
  try:
    train_as_advised(texts, path, kind)
  except ValueError as e:
    assert 'no text to train on' in str(e)
    assert not ''.join(texts).strip('\r\n\0\u2581\u2585')
    return
  check_lossless(auto.load(path), [*texts, *SPELLED])


@pytest.mark.parametrize('kind', ('bpe', 'unigram'))
def test_a_space_has_a_piece_however_rare_it_is(tmp_path, kind):
  file = str(tmp_path / 'x.model')
  lesson = '你好世界我们去学习第课'
  for texts in ([lesson * 20], [lesson * 2000 + ' ']):
    sentencepiece.train(texts, file, 272, kind)
    words = auto.load(file)
    assert len(words.encode(' ')) == 1
    check_lossless(words, [*texts, *SPELLED])


def test_a_reserved_character_does_not_drop_the_text_around_it(tmp_path):
  file = str(tmp_path / 'x.model')
  sentencepiece.train(['abcabcabc\u2585abcabc ' * 50], file, 266)
  assert len(auto.load(file).encode('abc')) == 1


def test_pieces_cross_newlines_and_cover_chinese(made):
  words = made['bpe']
  assert len(words.encode('\n\n')) == 1
  assert len(words.encode('你好')) == 1
  assert len(words.encode('The brown fox')) <= 3
  assert len(words.encode('123')) == 3  # digits stay apart


@pytest.mark.parametrize('kind', ('bpe', 'unigram'))
def test_training_is_deterministic(tmp_path, kind):
  files = [tmp_path / 'a.model', tmp_path / 'sub' / 'b.model']
  for file in files:
    sentencepiece.train(iter(TEXTS), str(file), 308, kind)
  assert files[0].read_bytes() == files[1].read_bytes()
  assert [f.name for f in tmp_path.iterdir() if f.is_file()] == ['a.model']


def test_training_reads_no_more_than_it_may(tmp_path):
  read = []

  def texts():
    for n in range(10_000):
      read.append(n)
      yield 'some words of text, again and again\n' * 10

  file = str(tmp_path / 'x.model')
  sentencepiece.train(texts(), file, 285, max_bytes=50_000)
  assert len(read) < 200


def test_a_long_document_is_not_dropped(tmp_path):
  file = str(tmp_path / 'x.model')
  sentencepiece.train(['abcdefgh ' * 20_000], file, 285)
  assert len(auto.load(file).encode(' abcdefgh')) == 1


def test_errors_of_training_are_one_line(tmp_path):
  file = str(tmp_path / 'x.model')
  cases = (
    (TEXTS, 262, 'bpe', 'vocabulary 262 does not fit.*smaller than required'),
    (TEXTS, 99_999, 'bpe', 'vocabulary 99999 does not fit.*too high'),
    ([], 300, 'bpe', 'no text to train on'),
    (['', '\0'], 300, 'unigram', 'no text to train on'),
    (['\n', '\r\n'], 300, 'bpe', 'no text to train on'),
    (['</s><s>'], 300, 'unigram', 'no text to train on'),
    (TEXTS, 300, 'word', 'kind word: unknown; give bpe or unigram'),
    (['\udfff'], 300, 'bpe', 'lone surrogate'),
  )
  for texts, vocab, kind, message in cases:
    with pytest.raises(ValueError, match=message) as e:
      sentencepiece.train(texts, file, vocab, kind)
    assert len(str(e.value)) <= 200 and '\n' not in str(e.value)
  assert not list(tmp_path.iterdir())


def test_settings_are_checked_before_any_text_is_read(tmp_path):
  def texts():
    raise AssertionError('text is read')
    yield ''

  file = str(tmp_path / 'x.model')
  cases: tuple[tuple[dict[str, Any], str], ...] = (
    ({'vocab': 260}, 'vocab=260: give a whole number from 261 '),
    ({'vocab': -1}, 'vocab=-1: give a whole number'),
    ({'vocab': 1 << 31}, 'vocab=2147483648: give a whole number'),
    ({'vocab': 300.0}, 'vocab=300.0: give a whole number'),
    ({'vocab': True}, 'vocab=True: give a whole number'),
    ({'coverage': 0.5}, 'coverage=0.5: give a share from 0.98 to 1'),
    ({'coverage': 99.95}, 'coverage=99.95: give a share'),
    ({'coverage': float('nan')}, 'coverage=nan: give a share'),
    ({'coverage': '1'}, 'coverage=1: give a share'),
    ({'max_bytes': 0}, 'max_bytes=0: give a whole number above 0'),
    ({'max_bytes': 1e9}, 'max_bytes=1000000000.0: give a whole number'),
  )
  for settings, message in cases:
    whole: dict[str, Any] = {'vocab': 300, **settings}
    with pytest.raises(ValueError, match=f'^{re.escape(message)}') as e:
      sentencepiece.train(texts(), file, **whole)
    assert len(str(e.value)) <= 200 and '\n' not in str(e.value)
  sentencepiece.train(['ab ' * 9], file, 263, coverage=1)
  assert auto.load(file).size == 263


def test_broken_files_are_refused_by_name(made, tmp_path):
  model = tmp_path / 'm.model'
  sentencepiece.train(TEXTS, str(model), 350)
  whole = model.read_bytes()
  cases = [b'', b'garbage', whole[: len(whole) // 2], bytes(len(whole))]
  for data in cases:
    model.write_bytes(data)
    with pytest.raises(ValueError, match=r'm\.model: .*train_tokenizer'):
      auto.load(str(model))
  bodies = (
    '',
    '[]',
    '{"characters": ["ab"]}',
    '{"characters": ["a", "a"]}',
    '{"characters": ["\\ud800"]}',
    '{"characters": 3}',
    '[' * 9999,
  )
  for body in bodies:
    (tmp_path / 'c.json').write_text(body)
    with pytest.raises(ValueError, match=r'c\.json: not a list of distinct'):
      auto.load(str(tmp_path / 'c.json'))
  for reserved in (-1, 10**9):
    with pytest.raises(ValueError, match=r'^tokenizer\.reserved=.* must be a'):
      auto.load('bytes', reserved)
  for name in ('\0.model', '\0.json'):
    with pytest.raises(ValueError, match=r'cannot be read \(embedded null'):
      auto.load(name)
  for name in ('no.model', 'no.json'):
    with pytest.raises(ValueError, match=f'{name}: cannot be read'):
      auto.load(str(tmp_path / name))
  with pytest.raises(ValueError, match=r'a\.txt: unknown kind; give x\.model'):
    auto.load('a.txt')


def test_random_damage_gives_an_error_or_a_working_tokenizer(tmp_path):
  rng = random.Random(0)
  model = tmp_path / 'm.model'
  sentencepiece.train(TEXTS, str(model), 350)
  whole = model.read_bytes()
  clean = auto.load(str(model)).sha256
  refused = 0
  for _ in range(200):
    data = bytearray(whole)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    model.write_bytes(data)
    try:
      assert auto.load(str(model)).sha256 != clean
    except ValueError as e:
      refused += 1
      assert re.fullmatch(r'tokenizer .*m\.model: [^\n]+', str(e))
  assert refused > 50


def train_lossy(path, **settings: Any) -> None:
  """Trains a tokenizer as ours are but for some settings of sentencepiece."""
  with open(path, 'wb') as f:
    spm.SentencePieceTrainer.Train(
      sentence_iterator=iter(TEXTS),
      model_writer=f,
      vocab_size=370,
      model_type='bpe',
      byte_fallback=True,
      pad_id=0,
      eos_id=1,
      bos_id=2,
      unk_id=3,
      minloglevel=2,
      **settings,
    )


def test_a_tokenizer_that_changes_text_is_refused(tmp_path):
  train_lossy(tmp_path / 'lossy.model')
  with pytest.raises(ValueError, match=r'lossy\.model: changes text'):
    auto.load(str(tmp_path / 'lossy.model'))


@pytest.mark.parametrize('side', ('normalization', 'denormalization'))
def test_a_tokenizer_that_rewrites_one_letter_is_refused(tmp_path, side):
  (tmp_path / 'rules.tsv').write_text('71\t6B\n')  # q becomes k
  rules: dict[str, Any] = {f'{side}_rule_tsv': str(tmp_path / 'rules.tsv')}
  train_lossy(
    tmp_path / 'lossy.model',
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    **rules,
  )
  with pytest.raises(ValueError, match=r'lossy\.model: changes text'):
    auto.load(str(tmp_path / 'lossy.model'))


def test_a_tokenizer_that_puts_a_space_before_texts_is_refused(tmp_path):
  train_lossy(
    tmp_path / 'lossy.model',
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    add_dummy_prefix=True,
  )
  with pytest.raises(ValueError, match=r'lossy\.model: changes text'):
    auto.load(str(tmp_path / 'lossy.model'))


def test_a_continuation_keeps_its_space(made):
  for words in made.values():
    ids, n = words.encode('the fox jumps'), len(words.encode('the fox'))
    assert words.decode(ids[:n]) == 'the fox'
    assert words.decode_next(ids[n:]) == ' jumps'
    assert words.ends == (words.eos,)


def test_our_own_kinds_lose_no_text_by_their_rules(made):
  assert all(words.lossless for words in made.values())


@hypothesis.given(text=st.text(min_size=1), decoded=st.text())
@hypothesis.example('A b', 'a b')
@hypothesis.example('ab', 'ba')
@hypothesis.example('a', 'a b')
def test_lost_bytes_are_0_for_the_same_text_alone(text, decoded):
  lost = vocabulary.lost_bytes(text, decoded)
  assert (lost == 0) == (text == decoded)
  assert lost <= len(text.encode())
  assert vocabulary.lost_bytes(text, text) == 0
  assert vocabulary.lost_bytes(text, '') == len(text.encode())


def test_lost_bytes_are_those_of_lost_characters():
  for text, decoded, lost in (
    ('The Fox', 'the fox', 2),
    ('a  b', 'a b', 1),
    ('你好 a', ' a', 6),
    ("don't", "don ' t", 1),
  ):
    assert vocabulary.lost_bytes(text, decoded) == lost


def test_fingerprints_tell_tokenizers_apart(made):
  assert len({words.sha256 for words in made.values()}) == len(NAMES)
