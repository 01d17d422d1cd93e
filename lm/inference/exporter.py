"""Exports a run in another form, and refuses a result that is worse.

from lm.inference import export_forms, exporter
exporter.export('runs/a', 'exports/a', export_forms.hugging_face())
"""

from collections.abc import Mapping
import math
from pathlib import Path
import shutil
import tempfile
from typing import Any

import jax

from lm import config, errors, sharding, types
from lm.checkpoint import bucket_reader, manifest
from lm.evals import context as context_lib
from lm.evals import export_check, results
from lm.inference import export_forms, export_source
from lm.reporting import metrics_log

REPORT = 'report.json'


def export(
  workdir: str | Path,
  output: str | Path,
  form: export_forms.Form,
  *,
  budget_nats: float = 0.01,
  step: int | None = None,
  text: str | None = None,
  evals: Mapping[str, Any] | None = None,
  items: int = 100,
) -> dict[str, Any]:
  """Exports a run to a folder, unless the result is worse than a budget allows.

  The result is read back, compared with the original on a probe, and evaluated
  if there are evaluators. Both models' figures are printed as a table.

  Args:
    workdir: of the run.
    output: the folder to make. A folder with files in it is refused, but for
      the report of an earlier refusal.
    form: what to write, see `export_forms`.
    budget_nats: by how much the mean loss of the probe may rise, in nats a
      token. Merging LoRA may move no logit by more.
    step: of the checkpoint; None is the newest sound one.
    text: a file of texts to make the probe of; None takes the probe in
      `workdir`, or makes one of the run's validation data.
    evals: specs of evaluators by name. Those with a `limit` evaluate both
      models.
    items: the `limit` of each.

  Returns:
    The report, which is also written to the folder as report.json.

  Raises:
    ValueError: a setting is out of range, the output is not empty, there are no
      texts, or the model cannot be exported in this form.
    errors.Failure: there is no sound checkpoint, or storage fails.
    export_check.Worse: the result is refused; the folder has the report only.
  """
  output = Path(output)
  if not 0 <= budget_nats < math.inf:
    raise ValueError(
      f'--budget={budget_nats}: must be a number of nats from 0 on'
    )
  _check_free(output)
  tasks = {} if evals is None else _limited(evals, items)
  source = export_source.read(
    bucket_reader.local_folder(workdir, step), step, text
  )
  # A kill leaves a hidden folder, never an output that looks complete.
  with tempfile.TemporaryDirectory(
    prefix=f'.{output.name}.', dir=output.parent
  ) as hidden:
    part = Path(hidden) / output.name
    part.mkdir()
    export_check.save(source.probe, part / export_check.NAME)
    exported = form(part, source)
    exported = exported._replace(params=jax.device_put(exported.params))
    report, refusal = _checked(source, exported, tasks, budget_nats, output)
    report['original']['bytes'] = _bytes(source.workdir, source.step)
    report['result']['bytes'] = _bytes(part, source.step)
    report = {'refused': refusal is not None, 'workdir': str(workdir)} | report
    if refusal is not None:
      shutil.rmtree(part)
      part.mkdir()
    (part / REPORT).write_text(f'{metrics_log.to_json(report)}\n')
    (output / REPORT).unlink(missing_ok=True)  # of an earlier refusal
    part.rename(output)
  print(_table(report), flush=True)
  if refusal is not None:
    raise refusal
  return report


def _check_free(output: Path) -> None:
  """Checks that a folder can be made, and makes its parent.

  Raises:
    ValueError: there are files in the folder.
    errors.Storage: it cannot be made.
  """
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    names = output.exists() and {file.name for file in output.iterdir()}
  except OSError as error:
    raise errors.Storage(
      f'{output}: cannot be made: {error.strerror}: give another --output'
    ) from error
  if names and names != {REPORT}:
    raise ValueError(f'{output}: is not empty: give another --output')


def _limited(evals: Mapping[str, Any], items: int) -> dict[str, Any]:
  """Takes the evaluators that have a `limit`, and sets it."""
  if items < 1:
    raise ValueError(f'--items={items}: must be at least 1')
  limited = {}
  filled = config.fill({'evals': dict(evals)}).evals
  for name, spec in config.plain(filled).items():
    for place in (spec, spec.get('task', {})):
      if 'limit' in place:
        place['limit'] = items
        limited[name] = spec
  if not limited:
    raise ValueError(
      '--config: none of its evals has a `limit`: give one such as '
      'configs/evaluate/english.py'
    )
  return limited


def _checked(
  source: export_source.Source,
  exported: export_forms.Exported,
  tasks: Mapping[str, Any],
  budget_nats: float,
  output: Path,
) -> tuple[dict[str, Any], export_check.Worse | None]:
  """Compares the export with the original, on the probe and on tasks.

  Returns:
    The report, and the error if the export is refused.
  """
  probe = source.probe
  decision = export_check.compare(
    probe,
    export_check.nats(exported.model.apply, exported.params, probe.batch),
  )
  refusal = export_check.refusal(decision, budget_nats, str(output))
  # The probe was made of the model with its LoRA, so this is checked too.
  if source.moved is not None and not source.moved <= budget_nats:
    refusal = export_check.Worse(
      f'{output}: refused: merged, a logit moves by {source.moved:.4g}, over '
      f'--budget={budget_nats:g}: allow more'
    )
  tokenizer = source.run.tokenizer
  report = {
    'step': source.step,
    'checkpoint': source.content['checkpoint'],
    **exported.report,
    'budget_nats': budget_nats,
    'probe': {**probe.about, **decision._asdict()},
    'original': _evaluate(tasks, tokenizer, source.run.model, source.params),
    'result': _evaluate(tasks, tokenizer, exported.model, exported.params),
  }
  return report, refusal


def _evaluate(
  tasks: Mapping[str, Any],
  tokenizer: types.Tokenizer,
  model: types.Model,
  params: types.Params,
) -> dict[str, float]:
  """Evaluates a model by all tasks, on one device."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  context = context_lib.Context(model, tokenizer, mesh)
  metrics = {}
  for name, spec in tasks.items():
    evaluate = config.build(spec, context=context)
    for key, value in results.metrics(evaluate(params)).items():
      metrics[f'{name}/{key}'] = value
  return metrics


def _bytes(folder: Path, step: int) -> int:
  """Counts the bytes that the parameters of a run or an export take on disk."""
  if files := [*folder.glob('*.safetensors')]:
    return sum(file.stat().st_size for file in files)
  records = manifest.read(folder, step)['files']
  return sum(
    record['bytes']
    for name, record in records.items()
    if name.startswith(('state/params.', 'state/extra.scales.'))
    and not name.endswith('/.zarray')
  )


def _table(report: Mapping[str, Any]) -> str:
  """Formats the figures of both models."""
  probe, before, after = report['probe'], report['original'], report['result']
  rows = [
    {
      'measure': 'probe/loss_nats',
      'original': probe['original_nats'],
      'result': probe['result_nats'],
      'change': probe['rise_nats'],
    },
    {'measure': 'probe/largest_nats', 'change': probe['largest_nats']},
  ]
  rows += [
    {
      'measure': name,
      'original': before[name],
      'result': after[name],
      'change': after[name] - before[name],
    }
    for name in before
    if name.count('/') < 2  # not those of single categories
  ]
  return metrics_log.table(rows, [*rows[0]])
