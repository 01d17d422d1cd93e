"""Normalising mends texts, counts what it does, and leaves good text alone."""

import gzip
import json
import os
from pathlib import Path
import random
import re

from ftfy import badness
import hypothesis
from hypothesis import strategies
import pyarrow as pa
import pytest

from configs.data import rules as config_rules
from lm.corpus import lines, mojibake, normalise, stages

DATA = Path(os.environ.get('LM_DATA', '../shared/data'))
needs_data = pytest.mark.skipif(
  not (DATA / 'lm_en').is_dir(), reason='no shared data'
)

# Characters that the steps look for, and letters around them.
ODD = (
  ' \t\n\r\x00\x08\x0b\x0c\x1b\x1f\x7f\x80\x85\x9f\xa0\xad\u200b\u200d\u2028'
  '\u2029\u3000\ufeff\ufffdabAÂÃâ€™œÐØÙ\u0301\u030a한é…“”中，ｆﬁ'
)
TEXT = strategies.text(
  strategies.one_of(
    strategies.sampled_from(ODD),
    strategies.characters(exclude_categories=('Cs',)),
  )
)

CLEAN = {
  'code': 'def f(x):\n\tif x:\n\t\treturn {1: "a"}\n\n\nclass A:\n    pass\n',
  'verse': 'Tyger Tyger, burning bright,\n  In the forests of the night;\n',
  'chinese': '　　话说天下大势，分久必合，合久必分。\n“周末”七国分争……ＡＢ——完',
  'arabic': 'ولد في ١٢ مارس، «النص» العربي\u200f!\nمی\u200cخواهم',
  'french': 'L’été « à Noël » où œuvre : naïve, ça va\u00a0? — Ôté.',
  'german': 'Über „Größe“ und Maß: 20 °C ± 1, § 5 Abs. 2',
  'russian': '«Привет», — сказал он. В 1990-х гг. № 5',
  'greek': 'Η Αθήνα είναι «ωραία» πόλη· ναι;',
  'hindi': 'क्षत्रिय और ज़िंदगी',
  'vietnamese': 'Tiếng Việt có dấu: “Đường phố” – ở Huế',
  'emoji': '👩\u200d👩\u200d👧 ❤️ 🇨🇳',
  'mathematics': 'α ≤ β² × ½ ⇒ ∑ xᵢ ≈ √2 ± ∞',
  'table': '| a | b |\n|---|---|\n│ 1 │ 2 │\n├───┼───┤',
}


def run_all(texts: list[str], **settings) -> list[stages.Document]:
  stage = normalise.make(**settings)
  assert stage.map is not None
  places = pa.array([f'line {i}' for i in range(len(texts))])
  given = stages.batch(places, [stages.Document(x) for x in texts])
  return stages.documents(stage.map(given))


def run(text: str, **settings) -> stages.Document:
  return run_all([text], **settings)[0]


@hypothesis.given(TEXT)
def test_a_normalised_text_stays_as_it_is(text):
  once = run(text, unicode='nfkc')
  if once.reason:
    assert not once.text.strip() or once.changes
    return
  again = run(once.text, unicode='nfkc')
  assert (again.text, again.changes) == (once.text, ())


@pytest.mark.parametrize('name', CLEAN)
def test_clean_text_stays_as_it_is(name):
  document = run(CLEAN[name])
  assert document == stages.Document(CLEAN[name])


@hypothesis.given(
  strategies.text(
    strategies.characters(
      include_characters=' \t\n',
      categories=('L', 'N', 'P', 'S'),
      max_codepoint=0x7F,
    )
  )
)
def test_clean_ascii_stays_as_it_is(text):
  hypothesis.assume(text.strip() and not re.search(r'\n{4}|[ \t](\n|\Z)', text))
  assert run(text) == stages.Document(text)


@pytest.mark.parametrize(
  ('given', 'text', 'changes'),
  [
    ('doesnâ€™t\nfine', 'doesn’t\nfine', (('mojibake', 1),)),
    ('å¥½çš„ text', '好的 text', (('mojibake', 1),)),
    ('cafe\u0301', 'café', (('unicode', 1),)),
    ('a\x00\x01b\x1bc\ufeff', 'abc', (('controls', 3),)),
    ('a\r\nb\rc\u2028d\u2029e\x0cf', 'a\nb\nc\nd\ne\nf', (('line_ends', 5),)),
    ('a\x85b', 'a…b', (('mojibake', 1),)),  # as ftfy reads it
    ('a \nb\t\u3000\n c', 'a\nb\n c', (('trailing_space', 2),)),
    ('a\n\n\n\n\n\nb', 'a\n\n\nb', (('blank_lines', 3),)),
    ('a\n \n\n \n\nb', 'a\n\n\nb', (('trailing_space', 2), ('blank_lines', 2))),
  ],
)
def test_each_change_is_made_and_counted(given, text, changes):
  document = run(given)
  assert document.text == text
  assert document.changes == tuple((f'normalise.{k}', n) for k, n in changes)


def test_each_step_can_be_left_out():
  given = 'â€™\x00 e\u0301 \r\n\n\n\n\nb'
  document = run(
    given,
    mojibake=False,
    unicode='none',
    controls=False,
    line_ends=False,
    trailing_space=False,
    blank_lines=None,
  )
  assert document == stages.Document(given)


def test_full_width_text_changes_only_under_nfkc():
  assert run('ＡＢ，ﬁ').text == 'ＡＢ，ﬁ'
  assert run('ＡＢ，ﬁ', unicode='nfkc').text == 'AB,fi'


@pytest.mark.parametrize('text', ['', ' \n\t', '\x00\ufeff\n'])
def test_what_ends_empty_is_dropped_and_keeps_its_text(text):
  document = run(text)
  assert (document.reason, document.value) == ('normalise.empty', 0.0)
  assert document.text == text


def test_dropped_documents_are_passed_over():
  stage = normalise.make()
  assert stage.map is not None
  row = stages.Document('a\r\n', reason='earlier.rule')
  given = stages.batch(pa.array(['line 1']), [row])
  assert stages.documents(stage.map(given)) == [row]


def test_line_rules_of_c4_drop_and_count_lines():
  text = (
    'Please enable JavaScript to see this page.\n'
    'This site uses cookies to serve you.\n\n'
    'Lorem Ipsum dolor sit amet.\n'
    'This sentence is good.\n'
    'Home | About\n'
    'Read on and on...\n'
    'Too few.\n' + 'x' * 1001 + ' y z.'
  )
  document = run(text, lines=config_rules.c4_lines())
  assert document.text == '\nThis sentence is good.'
  assert dict(document.changes) == {
    'normalise.javascript': 1,
    'normalise.cookies': 1,
    'normalise.lorem_ipsum': 1,
    'normalise.unfinished': 2,
    'normalise.few_words': 1,
    'normalise.long_words': 1,
  }
  assert run(document.text, lines=config_rules.c4_lines()).changes == ()


def test_a_text_of_dropped_lines_alone_is_dropped():
  document = run('Home | About', lines=config_rules.c4_lines())
  assert document.reason == 'normalise.empty'
  assert document.text == 'Home | About'
  assert document.changes == (('normalise.unfinished', 1),)


@pytest.mark.parametrize(
  ('settings', 'error'),
  [
    ({'unicode': 'nfd'}, "unicode='nfd' must be none, nfc or nfkc"),
    ({'lines': {'a b': {}}}, "lines: the name 'a b' must be of small letters"),
    ({'lines': {'controls': {}}}, "lines: the name 'controls' must be of"),
  ],
)
def test_wrong_settings_are_refused_in_one_line(settings, error):
  with pytest.raises(ValueError, match=error):
    normalise.make(**settings)


def test_phrases_must_be_in_lower_case():
  with pytest.raises(ValueError, match="'Cookie' must be text in lower case"):
    lines.contains(('Cookie',))


def test_a_missing_ftfy_is_one_line(monkeypatch):
  def missing(name):
    raise mojibake.importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(mojibake.importlib.metadata, 'version', missing)
  with pytest.raises(ValueError, match=r'needs ftfy: pip install .*\[data\]'):
    normalise.make()
  assert normalise.make(mojibake=False).packages == {}


def test_the_cheap_test_finds_whatever_that_of_ftfy_finds():
  categories = ''.join(badness.MOJIBAKE_CATEGORIES.values())
  marks = [
    x
    for x in map(chr, range(0x10000))
    if not 0xD800 <= ord(x) < 0xE000 and re.match(f'[{categories}]', x)
  ]
  draw = random.Random(0)
  bad = 0
  for _ in range(20_000):
    text = ''.join(draw.choices([*marks, *' azAZœŒВГўЂвβ°Ä√1'], k=4))
    if badness.is_bad(text):
      bad += 1
      assert mojibake.suspect(text), ascii(text)
  assert bad > 5000


@needs_data
@pytest.mark.parametrize(
  'name',
  [
    'lm_en/peps/valid.jsonl.gz',
    'lm_en/gutenberg/valid.jsonl.gz',
    'lm_zh/novels/valid.jsonl.gz',
    'lm_zh/wiki_passages/valid.jsonl.gz',
    'lm_zh/poetry/tang_trad.valid.jsonl.gz',
  ],
)
def test_good_corpora_lose_nothing_but_white_space(name):
  with gzip.open(DATA / name, 'rt', encoding='utf-8') as file:
    given = [json.loads(line)['text'] for line in file]
  for text, document in zip(given, run_all(given), strict=True):
    assert not document.reason
    assert document.text.split() == text.split()


@needs_data
@pytest.mark.parametrize('language', ['arb_Arab', 'fra_Latn', 'rus_Cyrl'])
def test_sentences_of_other_languages_stay_as_they_are(language):
  path = DATA / f'translation/flores200_devtest/{language}.devtest'
  text = path.read_text(encoding='utf-8')
  document = run(text)
  codes = {code for code, _ in document.changes}
  assert codes <= {'normalise.unicode', 'normalise.trailing_space'}
