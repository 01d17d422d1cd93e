"""Configs of fine-tuning on the sets that they name, and what answers cost."""

import json
import math

import jax
import numpy as np
import pytest

from configs.finetune import preferences, replies, spans, tags, texts
from lm import checkpoint, config, evaluate, sharding, train, tree
from lm.data.finetuning import batching, pair_forms
from lm.data.tokenizers import utf8_bytes
from lm.evals import context, generation
from tests import programs

BYTES = utf8_bytes.make()
SETS = [
  (module.__name__.rpartition('.')[2], name)
  for module in (texts, tags, spans, replies, preferences)
  for name in module.SETS
]


def load(file, *words, **changes):
  path = programs.ROOT / f'configs/finetune/{file}.py'
  changes = programs.settings(**changes).items()
  return config.load(f'{path}:{",".join(map(str, words))}', changes)


@pytest.mark.parametrize(('file', 'name'), SETS)
def test_a_set_is_read_as_its_config_says(file, name, shared_data):
  c = load(file, shared_data, name)
  train_on = config.build(c.data.records).records
  found = config.build(c.evals.test.records)
  length = c.data.length
  form = config.build(c.data.form, tokenizer=BYTES, length=length)
  for records in (train_on, found.records):
    for row in form.rows(records[:32]):
      assert len(row.ids) <= length and sum(row.weights) > 0
  assert len(found.records) >= 150
  assert c.batch_size * c.steps > 0.8 * len(train_on) or c.data.pack
  if c.data.folds == 1:  # nothing that is judged was trained on
    known = {str(r[1:]) for r in train_on}
    both = sum(str(r[1:]) in known for r in found.records)
    assert both <= 0.02 * len(found.records), both


def test_one_flag_holds_out_and_judges():
  for words in (('tags', 'data', 'wikigold'), ('replies', 'data', 'alpaca_en')):
    c = load(*words, data__held_out=3)
    again = config.from_json(config.to_json(c))
    for one in (c, again):
      assert one.data.held_out == 3
      assert {spec.fold for spec in one.evals.values()} == {3}
  c = load('tags', 'data', 'wnut17')
  assert c.data.held_out is c.evals.test.fold is None


def test_a_decoders_text_is_its_last_word(tmp_path):
  c = load('replies', 'data', 'alpaca_en')
  (tmp_path / 'config.json').write_text(config.to_json(c))
  for words in ((), ('lora',)):
    tuned = load('texts', 'data', 'polarity', tmp_path, *words)
    head = tuned.model.body if words else tuned.model
    assert (head.pool, head.bias, tuned.data.form.ends) == (
      'last',
      False,
      False,
    )
    assert not tuned.evals.test.form.ends
    tuned = load('tags', 'data', 'wnut17', tmp_path, *words)
    assert (tuned.model.body if words else tuned.model).bidirectional
  assert load('texts', 'data', 'polarity').data.form.ends


def test_words_that_name_nothing_are_refused(tmp_path):
  for file in ('texts', 'tags', 'spans', 'replies'):
    with pytest.raises(config.ConfigError, match='give FOLDER,SET,RUN or FOLD'):
      load(file, 'data', 'typo')
    with pytest.raises(config.ConfigError, match="'loar': give 'lora' or none"):
      load(file, 'data', SETS_OF[file], tmp_path, 'loar')
  with pytest.raises(config.ConfigError, match="'lora': DPO tunes the whole"):
    load('preferences', 'data', 'dpo_en', tmp_path, 'lora')
  c = load('texts', 'data', 'polarity')
  (tmp_path / 'config.json').write_text(config.to_json(c))
  with pytest.raises(
    config.ConfigError, match='is no decoder: it cannot write'
  ):
    load('replies', 'data', 'scitldr', tmp_path)


SETS_OF = dict(reversed(SETS))


def pairs(path, count=40):
  """Writes sums, whose answers are one or two digits."""
  rows = [
    {'source': f'{n % 7}+{n % 5}=', 'target': f'{n % 7 + n % 5}'}
    for n in range(count)
  ]
  path.write_text('\n'.join(map(json.dumps, rows)))
  return {
    'fn': 'lm.data.finetuning.pair_readers:pairs',
    'path': str(path),
    'source': 'source',
    'target': 'target',
  }


def judged(run, params, records, form, **settings):
  return generation.answers(
    context=context.Context(run.model, run.tokenizer, sharding.make_mesh()),
    records=records,
    form=form,
    **{'batch_size': 8, 'length': 16, **settings},
  )(params)


FORM = {'fn': 'lm.data.finetuning.pair_forms:reply', 'template': '{source}'}


@pytest.mark.slow
def test_an_answer_costs_what_its_tokens_cost(trained, tmp_path):
  run, params = (
    checkpoint.restore_run(trained),
    checkpoint.restore_params(trained),
  )
  records = pairs(tmp_path / 'x.jsonl', 20)
  found = judged(run, params, records, FORM)
  form = pair_forms.reply(
    tokenizer=run.tokenizer, length=16, template='{source}'
  )
  total = count = 0
  for record, item in zip(
    config.build(records).records, found.items, strict=True
  ):
    (row,) = form.rows([record])
    logits = run.model.apply(
      params, batching.assemble([[row]], form, 16, run.tokenizer)
    ).logits
    log = jax.nn.log_softmax(np.asarray(logits[0], np.float64))
    answer = [*run.tokenizer.encode(record.targets[0]), run.tokenizer.eos]
    places = np.arange(len(row.ids) - len(answer), len(row.ids))
    cost = -np.asarray(log)[places, answer].sum()
    assert item['answer_nats'] == pytest.approx(cost, rel=1e-5)
    assert (item['id'], item['tokens']) == (record.id, len(answer))
    total, count = total + cost, count + len(answer)
  assert found.metrics == pytest.approx(
    {
      'loss_nats': total / count,
      'perplexity': math.exp(total / count),
      'answer_nats': total / 20,
      'tokens': count,
    },
    rel=1e-5,
  )
  assert found.metrics['tokens'] == count
  # Rows at a time, a part and a limit change nothing about a record.
  fold = judged(run, params, records, FORM, batch_size=16, folds=3, fold=1)
  assert [x['id'] for x in fold.items] == [x['id'] for x in found.items[1::3]]
  for item, same in zip(fold.items, found.items[1::3], strict=True):
    assert item['answer_nats'] == pytest.approx(same['answer_nats'], rel=1e-6)
  few = judged(run, params, records, FORM, folds=3, fold=1, limit=2)
  assert [x['id'] for x in few.items] == [x['id'] for x in fold.items[:2]]


def test_what_writes_nothing_is_refused(trained, tmp_path):
  records = pairs(tmp_path / 'x.jsonl')
  run = checkpoint.restore_run(trained)
  for settings, message in (
    ({'batch_size': 0}, 'batch_size=0 must be a whole number from 1 on'),
    ({'limit': 0}, 'no record is left'),
    ({'folds': 2, 'fold': 2}, 'held_out=2 must be below folds=2'),
  ):
    with pytest.raises(ValueError, match=message):
      judged(run, None, records, FORM, **settings)
  texts_ = tmp_path / 'y.jsonl'
  texts_.write_text('{"text": "a", "label": "b"}\n{"text": "a", "label": "c"}')
  form = {
    'fn': 'lm.data.finetuning.forms:classify',
    'classes': 2,
    'labels': ['b', 'c'],
  }
  reader = {'fn': 'lm.data.finetuning.readers:texts', 'path': str(texts_)}
  with pytest.raises(ValueError, match='generates nothing: use lm'):
    judged(run, None, reader, form)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['', 'lora'])
def test_a_decoder_is_tuned_to_answer(trained, tmp_path, method):
  """From a run, through its config, to what the sweep and compare say."""
  words = ['data', 'scitldr', trained, *filter(None, [method])]
  c = load('replies', *words, steps=24, optim__warmup=2, save_every=24).unlock()
  c.data.length, c.batch_size = 16, 16
  for spec in (c.data, *c.evals.values()):
    spec.records, spec.form = pairs(tmp_path / 'x.jsonl'), FORM
  for spec in c.evals.values():
    spec.batch_size, spec.length = 8, 8
  c.evals.test.new = 4
  c.optim.peak = 1e-2
  train.train(c.lock(), tmp_path / 'run')
  after = evaluate.evaluate(tmp_path / 'run')[-1]['metrics']
  run, params = (
    checkpoint.restore_run(trained),
    checkpoint.restore_params(trained),
  )
  before = judged(run, params, c.data.records, FORM, length=8)
  assert after['answers/loss_nats'] < 0.9 * before.metrics['loss_nats']
  assert after['answers/tokens'] == before.metrics['tokens']
  assert {'test/rougeL', 'answers/answer_nats'} <= after.keys()


@pytest.mark.slow
def test_a_decoder_is_tuned_by_preferences(trained, tmp_path):
  rows = [
    {
      'conversations': [{'from': 'human', 'value': 'abc'[n % 3]}],
      'chosen': {'value': 'xa'},
      'rejected': {'value': 'ya'},
    }
    for n in range(48)
  ]
  path = tmp_path / 'x.json'
  path.write_text(json.dumps(rows))
  changes = {'steps': 6, 'optim__warmup': 1, 'optim__peak': 1e-2}
  c = load('preferences', 'data', 'dpo_en', trained, **changes).unlock()
  for spec in (c.data, c.evals.test):
    spec.records.path, spec.length = str(path), 16
    spec.form.template = '{source}'
  state = train.train(c.lock(), tmp_path / 'run')
  found = evaluate.evaluate(tmp_path / 'run')[-1]['metrics']
  assert found['test/accuracy'] == 1 and found['test/loss_nats'] < math.log(2)
  before = dict(tree.paths(checkpoint.restore_params(trained)))
  for path, leaf in tree.paths(state.params['reference']):
    np.testing.assert_array_equal(leaf, before[path])


def unscored_first(*, tokenizer, length, records=1):
  """A form that scores nothing of the first records."""
  form = pair_forms.reply(tokenizer=tokenizer, length=length)

  def rows(given):
    return [
      row._replace(weights=[0.0] * len(row.ids)) if n < records else row
      for n, row in enumerate(form.rows(given))
    ]

  return form._replace(rows=rows)


def test_an_answer_that_is_not_scored_costs_nothing(trained, tmp_path):
  run, params = (
    checkpoint.restore_run(trained),
    checkpoint.restore_params(trained),
  )
  records = pairs(tmp_path / 'x.jsonl', 3)
  form = {'fn': f'{__name__}:unscored_first'}
  found = judged(run, params, records, form)
  first, *others = [item['answer_nats'] for item in found.items]
  assert first is None
  assert found.metrics['answer_nats'] == pytest.approx(sum(others) / 2)
  with pytest.raises(ValueError, match='nothing is learnt from its 3 records'):
    judged(run, params, records, {**form, 'records': 3})
