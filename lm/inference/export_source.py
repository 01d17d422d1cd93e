"""Reads a run to export, with LoRA merged, and the probe to check it with."""

import collections
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm import checkpoint, config, types
from lm.checkpoint import manifest
from lm.data import documents, writer
from lm.data.finetuning import batching
from lm.evals import classification, export_check
from lm.inference import prompts
from lm.models import lora

_BATCH_SIZE = 4  # rows of the probe that are compared at once


class Source(NamedTuple):
  """A run that is exported.

  Attributes:
    workdir: of the run.
    step: of its checkpoint.
    run: config, tokenizer and model; LoRA is merged.
    params: float32; LoRA is merged.
    content: the manifest of the checkpoint, with the config of `run`.
    probe: the texts and losses that the export is checked with.
    moved: the largest change of a logit of the probe by merging; None if there
      was no LoRA.
  """

  workdir: Path
  step: int
  run: checkpoint.RestoredRun
  params: types.Params
  content: dict[str, Any]
  probe: export_check.Probe
  moved: float | None


def read(workdir: Path, step: int | None, text: str | None) -> Source:
  """Reads a run that is to be exported, and its probe.

  A run that is itself an export has a probe, which is taken. Else it is made
  of `text`, of the run's validation data, or of records.

  Args:
    workdir: of the run, on this machine.
    step: of the checkpoint; None is the newest sound one.
    text: a file of texts to make the probe of.

  Raises:
    ValueError: there is nothing to make a probe of, or `text` cannot be used.
    errors.Failure: there is no sound checkpoint.
  """
  content = manifest.newest(
    workdir, lambda n: manifest.verify(workdir, n), step
  )
  step = int(content['step'])
  run = checkpoint.restore_run(workdir, step)
  params = jax.device_put(checkpoint.restore_params(workdir, step))
  about = {
    'workdir': str(workdir),
    'step': step,
    'checkpoint': content['checkpoint'],
  }
  if text is None and (workdir / export_check.NAME).exists():
    probe = export_check.load(workdir / export_check.NAME)
  elif prompts.part(run.config, 'objective') is not None:
    probe = _probe_of_texts(workdir, run, params, text, about)
  elif text is None:
    batch, sha256 = _records(workdir, run.config, run.tokenizer)
    about['data'] = sha256
    probe = export_check.probe_batch(params, run.model, batch, about)
  else:
    raise ValueError(
      f'{workdir}: {prompts.trained_by(run.config)} tuned it on records, and a '
      'probe is of these: leave --text out'
    )
  return _merged(Source(workdir, step, run, params, content, probe, None))


def _probe_of_texts(
  workdir: Path,
  run: checkpoint.RestoredRun,
  params: types.Params,
  text: str | None,
  about: dict[str, Any],
) -> export_check.Probe:
  """Makes the probe of a model that was trained on texts."""
  c, tokenizer, model = run
  with tempfile.TemporaryDirectory() as folder:
    if text is None:
      path = _validation(workdir, c)
    else:
      path = f'{folder}/text'
      files = documents.find([text])
      counts = collections.Counter()
      texts = documents.read(files, documents.Settings(), counts)
      writer.write(path, texts, tokenizer)
    return export_check.make(
      params,
      model,
      tokenizer,
      path=path,
      length=c.data.length,
      objective=c.data.objective,
      about=about,
    )


def _validation(workdir: Path, c: config.Config) -> str:
  """Finds the validation data of a run."""
  paths = []
  for name, spec in c.evals.items():
    if spec.fn == 'lm.evals.likelihood:make':
      paths.append(spec.path)
      if Path(spec.path).is_dir():
        config.check_files(spec, workdir, key=f'evals.{name}')
        return spec.path
  raise ValueError(
    f'{workdir}: its validation data ({", ".join(paths) or "none"}) are '
    'not here: give --text=FILE'
  )


def _records(
  workdir: Path, c: config.Config, tokenizer: types.Tokenizer
) -> tuple[types.Batch, str]:
  """Makes a batch of the records that evaluate a run, or that tuned it.

  Returns:
    The batch, and the sha256 of the records.
  """
  specs = [spec for spec in c.evals.values() if {'records', 'form'} <= {*spec}]
  # A probe contains records, so those of a private run are not taken.
  is_private = c.get('privacy') is not None
  if prompts.part(c, 'form') and 'records' in c.data and not is_private:
    specs.append(c.data)
  if not specs:
    raise ValueError(
      f'{workdir}: none of its evals has records to probe it with: export the '
      'run that it began with'
    )
  spec = specs[0]
  config.check_files(spec.records, workdir, key='records')
  records, form, rows = classification.read(
    spec.records,
    spec.form,
    tokenizer,
    spec.length,
    spec.get('folds', 1),
    spec.get('fold'),
  )
  few = [[rows[n]] for n in export_check.spread(len(rows))]
  batch = batching.assemble(few, form, spec.length, tokenizer)
  return batch, records.card.sha256


def _merged(source: Source) -> Source:
  """Merges LoRA into the model, the config and the parameters of a run."""
  c, tokenizer, model = source.run
  plain = config.plain(c)
  spec, params = lora.merged(plain['model'], source.params)
  if spec == plain['model']:
    return source
  # These settings name parameters by paths that no longer exist.
  gone = {'init_from': None, 'init_paths': (), 'branch_from': None}
  optim = {k: '' if k == 'freeze' else v for k, v in plain['optim'].items()}
  text = config.to_json({**plain, 'model': spec, 'optim': optim, **gone})
  merged = config.build(spec, vocab=tokenizer.size)

  @jax.jit
  def difference(lora_params, params, part):
    before = model.apply(lora_params, part).logits
    return jnp.abs(before - merged.apply(params, part).logits).max()

  parts = [
    jax.tree.map(lambda x, n=n: x[n : n + _BATCH_SIZE], source.probe.batch)
    for n in range(0, len(source.probe.batch.tokens), _BATCH_SIZE)
  ]
  moved = [difference(source.params, params, part) for part in parts]
  meta = {**source.content['meta'], 'config': text}
  return source._replace(
    run=checkpoint.RestoredRun(config.from_json(text), tokenizer, merged),
    params=params,
    content={**source.content, 'meta': meta},
    moved=float(jnp.stack(moved).max()),
  )
