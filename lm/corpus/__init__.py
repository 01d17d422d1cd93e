"""The data factory: from raw text to audited shards of tokens.

`python -m tools.factory --config=configs/data/... --output=FOLDER` runs it.

Its work is cut into parts. A part is a piece of a source and never belongs to a
worker: its name is a hash of what it was made of, and it exists whole or not at
all. So a build goes on after a kill by what exists, and gives the same bytes
with any number of workers and on any engine.

The folder of a build holds
  train/, valid/      datasets, as `lm.data` reads them; below them one folder a
                      source where the config says so
  tokenizer.model     or what else the datasets are written with
  documents.parquet   a row for every document, kept or dropped, sorted by id:
                      id (int64), source, file, place, part (name of the part
                      with its text), row (int32, in that part), reason ('' if
                      kept), witness (id of the earlier document, or null),
                      value (that broke the rule, or null), dataset ('train',
                      'valid', 'train/web', or '' if dropped) and number (int64,
                      of the document in the dataset, or null)
  audit.json          counts of what was dropped and changed, and why
  audit.html          the same as a page, with examples
  parts/NAME/         documents.parquet, with the columns of `stages.DOCUMENTS`,
                      and the tables of keys of that part
  tables/NAME/        results of queries

Read stages.py, texts.py, and one stage, such as quality.py; then parts.py,
engines.py and build.py.
"""
