"""Choosing hyper-parameters: what may be tried, who tries which trial, the runs of a trial, and what came of them all.

Trials are kept by Optuna (https://optuna.org; Akiba et al. 2019, arXiv:1907.10902), in a database that several processes may
share. No TensorFlow: each run is a process of its own, as `drumline train` starts it.
"""
