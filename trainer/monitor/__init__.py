"""What a run tells while it goes on: `Monitor` measures and hands to the writers."""

from trainer.monitor.monitor import Monitor

__all__ = ["Monitor"]
