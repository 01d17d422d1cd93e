"""Plans: what a run needs, against what it has when it runs."""

import json
import subprocess
import sys

import jax
import pytest

from configs import base
from lm import config, plan
from lm.planning import cost, hardware, search, topology
from lm.planning import report as report_lib
from lm.training import program as program_lib
from lm.training import setup
from tests import programs
from tests.data.tasks_test import write_texts

CPU = topology.target('cpu:8') if jax.device_count() >= 8 else None
needs_eight = pytest.mark.skipif(CPU is None, reason='needs eight devices')
TINY = f'{programs.ROOT}/configs/gpt/tiny.py'


def load(path=TINY, **changes):
  return config.load(path, programs.settings(**changes).items())


@pytest.fixture(scope='module')
def report():
  assert CPU is not None
  c = load(mesh__fsdp=2, mesh__tensor=2, model__depth=2, data__length=64)
  return plan.plan(c, CPU, vocab=512, tokens=1e6)


@pytest.mark.slow
@needs_eight
def test_arguments_are_what_the_sharding_table_says(report):
  memory = report['memory_bytes']
  held = memory['params'] + memory['optimizer'] + memory['batch']
  # Scalars: XLA gives each of them a line of the cache. The schedule's count is
  # never read, as the step stands in its place.
  assert held - 4 <= memory['arguments'] <= held + 4096
  assert report['mesh'] == {'data': 2, 'fsdp': 2, 'tensor': 2}
  # Moments beside parameters; both are cut in four but for the vectors.
  assert memory['params'] < 1.2 * report['parameters'] * 4 / 4


@needs_eight
def test_parts_of_memory_add_up(report):
  memory = report['memory_bytes']
  parts = memory['arguments'] + sum(
    memory[name] for name in ('gradients', 'activations', 'temp')
  )
  assert parts == memory['total'] <= memory['limit']
  assert report['fits']
  assert min(memory.values()) >= 0


@needs_eight
def test_every_axis_that_cuts_something_talks(report):
  axes = {axis for item in report['collectives'] for axis in item['axes']}
  assert axes == {'data', 'fsdp', 'tensor'}
  assert report['hardware_flops'] >= report['model_flops'] > 0
  assert 'seconds' not in report  # of a CPU there is no table
  shown = report_lib.show(report)
  assert 'FITS: ' in shown and 'all-reduce over ' in shown


@pytest.mark.slow
@needs_eight
def test_more_than_there_is_does_not_fit(report):
  assert CPU is not None
  small = CPU._replace(memory_bytes=report['memory_bytes']['total'] - 1)
  c = load(mesh__fsdp=2, mesh__tensor=2, model__depth=2, data__length=64)
  assert not plan.plan(c, small, vocab=512)['fits']


def test_a_price_and_a_chip_make_a_bill():
  chip = hardware.find('TPU v5')
  report = {
    'devices': 8,
    'tokens_per_step': 1000,
    'checkpoint_bytes': 4_000_000,
    'hardware_flops': 8 * chip.flops,  # a second of products
    'model_flops': 4 * chip.flops,
    'memory_traffic_bytes': chip.memory_speed / 2,
    'collectives': [
      {'axes': ('fsdp',), 'bytes': chip.link_speed / 4},
      {'axes': ('data',), 'bytes': chip.network_speed / 4},
    ],
  }
  mesh = jax.sharding.AbstractMesh((2, 4), ('data', 'fsdp'))
  report |= cost.times(report, chip, mesh, slices=2)
  assert report['seconds'] == {
    'products': 1.0,
    'memory': 0.5,
    'links': 0.5,
    'roofline': 1.0,
    'expected': 1.5,
  }
  slow = chip._replace(reached=0.4)
  times = cost.times(report, slow, mesh, slices=2)['seconds']
  assert times == {**report['seconds'], 'expected': 3.0}
  assert report['mfu'] == pytest.approx(1 / 3)
  assert report['mfu_roofline'] == pytest.approx(0.5)
  assert report['tokens_per_day'] == pytest.approx(1000 * 86_400 / 1.5)
  prices = {
    'dollars_per_device_hour': {'v5p': 2.0},
    'storage_bytes_per_second_per_host': 1e6,
  }
  bill = cost.bill(report, chip, 2.4e6, prices)
  assert bill['hours'] == pytest.approx(1.0)
  assert bill['dollars'] == pytest.approx(16.0)
  assert bill['checkpoint_seconds'] == pytest.approx(2.0)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5q:2x2', r"target 'v5q:2x2': not a chip and a shape.*did you mean"),
    ('v5p', r"target 'v5p': not a chip and a shape"),
    ('cpu:4096', r'jax has \d+ CPU devices already: set JAX_NUM_CPU_DEVICES'),
  ],
)
def test_an_unknown_machine_is_one_line(name, message):
  with pytest.raises(config.ConfigError, match=message):
    topology.target(name)


@pytest.mark.slow
@needs_eight
def test_tuning_is_planned_and_a_frozen_body_costs_less(tmp_path):
  assert CPU is not None
  texts = write_texts(tmp_path / 'texts', 20, 0)
  records = {'fn': 'lm.data.finetuning.readers:texts', 'path': texts}
  c = load().unlock()
  c.optim, body = base.get_config().optim, c.model.to_dict()
  head = {'fn': 'lm.models.heads:classify', 'classes': 2, 'body': body}
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': records,
    'form': {
      'fn': 'lm.data.finetuning.forms:classify',
      'classes': 2,
      'labels': records,
    },
    'length': 32,
  }
  found = []
  for model in (head, {'fn': 'lm.models.lora:make', 'body': head}):
    c.model = model
    found.append(plan.plan(c, CPU, vocab=300))
  whole, lora = found
  assert whole['tokens_per_step'] == c.batch_size * 32
  assert lora['parameters'] > whole['parameters']
  memory = [report['memory_bytes'] for report in found]
  assert memory[1]['optimizer'] < 0.2 * memory[0]['optimizer']
  assert lora['hardware_flops'] < 0.8 * whole['hardware_flops']


@needs_eight
def test_what_cannot_be_planned_is_one_line():
  assert CPU is not None
  with pytest.raises(config.ConfigError, match=r'tensor=3 needs 6 devices and'):
    plan.plan(load(mesh__tensor=3), CPU, vocab=512)
  with pytest.raises(config.ConfigError, match=r'or give --vocab=N'):
    plan.plan(load(tokenizer__path='"nowhere.model"'), CPU)
  with pytest.raises(config.ConfigError, match=r'counts and has no step to pl'):
    plan.plan(load(f'{programs.ROOT}/configs/ngram/wikitext2.py'), CPU)
  with pytest.raises(config.ConfigError, match='no table of speeds to search'):
    plan.search(load(), CPU, vocab=512)


@needs_eight
def test_a_library_that_is_missing_here_is_one_line(monkeypatch):
  def lower(run):
    raise RuntimeError('cuDNN not found.')

  monkeypatch.setattr(program_lib, 'lower', lower)
  assert CPU is not None
  message = 'target cpu:8: cuDNN not found. pip install '
  with pytest.raises(config.ConfigError, match=message):
    plan.plan(load(), CPU, vocab=512)


def run(*words):
  return subprocess.run(
    [sys.executable, '-m', 'lm.plan', f'--config={TINY}', *words],
    cwd=programs.ROOT,
    capture_output=True,
    text=True,
    timeout=programs.PATIENCE_SECONDS,
  )


@pytest.mark.parametrize(
  ('name', 'want'),
  [
    ('v5litepod-8', 'v5e:2x4'),
    ('v5e-8', 'v5e:2x4'),
    ('v5e:2x4', 'v5e:2x4'),
    ('v5p-512', 'v5p:4x8x8'),
    ('v5p:8x8x4', 'v5p:8x8x4'),  # any shape that the compiler knows
  ],
)
def test_slices_have_the_names_that_launchers_take(name, want, monkeypatch):
  made = []
  monkeypatch.setattr(topology, '_tpu', lambda *what: made.append(what) or [])
  target = topology.target(name)
  assert target.name == made[0][0] == want
  assert target.chip is made[0][1]


def test_every_gpu_has_its_own_card():
  gpus = {x.name for x in hardware.CHIPS if 'TPU' not in x.kind}
  assert gpus == topology._CARDS.keys() >= {'a100-80gb', 'l4', 't4', 'rtx4090'}


@pytest.mark.process
def test_the_program_plans_its_stated_target():
  done = run('--json', '--vocab=512', '--config.model.depth=1')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found['target'] == 'cpu:1' and found['devices'] == 1
  assert found['collectives'] == [] and found['fits']
  wrong = run('--target=v5p')
  assert wrong.returncode == 2
  assert wrong.stderr.startswith("error: target 'v5p': not a chip")
  assert len(wrong.stderr.splitlines()) == 1


@pytest.fixture(scope='module')
def tpu(libtpu):
  """Four chips of v5e."""
  return topology.target('v5e:2x2')


LARGE = {
  'mesh__fsdp': 4,
  'batch_size': 32,
}


@pytest.mark.slow
def test_a_model_too_large_for_a_pod_is_refused_with_its_bytes(tpu):
  c = load(f'{programs.ROOT}/configs/gpt/llama_1b.py', **LARGE)
  report = plan.plan(c, tpu, vocab=128_256)
  assert not report['fits']
  memory = report['memory_bytes']
  # Golden: this model keeps 16 GB of state, whatever else a step takes.
  assert memory['params'] + memory['optimizer'] == pytest.approx(
    3.7e9, rel=0.01
  )
  assert memory['total'] > memory['limit'] == 16 * 2**30
  assert 'DOES NOT FIT' in report_lib.show(report)


SMALL = {
  'model__width': 256,
  'model__blocks__main__mixer__heads': 2,
  'model__depth': 2,
  'model__scan': True,
  'data__length': 256,
  'batch_size': 8,
}


def layouts(c, vocab=512):
  """Lists the layouts for four chips of v5e; nothing is compiled for them."""
  chip = hardware.find('TPU v5 lite')
  machine = topology.Target('v5e:2x2', chip, jax.devices()[:4], 1 << 34)
  return search.candidates(setup.fill(c), machine, vocab)


@pytest.mark.slow
@needs_eight
def test_a_mesh_axis_divides_what_it_cuts():
  c = load(**SMALL).unlock()
  found = layouts(c)
  assert {change['mesh.tensor'] for change in found} == {1, 2}  # two heads
  assert {change['mesh.fsdp'] for change in found} == {1, 2, 4}
  assert {change['mesh.expert'] for change in found} == {1}  # there are none
  assert {change['mesh.tensor'] for change in layouts(c, 511)} == {1}
  c.model.blocks.main.mlp = base.experts(count=2)
  assert {change['mesh.expert'] for change in layouts(c)} == {1, 2}


@pytest.mark.slow
def test_a_pod_is_searched_for_the_quickest_layout_that_fits(tpu):
  said = []
  best = plan.search(
    load(**SMALL),
    tpu,
    tries=2,
    say=said.append,
    vocab=512,
    tokens=1e9,
    prices={'dollars_per_device_hour': {'v5e': 1.2}},
  )
  assert best['fits'] and len(said) == 2
  assert best['dollars'] == pytest.approx(best['hours'] * 4 * 1.2)
  assert 0 < best['mfu'] <= best['mfu_roofline'] <= 1
  # The flags make the config so.
  flags = [
    word.removeprefix('--config.').split('=')
    for word in best['overrides'].split()
  ]
  pasted = config.load(TINY, [*programs.settings(**SMALL).items(), *flags])
  mesh = {k: n for k, n in pasted.mesh.items() if n and n > 1}
  assert mesh | {'data': 0} == best['mesh'] | {'data': 0}
  assert pasted.microbatches == best['microbatches']
  memory = best['memory_bytes']
  held = memory['params'] + memory['optimizer'] + memory['batch']
  # TPUs pad the last two dimensions to tiles of 8 x 128.
  assert held <= memory['arguments'] <= 1.05 * held + 1e6
