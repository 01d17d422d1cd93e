"""Checks that LoRA starts as its body, learns, and can be merged into it."""

from functools import partial
import json

import jax
import numpy as np
import optax
import pytest

from configs import base
from lm import checkpoint, config, evaluate, optim, sharding, train, tree
from lm.checkpoint import manifest
from lm.data.finetuning import batching, tasks
from lm.evals import classification, export_check
from lm.interop import loader, stablehlo
from lm.layers import compress
from lm.models import linen, lora
from lm.training import step
from tests import programs
from tests.data import tasks_test
from tools import export

V, L = 64, 16
ENCODER = tasks_test.BODIES['encoder']
CLASSIFY = {
  'fn': 'lm.models.heads:classify',
  'classes': 2,
  'pool': 'first',
  'body': ENCODER,
}
BODIES = {
  'encoder': ENCODER,
  'scanned': {**tasks_test.BODIES['decoder'], 'scan': True},
  'experts': base.llama(
    base.attention(heads=2, positions=base.rotary()),
    base.experts(count=4),
    length=64,
    width=32,
    depth=2,
  ),
  'head': CLASSIFY,
  'lstm': tasks_test.BODIES['lstm'],
}


def around(body, **settings):
  return {'fn': lora.NAME, 'body': body, 'rank': 4, **settings}


def noisy(params, seed=0):
  """Adds noise to all parameters, since zeros hide errors."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32), params
  )


def example():
  batch = linen.example_batch(4, L)
  ids = np.random.default_rng(0).integers(0, V, (4, L))
  return batch._replace(tokens=ids.astype(np.int32))


@pytest.mark.slow
@pytest.mark.parametrize('name', BODIES)
def test_it_starts_as_its_body_and_merging_changes_nothing(name):
  spec = config.plain(config.fill(around(BODIES[name], paths='')))
  model, body = (config.build(x, vocab=V) for x in (spec, spec['body']))
  params = model.init(0, example())

  def logits(model, params):
    return np.asarray(jax.jit(model.apply)(params, example()).logits)

  at_first = logits(model, params)
  np.testing.assert_array_equal(at_first, logits(body, params['body']))
  params['lora'] = noisy(params['lora'])
  changed = logits(model, params)
  assert np.abs(changed - at_first).max() > 1e-3
  inner, whole = lora.merged(spec, params)
  assert inner == spec['body']
  assert tree.diff(whole, params['body']) == []
  np.testing.assert_allclose(logits(body, whole), changed, atol=1e-5)
  # A head around LoRA is merged too, and what has none is left alone.
  outer = {'fn': 'lm.models.heads:embed', 'body': spec}
  found = lora.merged(outer, {'body': params})
  assert found[0] == {**outer, 'body': inner}
  jax.tree.map(np.testing.assert_array_equal, found[1]['body'], whole)
  assert lora.merged(*found) == found
  sharding.shardings(
    {'params': params},
    mesh=sharding.make_mesh(fsdp=2),
    axes=(*optim.AXES, *model.axes),
    rules=base.get_config().sharding,
  )


def test_updates_are_products_of_two_matrices():
  model = config.build(
    around(BODIES['scanned'], paths='attention/[qo]$|table', alpha=2.0), vocab=V
  )
  params = noisy(model.init(0, example()))
  spec = around(BODIES['scanned'], alpha=2.0)
  _, whole = lora.merged(spec, params)
  for path, sides in (
    ('layers/0/attention/q', (2, 32, 32)),
    ('layers/0/attention/o', (2, 32, 32)),
    ('embed/table', (V, 32)),
  ):
    before, after = (dict(tree.paths(x))[path] for x in (params['body'], whole))
    changes = dict(tree.paths(params['lora']))
    a, b = changes[f'{path}/a'], changes[f'{path}/b']
    assert a.shape == (*sides[:-1], 4) and b.shape == (*sides[:-2], 4, 32)
    want = before.reshape(sides) + 2.0 / 4 * np.einsum('...ir,...ro', a, b)
    np.testing.assert_allclose(after.reshape(sides), want, atol=1e-5)
  assert len(changes) == 6
  np.testing.assert_array_equal(
    whole['layers']['0']['attention']['k'],
    params['body']['layers']['0']['attention']['k'],
  )


@pytest.mark.slow
def test_only_updates_and_the_head_have_gradients():
  model = config.build(around(CLASSIFY), vocab=V)
  params = noisy(model.init(0, example()))

  tx, batch = optax.sgd(1.0), example()
  batch = batch._replace(
    targets=np.ones((len(batch.tokens), 1), np.int32),
    weights=np.ones((len(batch.tokens), 1), np.float32),
  )
  state = step.init_state(model.init(0, batch), tx=tx)
  state = state._replace(params=params)
  update = partial(step.train_step, model=model, tx=tx, rng=jax.random.key(1))
  after, _ = jax.jit(update)(state, batch)
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, after.params)
  for path, x in tree.paths(moved):
    assert x == ('lora/' in path or 'task/' in path), path


@pytest.mark.parametrize(
  ('shape', 'summed', 'want'),
  [
    ((32, 4, 8), (-3,), (32, 32)),
    ((2, 4, 8, 32), (-3, -2), (2, 32, 32)),
    ((6, 32, 128), (-2,), (6, 32, 128)),
    ((64, 32), (-1,), (64, 32)),
  ],
)
def test_parameters_have_the_shapes_of_matrices(shape, summed, want):
  assert compress.flat(shape, summed) == want


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'rank': 0}, 'rank=0 must be at least 1'),
    ({'alpha': 0.0}, 'alpha=0.0 must be above 0'),
    ({'paths': 'nowhere'}, 'paths=nowhere: found in no matrix; there are '),
  ],
)
def test_refuses_bad_settings(settings, message):
  with pytest.raises(ValueError) as caught:
    model = config.build(around(ENCODER, **settings), vocab=V)
    model.init(0, example())
  assert message in str(caught.value) and len(str(caught.value)) <= 200


def tune(folder, workdir, model, write, reader, form, judge, steps, **changes):
  """Trains a head on an artificial task; returns the results of `evaluate`."""
  folder.mkdir()
  spec = {'fn': reader, 'path': write(folder / 'train', 400, 0)}
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
  c.model = model
  c.optim.peak, c.optim.warmup = 1e-2, 10
  c.evals = {
    'test': {
      'fn': f'lm.evals.classification:{judge}',
      'records': {'fn': reader, 'path': write(folder / 'test', 64, 1)},
      'form': form,
      'batch_size': 64,
      'length': 64,
    }
  }
  c.update(changes)
  train.train(c.lock(), workdir)
  return evaluate.evaluate(workdir)[-1]['metrics']


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Trains a tagger, and a classifier with LoRA on its body.

  Tests share both runs and must not change them.
  """
  folder = tmp_path_factory.mktemp('runs')
  tune(
    folder / 'tags',
    folder / 'tagger',
    {'fn': 'lm.models.heads:tag', 'classes': 3, 'body': ENCODER},
    tasks_test.write_tags,
    'lm.data.finetuning.readers:conll',
    {'fn': 'lm.data.finetuning.forms:tag', 'classes': 3, 'join': ''},
    'tags',
    60,
  )
  found = tune(
    folder / 'texts',
    folder / 'lora',
    around(CLASSIFY),
    tasks_test.write_texts,
    'lm.data.finetuning.readers:texts',
    {'fn': 'lm.data.finetuning.forms:classify', 'classes': 2},
    'classes',
    100,
    init_from=str(folder / 'tagger'),
    init_paths=('body=body/body',),
  )
  return folder, found


def test_it_learns_another_task_on_a_frozen_body(runs):
  folder, found = runs
  assert found['test/accuracy'] > 0.95
  # On the body as it was, its `task` alone comes to 0.62.
  assert found['test/loss_nats'] < 0.05
  before, after = (
    checkpoint.restore_params(folder / name) for name in ('tagger', 'lora')
  )
  jax.tree.map(
    np.testing.assert_array_equal, after['body']['body'], before['body']
  )
  trained = dict(tree.paths({'l': after['lora'], 't': after['body']['task']}))
  assert all(np.any(leaf != 0) for leaf in trained.values())
  leaves = manifest.read(folder / 'lora', 100)['leaves']
  state = {
    k: np.prod(x['shape']) for k, x in leaves.items() if 'opt_state' in k
  }
  assert any('/mu/lora/' in k for k in state)
  assert any('/mu/body/task/' in k for k in state)
  size = sum(leaf.size for leaf in trained.values())
  assert sum(state.values()) <= 2 * size + 4 < 0.2 * tree.count(before)


def exported(form, workdir, output, *flags):
  export.main([form, f'--workdir={workdir}', f'--output={output}', *flags])
  return json.loads((output / 'report.json').read_text())


@pytest.mark.slow
def test_a_tuned_head_is_merged_and_answers_the_same(runs, tmp_path):
  folder, found = runs
  report = exported('merge', folder / 'lora', tmp_path / 'out')
  assert report['moved_logit'] < 1e-5
  assert report['probe']['rows'] == 64
  assert abs(report['probe']['largest_nats']) < 1e-5
  (old, new) = (
    checkpoint.restore_run(x) for x in (folder / 'lora', tmp_path / 'out')
  )
  assert new.config.model.fn == CLASSIFY['fn']
  c = config.plain(new.config)
  data = tasks.make(
    **{k: v for k, v in c['data'].items() if k != 'fn'},
    tokenizer=new.tokenizer,
    seed=0,
    batch_size=8,
  )
  got, want = (
    run.model.apply(checkpoint.restore_params(x), data.batch(0)).logits
    for run, x in ((old, folder / 'lora'), (new, tmp_path / 'out'))
  )
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert evaluate.evaluate(tmp_path / 'out')[-1]['metrics'] == pytest.approx(
    found, rel=1e-4
  )


@pytest.mark.slow
@pytest.mark.parametrize('form', ['int8', 'prune', 'stablehlo'])
def test_a_tuned_head_is_exported_and_evaluated(runs, tmp_path, form):
  folder, found = runs
  out = tmp_path / 'out'
  flags = ['--sparsity=0.1'] * (form == 'prune')
  report = exported(form, folder / 'lora', out, '--budget=0.05', *flags)
  assert report['probe']['tokens'] == 64  # a class each
  run = checkpoint.restore_run(folder / 'lora')
  spec = config.plain(run.config)['evals']['test']
  read, made, rows = classification.read(
    spec['records'], spec['form'], run.tokenizer, 64, 1, None
  )
  assert (
    export_check.load(out / export_check.NAME).about['data'] == read.card.sha256
  )
  if form != 'stablehlo':
    again = evaluate.evaluate(out)[-1]['metrics']
    assert again['test/accuracy'] > found['test/accuracy'] - 0.05
    return
  batch = batching.assemble(
    [[row] for row in rows[:8]], made, 64, run.tokenizer
  )
  params = checkpoint.restore_params(folder / 'lora')
  want = run.model.apply(params, batch).logits
  function = loader.load(out)
  got = function.call(function.params, stablehlo.inputs_of(batch))
  np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.slow
def test_runs_that_cannot_be_merged_are_refused(runs, tmp_path, monkeypatch):
  folder, _ = runs
  for form, name, flags, message in (
    ('merge', 'tagger', [], 'not around lm.models.lora:make, so there is'),
    ('merge', 'lora', ['--text=x'], 'tuned it on records, and a probe is of'),
  ):
    with pytest.raises(config.ConfigError) as caught:
      exported(form, folder / name, tmp_path / 'out', *flags)
    assert message in str(caught.value)
  monkeypatch.setattr(
    lora, 'merged', lambda spec, params: (spec['body'], params['body'])
  )
  with pytest.raises(export_check.Worse, match='merged, a logit moves by'):
    exported('merge', folder / 'lora', tmp_path / 'out', '--budget=0.001')


@pytest.mark.slow
@pytest.mark.parametrize('form', ['merge', 'int8'])
def test_a_language_model_is_exported_as_its_body(
  data, trained, tmp_path, form
):
  c = programs.on_eight(data, steps=4).unlock()
  c.data.fn = 'lm.data.stream:make'
  del c.data.seconds, c.data.hang_at, c.evals.pause
  c.model = around(c.model.to_dict())
  c.optim.peak = 0.1
  c.init_from, c.init_paths = str(trained), ('=body',)
  c.save_every, c.optim.warmup = 4, 1
  train.train(c.lock(), tmp_path / 'run')
  report = exported(form, tmp_path / 'run', tmp_path / 'out', '--budget=0.1')
  whole = checkpoint.restore_run(tmp_path / 'out')
  assert whole.config.model.fn == 'lm.models.decoder:make'
  params = checkpoint.restore_params(tmp_path / 'out')
  assert 'embed' in params
  assert abs(report['probe']['rise_nats']) < (1e-5 if form == 'merge' else 0.1)
  if form == 'merge':
    assert report['moved_logit'] < 1e-5
    before = checkpoint.restore_params(trained)['layers_0']['attention']
    after = params['layers_0']['attention']
    assert np.abs(after['q'] - before['q']).max() > 1e-3
    np.testing.assert_array_equal(after['k'], before['k'])
