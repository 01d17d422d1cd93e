"""Fine-tuning: records become rows, rows are learnt, answers are judged."""

import json
import random
from typing import Any

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from configs import base
from lm import config, sample, sharding, train
from lm import evaluate as evaluate_lib
from lm.data.finetuning import (
  batching,
  forms,
  pair_forms,
  pair_readers,
  passages,
  readers,
  tasks,
)
from lm.data.finetuning import records as record_lib
from lm.data.tokenizers import utf8_bytes
from lm.evals import classification, context, text_metrics
from lm.reporting import metrics_log
from tools import export

BYTES = utf8_bytes.make()
# A byte is a token, so that words of one letter are learnt in seconds.
WORDS = 'rbgfhcstua'
SMALL: dict[str, Any] = {'length': 64, 'width': 32, 'depth': 2}
BODIES = {
  'encoder': base.encoder(2, 'pre', **SMALL),
  'decoder': base.decoder(2, **SMALL),
  'lstm': base.recurrent(width=32, depth=1, bidirectional=True),
}


def write_texts(path, count, seed):
  """Texts that are 'warm' if they have an r, else 'cold'."""
  rng = random.Random(seed)
  with path.open('w') as file:
    for n in range(count):
      words = [rng.choice('stua') for _ in range(6)]
      words[rng.randrange(6)] = 'r' if n % 2 else 'b'
      row = {'text': ' '.join(words), 'label': 'warm' if n % 2 else 'cold'}
      file.write(json.dumps(row) + '\n')
  return str(path)


def write_tags(path, count, seed):
  """The letters f, h and c are entities of one type, r of another."""
  rng = random.Random(seed)
  with path.open('w') as file:
    for _ in range(count):
      for letter in rng.choices(WORDS, k=7):
        tag = 'B-ANI' if letter in 'fhc' else 'B-COL' if letter == 'r' else 'O'
        file.write(f'{letter} {tag}\n')
      file.write('\n')
  return str(path)


def write_readings(path, count, seed):
  """The answer is f, h or c, of which a passage has one."""
  rng = random.Random(seed)
  paragraphs = []
  for n in range(count):
    words = [rng.choice('stub') for _ in range(8)]
    words[rng.randrange(8)] = letter = rng.choice('fhc')
    passage = ','.join(words)
    answer = {'text': letter, 'answer_start': passage.index(letter)}
    qas = [{'id': str(n), 'question': 'who?', 'answers': [answer]}]
    paragraphs.append({'context': passage, 'qas': qas})
  path.write_text(json.dumps({'data': [{'paragraphs': paragraphs}]}))
  return str(path)


def tuned(tmp_path, body, head, records_of, form, evaluator, steps):
  """Trains on 400 records; gives what a sweep finds on 64 others."""
  write, reader = records_of
  spec = {'fn': reader, 'path': write(tmp_path / 'train', 400, 0)}
  if 'classes' in form:
    form = {**form, 'labels': spec}
  c = base.get_config().unlock()
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make', 'reserved': 0}
  c.steps, c.batch_size, c.save_every = steps, 32, steps
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': spec,
    'form': form,
    'length': 64,
  }
  c.model = {**head, 'body': BODIES[body]}
  c.optim.peak, c.optim.warmup, c.optim.decay = 5e-3, 10, 0.0
  c.evals = {
    'test': {
      'fn': f'lm.evals.classification:{evaluator}',
      'records': {'fn': reader, 'path': write(tmp_path / 'test', 64, 1)},
      'form': form,
      'batch_size': 64,
      'length': 64,
    }
  }
  train.train(c.lock(), tmp_path / 'run')
  return evaluate_lib.evaluate(tmp_path / 'run')[-1]['metrics']


@pytest.mark.parametrize(
  ('body', 'pool'), [('encoder', 'mean'), ('decoder', 'last'), ('lstm', 'mean')]
)
@pytest.mark.usefixtures('one_device')
def test_a_tuned_classifier_classifies(tmp_path, body, pool):
  head = {'fn': 'lm.models.heads:classify', 'classes': 2, 'pool': pool}
  form = {'fn': 'lm.data.finetuning.forms:classify', 'classes': 2}
  source = write_texts, 'lm.data.finetuning.readers:texts'
  found = tuned(tmp_path, body, head, source, form, 'classes', 80)
  assert found['test/accuracy'] > 0.95 and found['test/macro_f1'] > 0.95
  with pytest.raises(config.ConfigError) as caught:
    sample.sample(tmp_path / 'run', 'r')
  assert str(caught.value).endswith(
    'trained by lm.data.finetuning.tasks:make, which cannot continue a text'
  )


@pytest.mark.parametrize('body', BODIES)
@pytest.mark.usefixtures('one_device')
def test_a_tuned_tagger_tags(tmp_path, body):
  head = {'fn': 'lm.models.heads:tag', 'classes': 3}
  form = {'fn': 'lm.data.finetuning.forms:tag', 'classes': 3, 'join': ''}
  source = write_tags, 'lm.data.finetuning.readers:conll'
  found = tuned(tmp_path, body, head, source, form, 'tags', 100)
  assert found['test/f1'] > 0.95 and found['test/f1/ANI'] > 0.95


@pytest.mark.parametrize('body', BODIES)
@pytest.mark.usefixtures('one_device')
def test_a_tuned_reader_answers(tmp_path, body):
  head = {'fn': 'lm.models.heads:span'}
  form = {'fn': 'lm.data.finetuning.forms:span', 'question': 8}
  source = write_readings, 'lm.data.finetuning.readers:squad'
  found = tuned(tmp_path, body, head, source, form, 'spans', 100)
  assert found['test/exact'] > 0.95 and found['test/f1'] > 0.95


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
def test_sets_are_read_whole(
  shared_data, reader, path, settings, count, classes
):
  made = read_set(shared_data, reader, path, **settings)
  assert (len(made.records), len(made.labels)) == (count, classes)


def test_entities_are_counted_as_published(shared_data):
  made = read_set(shared_data, 'wnut17', 'ner/wnut17/train.conll')
  begun = [tag for r in made.records for tag in r.tags if tag[0] == 'B']
  assert len(begun) == 1975
  assert readers.bio(['I-A', 'I-A', 'I-B', 'O', 'I-B', 'B-B']) == (
    *('B-A', 'I-A', 'B-B', 'O', 'B-B', 'B-B'),
  )


@pytest.mark.parametrize(
  ('reader', 'path', 'language'),
  [
    ('squad', 'qa/squad_v1_subset/dev_3articles.json.gz', 'en'),
    ('squad', 'qa/xquad/xquad.en.json.gz', 'en'),
    ('cmrc2018', 'qa/cmrc2018/trial.json.gz', 'zh'),
  ],
)
def test_who_knows_the_places_answers_all(
  shared_data, reader, path, language, monkeypatch
):
  """Cutting passages into pieces and rows costs almost nothing."""
  monkeypatch.setattr(
    classification, '_scorer', lambda *_: lambda params, rows: map(known, rows)
  )

  def known(row):
    logits = np.full((2, 512), -9.0)
    if row.targets != [0, 0]:
      logits[np.arange(2), row.targets] = 9.0
    return row, logits

  nothing: Any = None
  evaluate = classification.spans(
    context=context.Context(nothing, BYTES, nothing),
    records={
      'fn': f'lm.data.finetuning.readers:{reader}',
      'path': str(shared_data / path),
    },
    form={'fn': 'lm.data.finetuning.forms:span', 'stride': 128},
    batch_size=1,
    length=512,
    language=language,
  )
  # Answers of more bytes than a span may have tokens are not found.
  monkeypatch.setattr(classification, '_LONGEST', 512)
  found = evaluate(None)
  assert found.metrics['f1'] > 0.98
  assert {item['id'] for item in found.items} == {
    f'{reader}/{r.id.partition("/")[2]}'
    for r in read_set(shared_data, reader, path).records
  }


@hypothesis.given(
  st.integers(0, 60), st.integers(1, 20), st.none() | st.integers(1, 25)
)
def test_rows_overlap_and_each_token_is_of_one(size, room, stride):
  rows = list(passages.overlapping(size, room, stride))
  assert [n for _, _, mine in rows for n in mine] == list(range(size))
  around = [
    max(
      min(n - first, stop - 1 - n)
      for first, stop, _ in rows
      if first <= n < stop
    )
    for n in range(size)
  ]
  last = rows[-1][1] - 1
  for first, stop, mine in rows:
    assert stop - first <= room
    for n in mine:
      # Both ends of the text have nothing beyond them to see.
      here = min(n - first, stop - 1 - n)
      assert here >= around[n] - 1 or stop - 1 == last or not first


def test_a_long_sentence_is_tagged_in_parts_and_each_word_once():
  words = tuple('abcdefghijklmnop')
  one = record_lib.Sentence('x', words, ('O', 'B-A') * 8)
  form = forms.tag(
    tokenizer=BYTES, length=8, classes=2, labels=('B-A', 'O'), join=''
  )
  rows = form.rows([one])
  assert len(rows) > 2 and all(len(row.ids) <= 8 for row in rows)
  scored = [
    (place, target)
    for row in rows
    for place, target, weight in zip(
      row.places, [*row.targets, 0], [*row.weights, 0.0], strict=True
    )
    if weight
  ]
  assert scored == [(n, 1 - n % 2) for n in range(16)]


def test_a_pair_is_cut_where_it_is_longer():
  form = forms.classify(
    tokenizer=BYTES, length=10, classes=2, labels=('n', 'y'), token_types=True
  )
  (row,) = form.rows([record_lib.Text('x', ('abcdefgh', 'ij'), 'y')])
  assert BYTES.decode(row.ids) == 'abcdeij' and len(row.ids) == 10
  assert row.token_types == [0] * 7 + [1] * 3 and row.targets == [1]
  batch = batching.assemble([[row], []], form, 12, BYTES)
  assert batch.token_types is not None and batch.segments.sum() == 10
  assert batch.weights.tolist() == [[1.0], [0.0]]
  form = forms.classify(
    tokenizer=BYTES, length=10, classes=2, labels=('n', 'y'), ends=False
  )
  (row,) = form.rows([record_lib.Text('x', ('abcdefgh', 'ij'), 'y')])
  assert BYTES.decode(row.ids) == 'abcdefij' and len(row.ids) == 10
  assert row.ids.count(BYTES.eos) == 1 and row.ids[-1] != BYTES.eos


def source(tmp_path, count=20, **changes):
  spec = {
    'fn': 'lm.data.finetuning.readers:texts',
    'path': write_texts(tmp_path / 'texts', count, 0),
  }
  settings = {
    'records': spec,
    'form': {
      'fn': 'lm.data.finetuning.forms:classify',
      'classes': 2,
      'labels': spec,
    },
    'tokenizer': BYTES,
    'seed': 0,
    'batch_size': 4,
    'length': 32,
  }
  return tasks.make(**{**settings, **changes})


def test_an_epoch_has_each_record_once_in_an_order_of_its_own(tmp_path):
  data = source(tmp_path)
  epochs = [
    [BYTES.decode(row.tolist()) for n in steps for row in data.batch(n).tokens]
    for steps in (range(5), range(5, 10))
  ]
  assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
  assert len(set(epochs[0])) == 20
  parts = [data.batch(7, host, 2).tokens for host in range(2)]
  assert np.array_equal(np.concatenate(parts), data.batch(7).tokens)


def test_folds_part_the_records(tmp_path):
  def trained_on(held_out):
    data = source(tmp_path, folds=5, held_out=held_out, batch_size=16)
    return {BYTES.decode(row.tolist()) for row in data.batch(0).tokens}

  every = {
    BYTES.decode(x.tolist())
    for x in source(tmp_path, batch_size=20).batch(0).tokens
  }
  held = [every - trained_on(n) for n in range(5)]
  assert [len(part) for part in held] == [4] * 5
  assert set.union(*held) == every
  # They are folds of the same data, but no run goes on with another.
  first, second = (source(tmp_path, folds=5, held_out=n) for n in (0, 1))
  assert first.fingerprint == second.fingerprint
  with pytest.raises(
    ValueError, match='data: held_out is 1, and the run began'
  ):
    source(tmp_path, folds=5, held_out=1, position=first.state(3))


def test_a_run_goes_on_with_the_same_records_only(tmp_path):
  state = source(tmp_path).state(3)
  assert source(tmp_path, position=state).state(3) == state
  with pytest.raises(ValueError) as caught:
    source(tmp_path, count=21, position=state)
  assert 'data: fingerprint is ' in str(caught.value)
  assert 'tune anew in another --workdir' in str(caught.value)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {
        'form': {
          'fn': 'lm.data.finetuning.forms:classify',
          'classes': 3,
          'labels': 'ab',
        }
      },
      'classes=3, and there are 2 labels: a, b; make them equal',
    ),
    (
      {
        'form': {
          'fn': 'lm.data.finetuning.forms:classify',
          'classes': 2,
          'labels': 'ab',
        }
      },
      'label cold is not one of the 2 labels (a, b): give those of the',
    ),
    (
      {
        'records': {
          'fn': 'lm.data.finetuning.readers:texts',
          'path': 'no/where',
        }
      },
      'task no/where: no such file; check the path',
    ),
    ({'folds': 2, 'held_out': 2}, 'held_out=2 must be below folds=2'),
    ({'length': 3}, 'length=3 must be a whole number from 4 on'),
    (
      {'form': {'fn': 'lm.data.finetuning.forms:span', 'question': 30}},
      'question=30 leaves no room in length=32',
    ),
  ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, changes, message):
  with pytest.raises(ValueError) as caught:
    source(tmp_path, **changes)
  assert message in str(caught.value) and len(str(caught.value)) <= 200


def test_files_of_another_form_are_refused(tmp_path):
  path = tmp_path / 'x'
  path.write_text('{"text": "a"}\n')
  for reader, message in (
    ('texts', "record 1 is not of texts (KeyError: 'label'); give a file of"),
    ('squad', 'not in the form of SQuAD'),
    ('conll', 'line 1: "a"} is not a tag such as O, B-PER or I-PER: set word'),
  ):
    with pytest.raises(ValueError) as caught:
      getattr(readers, reader)(path=str(path))
    assert str(caught.value).startswith('task ')
    assert message in str(caught.value)


def test_answers_are_compared_as_squad_does():
  assert classification.exact_match('The Fox.', 'fox', 'en') == 1
  assert classification.overlap('a red fox', 'red hen', 'en') == pytest.approx(
    0.5
  )
  assert classification.overlap('', 'fox', 'en') == 0.0
  assert classification.overlap('北京市', '北京', 'zh') == pytest.approx(0.8)


def test_a_model_of_other_classes_is_refused(tmp_path):
  spec = {
    'fn': 'lm.data.finetuning.readers:texts',
    'path': write_texts(tmp_path / 'x', 8, 0),
  }
  model = config.build(
    {
      'fn': 'lm.models.heads:classify',
      'classes': 3,
      'body': BODIES['encoder'],
    },
    vocab=BYTES.size,
  )
  form = {
    'fn': 'lm.data.finetuning.forms:classify',
    'classes': 2,
    'labels': spec,
  }
  evaluate = classification.classes(
    context=context.Context(model, BYTES, sharding.make_mesh()),
    records=spec,
    form=form,
    batch_size=8,
    length=32,
  )
  example = source(tmp_path).example
  with pytest.raises(ValueError) as caught:
    evaluate(model.init(jax.random.key(0), example))
  assert 'the model has 3 classes, and form.labels are 2' in str(caught.value)


def write_pairs(path, count, seed):
  """Sentences of four letters, and the same in others."""
  rng = random.Random(seed)
  return write_written(path, [translation(rng) for _ in range(count)])


def write_written(path, pairs):
  lines = (json.dumps({'source': a, 'target': b}) for a, b in pairs)
  path.write_text('\n'.join(lines) + '\n')
  return str(path)


def translation(rng):
  text = ''.join(rng.choices('rbgf', k=rng.randrange(2, 5)))
  return text, text.translate(str.maketrans('rbgf', 'xyzw'))


def entities(rng):
  """The text, its entities marked."""
  text = ''.join(rng.choices(WORDS, k=4))
  return text, text.translate(str.maketrans('fhc', 'FHC'))


def category(rng):
  words = rng.choices('stua', k=6)
  words[rng.randrange(6)] = letter = rng.choice('rb')
  return ''.join(words), 'W' if letter == 'r' else 'C'


def answer(rng):
  words = rng.choices('stub', k=6)
  words[rng.randrange(6)] = letter = rng.choice('fhc')
  return ''.join(words), letter


def summary(rng):
  """Returns the beginning of a text."""
  text = ''.join(rng.choices('stub', k=6))
  return text, text[:2]


# Told apart by their first letter, as T5 is told: Raffel et al. 2020, 2.4.
WRITTEN = (translation, entities, category, answer, summary)


@pytest.mark.parametrize('body', ['encdec', 'decoder'])
@pytest.mark.usefixtures('one_device')
def test_a_tuned_writer_does_every_task(tmp_path, body):
  def read(name, makers, count, seed):
    rng = random.Random(seed)
    pairs = [
      (f'{make.__name__[0]}{a}', b)
      for _ in range(count)
      for make in makers
      for a, b in [make(rng)]
    ]
    path = write_written(tmp_path / name, pairs)
    fields = {'source': 'source', 'target': 'target'}
    return {
      'fn': 'lm.data.finetuning.pair_readers:pairs',
      'path': path,
      **fields,
    }

  form = {'fn': 'lm.data.finetuning.pair_forms:translate', 'source': 12}
  model = base.transformer(2, depth=2, order='pre', width=32)
  if body == 'decoder':
    form = {
      'fn': 'lm.data.finetuning.pair_forms:reply',
      'template': '{source}=',
    }
    model = BODIES['decoder']
  c = base.get_config().unlock()
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make', 'reserved': 0}
  c.steps, c.batch_size, c.save_every = 500, 64, 500
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': read('train', WRITTEN, 600, 0),
    'form': form,
    'length': 16,
  }
  c.model = model
  c.optim.peak, c.optim.warmup, c.optim.decay = 1e-2, 50, 0.0
  c.evals = {
    f'{make.__name__}_{beams}': {
      'fn': 'lm.evals.generation:make',
      'records': read(make.__name__, [make], 64, 1),
      'form': form,
      'batch_size': 64,
      'length': 16,
      'new': 6,
      'beams': beams,
      'metrics': ('exact', 'f1', 'chrf', 'bleu', 'rouge'),
    }
    for make, beams in [(translation, 3), *((x, 1) for x in WRITTEN)]
  }
  train.train(c.lock(), tmp_path / 'run')
  found = evaluate_lib.evaluate(tmp_path / 'run')[-1]['metrics']
  for name in c.evals:
    assert found[f'{name}/exact'] > 0.95 and found[f'{name}/f1'] > 0.95, name
  assert found['translation_3/chrf'] > 95
  assert found['translation_3/rougeL'] > 0.95
  told = metrics_log.read(tmp_path / 'run' / 'evals.jsonl')[0]['card']
  assert 'tok:13a' in told['bleu'] and 'nc:6' in told['chrf']
  export.main(
    [
      'stablehlo' if body == 'encdec' else 'int8',
      f'--workdir={tmp_path / "run"}',
      f'--output={tmp_path / "out"}',
      '--budget=0.05',
    ]
  )
  (report,) = metrics_log.read(tmp_path / 'out' / 'report.json')
  assert report['probe']['rows'] == 64 < report['probe']['tokens']


def test_pairs_are_laid_out_for_either_side():
  pair = record_lib.Pair('x', 'ab', ('cde', 'f'))
  form = pair_forms.translate(tokenizer=BYTES, length=8, source=6)
  (row,) = form.rows([pair])
  batch = batching.assemble([[row, row], []], form, 8, BYTES)
  eos, bos = BYTES.eos, BYTES.bos
  assert row.ids == [bos, *BYTES.encode('cde')]
  assert row.targets == [*BYTES.encode('cde'), eos]
  assert batch.segments[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
  assert batch.positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
  assert batch.weights.sum() == 8 and not batch.weights[1].any()
  form = pair_forms.reply(
    tokenizer=BYTES, length=8, template='<{source}>', room=3
  )
  (row,) = form.rows([pair])
  assert row.ids == [bos, *BYTES.encode('<ab>cde')][:8]
  assert row.targets == [*BYTES.encode('<ab>cde'), eos][:8]
  assert row.weights == [0, 0, 0, 0, 1, 1, 1, 1]
  # A long source loses its beginning, a long answer its end.
  (row,) = form.rows([record_lib.Pair('x', 'abcdefgh', ('ijklmnop',))])
  assert row.ids == [bos, *BYTES.encode('fgh>ijk')]
  assert row.targets == BYTES.encode('fgh>ijkl')
  assert row.weights == [0, 0, 0, 0, 1, 1, 1, 1]
  assert form.prompt is not None
  asked = form.prompt([pair])
  assert BYTES.decode(asked.tokens[0].tolist()) == '<ab>'


def test_packing_loses_no_record_and_fills_rows(tmp_path):
  path = write_pairs(tmp_path / 'x', 300, 0)
  spec = {'fn': 'lm.data.finetuning.pair_readers:pairs', 'path': path}
  spec |= {'source': 'source', 'target': 'target'}
  settings = {
    'records': spec,
    'form': {'fn': 'lm.data.finetuning.pair_forms:translate', 'source': 32},
    'batch_size': 10,
  }
  data = source(tmp_path, pack=True, **settings)
  loose = source(tmp_path, **settings)
  rows = loose.batch(0).weights.sum(1).max()
  steps = range(-(-300 // 10))
  total = sum(loose.batch(n).weights.sum() for n in steps)
  found = batching.pack(
    *(lambda made: (made[2], made[1]))(
      tasks.read(spec, settings['form'], BYTES, 32)
    ),
    32,
  )
  assert sorted(row.record for group in found for row in group) == [*range(300)]
  filled = sum(len(row.ids) for group in found for row in group)
  assert filled == total and filled / (32 * len(found)) > 0.9 and rows <= 5
  assert data.batch(0).segments.max() >= 6
  readings = {
    'fn': 'lm.data.finetuning.readers:squad',
    'path': write_readings(tmp_path / 'readings', 4, 0),
  }
  form = {'fn': 'lm.data.finetuning.forms:span', 'question': 8}
  with pytest.raises(ValueError, match='forms:span fills a row of the batch'):
    source(tmp_path, pack=True, records=readings, form=form)


def test_classes_of_packed_texts_stand_in_their_order(tmp_path):
  data = source(tmp_path, pack=True, length=64, batch_size=5)
  batch = data.batch(0)
  assert batch.targets.shape == batch.weights.shape == (5, 4)
  assert batch.weights.all()
  for b, targets in enumerate(batch.targets):
    texts = [
      BYTES.decode(batch.tokens[b, batch.segments[b] == 1 + k].tolist())
      for k in range(4)
    ]
    assert targets.tolist() == [int('r' in text) for text in texts]


@pytest.mark.parametrize(
  ('reader', 'path', 'settings', 'count'),
  [
    (
      'multi30k',
      'translation/multi30k/val.en.gz',
      {'target': 'translation/multi30k/val.de.gz'},
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
def test_pairs_are_read_whole(shared_data, reader, path, settings, count):
  if 'target' in settings:
    settings = {'target': str(shared_data / settings['target'])}
  assert len(read_set(shared_data, reader, path, **settings).records) == count


def test_files_of_other_lengths_are_no_pairs(tmp_path):
  (tmp_path / 'a').write_text('x\ny\n')
  (tmp_path / 'b').write_text('x\n')
  with pytest.raises(ValueError) as caught:
    pair_readers.multi30k(path=str(tmp_path / 'a'), target=str(tmp_path / 'b'))
  assert '2 lines, and' in str(caught.value)
  assert str(caught.value).endswith('has 1: give files whose lines correspond')


def test_variety_is_counted():
  assert text_metrics.variety(['a b a', 'b'], 'en') == {
    'distinct_1': 0.5,
    'distinct_2': 1.0,
    'repetition': 0.0,  # too short for any
    'length': 2.0,
  }
  # Two of five runs of four words are new; one has one, and one none.
  found = text_metrics.variety(['a b a b a b a b', 'a b a c', 'a'], 'en')
  assert found['repetition'] == pytest.approx((1 - 2 / 5) / 2)
  assert text_metrics.variety(['红红'], 'zh')['distinct_1'] == 0.5


def test_only_the_assistant_is_scored_in_a_talk():
  talk = record_lib.Chat(
    'x',
    (
      ('system', 'S'),
      ('user', 'a'),
      ('assistant', 'bc'),
      ('user', 'd'),
      ('assistant', 'e'),
    ),
  )
  form = pair_forms.chat(
    tokenizer=BYTES,
    length=32,
    template={'system': '{};', 'user': '<{}>', 'assistant': '={}.'},
  )
  (row,) = form.rows([talk])
  eos = BYTES.eos
  every = [*BYTES.encode('S;<a>=bc'), eos, *BYTES.encode('<d>=e'), eos]
  assert row.targets == every and row.ids == [BYTES.bos, *every[:-1]]
  scored = [x for x, weight in zip(every, row.weights, strict=True) if weight]
  assert scored == [*BYTES.encode('bc'), eos, *BYTES.encode('e'), eos]
  assert form.prompt is not None
  asked = form.prompt([talk]).tokens[0].tolist()
  assert asked == [
    BYTES.bos,
    *every[: every.index(eos) + 1],
    *BYTES.encode('<d>='),
  ]
  assert (talk.targets, talk.source) == (('e',), 'S\na\nbc\nd')
  # The oldest turns go first, the system's stays.
  short = pair_forms.chat(
    tokenizer=BYTES,
    length=9,
    template={'system': '{};', 'user': '<{}>', 'assistant': '={}.'},
  )
  (row,) = short.rows([talk])
  assert row.targets == [*BYTES.encode('S;<d>=e'), eos]


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    ({'system': '{}', 'user': '{}'}, 'template: assistant needs one {}'),
    (
      {'system': '{}', 'user': '', 'assistant': '{}'},
      'template: user needs one {} for the text',
    ),
  ],
)
def test_a_template_has_a_place_for_each_text(template, message):
  with pytest.raises(ValueError) as caught:
    pair_forms.chat(tokenizer=BYTES, length=9, template=template)
  assert message in str(caught.value)


def test_talks_are_read_whole(shared_data):
  made = read_set(shared_data, 'kdconv', 'dialogue/kdconv_zh/film.dev.json.gz')
  assert len(made.records) == 150
  made = read_set(shared_data, 'crosswoz', 'dialogue/crosswoz_zh/val.jsonl.gz')
  assert len(made.records) == 500
  for talk in made.records:
    assert [role for role, _ in talk.turns[-2:]] == ['user', 'assistant']
