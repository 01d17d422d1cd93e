"""Fine-tuning: records become rows, rows are learnt, answers are judged."""

import functools
import json
import random
from typing import Any

import numpy as np
import pytest

from configs import base
from lm import config, sample, sharding, train
from lm import evaluate as evaluate_lib
from lm.data.finetuning import (
  batching,
  tasks,
)
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


def write_readings(path, count, seed, unanswered=0):
  """The answer is f, h or c, of which a passage has one.

  With `unanswered`, each passage of that number has none, and no answer.
  """
  rng = random.Random(seed)
  paragraphs = []
  for n in range(count):
    words = [rng.choice('stub') for _ in range(8)]
    answers = []
    if not unanswered or n % unanswered:
      words[rng.randrange(8)] = letter = rng.choice('fhc')
      start = ','.join(words).index(letter)
      answers = [{'text': letter, 'answer_start': start}]
    passage = ','.join(words)
    qas = [{'id': str(n), 'question': 'who?', 'answers': answers}]
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


@pytest.mark.slow
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
    'trained by lm.data.finetuning.forms:classify, which cannot continue a text'
  )


@pytest.mark.slow
@pytest.mark.parametrize('body', BODIES)
@pytest.mark.usefixtures('one_device')
def test_a_tuned_tagger_tags(tmp_path, body):
  head = {'fn': 'lm.models.heads:tag', 'classes': 3}
  form = {'fn': 'lm.data.finetuning.forms:tag', 'classes': 3, 'join': ''}
  source = write_tags, 'lm.data.finetuning.readers:conll'
  found = tuned(tmp_path, body, head, source, form, 'tags', 100)
  assert found['test/f1'] > 0.95 and found['test/f1/ANI'] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize('body', BODIES)
@pytest.mark.usefixtures('one_device')
def test_a_tuned_reader_answers(tmp_path, body):
  head = {'fn': 'lm.models.heads:span'}
  form = {'fn': 'lm.data.finetuning.forms:span', 'question': 8}
  source = write_readings, 'lm.data.finetuning.readers:squad'
  found = tuned(tmp_path, body, head, source, form, 'spans', 100)
  assert found['test/exact'] > 0.95 and found['test/f1'] > 0.95


@pytest.mark.slow
@pytest.mark.usefixtures('one_device')
def test_a_tuned_reader_knows_when_there_is_no_answer(tmp_path):
  head = {'fn': 'lm.models.heads:span'}
  form = {'fn': 'lm.data.finetuning.forms:span', 'question': 8}
  write = functools.partial(write_readings, unanswered=3)
  source = write, 'lm.data.finetuning.readers:squad'
  found = tuned(tmp_path, 'encoder', head, source, form, 'spans', 150)
  assert found['test/exact/unanswerable'] > 0.95
  assert found['test/exact/answerable'] > 0.95


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


def test_an_epoch_has_each_record_once_in_its_own_order(tmp_path):
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


def test_a_run_resumes_on_the_same_records_only(tmp_path):
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
          'labels': ['a', 'b'],
        }
      },
      'classes=3, and there are 2 labels: a, b; make them equal',
    ),
    (
      {
        'form': {
          'fn': 'lm.data.finetuning.forms:classify',
          'classes': 2,
          'labels': ['a', 'b'],
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
def test_bad_settings_are_one_line(tmp_path, changes, message):
  with pytest.raises(ValueError) as caught:
    source(tmp_path, **changes)
  assert message in str(caught.value) and len(str(caught.value)) <= 200


def test_answers_are_compared_as_squad_does():
  assert classification.exact_match('The Fox.', 'fox', 'en') == 1
  assert classification.overlap('a red fox', 'red hen', 'en') == pytest.approx(
    0.5
  )
  assert classification.overlap('', 'fox', 'en') == 0.0
  assert classification.overlap('北京市', '北京', 'zh') == pytest.approx(0.8)


@pytest.mark.slow
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
    evaluate(model.init(0, example))
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


@pytest.mark.slow
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
  # Of some seeds the initial values need more steps.
  c.seed = 3
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
  report = json.loads((tmp_path / 'out' / 'report.json').read_text())
  assert report['probe']['rows'] == 64 < report['probe']['tokens']


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
