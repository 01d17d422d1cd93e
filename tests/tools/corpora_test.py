"""Corpora are cut into the documents that their authors wrote."""

import gzip

import pytest

from tools import corpora

LINES = (
  ' \n',
  ' = One = \n',
  ' \n',
  ' A text . \n',
  ' \n',
  ' = = Part = = \n',
  ' \n',
  ' Key : W \n',
  ' = Wins , L = \n',  # of a table's legend
  ' \n',
  ' J is reduced ( J \n',
  ' = 7 / 2 ) by another ( J = \n',  # within a text
  ' 0 . \n',
  ' \n',
  ' = Two : = \n',
  ' \n',
  ' More . \n',
)


def test_a_title_stands_between_empty_lines():
  one, two = corpora.split_articles(LINES)
  assert one == ''.join(LINES[:14])
  assert two == ''.join(LINES[14:])


@pytest.mark.parametrize(
  ('split', 'articles'), [('train', 600), ('valid', 60), ('test', 60)]
)
def test_wikitext2_has_its_articles(shared_data, split, articles):
  """As many as its authors count; Merity et al. 2016, arXiv 1609.07843."""
  path = shared_data / f'lm_en/wikitext2/wiki.{split}.tokens.gz'
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    text = file.readlines()
  found = list(corpora.split_articles(text))
  assert len(found) == articles
  assert ''.join(found) == ''.join(text)
