"""Exports of a run: smaller or portable, and refused where they are worse."""

import functools
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import qwix
import safetensors.numpy

from configs import base
from lm import (
  checkpoint,
  config,
  errors,
  evaluate,
  fit,
  sample,
  train,
  tree,
  types,
)
from lm.checkpoint import manifest
from lm.data import objectives, stream
from lm.evals import export_check
from lm.interop import loader, transfer
from lm.layers import compress
from tests import programs
from tests.laws import families_test, laws_test
from tools import export

PAIR = {
  'UID': 'order',
  'field': 'syntax',
  'term': 'order',
  'sentence_bad': 'QZJ%' * 5,
}
CAUSAL = {'fn': 'lm.data.objectives:causal'}
# Families as `families_test` has them, and two more.
DRAWN = {
  **families_test.FAMILIES,
  'scanned': (
    base.decoder(2, width=16, depth=2, length=16, scan=True),
    CAUSAL,
  ),
  'transformer': (
    base.transformer(2, depth=2, width=16, scan=True),
    families_test.SPANS,
  ),
  'vectors': (
    {
      'fn': 'lm.models.heads:embed',
      'body': base.encoder(2, **families_test.SMALL),
    },
    CAUSAL,
  ),
}


def run(form, workdir, output, *flags):
  """Exports, and returns the report."""
  export.main([form, f'--workdir={workdir}', f'--output={output}', *flags])
  return json.loads((output / 'report.json').read_text())


def refused(form, workdir, output, *flags):
  """Exports in vain, and returns the error's text."""
  with pytest.raises(config.ConfigError) as caught:
    run(form, workdir, output, *flags)
  assert len(str(caught.value)) <= 200
  assert not output.exists()
  return str(caught.value)


def drawn(data, workdir, name):
  """Makes a run of a family whose parameters are drawn, and large."""
  c = families_test.make(data, 'lstm').unlock()
  c.model, c.data.objective = DRAWN[name]
  c = config.fill(c, given={'data': ('position', 'steps')})
  words = config.build(c.tokenizer)
  model = config.build(c.model, vocab=words.size)
  made = config.build(c.data.objective, tokenizer=words, length=16)
  params = model.init(0, objectives.example(made, 1))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32), params
  )
  with checkpoint.Checkpointer(workdir) as saver:
    saver.save(
      4,
      types.TrainState(np.int32(4), params, (), {}),
      {'config': config.to_json(c), 'data': {}, 'tokenizer': words.sha256},
    )
  return workdir


def resaved(workdir, to, change):
  """Copies a run whose state is changed by a function."""
  step = checkpoint.steps(workdir)[-1]
  state = types.TrainState(
    np.int32(step), checkpoint.restore_params(workdir, step), (), {}
  )
  meta = checkpoint.read_meta(workdir, step)
  with checkpoint.Checkpointer(to) as saver:
    saver.save(step, change(state), meta)
  return to


@pytest.fixture(scope='module')
def learned(data, tmp_path_factory):
  """A run whose blocks know something; do not change it."""
  workdir = tmp_path_factory.mktemp('learned') / 'run'
  train.train(
    programs.on_eight(data, steps=120, save_every=120, optim__peak=0.02),
    workdir,
  )
  return workdir


@pytest.fixture(scope='module')
def small(trained, tmp_path_factory):
  """An int8 export of the trained run; do not change it."""
  output = tmp_path_factory.mktemp('small') / 'run'
  run('int8', trained, output)
  return output


@pytest.mark.slow
def test_int8_is_small_on_disk_and_a_run_like_any_other(
  trained, small, data, tmp_path
):
  report = json.loads((small / 'report.json').read_text())
  probe = report['probe']
  assert not report['refused'] and report['matrices'] == 7
  assert probe['rise_nats'] <= report['budget_nats'] == 0.01
  assert 0 < probe['largest_nats'] < 0.2 and probe['tokens'] > 100
  # Most matrices have a scale for 16 weights; the rest is as it was.
  files = report['original']['bytes'], report['result']['bytes']
  leaves = manifest.read(small, 36)['leaves']
  sizes = {path: math.prod(x['shape']) for path, x in leaves.items()}
  held = [path for path, x in leaves.items() if x['dtype'] == 'int8']
  numbers = sum(sizes[path] for path in held)
  scales = sum(n for path, n in sizes.items() if path.startswith('extra/'))
  assert 3.2 < 4 * numbers / (numbers + 4 * scales) < 4
  assert files[0] - files[1] == 3 * numbers - 4 * scales
  params = dict(tree.paths(checkpoint.restore_params(trained)))
  rounded = dict(tree.paths(checkpoint.restore_params(small)))
  assert files[0] == 4 * sum(x.size for x in params.values())
  for path, x in params.items():
    assert rounded[path].dtype == np.float32
    if path == 'embed/table':
      whole = qwix.quantize(x, 'int8', channelwise_axes=[0])
    elif path == 'layers_0/attention/o':
      whole = qwix.quantize(x, 'int8', channelwise_axes=[2])
    elif path.endswith(('up', 'down')):
      whole = qwix.quantize(x, 'int8', channelwise_axes=[1])
    elif x.ndim == 3:
      whole = qwix.quantize(x, 'int8', channelwise_axes=[1, 2])
    else:
      np.testing.assert_array_equal(rounded[path], x)
      continue
    np.testing.assert_array_equal(rounded[path], qwix.dequantize(whole))
  text = sample.sample(small, 'the ', length=4)[0]
  assert text.startswith('the ')
  # Judged like any other, with a loss like the original's.
  copy = shutil.copytree(small, tmp_path / 'run')
  before = evaluate.evaluate(shutil.copytree(trained, tmp_path / 'trained'))
  (after,) = evaluate.evaluate(copy)
  names = [x['metrics']['valid/loss_nats'] for x in (before[-1], after)]
  assert 0 < abs(names[1] - names[0]) < 0.01
  # A start, but nothing to go on with.
  run_ = checkpoint.restore_run(small)
  taken = checkpoint.initial_params(
    small,
    (),
    jax.tree.map(np.asarray, checkpoint.restore_params(small)),
    run_.tokenizer,
  )
  assert taken.keys() == params.keys()
  with pytest.raises(errors.Mismatch, match='leaves differ from this config'):
    train.train(programs.on_eight(data), copy)


def test_what_is_pruned_too_far_is_refused_and_leaves_a_report(
  learned, start, tmp_path
):
  output = tmp_path / 'thin'
  process = start(
    'tools.export',
    [
      'prune',
      f'--workdir={learned}',
      f'--output={output}',
      '--sparsity=0.9',
      '--scope=matrix',
    ],
  )
  said = process.error(9)
  assert [file.name for file in output.iterdir()] == ['report.json']
  assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == ['thin']
  report = json.loads((output / 'report.json').read_text())
  probe = report['probe']
  assert report['refused'] and probe['rise_nats'] > 0.01
  assert report['sparsity'] == pytest.approx(0.9, abs=2e-3)
  assert said.endswith(
    f'refused: its loss is {probe["result_nats"]:.4g} nats, not '
    f'{probe["original_nats"]:.4g}: {probe["rise_nats"]:.4g} more, over '
    '--budget=0.01: change it less, or allow more'
  )
  # The budget is met at its edge, and the report gives way.
  edge = probe['rise_nats']
  below = float(np.nextafter(edge, 0))
  thin = ['--sparsity=0.9', '--scope=matrix']
  with pytest.raises(export_check.Worse):
    run('prune', learned, output, *thin, f'--budget={below!r}')
  report = run('prune', learned, output, *thin, f'--budget={edge!r}')
  assert not report['refused'] and report['probe']['rise_nats'] == edge
  assert (output / 'checkpoints').is_dir()


def test_a_budget_is_held_against_the_first_original(learned, tmp_path):
  thin, both = tmp_path / 'thin', tmp_path / 'both'
  first = run('prune', learned, thin, '--sparsity=0.5', '--budget=9')
  params = checkpoint.restore_params(thin)
  assert compress.sparsity(
    params, checkpoint.restore_run(thin).model.matrices
  ) == pytest.approx(0.5, abs=1e-3)
  second = run('int8', thin, both, '--budget=9')
  for key in ('checkpoint', 'original_nats', 'tokens'):
    assert second['probe'][key] == first['probe'][key]
  assert second['checkpoint'] == checkpoint.digest(thin, second['step'])
  assert second['probe']['rise_nats'] == pytest.approx(
    first['probe']['rise_nats'], abs=0.02
  )
  assert first['probe']['rise_nats'] > 0.01
  # Zeros stay zeros: there are as many, and more that are rounded to it.
  for (path, x), (_, y) in zip(
    tree.paths(params),
    tree.paths(checkpoint.restore_params(both)),
    strict=True,
  ):
    assert not y[x == 0].any(), path
  programs.flip(both / 'probe.json')
  with pytest.raises(errors.Damaged) as caught:
    run('int8', both, tmp_path / 'again')
  assert str(caught.value) == (
    f'{both}/probe.json: its bytes are not those that were written: bring it '
    'back, or delete it and give --text'
  )


def test_losses_that_are_not_finite_are_worse(trained, tmp_path, monkeypatch):
  def broken(params, *unused):
    # They are finite, as whatever is saved, and what is computed is not.
    return jax.tree.map(lambda x: x * np.float32(1e30), params), {}

  monkeypatch.setattr(compress, 'int8', broken)
  with pytest.raises(export_check.Worse, match='its loss is nan nats'):
    run('int8', trained, tmp_path / 'out', '--budget=1e9')
  report = json.loads((tmp_path / 'out' / 'report.json').read_text())
  assert report['probe']['rise_nats'] == 'NaN'
  lost = resaved(
    trained,
    tmp_path / 'lost',
    lambda s: s._replace(params=broken(s.params, '')[0]),
  )
  assert 'losses of the original are not finite' in refused(
    'int8', lost, tmp_path / 'none'
  )


@pytest.mark.slow
def test_a_probe_is_one_text_a_row_and_what_it_cost(trained, data, tmp_path):
  _, words, model = checkpoint.restore_run(trained)
  params = checkpoint.restore_params(trained)
  settings = {'tokenizer': words, 'length': 16, 'about': {}}
  probe = export_check.make(params, model, path=data / 'train', **settings)
  batch = probe.batch
  assert len(batch.tokens) == probe.about['rows'] == 64
  assert (batch.tokens[:, 0] == words.bos).all()
  assert batch.segments.max() == 1 and batch.segments.min() == 0
  assert (batch.weights == (batch.segments > 0)).all()
  source = stream.once(
    str(data / 'train'), tokenizer=words, batch_size=1, length=16
  )
  assert probe.about['data'] == source.fingerprint
  out = model.apply(params, batch).logits
  nats = -np.take_along_axis(
    np.asarray(jax.nn.log_softmax(out)), batch.targets[..., None], axis=-1
  )[..., 0]
  live = batch.weights > 0
  np.testing.assert_allclose(probe.nats[live], nats[live], atol=1e-5)
  assert not probe.nats[~live].any()
  decision = export_check.compare(probe, probe.nats + 0.5 * live)
  assert decision.rise_nats == pytest.approx(0.5)
  assert decision.original_nats == pytest.approx(nats[live].mean(), rel=1e-6)
  assert decision.largest_nats == pytest.approx(0.5)
  export_check.save(probe, tmp_path / 'probe.json')
  jax.tree.map(
    functools.partial(np.testing.assert_array_equal, strict=True),
    export_check.load(tmp_path / 'probe.json')[:2],
    probe[:2],
  )
  text = json.loads((tmp_path / 'probe.json').read_text())
  text['nats'][0][0] = 0.0  # better than the truth
  (tmp_path / 'probe.json').write_text(json.dumps(text))
  with pytest.raises(errors.Damaged, match='delete it and give --text'):
    export_check.load(tmp_path / 'probe.json')


@pytest.mark.slow
def test_tasks_are_asked_of_both(trained, tmp_path, capsys):
  pairs = [
    PAIR | {'pairID': f'{n}', 'sentence_good': programs.TEXT[n : n + 20]}
    for n in range(0, 30, 3)
  ]
  # More than --items would be an error.
  lines = [*map(json.dumps, pairs), 'not read']
  (tmp_path / 'pairs.jsonl').write_text('\n'.join(lines))
  file = tmp_path / 'tasks.py'
  file.write_text(f"""
from configs import base
def get_config():
  c = base.get_config()
  c.evals = {{
    'valid': {{'fn': 'tests.tiny_config:pause', 'seconds': 9.0}},
    'pairs': {{
      'fn': 'lm.evals.choice:pairs',
      'task': {{
        'fn': 'lm.evals.probes:blimp',
        'path': '{tmp_path}/pairs.jsonl',
      }},
      'batch_size': 8,
      'length': 12,
    }},
  }}
  return c
""")
  flags = [f'--config={file}', '--items=10']
  found = run('stablehlo', trained, tmp_path / 'free', *flags)
  assert found['result']['pairs/accuracy'] > 0.6
  for key, value in found['original'].items():
    if key != 'bytes':
      assert found['result'][key] == pytest.approx(value, abs=1e-5)
  found = run('stablehlo', trained, tmp_path / 'int8', '--weights=int8', *flags)
  assert found['result']['pairs/margin'] != found['original']['pairs/margin']
  assert found['result']['bytes'] < 0.5 * found['original']['bytes']
  said = capsys.readouterr().out
  assert [line.split()[0] for line in said.splitlines()[:6]] == [
    'measure',
    'probe/loss_nats',
    'probe/largest_nats',
    'pairs/accuracy',
    'pairs/margin',
    'bytes',
  ]
  bare = tmp_path / 'bare.py'
  bare.write_text(file.read_text().split("    'pairs'")[0] + '  }\n  return c')
  assert refused(
    'int8', trained, tmp_path / 'no', f'--config={bare}'
  ).startswith('--config: none of its evals has a `limit`: give one such as')
  assert (
    refused('int8', trained, tmp_path / 'no', f'--config={file}', '--items=0')
    == '--items=0: must be at least 1'
  )


# The longest text, and whether shapes are free: an n-gram counts its rows, and
# jax may come to trace T5.
FREE = {
  'lstm': (None, True),
  'bert': (256, True),
  'scanned': (16, True),
  'prefix': (16, True),
  'transformer': (None, True),
  't5': (None, None),
  'ngram': (16, False),
}
ALONE = """
import importlib.util
import sys
sys.modules['lm'] = None
try:
  import lm
  raise AssertionError('lm is here')
except ImportError:
  pass
import numpy as np
for folder in sys.argv[1:]:
  spec = importlib.util.spec_from_file_location('model', f'{folder}/model.py')
  model = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(model)
  run = model.load(folder)
  asked = np.load(f'{folder}.npz')
  inputs = {name: asked[name] for name in run.manifest['inputs']}
  found = np.asarray(run.call(run.params, inputs))
  live = asked['live']
  assert found.dtype == np.float32 and live.sum() > 20
  np.testing.assert_allclose(found[live], asked['logits'][live], atol=1e-5)
  print(folder, np.abs(asked['logits'][live]).max())
"""


@pytest.mark.slow
@pytest.mark.process
def test_stablehlo_needs_no_lm_and_takes_other_shapes(data, tmp_path):
  rng = np.random.default_rng(0)

  def rows(sizes):
    return [rng.integers(0, 256, size).tolist() for size in sizes]

  for name, (longest, free) in FREE.items():
    workdir = tmp_path / f'{name}.run'
    if name == 'ngram':
      fit.fit(families_test.counted(data), workdir)
    else:
      drawn(data, workdir, name)
    report = run('stablehlo', workdir, tmp_path / name)
    assert abs(report['probe']['rise_nats']) < 1e-6
    assert report['platforms'] == ['cpu', 'cuda', 'tpu']
    assert report['longest'] == longest or free is None
    if free is not None:
      shape = ['batch', 'length'] if free else [1, 16]
      assert report['inputs']['tokens']['shape'] == shape
      assert (report['fixed'] is None) == free
    _, words, model = checkpoint.restore_run(workdir)
    batch = objectives.padded(rows([11, 4, 9]), words.pad)
    inputs = {'tokens': batch.tokens}
    if 'source' in report['inputs']:
      source = objectives.padded(rows([9, 3, 5]), words.pad)
      batch = batch._replace(
        source=source.tokens, source_segments=source.segments
      )
      inputs['source'] = source.tokens
    if 'prefix' in report['inputs']:
      prefix = np.tile(np.arange(11) < 3, (3, 1))
      batch = batch._replace(prefix=prefix)
      inputs['prefix'] = prefix
    assert report['inputs'].keys() == inputs.keys()
    params = checkpoint.restore_params(workdir)
    logits = jax.jit(model.apply)(params, batch).logits
    np.savez(
      tmp_path / f'{name}.npz',
      logits=logits,
      live=batch.segments > 0,
      **inputs,
    )
  script = tmp_path / 'alone.py'
  script.write_text(ALONE)
  done = subprocess.run(
    [sys.executable, '-I', str(script), *(str(tmp_path / x) for x in FREE)],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=programs.PATIENCE_SECONDS,
  )
  assert done.returncode == 0, done.stderr
  assert len(done.stdout.splitlines()) == len(FREE)
  assert all(float(x.split()[1]) > 0.5 for x in done.stdout.splitlines())


@pytest.mark.process
def test_a_changed_byte_is_found_and_so_is_another_model(trained, tmp_path):
  folder = tmp_path / 'free'
  run('stablehlo', trained, folder)
  names = json.loads((folder / 'manifest.json').read_text())['files']
  assert sorted(names) == [
    'model.py',
    'model.stablehlo',
    'params.safetensors',
    'probe.json',
  ]
  for name in names:
    kept = (folder / name).read_bytes()
    programs.flip(folder / name)
    with pytest.raises(ValueError) as caught:
      loader.load(folder)
    assert str(caught.value) == (
      f'{folder}: {name}: its sha256 differs from the manifest: copy it again'
    )
    (folder / name).write_bytes(kept)

  def checked():
    done = subprocess.run(
      [sys.executable, '-I', str(folder / 'model.py')],
      capture_output=True,
      text=True,
    )
    return done.returncode, done.stdout + done.stderr

  code, said = checked()
  assert code == 0, said
  report = json.loads((folder / 'report.json').read_text())
  loss = report['probe']['original_nats']
  assert said.startswith(f'loss {loss:.6g} nats, ')
  path = folder / 'params.safetensors'
  programs.flip(path)
  assert checked() == (
    4,
    f'error: {folder}: params.safetensors: its sha256 differs from the '
    'manifest: copy it again\n',
  )
  # Whoever writes other parameters and their sha256 is found by the probe.
  programs.flip(path)
  found = safetensors.numpy.load_file(path)
  found['layers_0/mlp/up'] = -found['layers_0/mlp/up']
  safetensors.numpy.save_file(found, path)
  content = json.loads((folder / 'manifest.json').read_text())
  content['files'][path.name]['sha256'] = hashlib.sha256(
    path.read_bytes()
  ).hexdigest()
  (folder / 'manifest.json').write_text(json.dumps(content))
  code, said = checked()
  assert code == 9 and said.startswith('loss ')


def test_what_goes_wrong_on_the_way_to_others_is_refused(
  trained, tmp_path, monkeypatch
):
  right = transfer.save

  def turned(*args):
    theirs, found = right(*args)
    name = 'transformer.h.0.mlp.c_fc.weight'
    return theirs, found | {name: -found[name]}

  monkeypatch.setattr(transfer, 'save', turned)
  with pytest.raises(export_check.Worse, match='change it less'):
    run('huggingface', trained, tmp_path / 'hf')
  assert [x.name for x in (tmp_path / 'hf').iterdir()] == ['report.json']
  monkeypatch.setattr(transfer, 'save', right)
  report = run('huggingface', trained, tmp_path / 'hf')
  assert report['probe']['largest_nats'] < 1e-5
  assert (tmp_path / 'hf' / 'model.safetensors').is_file()


def shapes(name):
  """The parameters of a model of the laws, not computed."""
  model = laws_test.build(name)
  return tree.shapes(model.parameters(laws_test.packed(name)))


def test_every_matrix_of_every_model_is_known():
  """A new model's matrices must not be left out in silence."""
  rest = (
    r'(positions|token_types|relative)(/table)?$|router$|_bias$|/bias$'
    r'|/conv$'  # it multiplies each channel by itself
  )
  for name in laws_test.names('gradients'):
    flat = dict(tree.paths(shapes(name)))
    table = laws_test.build(name).matrices
    known = compress.matrices(flat, table, compress.ALL)
    for path, x in flat.items():
      expected = x.ndim > 1 and not re.search(rest, path)
      assert (path in known) == expected, (name, path)


@pytest.mark.slow
def test_stacked_blocks_come_out_as_single_ones():
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32),
    shapes('mixtral'),
  )
  table = laws_test.build('mixtral').matrices

  def stacked_of(params):
    stacked = laws_test.stacked('mixtral', params)
    return jax.tree.map(np.asarray, stacked)

  stacked = stacked_of(params)
  one, scales = compress.int8(params, table)
  many, more = compress.int8(stacked, table)
  jax.tree.map(np.testing.assert_array_equal, stacked_of(one), many)
  for path, scale in more.items():
    if path.startswith('layers/'):
      parts = [scales[path.replace('layers/0', f'layers_{n}')] for n in (0, 1)]
      np.testing.assert_array_equal(scale, np.stack(parts))
  for scope in compress.SCOPES:
    thin = functools.partial(
      compress.prune, table=table, sparsity=0.7, scope=scope
    )
    found = thin(params)
    assert compress.sparsity(found, table) == pytest.approx(0.7, abs=1e-3)
    jax.tree.map(
      np.testing.assert_array_equal, stacked_of(found), thin(stacked)
    )
    np.testing.assert_array_equal(
      found['embed']['table'], params['embed']['table']
    )
    for (path, x), (_, y) in zip(
      tree.paths(params), tree.paths(found), strict=True
    ):
      assert ((y == x) | (y == 0)).all(), path
      if scope == 'matrix' and path.endswith('up'):
        assert np.abs(x[y == 0]).max() <= np.abs(y[y != 0]).min()
        assert np.mean(y == 0) == pytest.approx(0.7, abs=1e-3)


def test_a_scale_that_is_not_its_matrix_is_damage(small, tmp_path):
  path = 'params/layers_0/mlp/up'
  for scale in (np.ones((9, 1, 64), np.float32), np.ones((3, 64), np.float32)):

    def change(state, scale=scale):
      nested = {'layers_0': {'mlp': {'up': scale}}}
      return state._replace(extra={'scales': nested})

    broken = resaved(small, tmp_path / str(scale.ndim), change)
    with pytest.raises(errors.Damaged) as caught:
      checkpoint.restore_params(broken, 36)
    assert f'does not fit {path}(16, 64): not written by' in str(caught.value)


@pytest.mark.parametrize(
  ('form', 'flags', 'text'),
  [
    (
      'int8',
      ['--paths=atention'],
      'paths=atention: found in no matrix; there are embed/table, '
      'layers_0/attention/k, layers_0/attention/o',
    ),
    (
      'prune',
      ['--paths=('],
      'paths=(: no regular expression: missing ), unterminated subpattern at '
      'position 0',
    ),
    ('prune', ['--sparsity=1'], 'sparsity=1.0 must be above 0 and below 1'),
    (
      'int8',
      ['--budget=-1'],
      '--budget=-1.0: must be a number of nats from 0 on',
    ),
    (
      'int8',
      ['--budget=nan'],
      '--budget=nan: must be a number of nats from 0 on',
    ),
  ],
)
def test_errors_are_one_line(trained, tmp_path, form, flags, text):
  assert refused(form, trained, tmp_path / 'out', *flags) == text


@pytest.mark.slow
def test_other_errors_are_one_line(data, trained, tmp_path):
  out = tmp_path / 'out'
  with pytest.raises(
    errors.Missing, match='no checkpoint here: check the path'
  ):
    run('int8', tmp_path / 'typo', out)
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.Storage) as caught:
    run('int8', trained, tmp_path / 'file' / 'out')
  assert str(caught.value) == (
    f'{tmp_path}/file/out: cannot be made: File exists: give another --output'
  )
  with pytest.raises(errors.Storage, match='cannot be made: Not a directory'):
    run('int8', trained, tmp_path / 'file')
  assert refused(
    'int8', trained, out, f'--text={tmp_path}/none.txt'
  ).startswith('input ')
  elmo = drawn(data, tmp_path / 'elmo', 'elmo')
  assert refused('stablehlo', elmo, out) == (
    'data.objective: its rows are not one text each, read from the left, and '
    'an exported function reads no other: export int8 instead'
  )
  vectors = drawn(data, tmp_path / 'vectors', 'vectors')
  assert refused('stablehlo', vectors, out) == (
    'lm.models.heads:embed: its logits compare the rows of a batch, and an '
    'exported function reads each alone: export int8 or huggingface instead'
  )
  assert run('int8', elmo, out, '--budget=1')['matrices'] == 5
