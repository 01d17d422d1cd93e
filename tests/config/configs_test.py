"""Every config builds at full size, and its sharding table fits."""

from functools import partial
import typing

import jax
from jax.sharding import AbstractMesh
import pytest

from lm import config, optim, plan, sharding, tree, types
from lm.data import objectives
from lm.data.tokenizers import utf8_bytes
from lm.planning import report as report_lib
from lm.training import step
from tests import programs

LADDER = '../experiments/2026-11-baseline-ladder/config.py'
# What files that take an argument are loaded with.
ARGUMENTS = {
  LADDER: ('kneser_ney', 'elman', 'decoder,chinese', 't5', 'bert'),
  'bert/bert.py': ('base', 'large'),
  'gpt/gpt2.py': ('small', 'medium', 'large', 'xl'),
  'gpt/transfer.py': ('512',),
  'rnn/wikitext2.py': ('elman', 'lstm', 'gru'),
  't5/t5.py': (
    'small',
    'base',
    'large',
    'v1_1_small',
    'v1_1_base',
    'v1_1_large',
  ),
}
# The vocabularies that they are published with; others are trained here.
VOCAB = {
  'bert/bert.py': 30_522,
  'gpt/gpt2.py': 50_257,
  'gpt/deepseek_moe.py': 102_400,
  'gpt/llama_1b.py': 128_256,
  'gpt/mixtral.py': 32_000,
  't5/t5.py': 32_128,
}
# As published, and as transformers counts them: BERT with its MLM head.
PARAMETERS = {
  'bert/bert.py:base': 109_514_298,
  'bert/bert.py:large': 335_174_458,
  # DeepSeekMoE's, but for a first layer with experts, and a bias in each.
  'gpt/deepseek_moe.py': 16_375_728_128
  + 66 * 3 * 2048 * 1408
  + 2048 * 64
  - 3 * 2048 * 10_944
  + 28 * 64,
  'gpt/gpt2.py:small': 124_439_808,
  'gpt/gpt2.py:medium': 354_823_168,
  'gpt/gpt2.py:large': 774_030_080,
  'gpt/gpt2.py:xl': 1_557_611_200,
  'gpt/mixtral.py': 46_702_792_704,
  't5/t5.py:small': 60_506_624,
  't5/t5.py:base': 222_903_552,
  't5/t5.py:large': 737_668_096,
  't5/t5.py:v1_1_small': 76_961_152,
  't5/t5.py:v1_1_base': 247_577_856,
  't5/t5.py:v1_1_large': 783_150_080,
}
FOLDER = programs.ROOT / 'configs'
FILES = [
  *sorted(
    str(path.relative_to(FOLDER))
    for path in FOLDER.rglob('*.py')
    # Those of the data factory are no runs, see tests/corpus/configs_test.py.
    if path.parent.name != 'data' and 'def get_config(' in path.read_text()
  ),
  LADDER,
]
NAMES = [
  f'{file}:{word}' if word else file
  for file in FILES
  for word in ARGUMENTS.get(file, ('',))
]


def load(name: str) -> config.Config:
  c = config.load(f'{FOLDER}/{name}')
  return config.fill(c, given={'data': ('position', 'steps')})


def shapes(
  c: config.Config, vocab: int
) -> tuple[types.Model, types.TrainState]:
  """Builds a run's state as shapes; nothing is allocated."""
  model = config.build(c.model, vocab=vocab)
  tx, _ = config.build(optim.fitted(c.optim, model), steps=c.steps)
  words = utf8_bytes.make(c.tokenizer.reserved)._replace(size=vocab)
  objective = config.build(
    c.data.objective, tokenizer=words, length=c.data.length
  )
  batch = objectives.example(objective, c.batch_size)
  shapes = tree.shapes(model.parameters(batch))
  return model, jax.eval_shape(partial(step.init_state, tx=tx), shapes)


def test_every_file_is_here():
  assert {'base.py', *ARGUMENTS, *VOCAB} <= set(FILES)


@pytest.mark.parametrize('name', NAMES)
def test_a_config_is_whole(name):
  c = load(name)
  config.check(c)
  for key in ('seed', 'steps', 'batch_size', 'save_every'):
    assert type(c[key]) is int
  assert c.is_locked
  assert config.diff(config.from_json(config.to_json(c)), c) == []
  # What a run needs beside the model fits it.
  assert c.batch_size % c.microbatches == 0
  if 'length' in c.model:
    assert c.data.length <= c.model.length
    for spec in c.evals.values():
      assert spec.length <= c.model.length
  config.build(c.loss)


@pytest.mark.parametrize('name', NAMES)
def test_a_config_builds_at_full_size(name):
  c = load(name)
  if 'objective' not in c.data or c.fit is not None:
    # Its data are read, or its size is that of what is counted.
    config.build(c.model, vocab=8192)
    assert c.fit is None or callable(config.resolve(c.fit.fn))
    return
  file = name.partition(':')[0]
  vocab = VOCAB.get(file, 8192)
  model, state = shapes(c, vocab)
  if name in PARAMETERS:
    assert tree.count(state.params) == PARAMETERS[name]
  if file == 'gpt/llama_1b.py':
    assert 1.2e9 < tree.count(state.params) < 1.3e9
  # Every array has a row; only sizes that no two devices can share are moved:
  # an odd vocabulary is padded, and 25 heads are cut in five.
  tensor = 5 if name == 'gpt/gpt2.py:xl' else 2
  if vocab % tensor:
    model, state = shapes(c, vocab + tensor - vocab % tensor)
  mesh = AbstractMesh(
    (2, 1, 2, 1, 1, tensor), sharding.AXES
  )  # devices that are not here
  where = sharding.shardings(
    state,
    mesh=typing.cast(jax.sharding.Mesh, mesh),
    axes=(*optim.AXES, *model.axes),
    rules=c.sharding,
  )
  placed = {
    path: leaf.spec for path, leaf in tree.paths(where) if 'params/' in path
  }
  large = [
    path
    for path, leaf in tree.paths(state)
    if leaf.size >= 1 << 20 and path.startswith('params/')
  ]
  assert large
  for path in large:
    assert any(placed[path]), f'{path} is on every device whole'


# One of each file that is meant for this machine, as it comes; those with a
# `fit` have no step.
PLANNED = [
  name
  for name in FILES
  if name != LADDER
  and load(name).fit is None
  and 'objective' in load(name).data
  and load(name).plan.target.startswith('cpu:')
]


@pytest.mark.slow
@pytest.mark.parametrize('name', PLANNED)
def test_a_config_fits_the_machine_that_it_is_meant_for(name):
  c = load(name)
  report = plan.plan(c, vocab=c.plan.vocab or 8192)
  assert report['fits'], report_lib.show(report)
