"""How the workers of a job meet without ssh, MPI or a hostfile: each checks in with worker 0, and proves that it may.

meeting      the whole of it, as a worker goes through it: come, wait, part
contact      a worker's thread that checks in again and again, and hears whether the gang is broken
caller       signed calls to worker 0
server       worker 0's side: HTTP, signatures checked
gathering    who has come, whether the gang is whole or broken: what worker 0 knows
store        Horovod's store, which worker 0 keeps
local_store  the way to it for the ranks of a worker, over loopback
signatures   what is signed, and how
http_server  small servers in threads that keep no process alive
network      which names resolve, and which interface leads there
"""
