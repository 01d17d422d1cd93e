"""Imports a model of transformers, with its tokenizer, as a run.

from lm.interop import importer
importer.import_model('SmolLM2', 'runs/smollm2')
"""

import json
from pathlib import Path

import jax.numpy as jnp

from lm import checkpoint, config, types
from lm.data.tokenizers import huggingface, tokenizer_json_reader
from lm.interop import gguf, pooling, run_config, tensors, transfer, vocabulary


def import_model(
  source: str | Path, workdir: str | Path, base: config.Config | None = None
) -> transfer.Imported:
  """Makes a run with one checkpoint of a model that others have published.

  Args:
    source: a folder with config.json, safetensors and a tokenizer, or a GGUF
      file.
    workdir: of the run to make.
    base: the config of the run; None is configs/base.py. The model, the
      tokenizer, the data and the evaluators are replaced by those that fit the
      model, see `run_config.make`.

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
    words[tokenizer_json_reader.IDS] = vocabulary.special_ids(opened.config)
    if (template := gguf.chat_template(file)) is not None:
      words[tokenizer_json_reader.TEMPLATE] = template
  else:
    opened = tensors.open_folder(source)
    words = vocabulary.read(source, opened.config)
  imported = transfer.load(opened)
  if imported.model['fn'] == 'lm.models.heads:embed':
    pool = pooling.read(source) or imported.model['pool']
    imported = imported._replace(model={**imported.model, 'pool': pool})
  text = json.dumps(words, ensure_ascii=False)
  # Built before anything is written: it may be broken.
  tokenizer = _tokenizer(source, text.encode(), imported.vocab)
  spec = {
    'fn': 'lm.data.tokenizers.huggingface:make',
    'path': str(workdir / 'tokenizer.json'),
    'size': imported.vocab,
    'reserved': 0,
  }
  c = run_config.make(base, imported, spec, tokenizer)
  workdir.mkdir(parents=True, exist_ok=True)
  with checkpoint.Checkpointer(workdir) as checkpointer:
    c = config.fill(c, given={'data': ('position', 'steps')})
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
    (workdir / 'tokenizer.json').write_text(text, encoding='utf-8')
    config.store(c, workdir / 'config.json')
    checkpointer.save(1, state, meta)
    checkpointer.wait()
  checkpoint.verify(workdir, 1)
  return imported


def _tokenizer(source: Path, content: bytes, vocab: int) -> types.Tokenizer:
  """Builds the tokenizer of a model.

  Raises:
    ValueError: it is broken, or has more ids than the model; one line that
      names the source.
  """
  _, pieces = tokenizer_json_reader.parse(str(source), content)
  if max(pieces) >= vocab:
    raise ValueError(
      f'{source}: its tokenizer has {max(pieces) + 1} ids, and its model has '
      f'{vocab} (vocab_size): take both from the same model'
    )
  return huggingface.from_bytes(str(source), content, size=vocab)
