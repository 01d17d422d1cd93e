"""Exports a run in another form, and refuses a result that is worse.

  python -m tools.export int8 --workdir=runs/a --output=exports/small \\
    --trust=data/embedded/
  python -m tools.export prune --workdir=runs/a --output=exports/thin \\
    --sparsity=0.3
  python -m tools.export stablehlo --workdir=runs/a --output=exports/a
  python -m tools.export huggingface --workdir=runs/a --output=exports/hf
  python -m tools.export merge --workdir=runs/lora --output=exports/merged

int8 and prune write a run with one checkpoint. lm.sample, lm.evaluate,
init_from and this program read it like any other run, but training cannot
resume in it. int8 stores matrices as whole numbers with a scale for each
output, which are multiplied when they are read. prune sets the smallest weights
to zero. merge adds the updates of lm.models.lora to the matrices of the model;
the other forms do that first. Merging may move no logit by more than --budget.

stablehlo writes one function from ids to logits for CPU, CUDA and TPU, its
parameters, and model.py, which reads them on a machine without lm.

huggingface writes a folder that from_pretrained of transformers opens:
config.json, model.safetensors, tokenizer.json and tokenizer_config.json. It
works if a class that lm.interop knows computes what the model computes. If none
does, one line says how the nearest one differs.

The export is read back and checked with a probe: 64 texts of the run's
validation data, whose folder --trust names, or of --text, and the loss of the
original at each token. The probe lies in the output as probe.json, and is used
again when that is exported in turn: so the budget counts from the first
original. A run that was tuned on records is checked with 64 of the records that
evaluate it, or of its own. With
--config, a file such as configs/evaluate/english.py, both models are evaluated
on the first --items of each task. All figures are printed, and written to
report.json, which is all that is left of an export that is refused. Needs the
extra `interop`, and int8 the extra `quant`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lm import config
from lm.inference import export_forms, exporter
from lm.layers import compress
from lm.runtime import compilation_cache, devices, memory


def _flags(argv: Sequence[str]) -> argparse.Namespace:
  shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  add = shared.add_argument
  config.trust_flag(shared)
  add('--workdir', required=True, help='of a run')
  add('--output', required=True, type=Path, help='folder to make')
  add('--step', type=int, help='of a checkpoint; the newest')
  add('--budget', type=float, default=0.01, help='nats a token (0.01)')
  add('--text', help='texts for the probe: a file of prepare_data')
  add('--config', help='a file whose `evals` evaluate both models')
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

  paths = 'regular expression: matrices with such a path'
  int8 = form('int8')
  int8.add_argument('--paths', default=compress.ALL, help=f'{paths} (all)')
  int8.set_defaults(make=lambda f: export_forms.int8(f.paths))
  prune = form('prune')
  add = prune.add_argument
  add('--sparsity', type=float, default=0.5, help='fraction of zeros (0.5)')
  add('--scope', choices=compress.SCOPES, default='global')
  add('--paths', default=compress.BLOCKS, help=f'{paths} (of blocks)')
  prune.set_defaults(
    make=lambda f: export_forms.prune(f.sparsity, f.scope, f.paths)
  )
  portable = form('stablehlo')
  add = portable.add_argument
  add('--weights', choices=('float32', 'int8'), default='float32')
  portable.set_defaults(make=lambda f: export_forms.portable(f.weights))
  hugging_face = form('huggingface')
  add = hugging_face.add_argument
  add('--dtype', choices=('float32', 'bfloat16', 'float16'))
  hugging_face.set_defaults(make=lambda f: export_forms.hugging_face(f.dtype))
  form('merge').set_defaults(make=lambda f: export_forms.merge())
  return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  flags = _flags(argv)
  memory.prepare()
  compilation_cache.prepare()
  devices.announce()
  with config.user_errors():
    report = exporter.export(
      flags.workdir,
      flags.output,
      flags.make(flags),
      budget_nats=flags.budget,
      step=flags.step,
      text=flags.text,
      evals=config.load(flags.config).evals if flags.config else None,
      items=flags.items,
    )
  keys = ('class', 'dtype', 'sparsity', 'longest', 'fixed')
  facts = [f'{k} {report[k]}' for k in keys if report.get(k) is not None]
  print(f'{flags.output}: {", ".join([flags.form, *facts])}')


if __name__ == '__main__':
  config.main(main)
