"""Imports a model of transformers, with its tokenizer, as a run.

from lm.interop import importer
importer.import_model('SmolLM2', 'runs/smollm2')
"""

import json
from pathlib import Path
import tempfile
from typing import Any

import jax.numpy as jnp

from lm import checkpoint, config, types
from lm.data.tokenizers import tokenizer_json_reader
from lm.interop import gguf, tensors, transfer, vocabulary


def import_model(
  source: str | Path, workdir: str | Path, base: config.Config | None = None
) -> transfer.Imported:
  """Makes a run with one checkpoint of a model that others have published.

  Args:
    source: a folder with config.json, safetensors and a tokenizer, or a GGUF
      file.
    workdir: of the run to make.
    base: the config of the run; None is configs/base.py. The model, the
      tokenizer and the number of steps are replaced, and lengths are cut to the
      model's.

  Returns:
    The model that was imported.

  Raises:
    ValueError: the files are not those of a known model, or the workdir has a
      run. Nothing was written then.
    errors.Failure: the workdir is locked, or storage fails.
  """
  source, workdir = Path(source), Path(workdir)
  if checkpoint.steps(workdir):
    raise ValueError(f'{workdir}: has a run already: give another --workdir')
  if source.suffix == '.gguf':
    file = gguf.open_file(source)
    opened, words = gguf.model(file), gguf.tokenizer(file)
  else:
    opened, words = tensors.open_folder(source), vocabulary.read(source)
  imported = transfer.load(opened)
  # In the file, so that data is prepared with the same ids.
  words[tokenizer_json_reader.IDS] = vocabulary.special_ids(opened.config)
  text = json.dumps(words, ensure_ascii=False)
  spec = {
    'fn': 'lm.data.tokenizers.huggingface:make',
    'path': str(workdir / 'tokenizer.json'),
    'size': imported.vocab,
    'reserved': 0,
  }
  with tempfile.TemporaryDirectory() as folder:
    # The tokenizer is built before anything is kept: it may be broken.
    trial = Path(folder) / 'tokenizer.json'
    trial.write_text(text, encoding='utf-8')
    tokenizer = config.build({**spec, 'path': str(trial)})
  base = config.load('configs/base.py') if base is None else base
  c = _config(base, imported, spec)
  workdir.mkdir(parents=True, exist_ok=True)
  with checkpoint.Checkpointer(workdir) as checkpointer:
    (workdir / 'tokenizer.json').write_text(text, encoding='utf-8')
    c = config.fill(c, given={'data': ('position',)})
    state = types.TrainState(jnp.int32(1), imported.params, (), {})
    checkpointer.enclose({'tokenizer.json': text.encode()})
    checkpointer.preflight(state)
    meta = {
      'config': config.to_json(c),
      'data': {'step': 1},
      'metrics': {},
      'tokenizer': tokenizer.sha256,
      'dtype': opened.dtype,
    }
    config.store(c, workdir / 'config.json')
    checkpointer.save(1, state, meta)
    checkpointer.wait()
  checkpoint.verify(workdir, 1)
  return imported


def _config(
  base: config.Config, imported: transfer.Imported, tokenizer: dict[str, Any]
) -> config.Config:
  """Makes the config of the run."""
  c = base.copy_and_resolve_references().unlock()
  c.steps = c.save_every = 1
  c.model = imported.model
  c.tokenizer = tokenizer
  _, body = config.innermost(imported.model)
  c.data.length = min(c.data.length, body.get('length') or c.data.length)
  if 'body' in imported.model:
    c.evals = {}  # a head predicts no next tokens, so texts have no loss
  for spec in c.evals.values():
    spec.length = c.data.length
  return c
