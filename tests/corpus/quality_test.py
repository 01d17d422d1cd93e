"""Rules of quality drop what they are for, say why, and keep good text."""

import gzip
import json
import os
from pathlib import Path
import random

import hypothesis
from hypothesis import strategies
import pyarrow as pa
import pytest

from configs.data import rules as config_rules
from lm import config
from lm.corpus import quality, stages, texts
from lm.corpus.rules import c4, chinese, fineweb, gopher, repetition

DATA = Path(os.environ.get('LM_DATA', '../shared/data'))
needs_data = pytest.mark.skipif(
  not (DATA / 'lm_en').is_dir(), reason='no shared data'
)

ENGLISH = (
  'The house stood on a hill that looked over the sea, and the people of the '
  'village said that nobody had lived there for many years. On some evenings, '
  'however, a light could be seen behind one of its windows. Children ran past '
  'it with their eyes closed! Who would have thought that an old sailor had '
  'moved in with his cat? He had come to write the story of his life.'
)
CHINESE = (
  '话说天下大势，分久必合，合久必分。周末七国分争，并入于秦；及秦灭之后。'
)
_WORDS = ['lamp', 'river', 'stone', 'cloud', 'paper', 'green', 'music']


def apply(
  stage: stages.Stage, *rows: stages.Document | str
) -> list[stages.Document]:
  assert stage.map is not None
  given = [stages.Document(x) if isinstance(x, str) else x for x in rows]
  places = pa.array([f'line {i}' for i in range(len(rows))])
  return stages.documents(stage.map(stages.batch(places, given)))


def different(count: int, seed: int = 0) -> str:
  """Makes a text of words that do not repeat."""
  draw = random.Random(seed)
  return ' '.join(
    draw.choice(_WORDS) + str(draw.randrange(10**9)) for _ in range(count)
  )


BROKEN = {
  'words, too few': (gopher.words(50), 'a b c', 3),
  'words, too many': (gopher.words(0, 4), 'a b c d e', 5),
  'words in Chinese': (gopher.words(5), '一二，三四', 4),
  'word length, below': (gopher.word_length(), 'a bc d', 4 / 3),
  'word length, above': (gopher.word_length(), 'abcdefghijkl', 12),
  'hash signs': (gopher.symbols(0.1), 'a # b # c', 2 / 3),
  'ellipses': (gopher.symbols(0.1), 'a... b… c', 2 / 3),
  'bullets': (gopher.bullets(0.9), '- a\n\n  • b\n* c\n', 1),
  'lines of ellipses': (gopher.ellipses(0.3), 'a...\nb…\nc', 2 / 3),
  'alphabetic': (gopher.alphabetic(0.8), 'a1 22 | -- b', 2 / 5),
  'stop words': (gopher.stop_words(), 'The the THE cat', 1),
  'sentences': (c4.sentences(5), 'One. Two! 3.14 is pi? No', 3),
  'sentences in Chinese': (c4.sentences(5), '一。二！三', 2),
  'brackets': (c4.curly_brackets(), 'a {b} {', 2),
  'lorem ipsum': (c4.phrases(), 'a Lorem Ipsum b', 1),
  'long words': (c4.long_words(5), 'abcdef g', 6),
  'punctuated lines': (fineweb.punctuated_lines(0.5), 'a.\nb\n\nc', 1 / 3),
  'short lines': (fineweb.short_lines(0.5, 3), 'abc\nd\nefgh', 2 / 3),
  'characters of lines': (
    fineweb.duplicate_characters(0.1),
    'abcd\n abcd\nef',
    4 / 10,
  ),
  'newlines': (fineweb.newlines(0.3), 'a\nb\n\nc', 1),
  'lines': (repetition.duplicate_lines(0.3), 'a\nb\na\na', 1 / 2),
  'line characters': (
    repetition.duplicate_line_characters(0.2),
    'abc\nd\nabc',
    3 / 7,
  ),
  'paragraphs': (
    repetition.duplicate_paragraphs(0.3),
    'a\nb\n\n\na\nb\n\nc',
    1 / 3,
  ),
  'paragraph characters': (
    repetition.duplicate_paragraph_characters(0.2),
    'a\nb\n\na\nb\n\nc',
    3 / 7,
  ),
  'top 2-gram': (repetition.top_ngram(2, 0.2), 'a b, c a B d', 4 / 6),
  'top 2-gram that overlaps': (repetition.top_ngram(2, 0.2), 'a a a a', 1),
  'top 1-gram': (repetition.top_ngram(1, 0.2), '哈哈哈哈嘿', 4 / 5),
  'duplicate 3-grams': (
    repetition.duplicate_ngrams(3, 0.1),
    'a b c d x a b c d',
    4 / 9,
  ),
  'characters': (chinese.characters(5), '一二 and 三', 3),
  'share': (chinese.share(0.5), '一二 abcd 三', 3 / 7),
  'punctuation, below': (chinese.punctuation(0.1), '一二三四', 0),
  'punctuation, above': (chinese.punctuation(0.1, 0.4), '一，二，', 1),
  'lines of menus': (chinese.short_lines(0.5, 3), '首页\n新闻\n好。', 2 / 3),
  'debris': (
    chinese.debris(5),
    '电话：13812345678，400-820-8820，QQ群：12345678，加微信，點擊這裡，包邮'.ljust(
      100, '。'
    ),
    60,
  ),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_rule_returns_the_value_that_broke_it(name):
  rule, text, value = BROKEN[name]
  assert rule(texts.Text(text)) == pytest.approx(value)


SETS = {
  'gopher': config_rules.gopher,
  'repetition': config_rules.repetition,
  'fineweb': config_rules.fineweb,
  'c4': config_rules.c4,
  'english': lambda: config_rules.english()['rules'],
}


@pytest.mark.parametrize('name', SETS)
def test_sets_of_rules_keep_good_english(name):
  stage = quality.make(SETS[name]())
  assert apply(stage, ENGLISH) == [stages.Document(ENGLISH)]


def test_the_chinese_set_keeps_good_chinese_in_both_scripts():
  stage = config.build(config_rules.chinese())
  poem = '白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。'
  assert [x.reason for x in apply(stage, CHINESE, poem)] == ['', '']


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    (ENGLISH[:62] + '.', 'quality.words'),
    (ENGLISH.replace(' ', '# '), 'quality.symbols'),
    ('word ' * 200, 'quality.duplicate_05gram'),
    ('\n'.join([ENGLISH] * 3), 'quality.duplicate_05gram'),
    (different(200), 'quality.punctuated_lines'),
    (
      '\n'.join(f'{x} {i}th.' for i, x in enumerate(ENGLISH.split())),
      'quality.newlines',
    ),
  ],
)
def test_the_english_set_drops_junk(text, reason):
  (document,) = apply(config.build(config_rules.english()), text)
  assert document.reason == reason
  assert document.value is not None
  assert document.text == text


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('好的。', 'quality.characters'),
    ('手机手表电脑耳机音箱相机镜头键盘鼠标屏幕背包钱包', 'quality.punctuation'),
    (CHINESE + '加微信包邮，点击下载！', 'quality.debris'),
    ('今天天气很好。' * 20, 'quality.duplicate_10gram'),
    ('哈' * 30 + '。', 'quality.duplicate_10gram'),
    (CHINESE + 'x' * 90, 'quality.chinese_share'),
    (
      '，，首页\n新闻频道\n体育\n财经要闻\n娱乐\n汽车之家\n房产信息',
      'quality.short_lines',
    ),
  ],
)
def test_the_chinese_set_drops_junk(text, reason):
  (document,) = apply(config.build(config_rules.chinese()), text)
  assert document.reason == reason


def mine(most: int = 3):
  """Bounds the letters z; a rule as a user writes it."""

  def rule(text: texts.Text) -> float | None:
    count = text.lower.count('z')
    return float(count) if count > most else None

  return rule


def test_a_new_rule_is_one_function_and_one_line():
  rules = {'zs': {'fn': f'{__name__}:mine', 'most': 2}}
  stage = quality.make(rules)
  assert apply(stage, 'Zzz', 'zz') == [
    stages.Document('Zzz', reason='quality.zs', value=3.0),
    stages.Document('zz'),
  ]


def test_defaults_of_rules_are_part_of_the_settings():
  stage = quality.make({'zs': {'fn': f'{__name__}:mine'}})
  assert stage.settings['rules']['zs']['most'] == 3
  json.dumps(stage.settings)


def test_the_order_of_the_config_does_not_matter():
  rules = config_rules.english()['rules'] | config_rules.c4()
  other = dict(reversed(rules.items()))
  junk = ['word ' * 30, '{', '# ' * 100, ENGLISH * 2, different(120) + '{']
  assert apply(quality.make(rules), *junk) == apply(quality.make(other), *junk)


@pytest.mark.parametrize('make', [config_rules.english, config_rules.chinese])
def test_a_set_survives_being_a_config_in_a_file(make):
  spec = make()
  full = config.fill({'stages': {'quality': spec}})
  again = config.from_json(config.to_json(full))
  assert config.build(again.stages.quality).settings == (
    config.build(spec).settings
  )


def test_languages_choose_the_texts():
  short = {'words': {'fn': 'lm.corpus.rules.gopher:words', 'least': 50}}
  stage = quality.make(short, languages=('', 'en'))
  rows = [
    stages.Document('too short'),
    stages.Document('too short', 'en'),
    stages.Document('zu kurz', 'de'),
    stages.Document('太短了'),
    stages.Document('too short', reason='earlier.rule'),
  ]
  reasons = [x.reason for x in apply(stage, *rows)]
  assert reasons == ['quality.words'] * 2 + ['', '', 'earlier.rule']
  stage = quality.make(short, languages=('zh',))
  reasons = [x.reason for x in apply(stage, *rows)]
  assert reasons == ['', '', '', 'quality.words', 'earlier.rule']


def test_a_text_that_is_too_long_is_dropped_before_it_is_read():
  stage = quality.make({}, longest=10)
  assert apply(stage, 'x' * 11, 'x' * 10) == [
    stages.Document('x' * 11, reason='quality.longest', value=11.0),
    stages.Document('x' * 10),
  ]


@pytest.mark.parametrize(
  ('rules', 'error'),
  [
    ({'A': {}}, "rules: the name 'A' must be of small letters"),
    ({'longest': {}}, "rules: the name 'longest' must be of small letters"),
    (
      {'n': {'fn': 'lm.corpus.rules.repetition:top_ngram', 'n': 0}},
      'repetition:top_ngram: n=0 must be at least 1',
    ),
    (
      {'n': {'fn': 'lm.corpus.rules.c4:phrases', 'words': ('Lorem',)}},
      "c4:phrases: words: 'Lorem' must be text in lower case",
    ),
    (
      {'n': {'fn': 'lm.corpus.rules.gopher:stop_words', 'words': ('a b',)}},
      'gopher:stop_words: words: each must be one word',
    ),
  ],
)
def test_wrong_rules_are_refused_in_one_line(rules, error):
  with pytest.raises((ValueError, config.ConfigError), match=error):
    quality.make(rules)


def covered(words: list[str], at: list[int], n: int) -> float:
  inside = {i + j for i in at for j in range(n)}
  return sum(len(words[i]) for i in inside) / sum(map(len, words))


@hypothesis.given(
  strategies.lists(
    strategies.sampled_from(['a', 'bb', 'c', '汉']), max_size=30
  ),
  strategies.integers(1, 12),
)
def test_ngrams_are_counted_as_by_brute_force(words, n):
  grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
  view = texts.Text(' '.join(words))

  later = [i for i, x in enumerate(grams) if x in grams[:i]]
  value = repetition.duplicate_ngrams(n, 0.0)(view) or 0.0
  assert value == pytest.approx(covered(words, later, n) if later else 0.0)

  most = max(map(grams.count, grams), default=0)
  tops = [x for x in grams if grams.count(x) == most]
  longest = max((len(''.join(x)) for x in tops), default=0)
  values = {
    covered(words, [i for i, x in enumerate(grams) if x == top], n)
    for top in tops
    if len(''.join(top)) == longest
  }
  value = repetition.top_ngram(n, 0.0)(view)
  if most > 1:
    assert any(value == pytest.approx(x) for x in values)
  else:
    assert value is None


@hypothesis.given(
  strategies.lists(strategies.sampled_from(['a', 'bb', 'c']), max_size=40),
  strategies.permutations([(n, m) for n in (1, 2, 3, 5) for m in (0.1, 0.5)]),
)
def test_bounds_that_pass_a_text_agree_with_the_count(words, asked):
  text = ' '.join(words)
  together = texts.Text(text)
  for make in (repetition.top_ngram, repetition.duplicate_ngrams):
    for n, most in asked:
      assert make(n, most)(together) == make(n, most)(texts.Text(text))


def read(name: str) -> list[str]:
  opened = gzip.open if name.endswith('.gz') else open
  with opened(DATA / name, 'rt', encoding='utf-8') as file:
    return [json.loads(line)['text'] for line in file]


@needs_data
@pytest.mark.parametrize(
  ('name', 'most'),
  [
    # grammars and tables of symbols
    ('lm_en/peps/valid.jsonl.gz', 3),
    ('lm_en/web_demo/c4_demo.jsonl', 30),
  ],
)
def test_the_english_set_keeps_good_corpora(name, most):
  rules = config_rules.english()
  rules['rules']['words']['least'] = 20
  dropped = [x for x in apply(config.build(rules), *read(name)) if x.reason]
  assert len(dropped) <= most, [x.reason for x in dropped]


@needs_data
@pytest.mark.parametrize(
  'name',
  [
    'lm_zh/novels/valid.jsonl.gz',
    'lm_zh/wiki_passages/valid.jsonl.gz',
    'lm_zh/poetry/tang_trad.valid.jsonl.gz',
    'lm_zh/poetry/songci_simp.valid.jsonl.gz',
  ],
)
def test_the_chinese_set_keeps_good_corpora(name):
  given = read(name)
  documents = apply(config.build(config_rules.chinese()), *given)
  # Fragments of poems are too short, and meant to be dropped.
  dropped = [x for x in documents if x.reason not in ('', 'quality.characters')]
  assert len(dropped) <= 0.01 * len(given), [x.reason for x in dropped]
