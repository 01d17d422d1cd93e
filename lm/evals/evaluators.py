"""Builds the evaluators of runs, as their configs and `--config` name them."""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import jax

from lm import checkpoint, config, sharding, types
from lm.checkpoint import manifest
from lm.evals import context as context_lib
from lm.evals import fingerprint, records, results


class Evaluators:
  """Evaluators by name, each built when it is first needed.

  Attributes:
    specs: of each evaluator, by name.
    refused: why an evaluator cannot be used with these runs, by its name.
  """

  def __init__(self, specs: Mapping[str, Any]):
    """Hashes the tasks and the code; builds nothing yet."""
    self.specs = specs
    self.refused: dict[str, config.ConfigError] = {}
    self._hashes: dict[str, tuple[str, str]] = {}
    for name, spec in specs.items():
      try:
        self._hashes[name] = fingerprint.task(spec), fingerprint.code(spec)
      except config.ConfigError as error:
        self.refused[name] = error
    self._run: checkpoint.RestoredRun | None = None
    self._built: dict[str, results.Evaluator] = {}

  def keys(self, digest: str) -> list[records.EvaluationKey]:
    """Lists the evaluations of a checkpoint, given the hash of its content."""
    return [
      records.EvaluationKey(digest, name, *hashes)
      for name, hashes in self._hashes.items()
      if name not in self.refused
    ]

  def load(self, folder: Path, step: int) -> types.Params:
    """Reads a step's parameters onto the devices that this process has."""
    # Seeds of one recipe share their model and tokenizer.
    self._run = self._run or checkpoint.restore_run(folder, step)
    params = checkpoint.restore_params(folder, step)
    where = sharding.shardings(
      params,
      mesh=sharding.make_mesh(),
      axes=self._run.model.axes,
      rules=self._run.config.sharding,
    )
    return jax.device_put(params, where)

  def evaluate(
    self, name: str, params: types.Params
  ) -> results.Result | Mapping[str, float] | None:
    """Evaluates parameters that `load` has read by one evaluator.

    Returns:
      None if the evaluator cannot be used; it is `refused` from now on.
    """
    assert self._run is not None, 'nothing is loaded'
    try:
      if name not in self._built:
        self._built[name] = config.build(
          self.specs[name],
          context=context_lib.Context(
            self._run.model, self._run.tokenizer, sharding.make_mesh()
          ),
        )
      return self._built[name](params)
    except config.ConfigError as error:
      self.refused[name] = error
      return None


class EvaluatorCache:
  """Evaluators of many runs, built again only where the runs differ.

  Attributes:
    added: specs by name that were added to those of each run's config.
  """

  def __init__(
    self, evals: Mapping[str, Any] | None, data: str | Path | None = None
  ):
    """Prepares a cache.

    Args:
      evals: specs by name that are added to those of each run's config.
      data: a folder that replaces the paths of a run's own evaluators, see
        `config.data_folder`; None leaves them.
    """
    self.added, self._data = dict(evals or {}), data
    self._last: tuple[str, Evaluators] | None = None

  def get(self, workdir: Path, about: Mapping[str, Any]) -> Evaluators:
    """Gives the evaluators of a run: its config's own and those added.

    Args:
      workdir: folder of the run, for the error message.
      about: manifest of one of its checkpoints.

    Raises:
      config.ConfigError: there are no evaluators, or one is not there.
    """
    c = config.read_untrusted(about['meta']['config'])
    own = self._own(workdir, c)
    added = config.fill({'evals': self.added}).evals
    specs = config.plain({**own, **added})
    if not specs:
      raise config.ConfigError(f'{workdir}: its config has no evals: add one')
    parts = specs, config.plain(c.model), config.plain(c.sharding)
    key = json.dumps([*parts, about['meta']['tokenizer']], sort_keys=True)
    # Only the last one is kept, to save memory: compiled programs are large,
    # and the seeds of a recipe stand side by side.
    if self._last is None or self._last[0] != key:
      self._last = key, Evaluators(specs)
    return self._last[1]

  def _own(self, workdir: Path, c: config.Config) -> dict[str, Any]:
    """Selects the evaluators of a run's config that may read their data.

    One that may not costs a line if there are others.

    Raises:
      config.ConfigError: none of them may.
    """
    own, named = config.plain({'evals': c.evals}), {}
    if self._data is not None:
      config.data_folder.spread(own, self._data)
      named = config.data_folder.paths(own, self._data)
      own = config.data_folder.replaced(own, named)
    refused = {}
    for name, spec in own['evals'].items():
      try:
        key = f'evals.{name}'
        config.check_files(spec, workdir, tuple(named), key=key)
      except config.ConfigError as error:
        refused[name] = error
    left = {k: v for k, v in own['evals'].items() if k not in refused}
    for error in refused.values():
      if not left and not self.added:
        raise error
      manifest.warn(f'{workdir}: left out: {error}')
    return left
