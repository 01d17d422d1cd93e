"""Continuations cost what a plain loop over one text at a time says."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, sharding, types
from lm.data import objectives
from lm.data.tokenizers import utf8_bytes
from lm.evals import context, scoring
from tests.laws import laws_test

WORDS = utf8_bytes.make(reserved=29)  # 288 ids: a multiple of 8
SIZE: dict[str, Any] = {'width': 16, 'depth': 1}
LONG: dict[str, Any] = SIZE | {'length': 160}
PAIRED = {'fn': 'lm.models.encoder:head', 'next_sentence': True}
PAIRS = [
  ('the cat', ' sat'),  # as long as the next two: a loop compiles them once
  ('is it?? ', '你'),
  ('', 'just a text'),
  ('a' * 20, 'b' * 5),
]
ONE = sharding.make_mesh(devices=jax.devices()[:1])  # compiles in half the time
MASKED = {'fn': 'lm.data.masking:masked'}
SPANS = {'fn': 'lm.data.corruption:span_corruption', 'source': 32}
# name: model, objective
FAMILIES = {
  'causal': (base.decoder(2, **LONG), objectives.CAUSAL),
  'prefix': (
    base.decoder(2, **LONG),
    {'fn': 'lm.data.objectives:prefix_lm'},
  ),
  'spans': (base.transformer(2, width=16, depth=1), SPANS),
  'one span': (
    base.transformer(2, width=16, depth=1),
    {'fn': 'lm.data.corruption:one_span'},
  ),
  'masked': (base.encoder(2, **LONG), MASKED),
  'next': (
    base.encoder(2, **LONG, head=PAIRED),
    {'fn': 'lm.data.masking:next_sentence'},
  ),
}


@functools.cache
def build(name):
  """Gives a model and random parameters, none of them 0 or 1."""
  spec, _ = FAMILIES[name]
  model = config.build(spec, vocab=WORDS.size)
  ids = np.ones((8, 16), np.int32)
  batch = types.Batch(ids, ids, ids.astype(np.float32), ids, ids)
  if 'encoder' in spec:
    batch = batch._replace(source=ids, source_segments=ids)
  params = model.init(0, batch)
  rng = np.random.default_rng(0)
  return model, jax.tree.map(
    lambda x: np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32), params
  )


def scorer(name='causal', model=None, mesh=None, **settings):
  settings = {'batch_size': 4, 'length': 32, **settings}
  settings.setdefault('objective', FAMILIES[name][1])
  return scoring.make(
    context.Context(
      model or build(name)[0], settings.pop('words', WORDS), mesh or ONE
    ),
    **settings,
  )


def scores(name='causal', pairs=PAIRS, params=None, **settings):
  params = build(name)[1] if params is None else params
  return scorer(name, **settings)(params, pairs)


@functools.cache
def applied(model):
  return jax.jit(
    lambda params, batch: jax.nn.log_softmax(model.apply(params, batch).logits)
  )


def logs(name, ids, prefix=None, source=None):
  """Applies a model to one text without padding: log p [L, V]."""
  model, params = build(name)
  ids = np.array([ids], np.int32)
  batch = types.Batch(
    ids, ids, np.ones(ids.shape, np.float32), np.indices(ids.shape)[1], ids > -1
  )
  batch = batch._replace(
    positions=batch.positions.astype(np.int32),
    segments=batch.segments.astype(np.int32),
  )
  if prefix is not None:
    batch = batch._replace(prefix=np.arange(ids.shape[1])[None] < prefix)
  if source is not None:
    source = np.array([source], np.int32)
    batch = batch._replace(source=source, source_segments=np.ones_like(source))
  return np.asarray(applied(model)(params, batch), np.float64)[0]


def by_hand(name, context, text):
  """Scores one text by a loop: (nats, whether the likeliest)."""
  context, text = context.rstrip(), (context + text)[len(context.rstrip()) :]
  left, right = WORDS.encode(context), WORDS.encode(text)
  bos, eos = WORDS.bos, WORDS.eos
  begin, source, prefix = [bos, *left], None, None
  if name in ('masked', 'next'):
    ids = begin + right + [eos] * (name == 'next')
    found = []
    for place in range(len(begin), len(begin) + len(right)):
      masked = [*ids[:place], WORDS.mask, *ids[place + 1 :]]
      found.append((logs(name, masked)[place], ids[place]))
  else:
    if name == 'spans':
      begin, source = [bos], [*left, eos]
    if name == 'one span':
      begin, source = (
        [bos, WORDS.sentinels[0], *left],
        [WORDS.sentinels[0], eos],
      )
    if name == 'prefix':
      prefix = len(begin)
    every = logs(name, [*begin, *right[:-1]], prefix, source)
    found = list(zip(every[len(begin) - 1 :], right, strict=True))
  nats = -sum(row[i] for row, i in found)
  return nats, all(row.argmax() == i for row, i in found)


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_scores_equal_a_loop_over_one_text_at_a_time(name):
  for found, pair in zip(scores(name), PAIRS, strict=True):
    nats, greedy = by_hand(name, *pair)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.greedy == greedy
    assert found.bytes == len(pair[1].encode())
    assert found.tokens == len(pair[1].encode()) + pair[0].endswith(' ')


@pytest.mark.parametrize('name', ['causal', 'spans'])
def test_batch_size_and_buckets_change_nothing(name):
  expected = [found.nats for found in scores(name)]
  found = [x.nats for x in scores(name, batch_size=7, length=100)]
  assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('name', ['causal', 'spans'])
def test_a_mesh_changes_nothing(name):
  mesh = sharding.make_mesh(fsdp=2, tensor=2, sequence=2)
  model, params = build(name)
  where = sharding.shardings(
    params, mesh=mesh, axes=model.axes, rules=laws_test.RULES
  )
  params = jax.device_put(params, where)
  found = scores(name, mesh=mesh, params=params, length=48)
  expected = [x.nats for x in scores(name)]
  assert [x.nats for x in found] == pytest.approx(expected, rel=1e-4)


def test_rows_are_padded_to_few_widths():
  mesh = sharding.make_mesh()
  assert scoring._widths(16, mesh) == [16]
  assert scoring._widths(100, mesh) == [56, 100]
  assert scoring._widths(1024, mesh) == [32, 64, 128, 256, 512, 1024]
  split = sharding.make_mesh(sequence=8)
  assert scoring._widths(1000, split) == [64, 128, 256, 512, 1000]


@pytest.mark.slow
def test_a_long_context_is_cut_from_the_left():
  """The rest is read without bos, as if the text began there."""
  (found,) = scores(pairs=[('a long context' * 9, ' end')], length=16)
  ids = WORDS.encode('a long context' * 9 + ' end')[-17:]
  every = logs('causal', ids[:-1])
  nats = -sum(every[i, ids[i + 1]] for i in range(12, 16))
  assert found.nats == pytest.approx(nats, rel=1e-5)
  # the encoder's side is cut as well, and keeps its eos
  (found,) = scores('spans', [('a long context' * 9, ' end')], length=16)
  source = [*WORDS.encode('a long context' * 9)[-15:], WORDS.eos]
  right = WORDS.encode(' end')
  every = logs('spans', [WORDS.bos, *right[:-1]], None, source)
  nats = -sum(row[i] for row, i in zip(every, right, strict=True))
  assert found.nats == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize('stride', [None, 12, 5])
def test_a_long_text_is_scored_in_windows(stride):
  text, length = 'a long text goes on and on, and on', 16
  (found,) = scores(pairs=[('', text)], length=length, stride=stride)
  ids = [WORDS.bos, *WORDS.encode(text)]
  step, first, total, nats = stride or length, 0, len(ids) - 1, 0.0
  stop = length
  while first < total:
    start = stop - length
    every = logs('causal', ids[start:stop])
    nats -= sum(every[p - start, ids[p + 1]] for p in range(first, stop))
    first, stop = stop, min(stop + step, total)
  assert found.nats == pytest.approx(nats, rel=1e-5)
  assert found.tokens == len(text)


def test_windows_score_each_position_once_with_enough_before_it():
  for first, total, length in itertools.product(
    range(6), range(1, 14), range(1, 6)
  ):
    for stride in range(1, length + 1):
      if first >= total:
        continue
      done = []
      for start, begin, stop in scoring._windows(first, total, length, stride):
        assert 0 <= start <= begin < stop <= start + length
        done += range(begin, stop)
        for place in range(begin, stop):
          assert start == 0 or place - start >= length - stride
      assert done == list(range(first, total))


@pytest.mark.slow
def test_a_masked_model_scores_a_long_text_in_windows():
  text = 'a longer text than that'
  (found,) = scores('next', [('', text)], length=16)
  ids, nats = WORDS.encode(text), 0.0
  assert WORDS.mask is not None
  # bos and eos stand around fourteen tokens in every window
  for place, token in enumerate(ids):
    start = 0 if place < 14 else len(ids) - 14
    row = [WORDS.bos, *ids[start : start + 14], WORDS.eos]
    row[place - start + 1] = WORDS.mask
    nats -= logs('next', row)[place - start + 1, token]
  assert found.nats == pytest.approx(nats, rel=1e-5)
  # without ends, a window is the text's alone but for the first one's bos
  (found,) = scores('masked', [('', text)], length=16)
  every, nats = [WORDS.bos, *ids], 0.0
  for place in range(1, len(every)):
    start = 0 if place < 16 else len(every) - 16
    row = every[start : start + 16]
    row[place - start] = WORDS.mask
    nats -= logs('masked', row)[place - start, every[place]]
  assert found.nats == pytest.approx(nats, rel=1e-5)


def test_tokens_are_those_of_the_whole_text():
  """Where a token spans the boundary, it is a part of one side."""
  spelled = {'ab': 250, ' b': 251}

  def encode(text):
    ids = []
    while text:
      piece = text[:2] if text[:2] in spelled else text[:1]
      ids.append(spelled.get(piece) or 3 + ord(piece))
      text = text[len(piece) :]
    return ids

  words = WORDS._replace(
    encode=encode, encode_batch=lambda texts: list(map(encode, texts))
  )
  split = functools.partial(scoring._encode, words)
  # a space goes where a word's first piece has it
  assert split([('x ', 'b')]) == split([('x', ' b')])
  assert split([('x ', 'b')]) == [([3 + ord('x')], [251])]
  # 'a' is one token alone, and none of 'ab' is left to score but its last
  assert split([('a', 'b')]) == [([], [250])]
  assert split([('xa', 'b')]) == [([3 + ord('x')], [250])]
  assert split([('', 'ab'), ('', '')]) == [([], [250]), ([], [])]


def test_an_empty_continuation_costs_nothing():
  assert scores(pairs=[('x', '')]) == [scoring.Score(0.0, 0, 0, True)]
  assert scores(pairs=[]) == []


def test_the_likeliest_text_is_greedy_and_its_cost_is_known():
  """A bigram: each letter is followed by the next with probability 1/2."""
  table = np.full((WORDS.size, WORDS.size), 0.5 / (WORDS.size - 1))
  table[np.arange(WORDS.size), (np.arange(WORDS.size) + 1) % WORDS.size] = 0.5

  def apply(params, batch, *, cache=None, rng=None):
    del rng
    return types.Output(jnp.log(params)[batch.tokens], cache, {})

  model = types.Model(lambda *a: None, apply, lambda *a: None, ())
  right, wrong = scores(
    model=model,
    params=jnp.asarray(table),
    pairs=[('ab', 'cde'), ('ab', 'cdf')],
  )
  assert right.nats == pytest.approx(3 * math.log(2), rel=1e-5)
  assert right.greedy and not wrong.greedy
  assert wrong.nats == pytest.approx(
    2 * math.log(2) + math.log(2 * (WORDS.size - 1)), rel=1e-5
  )


@pytest.mark.parametrize(
  ('settings', 'say'),
  [
    ({'batch_size': 0}, 'batch_size=0 must be a whole number from 1 on'),
    ({'length': 0}, 'length=0 must be a whole number from 1 on'),
    ({'stride': 33}, 'stride=33 must be at most length=32'),
    ({'stride': 0}, 'stride=0 must be a whole number from 1 on'),
    (
      {'batch_size': 7, 'mesh': sharding.make_mesh()},
      'batch_size: 7 rows do not divide over 8 parts (mesh.data * mesh.fsdp * '
      'mesh.expert): change batch_size or mesh',
    ),
    (
      {'objective': {'fn': 'lm.data.objectives:skip_gram'}},
      'objective lm.data.objectives:skip_gram: neither continues a text nor '
      'masks tokens, so no text can be scored with it',
    ),
  ],
)
def test_a_wrong_setting_is_one_line(settings, say):
  with pytest.raises(ValueError) as caught:
    scorer(**settings)
  assert str(caught.value) == say


def test_an_objective_that_cannot_be_built_is_one_line():
  with pytest.raises(config.ConfigError, match='needs source; add it'):
    scorer(objective={'fn': SPANS['fn']})
