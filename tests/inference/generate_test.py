import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, types
from lm.data import objectives
from lm.inference import beam, generate

LOGITS = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))


def drawn(sampler, count=400):
  rows = jnp.tile(LOGITS, (count, 1))
  return np.bincount(
    generate.draw(jax.random.key(0), rows, sampler), minlength=4
  )


@pytest.mark.parametrize(
  ('sampler', 'possible'),
  [
    (generate.Sampler(), {0, 1, 2, 3}),
    (generate.Sampler(temperature=0.0), {0}),
    (generate.Sampler(top_k=2), {0, 1}),
    (generate.Sampler(top_p=0.5), {0}),
    (generate.Sampler(top_p=0.51), {0, 1}),
    (generate.Sampler(top_p=0.94), {0, 1, 2}),
    (generate.Sampler(top_k=3, top_p=0.9), {0, 1, 2}),
    (generate.Sampler(min_p=0.31), {0, 1}),
    (generate.Sampler(min_p=0.09), {0, 1, 2, 3}),
    (generate.Sampler(min_p=1.0), {0}),
  ],
)
def test_only_the_kept_tokens_are_drawn(sampler, possible):
  assert set(np.flatnonzero(drawn(sampler))) == possible


def test_frequencies_follow_temperature():
  np.testing.assert_allclose(
    drawn(generate.Sampler(), 4000) / 4000, np.exp(LOGITS[0]), atol=0.03
  )
  sharp = np.exp(LOGITS[0] / 0.5)
  np.testing.assert_allclose(
    drawn(generate.Sampler(temperature=0.5), 4000) / 4000,
    sharp / sharp.sum(),
    atol=0.03,
  )


@pytest.mark.parametrize(
  ('sampler', 'message'),
  [
    (
      generate.Sampler(temperature=-1.0),
      r'temperature=-1\.0 must be a number from 0 to 100',
    ),
    (generate.Sampler(temperature=float('nan')), r'temperature=nan must be'),
    (generate.Sampler(temperature=1e300), r'temperature=1e\+300 must be'),
    (generate.Sampler(temperature=True), r'temperature=True must be a number'),
    (generate.Sampler(top_k=-1), r'top_k=-1 must be a whole number from 0 to'),
    (generate.Sampler(top_k=2**40), r'top_k=1099511627776 must be a whole nu'),
    (
      generate.Sampler()._replace(top_k=2.5),
      r'top_k=2\.5 must be a whole number',
    ),
    (generate.Sampler(top_p=1.5), r'top_p=1\.5 must be a number from 0 to 1'),
    (generate.Sampler(min_p=1.5), r'min_p=1\.5 must be a number from 0 to 1'),
    (
      generate.Sampler(repetition_penalty=0.0),
      r'repetition_penalty=0\.0 must be a number from 0\.01 to 100',
    ),
    (
      generate.Sampler(repetition_penalty=1e-300),
      r'repetition_penalty=1e-300 must be a number from 0\.01 to 100',
    ),
  ],
)
def test_samplers_out_of_range_are_refused(sampler, message):
  with pytest.raises(ValueError, match=message):
    sampler.check()


def test_a_penalty_makes_what_was_seen_less_likely():
  logits = jnp.array([[2.0, 1.5, -1.0, -1.2]])
  greedy = generate.Sampler(temperature=0.0, repetition_penalty=2.0)

  def best(*seen):
    return int(
      generate.draw(jax.random.key(0), logits, greedy, _seen(*seen))[0]
    )

  def _seen(*ids):
    return jnp.isin(jnp.arange(4), jnp.array(ids, int))[None]

  assert best() == 0 and best(0) == 1 and best(0, 1) == 0
  # Below 0 it multiplies: the third is now behind the fourth.
  low = jnp.array([[-9.0, -9.0, -1.0, -1.2]])
  assert generate.draw(jax.random.key(0), low, greedy, _seen(2)).tolist() == [3]


def test_an_empty_prompt_is_refused():
  with pytest.raises(ValueError, match='a prompt has no tokens: begin it with'):
    objectives.padded([[1], []], 0)


@pytest.mark.slow
def test_same_key_same_text_and_nothing_after_stop():
  model = config.build(base.decoder(2, length=40, width=16, depth=1), vocab=5)
  batch = objectives.padded([[1, 2], [3]] * 4, 0)
  params = model.init(0, batch)

  def text(seed):
    return np.asarray(
      generate.generate(
        params,
        batch,
        model=model,
        sampler=generate.Sampler(),
        length=30,
        stop=4,
        rng=jax.random.key(seed),
      ).tokens
    )

  np.testing.assert_array_equal(text(0), text(0))
  assert (text(0) != text(1)).any()
  rows = text(0)
  assert (rows == 4).any()  # one in five: some row stopped
  for row in rows.tolist():
    if 4 in row:
      assert set(row[row.index(4) :]) == {4}


V = 5


@pytest.fixture(scope='module')
def small():
  """A model that is far from uniform, and its parameters."""
  model = config.build(base.decoder(2, length=16, width=16, depth=1), vocab=V)
  batch = objectives.padded([[1, 2]], 0)
  params = model.init(3, batch)
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(4), len(leaves))
  return model, treedef.unflatten(
    x + 0.5 * jax.random.normal(k, x.shape)
    for x, k in zip(leaves, keys, strict=True)
  )


def nats_of(model, params, prompt, new) -> np.ndarray:
  """-log p of each new token, from one forward pass."""
  batch = objectives.padded([[*prompt, *new]], 0)
  log = jax.nn.log_softmax(model.apply(params, batch).logits[0], axis=-1)
  places = np.arange(len(prompt), len(prompt) + len(new)) - 1
  return -np.asarray(log)[places, new]


@pytest.mark.slow
def test_nats_are_those_of_a_forward_pass(small):
  model, params = small
  prompts = [[1, 2, 3], [4]]
  state = generate.generate(
    params,
    objectives.padded(prompts, 0),
    model=model,
    sampler=generate.Sampler(temperature=0.7, top_k=3, repetition_penalty=1.5),
    length=8,
    stop=0,
    rng=jax.random.key(1),
  )
  for prompt, new, nats in zip(
    prompts, state.tokens.tolist(), np.asarray(state.nats), strict=True
  ):
    size = new.index(0) + 1 if 0 in new else len(new)
    want = nats_of(model, params, prompt, new[:size])
    np.testing.assert_allclose(nats[:size], want, atol=1e-5)
    assert not nats[size:].any()


@pytest.mark.slow
def test_a_row_with_a_key_draws_alike_in_any_company(small):
  model, params = small
  prompts = [[1, 2, 3], [4, 5, 1], [2, 2, 2]]
  keys = jax.random.split(jax.random.key(3), 3)

  def drawn(rows):
    return generate.generate(
      params,
      objectives.padded([prompts[n] for n in rows], 0),
      model=model,
      sampler=generate.Sampler(),
      length=8,
      stop=0,
      rng=keys[np.array(rows)],
    ).tokens.tolist()

  whole = drawn([0, 1, 2])
  assert len({tuple(row) for row in whole}) == 3
  assert drawn([2, 0]) == [whole[2], whole[0]]


def test_a_text_streams_as_it_is_generated(small):
  model, params = small
  settings = {
    'model': model,
    'sampler': generate.Sampler(),
    'length': 10,
    'stop': 0,
    'rng': jax.random.key(2),
  }
  batch = objectives.padded([[1], [2, 3]], 0)
  whole = np.asarray(generate.generate(params, batch, **settings).tokens)
  seen = []
  for state in generate.stream(params, batch, every=3, **settings):
    count = int(state.count)
    seen.append(count)
    np.testing.assert_array_equal(
      np.asarray(state.tokens)[:, :count], whole[:, :count]
    )
  last = max(row.index(0) + 1 if 0 in row else 10 for row in whole.tolist())
  assert seen == [*range(3, last, 3), last]
  np.testing.assert_array_equal(np.asarray(state.tokens), whole)


def search(small, beams, length, penalty=0.0, prompts=((1, 2),)):
  model, params = small
  tokens, scores = beam.search(
    params,
    objectives.padded([list(row) for row in prompts], 0),
    model=model,
    beams=beams,
    length=length,
    stop=0,
    penalty=penalty,
  )
  return np.asarray(tokens), np.asarray(scores)


@pytest.mark.slow
def test_one_beam_takes_the_likeliest_token(small):
  model, params = small
  prompts = ((1, 2), (3,), (4, 4, 1))
  tokens, _ = search(small, 1, 8, prompts=prompts)
  greedy = generate.generate(
    params,
    objectives.padded([list(row) for row in prompts], 0),
    model=model,
    sampler=generate.Sampler(temperature=0.0),
    length=8,
    stop=0,
    rng=jax.random.key(0),
  )
  np.testing.assert_array_equal(tokens[:, 0], greedy.tokens)


@pytest.mark.slow
@pytest.mark.parametrize('penalty', [0.0, 1.0])
def test_enough_beams_find_the_best_of_all_texts(small, penalty):
  model, params = small
  length = 3
  every = {}
  for new in itertools.product(range(V), repeat=length):
    text = new[: new.index(0) + 1] if 0 in new else new
    every[text] = 0.0
  for text in every:
    total = -nats_of(model, params, (1, 2), text).sum()
    every[text] = total / ((5 + len(text)) / 6) ** penalty
  best = sorted(every, key=lambda text: -every[text])
  tokens, scores = search(small, V**2, length, penalty)
  for rank in range(5):
    text = best[rank]
    assert tokens[0, rank].tolist() == [*text, *[0] * (length - len(text))]
    assert scores[0, rank] == pytest.approx(every[text], abs=1e-4)
  assert (np.diff(scores[0]) <= 0).all()


@pytest.mark.slow
def test_beams_of_a_batch_are_those_of_its_rows(small):
  prompts = ((1, 2, 3), (4,))
  tokens, scores = search(small, 3, 6, 0.6, prompts)
  for n, row in enumerate(prompts):
    alone, its = search(small, 3, 6, 0.6, (row,))
    np.testing.assert_array_equal(tokens[n], alone[0])
    np.testing.assert_allclose(scores[n], its[0], atol=1e-5)


def chain(table):
  """Makes a model whose next token depends on the last one alone."""

  def apply(params, batch, *, cache=None, rng=None):
    return types.Output(params[batch.tokens], cache, {})

  def start(params, batch, room):
    return jnp.zeros(len(batch.tokens))

  model = types.Model(lambda batch: table, apply, start, ())
  return model, jnp.asarray(table, jnp.float32)


def every_text(table, first, length, penalty):
  """Scores every text that the chain can write, the best first."""
  log = np.asarray(jax.nn.log_softmax(table, axis=-1), np.float64)
  size = len(log)
  found = {}

  def go_on(text, total):
    if text and (text[-1] == 0 or len(text) == length):
      found[text] = total / ((5 + len(text)) / 6) ** penalty
      return
    for token in range(size):
      last = text[-1] if text else first
      go_on((*text, token), total + log[last, token])

  go_on((), 0.0)
  return sorted(found.items(), key=lambda item: -item[1])


def check_texts(table, beams, length, penalty, count):
  """Checks that a search finds distinct texts with their own scores."""
  every = every_text(table, 1, length, penalty)
  tokens, scores = search(chain(table), beams, length, penalty, ((1,),))
  texts = [
    tuple(row[: row.index(0) + 1] if 0 in row else row)
    for row in tokens[0, :count].tolist()
  ]
  assert len(set(texts)) == count
  np.testing.assert_allclose(
    scores[0, :count], [dict(every)[text] for text in texts], rtol=1e-4
  )
  assert (np.diff(scores[0, :count]) <= 0).all()
  return scores[0, :count], [score for _, score in every[:count]]


@pytest.mark.parametrize('penalty', [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize(('size', 'length'), [(2, 6), (3, 4), (5, 3)])
def test_beams_equal_an_exhaustive_search(size, length, penalty):
  """As many beams as there are beginnings lose no text."""
  beams = size ** (length - 1)
  for seed in range(8):
    table = 2 * np.random.default_rng(seed).normal(size=(size, size))
    # With two tokens there is one text of each length, and one more.
    count = min(beams, length + 1) if size == 2 else beams
    # Scores alone: a chain may write several texts of the same one.
    got, want = check_texts(table, beams, length, penalty, count)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_few_beams_find_texts_with_their_own_scores():
  for seed in range(8):
    table = 2 * np.random.default_rng(seed).normal(size=(5, 5))
    check_texts(table, 3, 5, 1.0, 3)


def test_unfinished_texts_push_out_no_finished_one():
  # From 7 a text ends, or goes by 1, 2, 3, 4 to 5 or 6, where its score is best
  # and from where no token is likely.
  likely = np.full((8, 8), 1e-9)
  likely[7, :2] = 0.4, 0.3
  likely[7, 2:7] = 0.06
  likely[1, 2] = likely[2, 3] = likely[3, 4] = 1
  likely[4, 5:7] = 0.5
  likely[5:7] = 1 / 8
  table = np.log(likely)
  tokens, scores = search(chain(table), 2, 6, 2.0, ((7,),))
  assert tokens[0, 0].tolist() == [0] * 6
  assert scores[0, 0] == pytest.approx(np.log(0.4), abs=1e-4)
  assert every_text(table, 7, 6, 2.0)[0][0] == (0,)
