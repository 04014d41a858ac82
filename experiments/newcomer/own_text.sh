#!/bin/sh
# "I have a folder of text files and want a language model of them."
set -e
mkdir -p books
for topic in if for while try with class def import lambda yield; do
  python -m pydoc "$topic" > "books/$topic.txt" # yours are there already
done

gen-jax train --config lm/pydoc --workdir runs/text \
  --config.data.source=files --config.data.source.pattern='books/*.txt' \
  --config.data.tokenizer.vocab_size=512 --config.data.length=64 \
  --config.task.model.num_layers=2 --config.train.num_steps=40
gen-jax sample --workdir runs/text --prompt "The statement " --num 2 --max_tokens 40
gen-jax evaluate --workdir runs/text
gen-jax inspect --workdir runs/text
gen-jax report --workdir runs/text --out report.html
