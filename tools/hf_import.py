"""Imports a model of transformers, with its tokenizer, as a run.

  python -m tools.hf_import --source=FOLDER --workdir=runs/gpt2
  python -m tools.hf_import --source=model.gguf --workdir=runs/smollm

FOLDER holds config.json, model.safetensors (or several with an index) and a
tokenizer, as published for GPT-2, Llama, Qwen3, Gemma 3, BERT, T5 and T5 v1.1,
or tuned to classify texts or tag words (GPT-2, Llama, Qwen3, BERT) or to find
answers (BERT). A GGUF file holds a Llama-type model. Neither torch nor
transformers is needed, only the extra `interop`.

The result is a run with one checkpoint: lm.sample generates from it, and
training starts from it with

  python -m lm.train --config=runs/gpt2/config.json --workdir=runs/tuned \\
    --config.init_from=runs/gpt2 --config.data.sources.train.path=data/x

where data/x was prepared with --tokenizer=runs/gpt2/tokenizer.json. A model
that classifies, tags or answers is tuned on records instead: with
--config.data.records.path=FILE.

Settings that change what a model or its tokenizer computes are obeyed, or
refused by their key: those in config.json, generation_config.json and the files
beside a tokenizer, and the metadata of a GGUF file. Chat templates and
generation_config.json are kept, and written again by tools.export.
"""

import argparse
from collections.abc import Sequence

from lm import config, tree
from lm.interop import importer


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
    imported = importer.import_model(flags.source, flags.workdir)
  print(
    f'{flags.workdir}: {imported.architecture}, '
    f'{tree.count(imported.params):,} parameters, {imported.vocab:,} ids'
  )
  if imported.labels:
    print(f'classes: {", ".join(imported.labels)}')
  if imported.left_out:
    print(f'left out, no part of this model: {", ".join(imported.left_out)}')


if __name__ == '__main__':
  config.main(main)
