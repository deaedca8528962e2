"""Training with differential privacy (DP-SGD): `budget` reckons, `gradients` clips and adds noise, `training` joins them.

Which samples an update takes is in `trainer.data.poisson_order`.
"""
