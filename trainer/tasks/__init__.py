"""One file a task: its fields, loss and metrics."""
