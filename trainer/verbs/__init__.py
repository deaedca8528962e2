"""The verbs of the command line: each has its arguments and a handler. Only `trainer.cli` imports them."""
