import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import generate
from lm.data import objectives
from lm.models import decoder

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
      r'temperature=-1\.0 must be 0 or more',
    ),
    (generate.Sampler(temperature=float('nan')), r'temperature=nan must be'),
    (generate.Sampler(top_k=-1), r'top_k=-1 must be 0 \(off\) or more'),
    (generate.Sampler(top_p=0.0), r'top_p=0\.0 must be above 0 and at most 1'),
  ],
)
def test_samplers_out_of_range_are_refused(sampler, message):
  with pytest.raises(ValueError, match=message):
    sampler.check()


def test_an_empty_prompt_is_refused():
  with pytest.raises(ValueError, match='a prompt has no tokens: begin it with'):
    objectives.padded([[1], []], 0)


def test_same_key_same_text_and_nothing_after_stop():
  model = decoder.make(vocab=5, length=40, width=16, depth=1, heads=2)
  batch = objectives.padded([[1, 2], [3]] * 4, 0)
  params = model.init(jax.random.key(0), batch)

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
      )
    )

  np.testing.assert_array_equal(text(0), text(0))
  assert (text(0) != text(1)).any()
  rows = text(0)
  assert (rows == 4).any()  # one in five: some row stopped
  for row in rows.tolist():
    if 4 in row:
      assert set(row[row.index(4) :]) == {4}
