"""The law of deterministic numerics: devices change no bit of any model.

A failure means that a run which moves to another number of devices goes on with
other numbers, although its config says `numerics='deterministic'`.
"""

import copy
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from lm import config
from tests.laws import laws_test as laws
from tests.laws import losses_test
from tests.training import deterministic_test

if jax.device_count() < 8:
  pytest.skip(
    'needs eight devices: CPU simulates them', allow_module_level=True
  )

# One device stands apart: it is compiled for without partitioning.
MESHES: tuple[tuple[int, dict[str, Any]], ...] = (
  (2, {'fsdp': 2}),
  (8, {'data': 2, 'fsdp': 2, 'expert': 2}),
)
# What stands around another model, each around a mixture of experts.
AROUND = ('classify', 'distill-experts', 'lora', 'preference', 'sides')


def weighted(name, seed):
  """Packs documents whose tokens have weights between 0 and 1."""
  batch = laws.packed(name, seed)
  drawn = np.random.default_rng(seed).random(batch.weights.shape)
  return batch._replace(weights=batch.weights * drawn.astype(np.float32))


def check(model, batch):
  run = partial(
    deterministic_test.bits,
    model=model,
    batch=batch,
    rules=laws.RULES,
    steps=2,
  )
  one = run(1)
  for devices, mesh in MESHES:
    deterministic_test.check_same(run(devices, **mesh), one)


@pytest.mark.slow
@laws.lacking('gradients')
def test_devices_change_no_bit_of_a_family(name):
  check(laws.build(name, dropout=0.1), partial(weighted, name))


@pytest.mark.slow
@pytest.mark.parametrize('name', AROUND)
def test_devices_change_no_bit_of_what_is_around_a_model(name):
  case = losses_test.CASES[name]
  spec = copy.deepcopy(case.spec)
  config.innermost(spec)[1]['dropout'] = 0.1
  check(config.build(spec, vocab=laws.V), lambda seed: losses_test.batch(case))
