import json
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, evaluate, sharding, train, types
from lm.data import manifest as manifests
from lm.data import writer
from lm.data.tokenizers import auto, tokenizer_json, utf8_bytes
from lm.evals import context, items, likelihood, results
from lm.reporting import metrics_log
from tests import programs
from tools import prepare_data

TEXTS = ['hello world\n', 'a', 'the quick brown fox, 你好', 'x' * 40]


@pytest.fixture(scope='module')
def words():
  return utf8_bytes.make()


@pytest.fixture(scope='module')
def path(tmp_path_factory, words):
  where = tmp_path_factory.mktemp('evals') / 'shards'
  writer.write(where, TEXTS, words)
  return str(where)


def small(words, **changes):
  spec = base.decoder(2, width=16, depth=1, **changes)
  return config.build(spec, vocab=words.size)


def uniform(vocab):
  """A model without parameters that finds every token equally likely."""

  def apply(params, batch, *, cache=None, rng=None):
    del params, rng
    shape = (*batch.tokens.shape, vocab)
    return types.Output(jnp.zeros(shape), cache, {})

  return types.Model(lambda batch: {}, apply, lambda *a: None, ())


def evaluator(model, ids, path, **kw):
  """Makes an evaluator that returns the metrics alone."""
  evaluate = result_of(model, ids, path, **kw)
  return lambda params: results.metrics(evaluate(params))


def result_of(model, ids, path, **kw):
  return likelihood.make(
    context=context.Context(model, ids, sharding.make_mesh()), path=path, **kw
  )


@pytest.mark.parametrize('length', [16, 128])
def test_an_item_is_a_document(words, path, length):
  found = result_of(
    uniform(words.size), words, path, batch_size=8, length=length
  )({})
  assert isinstance(found, results.Result)
  sizes = [len(text.encode()) + 1 for text in TEXTS]  # an eos each
  assert found.items == [
    {
      'id': f'documents/{n}',
      'nats': pytest.approx(size * math.log(words.size), rel=1e-5),
      'tokens': size,
    }
    for n, size in enumerate(sizes)
  ]


def test_a_loss_that_is_not_finite_has_items_that_can_be_stored(
  words, path, tmp_path
):
  def apply(params, batch, **kw):
    out = uniform(words.size).apply(params, batch, **kw)
    return out._replace(logits=out.logits * np.nan)

  model = uniform(words.size)._replace(apply=apply)
  found = result_of(model, words, path, batch_size=8, length=16)({})
  assert isinstance(found, results.Result)
  header = {
    'step': 1,
    'evaluator': 'valid',
    **dict.fromkeys(('checkpoint', 'task', 'code'), '0' * 64),
  }
  stored = items.write(tmp_path, header, found.items)
  assert {x['nats'] for x in items.read(stored)[1]} == {None}
  assert math.isnan(results.metrics(found)['loss_nats'])


def test_an_objective_that_is_not_causal_has_no_items(words, path):
  found = result_of(
    uniform(words.size),
    words,
    path,
    batch_size=8,
    length=16,
    objective={'fn': 'lm.data.objectives:prefix_lm'},
  )({})
  assert isinstance(found, results.Result) and found.items == []


def test_a_uniform_model_scores_every_token_and_byte_once(words, path):
  model = uniform(words.size)
  found = evaluator(model, words, path, batch_size=8, length=16, words=7)({})
  text_bytes = sum(len(t.encode()) for t in TEXTS)
  tokens = text_bytes + len(TEXTS)  # an eos each
  assert found['tokens'] == tokens
  assert found['loss_nats'] == pytest.approx(math.log(words.size), rel=1e-5)
  assert found['perplexity'] == pytest.approx(words.size, rel=1e-4)
  assert found['bits_per_byte'] == pytest.approx(
    tokens * math.log2(words.size) / text_bytes, rel=1e-5
  )
  assert found['word_perplexity'] == pytest.approx(
    words.size ** (tokens / 7), rel=1e-3
  )


def thai_tokenizer(path):
  """Makes a tokenizer that knows a quarter of the Thai letters."""
  known = [[chr(0x0E01 + n), -3.0] for n in range(12)]
  model = {'type': 'Unigram', 'unk_id': 2}
  special = ['<pad>', '</s>', '<unk>']
  pieces = [*([x, 0.0] for x in special), [' ', -3.0], *known]
  added = [tokenizer_json.token(i, x) for i, x in enumerate(special)]
  tree = {'model': model | {'vocab': pieces}, 'added_tokens': added}
  tree |= {'decoder': {'type': 'Fuse'}}
  path.write_text(json.dumps(tree))
  return str(path)


def test_a_tokenizer_that_loses_text_has_no_bits_per_byte(tmp_path, capsys):
  """Random Thai has 4 bits a letter of 3 bytes; unknown letters hide them."""
  draw = random.Random(0)
  letters = [chr(0x0E01 + n) for n in range(44)] + [' '] * 4
  lines = [''.join(draw.choices(letters, k=60)) for _ in range(50)]
  (tmp_path / 'thai.txt').write_text('\n'.join(lines))
  (tmp_path / 'kept.txt').write_text('\n'.join(['\u0e01\u0e02 \u0e03'] * 9))
  model = thai_tokenizer(tmp_path / 'thai.json')
  words = auto.load(model)
  found = {}
  for name in ('thai', 'kept'):
    flags = [f'--input={tmp_path}/{name}.txt', '--unit=line']
    flags += [f'--tokenizer={model}', f'--output={tmp_path}/{name}']
    assert prepare_data.main(flags) == 0
    found[name] = evaluator(
      uniform(words.size),
      words,
      str(tmp_path / name),
      batch_size=8,
      length=16,
      words=7,
    )({})
  lost = manifests.load(tmp_path / 'thai').lost_bytes or 0
  text = ''.join(lines)
  expected = sum(len(c.encode()) for c in text if c > '\u0e0c')
  assert lost == expected
  first, second = capsys.readouterr().out.split('wrote ')[1:]
  share = (
    f'{lost:,} bytes lost by the tokenizer ({lost / len(text.encode()):.2%})'
  )
  assert share in first and 'have no bits per byte' in first
  assert '0 bytes lost by the tokenizer (0.00%)' in second
  assert 'no bits per byte' not in second
  assert found['thai'].keys() == {'loss_nats', 'perplexity', 'tokens'}
  assert found['kept'].keys() == {
    *('loss_nats', 'perplexity', 'bits_per_byte', 'word_perplexity', 'tokens')
  }


@pytest.mark.slow
@pytest.mark.parametrize('letter', ('\u0e01', '\u0e20'))
def test_a_run_logs_bits_only_if_its_text_comes_back(tmp_path, letter):
  words = auto.load(thai_tokenizer(tmp_path / 'thai.json'))
  for part in ('train', 'valid'):
    writer.write(tmp_path / part, ['\u0e02\u0e03 ' * 9, letter] * 50, words)
  c = programs.on_eight(tmp_path, steps=4, save_every=4, log_every=1).unlock()
  c.data.fn = 'lm.data.stream:make'
  del c.data.seconds, c.data.hang_at, c.evals.pause
  c.tokenizer = {
    'fn': 'lm.data.tokenizers.huggingface:make',
    'path': str(tmp_path / 'thai.json'),
  }
  train.train(c.lock(), tmp_path / 'run')
  (record,) = evaluate.evaluate(tmp_path / 'run')
  logged = metrics_log.read(tmp_path / 'run' / 'metrics.jsonl')
  is_known = letter == '\u0e01'
  assert ('valid/bits_per_byte' in record['metrics']) == is_known
  assert [('bits_per_byte' in x) for x in logged] == [is_known] * len(logged)
  assert logged and 'valid/perplexity' in record['metrics']


@pytest.mark.slow
def test_batch_size_and_chunks_change_nothing(words, path):
  model = small(words, length=16, init=base.init(outputs='zero'))
  params = model.init(0, example(words))
  first, *others = [
    evaluator(model, words, path, batch_size=n, length=16, chunks=m)(params)
    for n, m in ((8, 1), (16, 1), (24, 4))
  ]
  for other in others:
    assert other == pytest.approx(first, rel=1e-5)


@pytest.mark.slow
def test_documents_are_scored_as_if_alone(words, path):
  """By hand: each document whole, from bos on, in one long window."""
  model = small(words, length=128)
  params = jax.tree.map(lambda x: x + 0.3, model.init(0, example(words)))
  found = evaluator(model, words, path, batch_size=8, length=128)(params)
  total = count = 0.0
  for text in TEXTS:
    ids = [*words.encode(text), words.eos]
    batch = types.Batch(
      tokens=np.array([[words.bos, *ids[:-1]]], np.int32),
      targets=np.array([ids], np.int32),
      weights=np.ones((1, len(ids)), np.float32),
      positions=np.arange(len(ids), dtype=np.int32)[None],
      segments=np.ones((1, len(ids)), np.int32),
    )
    scores = jax.nn.log_softmax(model.apply(params, batch).logits)[0]
    total -= float(sum(scores[i, t] for i, t in enumerate(ids)))
    count += len(ids)
  assert found['loss_nats'] == pytest.approx(total / count, rel=1e-4)


def example(words):
  ids = np.zeros((1, 16), np.int32)
  return types.Batch(ids, ids, np.ones((1, 16), np.float32), ids, ids + 1)
