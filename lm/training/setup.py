"""Setup: the only place where a config becomes a run.

`assemble` builds everything that a config describes and allocates nothing.
Training, plans and tests call it, so that what is planned is what trains.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
import contextlib
from pathlib import Path
import time
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from lm import checkpoint, config, optim, sharding, tree, types
from lm.checkpoint import bucket, mirror
from lm.data import objectives, prefetch, stream, usage
from lm.evals import context as context_lib
from lm.runtime import devices, process_group
from lm.training import (
  certificates,
  compiled,
  privacy,
  run_checks,
  run_record,
)
from lm.training import program as program_lib


class Run(NamedTuple):
  """A run that a config describes, built and placed on a mesh.

  Attributes:
    config: the whole config, defaults of functions included.
    mesh: the devices that compute it.
    tokenizer: of its texts.
    model: with the tokenizer's vocabulary.
    schedule: `step -> learning rate`.
    data: batches by step; without anything to read when `shapes_only`.
    evals: evaluators by name, `parameters -> result`.
    private: how gradients are made private; None when they are not.
    program: the training step, not yet compiled.
    began: `time.monotonic()` when it began to be built.
  """

  config: config.Config
  mesh: jax.sharding.Mesh
  tokenizer: types.Tokenizer
  model: types.Model
  schedule: Callable[[int], Any]
  data: stream.Data
  evals: Mapping[str, Callable[[types.Params], Any]]
  private: privacy.Privacy | None
  program: program_lib.Program
  began: float

  def update(
    self, state: types.TrainState, batch: types.Batch
  ) -> tuple[types.TrainState, dict[str, types.Metric]]:
    """Takes one step; the memory of `state` is taken over."""
    with jax.set_mesh(self.mesh):
      return self.program.update(state, batch)

  def batches(
    self, start: int, stop: int
  ) -> Generator[tuple[int, types.Batch], None, None]:
    """Yields each batch on the devices, with the step that it leads to.

    Batches are read ahead, so close the generator when the loop ends early.
    """
    c = self.config
    with config.user_errors():
      host, hosts = sharding.host(self.mesh, c.batch_size)
      batches = prefetch.batches(
        self.data,
        start,
        stop,
        threads=c.threads,
        prefetch=c.prefetch,
        host=host,
        hosts=hosts,
      )
      for n, batch in batches:
        yield n + 1, sharding.put(batch, self.mesh, host, hosts)

  def due(self, step: int, every: int) -> bool:
    """Says whether what happens `every` so many steps happens after `step`.

    It also happens after the last step; never if `every` is 0.
    """
    return bool(every) and (step == self.config.steps or step % every == 0)

  def spent(self, step: int) -> dict[str, float]:
    """Measures the privacy that `step` private updates have spent."""
    assert self.private is not None and self.data.drawn is not None
    epsilon = privacy.epsilon(
      self.private,
      step,
      records=self.data.drawn[0],
      rows=self.config.batch_size,
    )
    return {'epsilon': epsilon, 'delta': self.private.delta}

  def meta(self, step: int, logged: Mapping[str, Any]) -> dict[str, Any]:
    """Describes the run for the checkpoint of a step, as JSON.

    Args:
      step: of the checkpoint.
      logged: see `MetricsLogger.state`.
    """
    return meta(self.config, self.data, self.tokenizer, step, logged)

  def summary(self) -> str:
    """Tells the size of the model and of the mesh, and what will be read."""
    count = tree.count(self.program.like.params)
    lines = [f'{count:,} parameters, mesh {dict(self.mesh.shape)}']
    if self.data.samples is not None:
      lines += usage.table(usage.before(self.data.samples, self.config.steps))
    return '\n  '.join(lines)


def assemble(
  c: config.Config,
  *,
  devices: Sequence[Any] | None = None,
  tokenizer: types.Tokenizer | None = None,
  position: Mapping[str, Any] | None = None,
  shapes_only: bool = False,
) -> Run:
  """Builds a run from its config.

  Args:
    c: filled, as `fill` returns it.
    devices: of the mesh; None takes all that jax has.
    tokenizer: replaces the config's, for a plan where its file is missing.
    position: where the data goes on, as a checkpoint has it; None starts at
      the beginning.
    shapes_only: reads neither the datasets of a stream nor those of
      evaluators, because shapes are all that a plan needs. Records are read:
      their rows are not known without.

  Raises:
    config.ConfigError: the config cannot be used.
  """
  began = time.monotonic()
  with config.user_errors():
    mesh = sharding.make_mesh(**c.mesh, devices=devices)
  tokenizer, model = checkpoint.tokenizer_and_model(c, tokenizer)
  model = compiled.same(c.model, model, tokenizer.size)
  optimizer = optim.fitted(c.optim, model)
  tx, schedule = config.build(optimizer, steps=c.steps)
  if shapes_only and 'objective' in c.data:
    data = _unread(c, tokenizer)
  else:
    data = open_data(c, tokenizer, position)
  evals = {}
  if c.eval_every and not shapes_only:
    context = context_lib.Context(model, tokenizer, mesh)
    evals = {
      name: config.build(spec, context=context)
      for name, spec in c.evals.items()
    }
  private = None
  if c.privacy is not None:
    private = config.build(c.privacy)
    if data.drawn is not None:
      private = private._replace(expected=data.drawn[1])
  with config.user_errors():
    program = program_lib.make(
      model=model,
      tx=tx,
      example=data.example,
      mesh=mesh,
      rules=c.sharding,
      seed=c.seed,
      settings=program_lib.Settings(
        loss=compiled.same(c.loss, config.build(c.loss)),
        microbatches=c.microbatches,
        numerics=c.numerics,
        logical_shards=c.logical_shards,
        private=private,
        freeze=c.optim.get('freeze', ''),
        norms_every=c.log.norms_every,
      ),
    )
    for example in data.examples:  # rows of every length have to fit the mesh
      sharding.shapes(example, mesh)
  return Run(
    c, mesh, tokenizer, model, schedule, data, evals, private, program, began
  )


def assemble_in(c: config.Config, folder: Path, meta: Mapping[str, Any]) -> Run:
  """Builds the run of a folder, which goes on where its checkpoint stands.

  Args:
    c: filled.
    folder: of the run.
    meta: what the checkpoint says that it goes on from; {} without one.

  Raises:
    config.ConfigError: the config cannot be used, or the tokenizer is not the
      one that the run was trained with.
  """
  path = checkpoint.tokenizer_path(c, folder)
  spec = c.tokenizer if path is None else {**c.tokenizer, 'path': str(path)}
  tokenizer = checkpoint.checked_tokenizer(spec, folder, meta)
  return assemble(c, position=meta.get('data'), tokenizer=tokenizer)


def meta(
  c: config.Config,
  data: stream.Data,
  tokenizer: types.Tokenizer,
  step: int,
  logged: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
  """Describes a run for the checkpoint of a step; see `Run.meta`."""
  return {
    'config': config.to_json(c),
    'data': data.state(step),
    'tokenizer': tokenizer.sha256,
    'machine': devices.machine(),
    **logged,
  }


def prepare(
  c: config.Config, workdir: str | Path, group: process_group.ProcessGroup
) -> config.Config:
  """Fills a config, and checks that it can be trained; see `run_checks`.

  Raises:
    config.ConfigError: it cannot.
  """
  c = fill(c)
  run_checks.trainable(c, workdir, group)
  return c


def fill(c: config.Config) -> config.Config:
  """Adds the defaults of all functions that a config names.

  Raises:
    config.ConfigError: a key that every run has is missing or of a wrong type.
  """
  config.check_complete(c)
  return config.fill(c, given={'data': ('position', 'steps')})


def open_data(
  c: config.Config,
  tokenizer: types.Tokenizer,
  position: Mapping[str, Any] | None = None,
) -> stream.Data:
  """Opens the training data of a config, at a position or at its beginning."""
  bound = {'steps': c.steps} if c.data.get('max_epochs') is not None else {}
  return config.build(
    c.data,
    tokenizer=tokenizer,
    seed=c.seed,
    batch_size=c.batch_size,
    position=position,
    **bound,
  )


def _unread(c: config.Config, tokenizer: types.Tokenizer) -> stream.Data:
  """Describes the batches of a stream without opening its datasets."""

  def refuse(*unused: Any) -> Any:
    raise AssertionError('assembled for its shapes alone: there is no data')

  with config.user_errors():
    objective = config.build(
      c.data.objective, tokenizer=tokenizer, length=c.data.length
    )
    example = objectives.example(objective, c.batch_size)
  return stream.Data(
    batch=refuse,
    state=refuse,
    examples=(example,),
    fingerprint='',
    steps=None,
    text_bytes=None,
    step_tokens=example.tokens.size,
    likelihood=False,
    bytes_per_token=None,
    reading=list,
  )


@contextlib.contextmanager
def local_folder(
  c: config.Config, workdir: str | Path
) -> Iterator[tuple[Path, Callable[[], None]]]:
  """Yields a run's folder on this machine, and a check of its remote copy.

  The check raises what went wrong with the copy in a bucket (`gs://`), which
  is made in the background; without a bucket it does nothing.
  """
  if not bucket.is_address(workdir):
    yield Path(workdir), lambda: None
    return
  with mirror.Mirror(
    workdir, keep=c.keep, keep_every=c.keep_every or None
  ) as copy:
    yield copy.folder, copy.check


def checkpointer(
  c: config.Config, folder: Path, group: process_group.ProcessGroup
) -> checkpoint.Checkpointer:
  """Makes the writer of a run's checkpoints, which keeps what `c` says."""
  return checkpoint.Checkpointer(
    folder,
    keep=c.keep,
    keep_every=c.keep_every or None,
    group=group,
    grace_seconds=c.grace_seconds,
  )


def files(
  c: config.Config, folder: Path, source: Path | None, meta: Mapping[str, Any]
) -> dict[str, bytes]:
  """Makes the files that say in a run's folder what the run is.

  Args:
    c: of the run.
    folder: of the run.
    source: folder of the run that it starts from now, see `starting.find`.
    meta: what the checkpoint says that it goes on from; {} without one.

  Raises:
    config.ConfigError: a certificate of its data is damaged.
  """
  return {
    'config.json': config.to_json(c).encode() + b'\n',
    **certificates.collect(c, folder, source, resumes=bool(meta)),
  }


def store(
  files: Mapping[str, bytes],
  checkpointer: checkpoint.Checkpointer,
  c: config.Config,
  data: Mapping[str, Any],
  asked: config.Asked | None,
) -> None:
  """Stores `files` and the record of a run, once nothing refuses it any more.

  See `run_record.collect` for the other arguments.
  """
  record = run_record.collect(c, checkpointer.workdir, data, asked)
  for name, content in {**files, **record}.items():
    checkpointer.store(name, content)
