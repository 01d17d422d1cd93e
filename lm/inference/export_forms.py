"""The forms that a run can be exported in: each writes a folder and reads it.

A form is a function `(folder, source) -> Exported`. What it returns was read
back from the folder, so that a check of it is a check of the files.
"""

from collections.abc import Callable, Mapping
import json
from pathlib import Path
import shutil
from typing import Any, NamedTuple

import jax.numpy as jnp

from lm import checkpoint, config, types
from lm.checkpoint import host_arrays
from lm.data.tokenizers import export as tokenizer_export
from lm.inference import export_source, prompts
from lm.interop import fields, loader, stablehlo, tensors, transfer
from lm.layers import compress
from lm.models import lora


class Exported(NamedTuple):
  """A model that was written to a folder, and read back.

  Attributes:
    model: computes what the files compute.
    params: its parameters.
    report: what to say of it in report.json.
  """

  model: types.Model
  params: types.Params
  report: dict[str, Any]


Form = Callable[[Path, export_source.Source], Exported]


def merge() -> Form:
  """Writes a run whose LoRA is merged into its model, see `lora.merged`.

  The form raises a ValueError if the run has no LoRA.
  """

  def write(folder: Path, source: export_source.Source) -> Exported:
    if source.moved is None:
      raise ValueError(
        f'{source.workdir}: its model is not around {lora.NAME}, so there is '
        'nothing to merge: take it as it is'
      )
    report = {'form': 'merge', 'moved_logit': source.moved}
    return _run(folder, source, source.params, {}, report)

  return write


def int8(paths: str = compress.ALL) -> Form:
  """Writes a run whose matrices are in int8, see `compress.int8`.

  Args:
    paths: a regular expression; matrices in whose path it is found are rounded.
  """

  def write(folder: Path, source: export_source.Source) -> Exported:
    table = source.run.model.matrices
    params, scales = compress.int8(source.params, table, paths)
    report = {'form': 'int8', 'paths': paths, 'matrices': len(scales)}
    return _run(folder, source, params, scales, report)

  return write


def prune(
  sparsity: float = 0.5, scope: str = 'global', paths: str = compress.BLOCKS
) -> Form:
  """Writes a run whose smallest weights are 0, see `compress.prune`.

  Args:
    sparsity: the fraction of weights to set to 0.
    scope: one of `compress.SCOPES`.
    paths: a regular expression; matrices in whose path it is found are pruned.
  """

  def write(folder: Path, source: export_source.Source) -> Exported:
    table = source.run.model.matrices
    params = compress.prune(
      source.params, table, paths, sparsity=sparsity, scope=scope
    )
    report = {
      'form': 'prune',
      'paths': paths,
      'scope': scope,
      'sparsity': compress.sparsity(params, table, paths),
    }
    return _run(folder, source, params, {}, report)

  return write


def portable(weights: str = 'float32') -> Form:
  """Writes a function of StableHLO, see `lm.interop.stablehlo`.

  Args:
    weights: 'float32', or 'int8': then the function multiplies the matrices by
      their scales, see `compress.int8`.
  """

  def write(folder: Path, source: export_source.Source) -> Exported:
    c, tokenizer, model = source.run
    params, scales = source.params, {}
    if weights == 'int8':
      params, scales = compress.int8(params, model.matrices)
    path = Path(c.tokenizer.get('path', 'bytes'))
    if path.is_file():
      shutil.copyfile(path, folder / f'tokenizer{path.suffix}')
    content = stablehlo.save(
      folder,
      c.model.to_dict(),
      tokenizer,
      params,
      source.probe.batch,
      {'checkpoint': source.content['checkpoint']},
      scales,
    )
    loaded = loader.load(folder)

    def apply(params, batch, **_):
      logits = loaded.call(params, stablehlo.inputs_of(batch))
      return types.Output(logits, None, {})

    def start(_, batch, room):
      return model.start(source.params, batch, room)  # whose paths differ

    keys = ('inputs', 'longest', 'fixed', 'platforms', 'versions')
    report = {'form': 'stablehlo', 'weights': weights}
    report |= {key: content[key] for key in keys}
    written = model._replace(apply=apply, start=start, head=None)
    return Exported(written, loaded.params, report)

  return write


def hugging_face(dtype: str | None = None) -> Form:
  """Writes a folder that transformers opens, see `lm.interop.transfer`.

  Args:
    dtype: of the tensors, float32, bfloat16 or float16; None takes that of the
      file that the run was imported from, or float32.
  """

  def write(folder: Path, source: export_source.Source) -> Exported:
    c, tokenizer, _ = source.run
    kind = str(dtype or source.content['meta'].get('dtype', 'float32'))
    settings, arrays = transfer.save(
      c.model.to_dict(), tokenizer.size, source.params
    )
    path, ends = c.tokenizer.get('path', 'bytes'), list(tokenizer.ends)
    words = tokenizer_export.to_tokenizer_json(path, c.tokenizer.reserved)
    files = tokenizer_export.special_files(tokenizer, words, path)
    files['tokenizer.json'] = words
    files['config.json'] = {
      **settings,
      'dtype': kind,
      'bos_token_id': tokenizer.bos,
      'eos_token_id': ends if len(ends) > 1 else tokenizer.eos,
      'pad_token_id': tokenizer.pad,
    }
    spec = prompts.part(c, 'form')
    if 'id2label' in settings and spec is not None:
      form = config.build(spec, tokenizer=tokenizer, length=c.data.length)
      files['config.json'] |= fields.label_fields(form.labels)
    if settings.get('is_encoder_decoder'):
      files['config.json']['decoder_start_token_id'] = tokenizer.bos
    tensors.save(arrays, folder, kind)
    for name, content in files.items():
      text = json.dumps(content, ensure_ascii=False, indent=2)
      (folder / name).write_text(f'{text}\n', encoding='utf-8')
    # safetensors makes a file that only its owner can read.
    shutil.copymode(folder / 'config.json', folder / tensors.ONE)
    again = transfer.load(tensors.open_folder(folder))
    report = {'form': 'huggingface', 'class': again.architecture, 'dtype': kind}
    model = config.build(again.model, vocab=again.vocab)
    return Exported(model, again.params, report)

  return write


def _run(
  folder: Path,
  source: export_source.Source,
  params: types.Params,
  scales: Mapping[str, Any],
  report: dict[str, Any],
) -> Exported:
  """Writes a run with one checkpoint, and reads it back."""
  extra = {'scales': host_arrays.nest(dict(scales))} if scales else {}
  state = types.TrainState(jnp.int32(source.step), params, (), extra)
  with checkpoint.Checkpointer(folder) as checkpointer:
    checkpointer.enclose(checkpoint.enclosed(source.run.config, folder))
    checkpointer.preflight(state)
    config.store(source.run.config, folder / 'config.json')
    meta = {**source.content['meta'], 'export': report}
    checkpointer.save(source.step, state, meta)
    checkpointer.wait()
  model = checkpoint.restore_run(folder, source.step).model
  return Exported(model, checkpoint.restore_params(folder, source.step), report)
