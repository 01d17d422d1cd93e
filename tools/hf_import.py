"""Imports a model of transformers, with its tokenizer, as a run.

  python -m tools.hf_import --source=FOLDER --workdir=runs/gpt2
  python -m tools.hf_import --source=model.gguf --workdir=runs/smollm

FOLDER holds config.json, model.safetensors (or several with an index) and a
tokenizer, as published for GPT-2, Llama, Qwen3, Gemma 3, BERT, T5 and T5 v1.1,
or tuned to classify texts or tag words (GPT-2, Llama, Qwen3, BERT) or to find
answers (BERT); a GGUF file holds a Llama-type model. Needs neither torch nor
transformers, but the extra `interop`.

What comes out is a run with one checkpoint: lm.sample generates from it, and
training starts from it with

  python -m lm.train --config=runs/gpt2/config.json --workdir=runs/tuned \\
    --config.init_from=runs/gpt2 --config.data.sources.train.path=data/x

where data/x was prepared with --tokenizer=runs/gpt2/tokenizer.json.
"""

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import tempfile

import jax.numpy as jnp

from configs import base
from lm import checkpoint, config, tree, types
from lm.data.tokenizers import tokenizer_json_reader
from lm.interop import gguf, tensors, transfer, vocabulary


def import_(source: Path, workdir: Path) -> None:
  """Makes a run of a folder or of a GGUF file.

  Raises:
    ValueError: the files are not what they should be, or the workdir has a run;
      nothing was written then.
    errors.Failure: the workdir is locked, or storage fails.
  """
  if checkpoint.steps(workdir):
    raise ValueError(f'{workdir}: has a run already: give another --workdir')
  if source.suffix == '.gguf':
    file = gguf.open_file(source)
    opened, words = gguf.model(file), gguf.tokenizer(file)
  else:
    opened, words = tensors.open_folder(source), vocabulary.read(source)
  found = transfer.load(opened)
  c = base.get_config().unlock()
  c.steps = c.save_every = 1
  c.model = found.model
  _, body = config.innermost(found.model)
  c.data.length = min(c.data.length, body.get('length') or c.data.length)
  if 'body' in found.model:
    c.evals = {}  # a head tells no text's likelihood
  for spec in c.evals.values():
    spec.length = c.data.length
  c.tokenizer = {
    'fn': 'lm.data.tokenizers.huggingface:make',
    'path': str(workdir / 'tokenizer.json'),
    'size': found.vocab,
    'reserved': 0,
  }
  # In the file, so that data is prepared with the same.
  words[tokenizer_json_reader.IDS] = vocabulary.specials(opened.config)
  text = json.dumps(words, ensure_ascii=False)
  with tempfile.TemporaryDirectory() as folder:  # tried before it is kept
    tried = Path(folder) / 'tokenizer.json'
    tried.write_text(text, encoding='utf-8')
    tokenizer = config.build({**c.tokenizer, 'path': str(tried)})
  workdir.mkdir(parents=True, exist_ok=True)
  with checkpoint.Checkpointer(workdir) as saver:
    (workdir / 'tokenizer.json').write_text(text, encoding='utf-8')
    c = config.fill(c, given={'data': ('position',)})
    state = types.TrainState(jnp.int32(1), found.params, (), {})
    saver.preflight(state)
    meta = {
      'config': config.to_json(c),
      'data': {'step': 1},
      'metrics': {},
      'tokenizer': tokenizer.sha256,
      'dtype': opened.dtype,
    }
    config.store(c, workdir / 'config.json')
    saver.save(1, state, meta)
    saver.wait()
  checkpoint.verify(workdir, 1)
  print(
    f'{workdir}: {found.architecture}, {tree.count(found.params):,} '
    f'parameters, {tokenizer.size:,} ids'
  )
  if found.labels:
    print(f'classes: {", ".join(found.labels)}')
  if found.left_out:
    print(f'left out, no part of this model: {", ".join(found.left_out)}')


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.hf_import',
    description=__doc__,
    epilog=config.exit_code_help('tools.hf_import'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--source', required=True, help='folder or .gguf file')
  parser.add_argument('--workdir', required=True, help='of the run to make')
  flags = parser.parse_args(argv)
  with config.user_errors():
    import_(Path(flags.source), Path(flags.workdir))


if __name__ == '__main__':
  config.main(main)
