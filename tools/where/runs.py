"""Opens a run, as far as its data go."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lm import checkpoint, config, types
from lm.checkpoint import manifest
from lm.corpus import provenance
from lm.data import samples, shards
from lm.training import early_stopping, setup


class Run(NamedTuple):
  """A run, as far as its data go.

  Attributes:
    config: filled.
    tokenizer: of its texts.
    samples: of its newest era.
    likelihood: whether each token of a window is a target once.
    step: of its newest checkpoint; 0 without one.
    last: how many steps it will have taken at its end.
    left_out: (first, stop) of the steps that it left out when it went back.
  """

  config: config.Config
  tokenizer: types.Tokenizer
  samples: samples.Samples
  likelihood: bool
  step: int
  last: int
  left_out: tuple[tuple[int, int], ...]

  def when(self, step: int) -> str:
    """Says whether a step of the run was seen."""
    if step >= self.step:
      return 'will be seen'
    return 'left out by a rollback' if self.leaves_out(step) else 'seen'

  def leaves_out(self, step: int) -> bool:
    """Tells whether the run went back over a step that it had taken."""
    return any(first <= step < stop for first, stop in self.left_out)


def open_run(workdir: Path, build: Path | None, data: Path | None) -> Run:
  """Opens the data of a run.

  Args:
    workdir: of the run.
    build: whose datasets are taken where they are those of the run, whatever
      paths its config names; None: there is none.
    data: a folder that replaces paths of the config, see
      `config.data_folder`; None leaves them.

  Raises:
    config.ConfigError: there is no run, or its data cannot be used.
    errors.Failure: its checkpoints are damaged.
  """
  step, meta = 0, {}
  if manifest.candidates(workdir):
    step, meta = manifest.newest(
      workdir, lambda n: (n, manifest.read(workdir, n)['meta'])
    )
  c, named = _config(workdir, meta), {}
  if data is not None:
    named |= config.data_folder.paths(c, data)
  if build is not None:
    named |= _in_build(c, build, meta)
  with c.unlocked():
    c.update_from_flattened_dict(named)
  config.check_files(c.data, workdir, tuple(named), key='data')
  own = checkpoint.tokenizer_path(c, workdir) if meta else None
  if own is None:
    config.check_files(c.tokenizer, workdir, tuple(named), key='tokenizer')
  spec = c.tokenizer if own is None else {**c.tokenizer, 'path': str(own)}
  tokenizer = checkpoint.checked_tokenizer(spec, workdir, meta)
  opened = setup.open_data(c, tokenizer, meta.get('data'))
  if opened.samples is None or c.fit is not None:
    raise config.ConfigError(
      f'{workdir}: does not train on windows of shards, so that no step can be '
      'told: give a run of lm.train on lm.data.stream:make'
    )
  ended = early_stopping.end(
    c, early_stopping.read(c, workdir), checkpoint.steps(workdir)
  )
  left_out = meta.get('dropped', {}).get('left_out', ())
  return Run(
    config=c,
    tokenizer=tokenizer,
    samples=opened.samples,
    likelihood=opened.likelihood,
    step=step,
    last=c.steps if ended is None else ended,
    left_out=tuple((first, stop) for first, stop in left_out),
  )


def _config(workdir: Path, meta: Mapping[str, Any]) -> config.Config:
  """Reads the config of a run: that of its last start."""
  path = workdir / 'config.json'
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    if not meta:
      raise config.ConfigError(
        f'--workdir={workdir}: holds no run: give the folder of one'
      ) from error
    text = meta['config']
  return config.read_untrusted(text)


def _in_build(
  c: config.Config, build: Path, meta: Mapping[str, Any]
) -> dict[str, str]:
  """Finds the sources of a run among the datasets of a build.

  Returns:
    Paths by their keys in the config.
  """
  known = meta.get('data', {}).get('datasets', {})
  found = {fingerprint(x): str(x) for x in provenance.datasets(build).values()}
  inside = build.resolve()
  named = {}
  for name, source in c.data.get('sources', {}).items():
    key = f'data.sources.{name}.path'
    if known.get(name) in found:
      named[key] = found[known[name]]
    elif Path(source.path).resolve().is_relative_to(inside):
      named[key] = source.path  # the user has named its folder
  return named


def fingerprint(folder: Path) -> str:
  """Reads by which fingerprint a dataset is known."""
  return shards.load(folder).fingerprint
