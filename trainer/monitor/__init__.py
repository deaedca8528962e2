"""What a run tells while it goes on, and the watchdog, which tells when it no longer goes on.

Nothing is imported here: the watchdog does without TensorFlow, which its neighbours need.
"""
