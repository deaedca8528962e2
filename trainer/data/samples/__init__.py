"""What a task's samples are: records of a store, put into rows of fixed length, one file a task. No TensorFlow."""
