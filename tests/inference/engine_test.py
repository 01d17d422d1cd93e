"""Tokens drawn one at a time are those of `generate`, shown once certain."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config
from lm.data.tokenizers import characters, utf8_bytes
from lm.inference import chat_api, detokenizer, engine, generate

SMALL: dict[str, Any] = {'width': 16, 'depth': 1}
CAUSAL = {'fn': 'lm.data.objectives:causal'}
SPANS = base.span_corruption(source=24)
FAMILIES = {
  'decoder': (base.decoder(2, **SMALL, length=40), CAUSAL),
  'prefix': (
    base.decoder(2, **SMALL, length=40),
    {'fn': 'lm.data.objectives:prefix_lm'},
  ),
  'lstm': (base.recurrent(**SMALL), CAUSAL),
  'ngram': ({'fn': 'lm.models.ngram:make', 'order': 3}, CAUSAL),
  't5': (base.t5(2, depth=1, width=16), SPANS),
  'one_span': (
    base.t5(2, depth=1, width=16),
    {'fn': 'lm.data.corruption:one_span'},
  ),
}
PROMPTS = 'hello', 'a', '\u4f60\u597d'


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
  return make(request.param)


def make(name):
  """A model far from uniform that nobody has trained."""
  bytes_ = utf8_bytes.make(16)
  model, objective = FAMILIES[name]
  model = config.build(model, vocab=bytes_.size)
  prompt = config.build(objective, tokenizer=bytes_, length=24).prompt
  params = model.init(0, prompt([[5]]))
  if name != 'ngram':
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten(
      x + 0.3 * jax.random.normal(k, x.shape)
      for x, k in zip(leaves, keys, strict=True)
    )
  return engine.Run(bytes_, model, prompt, params)


def run(family, rows, **settings):
  """Returns the tokens and the finish reason of each row."""
  capacity = engine.capacity(family, 200)
  tokens: list[list[detokenizer.Token]] = [[] for _ in rows]
  finish: list[str | None] = [None] * len(rows)
  settings = engine.Settings(**settings)
  for deltas in engine.stream(family, rows, settings, capacity=capacity):
    for part in deltas:
      assert finish[part.row] is None and (part.tokens or part.finish_reason)
      tokens[part.row] += part.tokens
      finish[part.row] = part.finish_reason
  return tokens, finish


@pytest.mark.slow
@pytest.mark.parametrize(
  'how',
  [
    {'temperature': 0.0},
    {'temperature': 0.8},
    {'temperature': 1.2, 'top_p': 0.7},
  ],
)
def test_tokens_are_those_of_generate(family, how):
  rows = [family.tokenizer.encode(text) for text in PROMPTS]
  eos, size = family.tokenizer.eos, 20
  state = generate.generate(
    family.params,
    family.prompt(rows),
    model=family.model,
    sampler=generate.Sampler(**how),
    length=size,
    stop=eos,
    rng=jax.random.key(7),
  )
  found, finish = run(family, rows, length=size, seed=7, logprobs=5, **how)
  for ids, nats, tokens, end in zip(
    state.tokens.tolist(),
    state.nats.tolist(),
    found,
    finish,
    strict=True,
  ):
    stops = eos in ids
    assert end == ('stop' if stops else 'length')
    ids = ids[: ids.index(eos) + 1] if stops else ids
    assert len(tokens) == len(ids)
    text = detokenizer.decode(ids, family.tokenizer, follows=True)
    assert ''.join(token.text for token in tokens) == text
    for token, cost, i in zip(tokens, nats, ids, strict=False):
      name = '<eos>' if i == eos else family.tokenizer.decode([i])
      assert token.name == (name or f'<{i}>')
      assert text[token.offset :].startswith(token.text)
      assert token.logprob == pytest.approx(-cost, abs=1e-4)
      assert (
        1 <= len(token.top_logprobs) <= 6 and token.name in token.top_logprobs
      )


@pytest.mark.slow
def test_prompts_cost_what_a_forward_pass_says(family):
  rows = [family.tokenizer.encode(text) for text in PROMPTS]
  found = engine.prompt_logprobs(family, rows, logprobs=1)
  for text, ids, tokens in zip(PROMPTS, rows, found, strict=True):
    assert ''.join(token.text for token in tokens) == text
    assert len(tokens) == len(ids)
    batch = family.prompt([ids])
    if batch.source is not None or batch.prefix is not None:
      assert {(token.logprob, *token.top_logprobs) for token in tokens} == {
        (None,)
      }
      continue
    logits = family.model.apply(family.params, batch).logits[0]
    log_LV = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    for n, (i, token) in enumerate(zip(ids, tokens, strict=True)):
      assert token.logprob == pytest.approx(log_LV[n, i], abs=1e-4)
      assert max(token.top_logprobs.values()) == pytest.approx(
        log_LV[n].max(), abs=1e-4
      )


@pytest.mark.slow
def test_the_capacity_of_a_model_is_found():
  decoder = make('decoder')
  assert engine.capacity(decoder, 39) == 39
  assert engine.capacity(decoder, 1000) == 40
  assert engine.capacity(make('lstm'), 1000) == 1000
  # and can be filled to its end, wherever the prompt ends
  for size, length in ((1, 38), (20, 19), (34, 5), (38, 1)):
    (tokens,), finish = run(decoder, [[9] * size], length=length)
    assert finish == ['stop'] or len(tokens) == length


def test_functions_serve_many_prompts_and_settings():
  lstm = make('lstm')
  functions: list[Any] = [
    generate.prefill,
    engine._draw,
    engine._advance,
  ]

  def sizes():
    return [function._cache_size() for function in functions]

  run(lstm, [[9]] * 3, length=20, top_p=0.5)
  known = sizes()
  for n in range(1, 15):
    rows = [[9] * n] * (3 + n % 2)
    how = {'temperature': 1 + n / 10, 'top_p': n / 16, 'seed': n}
    run(lstm, rows, length=17 + n % 16, **how)
  assert sizes() == known


def test_what_may_become_a_stop_string_is_kept_back():
  bytes_ = utf8_bytes.make()

  def told(text, stop, *, last=False):
    made = detokenizer.Detokenizer(bytes_, stop, bytes_.eos)
    ids = bytes_.encode(text)
    found = [
      made.add(i, -1.0, [], last=last and n + 1 == len(ids))
      for n, i in enumerate(ids)
    ]
    return [
      [token.text for token in part] for part in found
    ], made.finish_reason

  assert told('abc', ['bd']) == ([['a'], [], ['b', 'c']], None)
  assert told('abd', ['bd']) == ([['a'], [], []], 'stop')
  assert told('ab', ['bd'], last=True) == ([['a'], ['b']], 'length')
  assert told('xaba', ['abc', 'ba']) == ([['x'], [], [], ['a']], 'stop')
  assert told('a\u00e9', []) == ([['a'], [''], ['\u00e9']], None)


def test_characters_that_stay_are_counted():
  assert detokenizer.stable_length('ab\ufffd', []) == 2
  assert detokenizer.stable_length('abc', ['cd', 'bce', 'abc']) == 1
  assert detokenizer.cut('abcbc', ['x', 'c', 'bc']) == 'a'


def test_a_text_does_not_end_in_half_a_character():
  bytes_ = utf8_bytes.make()
  first, second = bytes_.encode('\u00e9')
  for ids, whole in (
    ([first], ''),
    ([*bytes_.encode('a'), first], 'a'),
    (bytes_.encode('\ufffd'), '\ufffd'),  # a character like any other
    ([*bytes_.encode('\ufffd'), first], '\ufffd'),
  ):
    assert detokenizer.decode(ids, bytes_, follows=True) == whole
    for end in ([], [bytes_.eos]):
      text = detokenizer.Detokenizer(bytes_, [], bytes_.eos)
      row = [*ids, *end]
      told = [
        token
        for n, i in enumerate(row)
        for token in text.add(i, -1.0, [], last=n + 1 == len(row))
      ]
      assert ''.join(token.text for token in told) == whole
      assert len(told) == len(row)
      assert text.finish_reason == ('stop' if end else 'length')
  # eos brings what was left, and has no text
  text = detokenizer.Detokenizer(bytes_, ['bc'], bytes_.eos)
  assert text.add(bytes_.encode('b')[0], -1.0, [], last=False) == []
  told = text.add(bytes_.eos, -2.0, [(second, -0.5)], last=False)
  assert [token.text for token in told] == ['b', '']
  assert told[1].name == '<eos>' and text.finish_reason == 'stop'
  assert told[1].top_logprobs == {'\ufffd': -0.5, '<eos>': -2.0}


def test_a_long_row_of_parts_is_decoded_twice_at_most():
  bytes_ = utf8_bytes.make()
  calls = []

  def counted(ids):
    calls.append(len(ids))
    return bytes_.decode(ids)

  slow = bytes_._replace(decode=counted)
  part = bytes_.encode('\u00e9')[1:]
  for begins, whole in (('a', 'a'), ('', ''), ('a\ufffd', 'a\ufffd')):
    calls.clear()
    ids = bytes_.encode(begins) + part * 500
    assert detokenizer.decode(ids, slow, follows=False) == whole
    assert len(calls) <= 2
  # The character itself, another one, and a part.
  ids = [*bytes_.encode('\ufffd\u00e9'), part[0]]
  assert detokenizer.decode(ids, bytes_, follows=False) == '\ufffd\u00e9'


def test_tokens_that_spell_alike_keep_their_scores():
  bytes_ = utf8_bytes.make()
  halves = [i for c in '\u00e9\u4f60' for i in bytes_.encode(c)]
  text = detokenizer.Detokenizer(bytes_, [], bytes_.ends)
  top = [(i, -float(n)) for n, i in enumerate(halves)]
  (told,) = text.add(halves[2], -2.0, top, last=True)
  assert sorted(told.top_logprobs.values()) == [-4.0, -3.0, -2.0, -1.0, 0.0]
  assert told.top_logprobs[told.name] == -2.0


def test_bytes_of_tokens_are_those_of_their_texts():
  bytes_ = utf8_bytes.make()
  part = bytes_.encode('\u00e9')[0]
  (a,) = bytes_.encode('a')
  alike = bytes_._replace(
    decode_next=lambda ids: bytes_.decode_next([ids[0] % 259])
  )

  def chat(ids, tokenizer=bytes_):
    text = detokenizer.Detokenizer(tokenizer, [], ())
    top = [(i, -1.0) for i in ids]
    (told,) = text.add(ids[0], -1.0, top, last=True)
    own = chat_api._logprob(told)
    assert own['bytes'] == own['top_logprobs'][0]['bytes']
    return {x['token']: x['bytes'] for x in own['top_logprobs']}

  assert chat([part, a, part + 1, bytes_.eos, bytes_.bos]) == {
    '\ufffd': None,
    'a': [97],
    f'\ufffd<{part + 1}>': None,
    '<eos>': None,
    f'<{bytes_.bos}>': None,
  }
  # An id in a name is no text of the token.
  assert chat([a, a + 259], alike) == {'a': [97], f'a<{a + 259}>': [97]}
  whole = characters.from_alphabet('\ufffd', '', 0)
  assert chat(whole.encode('\ufffd'), whole) == {'\ufffd': [*'\ufffd'.encode()]}


def test_every_id_of_a_list_ends_a_text():
  bytes_ = utf8_bytes.make()
  (dot,) = bytes_.encode('.')
  several = bytes_._replace(ends=(bytes_.eos, dot))
  for end in several.ends:
    text = detokenizer.Detokenizer(several, [], several.ends)
    assert text.add(bytes_.encode('a')[0], None, [], last=False)
    text.add(end, None, [], last=False)
    assert text.finish_reason == 'stop'
  assert detokenizer.until_end(bytes_.encode('ab.c'), several) == (
    bytes_.encode('ab')
  )
  tokens = jnp.array(bytes_.encode('a.'))
  assert generate.is_end(tokens, several.ends).tolist() == [False, True]
  assert generate.filler(several.ends) == bytes_.eos


def test_infinite_scores_are_numbers_in_json():
  told = engine._listed(
    (np.array([-np.inf, np.nan]), np.full((2, 5), -np.inf), np.eye(2, 5)), 5, 2
  )
  assert told == [(-9999.0, []), (-9999.0, [])]


def test_a_client_that_leaves_ends_the_work():
  calls = []

  def check():
    calls.append(0)
    if len(calls) == 3:
      raise KeyError

  lstm = make('lstm')
  how = engine.Settings(length=10)
  deltas = engine.stream(lstm, [[9]], how, capacity=100, check=check)
  with pytest.raises(KeyError):
    list(deltas)
  calls.clear()
  with pytest.raises(KeyError):
    engine.prompt_logprobs(lstm, [[9] * 10], 1, check)
  assert len(calls) == 3
