#!/bin/sh
# "I want to look at a notebook first." ($1: that of this clone, docs/first_steps.ipynb)
set -e
cp "$1" first_steps.ipynb
jupyter execute --inplace first_steps.ipynb
