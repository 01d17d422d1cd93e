"""Evaluation items are found however they are changed; clean text is kept."""

import functools
import json
from pathlib import Path
import random
import re

import numpy as np
import pyarrow as pa
import pytest

from lm.corpus import (
  certificate,
  contamination,
  evaluation_items,
  item_grams,
  item_matches,
  perturbations,
  stages,
)
from lm.evals import probes
from tests.corpus import memory_tables

SETS = {
  'arc_easy': 'evals/arc_easy/test.jsonl',
  'boolq': 'qa/boolq/valid.jsonl.gz',
  'cmmlu': 'evals/cmmlu/test.jsonl.gz',
  'cmrc2018': 'qa/cmrc2018/trial.json.gz',
  'crows_pairs': 'fairness/crows_pairs/crows_pairs_anonymized.csv',
  'gsm8k': 'evals/gsm8k/test.jsonl.gz',
  'lambada_openai': 'evals/lambada_openai/lambada_test.jsonl.gz',
  'piqa': 'evals/piqa/valid.jsonl.gz',
  'sciq': 'evals/sciq/valid.jsonl.gz',
  'winogrande': 'evals/winogrande/valid.jsonl',
}
CLEAN = (
  'lm_en/web_demo/*',
  'lm_en/gutenberg/test.jsonl.gz',
  'lm_zh/novels/test.jsonl.gz',
  'lm_zh/wiki_passages/valid.jsonl.gz',
)
QUESTION = (
  'Which of these would the lighthouse keeper of Marrow Point have used in '
  'order to measure the height of a spring tide?'
)
OPTIONS = ('a tide staff', 'a barometer', 'a sextant', 'a plumb line')
SHORT = 'Why is the sky blue?'


def write_set(folder: Path, rows=None) -> Path:
  """Writes a file in the form of ARC."""
  path = folder / 'set.jsonl'
  rows = rows or [
    {'id': 'tide', 'question': QUESTION, 'choices': OPTIONS, 'gold': 0},
    {'id': 'sky', 'question': SHORT, 'choices': ['air', 'sea'], 'gold': 0},
  ]
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  return path


def make(**settings) -> stages.Stage:
  """Makes a stage that drops documents, so that tests see what is found."""
  return contamination.make(**{'cut': None, **settings})


def keys_of(stage: stages.Stage, texts, first: int = 0) -> pa.Table:
  """Draws the keys of texts, in batches of a few documents."""
  assert stage.keys is not None
  tables = []
  for start in range(0, len(texts), 100):
    rows = [stages.Document(text) for text in texts[start : start + 100]]
    found = stage.keys(stages.batch(pa.array([''] * len(rows)), rows))
    ids = np.array(found.column('row')).astype(np.int64) + first + start
    tables.append(pa.table({'gram': found.column('gram'), 'id': ids}))
  return pa.concat_tables(tables)


def report_of(stage: stages.Stage, tables: memory_tables.Tables):
  assert stage.report is not None
  return stage.report(tables)


def decide(stage: stages.Stage, texts, tables=None):
  """Runs the stage; returns the tables and {id: (reason, value)}."""
  tables = tables or memory_tables.Tables()
  assert stage.decide is not None
  name = stage.decide(tables, tables.add('keys', keys_of(stage, texts)))
  rows = tables.read(name).to_pylist()
  assert all(row['witness'] is None for row in rows)
  assert len({row['id'] for row in rows}) == len(rows)
  return tables, {row['id']: (row['reason'], row['value']) for row in rows}


def filler(seed: int, count: int = 300) -> str:
  """Makes text that no set has."""
  rng = random.Random(seed)
  return ' '.join(f'w{rng.randrange(10**6)}' for _ in range(count))


@pytest.fixture
def stage(tmp_path):
  path = str(write_set(tmp_path))
  return make(sets={'quiz': {'path': path, 'reader': 'arc_easy'}})


def test_a_document_with_an_item_is_dropped_and_says_which(stage):
  shuffled = '\n'.join(reversed(OPTIONS))
  loud = QUESTION.upper().replace(' ', '\n').replace('?', '')
  texts = [
    filler(1),
    f'{filler(2)}\n{QUESTION}\n{filler(3)}',
    f'{filler(4, 30_000)}\n{loud}\n{shuffled}\n{filler(5, 30_000)}',
    QUESTION[: len(QUESTION) // 3],
  ]
  _, found = decide(stage, texts)
  assert found == {
    1: ('contamination.quiz', 0.0),
    2: ('contamination.quiz', 0.0),
  }


def test_a_dropped_document_has_no_keys(stage):
  rows = [stages.Document(QUESTION), stages.Document(QUESTION, reason='other')]
  assert stage.keys is not None
  keys = stage.keys(stages.batch(pa.array(['', '']), rows))
  assert set(keys.column('row').to_pylist()) == {0}
  assert keys.schema == pa.schema([('row', pa.int32()), *stage.schema])


def test_an_item_that_is_too_short_is_not_sought_and_the_report_says_so(stage):
  tables, found = decide(stage, [f'{filler(1)} {SHORT} {filler(2)}'])
  assert found == {}
  (file,) = report_of(stage, tables)['files'].values()
  assert file['unchecked'] == {'too_short': 1, 'boilerplate': 0}
  assert file['items'] == 2 and file['flagged'] == {}
  assert all(x['of'] == 1 for x in file['recall'].values())


def test_a_short_question_is_sought_as_a_whole(tmp_path):
  asked = 'who painted the drowned bells first'
  rows = [{'id': 1, 'question': asked, 'choices': ['a', 'b'], 'gold': 0}]
  path = str(write_set(tmp_path, rows))
  stage = make(sets={'arc_easy': {'path': path}})
  words = asked.split()
  _, found = decide(stage, [f'x {asked} y', ' '.join(words[1:]), filler(1)])
  assert set(found) == {0}


def test_a_short_question_needs_one_of_its_options(tmp_path):
  options = [f'{filler(n, 14)}' for n in range(4)]
  asked = 'so what would the keeper of the tower do'
  rows = [{'id': 1, 'question': asked, 'choices': options, 'gold': 0}]
  path = str(write_set(tmp_path, rows))
  stage = make(sets={'arc_easy': {'path': path}})
  _, found = decide(stage, [asked, f'{asked}\n{options[2]}'])
  assert set(found) == {1}


def test_boilerplate_does_not_count_but_a_copied_item_does(tmp_path):
  notice = 'all rights reserved by the harbour board of Marrow Point and others'
  asked = f'{notice} {filler(1, 10)}'
  rows = [
    {'id': 'notice', 'question': asked, 'choices': ['a', 'b'], 'gold': 0},
    {'id': 'tide', 'question': QUESTION, 'choices': OPTIONS, 'gold': 0},
  ]
  path = str(write_set(tmp_path, rows))
  stage = make(sets={'arc_easy': {'path': path}}, documents=10, coverage=0.25)
  texts = [f'{filler(n)} {notice}' for n in range(2, 32)]
  assert set(decide(stage, texts[:10])[1]) == set(range(10))  # few: it counts
  copies = [f'{filler(n)} {QUESTION}' for n in range(40, 80)]
  tables, found = decide(stage, [*texts, f'{filler(99)} {asked}', *copies])
  assert set(found) == set(range(30, 71))
  (file,) = report_of(stage, tables)['files'].values()
  assert file['flagged'] == {'arc_easy/notice': 1, 'arc_easy/tide': 40}


def test_an_item_of_boilerplate_alone_is_reported_as_unchecked(tmp_path):
  asked = 'this page was last changed by nobody in particular'
  rows = [{'id': 1, 'question': asked, 'choices': ['a', 'b'], 'gold': 0}]
  path = str(write_set(tmp_path, rows))
  stage = make(sets={'arc_easy': {'path': path}}, documents=10)
  tables, found = decide(stage, [f'{filler(n)} {asked}' for n in range(11)])
  assert found == {}
  (file,) = report_of(stage, tables)['files'].values()
  assert file['unchecked'] == {'too_short': 0, 'boilerplate': 1}
  assert file['recall'] == {}


def test_a_turn_of_phrase_of_a_set_does_not_count(tmp_path):
  phrase = (
    'which one of the following statements about this reading is true for'
  )
  rows = [
    {'id': n, 'question': f'{phrase} {filler(n, 9)}', 'choices': [], 'gold': 0}
    for n in range(12)
  ]
  path = str(write_set(tmp_path, rows))
  of_set = functools.partial(
    make, sets={'arc_easy': {'path': path, 'reader': 'gsm8k'}}
  )
  text = f'{filler(50)} {phrase} {filler(51)}'
  assert set(decide(of_set(coverage=0.2), [text])[1]) == set()
  assert set(decide(of_set(coverage=0.2, texts=12), [text])[1]) == {0}


def test_long_texts_are_read_in_pieces(stage, monkeypatch):
  monkeypatch.setattr(item_grams, '_PIECE', 40)
  texts = [f'{filler(n, n)} {QUESTION} {filler(n, 20)}' for n in range(30)]
  _, found = decide(stage, texts)
  assert set(found) == set(range(30))


def cut_out(stage: stages.Stage, texts) -> list[stages.Document]:
  """Runs the stage; returns the documents as it leaves them."""
  tables = memory_tables.Tables()
  assert stage.decide is not None and stage.edit is not None
  name = stage.decide(tables, tables.add('keys', keys_of(stage, texts)))
  cuts: dict[int, list[int]] = {}
  for row in tables.read(name).to_pylist():
    cuts.setdefault(row['id'], []).append(row['place'])
  rows = [*map(stages.Document, texts)]
  batch = stages.batch(pa.array([''] * len(rows)), rows)
  return stages.documents(stage.edit(batch, cuts))


def test_a_long_document_loses_the_passage_and_a_short_one_goes(tmp_path):
  path = str(write_set(tmp_path))
  sets = {'quiz': {'path': path, 'reader': 'arc_easy'}}
  stage = contamination.make(sets=sets)
  long = f'{filler(1)}\n{QUESTION}\n{filler(2)}\n{QUESTION}\n{filler(3)}'
  often = ''.join(f'{filler(n)}\n{QUESTION}\n' for n in range(11))
  short = f'{filler(4, 20)}\n{QUESTION}'
  clean, cut, *dropped = cut_out(stage, [filler(5), long, often, short])
  assert clean == stages.Document(filler(5))
  assert cut.reason == '' and 'lighthouse' not in cut.text
  assert len(long) - len(cut.text) < 2 * (len(QUESTION) + 430)
  assert cut.changes == (
    ('contamination.quiz', 1),
    ('contamination.passages', 2),
  )
  for document, text in zip(dropped, (often, short), strict=True):
    assert document.text == text and document.changes == ()
    assert (document.reason, document.value) == ('contamination.quiz', 0.0)
  again = [clean.text, cut.text]
  assert [x.text for x in cut_out(stage, again)] == again
  assert [
    x.reason
    for x in cut_out(
      contamination.make(
        sets=sets, cut={'least': 0, 'margin': 0, 'most_pieces': 12}
      ),
      [long, often, short],
    )
  ] == ['', '', '']


def test_boilerplate_of_an_item_is_not_cut(tmp_path):
  notice = 'all rights reserved by the harbour board of Marrow Point and others'
  rows = [
    {'id': 1, 'question': f'{notice} {QUESTION}', 'choices': [], 'gold': 0}
  ]
  path = str(write_set(tmp_path, rows))
  stage = contamination.make(
    sets={'quiz': {'path': path, 'reader': 'gsm8k'}}, documents=10
  )
  texts = [f'{filler(n)} {notice} {filler(n + 50)}' for n in range(30)]
  texts[3] += f' {QUESTION} {filler(99)}'
  found = cut_out(stage, texts)
  assert [n for n, x in enumerate(found) if x.changes] == [3]
  assert notice in found[3].text and QUESTION not in found[3].text


def test_two_runs_and_two_orders_of_settings_give_the_same(tmp_path):
  path = str(write_set(tmp_path))
  other = tmp_path / 'other.jsonl'
  other.write_text(json.dumps({'text': f'{QUESTION} {filler(7, 9)}'}))
  one = {'path': path, 'reader': 'arc_easy'}
  two = {'path': str(other), 'fields': ('text',), 'id': 'two/{n}'}
  texts = [QUESTION, filler(7, 9), filler(8)]
  results = []
  for sets in ({'b': one, 'a': two}, {'a': two, 'b': one}):
    stage = make(sets=sets)
    tables, found = decide(stage, texts)
    results.append(
      (stage.settings, stage.data, found, report_of(stage, tables))
    )
  assert results[0] == results[1]
  assert results[0][2][0] == ('contamination.a', 0.0)
  json.dumps(results[0][3])


def test_errors_name_the_setting_and_the_cause(tmp_path):
  path = str(write_set(tmp_path))
  cases = [
    ({}, 'sets: there is none; name evaluation sets'),
    ({'A b': {'path': path}}, 'sets.A b: use small letters, digits and _'),
    ({'quiz': {}}, 'sets.quiz.path: name the file of the set, or a pattern'),
    ({'quiz': {'path': path}}, 'sets.quiz: its fields are unknown; give'),
    ({'quiz': {'path': path, 'field': 'x'}}, 'sets.quiz.field: no such'),
    ({'quiz': {'path': f'{path}x', 'fields': ('a',)}}, 'no such file'),
    ({'quiz': {'path': path, 'fields': ('answer',)}}, 'answer is missing'),
    ({'boolq': {'path': path}}, 'passage is missing'),
  ]
  for sets, text in cases:
    with pytest.raises(ValueError, match=re.escape(text)) as error:
      make(sets=sets)
    assert len(str(error.value)) <= 200
  good = {'arc_easy': {'path': path}}
  with pytest.raises(ValueError, match='coverage: 2 is no share above 0'):
    make(sets=good, coverage=2)
  with pytest.raises(ValueError, match='lengths: 3 words and 13 characters'):
    make(sets=good, lengths=(3, 13))
  with pytest.raises(ValueError, match='sample: 0 is below 1'):
    make(sets=good, sample=0)
  with pytest.raises(ValueError, match='no such file'):
    make(sets=good, clean=(f'{path}x',))
  for cut, text in (
    ({'side': 1}, 'cut.side: no such setting; use margin, least, most_pieces'),
    ({'margin': -1}, 'cut.margin: -1 is too small'),
    ({'most_pieces': 0}, 'cut.most_pieces: 0 is too small'),
  ):
    with pytest.raises(ValueError, match=text):
      make(sets=good, cut=cut)
  twice = {'arc_easy': {'path': path}, 'piqa': {'path': path}}
  with pytest.raises(ValueError, match='the same file as in sets'):
    decide(make(sets=twice), ['text'])


def test_intervals_are_wilsons():
  one = certificate.share(9, 10)
  assert one['share'] == 0.9
  assert one['interval'] == pytest.approx([0.5958, 0.9821], abs=1e-4)
  assert certificate.share(0, 50)['interval'][0] == 0


def test_ids_are_those_of_the_evaluators(shared_data):
  for name in ('arc_easy', 'boolq', 'cmmlu', 'lambada_openai', 'piqa', 'sciq',
               'winogrande'):  # fmt: skip
    path = str(shared_data / SETS[name])
    (file,) = evaluation_items.read(name, {'path': path})
    task = getattr(probes, name)(path=path)
    assert [x.id for x in file.items] == [x.id for x in task.questions]
    assert file.sha256 == task.card.sha256


def test_questions_are_read_with_their_passages(shared_data):
  (file,) = evaluation_items.read(
    'cmrc2018', {'path': str(shared_data / SETS['cmrc2018'])}
  )
  assert len({item.id for item in file.items}) == 1002
  # Two questions are empty.
  assert [len(item.texts) for item in file.items].count(2) == 1000


def measured(shared_data, names, sample, clean=CLEAN, texts=('',)):
  stage = make(
    sets={name: {'path': str(shared_data / SETS[name])} for name in names},
    clean=tuple(str(shared_data / x) for x in clean),
    sample=sample,
  )
  tables, _ = decide(stage, texts)
  return report_of(stage, tables)


@pytest.mark.slow
@pytest.mark.parametrize('name', SETS)
def test_items_are_found_after_each_perturbation(shared_data, name):
  report = measured(shared_data, [name], 100)
  (file,) = report['files'].values()
  assert file['unchecked']['too_short'] < 0.1 * file['items']
  names = {'verbatim', 'rewrapped', 'lower_case', 'upper_case', 'diluted'}
  assert file['recall'].keys() >= {*names, 'without_punctuation'}
  for perturbation, one in file['recall'].items():
    assert one['share'] >= 0.95, (perturbation, one)


@pytest.mark.slow
@pytest.mark.parametrize('name', SETS)
def test_nothing_is_found_again_after_it_was_cut(shared_data, name):
  sets = {name: {'path': str(shared_data / SETS[name])}}
  (file,) = evaluation_items.read(name, sets[name])
  stage = contamination.make(sets=sets)
  rng = np.random.default_rng(0)
  drawn = [file.items[n] for n in rng.choice(len(file.items), 30, False)]
  hosts = [filler(n, 600) for n in range(20)]
  texts = [
    perturbations.inject(form, item, hosts, rng)
    for form in perturbations.PERTURBATIONS
    for item in drawn
    if perturbations.applies(form, len(item.options))
  ]
  found = cut_out(stage, texts)
  hit = [n for n, x in enumerate(found) if x.changes or x.reason]
  assert len(hit) >= 0.9 * len(texts)
  # Each host is longer than what goes with an item.
  assert not any(found[n].reason for n in hit)
  left = [x.text for x in found]
  assert min(map(len, left)) > 1_000
  assert all(not x.changes for x in cut_out(stage, left))


@pytest.mark.slow
def test_clean_text_is_kept_with_all_sets_together(shared_data):
  report = measured(shared_data, SETS, 1)
  assert len(report['false_positives']) == 5
  for file, one in report['false_positives'].items():
    assert one['share'] < 0.01, (file, one)
  total = sum(x['of'] for x in report['false_positives'].values())
  assert total > 500


def test_an_option_alone_is_no_item():
  """A question too short to be sought leaves options that stand anywhere."""
  options = ('a b c a b c', 'a b b a b b', 'c c b c c b', 'b a c b a c')
  item = evaluation_items.Item('quiz/1', ('What follows?',), options)
  found = item_grams.probes([item], (8, 13), 10)
  assert len(found) == 1
  one = item_grams.find('# a b c a b c\n', item_grams.index(found, (8, 13)))
  assert len(one) == 1 < 2 <= found[0].all


def test_files_count_by_content_set_and_kind(tmp_path):
  """Which of three files belongs to which set is no matter of their order."""
  for n, name in enumerate(('x.jsonl', 'y.jsonl', 'z.jsonl')):
    row = {'question': f'what is the name of thing {n}'}
    for folder in ('left', 'right', 'all'):
      (tmp_path / folder).mkdir(exist_ok=True)
      (tmp_path / folder / name).write_text(f'{json.dumps(row)}\n')
  (tmp_path / 'left/z.jsonl').unlink()
  (tmp_path / 'right/x.jsonl').unlink()

  def sets(a, b):
    plain = {
      name: {'path': str(tmp_path / path), 'fields': ('question',)}
      for name, path in (('a', a), ('b', b))
    }
    return contamination.make(sets=plain).settings['sets']

  first = sets('left/*.jsonl', 'all/z.jsonl')
  second = sets('all/x.jsonl', 'right/*.jsonl')
  files = [
    [x for one in found.values() for x in one['files']]
    for found in (first, second)
  ]
  assert files[0] == files[1] and first != second
  # Nor does it matter where they lie.
  assert first == sets('all/[xy].jsonl', 'right/z.jsonl')


def test_a_changed_file_is_loaded_again(tmp_path):
  path = tmp_path / 'x.jsonl'
  sets = json.dumps({'quiz': {'path': str(path), 'fields': ['question']}})
  settings = item_matches.Settings(sets, 0.5, (8, 13), 20, 10, None)
  for word in ('first', 'second'):
    path.write_text(json.dumps({'question': f'{word} of many words here'}))
    (item,) = item_matches.fresh(settings).items
    assert item.texts[0].startswith(word)


def test_clean_files_of_one_name_are_told_apart():
  paths = ['one/web/x.jsonl', 'two/web/x.jsonl', 'y.jsonl']
  assert certificate._short(paths) == paths
  assert certificate._short(['a/b/x', 'a/c/x']) == ['b/x', 'c/x']
  assert certificate._short(['x']) == ['x']
