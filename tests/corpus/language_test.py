"""Languages are found, and texts in others are dropped with the reason."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from lm.corpus import language, stages

FLORES = (
  Path(os.environ.get('LM_DATA', '../shared/data'))
  / 'translation/flores200_devtest'
)
SENTENCES = {
  'en': 'The people of the village said that nobody had lived there.',
  'de': 'Die Leute im Dorf sagten, dass dort niemand gewohnt habe.',
  'fr': 'Les gens du village disaient que personne n’y avait vécu.',
  'zh': '村里的人说，那里已经很多年没有人住了。',
  'ja': '村の人々は、そこには長い間誰も住んでいないと言った。',
  'ru': 'Жители деревни говорили, что там никто не жил.',
}


def run(stage: stages.Stage, *rows: str | stages.Document):
  assert stage.map is not None
  given = [stages.Document(x) if isinstance(x, str) else x for x in rows]
  places = pa.array([f'line {i}' for i in range(len(rows))])
  return stages.documents(stage.map(stages.batch(places, given)))


def test_languages_are_found_and_others_dropped():
  found = run(language.make(keep=('en', 'zh')), *SENTENCES.values())
  assert [x.language for x in found] == list(SENTENCES)
  reasons = {x.language: x.reason for x in found if x.reason}
  assert reasons == dict.fromkeys(['de', 'fr', 'ja', 'ru'], 'language.other')
  assert all(x.value is not None and x.value > 0.5 for x in found if x.reason)
  assert [x.text for x in found] == list(SENTENCES.values())


def test_all_languages_are_kept_unless_some_are_named():
  assert not any(x.reason for x in run(language.make(), *SENTENCES.values()))


@pytest.mark.parametrize('text', ['', '12 34', 'a'])
def test_what_is_no_language_is_unsure(text):
  (document,) = run(language.make(), text)
  assert document.reason == 'language.unsure'
  assert document.value is not None
  assert document.value < 0.5
  assert run(language.make(least=0.0), text)[0].reason == ''


def test_only_the_first_characters_are_looked_at():
  text = SENTENCES['en'] + SENTENCES['zh'] * 50
  assert run(language.make(), text)[0].language == 'zh'
  stage = language.make(characters=len(SENTENCES['en']))
  assert run(stage, text)[0].language == 'en'


def test_the_choice_can_be_among_few():
  (document,) = run(language.make(among=('en', 'zh')), SENTENCES['de'])
  assert document.language == 'en'


def test_dropped_documents_are_passed_over():
  row = stages.Document(SENTENCES['de'], reason='earlier.rule')
  assert run(language.make(keep=('en',)), row) == [row]


def test_the_version_of_the_model_is_known():
  assert language.make().packages['py3langid']


@pytest.mark.parametrize(
  ('settings', 'error'),
  [
    ({'keep': ('xx',)}, "keep: 'xx' is not among the languages"),
    ({'keep': ('yue',)}, "keep: 'yue' is not among the languages"),
    ({'keep': ('de',), 'among': ('en',)}, "keep: 'de' is not among the lang"),
    ({'least': 1.5}, 'least=1.5 must be a probability'),
    ({'characters': 0}, 'characters=0 must be at least 1'),
  ],
)
def test_wrong_settings_are_refused_in_one_line(settings, error):
  with pytest.raises(ValueError, match=error):
    language.make(**settings)


def test_the_codes_are_those_of_the_model():
  labels = language._identifier(()).labels
  assert sorted(labels) == sorted(language.CODES)
  langid = pytest.importorskip('py3langid.langid')
  model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
  assert {x for x in model.labels if len(x) == 2} == language.CODES


def test_the_model_is_loaded_only_for_texts(monkeypatch):
  language._identifier.cache_clear()
  language.make(keep=('en',), among=('en', 'zh'))
  assert not language._identifier.cache_info().currsize


def test_a_missing_package_is_one_line(monkeypatch):
  def missing(name):
    raise language.importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(language.importlib.metadata, 'version', missing)
  with pytest.raises(ValueError, match=r'needs py3langid: pip .*\[data\]'):
    language.make()


@pytest.mark.skipif(not FLORES.is_dir(), reason='no shared data')
def test_999_sentences_in_a_thousand_are_found():
  names = {'arb_Arab': 'ar', 'eng_Latn': 'en', 'zho_Hans': 'zh'}
  names |= {'zho_Hant': 'zh', 'spa_Latn': 'es', 'jpn_Jpan': 'ja'}
  wrong = total = 0
  for name, code in names.items():
    text = (FLORES / f'{name}.devtest').read_text(encoding='utf-8')
    sentences = text.split('\n')[:200]
    found = run(language.make(), *sentences)
    wrong += sum(x.language != code for x in found)
    total += len(sentences)
  assert total == 1200
  assert wrong <= 1
