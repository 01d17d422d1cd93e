"""Checks models that learn beside a fixed one: DPO and distillation."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import (
  checkpoint,
  config,
  evaluate,
  loss,
  metrics,
  optim,
  train,
  tree,
)
from lm.data.finetuning import batching, pair_forms, pair_readers
from lm.data.finetuning import records as record_lib
from lm.data.tokenizers import utf8_bytes
from lm.models import distill, linen, preference
from lm.optim import optimizers
from lm.training import step

BYTES = utf8_bytes.make()
BODY = base.decoder(2, length=32, width=16, depth=1)
FORM = {'fn': 'lm.data.finetuning.pair_forms:prefer', 'template': '{source}='}


def rows(length=32):
  form = pair_forms.prefer(tokenizer=BYTES, length=length, template='{source}=')
  pairs = [
    record_lib.Preference('a', 'hm', 'yes', 'no'),
    record_lib.Preference('b', 'a long question', 'a', 'bcdefghijklmnop'),
  ]
  made = form.rows(pairs)
  return (
    form,
    made,
    batching.assemble([[row] for row in made], form, length, BYTES),
  )


def test_each_answer_is_a_document_of_its_own():
  _, (row, cut), batch = rows()
  bos, eos = BYTES.bos, BYTES.eos
  asked = [bos, *BYTES.encode('hm=')]
  assert row.ids == [
    *(*asked, *BYTES.encode('yes'), eos),
    *(*asked, *BYTES.encode('no'), eos),
  ]
  assert batch.segments[0, :16].tolist() == [1] * 8 + [2] * 7 + [0]
  assert batch.positions[0, :15].tolist() == [*range(8), *range(7)]
  token_types = [0] * 4 + [1] * 4 + [0] * 4 + [1] * 3
  assert (
    batch.token_types is not None
    and batch.token_types[0, :15].tolist() == token_types
  )
  # Both answers see the same end of a question that is too long.
  assert len(cut.ids) <= 32
  assert cut.ids[:8] == [bos, *BYTES.encode('estion=')]
  assert cut.ids[10:18] == cut.ids[:8] and len(cut.ids) == 10 + 16


@pytest.mark.slow
def test_logits_are_how_much_more_the_body_prefers():
  model = preference.make(vocab=BYTES.size, body=BODY, beta=0.5)
  _, made, batch = rows()
  params = model.init(0, batch)
  body = config.build(BODY, vocab=BYTES.size)

  def cost(params, ids, token_types):
    """Returns the log likelihood of an answer that stands alone."""
    form = batching.Form(lambda records: [], None)
    row = batching.Row(0, ids, [0] * len(ids), [], [], [])
    logits = body.apply(
      params, batching.assemble([[row]], form, 32, BYTES)
    ).logits
    log = jax.nn.log_softmax(logits[0])
    return sum(log[n - 1, ids[n]] for n in range(len(ids)) if token_types[n])

  logits = model.apply(params, batch).logits
  assert logits.shape == (2, 1, 2) and not logits[:, :, 1].any()
  for b, row in enumerate(made):
    cuts = row.documents.index(1)
    parts = [slice(0, cuts), slice(cuts, None)]
    gain = [
      cost(params['body'], row.ids[part], row.token_types[part])
      - cost(params['reference'], row.ids[part], row.token_types[part])
      for part in parts
    ]
    want = 0.5 * (gain[0] - gain[1])
    np.testing.assert_allclose(logits[b, 0, 0], want, rtol=1e-4, atol=1e-4)
  same = {'body': params['body'], 'reference': params['body']}
  nats = loss.token_loss(model.apply(same, batch).logits, batch)
  assert float(metrics.value(nats)) == pytest.approx(np.log(2), abs=1e-6)


def write(path, count, seed):
  """Makes pairs whose better answer has an x, and the worse one a y."""
  rng = random.Random(seed)
  made = [
    {
      'conversations': [{'from': 'human', 'value': rng.choice('abc')}],
      'chosen': {'value': rng.choice(('xa', 'ax'))},
      'rejected': {'value': rng.choice(('ya', 'ay'))},
    }
    for _ in range(count)
  ]
  path.write_text(json.dumps(made))
  return {
    'fn': 'lm.data.finetuning.pair_readers:preferences',
    'path': str(path),
  }


@pytest.mark.slow
@pytest.mark.usefixtures('one_device')
def test_a_preference_is_learnt_and_the_reference_does_not_change(tmp_path):
  c = base.get_config().unlock()
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make', 'reserved': 0}
  c.steps, c.batch_size, c.save_every = 40, 16, 20
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': write(tmp_path / 'train', 64, 0),
    'form': FORM,
    'length': 32,
  }
  c.model = {'fn': 'lm.models.preference:make', 'body': BODY, 'beta': 0.1}
  c.optim.peak, c.optim.warmup, c.optim.decay = 1e-2, 4, 0.1
  c.evals = {
    'test': {
      'fn': 'lm.evals.classification:classes',
      'records': write(tmp_path / 'test', 32, 1),
      'form': FORM,
      'batch_size': 16,
      'length': 32,
    }
  }
  train.train(c.lock(), tmp_path / 'run')
  found = evaluate.evaluate(tmp_path / 'run')
  assert found[-1]['metrics']['test/accuracy'] > 0.95
  assert found[-1]['metrics']['test/loss_nats'] < 0.6
  before, after = (
    dict(tree.paths(checkpoint.restore_params(tmp_path / 'run', n)))
    for n in (20, 40)
  )
  for path in before:
    still = np.array_equal(before[path], after[path])
    assert still == path.startswith('reference/'), path


def test_the_preferences_of_the_demo_are_read(shared_data):
  made = pair_readers.preferences(
    path=str(shared_data / 'instruct/llamafactory_demo/dpo_en_demo.json.gz')
  )
  assert len(made.records) == 300
  assert all(r.chosen and r.rejected and r.source for r in made.records)


def text(seed=0):
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, 64, (4, 17)).astype(np.int32)
  return linen.example_batch(4, 16)._replace(
    tokens=ids[:, :-1], targets=ids[:, 1:]
  )


def distilled(**changes):
  small = {**BODY, 'length': 16}
  return distill.make(
    vocab=64, body=small, teacher={**small, 'depth': 2}, **changes
  )


@pytest.mark.slow
def test_a_student_that_equals_its_teacher_has_no_loss():
  small = {**BODY, 'length': 16}
  model = distill.make(vocab=64, body=small, teacher=small)
  params = model.init(0, text())
  out = model.apply({**params, 'teacher': params['body']}, text())
  assert abs(float(out.aux['distill_loss'].total)) < 1e-4
  assert float(out.aux['distill_loss'].weight) == 64


def test_the_loss_is_the_divergence_of_the_distributions():
  model, batch = distilled(temperature=3.0, weight=0.5), text()
  params = model.init(0, batch)
  params = jax.tree.map(lambda x: 4 * x, params)  # far from uniform
  out = model.apply(params, batch)
  small = {**BODY, 'length': 16}
  p, q = (
    np.asarray(
      jax.nn.softmax(config.build(spec, vocab=64).apply(x, batch).logits / 3),
      np.float64,
    )
    for spec, x in (
      ({**small, 'depth': 2}, params['teacher']),
      (small, params['body']),
    )
  )
  want = 0.5 * 9 * (p * np.log(p / q)).sum()
  assert float(out.aux['distill_loss'].total) == pytest.approx(want, rel=1e-3)


@pytest.mark.slow
def test_a_student_learns_and_its_teacher_does_not_change():
  # The text pulls elsewhere, which here must not win.
  model, batch = distilled(weight=100.0), text()
  spec = {'peak': 3e-3, 'warmup': 2, 'decay': 0.1}
  tx, _ = optimizers.make(steps=60, **optim.fitted(spec, model))
  state = step.init_state(model.init(0, batch), tx=tx)
  state = state._replace(params=jax.tree.map(lambda x: 2 * x, state.params))
  teacher = state.params['teacher']
  update = jax.jit(
    lambda state: step.train_step(
      state, batch, model=model, tx=tx, rng=jax.random.key(1)
    )
  )
  found = []
  for _ in range(30):
    state, told = update(state)
    found.append(float(metrics.value(told['distill_loss'])))
  assert found[-1] < found[0] / 2
  assert all(
    bool(jnp.array_equal(a, b))
    for a, b in zip(
      jax.tree.leaves(teacher),
      jax.tree.leaves(state.params['teacher']),
      strict=True,
    )
  )


@pytest.mark.parametrize(
  ('make', 'settings', 'message'),
  [
    (preference.make, {'body': BODY, 'beta': 0.0}, 'beta=0.0 must be above 0'),
    (
      distill.make,
      {'body': BODY, 'teacher': BODY, 'temperature': 0.0},
      'temperature=0.0 must be above 0',
    ),
    (
      distill.make,
      {'body': BODY, 'teacher': BODY, 'weight': -1.0},
      'weight=-1.0 must be above 0',
    ),
  ],
)
def test_settings_out_of_range_are_refused(make, settings, message):
  with pytest.raises(ValueError) as caught:
    make(vocab=64, **settings)
  assert str(caught.value) == message
