"""Words of lists are counted, in English and Chinese, and drop when told to."""

from pathlib import Path

import hypothesis
from hypothesis import strategies
import pyarrow as pa
import pytest

from lm import config
from lm.corpus import stages, texts, toxicity, word_lists

WORDS = Path(__file__).resolve().parents[2] / 'configs/data/words'
ENGLISH = f'{WORDS}/insults_en.txt'
CHINESE = f'{WORDS}/insults_zh.txt'


def run(stage: stages.Stage, *rows: str | stages.Document):
  assert stage.map is not None
  given = [stages.Document(x) if isinstance(x, str) else x for x in rows]
  places = pa.array([f'line {i}' for i in range(len(rows))])
  return stages.documents(stage.map(stages.batch(places, given)))


def counts(stage: stages.Stage, text: str) -> dict[str, int]:
  return dict(run(stage, text)[0].counts)


@pytest.mark.parametrize(
  ('text', 'count'),
  [
    ('You IDIOT, shut\nup! Idiots.', 3),
    ('Foolish idiotic stupidity; he shut the door and went up.', 0),
    ('shut up shut shut up', 2),
    ('a fool', 1),
    ('', 0),
  ],
)
def test_english_is_counted_by_words(text, count):
  stage = toxicity.make({'insults': ENGLISH})
  expected = {'toxicity.insults': count} if count else {}
  assert counts(stage, text) == expected
  assert run(stage, text)[0].reason == ''


@pytest.mark.parametrize(
  ('text', 'count'),
  [('你这个大傻瓜，真是白癡！', 2), ('傻*瓜', 1), ('傻得像西瓜', 0)],
)
def test_chinese_is_counted_within_sentences(text, count):
  stage = toxicity.make({'insults': CHINESE})
  assert counts(stage, text).get('toxicity.insults', 0) == count


def test_several_lists_are_counted_apart():
  stage = toxicity.make({'en': ENGLISH, 'zh': CHINESE})
  found = counts(stage, 'fool 笨蛋 fool')
  assert found == {'toxicity.en': 2, 'toxicity.zh': 1}


def test_counts_of_earlier_stages_stay():
  row = stages.Document('fool', counts=(('personal.email', 1),))
  (document,) = run(toxicity.make({'en': ENGLISH}), row)
  assert document.counts == (('personal.email', 1), ('toxicity.en', 1))


def test_a_share_above_the_bound_drops():
  stage = toxicity.make({'en': ENGLISH, 'zh': CHINESE}, most={'en': 0.4})
  kept, dropped, other = run(stage, 'a b c shut up', 'a shut up', '傻瓜')
  assert kept.reason == other.reason == ''
  assert dropped.reason == 'toxicity.en'
  assert dropped.value == pytest.approx(2 / 3)
  assert dropped.counts == (('toxicity.en', 1),)


def test_the_longest_entry_counts_once(tmp_path):
  path = tmp_path / 'list.txt'
  path.write_text('\ufeffa b\na\na b c\n\n# comment\nc\n', encoding='utf-8')
  found = word_lists.Lists({'x': str(path)}).find(texts.Text('A, b c c a b a'))
  assert found['x'] == word_lists.Found([0, 3, 4, 6], [3, 1, 2, 1])


@hypothesis.given(
  strategies.lists(strategies.sampled_from('abc'), max_size=30),
  strategies.integers(1, 5),
)
def test_pairs_are_counted_as_by_brute_force(words, window):
  a = [i for i, x in enumerate(words) if x == 'a']
  b = [i for i, x in enumerate(words) if x == 'b']
  near = sum(abs(i - j) <= window for i in a for j in b)
  assert toxicity._near(a, b, window) == near


def test_traits_are_counted_near_words_for_groups():
  stage = toxicity.bias(
    {'women': f'{WORDS}/women_en.txt', 'men': f'{WORDS}/men_en.txt'},
    {'career': f'{WORDS}/career_en.txt', 'family': f'{WORDS}/family_en.txt'},
    window=4,
  )
  text = 'Her career began. ' + 'x ' * 9 + 'He went home to his family.'
  assert counts(stage, text) == {
    'bias.career': 1,
    'bias.family': 2,
    'bias.men': 2,
    'bias.women': 1,
    'bias.men.family': 3,
    'bias.women.career': 1,
  }
  assert run(stage, text)[0].reason == ''


def test_the_content_of_lists_is_part_of_the_identity(tmp_path):
  one, other = tmp_path / 'one.txt', tmp_path / 'other.txt'
  one.write_text('a', encoding='utf-8')
  other.write_text('a', encoding='utf-8')
  before = toxicity.make({'x': str(one)})
  assert before.data == (str(one),)
  assert toxicity.make({'x': str(other)}).settings == before.settings
  other.write_text('b', encoding='utf-8')
  assert toxicity.make({'x': str(other)}).settings != before.settings


def test_a_config_names_the_stage():
  spec = {'fn': 'lm.corpus.toxicity:make', 'lists': {'en': ENGLISH}}
  assert counts(config.build(spec), 'fool') == {'toxicity.en': 1}
  with pytest.raises(config.ConfigError, match=r'toxicity:make: .*no\.txt'):
    config.build(spec | {'lists': {'en': 'no.txt'}})


@pytest.mark.parametrize(
  ('raw', 'error'),
  [
    (b'\xff\xfe\n', 'is no UTF-8; convert it'),
    (b'# comment\n\n', 'has no entry; write one a line'),
    (b'a\n!!!\n', 'line 2 has no word; take it out'),
  ],
)
def test_a_wrong_list_is_refused_in_one_line(tmp_path, raw, error):
  path = tmp_path / 'list.txt'
  path.write_bytes(raw)
  with pytest.raises(ValueError, match=error):
    toxicity.make({'x': str(path)})


@pytest.mark.parametrize(
  ('make', 'error'),
  [
    (lambda: toxicity.make({}), 'lists: names no list'),
    (lambda: toxicity.make({'A b': ENGLISH}), "lists: the name 'A b' must be"),
    (
      lambda: toxicity.make({'x': ENGLISH}, most={'y': 0.1}),
      r"most: 'y' is none of lists: \['x'\]",
    ),
    (
      lambda: toxicity.make({'x': ENGLISH}, most={'x': 2.0}),
      r'most: x=2\.0 must be a share',
    ),
    (
      lambda: toxicity.bias({'x': ENGLISH}, {'x': CHINESE}),
      "'x' is in groups and in traits; rename one",
    ),
    (
      lambda: toxicity.bias({'x': ENGLISH}, {'y': CHINESE}, window=0),
      'window=0 must be at least 1',
    ),
  ],
)
def test_wrong_settings_are_refused_in_one_line(make, error):
  with pytest.raises(ValueError, match=error):
    make()
