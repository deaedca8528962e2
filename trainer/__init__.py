"""The training program. `trainer.loop.train` is where to begin reading."""
