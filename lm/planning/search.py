"""The search for the layout of a run that is quickest on a machine."""

from collections.abc import Callable, Iterator, Mapping
import itertools
import math
from typing import Any, NamedTuple

import jax

from lm import config, sharding, tree
from lm.checkpoint import host_arrays
from lm.optim import masks
from lm.planning import cost, flops, hardware, topology
from lm.training import setup


class _Probe(NamedTuple):
  """Measures of a run on one device, for the rough estimate.

  Attributes:
    state: bytes of parameters and optimizer.
    weights: number of parameters.
    work: FLOPs of a step's products.
    kept: bytes of the residuals of a whole batch.
    positions: of a batch.
    width: of the model, or 1.
    depth: of the model, or 1.
    divisors: by mesh axis, the greatest common divisor of the dimensions of
      parameters that the axis cuts; 0 if it cuts none.
  """

  state: int
  weights: int
  work: int
  kept: int
  positions: int
  width: int
  depth: int
  divisors: dict[str, int]


def candidates(
  c: config.Config, machine: topology.Target, vocab: int | None
) -> list[dict[str, Any]]:
  """Lists layouts that might fit, the quickest by a rough estimate first.

  These are meshes over data, fsdp, tensor and expert, times remat, times
  microbatches; whatever else the config sets stays. An axis is tried in the
  sizes that divide all dimensions of parameters that it cuts.

  Args:
    c: filled.
    machine: with a data sheet of its chip.
    vocab: see `cost.assemble`.

  Returns:
    For each layout the keys of the config with their values.
  """
  assert machine.chip is not None
  where, inner = config.innermost(c.model)
  remats = ('none', 'dots', 'full') if 'remat' in inner else (None,)
  probed = c.copy_and_resolve_references().unlock()
  probed.mesh.update(
    data=1, stage=1, fsdp=1, expert=1, sequence=1, tensor=1, slices=1
  )
  probed.microbatches = 1
  layouts = []
  for remat in remats:
    if remat is not None:
      config.innermost(probed.model)[1].remat = remat
    probe = _probe(probed, machine._replace(devices=machine.devices[:1]), vocab)
    for mesh in _meshes(c, machine, probe.divisors):
      rows = c.batch_size // math.prod(mesh[a] for a in sharding.BATCH)
      for micro in (m for m in _powers(rows) if rows % m == 0):
        if _bytes(probe, mesh, micro) <= machine.memory_bytes:
          seconds = _seconds(probe, mesh, micro, machine)
          change: dict[str, Any] = {f'mesh.{k}': n for k, n in mesh.items()}
          change['microbatches'] = micro
          if remat is not None:
            change[f'{where}.remat'] = remat
          layouts.append((seconds, micro, sorted(change.items())))
  return [dict(change) for *_, change in sorted(layouts)]


def _powers(most: int) -> list[int]:
  return [1 << n for n in range(most.bit_length())]


def _probe(
  c: config.Config, machine: topology.Target, vocab: int | None
) -> _Probe:
  run = cost.assemble(c, machine, vocab)
  like = run.program.like
  plain = cost.assemble(cost.with_kernel(c, 'einsum'), machine, vocab)
  inner = config.innermost(c.model)[1]
  numbers = masks.blocks(like.params).values()
  return _Probe(
    state=host_arrays.nbytes(like),
    weights=tree.count(like.params),
    work=flops.products(
      plain.program.update, plain.program.like, plain.data.example
    ),
    kept=cost.residual_bytes(run),
    positions=run.data.example.targets.size,
    width=inner.get('width', 1),
    depth=max((max(x) + 1 for x in numbers if x), default=1),
    divisors=_divisors(run),
  )


def _divisors(run: setup.Run) -> dict[str, int]:
  """Finds what the size of each mesh axis has to divide."""
  divisors: dict[Any, int] = dict.fromkeys(sharding.AXES, 0)
  where = jax.tree.leaves(run.program.where.params)
  for leaf, place in zip(
    jax.tree.leaves(run.program.like.params), where, strict=True
  ):
    for size, axes in zip(leaf.shape, place.spec, strict=False):
      for axis in (axes,) if isinstance(axes, str) else axes or ():
        divisors[axis] = math.gcd(divisors[axis], size)
  return divisors


def _meshes(
  c: config.Config, machine: topology.Target, divisors: Mapping[str, int]
) -> Iterator[dict[str, int]]:
  """Yields the sizes of data, fsdp, tensor and expert that are possible."""
  chip = machine.chip
  assert chip is not None
  count = len(machine.devices)
  fixed = c.mesh.stage * c.mesh.sequence
  powers = _powers(count)
  for fsdp, tensor, expert in itertools.product(powers, powers, powers):
    sizes = {'fsdp': fsdp, 'tensor': tensor, 'expert': expert}
    data, rest = divmod(count, fixed * math.prod(sizes.values()))
    if rest or data < 1 or data % c.mesh.slices:
      continue
    if c.batch_size % (data * fsdp * expert):
      continue
    if tensor > chip.host:  # it talks in every layer: only within a host
      continue
    # An axis that cuts no parameter would only compute the same twice.
    if all(
      size == 1 or (divisors[axis] and divisors[axis] % size == 0)
      for axis, size in sizes.items()
    ):
      yield {'data': data, **sizes}


def _bytes(probe: _Probe, mesh: Mapping[str, int], micro: int) -> float:
  """Estimates what a device holds: state, gradients in float32, residuals."""
  fsdp, tensor, expert = mesh['fsdp'], mesh['tensor'], mesh['expert']
  rows = math.prod(mesh[a] for a in sharding.BATCH)
  state = probe.state / (fsdp * tensor * expert)
  gradients = 4 * probe.weights / (fsdp * tensor)
  return state + gradients + probe.kept / rows / tensor / micro


def _seconds(
  probe: _Probe,
  mesh: Mapping[str, int],
  micro: int,
  machine: topology.Target,
) -> float:
  """Estimates a step: products, and what links carry, one after another."""
  chip: hardware.Chip | None = machine.chip
  assert chip is not None
  data, fsdp, tensor = mesh['data'], mesh['fsdp'], mesh['tensor']
  rows = math.prod(mesh[a] for a in sharding.BATCH)
  # Parameters, 2 bytes each: gathered for the forward and the backward pass,
  # and their gradients scattered.
  gathered = 2 * 3 * probe.weights / tensor * (fsdp > 1) * micro
  # Gradients, 4 bytes each: an all-reduce sends twice their size.
  added = 2 * 4 * probe.weights / (fsdp * tensor) * (data > 1)
  # Activations, 2 bytes each: four all-reduces a layer.
  tokens = probe.positions / rows
  exchanged = 8 * 2 * tokens * probe.width * probe.depth * (tensor > 1)
  return (
    probe.work / len(machine.devices) / chip.flops
    + (gathered + added + exchanged) / chip.link_speed
  )


def search(
  c: config.Config,
  machine: topology.Target,
  *,
  tries: int = 4,
  say: Callable[[str], None] = print,
  **settings: Any,
) -> dict[str, Any]:
  """Compiles the most promising layouts and returns the quickest that fits.

  Args:
    c: a config, filled or not.
    machine: with a data sheet of its chip.
    tries: how many to compile.
    say: gets a line about each.
    **settings: of `cost.estimate`.

  Returns:
    The report of the quickest, with `overrides`: flags that make the config so.

  Raises:
    config.ConfigError: no layout is possible, or the config cannot be used.
  """
  if machine.chip is None:
    raise config.ConfigError(
      f'target {machine.name}: has no table of speeds to search by: name a TPU '
      'or GPU'
    )
  best = None
  layouts = candidates(setup.fill(c), machine, settings.get('vocab'))
  for change in layouts[:tries]:
    changed = _changed(c, change)
    before = config.flatten(c)
    flags = ' '.join(
      f'--config.{key}={value}'
      for key, value in change.items()
      if before.get(key) != value
    )
    report = cost.estimate(changed, machine, **settings)
    report['overrides'] = flags
    seconds = report.get('seconds', {}).get('expected')
    fits = f'{seconds:.4f} s a step' if report['fits'] else 'does not fit'
    say(f'{flags or "as it is"}: {fits}')
    if best is None or _rank(report) < _rank(best):
      best = report
  if best is None:
    raise config.ConfigError(
      f'target {machine.name}: no layout of data, fsdp, tensor, expert and '
      'microbatches can hold the model: take more devices'
    )
  return best


def _changed(c: config.Config, change: Mapping[str, Any]) -> config.Config:
  """Returns a copy of a config with other values of some keys."""
  changed = c.copy_and_resolve_references().unlock()
  for key, value in change.items():
    *parents, name = key.split('.')
    place = changed
    for parent in parents:
      place = place[parent]
    place[name] = value
  return changed.lock()


def _rank(report: Mapping[str, Any]) -> tuple[bool, float]:
  return not report['fits'], report.get('seconds', {}).get('expected', 0.0)
