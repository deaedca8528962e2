"""From files to sequences: sources, tokenizer, token store, order, windows and the `tf.data` pipeline.

`prepare` writes a store, `store` maps it, and `order` and `pipeline` feed the training from it. These last two alone
import TensorFlow: the processes of `prepare` start without it.
"""
