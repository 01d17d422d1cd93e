"""One assembly: what is planned is what trains."""

import jax
import pytest

from lm import config, plan, train, types
from lm.data import objectives
from lm.planning import cost, topology
from lm.runtime import signals
from lm.training import program as program_lib
from lm.training import setup
from tests import programs
from tests.training import privacy_test


class Assembled(Exception):
  """Ends a program as soon as its arguments are known."""


def plain(data, folder):
  del folder
  return programs.on_eight(data)


def private(data, folder):
  del data
  return privacy_test.config_of(folder)


def deterministic(data, folder):
  del folder
  return programs.make(
    data, numerics='deterministic', batch_size=8, logical_shards=8
  )


def lora(data, folder):
  del folder
  c = programs.on_eight(data, microbatches=2).unlock()
  c.model = {'fn': 'lm.models.lora:make', 'body': c.model.to_dict()}
  c.optim.freeze = '^lora/.*/a$'
  return c.lock()


def handed(monkeypatch, call):
  """Returns what a call hands to the program of the step."""
  caught = []

  def program(**arguments):
    caught.append(arguments)
    raise Assembled

  with monkeypatch.context() as patch:
    patch.setattr(program_lib, 'make', program)
    with pytest.raises(Assembled):
      call()
  (arguments,) = caught
  return arguments


def shapes(tree):
  return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)


@pytest.mark.parametrize('make', [plain, private, deterministic, lora])
def test_plan_and_train_hand_the_same_arguments_to_the_program(
  data, tmp_path, monkeypatch, make
):
  c = make(data, tmp_path)
  trained = handed(monkeypatch, lambda: train.train(c, tmp_path / 'run'))
  machine = topology.Target('cpu', None, jax.devices(), 1 << 40)
  planned = handed(monkeypatch, lambda: plan.plan(c, machine))
  assert planned.keys() == trained.keys()
  for name in ('mesh', 'rules', 'seed'):
    assert planned[name] == trained[name], name
  assert shapes(planned['example']) == shapes(trained['example'])
  # A loss and an optimizer are functions: those of a program are compared as
  # the text that they are compiled to.
  same = trained['settings']._replace(loss=planned['settings'].loss)
  assert planned['settings'] == same
  assert (same.private is not None) == (make is private)
  assert (same.numerics == 'deterministic') == (make is deterministic)
  assert bool(same.freeze) == (make is lora)
  texts = [
    program_lib.lower(program_lib.make(**arguments)).as_text()
    for arguments in (trained, planned)
  ]
  assert texts[0] == texts[1]


def test_a_private_run_is_planned_with_its_private_step(tmp_path):
  c = privacy_test.config_of(tmp_path)
  machine = topology.Target('cpu', None, jax.devices()[:1], 1 << 40)
  run = cost.assemble(setup.fill(c), machine)
  assert run.private is not None and run.private.expected == c.data.expected
  with c.unlocked():
    c.privacy = None
  plain_run = cost.assemble(setup.fill(c), machine)
  texts = [program_lib.lower(x.program).as_text() for x in (run, plain_run)]
  assert texts[0] != texts[1]


def test_a_plan_reads_no_data(data):
  c = programs.on_eight(data)
  with c.unlocked():
    c.data.sources.train.path = 'nowhere'
    c.evals.valid.path = 'nowhere'
    c.eval_every = 1
  filled = setup.fill(c.lock())
  run = setup.assemble(filled, shapes_only=True)
  assert isinstance(run.data.example, types.Batch)
  assert run.data.example.tokens.shape == (c.batch_size, c.data.length)
  with pytest.raises(AssertionError, match='there is no data'):
    run.data.batch(0)
  with pytest.raises(config.ConfigError, match='nowhere'):
    setup.assemble(filled)


def test_a_plan_sees_the_rows_of_the_stream(data):
  c = setup.fill(programs.on_eight(data, data__lengths=((0, 4), (6, 16))))
  planned = setup.assemble(c, shapes_only=True).data.example
  assert shapes(planned) == shapes(setup.assemble(c).data.example)
  objective = config.build(
    c.data.objective, tokenizer=config.build(c.tokenizer), length=c.data.length
  )
  assert shapes(planned) == shapes(objectives.example(objective, c.batch_size))


def test_what_happens_every_so_many_steps_happens_after_the_last_one(data):
  run = setup.assemble(
    setup.fill(programs.on_eight(data, steps=10)), shapes_only=True
  )
  assert [n for n in range(1, 11) if run.due(n, 4)] == [4, 8, 10]
  assert not any(run.due(n, 0) for n in range(1, 11))


def test_a_run_keeps_to_the_seconds_that_its_scheduler_grants(
  data, tmp_path, monkeypatch
):
  granted = []

  class Stop(signals.Stop):
    def __init__(self, deadline_seconds):
      granted.append(deadline_seconds)
      super().__init__(deadline_seconds)

  monkeypatch.setattr(signals, 'Stop', Stop)
  c = programs.on_eight(data, steps=5, grace_seconds=115)
  train.train(c, tmp_path / 'run')
  assert granted == [115.0]
  with pytest.raises(config.ConfigError, match='grace_seconds: 0 leaves no'):
    train.train(programs.on_eight(data, grace_seconds=0), tmp_path / 'other')
