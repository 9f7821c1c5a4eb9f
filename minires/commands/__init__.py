"""The commands beside training and evaluation, one file each; `minires.cli` puts them together."""
