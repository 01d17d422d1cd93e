"""Workloads of `lm`: training, generation, the loader, checkpoints."""

from collections.abc import Callable, Mapping
import contextlib
from functools import partial
from importlib import metadata
from pathlib import Path
import platform
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from lm import checkpoint, config, sharding, types
from lm.data import objectives, prefetch, stream, writer
from lm.data.tokenizers import auto
from lm.inference import generate
from lm.models import linen
from lm.optim import optimizers
from lm.planning import flops
from lm.runtime import memory
from lm.training import program as program_lib
from lm.training import step
from tools.bench import protocol
from tools.bench import spec as specs

_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def probe() -> protocol.Workload:
  """Describes this machine; the step of this workload does nothing."""
  kind = jax.devices()[0].device_kind
  try:
    peak, unknown = flops.peak(kind), ''
  except ValueError as error:
    peak, unknown = None, str(error)
  facts = {
    'platform': jax.default_backend(),
    'device': kind,
    'devices': jax.device_count(),
    'peak': peak,
    'unknown': unknown,
    'versions': {
      'python': platform.python_version(),
      **{name: metadata.version(name) for name in _PACKAGES},
    },
  }
  return protocol.Workload(dict, 0, facts)


def training(spec: list[Any], precision: str) -> protocol.Workload:
  """Trains as `lm.train` does, on random tokens.

  Args:
    spec: the fields of a `specs.Spec`.
    precision: 'fp32' or 'bf16'.
  """
  s = specs.Spec(*spec)
  model = _model(s, precision, s.length)
  tx, _ = optimizers.make(steps=10_000, peak=1e-3, warmup=100)
  batch = _random_batch(s)
  mesh = sharding.make_mesh()
  run = program_lib.make(
    model=model,
    tx=tx,
    example=batch,
    mesh=mesh,
    rules=base.get_config().sharding.to_dict(),
    seed=0,
  )
  with program_lib.compiling(run):
    state = program_lib.start(run)
  steps = 1 if jax.default_backend() == 'cpu' else specs.AHEAD

  def advance() -> Mapping[str, float]:
    nonlocal state
    metrics = {}
    with jax.set_mesh(mesh):
      for _ in range(steps):
        state, metrics = run.update(state, sharding.put(batch, mesh))
    jax.block_until_ready((state, metrics))
    loss = metrics['loss_nats']
    return {'loss_nats': float(loss.total) / float(loss.weight)}

  parameters = flops.multiplied(run.like.params)
  facts = {
    'devices': jax.device_count(),
    'parameters': sum(x.size for x in jax.tree.leaves(run.like.params)),
    'flops_per_token': flops.train_flops_per_token(
      parameters, s.depth, s.length, s.width
    ),
  }
  return protocol.Workload(
    advance, s.batch * s.length * steps, facts, matmul_peaks(), _memory
  )


def _memory() -> int | None:
  known = [x.memory_stats() or {} for x in jax.local_devices()]
  return max(x.get('peak_bytes_in_use', 0) for x in known) or None


def generation(spec: list[Any], batch: int, new: int) -> protocol.Workload:
  """Continues prompts of one token by `new` greedy tokens, in fp32."""
  s = specs.Spec(*spec)
  model = _model(s, 'fp32', new + 1)
  prompts = objectives.padded([[3 + n] for n in range(batch)], pad=0)
  params = model.init(0, prompts)
  # No row ends early, since the id that would end it is never drawn.
  draw = partial(
    generate.generate,
    model=model,
    sampler=generate.Sampler(temperature=0),
    length=new,
    stop=s.vocab,
    rng=jax.random.key(0),
  )

  def advance() -> Mapping[str, float]:
    text_BL = np.asarray(draw(params, prompts).tokens)
    assert text_BL.shape == (batch, new) and text_BL.max() < s.vocab
    return {}

  return protocol.Workload(advance, batch * new, {})


def loader(
  threads: int, tokens: int, batch: int, length: int, steps: int
) -> protocol.Workload:
  """Reads `steps` shuffled batches of synthetic documents.

  Args:
    threads: how many threads read ahead; with 0, batches are read when asked
      for.
    tokens: about how many tokens the dataset has.
    batch: B.
    length: L.
    steps: how many batches are timed as one step.
  """
  folder = _folder()
  words = auto.load('bytes')
  rng = np.random.default_rng(0)
  # Web pages have a thousand tokens and a long tail.
  sizes = rng.lognormal(6.5, 1.0, 1 + tokens // 1_100).astype(int) + 1
  text = rng.integers(32, 127, int(sizes.max()), np.uint8).tobytes().decode()
  path = Path(folder.name, 'data')
  writer.write(
    path, (text[:n] for n in sizes), words, shard_tokens=1 + tokens // 4
  )
  data = stream.make(
    {'train': {'path': str(path), 'weight': 1.0}},
    tokenizer=words,
    seed=0,
    batch_size=batch,
    length=length,
  )
  # One pass over all blocks first, since a block is verified on its first use.
  for n in range(-(-int(sizes.sum() + len(sizes)) // (batch * length))):
    data.batch(n)
  batches = prefetch.batches(data, 0, 1 << 40, threads=threads)

  def advance() -> Mapping[str, float]:
    for _ in range(steps):
      next(batches)
    return {}

  def close() -> None:
    batches.close()
    folder.cleanup()

  return protocol.Workload(advance, batch * length * steps, {}, close=close)


def checkpoints(spec: list[Any]) -> protocol.Workload:
  """Saves and restores a training state, and times how long each part takes."""
  s = specs.Spec(*spec)
  model = _model(s, 'fp32', s.length)
  tx, _ = optimizers.make(steps=10_000, peak=1e-3)
  params = model.init(0, linen.example_batch(1, s.length))
  state = jax.jit(partial(step.init_state, tx=tx))(params)
  jax.block_until_ready(state)
  folder = _folder()
  like = jax.eval_shape(lambda: state)
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  number = 0

  def advance() -> Mapping[str, float]:
    nonlocal number
    number += 1
    start = time.perf_counter()
    saver.save(number, state, {'data': {}})
    blocked = time.perf_counter()
    saver.wait()
    saved = time.perf_counter()
    jax.block_until_ready(checkpoint.restore(folder.name, like, where)[0])
    return {
      'blocking_seconds': blocked - start,
      'save_seconds': saved - start,
      'restore_seconds': time.perf_counter() - saved,
    }

  stack = contextlib.ExitStack()
  stack.callback(folder.cleanup)
  saver = stack.enter_context(checkpoint.Checkpointer(folder.name, keep=2))
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  return protocol.Workload(advance, 0, {'bytes': size}, close=stack.close)


def matmul_peaks(size: int | None = None) -> Callable[[], dict[str, float]]:
  """Prepares a measurement of matrix products on one device.

  The products run in the precisions of the model: fp32 in the default
  precision, bf16 with float32 sums (on CPU, with float32 results).

  Args:
    size: rows and columns of the matrices; None chooses a size that is large
      enough for this platform.

  Returns:
    A function `() -> {precision: FLOP/s}`.
  """
  on_cpu = jax.default_backend() == 'cpu'
  size = size or (2048 if on_cpu else 8192)
  repeats = 4 if on_cpu else 32
  device = jax.devices()[0]

  def chain(a, x, result):
    def multiply(_, x):
      return jnp.matmul(a, x.astype(a.dtype), preferred_element_type=result)

    return jax.lax.fori_loop(0, repeats, multiply, x)

  run = jax.jit(chain, static_argnums=2, donate_argnums=1)

  def measure() -> dict[str, float]:
    peaks = {}
    for precision in specs.PRECISIONS:
      compute_dtype = 'float32' if precision == 'fp32' else 'bfloat16'
      result = 'float32' if on_cpu else compute_dtype
      # The norm is about 1, so that products neither vanish nor overflow.
      a = jax.random.normal(jax.random.key(0), (size, size)) * size**-0.5
      a = jax.device_put(a.astype(compute_dtype), device)
      x = jax.device_put(jnp.ones((size, size), result), device)
      x = jax.block_until_ready(run(a, x, result))
      seconds = []
      for _ in range(3):
        start = time.perf_counter()
        x = jax.block_until_ready(run(a, x, result))
        seconds.append(time.perf_counter() - start)
      peaks[precision] = 2 * size**3 * repeats / min(seconds)
    return peaks

  return measure


def _model(s: specs.Spec, precision: str, length: int) -> types.Model:
  narrow = {'fp32': 'float32', 'bf16': 'bfloat16'}[precision]
  on_cpu = jax.default_backend() == 'cpu'
  spec = base.decoder(
    s.heads,
    length=length,
    width=s.width,
    depth=s.depth,
    # On CPU bfloat16 pays only as what matrix products read.
    dtype='float32' if on_cpu else narrow,
    compute_dtype=narrow,
  )
  spec['blocks']['main']['mlp']['width'] = s.mlp
  return config.build(spec, vocab=s.vocab)


def _random_batch(s: specs.Spec) -> types.Batch:
  ids = np.random.default_rng(0).integers(
    0, s.vocab, (s.batch, s.length + 1), np.int32
  )
  return linen.example_batch(s.batch, s.length)._replace(
    tokens=ids[:, :-1], targets=ids[:, 1:]
  )


def _folder() -> tempfile.TemporaryDirectory:
  # Beside the code and not in /tmp, which may be memory.
  cache = Path(__file__).resolve().parents[2] / '.cache'
  cache.mkdir(exist_ok=True)
  return tempfile.TemporaryDirectory(prefix='bench-', dir=cache)


WORKLOADS = {
  'probe': probe,
  'training': training,
  'generation': generation,
  'loader': loader,
  'checkpoint': checkpoints,
}

if __name__ == '__main__':
  memory.prepare()  # as the programs do
  protocol.serve(WORKLOADS)
