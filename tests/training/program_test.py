"""A program starts from the same values on every mesh, drawn in parts."""

import jax
import numpy as np
import optax
import pytest

from lm import config, initial, sharding, tree
from lm.training import program
from tests.laws import laws_test as laws

MESHES = ({}, {'fsdp': 8}, {'fsdp': 2, 'tensor': 2})


@pytest.mark.parametrize('name', ['llama', 'mixtral', 'gemma'])
@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_no_mesh_changes_an_initial_value(monkeypatch, name, sizes):
  """A failure means that a run that starts on another mesh is another run."""
  if jax.device_count() < 8:
    pytest.skip('needs eight devices: CPU simulates them')
  drawn: dict[str, list[int]] = {}
  draw = initial.Parameter.draw

  def watched(self, seed, part=None):
    values = draw(self, seed, part)
    drawn.setdefault(self.path, []).append(values.size)
    return values

  model, batch = laws.build(name), laws.packed(name)
  want = model.init(3, batch)
  monkeypatch.setattr(initial.Parameter, 'draw', watched)
  run = program.make(
    model=model,
    tx=optax.sgd(1.0),
    example=batch,
    mesh=sharding.make_mesh(**sizes),
    rules=laws.RULES,
    seed=3,
  )
  assert not drawn, 'values are drawn before the start'
  state = program.start(run)
  for (path, x), (_, y) in zip(
    tree.paths(state.params), tree.paths(want), strict=True
  ):
    np.testing.assert_array_equal(x, y, err_msg=path)
  if sizes:
    whole = {x.path: np.prod(x.shape) for x in parameters(model, batch)}
    assert any(max(sizes) < whole[path] for path, sizes in drawn.items())


def parameters(model, batch):
  """Lists the parameters of a model as if no layer was stacked."""
  for x in jax.tree.leaves(model.parameters(batch)):
    yield from x.parameters if isinstance(x, initial.Stacked) else [x]


@pytest.mark.parametrize(
  'settings', [{'microbatches': 2}, {'numerics': 'deterministic'}], ids=str
)
@pytest.mark.parametrize('wrapped', [False, True])
def test_a_batch_whose_rows_are_compared_is_not_cut(settings, wrapped):
  """A failure means that rows are told to be like rows of another part."""
  body = laws.MODELS['llama'].spec
  spec = {'fn': 'lm.models.heads:embed', 'body': body}
  if wrapped:
    spec = {'fn': 'lm.models.lora:make', 'body': spec, 'paths': ''}
  with pytest.raises(ValueError, match='compares the rows of a batch'):
    program.make(
      model=config.build(spec, vocab=laws.V),
      tx=optax.sgd(1.0),
      example=laws.packed('llama'),
      mesh=sharding.make_mesh(),
      rules=laws.RULES,
      seed=3,
      settings=program.Settings(**settings),
    )
