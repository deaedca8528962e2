"""Models as functions: `parameters` lists what a model is made of, and one file a family computes with it."""
