"""Pretrained weights in and out, in the formats that others keep them in. What is imported of it is imported by module."""
