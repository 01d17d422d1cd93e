"""Exports a run as a folder that `from_pretrained` of transformers opens.

  python -m tools.hf_export --workdir=runs/tuned --output=exports/tuned

Writes config.json, model.safetensors, tokenizer.json and
tokenizer_config.json, if one of the classes of transformers that lm.interop
knows computes what the run's model computes; otherwise one line says what the
nearest one has otherwise. The dtype is that of the file that the run was
imported from, or float32.

Exit codes: 0 done; 2 no class computes this, or wrong usage; 4 the checkpoint
is damaged; 5 storage.
"""

import argparse
from collections.abc import Sequence
import json
from pathlib import Path

from lm import checkpoint, config, saved
from lm.data import huggingface
from lm.interop import tensors, transfer


def export(
  workdir: Path, output: Path, *, step: int | None, dtype: str | None
) -> None:
  """Writes the folder.

  Args:
    workdir: of the run.
    output: a folder to make; one with files in it is refused.
    step: of the checkpoint; None: the newest.
    dtype: of the tensors: float32, bfloat16 or float16; None: as imported.

  Raises:
    ValueError: the folder is not empty, or no class computes this model.
    errors.Failure: there is no sound checkpoint.
  """
  if output.exists() and any(output.iterdir()):
    raise ValueError(f'{output}: is not empty: give another --output')
  c, tokenizer, _ = saved.build(workdir, step)
  meta = checkpoint.read_meta(workdir, step)
  dtype = str(dtype or meta.get('dtype', 'float32'))
  params = checkpoint.restore_params(workdir, step)
  theirs, found = transfer.save(c.model.to_dict(), tokenizer.size, params)
  words = huggingface.export(
    c.tokenizer.get('path', 'bytes'), c.tokenizer.reserved
  )
  files = huggingface.special_files(tokenizer, words)
  files['tokenizer.json'] = words
  files['config.json'] = {
    **theirs,
    'dtype': dtype,
    'bos_token_id': tokenizer.bos,
    'eos_token_id': tokenizer.eos,
    'pad_token_id': tokenizer.pad,
  }
  if theirs.get('is_encoder_decoder'):
    files['config.json']['decoder_start_token_id'] = tokenizer.bos
  output.mkdir(parents=True, exist_ok=True)
  tensors.save(found, output, dtype)
  for name, content in files.items():
    text = json.dumps(content, ensure_ascii=False, indent=2)
    (output / name).write_text(f'{text}\n', encoding='utf-8')
  print(f'{output}: {theirs["architectures"][0]}, {dtype}')


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.hf_export',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--workdir', required=True, help='of a run')
  parser.add_argument('--output', required=True, help='folder to make')
  parser.add_argument('--step', type=int, help='of a checkpoint; the newest')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'))
  flags = parser.parse_args(argv)
  with config.refusals():
    export(
      Path(flags.workdir),
      Path(flags.output),
      step=flags.step,
      dtype=flags.dtype,
    )


if __name__ == '__main__':
  config.main(main)
