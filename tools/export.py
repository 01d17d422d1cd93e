"""Exports a run in another form, and refuses what got worse by that.

  python -m tools.export int8 --workdir=runs/a --output=exports/small
  python -m tools.export prune --workdir=runs/a --output=exports/thin \\
    --sparsity=0.3
  python -m tools.export stablehlo --workdir=runs/a --output=exports/a
  python -m tools.export huggingface --workdir=runs/a --output=exports/hf
  python -m tools.export merge --workdir=runs/lora --output=exports/merged

int8 and prune write a run with one checkpoint, which lm.sample, lm.evaluate,
init_from and this program read like any other; training does not go on in it.
int8 keeps matrices in whole numbers with a scale for each output, which are
multiplied when it is read; prune puts the smallest weights to zero. merge makes
the changes of lm.models.lora part of the model around which they are; the other
forms do that first. No logit may move by more than --budget.

stablehlo writes one function from ids to logits for CPU, CUDA and TPU, its
parameters, and model.py, which reads them where there is no lm.

huggingface writes what from_pretrained of transformers opens: config.json,
model.safetensors, tokenizer.json and tokenizer_config.json, if a class that
lm.interop knows computes what the model computes; otherwise one line says what
the nearest one has otherwise.

What was written is read again and judged. A probe, 64 texts of the run's
validation data or of --text, has what each token cost the original; it lies in
the output as probe.json, and is used again when that is exported in turn: so a
budget is held against the first original. What was tuned on records is asked 64
of those that judge it, or of its own. With --config, a file such as
configs/evaluate/english.py, the first --items of each task are asked of both.
All is printed, and kept in report.json, which is all that is left of an export
that is refused. Needs the extras `data` and `interop`,
and int8 the extra `quant`.
"""

import argparse
import collections
from collections.abc import Callable, Mapping, Sequence
import json
import math
from pathlib import Path
import shutil
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm import checkpoint, config, errors, sharding, types
from lm.checkpoint import bucket_reader, host_arrays, manifest
from lm.data import documents, writer
from lm.data.finetuning import batching
from lm.data.tokenizers import export as tokenizer_export
from lm.evals import classification, export_check, results
from lm.evals import context as context_lib
from lm.interop import fields, loader, stablehlo, tensors, transfer
from lm.layers import compress
from lm.models import lora
from lm.reporting import metrics_log
from lm.runtime import memory

REPORT = 'report.json'


class Source(NamedTuple):
  """The export that is asked for.

  Attributes:
    workdir: of the run.
    step: of its checkpoint.
    run: config, tokenizer and model, LoRA merged.
    params: float32, merged.
    content: the checkpoint's manifest, with the config of `run`.
    probe: what the result is asked.
    moved: how far merging moved a logit of the probe; None: it had no LoRA.
  """

  workdir: Path
  step: int
  run: checkpoint.RestoredRun
  params: types.Params
  content: dict[str, Any]
  probe: export_check.Probe
  moved: float | None


# A model that was written and read again, its parameters, and what to tell.
Written = tuple[types.Model, types.Params, dict[str, Any]]


def export(
  write: Callable[[Path, Source], Written],
  workdir: str | Path,
  output: Path,
  *,
  budget: float,
  step: int | None = None,
  text: str | None = None,
  evals: Mapping[str, Any] | None = None,
  items: int = 100,
) -> dict[str, Any]:
  """Writes a folder, unless what is in it is worse than a budget allows.

  Args:
    write: fills a folder.
    workdir: of the run.
    output: a folder to make; one with files in it is refused, but for the
      report of a refusal.
    budget: nats a token, by which the probe's loss may rise.
    step: of the checkpoint; None: the newest.
    text: file of texts for the probe; None: the probe in `workdir`, or one of
      the run's validation data.
    evals: specs of evaluators by name; those with a `limit` are asked.
    items: of each.

  Returns:
    The report.

  Raises:
    ValueError: a setting is out of range, the output is not empty, there are no
      texts, or the model cannot be exported so.
    errors.Failure: there is no sound checkpoint, or storage fails.
    export_check.Worse: it is refused; the report lies in the output.
  """
  if not 0 <= budget < math.inf:
    raise ValueError(f'--budget={budget}: must be a number of nats from 0 on')
  _check_free(output)
  tasks = {} if evals is None else _subset(evals, items)
  source = _read(bucket_reader.local_folder(workdir, step), step, text)
  probe = source.probe
  with tempfile.TemporaryDirectory(
    prefix=f'.{output.name}.', dir=output.parent
  ) as held:
    part = Path(held) / output.name
    part.mkdir()
    export_check.save(probe, part / export_check.NAME)
    model, params, told = write(part, source)
    params = jax.device_put(params)
    verdict = export_check.compare(
      probe, export_check.nats(model.apply, params, probe.batch)
    )
    refusal = export_check.refusal(verdict, budget, str(output))
    if source.moved is not None and not source.moved <= budget:
      refusal = export_check.Worse(
        f'{output}: refused: merged, a logit moves by {source.moved:.4g}, over '
        f'--budget={budget:g}: allow more'
      )
    original, result = (
      _ask(tasks, source.run.tokenizer, *x)
      for x in ((source.run.model, source.params), (model, params))
    )
    report = {
      'refused': refusal is not None,
      'workdir': str(workdir),
      'step': source.step,
      'checkpoint': source.content['checkpoint'],
      **told,
      'budget_nats': budget,
      'probe': {**probe.about, **verdict._asdict()},
      'original': {**original, 'bytes': _bytes(source.workdir, source.step)},
      'result': {**result, 'bytes': _bytes(part, source.step)},
    }
    if refusal is not None:
      shutil.rmtree(part)
      part.mkdir()
    metrics_log.append(part / REPORT, report)
    (output / REPORT).unlink(missing_ok=True)  # of an earlier refusal
    part.rename(output)
  print(_table(report), flush=True)
  if refusal is not None:
    raise refusal
  return report


def _check_free(output: Path) -> None:
  """Checks that a folder can be made, and makes what it lies in.

  Raises:
    ValueError: there is something in its place.
    errors.Storage: it cannot be made.
  """
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    taken = output.exists() and {file.name for file in output.iterdir()}
  except OSError as error:
    raise errors.Storage(
      f'{output}: cannot be made: {error.strerror}: give another --output'
    ) from error
  if taken and taken != {REPORT}:
    raise ValueError(f'{output}: is not empty: give another --output')


def _read(workdir: Path, step: int | None, text: str | None) -> Source:
  """Reads a run, merged; its probe is the one that lies there, or is made."""
  content = manifest.newest(
    workdir, lambda n: manifest.verify(workdir, n), step
  )
  step = int(content['step'])
  run = c, tokenizer, model = checkpoint.restore_run(workdir, step)
  params = jax.device_put(checkpoint.restore_params(workdir, step))
  about = {
    'workdir': str(workdir),
    'step': step,
    'checkpoint': content['checkpoint'],
  }
  if text is None and (workdir / export_check.NAME).exists():
    probe = export_check.load(workdir / export_check.NAME)
  elif 'objective' not in c.data:
    if text is not None:
      raise ValueError(
        f'{workdir}: {c.data.fn} tuned it on records, and a probe is of these: '
        'leave --text out'
      )
    batch, data = _records(workdir, c, tokenizer)
    about |= {'data': data}
    probe = export_check.probe_batch(params, model, batch, about)
  else:
    with tempfile.TemporaryDirectory() as folder:
      if text is None:
        path = _validation(workdir, c)
      else:
        path = f'{folder}/text'
        found = documents.find([text])
        counts = collections.Counter()
        texts = documents.read(found, documents.Settings(), counts)
        writer.write(path, texts, tokenizer)
      probe = export_check.make(
        params,
        model,
        tokenizer,
        path=path,
        length=c.data.length,
        objective=c.data.objective,
        about=about,
      )
  return _merged(Source(workdir, step, run, params, content, probe, None))


def _merged(source: Source) -> Source:
  """Makes LoRA part of a run: its model, its config and its parameters."""
  c, tokenizer, model = source.run
  plain = config.plain(c)
  spec, params = lora.merged(plain['model'], source.params)
  if spec == plain['model']:
    return source
  # These name parameters by paths that there are no longer.
  gone = {'init_from': None, 'init_paths': ()}
  optim = {k: '' if k == 'freeze' else v for k, v in plain['optim'].items()}
  text = config.to_json({**plain, 'model': spec, 'optim': optim, **gone})
  whole = config.build(spec, vocab=tokenizer.size)

  @jax.jit
  def apart(changed, params, part):
    before = model.apply(changed, part).logits
    return jnp.abs(before - whole.apply(params, part).logits).max()

  rows = range(0, len(source.probe.batch.tokens), 4)
  parts = [
    jax.tree.map(lambda x, n=n: x[n : n + 4], source.probe.batch) for n in rows
  ]
  moved = jnp.stack([apart(source.params, params, part) for part in parts])
  meta = {**source.content['meta'], 'config': text}
  return source._replace(
    run=checkpoint.RestoredRun(config.from_json(text), tokenizer, whole),
    params=params,
    content={**source.content, 'meta': meta},
    moved=float(moved.max()),
  )


def _records(
  workdir: Path, c: config.Config, tokenizer: types.Tokenizer
) -> tuple[types.Batch, str]:
  """Takes rows of what judges a run, or of what it was tuned on; their hash."""
  specs = [spec for spec in c.evals.values() if {'records', 'form'} <= {*spec}]
  is_private = c.get('privacy') is not None  # its own records stay there
  if 'records' in c.data and not is_private:
    specs.append(c.data)
  if not specs:
    raise ValueError(
      f'{workdir}: none of its evals has records to probe it with: export the '
      'run that it began with'
    )
  spec = specs[0]
  found, form, rows = classification.read(
    spec.records,
    spec.form,
    tokenizer,
    spec.length,
    spec.get('folds', 1),
    spec.get('fold'),
  )
  few = [[rows[n]] for n in export_check.spread(len(rows))]
  batch = batching.assemble(few, form, spec.length, tokenizer)
  return batch, found.card.sha256


def _validation(workdir: Path, c: config.Config) -> str:
  paths = [
    spec.path
    for spec in c.evals.values()
    if spec.fn == 'lm.evals.likelihood:make'
  ]
  for path in paths:
    if Path(path).is_dir():
      return path
  raise ValueError(
    f'{workdir}: its validation data ({", ".join(paths) or "none"}) are '
    'not here: give --text=FILE'
  )


def _subset(evals: Mapping[str, Any], items: int) -> dict[str, Any]:
  """Takes the evaluators that can ask a part of their items, set to do so."""
  if items < 1:
    raise ValueError(f'--items={items}: must be at least 1')
  found = {}
  filled = config.fill({'evals': dict(evals)}).evals
  for name, spec in config.plain(filled).items():
    for place in (spec, spec.get('task', {})):
      if 'limit' in place:
        place['limit'] = items
        found[name] = spec
  if not found:
    raise ValueError(
      '--config: none of its evals has a `limit`: give one such as '
      'configs/evaluate/english.py'
    )
  return found


def _ask(
  tasks: Mapping[str, Any],
  tokenizer: types.Tokenizer,
  model: types.Model,
  params: types.Params,
) -> dict[str, float]:
  """Asks a model all tasks, on one device."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  context = context_lib.Context(model, tokenizer, mesh)
  found = {}
  for name, spec in tasks.items():
    evaluate = config.build(spec, context=context)
    for key, value in results.metrics(evaluate(params)).items():
      found[f'{name}/{key}'] = value
  return found


def _bytes(folder: Path, step: int) -> int:
  """Counts what the parameters of a run or an export take on disk."""
  if found := [*folder.glob('*.safetensors')]:
    return sum(file.stat().st_size for file in found)
  files = manifest.read(folder, step)['files']
  return sum(
    record['bytes']
    for name, record in files.items()
    if name.startswith(('state/params.', 'state/extra.scales.'))
    and not name.endswith('/.zarray')
  )


def _table(report: Mapping[str, Any]) -> str:
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


def _run(
  folder: Path,
  source: Source,
  params: types.Params,
  scales: Mapping[str, Any],
  told: dict[str, Any],
) -> Written:
  """Writes a run with one checkpoint, and reads it."""
  extra = {'scales': host_arrays.nest(dict(scales))} if scales else {}
  state = types.TrainState(jnp.int32(source.step), params, (), extra)
  with checkpoint.Checkpointer(folder) as saver:
    saver.preflight(state)
    config.store(source.run.config, folder / 'config.json')
    saver.save(source.step, state, {**source.content['meta'], 'export': told})
    saver.wait()
  model = checkpoint.restore_run(folder, source.step).model
  return model, checkpoint.restore_params(folder, source.step), told


def merge(folder: Path, source: Source) -> Written:
  """Writes a run whose changes are part of its model, see `lora.merged`.

  Raises:
    ValueError: it has none.
  """
  if source.moved is None:
    raise ValueError(
      f'{source.workdir}: its model is not around {lora.NAME}, so there is '
      'nothing to merge: take it as it is'
    )
  told = {'form': 'merge', 'moved_logit': source.moved}
  return _run(folder, source, source.params, {}, told)


def int8(paths: str) -> Callable[..., Written]:
  """Writes a run whose matrices are in int8, see `compress.int8`."""

  def write(folder: Path, source: Source) -> Written:
    table = source.run.model.matrices
    params, scales = compress.int8(source.params, table, paths)
    told = {'form': 'int8', 'paths': paths, 'matrices': len(scales)}
    return _run(folder, source, params, scales, told)

  return write


def prune(paths: str, sparsity: float, scope: str) -> Callable[..., Written]:
  """Writes a run with zeros in its matrices, see `compress.prune`."""

  def write(folder: Path, source: Source) -> Written:
    table = source.run.model.matrices
    params = compress.prune(
      source.params, table, paths, sparsity=sparsity, scope=scope
    )
    told = {
      'form': 'prune',
      'paths': paths,
      'scope': scope,
      'sparsity': compress.sparsity(params, table, paths),
    }
    return _run(folder, source, params, {}, told)

  return write


def portable(weights: str) -> Callable[..., Written]:
  """Writes a function of StableHLO, see `lm.interop.stablehlo`.

  Args:
    weights: 'float32', or 'int8', see `compress.int8`: the function
      multiplies them by their scales.
  """

  def write(folder: Path, source: Source) -> Written:
    c, tokenizer, model = source.run
    params, scales = source.params, {}
    if weights == 'int8':
      params, scales = compress.int8(params, model.matrices)
    path = Path(c.tokenizer.get('path', 'bytes'))
    if path.is_file():
      shutil.copyfile(path, folder / f'tokenizer{path.suffix}')
    told = stablehlo.save(
      folder,
      c.model.to_dict(),
      tokenizer,
      params,
      source.probe.batch,
      {'checkpoint': source.content['checkpoint']},
      scales,
    )
    run = loader.load(folder)

    def apply(params, batch, **_):
      logits = run.call(params, stablehlo.inputs_of(batch))
      return types.Output(logits, None, {})

    told = {
      key: told[key]
      for key in ('inputs', 'longest', 'fixed', 'platforms', 'versions')
    }
    told = {'form': 'stablehlo', 'weights': weights, **told}
    return model._replace(apply=apply, head=None), run.params, told

  return write


def transformers(dtype: str | None) -> Callable[..., Written]:
  """Writes what transformers opens, see `lm.interop.transfer`.

  Args:
    dtype: of the tensors: float32, bfloat16 or float16; None: that of the file
      that the run was imported from, or float32.
  """

  def write(folder: Path, source: Source) -> Written:
    c, tokenizer, _ = source.run
    kind = str(dtype or source.content['meta'].get('dtype', 'float32'))
    theirs, found = transfer.save(
      c.model.to_dict(), tokenizer.size, source.params
    )
    words = tokenizer_export.to_tokenizer_json(
      c.tokenizer.get('path', 'bytes'), c.tokenizer.reserved
    )
    files = tokenizer_export.special_files(tokenizer, words)
    files['tokenizer.json'] = words
    files['config.json'] = {
      **theirs,
      'dtype': kind,
      'bos_token_id': tokenizer.bos,
      'eos_token_id': tokenizer.eos,
      'pad_token_id': tokenizer.pad,
    }
    if 'id2label' in theirs and 'form' in c.data:
      form = config.build(
        c.data.form, tokenizer=tokenizer, length=c.data.length
      )
      files['config.json'] |= fields.labelled(form.labels)
    if theirs.get('is_encoder_decoder'):
      files['config.json']['decoder_start_token_id'] = tokenizer.bos
    tensors.save(found, folder, kind)
    for name, content in files.items():
      text = json.dumps(content, ensure_ascii=False, indent=2)
      (folder / name).write_text(f'{text}\n', encoding='utf-8')
    # safetensors lets nobody else read it.
    shutil.copymode(folder / 'config.json', folder / tensors.ONE)
    again = transfer.load(tensors.open_folder(folder))
    told = {'form': 'huggingface', 'class': again.architecture, 'dtype': kind}
    model = config.build(again.model, vocab=again.vocab)
    return model, again.params, told

  return write


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  add = shared.add_argument
  add('--workdir', required=True, help='of a run')
  add('--output', required=True, type=Path, help='folder to make')
  add('--step', type=int, help='of a checkpoint; the newest')
  add('--budget', type=float, default=0.01, help='nats a token (0.01)')
  add('--text', help='texts for the probe: a file of prepare_data')
  add('--config', help='a file whose `evals` are asked too')
  add('--items', type=int, default=100, help='of each task (100)')
  parser = argparse.ArgumentParser(
    prog='python -m tools.export',
    description=__doc__,
    epilog=config.exit_code_help('tools.export'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  forms = parser.add_subparsers(dest='form', required=True)

  def form(name: str) -> argparse.ArgumentParser:
    return forms.add_parser(name, parents=[shared], allow_abbrev=False)

  paths = 'regular expression: of which matrices'
  whole = form('int8')
  whole.add_argument('--paths', default=compress.ALL, help=f'{paths} (all)')
  whole.set_defaults(write=lambda f: int8(f.paths))
  thin = form('prune')
  thin.add_argument('--sparsity', type=float, default=0.5, help='share of 0')
  thin.add_argument('--scope', choices=compress.SCOPES, default='global')
  thin.add_argument(
    '--paths', default=compress.BLOCKS, help=f"{paths} (blocks')"
  )
  thin.set_defaults(write=lambda f: prune(f.paths, f.sparsity, f.scope))
  free = form('stablehlo')
  free.add_argument('--weights', choices=('float32', 'int8'), default='float32')
  free.set_defaults(write=lambda f: portable(f.weights))
  theirs = form('huggingface')
  theirs.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'))
  theirs.set_defaults(write=lambda f: transformers(f.dtype))
  form('merge').set_defaults(write=lambda f: merge)
  flags = parser.parse_args(argv)
  memory.prepare()
  with config.user_errors():
    report = export(
      flags.write(flags),
      flags.workdir,
      flags.output,
      budget=flags.budget,
      step=flags.step,
      text=flags.text,
      evals=config.load(flags.config).evals if flags.config else None,
      items=flags.items,
    )
  told = ', '.join(
    f'{key} {report[key]}'
    for key in ('class', 'dtype', 'sparsity', 'longest', 'fixed')
    if report.get(key) is not None
  )
  print(f'{flags.output}: {flags.form}{told and f", {told}"}')


if __name__ == '__main__':
  config.main(main)
