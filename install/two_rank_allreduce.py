"""What each rank runs to prove a Horovod build: Drumline's collectives, on values whose sums are known exactly.

Started by install/build_horovod.py as `horovodrun --gloo -np 2 python install/two_rank_allreduce.py 2`, the argument
being the number of ranks that must meet. Prints one line that the caller looks for; exits with an error otherwise.
"""

import sys

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

# Odd, so that the ring's shares are unequal. The values stay below 128, so that their sums are exact in float16 too.
NUM_VALUES = 4099


def main() -> None:
    expected_ranks = int(sys.argv[1])
    hvd.init()
    if hvd.size() != expected_ranks:
        raise SystemExit(f"rank {hvd.rank()}: expected {expected_ranks} ranks, Horovod reports {hvd.size()}")

    # NCCL refuses two ranks on one GPU, so GPUs are used only where every rank has its own.
    gpus = tf.config.list_physical_devices("GPU")
    device = "GPU" if len(gpus) >= hvd.local_size() else "CPU"
    tf.config.set_visible_devices([gpus[hvd.local_rank()]] if device == "GPU" else [], "GPU")

    values = np.arange(NUM_VALUES) % 128
    expected_sum = values * (expected_ranks * (expected_ranks + 1) // 2)
    for dtype in (tf.float32, tf.float16):
        contribution = tf.constant(values * (hvd.rank() + 1), dtype)
        alone = hvd.allreduce(contribution, op=hvd.Sum)
        grouped = hvd.grouped_allreduce([contribution, contribution], op=hvd.Sum)
        for reduced in (alone, *grouped):
            np.testing.assert_array_equal(reduced.numpy(), expected_sum)
        broadcast = hvd.broadcast(contribution, root_rank=expected_ranks - 1)
        np.testing.assert_array_equal(broadcast.numpy(), values * expected_ranks)

    nccl = "built" if hvd.nccl_built() else "not built"
    print(f"rank {hvd.rank()} of {hvd.size()}: sums exact on {device}, NCCL {nccl}", flush=True)


if __name__ == "__main__":
    main()
