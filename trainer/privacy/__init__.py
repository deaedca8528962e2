"""Training with differential privacy (DP-SGD): `budget` reckons, `sampling` draws, `gradients` clips and adds noise."""
