"""Views of a text agree with their plain definitions."""

import re

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from lm.corpus import texts

WORD = re.compile(r'[\u3400-\u9fff]|[^\W\u3400-\u9fff]+')
LETTER = re.compile(r'[^\W\d_]')
TEXT = strategies.text(
  strategies.one_of(
    strategies.sampled_from('ab A_1 ,.\n\t汉字，。éÉİß\u3000\u200b\U00020000'),
    strategies.characters(exclude_categories=('Cs',)),
  )
)


@hypothesis.given(TEXT)
@hypothesis.example('')
@hypothesis.example('\U00033479\U000e0100 \U0010ffff')
def test_words_are_those_of_the_definition(text):
  view = texts.Text(text)
  words = WORD.findall(text.lower())
  assert view.words == words
  assert view.lengths.tolist() == [len(x) for x in words]
  assert len(view.hashes) == len(words)


@hypothesis.given(TEXT, strategies.integers(1, 9))
@hypothesis.example('İİ aİb İ', 2)
def test_places_are_those_of_words(text, block):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(texts, 'BLOCK', block)
    view = texts.Text(text)
    starts, ends = view.places
    assert len(starts) == len(view.words)
    for start, end, word in zip(starts, ends, view.words, strict=True):
      # The dot of İ is no letter: 'i' is a word whose place is that of İ.
      assert text[start:end].lower().rstrip('\u0307') == word


@hypothesis.given(TEXT, TEXT)
def test_hashes_are_equal_where_words_are(a, b):
  a, b = texts.Text(a), texts.Text(f'{b} {a}')
  words = [*a.words, *b.words]
  hashes = [*a.hashes.tolist(), *b.hashes.tolist()]
  assert (
    len(set(words))
    == len(set(hashes))
    == len(set(zip(words, hashes, strict=True)))
  )


def test_hashes_of_long_texts_are_made_in_blocks(monkeypatch):
  text = 'one two, 汉字three four-five  six ' * 3
  whole = texts.Text(text).hashes.tolist()
  for size in (5, 6, 7, 30, len(text) - 1):
    monkeypatch.setattr(texts, 'BLOCK', size)
    assert texts.Text(text).hashes.tolist() == whole
  monkeypatch.setattr(texts, 'BLOCK', 4)
  three, thre = texts.Text('a three'), texts.Text('a thre')
  assert three.hashes.tolist() == thre.hashes.tolist()
  assert texts.Text(',' * 9).hashes.tolist() == []


def test_words_of_long_texts_are_found_in_blocks(monkeypatch):
  text = 'one two, 汉字three four-five  six ' * 3
  words = texts.Text(text).words
  for size in (1, 5, 7, 30):
    monkeypatch.setattr(texts, 'BLOCK', size)
    assert texts.Text(text).words == words


def test_hashes_are_the_same_in_every_process():
  view = texts.Text('The 汉')
  assert view.hashes.tolist() == [11469020329213407588, 18192325774459268580]
  assert view.hashes.dtype == np.uint64


@hypothesis.given(TEXT)
def test_tokens_are_what_white_space_parts(text):
  lengths, letters = texts.Text(text).tokens
  parts = text.lower().split()
  assert lengths.tolist() == [len(x) for x in parts]
  letters_of = [sum(map(str.isalpha, x)) for x in parts]
  assert letters.tolist() == letters_of


def test_lines_and_paragraphs_are_without_white_space_around():
  view = texts.Text(' a\n\tb \n\n\n\n c\n')
  assert view.lines == ['a', 'b', 'c']
  assert view.paragraphs == ['a\n\tb', 'c']


def test_a_fifth_of_chinese_makes_a_text_chinese():
  assert texts.Text('汉字ab').is_chinese
  assert not texts.Text('汉 letters and more').is_chinese
  assert not texts.Text('').is_chinese
  assert texts.Text('漢字 ab，汉').chinese == 3
