"""`drumline predict`: what a run's model makes of texts, task by task."""
