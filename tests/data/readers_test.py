"""Readers of labelled data sets read all of their files, or refuse them."""

import pytest

from lm.data.finetuning import conll_files, pair_readers, readers


def read_set(folder, reader, path, **settings):
  room = readers if hasattr(readers, reader) else pair_readers
  made = getattr(room, reader)(path=str(folder / path), **settings)
  assert made.card.sha256 and made.card.licence
  assert len({r.id for r in made.records}) == len(made.records)
  return made


# Sizes of ../shared/data/README.md, and classes.
@pytest.mark.parametrize(
  ('reader', 'path', 'settings', 'count', 'classes'),
  [
    (
      'sentence_polarity',
      'classification/mr_sentence_polarity/train.jsonl',
      {},
      8527,
      2,
    ),
    ('subjectivity', 'classification/subjectivity/test.jsonl', {}, 1034, 2),
    (
      'movie_reviews',
      'classification/movie_reviews_v2/all.jsonl.gz',
      {'folds': (0,)},
      200,
      2,
    ),
    ('banking77', 'classification/banking77/test.csv', {}, 3080, 77),
    (
      'clinc150',
      'classification/clinc150/data_full.json.gz',
      {'split': 'train'},
      15000,
      150,
    ),
    (
      'clinc150',
      'classification/clinc150/data_full.json.gz',
      {'split': 'test', 'scope': 'all'},
      5500,
      151,
    ),
    ('ocnli', 'classification/ocnli/dev.jsonl.gz', {}, 2950, 3),
    ('boolq', 'qa/boolq/valid.jsonl.gz', {}, 3270, 2),
    ('wnut17', 'ner/wnut17/dev.conll', {}, 1009, 13),
    ('wikigold', 'ner/wikigold/wikigold.conll.txt', {}, 1696, 9),
    ('uner_zh', 'ner/uner_zh_gsdsimp/train.iob2.gz', {}, 3997, 7),
    ('squad', 'qa/squad_v1_subset/dev_3articles.json.gz', {}, 700, 0),
    ('cmrc2018', 'qa/cmrc2018/trial.json.gz', {}, 1002, 0),
    ('drcd', 'qa/drcd/test.json.gz', {}, 3493, 0),
  ],
)
def test_data_sets_are_read_completely(
  shared_data, reader, path, settings, count, classes
):
  made = read_set(shared_data, reader, path, **settings)
  assert (len(made.records), len(made.labels)) == (count, classes)


def test_entities_are_counted_as_published(shared_data):
  made = read_set(shared_data, 'wnut17', 'ner/wnut17/train.conll')
  begun = [tag for r in made.records for tag in r.tags if tag[0] == 'B']
  assert len(begun) == 1975
  assert conll_files.bio(['I-A', 'I-A', 'I-B', 'O', 'I-B', 'B-B']) == (
    *('B-A', 'I-A', 'B-B', 'O', 'B-B', 'B-B'),
  )


@pytest.mark.parametrize(
  ('reader', 'path', 'settings', 'count'),
  [
    (
      'multi30k',
      'translation/multi30k/val.en.gz',
      {'target_path': 'translation/multi30k/val.de.gz'},
      1014,
    ),
    ('tatoeba', 'translation/tatoeba_en_zh/test.tsv.gz', {}, 1479),
    ('scitldr', 'summarization/scitldr_A/dev.jsonl.gz', {}, 619),
    (
      'dialogsum',
      'summarization/dialogsum/dialogsum.test.jsonl.gz',
      {},
      500,
    ),
    ('alpaca', 'instruct/alpaca_en/alpaca_data.jsonl.gz', {}, 52002),
    ('alpaca', 'instruct/alpaca_en/alpaca_data.jsonl.gz', {'limit': 9}, 9),
  ],
)
def test_pairs_are_read_completely(shared_data, reader, path, settings, count):
  if 'target_path' in settings:
    settings = {'target_path': str(shared_data / settings['target_path'])}
  assert len(read_set(shared_data, reader, path, **settings).records) == count


def test_conversations_are_read_completely(shared_data):
  made = read_set(shared_data, 'kdconv', 'dialogue/kdconv_zh/film.dev.json.gz')
  assert len(made.records) == 150
  made = read_set(shared_data, 'crosswoz', 'dialogue/crosswoz_zh/val.jsonl.gz')
  assert len(made.records) == 500
  for talk in made.records:
    assert [role for role, _ in talk.turns[-2:]] == ['user', 'assistant']


def test_files_of_another_form_are_refused(tmp_path):
  path = tmp_path / 'x'
  path.write_text('{"text": "a"}\n')
  for reader, message in (
    ('texts', 'record 1: label is missing; its fields: text; is it a file of'),
    ('squad', 'data is missing; its fields: text; is it a file of squad?'),
    ('conll', 'line 1: "a"} is not a tag such as O, B-PER or I-PER: set word'),
  ):
    with pytest.raises(ValueError) as caught:
      getattr(readers, reader)(path=str(path))
    assert str(caught.value).startswith('task ')
    assert message in str(caught.value)


def test_parallel_files_need_equally_many_lines(tmp_path):
  (tmp_path / 'a').write_text('x\ny\n')
  (tmp_path / 'b').write_text('x\n')
  with pytest.raises(ValueError) as caught:
    pair_readers.multi30k(
      path=str(tmp_path / 'a'), target_path=str(tmp_path / 'b')
    )
  assert '2 lines, and' in str(caught.value)
  assert str(caught.value).endswith('has 1: give files whose lines correspond')
