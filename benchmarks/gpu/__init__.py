"""Measurements on a GPU, one module a question; `all.sh` runs them all."""
