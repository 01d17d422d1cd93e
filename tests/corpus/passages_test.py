"""A passage goes with its margins, and what is left is as it was."""

import itertools
import re

import numpy as np
import pytest

from lm.corpus import evaluation_items, item_grams, passages

SENTENCE = 'The keeper of Marrow Point measured the spring tide with a staff.'
CUT = passages.Cut(margin=20, least=30, most_pieces=3)


def grams_of(text: str = SENTENCE) -> tuple[np.ndarray, int]:
  """Makes the 8-grams of a text, as the stage gets them."""
  probes = item_grams.probes([evaluation_items.Item('', (text,))], (8, 13), 20)
  grams = item_grams.index(probes, (8, 13))
  return grams.sorted, grams.most


def host(first: int, count: int) -> str:
  return ' '.join(f'word{n},' for n in range(first, first + count))


def test_a_passage_goes_with_its_margins():
  before, after = host(100, 20), host(200, 20)
  left = passages.remove(f'{before} {SENTENCE} {after}', *grams_of(), CUT)
  assert left is not None
  text, count = left
  first, second = text.split('\n\n')
  assert count == 1
  # Whole words: 20 characters, with what lies between words, reach into two.
  assert first == before[: before.index(' word118')]
  assert second == after[after.index('word202') :]


def test_a_text_without_the_grams_stays_as_it_is():
  text = f' \n {host(0, 50)}'
  assert passages.remove(text, *grams_of(), CUT) == (text, 0)


def test_grams_that_overlap_are_one_passage_and_short_fragments_go():
  near, far = host(100, 6), host(200, 40)
  text = f'{SENTENCE} {near} {SENTENCE} {far}'
  # A margin of 30 on either side leaves nothing of what is between them.
  assert passages.remove(text, *grams_of(), CUT._replace(margin=30)) == (
    far[far.index('word204') :],
    1,
  )
  left = passages.remove(text, *grams_of(), CUT)
  assert left is not None and left[1] == 2  # what is left between is too short
  assert left[0] == far[far.index('word202') :]
  left = passages.remove(text, *grams_of(), CUT._replace(least=1))
  assert left is not None and len(left[0].split('\n\n')) == 2


def test_a_document_goes_if_nothing_is_left_or_it_is_in_many_pieces():
  assert passages.remove(f'{SENTENCE} {host(0, 3)}', *grams_of(), CUT) is None
  for count, stays in ((2, True), (3, False)):
    text = host(0, 20)
    for n in range(count):
      text += f' {SENTENCE} {host(100 * n, 20)}'
    assert (passages.remove(text, *grams_of(), CUT) is not None) == stays


def test_what_is_left_makes_no_gram_where_it_is_joined():
  words = SENTENCE.split()
  text = ' '.join([*words[:5], *words, *words[5:]])
  cut = passages.Cut(margin=0, least=0)
  assert passages.remove(text, *grams_of(), cut) is None


def test_chinese_is_cut_between_characters():
  asked = '请问下列哪一种工具可以用来测量灯塔旁边大潮的高度'
  before, after = ''.join(map(chr, range(0x5000, 0x5100))), '汉' * 300
  left = passages.remove(f'{before}{asked}。{after}', *grams_of(asked), CUT)
  assert left == (f'{before[:-20]}\n\n{"汉" * 281}', 1)


@pytest.mark.parametrize('seed', range(20))
def test_passages_are_those_of_a_plain_search(seed, monkeypatch):
  monkeypatch.setattr(item_grams, '_PIECE', 7)
  rng = np.random.default_rng(seed)
  parts = [host(9 * n, int(rng.integers(1, 30))) for n in range(6)]
  text = ' '.join(itertools.chain(*zip(parts, [SENTENCE] * 6, strict=True)))
  cut = passages.Cut(int(rng.integers(60)), 0, 99)
  is_gone = np.zeros(len(text), bool)
  at = text.find(SENTENCE)
  while at >= 0:
    # The full stop is in no word.
    end = at + len(SENTENCE) - 1
    is_gone[max(0, at - cut.margin) : end + cut.margin] = True
    at = text.find(SENTENCE, end)
  kept = [
    x.group()
    for x in re.finditer(r'\w+', text)
    if not is_gone[x.start() : x.end()].any()
  ]
  left = passages.remove(text, *grams_of(), cut)
  assert re.findall(r'\w+', left[0] if left else '') == kept
